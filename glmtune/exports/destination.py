"""What an export is, and where it goes. No torch here: what cannot be is told before it is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from glmtune.files import check_replaceable
from glmtune.resolution import ResolvedModel
from glmtune.runtime import RunFolder, UserError

Layout = Literal["merged", "original", "gguf"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "q8_0", "q4_0", "q4_k_m"]
QUANTIZED: tuple[Precision, ...] = ("q8_0", "q4_0", "q4_k_m")  # of GGUF files alone
RECORD = "glmtune.json"
CARD = "README.md"
MODELFILE = "Modelfile"  # of Ollama


def choose_destination(
    origin: ResolvedModel, to: Layout, output: str | None, overwrite: bool, precision: Precision = "auto"
) -> Path:
    """Return where the export goes.

    Raises:
        UserError: there is something already, above all what is exported, or no place was named.
    """
    target = str(origin.target)
    if output is None and not RunFolder.is_run(target):
        raise UserError(f"--output: name a {'file' if to == 'gguf' else 'folder'} to write; {target} is no run folder.")
    named = f"-{precision}" if precision in QUANTIZED else ""
    name = f"{Path(target).resolve().name}{named}.gguf" if to == "gguf" else to
    place = Path(output) if output is not None else Path(target) / name
    for written in (place, *(besides(place) if to == "gguf" else ())):
        try:
            check_replaceable(written)
        except UserError as error:
            raise UserError(f"--output {error}") from None
    if place.exists() and not overwrite:
        raise UserError(f"--output {place}: exists already. Choose another place, or add --overwrite.")
    for source in (Path(target), origin.adapter, Path(origin.place)):
        if source is not None and place.resolve() in (source.resolve(), *source.resolve().parents):
            raise UserError(f"--output {place}: is what is exported, or holds it. Choose another place.")
    is_export = place.suffix == ".gguf" and place.is_file() if to == "gguf" else (place / RECORD).is_file()
    if place.exists() and not is_export and not (place.is_dir() and not any(place.iterdir())):
        raise UserError(
            f"--output {place}: is no earlier export (of which {RECORD} tells), so that it is not replaced. Choose "
            "another place."
        )
    return place


def besides(place: Path) -> tuple[Path, Path, Path]:
    """Return where the record, the card and the Modelfile of a GGUF file go, beside it."""
    json, md, modelfile = (place.with_name(f"{place.name}.{ending}") for ending in ("json", "md", "Modelfile"))
    return json, md, modelfile
