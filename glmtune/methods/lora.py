"""LoRA: low-rank updates beside frozen linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685), by peft.

With its relatives: rsLoRA (https://arxiv.org/abs/2312.03732), DoRA (https://arxiv.org/abs/2402.09353), PiSSA
(https://arxiv.org/abs/2404.02948) and LoRA+ (https://arxiv.org/abs/2402.12354). Whichever of them trained it, what is
saved is an adapter in peft's format for the base as it was. `merge` makes it part of the base.

Letters: W weight of a linear layer, A and B its update's matrices, s the update's scale, r its rank: W + s B A.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from glmtune import registry
from glmtune.config import ModelSettings, NamedSettings
from glmtune.methods import Method, Model, TrainableSpec
from glmtune.models.architecture import Architecture
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

ALL_LINEAR = "all-linear"
PISSA_NEEDS_WEIGHTS = (
    "method.init=pissa takes a part out of the base's weights, which needs them at full precision; this base is stored "
    "at 8 or 4 bits. Load it at 16 (model.bits=16), or set method.init=default."
)
ADAPTER = "default"  # peft's name of the one adapter that there is

# PiSSA takes the singular value decomposition of every target layer. On two cores that of a 2048 x 2048 matrix takes
# half a minute, and ChatGLM-6B has 112 larger ones. Layers that are larger than this are decomposed by subspace
# iteration (https://arxiv.org/abs/0909.4061): 6 seconds for 16384 x 4096. 16 rounds are peft's advice for PiSSA.
EXACT_UP_TO = 512
SUBSPACE_ITERATIONS = 16
OVERSAMPLING = 8  # singular vectors followed beyond the rank, so that the last ones converge, too

# Largest difference between the logits of a merged and an unmerged model, as a share of the logits (both root mean
# square). Merging rounds each changed weight once more, to the base's precision: in models of 28 layers that was seen
# to make 2e-6, 4e-3 and 3e-2.
MERGE_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}


class LoraSettings(NamedSettings):
    """Size, place and kind of the low-rank updates."""

    rank: int = Field(16, ge=1, description="rank r of each update")
    alpha: int = Field(32, ge=1, description="updates are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of each update")
    target_modules: str | list[str] = Field(
        ALL_LINEAR,
        description="linear layers to update: 'all-linear' (all but the head), a list of names, or a regular "
        "expression for whole names such as 'transformer.layers.0.mlp.dense_h_to_4h'",
    )
    use_rslora: bool = Field(False, description="rsLoRA: scale updates by alpha / sqrt(rank), for high ranks")
    use_dora: bool = Field(False, description="DoRA: also learn the length of each row of the updated weights; slower")
    init: Literal["default", "pissa"] = Field(
        "default",
        description="what updates start from: nothing, or (PiSSA) the largest singular values of the weights, which "
        "are taken out of the base meanwhile; the adapter is then saved at twice the rank",
    )
    lora_plus_ratio: float | None = Field(
        None, ge=1, description="LoRA+: learning rate of the B matrices divided by that of A, e.g. 16; default: 1"
    )


class Lora(Method):
    """The base stays frozen; two small fp32 matrices beside each target layer learn."""

    Settings = LoraSettings
    settings: LoraSettings
    rate_times_width: ClassVar[float] = 0.512  # half and twice as much: docs/log.md

    def __init__(self, settings: NamedSettings):
        super().__init__(settings)
        self.start: dict[str, tuple[Tensor, Tensor]] = {}  # PiSSA: A and B of each layer before training

    def apply(self, model: PreTrainedModel) -> Model:
        """Wrap the model with peft. The fresh update changes nothing, so the model first answers as its base.

        Raises:
            UserError: no layer has one of the names in `target_modules`, or the base is stored at too few bits.
        """
        from peft import LoraConfig, get_peft_model

        self.check_targets(model)
        self.check_precision(model)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.settings.rank,
            lora_alpha=self.settings.alpha,
            lora_dropout=self.settings.dropout,
            target_modules=self.settings.target_modules,
            use_rslora=self.settings.use_rslora,
            use_dora=self.settings.use_dora,
        )
        try:
            wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
        except (ValueError, re.error) as error:  # a pattern that matches nothing, or a layer that cannot be updated
            raise UserError(
                f"method.target_modules: {self.settings.target_modules}: {error} Name linear layers in a list, as in "
                "[query_key_value, dense]; a pattern must match their whole names."
            ) from error
        if self.settings.init == "pissa":
            self.take_out(wrapped)
        return wrapped

    def check_targets(self, model: PreTrainedModel) -> None:
        """peft is content if one of several names exists; a misspelt one would silently learn nothing.

        Raises:
            UserError: no layer has one of the names.
        """
        from torch import nn

        targets = self.settings.target_modules
        layers = {name: module for name, module in model.named_modules() if name}
        known = sorted({name.rpartition(".")[2] for name, layer in layers.items() if isinstance(layer, nn.Linear)})
        for target in targets if isinstance(targets, list) else []:
            if not any(name == target or name.endswith(f".{target}") for name in layers):
                hint = registry.suggest(target, known)
                raise UserError(f"method.target_modules: no layer is named '{target}'.{hint}")

    def check_storage(self, base: ModelSettings, stored_bits: int) -> None:
        """Plain LoRA stands beside layers in any form; PiSSA needs the weights themselves.

        Raises:
            UserError: the base is stored at 8 or 4 bits, and PiSSA is to start from it.
        """
        if self.settings.init == "pissa" and min(base.bits, stored_bits) < 16:
            raise UserError(PISSA_NEEDS_WEIGHTS)

    def check_precision(self, model: PreTrainedModel) -> None:
        """Plain LoRA stands beside layers in any form; its relatives need the weights themselves.

        Raises:
            UserError: the base is stored at 8 or 4 bits, which the settings do not go with.
        """
        import torch

        from glmtune.models.quantization import PackedLinear

        quantized = [layer for layer in linear_layers(model) if not layer.weight.is_floating_point()]
        if self.settings.init == "pissa" and quantized:
            raise UserError(PISSA_NEEDS_WEIGHTS)
        if self.settings.use_dora and any(isinstance(layer, PackedLinear) for layer in quantized):
            raise UserError(
                "method.use_dora=true needs the lengths of the base's weights, which cannot be had from a checkpoint "
                "that is itself packed at 8 or 4 bits. Take the 16-bit release with model.bits=8 or 4, or set "
                "method.use_dora=false."
            )
        if self.settings.use_dora and any(
            layer.weight.device.type == "cpu" and layer.weight.dtype == torch.int8 for layer in quantized
        ):
            raise UserError(
                "method.use_dora=true: on a CPU, peft cannot read the lengths of weights that bitsandbytes stores at 8 "
                "bits. Use model.bits=4 or 16, or a GPU, or set method.use_dora=false."
            )

    def take_out(self, model: PeftModel) -> None:
        """PiSSA: move the largest singular values of each target layer from the base into its update.

        Done here and not by peft, which rounds A and B to the precision of the base after it has taken them out of it:
        on a 16-bit base, their product would no longer fill the gap.

        Raises:
            UserError: the rank is larger than a layer, or a target is no linear layer.
        """
        import torch
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        rank = self.settings.rank
        with torch.no_grad():
            for name, layer in updated_layers(model):
                if not isinstance(layer.get_base_layer(), nn.Linear | Conv1D):
                    raise UserError(
                        f"method.init=pissa: {name} is a {type(layer.get_base_layer()).__name__}, no linear layer. "
                        "Leave it out of method.target_modules, or set method.init=default."
                    )
                weight = base_weight(layer)
                if rank > min(weight.shape):
                    raise UserError(
                        f"method.rank={rank}: {name} is {' x '.join(map(str, weight.shape))} and has only "
                        f"{min(weight.shape)} singular values to start from (method.init=pissa). Lower the rank."
                    )
                left, values, right = principal_part(weight.float(), rank)
                roots = (values / layer.scaling[ADAPTER]).sqrt()
                down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
                down.copy_(roots[:, None] * right)
                up.copy_(left * roots)
                weight.copy_(weight.float() - layer.scaling[ADAPTER] * up @ down)
                self.start[name] = down.clone(), up.clone()

    def finish(self, model: Model) -> Model:
        """PiSSA: give the base back what was taken out, and make of the update what it has learned since.

        With A0 and B0 the start: (W - s B0 A0) + s B A = W + [s B, -s B0] [A; A0], a LoRA of rank 2r with scale 1. The
        base is as it was but for the rounding of its precision.
        """
        import torch
        from torch import nn

        if not self.start:
            return model
        rank = 2 * self.settings.rank
        with torch.no_grad():
            for name, layer in updated_layers(model):
                first_down, first_up = self.start[name]
                scale, down, up = layer.scaling[ADAPTER], layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
                weight = base_weight(layer)
                weight.copy_(weight.float() + scale * first_up @ first_down)
                down.weight = nn.Parameter(torch.cat((down.weight, first_down)))
                up.weight = nn.Parameter(scale * torch.cat((up.weight, -first_up), dim=1))
                down.out_features = up.in_features = rank
                layer.r[ADAPTER] = layer.lora_alpha[ADAPTER] = rank
                layer.scaling[ADAPTER] = 1.0
        config: Any = model.peft_config[ADAPTER]
        config.r, config.lora_alpha, config.use_rslora = rank, rank, False
        self.start = {}
        return model

    def save_weights(self, model: Model, folder: Path) -> None:
        """Write the adapter for the base as it was, also if nobody has called `finish`."""
        super().save_weights(self.finish(model), folder)

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        """LoRA+: B matrices, and vectors as those of DoRA, learn faster, as in peft's `create_loraplus_optimizer`."""
        if self.settings.lora_plus_ratio is None:
            return super().parameter_groups(model)
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        fast = [parameter for name, parameter in trained if "lora_B" in name or parameter.ndim == 1]
        slow = [parameter for name, parameter in trained if "lora_B" not in name and parameter.ndim != 1]
        return [{"params": slow}, {"params": fast, "lr_scale": self.settings.lora_plus_ratio}]

    def trainable_spec(self, architecture: Architecture) -> TrainableSpec:
        """A and B of each target layer, and with DoRA a length for each row.

        Raises:
            UserError: `target_modules` is a pattern, or names something else than linear layers of the blocks.
        """
        targets = self.settings.target_modules
        count, linears = (
            architecture.num_layers,
            {f"{layer.part}.{layer.name}": layer for layer in architecture.linears},
        )
        if isinstance(targets, list):
            known = sorted({layer.name for layer in architecture.linears})
            for target in targets:
                if target not in known and target not in linears:
                    raise UserError(
                        f"method.target_modules: '{target}' is not counted among the linear layers of "
                        f"{architecture.family}.{registry.suggest(target, known)}"
                    )
            linears = {path: layer for path, layer in linears.items() if {path, layer.name} & set(targets)}
        elif targets.lower() != ALL_LINEAR:
            raise UserError(
                f"method.target_modules: what the pattern '{targets}' matches is known only once the model is loaded. "
                f"A list of names can be counted, as '{ALL_LINEAR}' can."
            )
        block = sum(self.settings.rank * (layer.inputs + layer.outputs) for layer in linears.values())
        if self.settings.use_dora:
            block += sum(layer.outputs for layer in linears.values())
        settings = self.settings
        return TrainableSpec(
            count * block,
            count,
            tuple(linears.values()),
            count,
            dropout=settings.dropout > 0,
            dora=settings.use_dora,
            needs_weights=settings.init == "pissa",
            saved=2 * count * block if settings.init == "pissa" else None,
        )


