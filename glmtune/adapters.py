"""Adapters as they lie in folders: what they are, whether they fit their base, and back onto it they go.

torch, transformers and peft are imported by the functions that need them.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune import network, registry
from glmtune.config import read_yaml
from glmtune.files import check_folder
from glmtune.methods import ADAPTER_CONFIG, BASE_RECORD, Method, Model
from glmtune.models import loading
from glmtune.models.checkpoint import check_files, fingerprint, read_json, reading
from glmtune.runtime import RunFolder, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METHODS = "glmtune.methods"


def attach(model: PreTrainedModel, folder: Path) -> Model:
    """Put the adapter in a folder on its base.

    Raises:
        UserError: it does not fit the base.
    """
    from peft import PeftModel

    with reading("adapter", str(folder)), warnings.catch_warnings():
        if (folder / ADAPTER_CONFIG).is_file():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(folder))
        method = method_of(folder)
        assert method is not None, "adapter_folder has looked"
        return method.attach(model, folder)


def method_of(folder: Path) -> type[Method] | None:
    """Return the method whose own format an adapter is in, if any."""
    return next((method for method in methods_for(folder) if method.holds(folder)), None)


def methods_for(folder: Path) -> list[type[Method]]:
    """Return the method that was noted beside an adapter, or all. What is noted may be anything: it is not imported."""
    known, named = registry.names(METHODS), record_of(folder).get("method")
    return [registry.find(METHODS, name) for name in ([named] if named in known else known)]


def record_of(folder: Path) -> dict[str, Any]:
    """Return what training noted beside an adapter: `base`, `fingerprint`, `bits`, `method`; nothing for others'."""
    record = folder / BASE_RECORD
    return read_json(record) if record.is_file() else {}


def is_adapter_folder(folder: Path) -> bool:
    """Return whether a folder is an adapter, in peft's format or in a method's own."""
    return (folder / ADAPTER_CONFIG).is_file() or (folder.is_dir() and method_of(folder) is not None)


def adapter_folder(path: Path) -> Path:
    """Return the adapter in a run folder, or the adapter itself.

    Raises:
        UserError: there is none, it lacks files, or it holds a link out of its folder.
    """
    check_folder(path)
    is_run = RunFolder.is_run(path)
    folder = RunFolder(path).adapter if is_run else path
    if not is_adapter_folder(folder):
        remedy = f" If its training has not ended: glmtune train --resume {path}" if is_run else ""
        if is_run and RunFolder(path).model.is_dir():
            remedy = " It holds a whole model, which is loaded by itself."
        raise UserError(f"{path} holds no adapter ({ADAPTER_CONFIG} is missing).{remedy}")
    if (folder / ADAPTER_CONFIG).is_file() and not any(folder.glob("adapter_model.*")):
        raise UserError(f"{folder} holds no weights (adapter_model.safetensors is missing). Copy or download it again.")
    if (folder / ADAPTER_CONFIG).is_file():
        read_json(folder / ADAPTER_CONFIG)
    check_files(folder)
    return folder


def base_of(folder: Path) -> str:
    """Return the base model that an adapter names.

    Raises:
        UserError: it names none.
    """
    config = folder / ADAPTER_CONFIG
    by_peft = read_json(config).get("base_model_name_or_path") if config.is_file() else None
    noted = record_of(folder).get("base")
    base = noted or by_peft
    if not base:
        raise UserError(
            f"The adapter {folder} names no base model; name it with model.path=..., in Python with "
            "glmtune.load(BASE, adapter=...)."
        )
    network.note_file(folder / BASE_RECORD if noted else config, str(base))
    return str(base)


def check_base(folder: Path, base: str) -> None:
    """Compare the base with the one that the adapter was trained on.

    Raises:
        UserError: there is no such base, or its weights differ.
    """
    try:
        location = Path(loading.locate(base))
    except UserError as error:
        raise UserError(f"The base of the adapter {folder}: {error} If it has moved, add model.path=...") from error
    trained_on = record_of(folder).get("fingerprint")
    if trained_on is None or not location.is_dir():
        return
    if trained_on != (found := fingerprint(location)):
        raise UserError(
            f"The adapter {folder} was trained on other weights than {base} holds (fingerprint {trained_on}, found "
            f"{found}). Point to the checkpoint that it was trained on with model.path=..."
        )


def is_mergeable(folder: Path) -> bool:
    """Return whether an adapter can become part of the weights of its base: prefixes and other prompts cannot."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PromptLearningConfig

    if (folder / ADAPTER_CONFIG).is_file():
        kinds: dict[Any, Any] = {**PEFT_TYPE_TO_CONFIG_MAPPING}
        kind = kinds.get(read_json(folder / ADAPTER_CONFIG).get("peft_type"))
        return kind is None or not issubclass(kind, PromptLearningConfig)
    method = method_of(folder)
    return method is None or method.mergeable


def check_adapter(folder: Path, run: RunFolder) -> None:
    """Compare an adapter with its own configuration, and with the recipe where a run was named.

    Raises:
        UserError: they contradict each other.
    """
    settings = read_yaml(run.recipe).get("method") if run.recipe.is_file() else None
    for method in methods_for(folder):
        method.check(folder, settings)
