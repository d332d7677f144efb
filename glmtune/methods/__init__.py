"""How it learns. A method edits a model; the loop that trains it knows no method.

`glmtune.adapters` puts back what a method saved. torch, transformers and peft are imported by the functions that need
them, so that the settings of a method can be read without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from glmtune.config import ModelSettings, NamedSettings
from glmtune.files import write_json
from glmtune.models import loading
from glmtune.models.architecture import Architecture, LinearLayer
from glmtune.models.checkpoint import fingerprint
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE_RECORD = "base.json"


Model: TypeAlias = "PreTrainedModel | PeftModel"


@dataclass(frozen=True)
class TrainableSpec:
    """What a method trains of an architecture; the memory of a run follows from it (`glmtune.training.memory`).

    Attributes:
        parameters: that learn.
        depth: blocks, counted from the last, that gradients pass through.
        linears: the linear layers of a block that learn, or that updates beside them learn.
        blocks: how many blocks these are in.
        in_place: these are weights of the base, which are fp32 meanwhile; else weights beside it.
        norms, embedding: whether these learn, too.
        prefix: tokens that learned keys and values put before those of each block.
        cast: what learns are matrices, which are copied to the precision of the computation.
        dropout: some of it is dropped at random, which has to be remembered.
        dora: the lengths of rows learn, too.
        needs_weights: it starts from the base's weights, which must be floating point.
        saved: parameters that are saved in the end; default: those that learn.
    """

    parameters: int
    depth: int
    linears: tuple[LinearLayer, ...] = ()
    blocks: int = 0
    in_place: bool = False
    norms: bool = False
    embedding: bool = False
    prefix: int = 0
    cast: bool = True
    dropout: bool = False
    dora: bool = False
    needs_weights: bool = False
    saved: int | None = None


class Method(ABC):
    """Base of all methods. One file in this folder, or one of the user's, defines one subclass.

    Attributes:
        Settings: the method's settings; they become the fields of the recipe's `method` section.
        saves_adapter: what is saved is an adapter that needs its base; otherwise the whole model.
        trains_base: it changes weights of the base itself, which then cannot be stored at 8 or 4 bits.
        mergeable: what is saved can become part of the base's weights; else it is used beside them.
        save_embedding_layers: an adapter holds the embedding and the head, too, as it must where they have grown.
        rate_times_width: its default learning rate, times the hidden size of the model.
    """

    Settings: ClassVar[type[NamedSettings]] = NamedSettings
    saves_adapter: ClassVar[bool] = True
    trains_base: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    save_embedding_layers: ClassVar[bool] = False
    rate_times_width: ClassVar[float] = 0.256

    def __init__(self, settings: NamedSettings):
        self.settings = settings

    def learning_rate(self, hidden_size: int) -> float:
        """Return the peak learning rate where the recipe names none.

        Adam's best rate falls with the width of a model (Yang et al. 2022, https://arxiv.org/abs/2203.03466). 0.256
        gives 2e-3 for nano, where it was measured (docs/log.md), and 6e-5 for ChatGLM-6B; LoRA has twice that.
        """
        return self.rate_times_width / hidden_size

    def check_base(self, base: ModelSettings, stored_bits: int) -> None:
        """Check that the method can train a base that is loaded as the recipe says.

        Args:
            base: settings of the recipe.
            stored_bits: of the checkpoint's linear layers.

        Raises:
            UserError: it cannot.
        """
        bits = min(base.bits, stored_bits)
        if self.trains_base and (bits < 16 or base.quantize_embedding):
            stored = f"model.bits={bits}" if bits < 16 else "model.quantize_embedding=true"
            raise UserError(
                f"method.name={self.settings.name} changes the weights of the model itself, and {stored} stores them "
                "as whole numbers, which cannot take small steps. Use method.name=lora or ptuning_v2, or 16 bits."
            )

    def num_prefix_positions(self, model_type: str) -> int:
        """Return how many of the tokens that a model can take the method needs for itself."""
        return 0

    @abstractmethod
    def apply(self, model: PreTrainedModel) -> Model:
        """Return the model with everything frozen but what this method trains; trainable weights are fp32."""

    def initialize(self, model: Model, examples: Sequence[Tensor]) -> None:
        """Set what `apply` made trainable to where it begins, by what the model makes of what it will learn.

        Args:
            model: with the method applied, in evaluation mode.
            examples: (T,) token ids each, the first that are learned; there may be none.
        """
        return

    def learns_on(self) -> NamedSettings:
        """Return the settings by which what was saved learns on; where it is what `apply` makes, its own."""
        return self.settings

    def takes_over(self, folder: Path, model: PreTrainedModel) -> bool:
        """Return whether an adapter has the shape of what `apply` makes trainable, so that it can learn on itself.

        Args:
            folder: of the adapter.
            model: its base, without its numbers; used up.
        """
        return False

    def go_on(self, model: Model) -> Model:
        """Return what `apply` makes of the base, with what an adapter has learned in the place of what is fresh.

        Args:
            model: the base with the adapter, which `takes_over` has seen; used up.
        """
        raise NotImplementedError

    def trainable_spec(self, architecture: Architecture) -> TrainableSpec:
        """Return what `apply` makes trainable in a model of this architecture, for `glmtune estimate`.

        Raises:
            UserError: this method does not tell.
        """
        raise UserError(f"method.name: {self.settings.name} does not tell what it trains (Method.trainable_spec).")

    def remarks(self, architecture: Architecture) -> Iterable[str]:
        """Return what the user should know of settings that do not go with a model, though nothing fails.

        Raises:
            UserError: this method does not tell what it trains.
        """
        return ()

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        """Return groups of trainable parameters as torch's optimizers take them.

        `lr_scale`, where a group has it, times the learning rate is its own.
        """
        return [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]

    def finish(self, model: Model) -> Model:
        """Turn what training leaves into what is saved and used from then on."""
        return model

    def save(self, model: Model, tokenizer: PreTrainedTokenizerBase, folder: Path, base: ModelSettings) -> None:
        """Save what was trained, the tokenizer with its template, and which base it needs, stored in which way."""
        self.save_weights(model, folder)
        tokenizer.save_pretrained(folder)
        location = loading.locate(base.path)
        record = {
            "base": base.path,
            "fingerprint": fingerprint(location) if Path(location).exists() else None,
            "bits": base.bits,
            "quantize_embedding": base.quantize_embedding,
            "method": self.settings.name,
        }
        write_json(folder / BASE_RECORD, record)

    def save_weights(self, model: Model, folder: Path) -> None:
        """Write the weights that were trained."""
        # peft would guess from the base's config.json, in its own words, whether embeddings have grown.
        options: dict[str, Any] = {"save_embedding_layers": self.save_embedding_layers} if self.saves_adapter else {}
        model.save_pretrained(str(folder), **options)

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Return whether a folder is an adapter in a format of this method's own, which is not peft's."""
        return False

    @classmethod
    def check(cls, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        """Compare what is saved with its own configuration and with the `method` section of a recipe.

        An adapter of another method passes.

        Raises:
            UserError: they contradict each other.
        """
        return

    @classmethod
    def attach(cls, model: PreTrainedModel, folder: Path) -> Model:
        """Put an adapter that this method `holds` on its base.

        Raises:
            UserError: the adapter does not fit the base.
        """
        raise NotImplementedError


BASE = Method
