"""LoRA: low-rank updates beside frozen linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685), by peft.

With its relatives: rsLoRA (https://arxiv.org/abs/2312.03732), DoRA (https://arxiv.org/abs/2402.09353), PiSSA
(https://arxiv.org/abs/2404.02948) and LoRA+ (https://arxiv.org/abs/2402.12354). Whichever of them trained it, what is
saved is an adapter in peft's format for the base as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from glmtune import registry
from glmtune.config import ModelSettings, NamedSettings
from glmtune.methods import Method, Model, TrainableSpec
from glmtune.models.adapter_config import ADAPTER_CONFIG, ALL_LINEAR
from glmtune.models.architecture import Architecture, LinearLayer
from glmtune.models.patterns import matching
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

NAME_THEM = "Name linear layers in a list, as in [query_key_value, dense]; a pattern must match their whole names."
PISSA_NEEDS_WEIGHTS = (
    "method.init=pissa takes a part out of the base's weights, which needs them at full precision; this base is stored "
    "at 8 or 4 bits. Load it at 16 (model.bits=16), or set method.init=default."
)


class LoraSettings(NamedSettings):
    """Size, place and kind of the low-rank updates."""

    rank: int = Field(16, ge=1, description="rank r of each update")
    alpha: int = Field(32, ge=1, description="updates are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of each update")
    target_modules: str | list[str] = Field(
        ALL_LINEAR,
        description="linear layers to update: 'all-linear' (all but the head; experts, too), a list of names, or a "
        "regular expression for whole names such as 'transformer.layers.0.mlp.dense_h_to_4h'",
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
            UserError: no layer has one of the names in `target_modules`, it is head and embedding in one, or the base
                is stored at too few bits.
        """
        from peft import LoraConfig, get_peft_model

        from glmtune.models.low_rank import as_written

        self.check_targets(model)
        self.check_precision(model)
        modules, experts = self.targets(model)
        self.check_experts(model, experts)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.settings.rank,
            lora_alpha=self.settings.alpha,
            lora_dropout=self.settings.dropout,
            target_modules=modules,
            target_parameters=experts or None,
            use_rslora=self.settings.use_rslora,
            use_dora=self.settings.use_dora,
        )
        try:
            with as_written():
                wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
        except ValueError as error:  # a layer that cannot be updated
            raise UserError(f"method.target_modules: {self.settings.target_modules}: {error} {NAME_THEM}") from error
        if self.settings.init == "pissa":
            from glmtune.models.low_rank import take_out

            self.start = take_out(wrapped, self.settings.rank)
        self.check_ties(wrapped)
        return wrapped

    def check_ties(self, model: PeftModel) -> None:
        """See whether what learns could become part of the weights: beside a head that is the embedding, it could not.

        Raises:
            UserError: it could not.
        """
        from glmtune.models.low_rank import tied_updates

        if tied := [name.removeprefix("base_model.model.") for name in tied_updates(model)]:
            raise UserError(
                f"method.target_modules: {' and '.join(tied)} cannot learn by itself: head and embedding are one "
                "matrix in this model (tie_word_embeddings), and an update beside one could not be merged for an "
                f"export. Leave it out, as '{ALL_LINEAR}' does; method.name=full trains the matrix itself."
            )

    def targets(self, model: PreTrainedModel) -> tuple[str | list[str], list[str]]:
        """Return the layers to update, 'all-linear' or names, and the parameters that hold those of experts.

        A pattern becomes the names that it matches.

        Raises:
            UserError: a pattern that cannot be read, or matches nothing.
        """
        from glmtune.models.low_rank import expert_parameters

        targets, experts = self.settings.target_modules, expert_parameters(model)
        modules = [name for name, _ in model.named_modules() if name]
        if isinstance(targets, list):
            endings = tuple(f".{target}" for target in targets)
            named = [target for target in targets if any(f".{name}".endswith(f".{target}") for name in modules)]
            return named, [name for name in experts if f".{name}".endswith(endings)]
        if targets.lower() == ALL_LINEAR:
            return targets, experts
        try:
            found = matching(targets, [*modules, *experts])
        except ValueError as error:
            raise UserError(f"method.target_modules: {targets}: {error} {NAME_THEM}") from error
        if not found:
            raise UserError(f"method.target_modules: {targets}: no layer has such a name. {NAME_THEM}")
        return [name for name in found if name not in experts], [name for name in found if name in experts]

    def check_experts(self, model: PreTrainedModel, experts: list[str]) -> None:
        """See whether experts are updated in a way that peft has for them.

        Raises:
            UserError: the updates are of another kind than plain LoRA.
        """
        from glmtune.models.low_rank import named_linear_layers

        settings = self.settings
        kinds = {
            f"method.dropout={settings.dropout:g}": settings.dropout > 0,
            "method.use_dora=true": settings.use_dora,
            "method.init=pissa": settings.init == "pissa",
        }
        if experts and (odd := [setting for setting, is_set in kinds.items() if is_set]):
            plain = {name.rpartition(".")[2] for name, _ in named_linear_layers(model)}
            plain -= {name.rpartition(".")[2] for name in experts}
            raise UserError(
                f"{odd[0]}: the experts of a block are one parameter ({experts[0]}), beside which peft has plain LoRA "
                "alone. Leave the setting out, or leave the experts out: "
                f"method.target_modules=[{', '.join(sorted(plain))}]."
            )

    def check_targets(self, model: PreTrainedModel) -> None:
        """See whether every name exists; peft is content with one, and a misspelt one would silently learn nothing.

        Raises:
            UserError: no layer has one of the names.
        """
        from torch import nn

        from glmtune.models.low_rank import expert_parameters

        targets = self.settings.target_modules
        layers = {name: module for name, module in model.named_modules() if name}
        linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
        experts = expert_parameters(model)
        known = sorted({name.rpartition(".")[2] for name in (*linear, *experts)})
        for target in targets if isinstance(targets, list) else []:
            if not any(name == target or name.endswith(f".{target}") for name in (*layers, *experts)):
                hint = registry.suggest(target, known)
                raise UserError(f"method.target_modules: no layer is named '{target}'.{hint}")

    def check_base(self, base: ModelSettings, stored_bits: int) -> None:
        """Check that the base is stored rightly: plain LoRA takes any form, PiSSA needs the weights themselves.

        Raises:
            UserError: the base is stored at 8 or 4 bits, and PiSSA is to start from it.
        """
        if self.settings.init == "pissa" and min(base.bits, stored_bits) < 16:
            raise UserError(PISSA_NEEDS_WEIGHTS)

    def check_precision(self, model: PreTrainedModel) -> None:
        """See whether layers have the right form: plain LoRA takes any, its relatives need the weights themselves.

        Raises:
            UserError: the base is stored at 8 or 4 bits, which the settings do not go with.
        """
        import torch

        from glmtune.models.low_rank import named_linear_layers
        from glmtune.models.quantization import PackedLinear

        quantized = [layer for _, layer in named_linear_layers(model) if not layer.weight.is_floating_point()]
        if self.settings.init == "pissa" and quantized:
            raise UserError(PISSA_NEEDS_WEIGHTS)
        if self.settings.use_dora and any(
            layer.weight.device.type == "cpu" and layer.weight.dtype == torch.int8
            for layer in quantized
            if not isinstance(layer, PackedLinear)
        ):
            raise UserError(
                "method.use_dora=true: on a CPU, peft cannot read the lengths of weights that bitsandbytes stores at 8 "
                "bits. Take the checkpoint of 16 bits with model.bits=8, or a GPU, or set method.use_dora=false."
            )

    def learns_on(self) -> LoraSettings:
        """Return the settings of what is saved: of PiSSA, an ordinary LoRA of twice the rank, with scale 1."""
        if self.settings.init != "pissa":
            return self.settings
        rank = 2 * self.settings.rank
        return self.settings.model_copy(update={"rank": rank, "alpha": rank, "use_rslora": False, "init": "default"})

    def takes_over(self, folder: Path, model: PreTrainedModel) -> bool:
        """Return whether an adapter is a LoRA of this rank, scale and kind beside the same layers."""
        from peft import get_peft_model_state_dict

        from glmtune.models.adapter_config import find_weights, read_adapter
        from glmtune.models.adapter_fields import Lora as Saved
        from glmtune.models.shapes import shapes

        settings = self.settings
        if settings.init == "pissa" or not (folder / ADAPTER_CONFIG).is_file():
            return False
        saved = read_adapter(folder)
        if type(saved) is not Saved or saved.use_dora != settings.use_dora or saved.alpha_pattern:
            return False
        if (saved.lora_alpha, saved.use_rslora) != (settings.alpha, settings.use_rslora):
            return False
        plain = settings.model_copy(update={"use_dora": False})  # whose lengths are no numbers here
        fresh: Any = Lora(plain).apply(model)
        wanted = {name: weight.shape for name, weight in get_peft_model_state_dict(fresh).items()}
        found = {name: weight.shape for name, weight in shapes(find_weights(folder)).items()}
        lengths = {name for name in found if "lora_magnitude_vector" in name} if settings.use_dora else set()
        return wanted == {name: shape for name, shape in found.items() if name not in lengths}

    def go_on(self, model: Model) -> Model:
        """Return the base with fresh updates beside the same layers, which get the numbers of the trained ones."""
        from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

        from glmtune.models.low_rank import as_written, unwrap

        assert isinstance(model, PeftModel)
        weights = {name: weight.detach().clone() for name, weight in get_peft_model_state_dict(model).items()}
        base: Any = model.get_base_model()
        unwrap(base)
        fresh: Any = self.apply(base)
        with as_written():
            set_peft_model_state_dict(fresh, weights)
        return fresh

    def finish(self, model: Model) -> Model:
        """Give the base back what PiSSA took out of it, and keep what the updates have learned since."""
        from glmtune.models.low_rank import give_back

        if self.start:
            give_back(model, self.start, self.settings.rank)
            self.start = {}
        return model

    def save_weights(self, model: Model, folder: Path) -> None:
        """Write the adapter for the base as it was, also if nobody has called `finish`."""
        super().save_weights(self.finish(model), folder)

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        """Return the groups of LoRA+: B matrices and vectors learn faster, as in peft's `create_loraplus_optimizer`."""
        if self.settings.lora_plus_ratio is None:
            return super().parameter_groups(model)
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        fast = [parameter for name, parameter in trained if "lora_B" in name or parameter.ndim == 1]
        slow = [parameter for name, parameter in trained if "lora_B" not in name and parameter.ndim != 1]
        return [{"params": slow}, {"params": fast, "lr_scale": self.settings.lora_plus_ratio}]

    def remarks(self, architecture: Architecture) -> Iterator[str]:
        """Yield what is said of a rank above what a layer can have."""
        spec = self.trainable_spec(architecture)
        rank, linears = self.settings.rank, spec.linears
        smallest = min((min(layer.inputs, layer.outputs) for layer in linears), default=rank)
        if rank > smallest:
            yield (
                f"method.rank={rank} is above {smallest}, the highest rank that the smallest updated layer can have: "
                f"more takes memory and learns nothing. Set method.rank={smallest}, or less."
            )
        beside = [layer for layer in linears if layer.experts]
        if share := sum(architecture.times(layer) * layer.copies * self.size(layer) for layer in beside):
            plain = {layer.name for layer in architecture.linears} - {layer.name for layer in beside}
            yield (
                f"{share / spec.parameters:.0%} of the {spec.parameters:,} parameters that learn stand beside experts, "
                f"{beside[0].experts} in a block, each with a rank of {rank}. Without these: "
                f"method.target_modules=[{', '.join(sorted(plain))}]."
            )

    def size(self, layer: LinearLayer) -> int:
        """Return the parameters of an update of a layer, or of one of its experts."""
        return self.settings.rank * (layer.inputs + layer.outputs) + layer.outputs * self.settings.use_dora

    def trainable_spec(self, architecture: Architecture) -> TrainableSpec:
        """Return A and B of each target layer, and with DoRA a length for each row.

        Raises:
            UserError: `target_modules` is a pattern, or names something else than linear layers of the blocks.
        """
        targets = self.settings.target_modules
        count = architecture.num_layers
        linears = architecture.linears
        if isinstance(targets, list):
            known = sorted({layer.name for layer in linears})
            for target in targets:
                if not any(target in layer.names for layer in linears):
                    raise UserError(
                        f"method.target_modules: '{target}' is not counted among the linear layers of "
                        f"{architecture.family}.{registry.suggest(target, known)}"
                    )
            linears = tuple(layer for layer in linears if layer.names & set(targets))
        elif targets.lower() != ALL_LINEAR:
            raise UserError(
                f"method.target_modules: what the pattern '{targets}' matches is known only once the model is loaded. "
                f"A list of names can be counted, as '{ALL_LINEAR}' can."
            )
        settings = self.settings
        parameters = sum(architecture.times(layer) * layer.copies * self.size(layer) for layer in linears)
        return TrainableSpec(
            parameters,
            count,
            linears,
            count,
            dropout=settings.dropout > 0,
            dora=settings.use_dora,
            needs_weights=settings.init == "pissa",
            saved=2 * parameters if settings.init == "pissa" else None,
        )
