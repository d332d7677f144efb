"""Rows of tables: CSV, TSV, and data sets of the hub."""

from __future__ import annotations

import csv
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from glmtune import network
from glmtune.config.values import native, parse
from glmtune.records.faults import Fault, Unreadable
from glmtune.records.fields import MOST_CHARACTERS, Row, clean_name, repeated
from glmtune.records.folders import MOST_CARD, read_card
from glmtune.records.text import check_text, open_text
from glmtune.runtime import UserError
from glmtune.terminal import counted

CARDS = ("README.md", ".huggingface.yaml")  # where a data set of the hub says which its files are
_ELSEWHERE = re.compile(r"\w:[/\\]|::|^[/\\~]|(?:^|[/\\])\.\.(?:[/\\]|$)")  # an address, or a path out of it


def read_csv(path: Path, encoding: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) of CSV and TSV with a row of names; separated by what separates the names."""
    csv.field_size_limit(MOST_CHARACTERS)
    with open_text(path, encoding, newline="") as file:
        head = file.readline(MOST_CHARACTERS)
        check_text(head, 1, encoding)
        if not head.strip():
            return
        if len(head) == MOST_CHARACTERS:  # of which gzip packs a thousand times as many
            raise Unreadable(
                f"its first line has more than {MOST_CHARACTERS:,} characters, and no names of columns.", 1
            )
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
    found, wanted = counted(len(cells), "cell"), counted(len(names), "column")
    message = f"{found} for {wanted} ({', '.join(names)}). Put texts in quotation marks."
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
    """See whether the files of a data set are its own; datasets would ask any host that its card names, or this disk.

    Raises:
        UserError: a file is somewhere else, or the card cannot be read.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for file in CARDS:
        try:
            with open(hf_hub_download(name, file, repo_type="dataset"), encoding="utf-8", newline="") as card:
                text = card.read()
        except LocalEntryNotFoundError:  # whether there is a card is not known
            raise
        except EntryNotFoundError:
            continue
        try:
            values = read_card(text) if file.endswith(".md") else native(parse(text, MOST_CARD))
        except yaml.YAMLError as error:
            raise UserError(f"{name}: {file} cannot be read: {' '.join(str(error).split())[:200]}") from None
        configs = values.get("configs") if isinstance(values, dict) else None
        if found := next((place for place in texts_in(configs) if _ELSEWHERE.search(place)), None):
            raise UserError(
                f"{name}: {file} names a file of another place, {found}. Download it yourself, and name it."
            )


def texts_in(value: Any) -> Iterator[str]:
    """Yield what stands in a card's values, at any depth."""
    if isinstance(value, dict | list | tuple | set):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from texts_in(entry)
    elif value is not None:
        yield value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
