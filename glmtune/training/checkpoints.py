"""Checkpoints of a run: the weights that are trained, whatever the method, and nothing of a frozen base.

A checkpoint is there when all of it is, with a checksum of each file: `sha256sum --check SHA256SUMS`. One that was
damaged since is passed over, and the one before it counts.

A run may come from a stranger, and so its checkpoints: they are looked at before anything is loaded, and what is loaded
has the form of what would be saved. A checksum says nothing of that.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerState
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from glmtune.distributed import gather, on_main
from glmtune.files import remove_folder, remove_leftovers, replacing
from glmtune.models.checkpoint import check_safetensors, check_weight_file
from glmtune.runtime import UserError
from glmtune.training.muon import Muon
from glmtune.training.sharding import divided_like

WEIGHTS = "trainable.safetensors"
OPEN = "open.json"
SUMS = "SHA256SUMS"
SUM = re.compile(r"([0-9a-f]{64})  ([\w.-]+)")  # a line of that file
CHUNK = 2**20  # bytes that are read at a time
PICKLED = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
# What is read by name of these files, whatever the optimizer.
HOLDS = {
    OPTIMIZER_NAME: set[str](),
    SCHEDULER_NAME: {"last_epoch"},
    "rng_state.pth": {"python", "numpy", "cpu"},
}
SHAPE = "lr_lambdas"  # of a schedule of rates, in its file
REMEDY = "Delete this checkpoint, and the run goes on from the one before it."

Weights = dict[str, torch.nn.Parameter]


class SavedCallback(BaseModel):
    """What a callback saved of itself."""

    model_config = ConfigDict(strict=True)

    args: dict[str, Any]
    attributes: dict[str, Any]


class SavedState(BaseModel):
    """What a loop goes on with, of `trainer_state.json`."""

    model_config = ConfigDict(strict=True)

    global_step: NonNegativeInt
    max_steps: NonNegativeInt
    num_train_epochs: NonNegativeInt
    logging_steps: PositiveInt
    eval_steps: PositiveInt
    save_steps: PositiveInt
    train_batch_size: PositiveInt | None
    num_input_tokens_seen: NonNegativeInt
    epoch: float
    total_flos: float
    best_metric: float | None
    best_global_step: NonNegativeInt | None
    best_model_checkpoint: str | None
    log_history: list[dict[str, Any]]
    stateful_callbacks: dict[str, SavedCallback | list[SavedCallback]]


class Open(BaseModel):
    """What a step has left open when a checkpoint is written after it.

    Attributes:
        loss: sum of the losses of the steps that no record of the log has yet; of several processes, their mean.
        losses: that of each process, so that as many add up on to the same sums, to the last bit.
        steps: how many these are.
        is_unjudged: the evaluation that is due after it was not made.
    """

    model_config = ConfigDict(strict=True)

    loss: float = 0.0
    losses: list[float] = []
    steps: NonNegativeInt = 0
    is_unjudged: bool = False

    def loss_of(self, rank: int, world_size: int) -> float:
        """Return what a process goes on with; where there are other processes than there were, the mean."""
        return self.losses[rank] if len(self.losses) == world_size else self.loss


def trained_weights(model: torch.nn.Module) -> Weights:
    """Return the parameters that are trained, by name; a tied one once."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save_weights(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write trained weights into the folder of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, folder / WEIGHTS)


def load_weights(weights: Weights, folder: Path) -> None:
    """Put the weights of a checkpoint in place of those of the model.

    Raises:
        UserError: it is missing or damaged, or was made with other settings.
    """
    check_weights(path := folder / WEIGHTS)
    with safe_open(path, framework="pt") as file, torch.no_grad():
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()}
        wanted = {name: tuple(weight.shape) for name, weight in weights.items()}
        if found != wanted:
            name = min(name for name in found | wanted if found.get(name) != wanted.get(name))
            raise UserError(
                f"{path} does not fit the recipe: {name} is {found.get(name)} there and {wanted.get(name)} by "
                "recipe.yaml. Put recipe.yaml back as it was when the run began."
            )
        for name, weight in weights.items():
            weight.copy_(divided_like(weight, file.get_tensor(name)))


