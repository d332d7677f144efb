"""A run that goes on: what it has been so far, what may be changed from here on, and what may not, with the reason.

A run's checkpoints lie beside a record of what they were made by, `checkpoints/run.json`. `recipe.yaml` is the user's
to edit: what it says is compared with that record, however it got there. No torch here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from glmtune.config import Recipe, TrainingSettings, at_home, make_recipe, read_yaml
from glmtune.examples import Example
from glmtune.files import write_json
from glmtune.runtime import RunFolder, UserError

RECORD = "run.json"
SECTIONS = ("model", "task", "method", "objective", "data", "training", "evaluation", "generation")

# What says how the steps from here on are made, watched or judged, and nothing of what was learned before.
HONOURED = {
    *(f"training.{name}" for name in ("steps", "epochs", "learning_rate", "lr_scheduler_type", "warmup_ratio")),
    *(f"training.{name}" for name in ("weight_decay", "adam_beta2", "max_grad_norm", "gradient_checkpointing")),
    *(f"training.{name}" for name in ("logging_steps", "eval_steps", "early_stopping_patience", "save_total_limit")),
    *(f"training.{name}" for name in ("save_seconds", "grace_seconds", "devices", "sharding", "cpu_offload")),
    *("training.trackers", "training.output_dir", "model.attention", "data.cache"),
    *("evaluation.num_examples", "evaluation.max_seconds", "evaluation.text_metrics"),
    *(f"generation.{name}" for name in ("max_new_tokens", "batch_size", "do_sample", "temperature", "top_p")),
}
ENDING = {"training.steps", "training.epochs", "training.early_stopping_patience"}  # what a run may be ended by
# Of the others, by setting or section: what a change would do.
REASONS = {
    "seed": "would bring other examples in another order",
    "model": "would put what was learned on another model",
    "task": "would change what is learned",
    "method": "would change what learns",
    "objective": "would change what is learned",
    "data": "would change what is learned",
    "training.sharding": "would store the base at these bits otherwise on GPUs",
    "training.optimizer": "would lose what the optimizer has gathered",
    "training": "would change how many examples a step is of",
    "evaluation.num_examples_during": "would choose the best weights by other examples than so far",
    "evaluation": "would change what must not be learned",  # general questions are kept out of mixtures
}


@dataclass(frozen=True)
class Change:
    """A setting that was changed on the way.

    Attributes:
        step: the last one that was made with the value before.
        setting: its name.
        before, after: its values.
    """

    step: int
    setting: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.setting}={as_text(self.after)} from step {self.step + 1} on ({as_text(self.before)} before)"


@dataclass(frozen=True)
class Past:
    """What a run has been so far.

    Attributes:
        recipe: by which its last steps were made.
        base: fingerprint of the base's weights; None where it is not known.
        records: fingerprint of the task's records; None where it has none, or it is not known.
        changes: of settings, in their order.
        step: of the last checkpoint; 0 where there is none, so that everything is still open.
        evaluations_without_better: since the best one, which early stopping counts.
        asked: how many held-out examples it asks before and after, and at each evaluation; None where it is not known.
        damaged: what is wrong with checkpoints after the one that counts.
    """

    recipe: Recipe
    base: str | None = None
    records: str | None = None
    changes: Sequence[Change] = field(default=())
    step: int = 0
    evaluations_without_better: int = 0
    asked: tuple[int, int] | None = None
    damaged: Sequence[str] = ()

    def has_ended_by(self, training: TrainingSettings) -> bool:
        """Return whether no step is left by some settings: all are made, or early stopping had enough."""
        patience, worse = training.early_stopping_patience, self.evaluations_without_better
        return self.step >= (training.steps or 0) or (patience is not None and worse >= patience)

    @property
    def has_ended(self) -> bool:
        """Whether no step is left by its own settings."""
        return self.has_ended_by(self.recipe.training)

    @property
    def remedy(self) -> str:
        """What makes a run that has ended go on."""
        training = self.recipe.training
        if training.steps is not None and self.step < training.steps:  # stopped early
            return f"training.early_stopping_patience={2 * (training.early_stopping_patience or 1)}"
        return f"training.steps={2 * self.step}"


def read_past(folder: RunFolder) -> Past | None:
    """Return what a run has been so far; None where there is none.

    Raises:
        UserError: its record, its recipe or all its checkpoints are damaged.
    """
    if not folder.recipe.is_file():
        return None
    past = read_record(folder.checkpoints / RECORD) or Past(make_recipe(read_yaml(folder.recipe)))  # of an older run
    past = replace(past, recipe=at_home(past.recipe, folder))
    if not any(folder.checkpoints.glob("checkpoint-*")):
        return past
    from glmtune.training.checkpoints import count_without_better, find_last, read_state

    last, damaged = find_last(folder.checkpoints)
    if last is None and damaged:
        raise UserError(
            f"{' '.join(damaged)} No other is left to go on from. Put one back from a copy, or delete "
            f"{folder.checkpoints}, and the run begins anew."
        )
    if last is None:
        return past
    state = read_state(last)
    changes = [change for change in past.changes if change.step <= state.global_step]
    return replace(
        past,
        changes=changes,
        step=state.global_step,
        evaluations_without_better=count_without_better(state),
        damaged=damaged,
    )


def read_record(path: Path) -> Past | None:
    """Return what the record beside the checkpoints says; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        changes = [Change(**change) for change in values["changes"]]
        if not all(type(change.step) is int for change in changes):
            raise TypeError("the step of a change is no number")
        before, during = values.get("asked") or (None, None)  # older runs ask what their recipes say
        asked = None if before is None or during is None else (int(before), int(during))
        return Past(make_recipe(values["recipe"]), values["base"], values["records"], changes, asked=asked)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: {str(error).splitlines()[0]}. Delete it, and recipe.yaml counts in its place."
        ) from None


