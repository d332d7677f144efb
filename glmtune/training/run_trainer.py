"""What a run adds to any Trainer, transformers' or trl's: a judge, a log, checkpoints, a stop and a rescue."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerState
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from glmtune.config import TrainingSettings
from glmtune.distributed import gather, is_main, on_main, world_size
from glmtune.files import check_folder, flush, remove_leftovers
from glmtune.methods import Model
from glmtune.runtime import RunFolder, Terminated, UserError
from glmtune.training import optimizers, trackers
from glmtune.training.callbacks import (
    GivenUp,
    InterruptCallback,
    LogCallback,
    ProgressBar,
    SavingByTime,
    mend_log,
)
from glmtune.training.checkpoints import (
    OPEN,
    Open,
    Weights,
    check_resumable,
    has_ended,
    keep_few,
    load_weights,
    read_state,
    save_weights,
    trained_weights,
    writing,
)
from glmtune.training.going_on import GoingOn

# Figures of a model on held-out examples. The arguments' `metric_for_best_model` names the one by which the best
# weights are chosen; `..._ci95` beside it is its interval.
Judge = Callable[[Model], dict[str, Any]]


class DivergenceError(UserError):
    """The loss or the weights are no longer numbers.

    Attributes:
        rescued: the model holds the best weights of the run again.
    """

    rescued = False


class RandomNumbers:
    """The states of all sources of random numbers, as they are when this is made."""

    def __init__(self) -> None:
        self.python, self.numpy, self.torch = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        """Put them back."""
        random.setstate(self.python)
        numpy.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


class RunTrainer(GoingOn):
    """A mixin that stands before a Trainer: `class Mine(RunTrainer, trl.GRPOTrainer)`.

    A checkpoint holds the weights that are trained, and nothing of a frozen base. The best weights are those that the
    judge likes best; the loss of held-out examples is not asked for.

    Args:
        judge: scores the model on held-out examples.
        folder: of the run; `log.jsonl` is appended to.
        settings: the optimizer, and the patience of early stopping.
        groups: of trainable parameters, as `Method.parameter_groups` gives them; default: all alike.
        options: of the Trainer, by name.
    """

    def __init__(
        self,
        *,
        judge: Judge,
        folder: RunFolder,
        settings: TrainingSettings,
        groups: list[dict[str, Any]] | None = None,
        **options: Any,
    ):
        # Unused, as the judge is asked; the Trainer wants one all the same.
        super().__init__(**{"eval_dataset": options.get("train_dataset"), **options})
        self.judge, self.folder, self.settings = judge, folder, settings
        self.groups = groups or [{"params": list(self.trained_weights().values())}]
        self.interrupt, self.bar = InterruptCallback(settings.grace_seconds), ProgressBar()
        self.saves_into: Path | None = None
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        if settings.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(settings.early_stopping_patience))
        for callback in (LogCallback(folder.log), self.bar, SavingByTime(settings.save_seconds), self.interrupt):
            self.add_callback(callback)

    def run(self) -> None:
        """Train, from the last checkpoint where there is one; the model ends with the best weights, for evaluation.

        Raises:
            KeyboardInterrupt: after Ctrl-C or SIGTERM (`Terminated`), once a checkpoint is written.
            DivergenceError: the loss is no longer a number; the model holds the best weights so far.
            UserError: the checkpoint is damaged, carries code, or the folder holds a link out of it.
        """
        check_folder(self.folder.path)
        for place in (self.folder.path, self.folder.checkpoints):
            on_main(partial(remove_leftovers, place))
        start = check_resumable(self.folder.checkpoints)
        state = read_state(start) if start else None
        model = self.unwrapped
        model.config.use_cache = False
        try:
            if state is not None and has_ended(state, self.args.max_steps, self.settings.early_stopping_patience):
                on_main(lambda: mend_log(self.folder.log))
                self.take_best(state, start)
            else:
                self.learn(start)
        except DivergenceError as error:
            raise self.rescue(error) from error
        finally:
            model.config.use_cache = True
            model.eval()
        if self.interrupt.interrupted:
            raise Terminated if self.interrupt.terminated else KeyboardInterrupt

    def learn(self, start: Path | None) -> None:
        """Make the steps from a checkpoint on, or from the first, with the recipe's trackers."""
        names = self.settings.trackers
        with self.interrupt.listening(), closing(self.bar), trackers.environment(names, self.folder.path):
            for callback in get_reporting_integration_callbacks(names):
                self.add_callback(callback)
            self.train(resume_from_checkpoint=str(start) if start else None)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Make the steps; what is given up at the end of a grace goes back to the end of the step before."""
        try:
            return super()._inner_training_loop(*args, **kwargs)
        except GivenUp:
            if self.state.global_step > self.begun_at:
                self.random_numbers.restore()
                self._save_checkpoint(self.model, None)
            return None

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Log, judge and save as is due after a step; note what is needed to come back to its end."""
        self.random_numbers, self.unlogged = RandomNumbers(), tr_loss
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)
        self.unlogged = tr_loss.clone()

    @property
    def unwrapped(self) -> Any:
        """The model itself, without what several processes put around it."""
        return self.accelerator.unwrap_model(self.model)

    # What is learned

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the recipe's optimizer for the groups of parameters; biases and norms do not decay."""
        if self.optimizer is None:
            trained: Any = self.model
            decaying = set(self.get_decay_parameter_names(trained))
            decays = {id(weight): name in decaying for name, weight in trained.named_parameters()}
            groups = [
                {
                    "params": chosen,
                    "weight_decay": self.args.weight_decay if decayed else 0.0,
                    "lr": self.args.learning_rate * group.get("lr_scale", 1.0),
                }
                for group in self.groups
                for decayed in (True, False)
                if (chosen := [weight for weight in group["params"] if decays[id(weight)] == decayed])
            ]
            self.optimizer = optimizers.create_optimizer(self.settings.optimizer, groups, trained, self.args)
        return self.optimizer

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the Trainer's own loss.

        Raises:
            DivergenceError: it is not finite; tells the step, and what is known of the examples.
        """
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        if not loss.isfinite():
            where = self.describe_batch(inputs)
            raise DivergenceError(
                f"The loss of step {self.state.global_step + 1} is {loss.item()}{f' ({where})' if where else ''}."
            )
        return result

    def describe_batch(self, inputs: Any) -> str:
        """Return which examples a batch holds, for the error about its loss."""
        return ""

    def trained_weights(self) -> Weights:
        """Return the parameters that are trained, by name."""
        return trained_weights(self.unwrapped)

    def check_weights(self) -> None:
        """Look for trained weights that are no numbers.

        Raises:
            DivergenceError: there are some.
        """
        broken = [name for name, weight in self.trained_weights().items() if not weight.isfinite().all()]
        if broken:
            raise DivergenceError(f"After step {self.state.global_step} the weights are not finite ({broken[0]} ...).")

    # How good it is

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Ask the judge, in the precision that the model is trained in.

        Raises:
            DivergenceError: the weights are no numbers.
        """
        self.check_weights()
        model, metric = self.unwrapped, str(self.args.metric_for_best_model)
        was_training = model.training
        start = time.perf_counter()
        model.eval()
        # What is given up is made up for before the next step: there must be one, whatever comes out.
        decides = self.state.global_step >= self.state.max_steps or self.settings.early_stopping_patience is not None
        with self.accelerator.autocast(), self.interrupt.giving_up(not decides and world_size() == 1):
            result = dict(self.judge(model))
        model.train(was_training)
        metrics = {f"eval_{metric}": result.pop(metric), "eval_duration": round(time.perf_counter() - start, 2)}
        low_high = dict(zip(("eval_ci95_low", "eval_ci95_high"), result.pop(f"{metric}_ci95", ()), strict=False))
        self.log({**metrics, **low_high, **{f"eval_{name}": figure for name, figure in result.items()}})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if metrics[f"eval_{metric}"] == self.state.best_metric:  # of equals the last is kept: it has learned longest
            self.state.best_global_step = self.state.global_step
        return metrics

    def take_best(self, state: TrainerState, last: Path | None = None) -> None:
        """Load the best weights of a run that has ended already, or the last where none were judged."""
        self.state = state
        self.locate_best()
        state.best_model_checkpoint = state.best_model_checkpoint or str(last)
        self._load_best_model()

    def rescue(self, error: DivergenceError) -> DivergenceError:
        """Take the best weights of a run that went astray, if there are any; return the error with what to do."""
        remedy = DivergenceError(
            f"{error} Start again with a lower training.learning_rate (it was {self.args.learning_rate:g}; try a "
            "third), a larger training.warmup_ratio or model.dtype=float32, and look at the records for something "
            "unusual."
        )
        self.locate_best()
        if self.state.best_model_checkpoint is not None:
            self._load_best_model()
            remedy.rescued = True
        return remedy

    # What is written

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        save_weights(self.trained_weights(), Path(str(output_dir or self.args.output_dir)))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.trained_weights(), Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint: whole, or not at all; and never of weights that are no numbers.

        Raises:
            UserError: it cannot be written, or a link has come into the folder, where old checkpoints are deleted.
            DivergenceError: a weight is not finite.
        """
        self.check_weights()
        check_folder(self.folder.path)
        folder, step = self.folder.checkpoints, self.state.global_step
        try:
            with self.interrupt.giving_up(False), writing(self.checkpoint_at(step)) as temporary:
                self.saves_into = temporary.parent
                super()._save_checkpoint(model, trial)
                self.write_rest(temporary)
        except (OSError, RuntimeError, SafetensorError, UserError) as error:
            free = shutil.disk_usage(self.folder.path).free // 2**20
            raise UserError(
                f"{folder}: the checkpoint of step {step} cannot be written ({free} MB free on this disk): "
                f"{error.__cause__ or error}. Make room, then go on with: glmtune train --resume {self.folder.path}"
            ) from error
        finally:
            self.saves_into = None
        on_main(lambda: keep_few(folder, step, self.state.best_global_step, self.settings.checkpoints_kept))

    def write_rest(self, checkpoint: Path) -> None:
        """Write what a step has left open, and the state with the place that the best checkpoint will have.

        The log is on the disk before the checkpoint that counts on it.
        """
        steps = self.state.global_step - self._globalstep_last_logged
        losses = gather([self.unlogged.item() if steps else 0.0])
        is_unjudged = self.interrupt.is_late and self.control.should_evaluate
        left = Open(loss=sum(losses) / len(losses), steps=steps, is_unjudged=is_unjudged)
        if (best := self.state.best_global_step) is not None:
            self.state.best_model_checkpoint = str(self.checkpoint_at(best))
        if is_main():
            (checkpoint / OPEN).write_text(left.model_dump_json() + "\n", encoding="utf-8")
            self.state.save_to_json(str(checkpoint / TRAINER_STATE_NAME))
            if self.folder.log.is_file():
                flush(self.folder.log)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.saves_into or super()._get_output_dir(trial))

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: trl puts a card into the folder of checkpoints; a run is described by its report and export."""
