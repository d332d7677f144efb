"""Where an export comes from, and what it was learned from: its record and its model card."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from glmtune.config import Recipe, differing, read_report
from glmtune.exports.card import scores, write_card
from glmtune.exports.destination import CARD, RECORD, Layout, Precision
from glmtune.files import write_json
from glmtune.messages import Prompt
from glmtune.models.checkpoint import fingerprint
from glmtune.resolution import ResolvedModel
from glmtune.runtime import RunFolder, UserError


def write_provenance(
    folder: Path,
    name: str,
    origin: ResolvedModel,
    to: Layout,
    family: str,
    precision: Precision,
    verification: dict[str, Any],
    prompt: Prompt,
) -> None:
    """Write the record of an export and its model card into its folder."""
    record = {
        "format": 1,
        "layout": to,
        "precision": verification["dtype"] if precision == "auto" else precision,
        "base": name_of(origin.base),
        "base_fingerprint": origin.fingerprint,
        "adapter_fingerprint": fingerprint(origin.adapter) if origin.adapter is not None else None,
        "method": origin.recipe.method.name if origin.run is not None else None,
        "verification": verification,
        "versions": {package: metadata.version(package) for package in ("glmtune", "torch", "transformers", "peft")},
    }
    write_json(folder / RECORD, record)
    run = origin.run
    report = read_report(run) if run is not None and run.report.is_file() else None
    asked = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    card = write_card(
        Path(str(origin.target)).resolve().name,
        name,
        to,
        family,
        record,
        short_recipe(origin.recipe) if run is not None else "",
        Path(origin.recipe.task.name).stem,
        describe_data(origin) if run is not None else "",
        asked,
        report,
    )
    (folder / CARD).write_text(card, encoding="utf-8")


def check_report(run: RunFolder) -> None:
    """See whether a card can say what the report of a run says.

    Raises:
        UserError: the report is damaged.
    """
    try:
        scores(read_report(run))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{run.report} is damaged ({type(error).__name__}). Write it again: glmtune train --resume {run.path}"
        ) from None


def name_of(place: str) -> str:
    """Return what others may know a model or a file by: the paths of this machine are nothing to them."""
    return Path(place).name if Path(place).is_absolute() or Path(place).exists() else place


def short_recipe(recipe: Recipe) -> str:
    """Return what a recipe changes, as YAML, without the places of the run and of what it was made from."""
    values = differing(recipe)
    values.get("training", {}).pop("output_dir", None)
    return yaml.safe_dump(without_places(values), sort_keys=False, allow_unicode=True)


def without_places(value: Any) -> Any:
    """Return a value of a recipe in which files have their names alone."""
    if isinstance(value, dict):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_places(inner) for inner in value]
    return name_of(value) if isinstance(value, str) else value


def describe_data(origin: ResolvedModel) -> str:
    """Return what a run was learned from, in a few sentences."""
    learned, held_out = (origin.task.records(split) for split in ("train", "held_out"))
    own, training = origin.recipe.data, origin.recipe.training
    mixed = sum(source.share for source in own.mixture)
    if learned is not None and held_out is not None:
        told = [f"{len(learned):,} records were there to learn from, {len(held_out):,} were held out."]
    else:
        seen = (training.steps or 0) * training.examples_per_step * (1 - mixed)
        told = [f"Examples are drawn without end; it saw about {seen:,.0f} of them."]
    if own.too_long != "stop":
        told.append(f"Records that are too long were {'left out' if own.too_long == 'drop' else 'truncated'}.")
    if mixed:
        told.append(f"Of all that it saw, {mixed:.0%} are records of other files, {len(own.mixture)} of them.")
    return " ".join(told)
