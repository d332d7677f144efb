"""The loop of GRPO: what is learned of answers, by trl's loss; a checkpoint has those that it is to go on with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import trl
from datasets import Dataset
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from glmtune.inference.engine import Engine
from glmtune.methods import Model
from glmtune.objectives._grpo_answers import GroupSampler, Prompts, Sample, evaluating, sampling
from glmtune.runtime import UserError
from glmtune.terminal import say
from glmtune.training.arguments import make_arguments
from glmtune.training.callbacks import Means
from glmtune.training.checkpoints import REMEDY, Open
from glmtune.training.run_trainer import Judge, RunTrainer
from glmtune.training.trainer import computing

if TYPE_CHECKING:
    from glmtune.objectives.grpo import GrpoSettings
    from glmtune.plan import Plan

LONGER = 1.5  # times as long as another is the longest row of a batch
ROUNDED = 0.5  # nats by which padding may change the chance of a token, in whatever precision
FILE = "draw.json"  # in a checkpoint
MEASURED = {"entropy": "entropy", "kl": "kl", "clip_ratio/region_mean": "clip_ratio"}  # by trl's loss: our names


class ZeroStd(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Ends a training after so many steps in a row that nothing was learned from.

    Attributes:
        patience: how many these are.
        count: how many there have been; goes with a checkpoint.
        has_learned: whether the step at hand found something in its answers; None: it drew none.
        is_untold: the training is to end, and nobody was told why.
    """

    has_learned: bool | None = None
    is_untold = False

    def __init__(self, patience: int):
        self.patience, self.count = patience, 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.has_learned is not None:
            self.count = 0 if self.has_learned else self.count + 1
        self.has_learned = None
        if self.count >= self.patience:
            self.is_untold = True
            control.should_evaluate = control.should_save = control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"args": {"patience": self.patience}, "attributes": {"count": self.count}}


def check_head(model: Model) -> None:
    """See whether chances of tokens can be computed by the weights of the head.

    Raises:
        UserError: they are packed, or an update beside them learns.
    """
    head: Any = model.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        raise UserError(
            "method.target_modules: objective.name=grpo computes the chances of tokens by the head's own weights, and "
            "an update beside them would learn nothing. Leave the head out, as 'all-linear' does."
        )
    if not isinstance(head, nn.Linear) or not head.weight.is_floating_point():
        raise UserError(
            "model.path: the head of this model is packed, and objective.name=grpo computes the chances of tokens by "
            "its weights. Use a checkpoint whose head has 16 bits; model.bits=8 and 4 store the other layers."
        )


