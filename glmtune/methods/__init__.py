"""How it learns. A method edits a model; the loop that trains it knows no method.

`load` puts a saved adapter back: the counterpart of what training writes. torch, transformers and peft are imported by
the functions that need them, so that the settings of a method can be read without.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from glmtune import distributed, models, registry
from glmtune.config import Dtype, ModelSettings, NamedSettings, read_yaml
from glmtune.models.architecture import Architecture, LinearLayer
from glmtune.runtime import RunFolder, UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_CONFIG = "adapter_config.json"
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
        rate_times_width: its default learning rate, times the hidden size of the model.
    """

    Settings: ClassVar[type[NamedSettings]] = NamedSettings
    saves_adapter: ClassVar[bool] = True
    trains_base: ClassVar[bool] = False
    rate_times_width: ClassVar[float] = 0.256

    def __init__(self, settings: NamedSettings):
        self.settings = settings

    def learning_rate(self, hidden_size: int) -> float:
        """Peak learning rate where the recipe names none.

        Adam's best rate falls with the width of a model (Yang et al. 2022, https://arxiv.org/abs/2203.03466). 0.256
        gives 2e-3 for nano, where it was measured (docs/log.md), and 6e-5 for ChatGLM-6B; LoRA has twice that.
        """
        return self.rate_times_width / hidden_size

    def check_storage(self, base: ModelSettings, stored_bits: int) -> None:
        """Whether the method can train weights that are stored as the recipe or the checkpoint says.

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
        """How many of the tokens that a model can take the method needs for itself."""
        return 0

    @abstractmethod
    def apply(self, model: PreTrainedModel) -> Model:
        """Return the model with everything frozen but what this method trains; trainable weights are fp32."""

    def trainable_spec(self, architecture: Architecture) -> TrainableSpec:
        """What `apply` makes trainable in a model of this architecture, for `glmtune estimate`.

        Raises:
            UserError: this method does not tell.
        """
        raise UserError(f"method.name: {self.settings.name} does not tell what it trains (Method.trainable_spec).")

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        """Groups of trainable parameters as torch's optimizers take them; `lr_scale` times the learning rate is a
        group's own."""
        return [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]

    def finish(self, model: Model) -> Model:
        """What training leaves, made what is saved and used from then on."""
        return model

    def save(self, model: Model, tokenizer: PreTrainedTokenizerBase, folder: Path, base: ModelSettings) -> None:
        """Save what was trained, the tokenizer with its template, and which base it needs, stored in which way."""
        self.save_weights(model, folder)
        tokenizer.save_pretrained(folder)
        location = models.locate(base.path)
        record = {
            "base": base.path,
            "fingerprint": models.fingerprint(location) if Path(location).is_dir() else None,
            "bits": base.bits,
            "quantize_embedding": base.quantize_embedding,
            "method": self.settings.name,
        }
        (folder / BASE_RECORD).write_text(json.dumps(record, indent=2) + "\n")

    def save_weights(self, model: Model, folder: Path) -> None:
        """Write the weights that were trained."""
        # peft would guess from the base's config.json, in its own words, whether embeddings have grown. They have not.
        options: dict[str, Any] = {"save_embedding_layers": False} if self.saves_adapter else {}
        model.save_pretrained(str(folder), **options)

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether a folder is an adapter in a format of this method's own. Those in peft's format need not ask."""
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


def load(
    path: str | Path,
    adapter: str | Path | None = None,
    dtype: Dtype = "auto",
    device: torch.device | str | None = None,
    attention: Literal["sdpa", "eager"] = "sdpa",
    bits: int | None = None,
    quantize_embedding: bool | None = None,
) -> tuple[Model, PreTrainedTokenizerBase]:
    """Load a run folder, an adapter, a checkpoint directory, a hub name or `nano`, ready for use.

    Args:
        path: what to load.
        adapter: a run folder, an adapter in peft's format, or a directory with the prefix weights of the original
            P-Tuning v2 scripts (`transformer.prefix_encoder.*` beside a `config.json` with `pre_seq_len`), to put on
            the base that `path` names.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: default: the GPU where there is one.
        attention: attention implementation.
        bits: 16, 8 or 4, storage of the base's linear layers. Default: as the adapter was trained, or as the checkpoint
            is stored.
        quantize_embedding: store the embedding and the head at 8 bits, too. Default: as the adapter was trained.

    Returns:
        (model, tokenizer), the model in evaluation mode.

    Raises:
        UserError: nothing usable at `path`, or the adapter was trained on other weights.
    """
    import torch

    if bits not in (None, 16, 8, 4):
        raise UserError(f"bits={bits!r}: a model can be stored at 16, 8 or 4 bits.")
    base, folder = find(path, adapter)
    target = torch.device(device) if device is not None else distributed.local_device()
    trained = record_of(folder) if folder is not None else {}
    settings = ModelSettings(
        path=base,
        dtype=dtype,
        attention=attention,
        bits=bits or trained.get("bits", 16),
        quantize_embedding=trained.get("quantize_embedding", False)
        if quantize_embedding is None
        else quantize_embedding,
    )
    model, tokenizer = models.load(settings, target)
    if folder is None:
        return model, tokenizer
    return attach(model, folder).eval(), tokenizer_of(base, folder)


def attach(model: PreTrainedModel, folder: Path) -> Model:
    """Put the adapter in a folder on its base.

    Raises:
        UserError: it does not fit the base.
    """
    from peft import PeftModel

    with models.reading("adapter", str(folder)), warnings.catch_warnings():
        if (folder / ADAPTER_CONFIG).is_file():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(folder))
        method = method_of(folder)
        assert method is not None, "adapter_folder has looked"
        return method.attach(model, folder)


def method_of(folder: Path) -> type[Method] | None:
    """The method whose own format an adapter is in, if any."""
    return next((method for method in methods_for(folder) if method.holds(folder)), None)


def methods_for(folder: Path) -> list[type[Method]]:
    """The method that training noted beside an adapter, or all. What is noted may be anything: it is not imported."""
    known, named = registry.names(__name__), record_of(folder).get("method")
    return [registry.find(__name__, name) for name in ([named] if named in known else known)]


def record_of(folder: Path) -> dict[str, Any]:
    """What training noted beside an adapter: `base`, its `fingerprint` and `bits`, the `method`; empty for others'."""
    record = folder / BASE_RECORD
    return models.read_json(record) if record.is_file() else {}


