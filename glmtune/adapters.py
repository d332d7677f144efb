"""Adapters as they lie in folders: what they are, whether they fit their base, and back onto it they go.

torch, transformers and peft are imported by the functions that need them.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glmtune import distributed, registry
from glmtune.config import Dtype, ModelSettings, read_yaml
from glmtune.methods import ADAPTER_CONFIG, BASE_RECORD, Method, Model
from glmtune.models import loading
from glmtune.models.checkpoint import check_files, fingerprint, read_json, reading
from glmtune.runtime import RunFolder, UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METHODS = "glmtune.methods"


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
    base, folder = find_base(path, adapter)
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
    model, tokenizer = loading.load_model(settings, target)
    if folder is None:
        return model, tokenizer
    return attach(model, folder).eval(), tokenizer_of(base, folder)


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
    """The method whose own format an adapter is in, if any."""
    return next((method for method in methods_for(folder) if method.holds(folder)), None)


def methods_for(folder: Path) -> list[type[Method]]:
    """The method that training noted beside an adapter, or all. What is noted may be anything: it is not imported."""
    known, named = registry.names(METHODS), record_of(folder).get("method")
    return [registry.find(METHODS, name) for name in ([named] if named in known else known)]


def record_of(folder: Path) -> dict[str, Any]:
    """What training noted beside an adapter: `base`, its `fingerprint` and `bits`, the `method`; empty for others'."""
    record = folder / BASE_RECORD
    return read_json(record) if record.is_file() else {}


def find_base(path: str | Path, adapter: str | Path | None = None) -> tuple[str, Path | None]:
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
    check_files(folder)
    return folder


def base_of(folder: Path) -> str:
    """The base model that an adapter names.

    Raises:
        UserError: it names none.
    """
    config = folder / ADAPTER_CONFIG
    by_peft = read_json(config).get("base_model_name_or_path") if config.is_file() else None
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
    """Whether an adapter can become part of the weights of its base: a prefix, or other learned prompts, cannot."""
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


def tokenizer_of(base: str, folder: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with an adapter, with the template it was trained with; else that of the base."""
    saved = folder is not None and (folder / "tokenizer_config.json").is_file()
    return loading.load_tokenizer(str(folder) if saved else loading.locate(base))
