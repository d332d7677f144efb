"""What is known of each family of models, and how one is found: the contract of the folders here. No torch here.

Loading is in `glmtune.models.loading`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FOLDER = Path(__file__).parent


def nothing(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nothing: what most families have of a kind of their own."""
    return {}


@dataclass(frozen=True)
class GgufFacts:
    """How llama.cpp computes a family, and what its files must say for it.

    Attributes:
        architecture: a member of gguf.MODEL_ARCH.
        rope_types: kinds of rotary positions that llama.cpp's graph has.
        interleaves_rotary: llama.cpp turns the numbers 2i and 2i + 1 of a head as one pair where transformers turns i
            and i + D/2, so that the rows of queries and keys are reordered.
        heads_fill_width: the graph asks for heads * head_dim = hidden_size.
        end_tokens: who speaks next: such a token ends an answer.
        pre_tokenizers: our name for a way to cut texts -> the family's own.
        prefix: control tokens that its tokenizer puts before a text, which no GGUF file says.
        activation: of the MLP.
        norms_add_one: the weights of norms are kept less one, and the file holds them whole.
        has_windows: the graph lets layers see a window alone; else what a file says of its context ends with it.
        fields: `config.json` -> keys of this architecture alone, without its name.
        misfits: `config.json` -> what of it the graph has no place for.
        config: (key and type -> value of a file, `config.json` so far) -> what else a file says for it.
    """

    architecture: str
    rope_types: tuple[str, ...] = ("default", "linear")
    interleaves_rotary: bool = False
    heads_fill_width: bool = False
    end_tokens: tuple[str, ...] = ()
    pre_tokenizers: Mapping[str, str] | None = None
    prefix: tuple[str, ...] = ()
    activation: str = "silu"
    norms_add_one: bool = False
    has_windows: bool = False
    fields: Callable[[Mapping[str, Any]], dict[str, Any]] = nothing
    misfits: Callable[[Mapping[str, Any]], Iterable[str]] = nothing
    config: Callable[[Callable[[str, type], Any], Mapping[str, Any]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class OriginalLayout:
    """How a release holds a model, where that differs from what transformers writes.

    Attributes:
        weights: (model, dtype) -> every weight that a release holds, under its name there.
        config: configuration -> `config.json`.
        tokenizer: tokenizer -> `tokenizer_config.json`.
    """

    weights: Callable[[PreTrainedModel, torch.dtype], dict[str, torch.Tensor]]
    config: Callable[[PreTrainedConfig], dict[str, Any]]
    tokenizer: Callable[[PreTrainedTokenizerBase], dict[str, Any]]


@dataclass(frozen=True)
class ReleasedFile:
    """A small file as it was released: its name, its size in bytes, its hash, and the `vocab_size` beside it."""

    name: str
    size: int
    sha256: str
    vocab_size: int


@dataclass(frozen=True)
class Family:
    """What is known of a family of models beside the classes that compute it.

    Attributes:
        model_types: what its `config.json` files say.
        sizes: `config.json` -> fields of `Architecture`; None where they are not known.
        keys: any of these in a `config.json` tells the family from another one of the same `model_type`.
        releases: checkpoints that are read by code of this package.
        own_classes: its classes are in its folder, and not in transformers. They register with the Auto classes.
        template: preset for a tokenizer that brings no template.
        small_files: what is fetched of a hub repository beside the usual files. It is read, never run.
        released_files: what `glmtune doctor` compares files with.
        release_hint: how its releases differ, for who mixes them.
        check_tokenizer: (path, tokenizer, config) raises a `UserError` where these are of two releases.
        prefix_takes_positions: a learned prefix shifts the positions of what follows.
        reads_original_prefix: prefixes that the original P-Tuning v2 scripts saved belong to it.
        extra_config: `config.json` of transformers' layout -> keys that tools beside transformers read there.
        gguf: how llama.cpp computes it; None where it cannot.
        gguf_remedy: why it cannot, and what to do instead.
        original_layout: how its release holds a model, where one can be written.
        peft_targets: name of one of peft's tables -> the layers that it takes where a configuration names none.
        peft_like: a `model_type` of peft's tables whose layers have the same names; `peft_targets` goes before it.
    """

    model_types: tuple[str, ...]
    sizes: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    keys: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    own_classes: bool = False
    template: str = "plain"
    small_files: tuple[str, ...] = ()
    released_files: tuple[ReleasedFile, ...] = ()
    release_hint: str = ""
    check_tokenizer: Callable[[str, PreTrainedTokenizerBase, PreTrainedConfig], None] | None = None
    prefix_takes_positions: bool = True
    reads_original_prefix: bool = False
    extra_config: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    gguf: GgufFacts | None = None
    gguf_remedy: str = ""
    original_layout: OriginalLayout | None = None
    peft_targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    peft_like: str = ""


def families_by_package() -> dict[str, list[Family]]:
    """Import the `family.py` of every folder here that has one; return its families by the name of the package."""
    packages = [f"{__package__}.{file.parent.name}" for file in sorted(FOLDER.glob("*/family.py"))]
    values = {package: vars(importlib.import_module(f"{package}.family")).values() for package in packages}
    return {package: [value for value in found if isinstance(value, Family)] for package, found in values.items()}


@cache
def all_families() -> tuple[Family, ...]:
    """Return every family, in the order of the folders."""
    return tuple(family for families in families_by_package().values() for family in families)


def own_modules(pattern: str) -> list[str]:
    """Return the names of the modules whose files match, in the folders of families with classes of their own."""
    return [
        f"{package}.{file.stem}"
        for package, families in families_by_package().items()
        if any(family.own_classes for family in families)
        for file in sorted((FOLDER / package.rpartition(".")[2]).glob(pattern))
    ]


def family_of(values: Mapping[str, Any]) -> Family:
    """Return the family that a `config.json` belongs to; one that knows nothing where there is none.

    Args:
        values: of the `config.json`, or a loaded configuration's `to_dict()`.
    """
    model_type = str(values.get("model_type"))
    known = [family for family in all_families() if model_type in family.model_types]
    by_keys = [family for family in known if any(key in values for key in family.keys)]
    others = [family for family in known if not family.keys]
    return next(iter([*by_keys, *others]), Family((model_type,)))
