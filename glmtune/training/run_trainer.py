"""What a run adds to any Trainer, transformers' or trl's: a judge, a log, checkpoints, a stop and a rescue."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.nn.parallel import DistributedDataParallel
from transformers import EarlyStoppingCallback, TrainerState
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from glmtune import distributed
from glmtune.config import TrainingSettings
from glmtune.files import check_folder
from glmtune.methods import Model
from glmtune.runtime import RunFolder, UserError
from glmtune.training import optimizers, sharding, trackers
from glmtune.training.callbacks import InterruptCallback, LogCallback, ProgressBar
from glmtune.training.checkpoints import (
    Weights,
    check_resumable,
    has_ended,
    load_weights,
    read_state,
    save_weights,
    trained_weights,
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
        self.interrupt, self.bar = InterruptCallback(), ProgressBar()
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        if settings.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(settings.early_stopping_patience))
        for callback in (LogCallback(folder.log), self.bar, self.interrupt):
            self.add_callback(callback)

    def run(self) -> None:
        """Train, from the last checkpoint where there is one; the model ends with the best weights, for evaluation.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
            DivergenceError: the loss is no longer a number; the model holds the best weights so far.
            UserError: the checkpoint is damaged, carries code, or the folder holds a link out of it.
        """
        check_folder(self.folder.path)
        start = check_resumable(self.folder.checkpoints)
        state = read_state(start) if start else None
        model = self.unwrapped
        model.config.use_cache = False
        try:
            if state is not None and has_ended(state, self.args.max_steps, self.settings.early_stopping_patience):
                self.take_best(state, start)
            else:
                self.learn(start)
        except DivergenceError as error:
            raise self.rescue(error) from error
        finally:
            model.config.use_cache = True
            model.eval()
        if distributed.anywhere(self.interrupt.interrupted):
            raise KeyboardInterrupt

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
        with self.accelerator.autocast(), sharding.put_together(model):
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
        if self.state.best_global_step is not None:
            self.take_best(self.state)
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
        """Save a checkpoint: whole, or not at all where the disk is full; and never of weights that are no numbers.

        Raises:
            UserError: it cannot be written, or a link has come into the folder, where old checkpoints are deleted.
            DivergenceError: a weight is not finite.
        """
        self.check_weights()
        check_folder(self.folder.path)
        save = super()._save_checkpoint
        if self.is_sharded:  # all take part in this, and it fails on none
            weights = sharding.whole_weights(self.trained_weights())
            self.in_one_piece = weights, sharding.whole_state(self.optimizer)
        try:
            distributed.together(lambda: save(model, trial))  # each writes its random numbers, the main one the rest
        except (OSError, RuntimeError, SafetensorError, UserError) as error:
            raise UserError(distributed.on_main(partial(self._remove_half, error))) from error
        finally:
            self.in_one_piece = None

    def _remove_half(self, error: Exception) -> str:
        """Take away what was written of a checkpoint, and return what to tell of it."""
        folder, step = self.folder.checkpoints, self.state.global_step
        shutil.rmtree(folder / f"checkpoint-{step}", ignore_errors=True)
        free = shutil.disk_usage(folder).free // 2**20
        return (
            f"{folder}: the checkpoint of step {step} cannot be written ({free} MB free on this disk): {error}. Make "
            f"room, then go on with: glmtune train --resume {self.folder.path}"
        )

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: trl puts a card into the folder of checkpoints; a run is described by its report and export."""
