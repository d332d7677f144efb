"""What a run adds to any Trainer, transformers' or trl's: a judge, a log, checkpoints, a stop and a rescue."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import EarlyStoppingCallback, TrainerState
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from glmtune import distributed
from glmtune.config import TrainingSettings
from glmtune.files import check_folder, flush, remove_leftovers
from glmtune.methods import Model
from glmtune.runtime import RunFolder, Terminated, UserError
from glmtune.training import optimizers, sharding, trackers
from glmtune.training.callbacks import (
    CI95,
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
# weights are chosen; `..._ci95` beside one is its interval, `n` how many examples they are of.
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
        self.is_sharded = sharding.is_sharded(self.model)
        if self.is_sharded:  # accelerate is not to wrap it once more
            self.is_distributed_loading_by_transformers = True
        self.in_one_piece: tuple[dict[str, torch.Tensor], dict[str, Any]] | None = None  # of a checkpoint being saved
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
        distributed.together(lambda: check_folder(self.folder.path))
        for place in (self.folder.path, self.folder.checkpoints):
            distributed.on_main(partial(remove_leftovers, place))
        start = distributed.together(lambda: check_resumable(self.folder.checkpoints))
        state = read_state(start) if start else None
        model = self.unwrapped
        model.config.use_cache = False
        try:
            if state is not None and has_ended(state, self.args.max_steps, self.settings.early_stopping_patience):
                distributed.on_main(lambda: mend_log(self.folder.log))
                self.take_best(state, start)
            else:
                self.learn(start)
        except DivergenceError as error:
            raise self.rescue(error) from error
        finally:
            model.config.use_cache = True
            model.eval()
        terminated = distributed.anywhere(self.interrupt.terminated)
        if distributed.anywhere(self.interrupt.interrupted):
            raise Terminated if terminated else KeyboardInterrupt

    def learn(self, start: Path | None) -> None:
        """Make the steps from a checkpoint on, or from the first, with the recipe's trackers."""
        names = self.settings.trackers
        if distributed.rank():  # what one drops is not what all drop
            torch.manual_seed(self.args.seed + distributed.rank())
        with self.interrupt.listening(), closing(self.bar), trackers.environment(names, self.folder.path):
            for callback in get_reporting_integration_callbacks(names):
                self.add_callback(callback)
            self.train(resume_from_checkpoint=str(start) if start else None)

    def _prepare_for_training(self, *arguments: Any) -> Any:
        """Wrap the model as its Trainer does; with several processes, see that it is wrapped."""
        prepared = super()._prepare_for_training(*arguments)
        is_kept_together = isinstance(self.model_wrapped, DistributedDataParallel) or self.is_sharded
        if distributed.world_size() > 1 and not is_kept_together:
            raise RuntimeError("several processes, and nothing keeps their weights together: a fault of glmtune")
        return prepared

    def give_back(self) -> None:
        """Give back the memory of what only training needs."""
        self.optimizer = self.lr_scheduler = None
        self.accelerator.free_memory()

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
        lost = not loss.isfinite()
        if distributed.anywhere(lost):  # all end at the same pass
            where = self.describe_batch(inputs)
            found = distributed.gather([f"{loss.item()}{f' ({where})' if where else ''}" if lost else ""])
            raise DivergenceError(
                f"The loss of step {self.state.global_step + 1} is {' and '.join(filter(None, found))}."
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
        weights = self.trained_weights()
        broken = [name for name, weight in weights.items() if not sharding.local(weight.detach()).isfinite().all()]
        if distributed.anywhere(bool(broken)):
            first = next(filter(None, distributed.gather([broken[0] if broken else ""])))
            raise DivergenceError(f"After step {self.state.global_step} the weights are not finite ({first} ...).")

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
        may = not decides and distributed.world_size() == 1
        if not (decides or may) and distributed.anywhere(self.interrupt.terminated):
            self.interrupt.is_late = True  # for all of them
            raise GivenUp
        with self.accelerator.autocast(), sharding.put_together(model), self.interrupt.giving_up(may):
            result = dict(self.judge(model))
        model.train(was_training)
        metrics = {f"eval_{metric}": result.pop(metric), "eval_duration": round(time.perf_counter() - start, 2)}
        intervals = [name for name in result if name.endswith(CI95)]  # which trackers take as two figures
        for name in intervals:
            result |= zip((f"{name}_low", f"{name}_high"), result.pop(name), strict=True)
        self.log({**metrics, **{f"eval_{name}": figure for name, figure in result.items()}})
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
        def write() -> None:
            if distributed.is_main():  # the Trainer calls this on every process
                weights: Mapping[str, torch.Tensor] = self.trained_weights()
                if self.in_one_piece is not None:
                    weights = self.in_one_piece[0]
                save_weights(weights, Path(str(output_dir or self.args.output_dir)))

        distributed.together(write)  # it waits for all of them next

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.in_one_piece is None:
            super()._save_optimizer_and_scheduler(output_dir)
        elif distributed.is_main():
            schedule: Any = self.lr_scheduler
            torch.save(self.in_one_piece[1], Path(output_dir) / OPTIMIZER_NAME)
            torch.save(schedule.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _defer_fsdp_gradient_reduction(self) -> Any:
        """Sum divided gradients after each micro-batch: whole ones are never kept."""
        return nullcontext()

    def _clip_grad_norm(self, model: Any) -> Any:
        """Return the norm of all gradients; of divided ones, it is put together."""
        return sharding.whole(super()._clip_grad_norm(model))

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
        distributed.together(lambda: check_folder(self.folder.path))
        folder, step, left = self.folder.checkpoints, self.state.global_step, self.leave_open()
        save = super()._save_checkpoint

        def write() -> None:
            save(model, trial)  # each process writes its random numbers, the main one the rest
            self.write_rest(temporary, left)

        if self.is_sharded:  # all take part in this, and it fails on none
            weights = sharding.whole_weights(self.trained_weights())
            self.in_one_piece = weights, sharding.whole_state(self.optimizer)
        try:
            with self.interrupt.giving_up(False), writing(self.checkpoint_at(step)) as temporary:
                self.saves_into = temporary.parent
                distributed.together(write)
        except (OSError, RuntimeError, SafetensorError, UserError) as error:
            raise UserError(distributed.on_main(partial(self.describe_unwritten, error))) from error
        finally:
            self.saves_into = self.in_one_piece = None
        distributed.on_main(lambda: keep_few(folder, step, self.state.best_global_step, self.settings.checkpoints_kept))

    def describe_unwritten(self, error: Exception) -> str:
        """Return what to tell of a checkpoint that cannot be written."""
        free = shutil.disk_usage(self.folder.path).free // 2**20
        return (
            f"{self.folder.checkpoints}: the checkpoint of step {self.state.global_step} cannot be written ({free} MB "
            f"free on this disk): {error.__cause__ or error}. Make room, then go on with: glmtune train --resume "
            f"{self.folder.path}"
        )

    def leave_open(self) -> Open:
        """Return what the step at hand leaves open; all processes ask at the same time."""
        steps = self.state.global_step - self._globalstep_last_logged
        losses = distributed.gather([self.unlogged.item() if steps else 0.0])
        is_unjudged = self.interrupt.is_late and self.control.should_evaluate
        return Open(loss=sum(losses) / len(losses), losses=losses, steps=steps, is_unjudged=is_unjudged)

    def write_rest(self, checkpoint: Path, left: Open) -> None:
        """Write what a step has left open, and the state with the place that the best checkpoint will have.

        The log is on the disk before the checkpoint that counts on it.
        """
        if (best := self.state.best_global_step) is not None:
            self.state.best_model_checkpoint = str(self.checkpoint_at(best))
        if distributed.is_main():
            (checkpoint / OPEN).write_text(left.model_dump_json() + "\n", encoding="utf-8")
            self.state.save_to_json(str(checkpoint / TRAINER_STATE_NAME))
            if self.folder.log.is_file():
                flush(self.folder.log)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.saves_into or super()._get_output_dir(trial))

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: trl puts a card into the folder of checkpoints; a run is described by its report and export."""