def write_record(folder: RunFolder, past: Past) -> None:
    """Write what the steps from here on are made by."""
    values = {
        "format": 1,
        "recipe": past.recipe.model_dump(mode="json"),
        "base": past.base,
        "records": past.records,
        "changes": [asdict(change) for change in past.changes],
        "asked": past.asked,
    }
    write_json(folder.checkpoints / RECORD, values)


def differences(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the values before and after of the settings that differ, by name."""
    old, new = flat(before), flat(after)
    renamed = {name.removesuffix("name") for name in new if name.endswith(".name") and old.get(name) != new[name]}
    return {
        name: (old.get(name), new.get(name))
        for name in dict.fromkeys((*new, *old))
        # Another task, method or objective has other settings, which say nothing more.
        if old.get(name) != new.get(name) and (name.endswith(".name") or not name.startswith(tuple(renamed)))
    }


def flat(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a recipe by name, as `training.steps`."""
    values = recipe.model_dump(mode="json")
    inner = {f"{section}.{name}": value for section in SECTIONS for name, value in values[section].items()}
    return {"seed": values["seed"], **inner}


def check_going_on(past: Past, now: Past, folder: RunFolder) -> list[Change]:
    """Return what is changed from here on, where that may be.

    Args:
        past: what the run has been so far.
        now: what it is to be.
        folder: of the run.

    Raises:
        UserError: a change would make another run of it; all of them are named, with the reasons. Or it says how steps
            are made, and none is left.
    """
    changed, steps = differences(past.recipe, now.recipe), now.recipe.training.steps
    if steps is not None and steps < past.step:
        raise UserError(
            f"training.steps={steps}: {folder.path} has made {past.step} steps already, which cannot be taken back. "
            f"Set {past.step} to end there, or more."
        )
    if "training.output_dir" in changed and not is_same_folder(now.recipe.training.output_dir, folder):
        raise UserError(
            f"training.output_dir={now.recipe.training.output_dir}: a run goes on in its own folder, {folder.path}. "
            "Leave it out, or copy the folder and go on with the copy."
        )
    refused = [
        f"{name}={as_text(after)} ({as_text(before)} so far) {reason_of(name)}"
        for name, (before, after) in changed.items()
        if not is_honoured(name, past, now)
    ]
    if refused:
        raise UserError(
            f"{folder.path} cannot go on so: {'; '.join(refused)}. Start a new run, or set "
            f"{'it' if len(refused) == 1 else 'them'} back."
        )
    ended = replace(past, recipe=now.recipe)
    fitting = {"training.output_dir", *(() if past.has_ended else ENDING)}
    idle = [name for name in changed if name.startswith("training.") and name not in fitting]
    if ended.has_ended and idle:
        named = " ".join(f"{name}={as_text(changed[name][1])}" for name in idle)
        raise UserError(
            f"{named}: {folder.path} is finished after step {past.step:,}, and no step is left to be made so. To train "
            f"it longer: glmtune train --resume {folder.path} {ended.remedy}"
        )
    model = now.recipe.model
    start = model.path if model.adapter is None else f"{model.path} or model.adapter: {model.adapter}"
    for what, before, after in (
        (f"model.path: {start} holds other weights", past.base, now.base),
        ("task.file: the task has other records", past.records, now.records),
    ):
        if None not in (before, after) and before != after:
            raise UserError(f"{what} than when {folder.path} began. Put them back as they were, or start a new run.")
    return [
        Change(past.step, name, *values)
        for name, values in changed.items()
        if name not in ("training.output_dir", "training.epochs")  # the steps that follow from them are there
    ]


def check_same(past: Past, recipe: Recipe, folder: RunFolder) -> None:
    """Check that a recipe is the one by which an interrupted run was begun.

    Raises:
        UserError: it is another; the differences are named.
    """
    changed = differences(past.recipe, recipe)
    if "training.steps" not in changed:
        changed.pop("training.epochs", None)  # which the steps follow from, or which they stand instead of
    changed.pop("training.output_dir", None)
    if changed:
        named = ", ".join(
            f"{name}={as_text(after)} ({as_text(before)} there)" for name, (before, after) in changed.items()
        )
        raise UserError(
            f"training.output_dir: {folder.path} holds an interrupted run of another recipe: {named}. Choose another "
            f"folder with training.output_dir=..., or go on with that run: glmtune train --resume {folder.path}"
        )


def is_honoured(name: str, past: Past, now: Past) -> bool:
    """Return whether a setting may be changed on the way."""
    if name in ("training.batch_size", "training.gradient_accumulation_steps"):
        return past.recipe.training.examples_per_step == now.recipe.training.examples_per_step
    if name == "training.sharding":
        return now.recipe.model.bits == 16
    if name == "model.dtype":  # an older run did not say what it was on its machine
        return past.recipe.model.dtype == "auto"
    if name in ("model.path", "model.adapter"):
        return past.base is not None and past.base == now.base
    if name in ("task.file", "task.held_out_file"):
        return past.records is not None and past.records == now.records
    if name in ("evaluation.forgetting", "evaluation.general_file"):
        return not now.recipe.data.mixture
    return name in HONOURED


def reason_of(name: str) -> str:
    """Return why a setting may not be changed on the way."""
    return REASONS.get(name) or REASONS[name.partition(".")[0]]


def is_same_folder(named: str | None, folder: RunFolder) -> bool:
    """Return whether `training.output_dir` names the run's own folder, or nothing."""
    return named is None or Path(named).resolve() == folder.path.resolve()


def fingerprint_records(splits: Sequence[Sequence[Example] | None]) -> str | None:
    """Return a short hash of what the splits of a task have; None where it draws without end."""
    if all(split is None for split in splits):
        return None
    digest = hashlib.sha256()
    for split in splits:
        for example in split or ():
            digest.update(repr((example.question, example.target, example.tool_calls, example.rejected)).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def as_text(value: Any) -> str:
    """Return a value as it is written in a setting."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