def merge(model: PeftModel, input_ids: Tensor) -> PreTrainedModel:
    """Make an adapter part of the weights of its base: an ordinary model, of the base's class and precision.

    Args:
        model: base and adapter, as `glmtune.load` gives them; used up, the adapter is taken off it.
        input_ids: (B, T) a prompt on which the merged model must give the logits that it gave unmerged, up to
            `MERGE_TOLERANCE` times their size.

    Returns:
        The merged model, in evaluation mode.

    Raises:
        UserError: the adapter is no change of weights, the base is stored at 8 or 4 bits, or the merged model answers
            otherwise. `model` then is unmerged as before, up to rounding.
    """
    import torch

    check_mergeable(model)
    model.eval()
    tuner: Any = model.base_model  # peft's, which knows how to merge
    input_ids = input_ids.to(model.device)
    with torch.no_grad():
        expected = model(input_ids=input_ids).logits.float()
    try:
        with torch.no_grad():
            tuner.merge_adapter(safe_merge=True)
            found = model(input_ids=input_ids).logits.float()
        difference = ((found - expected).norm() / expected.norm()).item()
        tolerance = MERGE_TOLERANCE.get(str(model.dtype).removeprefix("torch."), MERGE_TOLERANCE["float32"])
        if not difference <= tolerance:  # nor if it is no number
            raise UserError(
                f"The merged model answers otherwise than base and adapter: logits differ by {difference:.1e} of "
                f"their size, {tolerance:.0e} is what rounding to {model.dtype} explains. Nothing was merged. Load "
                "the base in float32 (dtype='float32'), and look whether the adapter holds very large weights."
            )
    except BaseException as error:
        for _, layer in updated_layers(model):
            if layer.merged:
                layer.unmerge()
        if type(error) is ValueError:  # peft's, on weights that are no finite numbers
            raise UserError(f"The adapter cannot be merged: {error}. Nothing was merged.") from error
        raise
    return tuner.unload().eval()


