"""An `adapter_config.json`: checked field by field before peft sees it, by `glmtune.models.adapter_fields`.

A field that says nothing (null, false, empty, or what peft takes for granted) is left out, and so is one that matters
in training alone.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from glmtune import registry
from glmtune.models.adapter_fields import TYPES, Adapter
from glmtune.models.checkpoint import read_json, reading
from glmtune.models.patterns import matching
from glmtune.models.shapes import shapes
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from peft import PeftConfig

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # peft reads the first that is there
ALL_LINEAR = "all-linear"
LINEAR_EXPERT = re.compile(r"\.(experts\.\d+\.\w+|gate)\.lora_")  # in the names of an adapter's weights
SAYS_NOTHING: tuple[Any, ...] = (None, False, {}, [], "")


def read_adapter(folder: Path) -> Adapter:
    """Return what the `adapter_config.json` of a folder says, checked, and compared with the sizes of the weights.

    Raises:
        UserError: a type or a field that is not read here, or a value out of its bounds; named, with the remedy.
    """
    file = folder / ADAPTER_CONFIG
    values = read_json(file)
    kind = values.get("peft_type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise UserError(
            f"{file}: this adapter cannot be read: peft_type is {kind!r}.{registry.suggest(str(kind), [*TYPES])} Have "
            "its maker merge it into its base, and take that model."
        )
    own = TYPES[kind]
    try:
        adapter = own.model_validate(
            {
                name: value
                for name, value in values.items()
                if name in own.model_fields or not says_nothing(kind, name, value)
            }
        )
    except ValidationError as error:
        raise UserError(f"{file}: {explain(error, own)}") from None
    longest = longest_side(folder)
    for name, size in adapter.sizes():
        if size > longest:
            raise UserError(
                f"{file}: {name} is {size}, but no side of a matrix in the weights is longer than {longest}. Copy or "
                "download both files again, of one training."
            )
    return adapter


def says_nothing(kind: str, name: str, value: Any) -> bool:
    """Return whether a field has no meaning: it is empty, or says what peft takes for granted."""
    if any(type(value) is type(nothing) and value == nothing for nothing in SAYS_NOTHING):
        return True
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    declared = {field.name: field for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)])}
    return name in declared and type(value) is type(declared[name].default) and value == declared[name].default


def explain(error: ValidationError, kind: type[Adapter]) -> str:
    """Return what is wrong with the first field that is wrong, and the remedy."""
    fault = error.errors()[0]
    name = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        known = registry.suggest(name, [*kind.model_fields]).partition(" Known")[0]
        return (
            f"{name} is not taken from an adapter.{known} Delete the field if the adapter works without; else have its "
            "maker merge it into its base, and take that model."
        )
    shown = textwrap.shorten(repr(fault["input"]), 80, placeholder=" ...")
    return (
        f"{name}: {fault['msg'].removeprefix('Value error, ')} (got {shown}). Take the file as its maker published it, "
        "or mend it."
    )


def longest_side(folder: Path) -> int:
    """Return the longest side of a matrix in the weights of an adapter; what holds no number does not count."""
    with reading("adapter", str(folder)):
        weights = shapes(find_weights(folder))
        return max((max(weight.shape) for weight in weights.values() if weight.numel() and weight.ndim), default=0)


def has_linear_experts(folder: Path) -> bool:
    """Return whether an adapter was made beside experts that were linear layers, as they are in transformers 4."""
    with reading("adapter", str(folder)):
        return any(LINEAR_EXPERT.search(name) for name in shapes(find_weights(folder)))


def find_weights(folder: Path) -> list[Path]:
    """Return the files of an adapter's weights that are there."""
    return [folder / name for name in WEIGHTS if (folder / name).is_file()]


def peft_config(folder: Path, modules: Iterable[str]) -> PeftConfig:
    """Return peft's configuration of an adapter, with names in the place of patterns.

    Args:
        folder: of the adapter.
        modules: names of all modules of its base.

    Raises:
        UserError: as `read_adapter`; or a pattern that cannot be read, or matches nothing.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    adapter = read_adapter(folder)
    values = adapter.model_dump(exclude_unset=True, exclude={*adapter.UNUSED})
    named = {name: values[name] for name in adapter.PATTERNS if values.get(name) is not None}
    if any(isinstance(value, str) and value.lower() != ALL_LINEAR for value in named.values()):
        modules = list(modules)
        for name, value in named.items():
            try:
                values[name] = matching(value, modules) if isinstance(value, str) else ending(value, modules)
            except ValueError as error:
                raise UserError(f"{folder / ADAPTER_CONFIG}: {name}: {error}") from None
        if values.get("target_modules") == []:
            raise UserError(
                f"{folder / ADAPTER_CONFIG}: target_modules: {named['target_modules']!r} is none of the base's "
                "modules. Name the base that it belongs to with model.path=..."
            )
    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(adapter.peft_type)](**values)


def ending(names: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Return the modules that names are meant for, as peft takes them: those that are called so, or end so."""
    endings = tuple(f".{name}" for name in names)
    return [module for module in modules if f".{module}".endswith(endings)]
