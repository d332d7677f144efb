"""Rows of tables: CSV, TSV, and data sets of the hub."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from glmtune import network
from glmtune.config.values import MOST_VALUES, count_values
from glmtune.records.faults import Fault, Unreadable
from glmtune.records.fields import MOST_CHARACTERS, Row, clean_name, repeated
from glmtune.records.text import check_text, open_text
from glmtune.runtime import UserError

CARDS = ("README.md", ".huggingface.yaml")  # where a data set of the hub says which its files are
_ADDRESS = re.compile(r"\w+://[^\s'\"]+")
_LEADS_OUT = re.compile(r"^[/\\~]|^\w:|(^|[/\\])\.\.([/\\]|$)")  # an absolute path, or one with `..` in it


def read_csv(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) of CSV and TSV with a row of names; separated by what separates the names."""
    csv.field_size_limit(MOST_CHARACTERS)
    with open_text(path, encoding, newline="") as file:
        head = file.readline(MOST_CHARACTERS)
        check_text(head, 1, encoding)
        if not head.strip():
            return
        file.seek(0)
        delimiter = max(",\t;", key=re.sub(r'"[^"]*"', "", head).count)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        names: list[str] = []
        line = 1
        try:
            for cells in reader:
                check_text(delimiter.join(cells), line, encoding)
                if not names:
                    names = [clean_name(name) for name in cells]
                    if (twice := repeated(names)) is not None:
                        raise Unreadable(f"two columns are called '{twice}'. Rename one.", 1)
                elif cells:
                    yield line, cells_of(path, line, names, cells)
                line = reader.line_num + 1
        except csv.Error as error:
            message = f"not CSV: {error}. Is a quotation mark missing? What follows is not read."
            raise Unreadable(message, line) from None


def cells_of(path: Path, line: int, names: list[str], cells: list[str]) -> Any:
    """Return the cells of a row by name, or its fault."""
    if len(cells) == len(names):
        return dict(zip(names, cells, strict=True))
    message = f"{len(cells)} cells for {len(names)} columns ({', '.join(names)}). Put texts in quotation marks."
    return Fault(str(path), line, None, message, cells)


def read_hub(name: str, config: str | None, split: str, label: str) -> Iterator[tuple[int, Row]]:
    """Yield (number, row) of a data set of the hub, as they come.

    Args:
        name: `OWNER/NAME`.
        config, split: of the data set.
        label: of all three, for messages.

    Raises:
        UserError: the library is missing, the hub does not give it, only a file names it and nobody says yes, or it
            sends its readers to other hosts.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"{name}: data sets of the hub are read by datasets: pip install 'glmtune[data]'")
    network.permit(name, "records", "task.file")

    from datasets import load_dataset

    try:
        check_card(name)
        yield from enumerate(load_dataset(name, config, split=split, streaming=True), start=1)
    except UserError:
        raise
    except Exception as error:  # the library documents no classes of errors
        reason = str(error).partition("\n")[0][:300] or type(error).__name__
        raise UserError(
            f"{name}: there is no such file here, and the hub gives no data set {label}: {reason}. "
            "Write it as OWNER/NAME, or OWNER/NAME@CONFIG:SPLIT."
        ) from error


def check_card(name: str) -> None:
    """See whether the files of a data set are its own; datasets would ask any host, and read any path, of its card.

    The card is taken apart as datasets does it, so that both find the same in it.

    Raises:
        UserError: a file is somewhere else.
    """
    from huggingface_hub import DatasetCard, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for file in CARDS:
        try:
            text = Path(hf_hub_download(name, file, repo_type="dataset")).read_bytes().decode("utf-8")
        except EntryNotFoundError:
            continue
        values = DatasetCard(text).data.to_dict() if file.endswith(".md") else yaml.safe_load(text)
        configs = values.get("configs") if isinstance(values, dict) else None
        if count_values(configs, {}) > MOST_VALUES:
            raise UserError(f"{name}: {file}: its aliases (*name) make more than {MOST_VALUES:,} values of it.")
        if (place := place_elsewhere(configs)) is not None:
            raise UserError(
                f"{name}: {file} names a file of another place, {place}. Download it yourself, and name it."
            )


def place_elsewhere(configs: Any) -> str | None:
    """Return a place out of its repository that the configurations of a card name; None if there is none."""
    if found := _ADDRESS.search(json.dumps(configs, default=str)):
        return found[0]
    entries = [entry for entry in configs if isinstance(entry, dict)] if isinstance(configs, list) else []
    paths = texts_in([[entry.get("data_files"), entry.get("data_dir")] for entry in entries])
    return next((path for path in paths if _LEADS_OUT.search(path)), None)


def texts_in(value: Any) -> Iterator[str]:
    """Yield the texts in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_in(inner)