class Draw(BaseModel):
    """What is learned until answers are drawn again.

    Attributes:
        number: of the steps that draw, from 0.
        samples: as they are learned from.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    number: int
    samples: list[Sample]


class GrpoTrainer(RunTrainer, trl.GRPOTrainer):
    """A step draws answers, and learns from those of groups that differ, some at a time; the gradient is that of all.

    A checkpoint between steps that learn from the same answers has these, so that a run goes on as if never stopped.

    Args:
        plan: everything decided.
        model: with the method applied.
        judge: scores the model on held-out examples.
        settings: of the objective.
        prompts: what is asked.
    """

    def __init__(self, plan: Plan, model: Model, judge: Judge, settings: GrpoSettings, prompts: Prompts):
        recipe = plan.recipe
        self.plan, self.options = plan, settings
        self.per_batch = recipe.training.batch_size
        self.samples: list[Sample] = []  # of the answers at hand
        self.batches: list[dict[str, Any]] = []  # of these
        self.drawn: int | None = None  # the number of the draw that they are from
        super().__init__(
            judge=judge,
            folder=plan.folder,
            settings=recipe.training,
            groups=plan.method.parameter_groups(model),
            model=model,
            args=make_arguments(
                recipe,
                plan.steps,
                plan.folder.checkpoints,
                model.device,
                trl.GRPOConfig,
                per_device_train_batch_size=recipe.training.examples_per_step,
                per_device_eval_batch_size=settings.num_generations,
                gradient_accumulation_steps=1,  # what a device holds at a time is divided here, not by the Trainer
                num_generations=settings.num_generations,
                max_completion_length=recipe.generation.longest,
                temperature=settings.temperature,
                loss_type=settings.loss_type,
                epsilon=settings.epsilon,
                epsilon_high=settings.epsilon_high,
            ),
            train_dataset=Dataset.from_dict({"prompt": [""] * plan.steps}),  # which prompts are asked, a step knows
            processing_class=plan.tokenizer,
            reward_funcs=[unused],
        )
        self.current_gradient_accumulation_steps = 1
        self.beta = settings.beta  # trl would load a model to compare with; the weights that learn are all that differs
        weights = self.trained_weights() if settings.beta else {}
        self.start_weights = {name: weight.detach().clone() for name, weight in weights.items()}
        self.answers = GroupSampler(
            Engine(self.unwrapped, plan.tokenizer, plan.model.limit),
            plan.task,
            prompts,
            settings,
            sampling(recipe, settings),
            self.args.seed,
            plan.tokenizer.bos_token_id,
        )
        self.placing: RemovableHandle | None = None
        self.add_callback(ZeroStd(settings.zero_std_patience))
        self.add_callback(Means([*self.answers.names, *MEASURED.values()]))

    def _send_telemetry(self) -> None:
        """Send nothing."""

    def get_train_dataloader(self) -> Any:
        """Return as many batches of nothing as there are steps."""
        return DataLoader(range(self.args.max_steps), batch_size=1, collate_fn=list)  # type: ignore[arg-type]

    def run(self) -> None:
        """Train; the model's own `forward` is put back afterwards.

        Raises:
            UserError: as every run, or a reward fails; or the model reads padded prompts otherwise.
            KeyboardInterrupt: after Ctrl-C or SIGTERM (`Terminated`), once a checkpoint is written.
        """
        try:
            self.check_padding()
            super().run()
        finally:
            self.take_off_wrapper()
            vars(base_of(self.unwrapped)).pop("forward", None)
            if self.placing is not None:
                self.placing.remove()

    def check_padding(self) -> None:
        """See whether a token is as likely beside a longer prompt, for which its own is padded, as alone.

        trl passes no positions. Where it matters how many columns stand before a row, as behind a prefix or with
        positions that were learned (GPT-2), each token is given its own.

        Raises:
            UserError: the model reads padded prompts otherwise all the same.
        """
        if self.read_otherwise() > ROUNDED:
            self.placing = base_of(self.unwrapped).register_forward_pre_hook(placed, with_kwargs=True)
        if self.placing is not None and (apart := self.read_otherwise()) > ROUNDED:
            raise UserError(
                f"model.path: objective.name=grpo pads prompts on the left, and beside a longer one this model "
                f"({self.unwrapped.config.model_type}) finds tokens {apart:.1f} nats more or less likely than alone. "
                "Choose another model, or objective.name=rejection."
            )

    def read_otherwise(self) -> float:
        """Return by how many nats a longer prompt in the batch changes the chance of a token."""
        first = [int(token) for token in self.plan.dataset[0]["input_ids"]]
        bos = self._tokenizer.bos_token_id
        cut = first.index(bos) + 1 if bos in first[1:] else len(first) // 2
        middle = max(0, cut - 2) // 2  # before what begins an answer
        short = Sample(first[:cut], first[cut:], 0.0)
        longer = Sample([*first[:middle], *[first[middle]] * 4, *first[middle:cut]], first[cut:], 0.0)
        if not short.token_ids:
            return 0.0
        with self.judged():
            alone, beside = (self.logps(self.padded(rows))[0] for rows in ([short], [short, longer]))
        return (alone - beside).abs().max().item()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; every pass, those of answers and of the judge too, is autocast where the base has 16 bits."""
        with computing(self.unwrapped, self.args):
            return super().train(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Draw answers where it is time, and add up the gradients of all that is learned from them."""
        self.take_off_wrapper()
        number, iteration = divmod(self.state.global_step, self.options.num_iterations)
        figures: dict[str, float] = {}
        if iteration == 0 or (self.drawn != number and not self.take_draw(number)):
            with self.judged():
                samples, figures = self.answers.draw(number)
                self.samples = self.measured(samples)
            self.drawn, self.batches = number, self.batches_of(self.samples)
            self.zero_std.has_learned = bool(samples)
        loss = torch.zeros((), device=self.args.device)
        seen: list[tuple[int, dict[str, float]]] = []
        for batch in self.batches:
            loss = loss + super().training_step(model, dict(batch), None)
            seen.append((int(batch["completion_mask"].sum()), self.take_metrics()))
        if not self.batches and self.args.fp16:  # whose scale of gradients wants some to look at
            for weight in self.trained_weights().values():
                weight.grad = torch.zeros_like(weight)
        self.means.add({**figures, **mean_by_tokens(seen)})
        return loss

    def take_off_wrapper(self) -> None:
        """Take accelerate's wrapper off, which turns all that a model gives to fp32; trl's below it stays."""
        model = self.unwrapped
        if (forward := vars(model).pop("_original_forward", None)) is not None:
            model.forward = forward

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Let the model answer as it is judged: in the precision that it is trained in, and nothing is dropped."""
        with self.accelerator.autocast(), evaluating(self.unwrapped):
            yield

    @property
    def zero_std(self) -> ZeroStd:
        """What counts the steps that nothing was learned from; a checkpoint that is gone on from brings its own."""
        return next(one for one in self.callback_handler.callbacks if isinstance(one, ZeroStd))

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Log, judge and save as is due; tell of a training that ends as it learns nothing any more."""
        if self.zero_std.is_untold:
            stopped: dict[str, Any] = {"stopped": (why := self.describe_stop(self.zero_std.patience))}
            is_due = self.control.should_log
            self.log(stopped)
            self.control.should_log, self.zero_std.is_untold = is_due, False
            say(f"\n{why}", error=True)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def describe_stop(self, steps: int) -> str:
        """Return why a training ends that learns nothing more, and what could be done."""
        best = self.state.best_metric
        held_out = "" if best is None else f" Held out, the best weights so far answered {best:.1%} rightly."
        return (
            f"Step {self.state.global_step}: in {steps} steps, refilled {self.options.max_refills} times each, all "
            f"answers to each prompt were equally good, or cut off: nothing is learned any more.{held_out} If that is "
            "not enough: "
            "draw harder prompts or more answers (objective.num_generations), raise objective.temperature, or teach "
            "more by objective.name=sft."
        )

    # What is learned

    def measured(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return samples, those of similar lengths beside each other, with the log-probabilities that are compared."""
        ordered = sorted(samples, key=lambda sample: sample.length)
        for places in alike(ordered, self.per_batch):
            batch = self.padded(ordered[places])
            if self.options.num_iterations > 1:
                ordered[places] = self.with_logps("old_logps", ordered[places], batch)
            if self.start_weights:
                with self.as_it_was():
                    ordered[places] = self.with_logps("start_logps", ordered[places], batch)
        return ordered

    def with_logps(self, field: str, samples: Sequence[Sample], batch: Mapping[str, Any]) -> list[Sample]:
        """Return the samples of a batch with the log-probabilities that the weights give their answers now."""
        rows = self.logps(batch).float().tolist()
        return [one._replace(**{field: row[: len(one.token_ids)]}) for one, row in zip(samples, rows, strict=True)]

    def batches_of(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Return samples, as they are ordered, as batches that a device can hold and trl's loss takes."""
        tokens = torch.tensor(sum(len(sample.token_ids) for sample in samples), device=self.args.device)
        batches = []
        for places in alike(samples, self.per_batch):
            part = samples[places]
            batch = {**self.padded(part), "num_items_in_batch": tokens, "share": 1.0}
            if self.loss_type != "dapo":  # these are means over the samples of a batch
                batch["share"] = len(part) / len(samples)
            batches.append(batch)
        return batches

    def padded(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return prompts (B, P), padded on the left, answers (B, T), on the right, their masks and (B,) advantages.

        Where samples have log-probabilities to compare with, these are (B, T) as well.
        """
        prompts, answers = [[*one.input_ids] for one in samples], [[*one.token_ids] for one in samples]
        before, behind = max(map(len, prompts)), max(map(len, answers))
        pad = self._tokenizer.pad_token_id
        rows = {
            "prompt_ids": [[pad] * (before - len(ids)) + ids for ids in prompts],
            "prompt_mask": [[0] * (before - len(ids)) + [1] * len(ids) for ids in prompts],
            "completion_ids": [ids + [pad] * (behind - len(ids)) for ids in answers],
            "completion_mask": [[1] * len(ids) + [0] * (behind - len(ids)) for ids in answers],
            "advantages": [one.advantage for one in samples],
        }
        compared = {"old": [one.old_logps for one in samples], "ref": [one.start_logps for one in samples]}
        for name, logps in compared.items():
            if any(logps):
                rows[f"{name}_per_token_logps"] = [[*row] + [0.0] * (behind - len(row)) for row in logps]
        return {name: torch.tensor(values, device=self.args.device) for name, values in rows.items()}

    @torch.no_grad()
    def logps(self, batch: Mapping[str, Any]) -> Tensor:
        """Return (B, T) the log-probabilities that the weights give the answers now."""
        parts = [torch.cat([batch[f"prompt_{what}"], batch[f"completion_{what}"]], dim=1) for what in ("ids", "mask")]
        found = self._get_per_token_logps_and_entropies(self.unwrapped, *parts, batch["completion_ids"].shape[1])
        logps: Tensor = found[0]
        return logps

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Let the weights be what they were before the training."""
        weights = self.trained_weights()
        now = {name: weight.data for name, weight in weights.items()}
        try:
            for name, weight in weights.items():
                weight.data = self.start_weights[name]
            yield
        finally:
            for name, weight in weights.items():
                weight.data = now[name]

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Return a batch as it is: it was drawn and scored before."""
        return inputs

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a batch's part of the loss of a step.

        Raises:
            DivergenceError: it is not finite.
        """
        return super().compute_loss(model, inputs, *args, **kwargs) * inputs["share"]

    def describe_batch(self, inputs: Any) -> str:
        """Return the first prompt of a batch, for the error about its loss."""
        return f"answers to {self._tokenizer.decode(inputs['prompt_ids'][0], skip_special_tokens=True)!r} and others"

    # What is logged

    def take_metrics(self) -> dict[str, float]:
        """Return what trl's loss has measured of a batch, once."""
        metrics = self._metrics["train"]
        taken = {name: metrics[theirs][-1] for theirs, name in MEASURED.items() if metrics.get(theirs)}
        metrics.clear()
        return taken

    @property
    def means(self) -> Means:
        """What is logged next; a checkpoint that is gone on from brings its own."""
        return next(one for one in self.callback_handler.callbacks if isinstance(one, Means))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; beside a loss stand the means of what was measured in its steps."""
        super().log({**logs, **self.means.take()} if "loss" in logs else logs, *args, **kwargs)

    # What a checkpoint has

    def write_rest(self, checkpoint: Path, left: Open) -> None:
        """Write the answers that the next step learns from as well, beside the state."""
        if self.state.global_step % self.options.num_iterations:
            assert self.drawn is not None, "a step was made"
            draw = Draw(number=self.drawn, samples=self.samples)
            (checkpoint / FILE).write_text(draw.model_dump_json() + "\n", encoding="utf-8")
        super().write_rest(checkpoint, left)

    def take_draw(self, number: int) -> bool:
        """Go on with the answers of the checkpoint at hand; return whether it has some: older ones have none.

        Raises:
            UserError: they are damaged, or others.
        """
        file = self.checkpoint_at(self.state.global_step) / FILE
        if not file.is_file():
            return False
        self.samples = read_draw(file, number, self.unwrapped.get_input_embeddings().num_embeddings)
        self.drawn, self.batches = number, self.batches_of(self.samples)
        return True


def read_draw(file: Path, number: int, vocabulary: int) -> list[Sample]:
    """Return what a checkpoint has of a draw.

    Raises:
        UserError: it is damaged, or of another draw.
    """
    try:
        draw = Draw.model_validate_json(file.read_text(encoding="utf-8"))
        if draw.number != number:
            raise ValueError(f"it is of draw {draw.number + 1}, not {number + 1}")
        for one in draw.samples:
            written = len(one.token_ids)
            if not written or not one.input_ids or {len(one.old_logps), len(one.start_logps)} - {0, written}:
                raise ValueError("a sample is not whole")
            if not all(0 <= token < vocabulary for token in (*one.input_ids, *one.token_ids)):
                raise ValueError("a token is none of the model's")
        return draw.samples
    except (OSError, UnicodeDecodeError, ValidationError, ValueError) as error:
        raise UserError(f"{file} is damaged: {str(error).splitlines()[0]}. {REMEDY}") from None


def alike(samples: Sequence[Sample], most: int) -> Iterator[slice]:
    """Yield the places of samples, ordered by length, that are learned from at a time.

    None of them is much longer than another: rows are padded, and attention costs the square of their length.

    Args:
        samples: the shortest first.
        most: that a device holds.
    """
    start = 0
    while start < len(samples):
        longest, end = LONGER * samples[start].length, start + 1
        while end < min(start + most, len(samples)) and samples[end].length <= longest:
            end += 1
        yield slice(start, end)
        start = end


def unused(**_: Any) -> list[float]:
    """Stand for rewards where trl asks for functions; answers are scored before."""
    raise AssertionError("answers are scored by GroupSampler.ask")


def placed(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Give tokens their positions in their rows, whose prompts are padded on the left; see `check_padding`."""
    ids, mask, cache = kwargs.get("input_ids"), kwargs.get("attention_mask"), kwargs.get("past_key_values")
    if ids is None or mask is None or kwargs.get("position_ids") is not None or ids.shape[1] == 1:
        return None
    before = 0 if cache is None else cache.get_seq_length()
    own = mask[:, -ids.shape[1] :]
    return args, {**kwargs, "position_ids": (own.cumsum(-1) - 1).clamp(min=0) + before}


def base_of(model: Any) -> Any:
    """Return the model itself, without an adapter."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def mean_by_tokens(measured: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Return means over batches, each counted by its tokens."""
    total = sum(tokens for tokens, _ in measured)
    names = measured[0][1] if measured else {}
    return {name: sum(tokens * figures[name] for tokens, figures in measured) / total for name in names}
