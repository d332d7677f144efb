"""Adapters as they lie in folders: what they are, whether they fit their base, and back onto it they go.

torch, transformers and peft are imported by the functions that need them.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune import network, registry
from glmtune.config import read_yaml
from glmtune.files import check_folder
from glmtune.methods import BASE_RECORD, Method, Model
from glmtune.models import loading
from glmtune.models.adapter_config import ADAPTER_CONFIG, WEIGHTS, has_linear_experts, peft_config, read_adapter
from glmtune.models.adapter_fields import Prompt
from glmtune.models.checkpoint import check_files, fingerprint, read_json, reading
from glmtune.runtime import RunFolder, UserError

if TYPE_CHECKING:
    pass

METHODS = "glmtune.methods"
# What stands in a record: of which kinds.
NOTED: dict[str, tuple[tuple[type, ...], str]] = {
    "base": ((str, type(None)), "a path or a name of the hub"),
    "fingerprint": ((str, type(None)), "a text"),
    "bits": ((int,), "a number"),
    "quantize_embedding": ((bool,), "true or false"),
    "method": ((str, type(None)), "a name"),
}


def attach(model: Model, folder: Path, name: str = "default") -> Model:
    """Put the adapter in a folder on its base.

    Args:
        model: the base; or it with other adapters of the kind, beside which this one is put.
        folder: of the adapter.
        name: by which it is told from others.

    Raises:
        UserError: it does not fit the base.
    """
    from peft import PeftModel

    from glmtune.models.low_rank import as_written

    with reading("adapter", str(folder)), warnings.catch_warnings():
        if (folder / ADAPTER_CONFIG).is_file():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            base = model.get_base_model() if isinstance(model, PeftModel) else model
            config = peft_config(folder, [part for part, _ in base.named_modules() if part])
            with nullcontext() if has_linear_experts(folder) else as_written():
                if isinstance(model, PeftModel):
                    model.add_adapter(name, config)
                    model.load_adapter(str(folder), name)
                    return model
                return PeftModel.from_pretrained(model, str(folder), name, config=config)
        method = method_of(folder)
        assert method is not None and not isinstance(model, PeftModel), "adapter_folder has looked"
        return method.attach(model, folder)


def method_of(folder: Path) -> type[Method] | None:
    """Return the method whose own format an adapter is in, if any."""
    return next((method for method in methods_for(folder) if method.holds(folder)), None)


def methods_for(folder: Path) -> list[type[Method]]:
    """Return the method that was noted beside an adapter, or all. What is noted may be anything: it is not imported."""
    known, named = registry.names(METHODS), record_of(folder).get("method")
    return [registry.find(METHODS, name) for name in ([named] if named in known else known)]


def record_of(folder: Path) -> dict[str, Any]:
    """Return what training noted beside an adapter: `base`, `fingerprint`, `bits`, `method`; nothing for others'.

    Raises:
        UserError: it is damaged, or something in it is of another kind than training notes.
    """
    record = folder / BASE_RECORD
    values = read_json(record) if record.is_file() else {}
    for name, (kinds, what) in NOTED.items():
        if name in values and type(values[name]) not in kinds:
            raise UserError(f"{record}: {name} is {what}, not {values[name]!r}. Copy or download the file again.")
    if values.get("bits", 16) not in (16, 8, 4):
        raise UserError(f"{record}: bits is 16, 8 or 4, not {values['bits']!r}. Copy or download the file again.")
    return values


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
    if (folder / ADAPTER_CONFIG).is_file() and not any((folder / name).is_file() for name in WEIGHTS):
        raise UserError(f"{folder} holds no weights (adapter_model.safetensors is missing). Copy or download it again.")
    check_files(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        read_adapter(folder)
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
    if trained_on is None or not location.exists():
        return
    if trained_on != (found := fingerprint(location)):
        raise UserError(
            f"The adapter {folder} was trained on other weights than {base} holds (fingerprint {trained_on}, found "
            f"{found}). Point to the checkpoint that it was trained on with model.path=..."
        )


def is_mergeable(folder: Path) -> bool:
    """Return whether an adapter can become part of the weights of its base: prefixes and other prompts cannot."""
    if (folder / ADAPTER_CONFIG).is_file():
        return not isinstance(read_adapter(folder), Prompt)
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
