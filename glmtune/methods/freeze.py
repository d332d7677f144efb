"""Freeze: whole layers learn in place, or their attention or MLP halves; everything else stands still.

The simplest way to train a part of a model, known from the first projects around ChatGLM-6B
(https://github.com/hiyouga/ChatGLM-Efficient-Tuning).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from pydantic import Field

from glmtune.config import NamedSettings
from glmtune.methods import Method, Model, TrainableSpec
from glmtune.models.architecture import Architecture
from glmtune.runtime import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

WEIGHTS = "trained.safetensors"
# What the halves of a block are called: ChatGLM-6B and GPT-NeoX say `attention`, most others `self_attn` or `attn`.
HALVES = {"attention": ("attention", "attn"), "mlp": ("mlp", "feed_forward")}


class FreezeSettings(NamedSettings):
    """Which layers learn."""

    num_layers: int = Field(3, ge=1, description="layers that learn")
    side: Literal["last", "first"] = Field("last", description="at which end of the model they are")
    layers: list[int] | None = Field(
        None,
        min_length=1,
        description="instead of `num_layers` and `side`: which layers learn, from 0, or from the end: -1 is the last",
    )
    part: Literal["all", "attention", "mlp"] = Field("all", description="what of these layers learns")


class Freeze(Method):
    """A few layers are trained in fp32, under their own names; the rest is frozen. What is saved is these layers.

    Attributes:
        storage: name of each trained weight -> precision that it has in the base.
    """

    Settings = FreezeSettings
    settings: FreezeSettings
    saves_adapter: ClassVar[bool] = True
    trains_base: ClassVar[bool] = True

    def __init__(self, settings: NamedSettings):
        super().__init__(settings)
        self.storage: dict[str, torch.dtype] = {}

    def apply(self, model: PreTrainedModel) -> Model:
        """Freeze everything but the chosen layers, and turn these to fp32.

        Raises:
            UserError: the model has no such layers, or no such parts of them.
        """
        path, layers = find_blocks(model)
        model.requires_grad_(False)
        self.storage = {}
        for index in self.choose_layers(len(layers)):
            for half in self.find_halves(layers[index]):
                for name, parameter in layers[index].get_submodule(half).named_parameters():
                    self.storage[".".join(filter(None, (path, str(index), half, name)))] = parameter.dtype
                    parameter.data = parameter.data.float()
                    parameter.requires_grad_(True)
        return model

    def choose_layers(self, count: int) -> list[int]:
        """Return the indices of the layers that learn, of a model of `count`.

        Raises:
            UserError: it has no such layers.
        """
        wanted, number = self.settings.layers, self.settings.num_layers
        if wanted is None:
            if number > count:
                raise UserError(f"method.num_layers={number}: the model has {count} layers. Set at most {count}.")
            return list(range(number)) if self.settings.side == "first" else list(range(count - number, count))
        for index in wanted:
            if not -count <= index < count:
                nearest = count - 1 if index > 0 else -count
                raise UserError(
                    f"method.layers: there is no layer {index}; the model has {count}, 0 to {count - 1}, or -{count} "
                    f"to -1 from the end. The nearest is {nearest}."
                )
        return sorted({index % count for index in wanted})

    def find_halves(self, layer: nn.Module) -> list[str]:
        """Return the names of the children of a layer that learn; an empty name is the whole layer.

        Raises:
            UserError: the layer has no child of such a name.
        """
        if self.settings.part == "all":
            return [""]
        children = [name for name, _ in layer.named_children()]
        # Norms are called after the half that they stand beside: post_attention_layernorm.
        found = [
            child for child in children if "norm" not in child and any(x in child for x in HALVES[self.settings.part])
        ]
        if not found:
            raise UserError(
                f"method.part={self.settings.part}: the layers of this model have no part of such a name, they have "
                f"{', '.join(children)}. Set method.part=all."
            )
        return found

    def takes_over(self, folder: Path, model: PreTrainedModel) -> bool:
        """Return whether the same layers were trained."""
        from glmtune.models.shapes import shapes

        if not self.holds(folder):
            return False
        self.apply(model)
        return self.storage.keys() == shapes([folder / WEIGHTS]).keys()

    def go_on(self, model: Model) -> Model:
        """Return the model, whose layers have what they have learned already, with these layers trainable."""
        return self.apply(cast("PreTrainedModel", model))

    def finish(self, model: Model) -> Model:
        """Bring the model back to the precision of the base: what is saved is what was judged."""
        for name, dtype in self.storage.items():
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.to(dtype)
        return model

    def save_weights(self, model: Model, folder: Path) -> None:
        """Write the trained layers, and nothing else, under the names that they have in the base."""
        from safetensors.torch import save_file

        weights = {
            name: model.get_parameter(name).detach().to(dtype).contiguous() for name, dtype in self.storage.items()
        }
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Return whether a folder has trained layers in it."""
        return (folder / WEIGHTS).is_file()

    @classmethod
    def attach(cls, model: PreTrainedModel, folder: Path) -> Model:
        """Put trained layers in the place of the base's own, in the base's precision.

        Raises:
            UserError: the base has no such layers, or stores them at 8 or 4 bits.
        """
        from safetensors.torch import load_file

        weights = load_file(folder / WEIGHTS)
        own = dict(model.named_parameters())
        for name, weight in weights.items():
            if name not in own:
                raise UserError(
                    f"{folder}: these layers were trained in another kind of model: this {type(model).__name__} has no "
                    f"{name}. Name the base that they belong to with model.path=..."
                )
            if not own[name].is_floating_point():
                raise UserError(
                    f"{folder}: trained layers take the place of the base's own, and this base stores {name} at 8 or "
                    "4 bits. Load it at 16 (bits=16)."
                )
            if own[name].shape != weight.shape:
                raise UserError(
                    f"{folder}: these layers were trained in a model of another size: {name} is {list(weight.shape)} "
                    f"there, {list(own[name].shape)} here. Name the base that they belong to with model.path=..."
                )
        for name, weight in weights.items():
            own[name].data.copy_(weight)
        return model

    def trainable_spec(self, architecture: Architecture) -> TrainableSpec:
        """Return the linear layers of the chosen blocks, and where these learn as a whole, their norms."""
        part, chosen = self.settings.part, self.choose_layers(architecture.num_layers)
        linears = tuple(layer for layer in architecture.linears if part in ("all", layer.part))
        learned = linears if architecture.router is None or part == "attention" else (*linears, architecture.router)
        parameters = sum(layer.parameters for layer in learned for block in chosen if layer.is_in(block))
        if part == "all":
            parameters += len(chosen) * architecture.norm_parameters
        depth = architecture.num_layers - chosen[0]
        return TrainableSpec(parameters, depth, linears, len(chosen), True, norms=part == "all")


def find_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find the decoder's layers and their name: the first list of as many modules as the config has layers.

    Raises:
        UserError: there is no such list.
    """
    from torch import nn

    count = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise UserError(
        f"method.name=freeze: {type(model).__name__} does not keep its {count} layers in one list, so that none can be "
        "chosen. Use method.name=lora or full."
    )
