"""How it learns. A method edits a model; the loop that trains it knows no method.

`load` puts a saved adapter back: the counterpart of what training writes.
"""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glmtune import models
from glmtune.config import Dtype, ModelSettings, NamedSettings
from glmtune.runtime import RunFolder, UserError

ADAPTER_CONFIG = "adapter_config.json"
BASE_RECORD = "base.json"


Model: TypeAlias = PreTrainedModel | PeftModel


class Method(ABC):
    """Base of all methods. One file in this folder, or one of the user's, defines one subclass.

    Attributes:
        Settings: the method's settings; they become the fields of the recipe's `method` section.
        saves_adapter: what is saved is an adapter that needs its base; otherwise the whole model.
    """

    Settings: ClassVar[type[NamedSettings]] = NamedSettings
    saves_adapter: ClassVar[bool] = True

    def __init__(self, settings: NamedSettings):
        self.settings = settings

    @abstractmethod
    def apply(self, model: PreTrainedModel) -> Model:
        """Return the model with everything frozen but what this method trains; trainable weights are fp32."""

    def save(self, model: Model, tokenizer: PreTrainedTokenizerBase, folder: Path, base: str) -> None:
        """Save what was trained, the tokenizer with its template, and the base model's name and fingerprint."""
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(folder)
        location = models.locate(base)
        record = {"base": base, "fingerprint": models.fingerprint(location) if Path(location).is_dir() else None}
        (folder / BASE_RECORD).write_text(json.dumps(record, indent=2) + "\n")


BASE = Method


def load(
    path: str | Path,
    adapter: str | Path | None = None,
    dtype: Dtype = "auto",
    device: torch.device | str | None = None,
    attention: Literal["sdpa", "eager"] = "sdpa",
) -> tuple[Model, PreTrainedTokenizerBase]:
    """Load a run folder, an adapter, a checkpoint directory, a hub name or `nano`, ready for use.

    Args:
        path: what to load.
        adapter: a run folder or an adapter to put on the base that `path` names.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: default: the GPU where there is one.
        attention: attention implementation.

    Returns:
        (model, tokenizer), the model in evaluation mode.

    Raises:
        UserError: nothing usable at `path`, or the adapter was trained on other weights.
    """
    base, folder = find(path, adapter)
    target = torch.device(device) if device is not None else models.default_device()
    model, tokenizer = models.load(ModelSettings(path=base, dtype=dtype, attention=attention), target)
    if folder is None:
        return model, tokenizer
    with models.reading("adapter", str(folder)), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        return PeftModel.from_pretrained(model, str(folder)).eval(), tokenizer_of(base, folder)


def find(path: str | Path, adapter: str | Path | None = None) -> tuple[str, Path | None]:
    """The checkpoint to load for `path`, and the folder of the adapter to put on it, if any. Reads no weights.

    Args:
        path: run folder, adapter, checkpoint directory, hub name or `nano`.
        adapter: a run folder or an adapter to put on the base that `path` names.

    Raises:
        UserError: nothing usable there, or the adapter was trained on other weights.
    """
    if adapter is not None:
        folder, base = adapter_folder(Path(adapter)), str(path)
    elif RunFolder.is_run(path) and RunFolder(path).model.is_dir():
        return str(RunFolder(path).model), None
    elif RunFolder.is_run(path) or (Path(path) / ADAPTER_CONFIG).is_file():
        folder = adapter_folder(Path(path))
        base = base_of(folder)
    else:
        return str(path), None
    check_base(folder, base)
    return base, folder


def is_adapter(path: Path) -> bool:
    """Whether `path` is an adapter, or a run folder that holds one."""
    return any((folder / ADAPTER_CONFIG).is_file() for folder in (path, RunFolder(path).adapter))


def adapter_folder(path: Path) -> Path:
    """The adapter in a run folder, or the adapter itself.

    Raises:
        UserError: there is none, or it lacks files.
    """
    is_run = RunFolder.is_run(path)
    folder = RunFolder(path).adapter if is_run else path
    if not (folder / ADAPTER_CONFIG).is_file():
        remedy = f" If its training has not ended: glmtune train --resume {path}" if is_run else ""
        raise UserError(f"{path} holds no adapter ({ADAPTER_CONFIG} is missing).{remedy}")
    if not any(folder.glob("adapter_model.*")):
        raise UserError(f"{folder} holds no weights (adapter_model.safetensors is missing). Copy or download it again.")
    models.check_files(folder)
    return folder


def base_of(folder: Path) -> str:
    """The base model that an adapter names.

    Raises:
        UserError: it names none.
    """
    record, config = folder / BASE_RECORD, models.read_json(folder / ADAPTER_CONFIG)
    named = models.read_json(record).get("base") if record.is_file() else None
    base = named or config.get("base_model_name_or_path")
    if not base:
        raise UserError(f"The adapter {folder} names no base model; name it with model.path=...")
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
    record = folder / BASE_RECORD
    if not record.is_file() or not location.is_dir():
        return
    trained_on, found = models.read_json(record).get("fingerprint"), models.fingerprint(location)
    if trained_on not in (None, found):
        raise UserError(
            f"The adapter {folder} was trained on other weights than {base} holds (fingerprint {trained_on}, found "
            f"{found}). Point to the checkpoint that it was trained on with model.path=..."
        )


def tokenizer_of(base: str, folder: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with an adapter, with the template it was trained with; else that of the base."""
    saved = folder is not None and (folder / "tokenizer_config.json").is_file()
    return models.load_tokenizer(str(folder) if saved else models.locate(base))
