"""How it learns. A method edits a model; the loop that trains it knows no method.

`load` puts a saved adapter back: the counterpart of what training writes.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, TypeAlias

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glmtune import models
from glmtune.config import Dtype, ModelSettings, NamedSettings, load_recipe
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
) -> tuple[Model, PreTrainedTokenizerBase]:
    """Load a run folder, an adapter, a checkpoint directory, a hub name or `nano`, ready for use.

    Args:
        path: what to load.
        adapter: a run folder or an adapter to put on the base that `path` names.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        device: default: the GPU where there is one.

    Returns:
        (model, tokenizer), the model in evaluation mode.

    Raises:
        UserError: nothing usable at `path`, or the adapter was trained on other weights.
    """
    target = torch.device(device) if device is not None else models.default_device()
    if adapter is not None:
        return load_adapter(adapter_folder(Path(adapter)), str(path), dtype, target)
    run = RunFolder(path)
    if RunFolder.is_run(path):
        if run.model.is_dir():
            return models.load(ModelSettings(path=str(run.model), dtype=dtype), target)
        base = load_recipe(run.recipe).model.path
        return load_adapter(adapter_folder(run.path), base, dtype, target)
    if (run.path / ADAPTER_CONFIG).is_file():
        return load_adapter(run.path, None, dtype, target)
    return models.load(ModelSettings(path=str(path), dtype=dtype), target)


def adapter_folder(path: Path) -> Path:
    """The adapter in a run folder, or the adapter itself.

    Raises:
        UserError: there is none.
    """
    folder = RunFolder(path).adapter if RunFolder.is_run(path) else path
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{path} holds no adapter ({ADAPTER_CONFIG} is missing). Has the training ended?")
    return folder


def load_adapter(
    folder: Path, base: str | None, dtype: Dtype, device: torch.device
) -> tuple[Model, PreTrainedTokenizerBase]:
    """A base with a peft adapter on it. The base is the one that the adapter names, unless given."""
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    base = base or config["base_model_name_or_path"]
    check_base(folder, base)
    model, tokenizer = models.load(ModelSettings(path=base, dtype=dtype), device)
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = models.load_tokenizer(str(folder))
    return PeftModel.from_pretrained(model, str(folder)).eval(), tokenizer


def check_base(folder: Path, base: str) -> None:
    """Compare the base with the one that the adapter was trained on.

    Raises:
        UserError: their weights differ.
    """
    record, location = folder / BASE_RECORD, Path(models.locate(base))
    if not record.is_file() or not location.is_dir():
        return
    trained_on, found = json.loads(record.read_text())["fingerprint"], models.fingerprint(location)
    if trained_on not in (None, found):
        raise UserError(
            f"The adapter {folder} was trained on other weights than {base} holds (fingerprint {trained_on}, found "
            f"{found}). Point to the checkpoint that it was trained on."
        )