def find(path: str | Path, adapter: str | Path | None = None) -> tuple[str, Path | None]:
    """The checkpoint to load for `path`, and the folder of the adapter to put on it, if any. Reads no weights.

    Args:
        path: run folder, adapter, checkpoint directory, hub name or `nano`.
        adapter: a run folder or an adapter to put on the base that `path` names.

    Raises:
        UserError: nothing usable there, or the adapter was trained on other weights.
    """
    if adapter is not None:
        if RunFolder.is_run(path):
            raise UserError(f"{path} is a run folder, which has no adapter put on it: name the base model instead.")
        folder, base = adapter_folder(Path(adapter)), str(path)
    elif RunFolder.is_run(path) and RunFolder(path).model.is_dir():
        return str(RunFolder(path).model), None
    elif RunFolder.is_run(path) or is_adapter(Path(path)):
        folder = adapter_folder(Path(path))
        base = base_of(folder)
    else:
        return str(path), None
    check_base(folder, base)
    check_adapter(folder, RunFolder(adapter if adapter is not None else path))
    return base, folder


def is_adapter(path: Path) -> bool:
    """Whether `path` is an adapter, or a run folder that holds one."""
    return any(is_adapter_folder(folder) for folder in (path, RunFolder(path).adapter))


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder is an adapter, in peft's format or in a method's own."""
    return (folder / ADAPTER_CONFIG).is_file() or (folder.is_dir() and method_of(folder) is not None)


def adapter_folder(path: Path) -> Path:
    """The adapter in a run folder, or the adapter itself.

    Raises:
        UserError: there is none, or it lacks files.
    """
    is_run = RunFolder.is_run(path)
    folder = RunFolder(path).adapter if is_run else path
    if not is_adapter_folder(folder):
        remedy = f" If its training has not ended: glmtune train --resume {path}" if is_run else ""
        if is_run and RunFolder(path).model.is_dir():
            remedy = " It holds a whole model, which is loaded by itself."
        raise UserError(f"{path} holds no adapter ({ADAPTER_CONFIG} is missing).{remedy}")
    if (folder / ADAPTER_CONFIG).is_file() and not any(folder.glob("adapter_model.*")):
        raise UserError(f"{folder} holds no weights (adapter_model.safetensors is missing). Copy or download it again.")
    models.check_files(folder)
    return folder


def base_of(folder: Path) -> str:
    """The base model that an adapter names.

    Raises:
        UserError: it names none.
    """
    config = folder / ADAPTER_CONFIG
    by_peft = models.read_json(config).get("base_model_name_or_path") if config.is_file() else None
    base = record_of(folder).get("base") or by_peft
    if not base:
        raise UserError(
            f"The adapter {folder} names no base model; name it with model.path=..., in Python with "
            "glmtune.load(BASE, adapter=...)."
        )
    return str(base)


def check_base(folder: Path, base: str) -> None:
    """Compare the base with the one that the adapter was trained on.

    Raises:
        UserError: there is no such base, or its weights differ.
    """
    try:
        location = Path(models.locate(base))
    except UserError as error:
        raise UserError(f"The base of the adapter {folder}: {error} If it has moved, add model.path=...") from error
    trained_on = record_of(folder).get("fingerprint")
    if trained_on is None or not location.is_dir():
        return
    if trained_on != (found := models.fingerprint(location)):
        raise UserError(
            f"The adapter {folder} was trained on other weights than {base} holds (fingerprint {trained_on}, found "
            f"{found}). Point to the checkpoint that it was trained on with model.path=..."
        )


def check_adapter(folder: Path, run: RunFolder) -> None:
    """Compare an adapter with its own configuration, and with the recipe where a run was named.

    Raises:
        UserError: they contradict each other.
    """
    settings = read_yaml(run.recipe).get("method") if run.recipe.is_file() else None
    for method in methods_for(folder):
        method.check(folder, settings)


def tokenizer_of(base: str, folder: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with an adapter, with the template it was trained with; else that of the base."""
    saved = folder is not None and (folder / "tokenizer_config.json").is_file()
    return models.load_tokenizer(str(folder) if saved else models.locate(base))