def check_weights(file: Path) -> None:
    """Check that the weights of a checkpoint are there, and whole.

    Raises:
        UserError: they are not.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing. Put the checkpoint back, or train again.")
    check_safetensors(file)


def checkpoint_of(checkpoints: Path, step: int | None) -> Path:
    """Return where the checkpoint of a step is."""
    return checkpoints / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def numbered(checkpoints: Path) -> dict[int, Path]:
    """Return all checkpoints of a run by step, whole or not, the last one first."""
    found = {folder.name.rpartition("-")[2]: folder for folder in checkpoints.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    steps = sorted((int(number) for number in found if number.isdecimal()), reverse=True)
    return {step: checkpoint_of(checkpoints, step) for step in steps if checkpoint_of(checkpoints, step).is_dir()}


def last_checkpoint(checkpoints: Path) -> Path | None:
    """Return the latest whole checkpoint in a folder, if any."""
    return find_last(checkpoints)[0]


def find_last(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """Return the latest whole checkpoint in a folder, if any, and what is wrong with each that is damaged after it.

    Those of older versions have no checksums: without a state they were cut off, with one they are taken for whole.
    """
    damaged: list[str] = []
    for folder in numbered(checkpoints).values():
        fault = damage_of(folder)
        if fault is None and (folder / TRAINER_STATE_NAME).is_file():
            return folder, damaged
        if fault is not None:
            damaged.append(f"{folder} is damaged: {fault}.")
    return None, damaged


def damage_of(checkpoint: Path) -> str | None:
    """Return what of a checkpoint is not as it was written; None if nothing is, or it has no checksums."""
    if not (checkpoint / SUMS).is_file():
        return None
    try:
        stamps = [(file.name, stat.st_size, stat.st_mtime_ns) for file in checkpoint.iterdir() if (stat := file.stat())]
        return _damage_of(checkpoint, tuple(sorted(stamps)))
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


@lru_cache(maxsize=16)
def _damage_of(checkpoint: Path, stamps: tuple[tuple[str, int, int], ...]) -> str | None:
    """Look once at what is asked several times on the way to a training."""
    lines = (checkpoint / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    present = {name for name, _, _ in stamps}
    if not lines:
        return f"{SUMS} is empty"
    for line in lines:
        if not (found := SUM.fullmatch(line)):
            return f"{SUMS} holds something else than checksums"
        if found[2] not in present:
            return f"{found[2]} is missing"
        if sum_of(checkpoint / found[2]) != found[1]:
            return f"{found[2]} does not hold what was written to it"
    return None


def sum_of(file: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while part := content.read(CHUNK):
            digest.update(part)
    return digest.hexdigest()


def seal(folder: Path) -> None:
    """Write the checksums of all files in the folder of a checkpoint."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    (folder / SUMS).write_text("".join(f"{sum_of(file)}  {file.name}\n" for file in files), encoding="utf-8")


@contextmanager
def writing(checkpoint: Path) -> Iterator[Path]:
    """Give all processes the folder in which they write a checkpoint; it gets its name when all of it is there.

    Where the block fails on one process, it must fail on all, as what is done `together` does.

    Raises:
        UserError: it cannot be written; what stood there is still there.
    """
    with ExitStack() as stack:
        temporary = on_main(lambda: stack.enter_context(replacing(checkpoint)))
        yield temporary
        gather([None])  # all have written
        on_main(lambda: seal(temporary))
        on_main(stack.close)


def keep_few(checkpoints: Path, step: int, best: int | None, few: int) -> None:
    """Take away the checkpoints that are no longer needed.

    Args:
        checkpoints: their folder.
        step: of the one that was just written; any after it are of a course that was left.
        best: step of the best one, which is kept.
        few: how many of the last are kept beside it.
    """
    remove_leftovers(checkpoints)
    all_of_them = numbered(checkpoints)
    kept = {best, *[number for number in all_of_them if number <= step][:few]}
    for number, folder in all_of_them.items():
        if number not in kept:
            with suppress(OSError):  # the next time, perhaps
                remove_folder(folder)


