"""The types of adapter that are read, their fields, and the bounds of these: what may stand in `adapter_config.json`.

The file may be anybody's. peft imports modules that some of its fields name (`megatron_core`), opens files that others
name (`corda_config`), compiles patterns, and makes matrices of whatever size is written there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

LIBRARIES = ("transformers", "transformers_modules", "glmtune", "peft")  # whose classes `auto_mapping` names by right

# A module's name, or the end of one; peft puts it into a pattern, where a dot is any character, and nothing repeats.
Name = Annotated[str, StringConstraints(pattern=r"\A[\w.-]+\z", max_length=200)]
Key = Annotated[str, StringConstraints(pattern=r"\A\^?[\w.\\-]+\$?\z", max_length=200)]
Pattern = Annotated[str, StringConstraints(max_length=4000)]
Size = Annotated[int, Field(ge=1, le=2**16)]
Scale = Annotated[int | float, Field(ge=0, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Index = Annotated[int, Field(ge=0, le=2**31)]
Start = Annotated[str, StringConstraints(pattern=r"\A(gaussian|eva|orthogonal|olora|pissa(_niter_[0-9]{1,2})?)\z")]
Modules: TypeAlias = "Pattern | list[Name] | None"
TaskType: TypeAlias = Literal["CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"]


class Adapter(BaseModel):
    """What adapters of all types have in common.

    Attributes:
        PATTERNS: fields that may be a pattern, which becomes the names that it matches.
        SIZES: fields that no dimension of the adapter's weights may fall short of.
        UNUSED: fields that matter in training alone, or to others.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    PATTERNS: ClassVar[tuple[str, ...]] = ()
    SIZES: ClassVar[tuple[str, ...]] = ()
    UNUSED: ClassVar[tuple[str, ...]] = ("auto_mapping", "peft_version", "runtime_config", "revision")

    peft_type: str
    task_type: TaskType | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = True
    peft_version: str | None = None
    auto_mapping: dict[str, str | None] | None = None
    runtime_config: Any = None

    @field_validator("auto_mapping")
    @classmethod
    def _names_a_library(cls, value: dict[str, str | None] | None) -> dict[str, str | None] | None:
        library = str((value or {}).get("parent_library") or LIBRARIES[0])
        if library.partition(".")[0] not in LIBRARIES:
            raise ValueError(f"the module {library} is nothing that an adapter is of; delete the field")
        return value

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield the sizes that the weights have to have, by the field."""
        yield from ((name, getattr(self, name)) for name in self.SIZES if getattr(self, name) is not None)


class Tuned(Adapter):
    """An adapter beside modules of the model."""

    PATTERNS: ClassVar[tuple[str, ...]] = ("target_modules", "exclude_modules")

    target_modules: Modules = None
    exclude_modules: Modules = None
    modules_to_save: list[Name] | None = None
    fan_in_fan_out: bool = False


class Ranked(Tuned):
    """One of low-rank matrices."""

    SIZES = ("r",)

    r: Size = 8
    layers_to_transform: list[Index] | Index | None = None
    layers_pattern: list[Name] | Name | None = None
    rank_pattern: dict[Key, Size] | None = None
    alpha_pattern: dict[Key, Scale] | None = None

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield the rank, and those of single layers."""
        yield from super().sizes()
        yield from ((f"rank_pattern of {key}", rank) for key, rank in (self.rank_pattern or {}).items())


class Lora(Ranked):
    """LoRA and its relatives whose updates are nothing but matrices."""

    UNUSED = (*Adapter.UNUSED, "eva_config")

    lora_alpha: Scale = 8
    lora_dropout: Share = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    ensure_weight_tying: bool = False
    init_lora_weights: bool | Start = True
    eva_config: dict[str, Number | bool] | None = None
    target_parameters: list[Name] | None = None
    trainable_token_indices: list[Index] | dict[Name, list[Index]] | None = None


class AdaLora(Lora):
    """LoRA of ranks that training chose."""

    SIZES = ("init_r",)

    rank_pattern: dict[Key, list[bool]] | None = None  # type: ignore[assignment]
    init_r: Size = 12
    target_r: Size = 8
    tinit: Index = 0
    tfinal: Index = 0
    deltaT: Index = 1
    beta1: Share = 0.85
    beta2: Share = 0.85
    orth_reg_weight: Number = 0.5
    total_step: Index | None = None

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield the rank that training began with."""
        yield "init_r", self.init_r


class IA3(Tuned):
    """Learned factors of activations."""

    PATTERNS = (*Tuned.PATTERNS, "feedforward_modules")

    feedforward_modules: Modules = None
    init_ia3_weights: bool = True


class LoHa(Ranked):
    """Updates that are products of low-rank matrices, number by number."""

    alpha: Scale = 8
    rank_dropout: Share = 0.0
    module_dropout: Share = 0.0
    use_effective_conv2d: bool = False
    init_weights: bool | Literal["lycoris"] = True


class LoKr(LoHa):
    """Updates that are Kronecker products."""

    decompose_both: bool = False
    decompose_factor: Annotated[int, Field(ge=-1, le=2**20)] = -1
    rank_dropout_scale: bool = False


class Prompt(Adapter):
    """Learned tokens before the others."""

    SIZES = ("num_virtual_tokens", "token_dim")

    num_virtual_tokens: Size
    token_dim: Size | None = None
    num_transformer_submodules: Annotated[int, Field(ge=1, le=2)] | None = None
    num_attention_heads: Annotated[int, Field(ge=1, le=2**16)] | None = None
    num_layers: Annotated[int, Field(ge=1, le=2**12)] | None = None


class PrefixTuning(Prompt):
    """Learned keys and values before those of each layer."""

    encoder_hidden_size: Size | None = None
    prefix_projection: bool = False

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield the length, and the numbers of a token."""
        yield from super().sizes()
        if self.num_layers is not None and self.token_dim is not None:
            yield "num_layers x 2 x token_dim", self.num_layers * 2 * self.token_dim


class PromptTuning(Prompt):
    """A learned prompt. What it was begun with is over, and so are the tokenizer and its options."""

    UNUSED = (
        *Adapter.UNUSED,
        *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    )

    prompt_tuning_init: str = "RANDOM"
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None


class PTuning(Prompt):
    """A learned prompt that a small network made."""

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: Size | None = None
    encoder_num_layers: Annotated[int, Field(ge=1, le=64)] = 2
    encoder_dropout: Share = 0.0


TYPES: dict[str, type[Adapter]] = {
    "LORA": Lora,
    "ADALORA": AdaLora,
    "IA3": IA3,
    "LOHA": LoHa,
    "LOKR": LoKr,
    "PREFIX_TUNING": PrefixTuning,
    "PROMPT_TUNING": PromptTuning,
    "P_TUNING": PTuning,
}
