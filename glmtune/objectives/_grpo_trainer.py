"""The loop of GRPO: answers from the weights that are trained, scored by the task, learned by trl's loss."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import trl
from datasets import Dataset
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from glmtune.config import GenerationSettings, Recipe
from glmtune.inference.engine import Engine
from glmtune.inference.rollouts import Rollout, pass_at_k, roll_out
from glmtune.methods import Model
from glmtune.objectives._rewards import Rewards
from glmtune.runtime import UserError
from glmtune.terminal import say
from glmtune.training.arguments import make_arguments
from glmtune.training.run_trainer import Judge, RunTrainer
from glmtune.training.trainer import computing

if TYPE_CHECKING:
    from glmtune.objectives.grpo import GrpoSettings, Prompts
    from glmtune.plan import Plan

EQUAL = 1e-8  # rewards that differ by less are equal
SMALL = 1e-4  # beside a standard deviation that is divided by, as trl has it
ROUNDED = 0.5  # nats by which padding may change the chance of a token, in whatever precision


class Sample(NamedTuple):
    """One turn of the model: what it was asked, what it wrote, and how much better than others of its group it is."""

    input_ids: Sequence[int]
    token_ids: Sequence[int]
    advantage: float


@dataclass(frozen=True)
class Group:
    """The answers to one prompt.

    Attributes:
        rollouts: the answers.
        values: of each, what every reward gives, by name.
        totals: of each, the sum by the weights.
    """

    rollouts: Sequence[Rollout]
    values: Sequence[Mapping[str, float]]
    totals: Sequence[float]

    @property
    def varies(self) -> bool:
        """Whether one answer is better than another."""
        return max(self.totals) - min(self.totals) > EQUAL


class ZeroStd(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Ends a training after so many steps in a row that nothing was learned from.

    Attributes:
        patience: how many these are.
        count: how many there have been; goes with a checkpoint.
    """

    def __init__(self, patience: int):
        self.patience, self.count = patience, 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.count >= self.patience:
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


def sampling(recipe: Recipe, settings: GrpoSettings) -> GenerationSettings:
    """Return how the answers are drawn that are learned from."""
    generation = recipe.generation
    return GenerationSettings(
        max_new_tokens=generation.longest,
        batch_size=generation.batch_size,
        do_sample=True,
        temperature=settings.temperature,
        top_p=settings.top_p,
    )


def probe(plan: Plan, model: Model, settings: GrpoSettings) -> dict[str, float]:
    """Return what several answers to each of some held-out prompts are worth.

    Raises:
        UserError: a reward fails, or gives no finite number.
    """
    engine, recipe, rewards = Engine(model, plan.tokenizer, plan.model.limit), plan.recipe, Rewards(settings.rewards)
    examples, k = plan.held_out[: settings.num_probed], settings.num_generations
    dtype = torch.bfloat16 if recipe.model.dtype == "bfloat16" else torch.float16
    with torch.autocast(model.device.type, dtype, enabled=recipe.model.dtype != "float32"), evaluating(model):
        answered = roll_out(engine, plan.task, examples, sampling(recipe, settings), k, seed=recipe.seed)
    groups = [graded(rewards, group) for group in answered]
    figures = {
        "prompts": len(groups),
        "pass_at_1": pass_at_k(answered, 1),
        f"pass_at_{k}": pass_at_k(answered, k),
        "frac_reward_zero_std": zero_std(groups),
    }
    for name in rewards.functions:
        values = [value[name] for group in groups for value in group.values]
        figures[f"rewards/{name}"] = statistics.fmean(values)
        if max(values) - min(values) <= EQUAL:
            figures[f"rewards/{name}/constant"] = 1
    return figures


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Let a model answer as it is evaluated: nothing is dropped at random."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def graded(rewards: Rewards, rollouts: Sequence[Rollout]) -> Group:
    """Return the answers to a prompt with what they are worth."""
    values = [rewards.values(rollout) for rollout in rollouts]
    return Group(rollouts, values, [rewards.total(value) for value in values])


def zero_std(groups: Sequence[Group]) -> float:
    """Return the share of groups whose answers are all equally good."""
    return statistics.fmean(not group.varies for group in groups)


