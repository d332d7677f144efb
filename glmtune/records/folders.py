"""What a folder of data holds: its splits, named as the hub names them.

A data set that was downloaded, or saved by `datasets`, lies in files of several splits, and only one of them is to be
learned. Which file is of which split is told by the card (`configs` in README.md), by `dataset_dict.json`, or by the
names: https://huggingface.co/docs/hub/datasets-file-names-and-splits
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from glmtune.config.values import native, parse
from glmtune.registry import suggest
from glmtune.runtime import UserError

TRAIN = "train"  # what is learned
JUDGED = ("validation", "test")  # by what it may be judged: the first that is there
_WORDS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_BETWEEN = r"[-._ 0-9]"  # what stands around such a word in a name
_SPLIT = {
    split: re.compile(rf"(?:^|{_BETWEEN})(?:{'|'.join(words)})(?:{_BETWEEN}|$)") for split, words in _WORDS.items()
}
_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}\.")
MOST_CARD = 2**22  # characters of a card
# What lies beside records and holds none.
_METADATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "cache-*.arrow")


def is_metadata(path: Path) -> bool:
    """Return whether a file of a folder of data says something of the others."""
    return any(fnmatchcase(path.name, pattern) for pattern in _METADATA)


def splits_of(folder: Path, files: Sequence[Path], config: str | None = None) -> dict[str, list[Path]]:
    """Return the files of each split of a folder, those to learn first, and with them those whose names tell none.

    Args:
        folder: of the data.
        files: those in it that hold records.
        config: one of those that its card has; default: the card's own, or the only one.

    Returns:
        Nothing where no file is of a split.

    Raises:
        UserError: there is no such configuration, or none is named and there are several.
    """
    named = _card_splits(folder, files, config)
    if named is None:
        saved = _saved_splits(folder)
        named = [(_split_of(file.relative_to(folder), saved), file) for file in files]
        if not any(split for split, _ in named):
            return {}
    found: dict[str, list[Path]] = {}
    for split, file in named:
        found.setdefault(split or TRAIN, []).append(file)
    order = [*(split for split in _WORDS if split in found), *(split for split in found if split not in _WORDS)]
    return {split: found[split] for split in order}


def _split_of(path: Path, saved: Sequence[str]) -> str:
    """The split that a path in a folder tells; nothing if it tells none."""
    if path.parts[0] in saved:
        return path.parts[0]
    for part in reversed(path.parts):
        for split, pattern in _SPLIT.items():
            if pattern.search(part):
                return split
    shard = _SHARD.match(path.name)
    return shard[1] if shard and path.parts[:-1] == ("data",) else ""


def _saved_splits(folder: Path) -> list[str]:
    """The splits of a `DatasetDict` that was saved here."""
    with suppress(OSError, ValueError, RecursionError):
        saved = json.loads((folder / "dataset_dict.json").read_text("utf-8"))
        splits = saved.get("splits") if isinstance(saved, dict) else None
        return [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
    return []


def _card_splits(folder: Path, files: Sequence[Path], config: str | None) -> list[tuple[str, Path]] | None:
    """(split, file) as the card has them; None where it has none that are here."""
    configs = _read_configs(folder)
    names = {file.relative_to(folder).as_posix(): file for file in files}
    if config is not None and config not in configs:
        below = {name: file for name, file in names.items() if name.startswith(f"{config}/")}
        if not below:
            raise UserError(f"{folder}: has no configuration '{config}'.{suggest(config, list(configs))}")
        return [(_split_of(file.relative_to(folder), ()), file) for file in below.values()]
    found = {name: list(_matching(folder, names, own)) for name, own in configs.items() if config in (None, name)}
    found = {name: pairs for name, pairs in found.items() if pairs}
    if len(found) > 1:
        chosen = [name for name in found if name == "default" or configs[name].get("default") is True]
        if len(chosen) != 1:
            one = next(iter(found))
            raise UserError(f"{folder}: has the configurations {', '.join(found)}. Name one: {folder}@{one}")
        return found[chosen[0]]
    return next(iter(found.values()), None)


def _matching(folder: Path, names: Mapping[str, Path], config: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """(split, file) of a configuration: of the files that are here, those that its patterns match."""
    given = config.get("data_files")
    entries = given if isinstance(given, list) else [given]
    below = str(config.get("data_dir") or "").strip("./")
    for entry in entries:
        split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else (None, entry)
        for pattern in paths if isinstance(paths, list) else [paths]:
            for name, file in names.items():
                inside = not below or name.startswith(f"{below}/")
                own = name.removeprefix(f"{below}/") if below else name
                if inside and (pattern is None or any(fnmatchcase(own, form) for form in _forms(str(pattern)))):
                    yield str(split or (_split_of(file.relative_to(folder), ()) if pattern is None else TRAIN)), file


def _forms(pattern: str) -> tuple[str, str]:
    """A pattern, and what it is where its folders of any depth are none."""
    return pattern.removeprefix("./"), pattern.removeprefix("./").replace("**/", "")


def _read_configs(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The configurations that a card names; none where it cannot be read."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace", newline="") as file:
            card = read_card(file.read(MOST_CARD))
    except (OSError, yaml.YAMLError, ValueError):
        return {}
    configs = card.get("configs") if isinstance(card, dict) else None
    entries = (entry for entry in configs if isinstance(entry, dict)) if isinstance(configs, list) else ()
    return {str(entry.get("config_name", "default")): entry for entry in entries}


def read_card(text: str) -> Any:
    """Return the metadata at the head of a README.md, found as `datasets` finds it; None where there is none.

    Raises:
        yaml.YAMLError: it is none, or out of bounds: aliases could make anything of it.
    """
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    block = REGEX_YAML_BLOCK.search(text)
    return native(parse(block[2], MOST_CARD)) if block else None


def tell(splits: Mapping[str, Sequence[Path]], names: Sequence[str]) -> str:
    """Return the names of some splits, and how many files each has."""
    count = {name: len(splits[name]) for name in names}
    return ", ".join(f"{name} ({n} file{'s' * (n != 1)})" for name, n in count.items())


def choose(folder: Path, splits: Mapping[str, list[Path]], split: str | None) -> list[Path]:
    """Return the files of a split, by default of what is to be learned.

    Raises:
        UserError: there is no such split; those that there are are named.
    """
    if (files := splits.get(TRAIN if split is None else split)) is not None:
        return files
    others = ", ".join(splits) or "none that files are named by"
    if split is None:
        raise UserError(
            f"{folder}: has no split to learn, but {others}, which is to judge by. Where it is meant all the same, "
            f"name it: {folder}:{next(iter(splits))}"
        )
    raise UserError(f"{folder}: has no split '{split}'; it has {others}.{suggest(split, list(splits))}")