def read_open(checkpoint: Path) -> Open:
    """Return what was left open at a checkpoint; older ones tell nothing of it.

    Raises:
        UserError: it is damaged.
    """
    file = checkpoint / OPEN
    if not file.is_file():
        return Open()
    try:
        return Open.model_validate_json(file.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{file} is damaged. {REMEDY}") from None


def read_state(checkpoint: Path) -> TrainerState:
    """Return the state of the loop at a checkpoint.

    Raises:
        UserError: it is damaged.
    """
    file = checkpoint / TRAINER_STATE_NAME
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        SavedState.model_validate(values)
        state = TrainerState(**values)
        count_without_better(state)  # which is a number, where it is there
        return state
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"][:1])) or "the whole"
        raise UserError(f"{file} is damaged: {field}: {first['msg']}. {REMEDY}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}. {REMEDY}") from None


def check_resumable(checkpoints: Path) -> Path | None:
    """Return the checkpoint that a run would go on from, if any, once it is known that nothing in it does harm.

    Files that Python pickled are read, never run: they hold numbers, or they are refused.

    Raises:
        UserError: a file is damaged, or carries code.
    """
    folder = last_checkpoint(checkpoints)
    if folder is None:
        return None
    state = read_state(folder)
    if folder.name != f"checkpoint-{state.global_step}" or (state.best_global_step or 0) > state.global_step:
        raise UserError(
            f"{folder / TRAINER_STATE_NAME} is damaged: it is of step {state.global_step}, the best "
            f"of step {state.best_global_step}. {REMEDY}"
        )
    check_weights(folder / WEIGHTS)
    read_open(folder)
    for file in sorted(file for file in folder.iterdir() if file.suffix in PICKLED):
        with safe_globals():  # of NumPy, for the state of its random numbers
            check_weight_file(file, REMEDY)
            names = read_pickled(file).keys() if file.name in HOLDS else {""}
            if not names or not HOLDS.get(file.name, set()) <= names:
                raise UserError(f"{file} is damaged: something is missing in it. {REMEDY}")
    return folder


def read_pickled(file: Path) -> dict[str, Any]:
    """Return what a file of a checkpoint holds, by name, without the numbers of its tensors."""
    found = torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
    return found if isinstance(found, dict) else {}


@contextmanager
def restoring(checkpoint: Path | str) -> Iterator[None]:
    """Explain in a line what a Trainer cannot go on with.

    Raises:
        UserError: in place of whatever the block raises; what is in the files may be anything.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        raise UserError(f"{checkpoint} is damaged: {reason}. {REMEDY}") from None


def check_optimizer(optimizer: Any, scheduler: Any, checkpoint: Path) -> None:
    """Compare what was saved of an optimizer and its schedule with what would be; no numbers are read.

    Raises:
        UserError: the files are of another run, or made by hand.
    """
    file = checkpoint / OPTIMIZER_NAME
    if file.is_file():
        own = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        saved = read_pickled(file)
        parts, states = (own.parts, saved.get("parts")) if isinstance(own, Muon) else ([own], [saved])
        if not isinstance(states, list) or len(states) != len(parts) or not all(map(fits, states, parts)):
            raise UserError(f"{file} is not of this run, or damaged. {REMEDY}")
    file = checkpoint / SCHEDULER_NAME
    if file.is_file() and not alike(without_shape(read_pickled(file)), without_shape(scheduler.state_dict())):
        raise UserError(f"{file} is not of this run, or damaged. {REMEDY}")


def without_shape(saved: dict[str, Any]) -> dict[str, Any]:
    """Return what is saved of a schedule but for its shape, which the recipe may have changed since."""
    return {name: value for name, value in saved.items() if name != SHAPE}


def fits(saved: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a state is one of an optimizer: its groups, and of each weight what has its shape.

    Where it has another number of dimensions, nothing is known of its shape.
    """
    if not isinstance(saved, dict) or not alike(saved.get("param_groups"), optimizer.state_dict()["param_groups"]):
        return False
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = saved.get("state")
    if not isinstance(state, dict) or not state.keys() <= set(range(len(weights))):
        return False
    return all(
        isinstance(gathered, dict)
        and all(
            value.ndim != weights[number].ndim or value.shape == weights[number].shape
            for value in gathered.values()
            if isinstance(value, Tensor)
        )
        for number, gathered in state.items()
    )


def alike(found: Any, expected: Any) -> bool:
    """Return whether a value that was saved has the form of another: kinds, names and lengths."""
    if isinstance(expected, dict):
        same = isinstance(found, dict) and found.keys() == expected.keys()
        return same and all(alike(found[name], value) for name, value in expected.items())
    if isinstance(expected, list | tuple):
        same = isinstance(found, list | tuple) and len(found) == len(expected)
        return same and all(map(alike, found, expected))
    if isinstance(expected, int | float):
        return isinstance(found, int | float)
    return type(found) is type(expected)


def has_ended(state: TrainerState, steps: int, patience: int | None) -> bool:
    """Return whether all steps were made, or early stopping has had enough."""
    return state.global_step >= steps or (patience is not None and count_without_better(state) >= patience)


def count_without_better(state: TrainerState) -> int:
    """Return how many evaluations early stopping has counted since the best one."""
    callbacks: Any = state.stateful_callbacks
    stopper = callbacks.get(EarlyStoppingCallback.__name__, {"attributes": {}})
    return int(stopper["attributes"].get("early_stopping_patience_counter", 0))