def check_mergeable(model: PeftModel) -> None:
    """Look for what keeps an adapter from being merged.

    Raises:
        UserError: there is none, it is a prefix, or its base is stored at 8 or 4 bits.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise UserError(f"This {type(model).__name__} has no adapter to merge: it can be used and saved as it is.")
    if model.active_peft_config.is_prompt_learning:
        raise UserError(
            "A prefix is no change of weights, so that it cannot be merged into them. Keep the adapter beside its base."
        )
    for name, layer in updated_layers(model):
        if not layer.get_base_layer().weight.is_floating_point():
            raise UserError(
                f"{name} is stored at 8 or 4 bits, and an update merged into it would be rounded away. Load the base "
                "at 16 bits (bits=16, of a packed checkpoint the 16-bit release) with this adapter, then merge."
            )


def linear_layers(model: PreTrainedModel) -> list[nn.Linear]:
    """All linear layers but the head."""
    from torch import nn

    head = model.get_output_embeddings()
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]


def updated_layers(model: Model) -> Iterator[tuple[str, Any]]:
    """(name, layer in peft's wrapping) of every layer that has an update beside it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            yield name, layer


def base_weight(layer: Any) -> Tensor:
    """(outputs, inputs) weight beside an update; a view where the layer keeps it the other way round, as GPT-2 does."""
    weight = layer.get_base_layer().weight
    return weight.T if layer.fan_in_fan_out else weight


def principal_part(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` largest singular values of a matrix (m, n) with their vectors: U (m, r), S (r,), V^T (r, n)."""
    import torch

    smallest = min(weight.shape)
    if smallest <= EXACT_UP_TO:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
    else:
        followed = min(rank + OVERSAMPLING, smallest)
        left, values, vectors = torch.svd_lowrank(weight, q=followed, niter=SUBSPACE_ITERATIONS)
        right = vectors.T
    return left[:, :rank], values[:rank], right[:rank]
