"""What a run goes on with from a checkpoint: what was gathered there, by the recipe as it is now.

A checkpoint may come from a stranger; what a Trainer would load, whatever it is, is looked at first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import ExportableState

from glmtune.config import TrainingSettings
from glmtune.distributed import is_main, on_main, rank, world_size
from glmtune.runtime import RunFolder, UserError
from glmtune.terminal import say
from glmtune.training.checkpoints import (
    REMEDY,
    Open,
    alike,
    check_optimizer,
    checkpoint_of,
    damage_of,
    read_open,
    restoring,
)
from glmtune.training.sharding import is_sharded, load_state

if TYPE_CHECKING:
    Base = Trainer
else:
    Base = object


class GoingOn(Base):
    """A mixin that stands before a Trainer.

    Attributes:
        folder: of the run.
        settings: of its training, as the recipe has them now.
        begun_at: step of the checkpoint that it went on from.
        left_open: there, and not yet made up for.
    """

    folder: RunFolder
    settings: TrainingSettings
    begun_at: int
    left_open: Open

    def _init_training_state(self, max_steps: int, *others: Any) -> Any:
        """Go on from a checkpoint's state, with the intervals and the patience of the recipe as it is now."""
        begun = super()._init_training_state(max_steps, *others)
        self.begun_at = self.state.global_step
        self.left_open = read_open(checkpoint) if (checkpoint := self.checkpoint_at(self.begun_at)).is_dir() else Open()
        self.args.eval_on_start = self.left_open.is_unjudged
        self.locate_best()
        self.state.compute_steps(self.args, max_steps)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback) and self.settings.early_stopping_patience is not None:
                callback.early_stopping_patience = self.settings.early_stopping_patience
        return begun

    def checkpoint_at(self, step: int | None) -> Path:
        """Return where the checkpoint of a step is, or would be."""
        return checkpoint_of(self.folder.checkpoints, step)

    def locate_best(self) -> None:
        """Find the checkpoint of the best weights where the run folder is now; a state names it as it was then.

        Where it is damaged, or gone, the best are those from here on.
        """
        self.state.best_model_checkpoint = None
        if self.state.best_global_step is None:
            return
        best = self.checkpoint_at(self.state.best_global_step)
        fault = on_main(lambda: damage_of(best) if best.is_dir() else "it is gone")  # for all, so that they agree
        if fault is None:
            self.state.best_model_checkpoint = str(best)
            return
        if is_main():
            say(
                f"The best weights so far, {best}, cannot be used: {fault}. The best from here on are taken.",
                error=True,
            )
        self.state.best_metric = self.state.best_global_step = None

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Make a step; to the loss of the first one, those are added that were not logged before the stop."""
        loss = super().training_step(*args, **kwargs)
        if self.left_open.steps:
            loss = loss + self.left_open.loss_of(rank(), world_size())
            self._globalstep_last_logged -= self.left_open.steps
            self.left_open = Open()
        return loss

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; what was left unjudged at a stop is compared with the best weights now."""
        metrics = super()._evaluate(*args, **kwargs)
        if self.left_open.is_unjudged:
            self.left_open.is_unjudged = False
            self._determine_best_metric(metrics=metrics, trial=None)
        return metrics

    def _load_callback_state(self) -> None:
        """Go on with what the callbacks have counted; one that is new has counted nothing.

        Raises:
            UserError: what was saved of a callback is not what it would save.
        """
        saved: dict[str, Any] = self.state.stateful_callbacks  # type: ignore[assignment]
        for callback in (*self.callback_handler.callbacks, self.control):
            if not isinstance(callback, ExportableState):
                continue
            name, own = type(callback).__name__, callback.state()
            found = saved.setdefault(name, own)
            if not all(alike(one, own) for one in (found if isinstance(found, list) and found else [found])):
                raise UserError(f"The state of {name} in the last checkpoint is damaged. {REMEDY}")
        super()._load_callback_state()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Go on with what the optimizer has gathered, and at the rates of the recipe as it is now.

        The learning rate of each step from here on is the one that the recipe would have had there from the beginning.

        Raises:
            UserError: the files are damaged, or of another run.
        """
        if checkpoint is None:
            return
        with restoring(checkpoint):
            optimizer: Any = self.optimizer
            groups = optimizer.param_groups
            fresh = [{name: value for name, value in group.items() if name != "params"} for group in groups]
            check_optimizer(optimizer, self.lr_scheduler, Path(checkpoint))
            schedule: Any = self.lr_scheduler
            if is_sharded(self.model):
                load_state(optimizer, Path(checkpoint) / OPTIMIZER_NAME)
                schedule.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
            else:
                super()._load_optimizer_and_scheduler(checkpoint)
            schedule.base_lrs = [settings["initial_lr"] for settings in fresh]
            schedule._last_lr = [  # which is what the log shows
                base * share(schedule.last_epoch)
                for base, share in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            ]
            for group, settings, rate in zip(optimizer.param_groups, fresh, schedule.get_last_lr(), strict=True):
                group.update({**settings, "lr": rate})

    def _load_scaler(self, checkpoint: str | None) -> None:
        with restoring(str(checkpoint)):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with restoring(str(checkpoint)):
            super()._load_rng_state(checkpoint)