class GrpoTrainer(RunTrainer, trl.GRPOTrainer):
    """A step draws answers, and learns from those of groups that differ, some at a time; the gradient is that of all.

    Args:
        plan: everything decided.
        model: with the method applied.
        judge: scores the model on held-out examples.
        settings: of the objective.
        prompts: what is asked.
    """

    def __init__(self, plan: Plan, model: Model, judge: Judge, settings: GrpoSettings, prompts: Prompts):
        recipe = plan.recipe
        self.plan, self.options, self.prompts = plan, settings, prompts
        self.rewards, self.sampling = Rewards(settings.rewards), sampling(recipe, settings)
        self.per_batch = recipe.training.batch_size
        self.batches: list[dict[str, Any]] = []  # of the answers at hand
        self.drawn: int | None = None  # the number of the draw that they are from
        self.figures: list[dict[str, float]] = []  # of steps that are not logged yet
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
        self.engine = Engine(self.unwrapped, plan.tokenizer, plan.model.limit)
        self.placing: RemovableHandle | None = None
        self.add_callback(ZeroStd(settings.zero_std_patience))

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
        with self.accelerator.autocast(), evaluating(self.unwrapped):
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
        if iteration == 0 or self.drawn != number:
            samples, figures = self.draw(number)
            self.drawn = number
            self.note_learned(bool(samples))
            self.batches = self.batches_of(samples)
        loss = torch.zeros((), device=self.args.device)
        seen: list[tuple[int, dict[str, float]]] = []
        for batch in self.batches:
            loss = loss + super().training_step(model, dict(batch), None)
            seen.append((int(batch["completion_mask"].sum()), self.take_metrics()))
        if not self.batches and self.args.fp16:  # whose scale of gradients wants some to look at
            for weight in self.trained_weights().values():
                weight.grad = torch.zeros_like(weight)
        self.figures.append({**figures, **mean_by_tokens(seen)})
        return loss

    def take_off_wrapper(self) -> None:
        """Take accelerate's wrapper off, which turns all that a model gives to fp32; trl's below it stays."""
        model = self.unwrapped
        if (forward := vars(model).pop("_original_forward", None)) is not None:
            model.forward = forward

    def note_learned(self, learned: bool) -> None:
        """Count steps in a row that nothing could be learned from, and tell of the last one."""
        stop = next(one for one in self.callback_handler.callbacks if isinstance(one, ZeroStd))
        stop.count = 0 if learned else stop.count + 1
        if stop.count == stop.patience:
            stopped: dict[str, Any] = {"stopped": (why := self.describe_stop(stop.patience))}
            self.log(stopped)
            say(f"\n{why}", error=True)

    def describe_stop(self, steps: int) -> str:
        """Return why a training ends that learns nothing more, and what could be done."""
        best = self.state.best_metric
        held_out = "" if best is None else f" Held out, the best weights so far answered {best:.1%} rightly."
        return (
            f"Step {self.state.global_step + 1}: in {steps} steps, refilled {self.options.max_refills} times each, all "
            f"answers to each prompt were equally good, or cut off: nothing is learned any more.{held_out} If that is "
            "not enough: "
            "draw harder prompts or more answers (objective.num_generations), raise objective.temperature, or teach "
            "more by objective.name=sft."
        )

    # Answers

    def draw(self, number: int) -> tuple[list[Sample], dict[str, float]]:
        """Return what a step learns from, and what the log says of its answers.

        Args:
            number: of the steps that draw answers, from 0.
        """
        start, wanted = time.perf_counter(), self.prompts.per_step
        asked: list[Group] = []
        useful: list[Group] = []
        refill = 0
        for refill in range(self.options.max_refills + 1):
            groups = self.ask(number, refill, wanted_now(wanted, len(useful), len(asked)))
            asked += groups
            useful += [group for group in groups if group.varies]
            if len(useful) >= wanted:
                break
        seconds = time.perf_counter() - start
        return self.samples_of(useful[:wanted]), {**self.describe(asked), "refills": refill, "rollout_seconds": seconds}

    def ask(self, number: int, refill: int, count: int) -> list[Group]:
        """Return the answers of the weights as they are now to some prompts, with what they are worth."""
        examples = self.prompts.of(number, refill, count)
        seed = random.Random(f"{self.args.seed} {number} {refill}").getrandbits(48)
        with self.accelerator.autocast(), evaluating(self.unwrapped):
            answered = roll_out(
                self.engine, self.plan.task, examples, self.sampling, self.options.num_generations, seed
            )
        return [graded(self.rewards, group) for group in answered]

    def describe(self, groups: Sequence[Group]) -> dict[str, float]:
        """Return what the log says of answers: all that were drawn, also those that nothing is learned from."""
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        lengths = [sum(len(turn.token_ids) for turn in rollout.exchange.turns) for rollout in rollouts]
        parts = {
            f"rewards/{name}": statistics.fmean(value[name] for group in groups for value in group.values)
            for name in self.rewards.functions
        }
        return {
            "reward": statistics.fmean(total for group in groups for total in group.totals),
            **parts,
            "frac_reward_zero_std": zero_std(groups),
            "completion_length": statistics.fmean(lengths),
            "truncated": statistics.fmean(map(is_truncated, rollouts)),
        }

    def samples_of(self, groups: Sequence[Group]) -> list[Sample]:
        """Return the turns of the model that are learned from, each with the advantage of its answer."""
        scale = self.options.scale_rewards
        all_totals = [total for group in groups for total in group.totals]
        spread = statistics.stdev(all_totals) + SMALL if scale == "batch" and groups else 1.0
        samples = []
        for group in groups:
            mean = statistics.fmean(group.totals)
            divisor = statistics.stdev(group.totals) + SMALL if scale == "group" else spread
            for rollout, total in zip(group.rollouts, group.totals, strict=True):
                if self.options.mask_truncated_completions and is_truncated(rollout):
                    continue
                for ids, written in rollout.exchange.turns:
                    if learned := before_start(written, self._tokenizer.bos_token_id):
                        samples.append(Sample(ids, learned, (total - mean) / divisor))
        return samples

    # What is learned

    def batches_of(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Return samples as batches that a device can hold, of similar lengths, as trl's loss takes them."""
        ordered = sorted(samples, key=lambda sample: len(sample.input_ids) + len(sample.token_ids))
        tokens = torch.tensor(sum(len(sample.token_ids) for sample in samples), device=self.args.device)
        batches = []
        for start in range(0, len(ordered), self.per_batch):
            part = ordered[start : start + self.per_batch]
            batch = {**self.padded(part), "num_items_in_batch": tokens, "share": 1.0}
            if self.loss_type != "dapo":  # these are means over the samples of a batch
                batch["share"] = len(part) / len(ordered)
            batches.append(batch)
        with self.accelerator.autocast(), evaluating(self.unwrapped):
            for batch in batches:
                if self.options.num_iterations > 1:
                    batch["old_per_token_logps"] = self.logps(batch)
                if self.start_weights:
                    with self.as_it_was():
                        batch["ref_per_token_logps"] = self.logps(batch)
        return batches

    def padded(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return prompts (B, P), padded on the left, answers (B, T), on the right, their masks and (B,) advantages."""
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
        names = {"entropy": "entropy", "kl": "kl", "clip_ratio/region_mean": "clip_ratio"}
        taken = {name: metrics[theirs][-1] for theirs, name in names.items() if metrics.get(theirs)}
        metrics.clear()
        return taken

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; beside a loss stand the means of what was measured in its steps."""
        if "loss" in logs:
            logs = {**logs, **means(self.figures)}
            self.figures = []
        super().log(logs, *args, **kwargs)


def unused(**_: Any) -> list[float]:
    """Stand for rewards where trl asks for functions; answers are scored before."""
    raise AssertionError("answers are scored by GrpoTrainer.ask")


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


def wanted_now(wanted: int, useful: int, asked: int) -> int:
    """Return how many prompts to ask, so that about as many groups differ as are missing; all of a step at most."""
    if not asked:
        return wanted
    return min(wanted, -(-(wanted - useful) * asked // max(useful, 1)))


def before_start(token_ids: Sequence[int], bos_token_id: int | None) -> Sequence[int]:
    """Return what a model wrote before it wrote the token that begins a sequence, or (`<sop>`) an answer.

    Read as a whole, what follows that would be taken for another sequence, and not seen as it was when it was written.
    """
    return token_ids[: token_ids.index(bos_token_id)] if bos_token_id in token_ids else token_ids


def is_truncated(rollout: Rollout) -> bool:
    """Whether an answer was cut off."""
    return rollout.exchange.completion.finish_reason == "length"


def mean_by_tokens(measured: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Return means over batches, each counted by its tokens."""
    total = sum(tokens for tokens, _ in measured)
    names = measured[0][1] if measured else {}
    return {name: sum(tokens * figures[name] for tokens, figures in measured) / total for name in names}


def means(records: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over the records that have it."""
    names = dict.fromkeys(name for record in records for name in record)
    return {name: statistics.fmean(record[name] for record in records if name in record) for name in names}
