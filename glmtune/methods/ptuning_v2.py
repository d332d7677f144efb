"""P-Tuning v2: learned keys and values in front of every layer of a frozen model.

Prefix tuning (Li & Liang 2021, https://arxiv.org/abs/2101.00190) as ChatGLM-6B was tuned with it (P-Tuning v2, Liu et
al. 2022, https://arxiv.org/abs/2110.07602). What is saved is in peft's format; prefixes that the original ChatGLM-6B
scripts saved can be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast

from pydantic import Field

from glmtune.config import ModelSettings, NamedSettings
from glmtune.methods import Method, Model, TrainableSpec
from glmtune.models.adapter_config import ADAPTER_CONFIG
from glmtune.models.architecture import Architecture
from glmtune.models.checkpoint import read_json
from glmtune.models.families import all_families, family_of
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

NO_SDPA = "does not compute its attention by torch's function. Use model.attention=sdpa, or method.init=normal."
PROJECTION = {"trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias"}


class Start(NamedTuple):
    """What goes with numbers that a prefix starts from.

    Attributes:
        rate: learning rate of the prefix itself.
        rate_times_width: of a projection, times the hidden size.
        dropout: share of the prefix that is dropped in training.
    """

    rate: float
    rate_times_width: float
    dropout: float


# The first has the rate and the dropout of the scripts of ChatGLM-6B. A neutral prefix passes on little of what is
# learned, and wants ten times the rate; without some of their numbers its keys would take attention (docs/log.md).
STARTS = {"normal": Start(2e-2, 1.28, 0.1), "neutral": Start(2e-1, 2.56, 0.0)}


class PTuningV2Settings(NamedSettings):
    """Size of the prefix, and how it is made."""

    num_virtual_tokens: int = Field(128, ge=1, description="length of the prefix in tokens")
    prefix_projection: bool = Field(
        False, description="learn a small prefix and two linear layers that make the whole one of it"
    )
    encoder_hidden_size: int | None = Field(
        None,
        ge=1,
        description="width between these two layers; the paper has 512. Default: the hidden size, as in ChatGLM-6B",
    )
    init: Literal["normal", "neutral"] = Field(
        "neutral",
        description="start from keys that take little attention and values of tokens, which leaves the model as it is; "
        "or from N(0, 1), as the scripts of ChatGLM-6B do",
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="dropout of the prefix in training. Default: with init=normal 0.1, as in ChatGLM-6B's scripts; "
        "with neutral 0, as its keys would take attention without some of their numbers",
    )


class PTuningV2(Method):
    """The base stays frozen; fp32 keys and values that every token of every layer sees learn."""

    Settings = PTuningV2Settings
    settings: PTuningV2Settings
    mergeable: ClassVar[bool] = False

    @property
    def start(self) -> Start:
        """What goes with the numbers that the prefix starts from."""
        return STARTS[self.settings.init]

    @property
    def dropout(self) -> float:
        """The share of the prefix that is dropped in training, 0 to 1."""
        given = self.settings.dropout
        return self.start.dropout if given is None else given

    def check_base(self, base: ModelSettings, stored_bits: int) -> None:
        """Check that a neutral prefix will see how the base attends.

        Raises:
            UserError: the base computes attention itself.
        """
        super().check_base(base, stored_bits)
        if self.settings.init == "neutral" and base.attention == "eager":
            raise UserError(f"method.init=neutral: with model.attention=eager, the model {NO_SDPA}")

    def apply(self, model: PreTrainedModel) -> Model:
        """Put a random prefix, N(0, 1) or what the fresh projection makes of it, before every layer."""
        from peft import PrefixTuningConfig

        from glmtune.models.prefix import PrefixModel

        config = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.settings.num_virtual_tokens,
            prefix_projection=self.settings.prefix_projection,
            encoder_hidden_size=self.settings.encoder_hidden_size or model.config.get_text_config().hidden_size,
        )
        return PrefixModel(model, config, self.dropout)

    def initialize(self, model: Model, examples: Sequence[Tensor]) -> None:
        """Let the prefix begin where it changes next to nothing, if the settings say so.

        Raises:
            UserError: there are no examples, or the model does not show how it attends to them.
        """
        from glmtune.models.neutral_prefix import neutral_numbers
        from glmtune.models.prefix import PrefixModel

        assert isinstance(model, PrefixModel)
        if self.settings.init != "neutral":
            return
        if not examples:
            raise UserError("method.init=neutral: there are no examples to start from. Use method.init=normal.")
        base = cast("PreTrainedModel", model.get_base_model())
        numbers = neutral_numbers(base, examples, self.settings.num_virtual_tokens)
        if numbers is None:
            raise UserError(f"method.init=neutral: {type(base).__name__} {NO_SDPA}")
        model.start_from(numbers)

    def learning_rate(self, hidden_size: int) -> float:
        """Return one rate for the prefix itself at every width: its numbers are N(0, 1), as those of an embedding are.

        Of a projection, what was measured with nano (docs/log.md), and less for wider ones, as for any matrix.
        """
        return self.start.rate_times_width / hidden_size if self.settings.prefix_projection else self.start.rate

    def num_prefix_positions(self, model_type: str) -> int:
        """Return the length of the prefix where it shifts the positions of what follows, by the model's family."""
        shifts = family_of({"model_type": model_type}).prefix_takes_positions
        return self.settings.num_virtual_tokens if shifts else 0

    def trainable_spec(self, architecture: Architecture) -> TrainableSpec:
        """Return the prefix itself, or a small one and the two linear layers."""
        settings, width = self.settings, architecture.prefix_width
        tokens, projection = settings.num_virtual_tokens, settings.prefix_projection
        parameters = tokens * width
        if projection:
            small = width // (2 * architecture.num_layers)
            hidden = settings.encoder_hidden_size or architecture.hidden_size
            parameters = tokens * small + (small + 1) * hidden + (hidden + 1) * width
        return TrainableSpec(
            parameters,
            architecture.num_layers,
            prefix=tokens,
            cast=projection,
            dropout=self.dropout > 0,
            saved=tokens * width,
        )

    def learns_on(self) -> PTuningV2Settings:
        """Return the settings of what is saved: the prefix itself, whatever projection has made it."""
        return self.settings.model_copy(update={"prefix_projection": False, "encoder_hidden_size": None})

    def takes_over(self, folder: Path, model: PreTrainedModel) -> bool:
        """Return whether an adapter is a prefix of this length, and no projection is to make another."""
        from glmtune.models.adapter_config import read_adapter
        from glmtune.models.adapter_fields import PrefixTuning
        from glmtune.models.prefix import saved_length

        is_ours = (folder / ADAPTER_CONFIG).is_file() and type(read_adapter(folder)) is PrefixTuning
        is_prefix = is_ours or self.holds(folder)
        return (
            is_prefix
            and not self.settings.prefix_projection
            and saved_length(folder) == self.settings.num_virtual_tokens
        )

    def go_on(self, model: Model) -> Model:
        """Return the base behind a prefix that learns, of the numbers that it had."""
        from peft import PeftModel

        from glmtune.models.prefix import set_prefix

        assert isinstance(model, PeftModel)
        numbers = model.get_prompt_embedding_to_save(model.active_adapter).detach().clone()
        fresh: Any = self.apply(cast("PreTrainedModel", model.get_base_model()))
        set_prefix(fresh, numbers)
        return cast(Model, fresh)

    def finish(self, model: Model) -> Model:
        """Return the model without the projection, which has done its work."""
        from glmtune.models.prefix import PrefixModel

        assert isinstance(model, PrefixModel)
        model.merge_projection()
        return model

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Return whether a folder is what the original scripts saved.

        That is `transformer.prefix_encoder.*` and no other weights, beside a `config.json` with `pre_seq_len`.
        """
        config = folder / "config.json"
        if not config.is_file() or type(read_json(config).get("pre_seq_len")) is not int:
            return False
        from glmtune.models.prefix import read_original

        return bool(read_original(folder))

    @classmethod
    def attach(cls, model: PreTrainedModel, folder: Path) -> Model:
        """Put a prefix of the original scripts on the model that these tune.

        Raises:
            UserError: its config.json and its weights contradict each other, or it belongs to another model.
        """
        from glmtune.models.prefix import project, read_original, with_prefix

        config, weights = read_json(folder / "config.json"), read_original(folder)
        projected = bool(config.get("prefix_projection"))
        expected = {"embedding.weight"} | (PROJECTION if projected else set())
        if weights.keys() != expected:
            raise UserError(
                f"{folder / 'config.json'}: prefix_projection is {str(projected).lower()}, which asks for the weights "
                f"{', '.join(sorted(expected))}; the files hold {', '.join(sorted(weights))}. Set prefix_projection to "
                f"{str(not projected).lower()}, or copy config.json and the weights of one training."
            )
        if not family_of(model.config.to_dict()).reads_original_prefix:
            owners = ", ".join(
                release for family in all_families() if family.reads_original_prefix for release in family.releases
            )
            raise UserError(
                f"{folder} holds a prefix for {owners}; the base has model_type {model.config.model_type}. Name the "
                "model that it was trained on with model.path=..."
            )
        numbers = project(weights) if projected else weights["embedding.weight"]
        layers, size = model.config.num_layers, model.config.hidden_size
        if numbers.shape[1] != 2 * layers * size:
            raise UserError(
                f"{folder}: its prefix has {numbers.shape[1]} numbers a token; the base takes {2 * layers * size} (a "
                f"key and a value of {size} for each of {layers} layers). Name the model that it was trained on with "
                "model.path=..."
            )
        return with_prefix(model, numbers)

    @classmethod
    def check(cls, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        """Compare the length of a saved prefix, in peft's format or the original one, with its weights and a recipe.

        Raises:
            UserError: the lengths differ.
        """
        file, field = folder / ADAPTER_CONFIG, "num_virtual_tokens"
        if not file.is_file():
            file, field = folder / "config.json", "pre_seq_len"
        config = read_json(file) if file.is_file() else {}
        if field not in config:
            return
        from glmtune.models.prefix import saved_length

        length = saved_length(folder)
        if config[field] != length:
            raise UserError(
                f"{file}: {field} is {config[field]}, but the prefix in the weights has {length} tokens. Set "
                f"{field} to {length}, or copy {file.name} and the weights of one training."
            )
        wanted = (settings or {}).get("num_virtual_tokens", length)
        if wanted != length:
            raise UserError(
                f"method.num_virtual_tokens={wanted}: the prefix in {folder} has another length than the recipe says, "
                f"{length} tokens. Set method.num_virtual_tokens={length}."
            )
