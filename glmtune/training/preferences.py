"""The loop of what is learned from comparisons, and the table of losses: a new loss is one row of `LOSSES`.

All are functions of the log-probabilities of whole answers, which are those that the loss of targets is made of. They
are the formulas of trl's `DPOTrainer` (and of its `CPOTrainer` and `ORPOTrainer`, for simpo and orpo).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from glmtune.config import Recipe
from glmtune.data.comparisons import ComparingCollator, EncodedComparisons, batches_of
from glmtune.data.encoding import IGNORED
from glmtune.methods import Model
from glmtune.runtime import RunFolder
from glmtune.training.arguments import make_arguments
from glmtune.training.callbacks import Means
from glmtune.training.loss import takes_logits_to_keep, target_losses
from glmtune.training.run_trainer import Judge
from glmtune.training.trainer import Trainer

MANY = 2000  # comparisons that need a progress bar
REWARDS = ("reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy")  # in the log
TINY = 1e-6  # below 0, where a log-probability of an answer may not come closer


@dataclass(frozen=True)
class Knobs:
    """The numbers of a loss.

    Attributes:
        beta: how much a reward weighs: more keeps the model nearer to where it began.
        label_smoothing: share of the pairs that are thought to be the wrong way round.
        margin: by which simpo wants the better answer to be better.
        sft_weight: of the cross-entropy of the better answer, which is added.
    """

    beta: float
    label_smoothing: float = 0.0
    margin: float = 0.5
    sft_weight: float = 0.0


@dataclass(frozen=True)
class Loss:
    """How answers are compared.

    Attributes:
        compute: (N,) losses of N pairs, from (N,) log-probabilities of the better and of the worse answers.
        beta: the usual one.
        by_reference: the log-probabilities are those above the reference's: of the model before it learned.
        per_token: they are means over the tokens of an answer.
        single: answers are learned one by one; `compute` is of their kind's own.
    """

    compute: Callable[[Tensor, Tensor, Knobs], Tensor]
    beta: float = 0.1
    by_reference: bool = True
    per_token: bool = False
    single: bool = False


def sigmoid(better: Tensor, worse: Tensor, knobs: Knobs) -> Tensor:
    """DPO (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290); smoothed, it is the conservative one."""
    gain = knobs.beta * (better - worse)
    return -(1 - knobs.label_smoothing) * logsigmoid(gain) - knobs.label_smoothing * logsigmoid(-gain)


def robust(better: Tensor, worse: Tensor, knobs: Knobs) -> Tensor:
    """DPO without bias where some pairs are the wrong way round (Chowdhury et al. 2024, 2403.00409)."""
    gain, flipped = knobs.beta * (better - worse), knobs.label_smoothing
    return (-(1 - flipped) * logsigmoid(gain) + flipped * logsigmoid(-gain)) / (1 - 2 * flipped)


def hinge(better: Tensor, worse: Tensor, knobs: Knobs) -> Tensor:
    """A margin of 1, as SLiC has it (Zhao et al. 2023, 2305.10425)."""
    return torch.relu(1 - knobs.beta * (better - worse))


def ipo(better: Tensor, worse: Tensor, knobs: Knobs) -> Tensor:
    """A margin that is reached and not exceeded (Azar et al. 2023, 2310.12036)."""
    return (better - worse - 1 / (2 * knobs.beta)) ** 2


def apo_zero(better: Tensor, worse: Tensor, knobs: Knobs) -> Tensor:
    """The better answer becomes likelier and the worse one less likely (D'Oosterlinck et al. 2024, 2408.06266)."""
    return 1 - torch.sigmoid(knobs.beta * better) + torch.sigmoid(knobs.beta * worse)


def apo_down(better: Tensor, worse: Tensor, knobs: Knobs) -> Tensor:
    """Both become less likely, the worse one more so: where the better ones are worse than the model's own."""
    return torch.sigmoid(knobs.beta * better) + 1 - torch.sigmoid(knobs.beta * (better - worse))


def sppo_hard(better: Tensor, worse: Tensor, knobs: Knobs) -> Tensor:
    """Rewards of a half and minus a half (Wu et al. 2024, 2405.00675)."""
    return (better - 0.5 / knobs.beta) ** 2 + (worse + 0.5 / knobs.beta) ** 2


def simpo(better: Tensor, worse: Tensor, knobs: Knobs) -> Tensor:
    """Without a reference: likelihood per token, with a margin (Meng et al. 2024, 2405.14734)."""
    return -logsigmoid(knobs.beta * (better - worse) - knobs.margin)


def orpo(better: Tensor, worse: Tensor, knobs: Knobs) -> Tensor:
    """Without a reference: cross-entropy of the better answer, and the ratio of odds (Hong et al. 2024, 2403.07691)."""
    better, worse = better.clamp(max=-TINY), worse.clamp(max=-TINY)
    odds = (better - worse) - (torch.log1p(-better.exp()) - torch.log1p(-worse.exp()))
    return -better - knobs.beta * logsigmoid(odds)


def kto(reward: Tensor, sign: Tensor, knobs: Knobs) -> Tensor:
    """Single answers, good ones (sign 1) and bad ones (-1), by what people gain and lose (Ethayarajh et al. 2024).

    (https://arxiv.org/abs/2402.01306) `reward` is what is above the point of reference.
    """
    return 1 - torch.sigmoid(knobs.beta * reward * sign)


LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(sigmoid),
    "robust": Loss(robust),
    "hinge": Loss(hinge),
    "ipo": Loss(ipo, per_token=True),
    "apo_zero": Loss(apo_zero),
    "apo_down": Loss(apo_down),
    "sppo_hard": Loss(sppo_hard),
    "simpo": Loss(simpo, beta=2.0, by_reference=False, per_token=True),
    "orpo": Loss(orpo, by_reference=False, per_token=True),
    "kto": Loss(kto, single=True),
}


# Log-probabilities


def sums(losses: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each row's targets, and how many these are, both (B,).

    Args:
        losses: (B, K) cross-entropies, as `target_losses` gives them.
        labels: (B, T), unshifted.
    """
    return -losses.sum(dim=1), labels[:, 1:].ne(IGNORED).sum(dim=1)


def measure(model: Model, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the log-probability of each answer of a batch, and its length in tokens, both (B,); nothing is learned."""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    passed = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    kept, takes = inputs["logits_to_keep"], takes_logits_to_keep(model)
    with torch.no_grad():
        logits = model(**passed, **({"logits_to_keep": kept} if takes else {}), use_cache=False).logits
        losses = target_losses(logits if takes else logits[:, kept], inputs["labels"], kept)
    return sums(losses, inputs["labels"])


def judge_of(dataset: EncodedComparisons, pad_token_id: int, batch_size: int, loss: Loss) -> Judge:
    """Return what tells how often a model prefers the better answer: finds it likelier. A tie is half of that.

    By the answer as a whole, or by token, as the loss does. Of single answers, each good one is compared with each bad
    one, by token.
    """
    collate, places = ComparingCollator(pad_token_id), range(len(dataset))

    def judge(model: Model) -> dict[str, Any]:
        better, worse = [], []
        for indices in batches_of(dataset, places, batch_size):
            batch = collate([dataset[index] for index in indices])
            scores, lengths = measure(model, batch)
            if loss.per_token or loss.single:
                scores = scores / lengths
            answers, others = scores.cpu().chunk(2)
            is_good = batch["is_good"]
            better.append(answers[is_good])
            worse.append(answers[~is_good] if loss.single else others)
        one, other = torch.cat(better), torch.cat(worse)
        gain = one[:, None] - other if loss.single else one - other
        share = (gain > 0).double().mean() + (gain == 0).double().mean() / 2
        return {"preference_accuracy": round(share.item(), 6), "n": len(dataset)}

    return judge


# The loop


class PreferenceTrainer(Trainer):
    """The loop of a run that learns from comparisons.

    The loss is a mean over the comparisons of a whole optimizer step. What the model says before it learns anything,
    the reference, is computed once and kept as two numbers a comparison: no second model is held.

    Args:
        loss: a row of `LOSSES`.
        knobs: its numbers.
        options: of the Trainer, by name.
    """

    def __init__(self, *, loss: Loss, knobs: Knobs, **options: Any):
        super().__init__(**options)
        self.loss, self.knobs = loss, knobs
        self.reference: Tensor | None = None
        self.add_callback(Means(REWARDS))

    @property
    def means(self) -> Means:
        """What is logged next; a checkpoint that is gone on from brings its own."""
        return next(one for one in self.callback_handler.callbacks if isinstance(one, Means))

    def learn(self, start: Any) -> None:
        """Measure the reference, while the model is what the method starts from, and make the steps."""
        if self.loss.by_reference:
            self.reference = self.measure_reference()
        super().learn(start)

    def measure_reference(self) -> Tensor:
        """Return (N, 2) log-probabilities of each comparison's answers; NaN where a short training never sees it."""
        model, dataset, batches = self.unwrapped, self.train_dataset, self.make_batches()
        assert isinstance(dataset, EncodedComparisons)
        seen = set(islice(batches.order, self.args.max_steps * batches.step))
        reference = torch.full((len(dataset), 2), torch.nan)
        was_training = model.training
        model.eval()
        with tqdm(total=len(seen), desc="reference", unit="pair", disable=len(seen) < MANY) as bar, self.computing():
            for indices in batches_of(dataset, sorted(seen), self.args.train_batch_size):
                batch = self.data_collator([dataset[index] for index in indices])
                with self.accelerator.autocast():
                    log_probs, _ = measure(model, batch)
                reference[indices] = torch.stack(log_probs.cpu().chunk(2), dim=1)
                bar.update(len(indices))
        model.train(was_training)
        return reference.to(model.device)

    def batch_loss(self, model: Any, inputs: Any, count: Any) -> Tensor:
        """Return the part of a step's loss that a micro-batch makes; `count` are the comparisons of the step."""
        return self.compare(model, inputs).sum() / (len(inputs["record"]) if count is None else count)

    def compare(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return (N,) the loss of each pair."""
        log_probs, lengths = self.log_probs(model, inputs)
        better, worse = self.above_reference(log_probs, lengths, inputs)
        losses = self.loss.compute(better, worse, self.knobs)
        self.note(better, worse)
        if self.knobs.sft_weight:
            losses = losses - self.knobs.sft_weight * (log_probs / lengths).chunk(2)[0]
        return losses

    def log_probs(self, model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the log-probability of each row's answer, and its length in tokens, both (B,)."""
        logits = self.target_logits(model, inputs)
        return sums(target_losses(logits, inputs["labels"], inputs["logits_to_keep"]), inputs["labels"])

    def above_reference(
        self, log_probs: Tensor, lengths: Tensor, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return how much likelier both answers of each pair have become, each (N,); or how likely they are."""
        if self.reference is not None:
            log_probs = log_probs - self.reference[inputs["record"]].T.flatten()
        better, worse = (log_probs / lengths if self.loss.per_token else log_probs).chunk(2)
        return better, worse

    def note(self, better: Tensor, worse: Tensor) -> None:
        """Keep what some pairs are worth, for the log."""
        one, other = (self.knobs.beta * values.detach().float().cpu() for values in (better, worse))
        margin = one - other
        self.add(one, other, margin, (margin > 0).float() + (margin == 0).float() / 2)

    def add(self, *rewards: Tensor) -> None:
        """Keep what some answers are worth, each (N,), in the order of `REWARDS`, for the log."""
        named = dict(zip(REWARDS, rewards, strict=False))
        self.means.add(
            {name: values.sum().item() for name, values in named.items()},
            {name: len(values) for name, values in named.items()},
        )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        """Count the comparisons of a step."""
        return sum(len(batch["record"]) for batch in batch_samples)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; with the loss, what the comparisons were worth."""
        if "loss" in logs:
            logs = {**logs, **{name: round(mean, 6) for name, mean in self.means.take().items()}}
        super().log(logs, *args, **kwargs)


class SingleAnswerTrainer(PreferenceTrainer):
    """The loop of a run that learns from single answers, good ones and bad ones.

    How far the model has gone from its reference is measured by each prompt with the answer to another one, over the
    whole step. Both kinds of answers weigh alike, however many there are of each.
    """

    drift = 0.0

    def __init__(self, **options: Any):
        super().__init__(**options)
        dataset: Any = self.train_dataset
        good = sum(dataset.is_good(index) for index in range(len(dataset)))
        self.weights = (len(dataset) / (2 * max(1, len(dataset) - good)), len(dataset) / (2 * max(1, good)))

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        """Count the answers of a step, and measure how far the model has gone so far."""
        count = super()._get_num_items_in_batch(batch_samples, device)
        total = 0.0
        with torch.no_grad():
            for batch in batch_samples:
                half = len(batch["record"])
                inputs = {**self._prepare_inputs(batch)}
                log_probs, _ = self.log_probs(self.model, rows(inputs, slice(half, None)))
                total += (log_probs - self.known(inputs)[:, 1]).sum().item()
        self.drift = max(0.0, total / max(1, count))
        return count

    def compare(self, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return (N,) the loss of each answer."""
        log_probs, lengths = self.log_probs(model, rows(inputs, slice(len(inputs["record"]))))
        gain, is_good = log_probs - self.known(inputs)[:, 0], inputs["is_good"]
        sign = torch.where(is_good, 1.0, -1.0)
        losses = torch.where(is_good, self.weights[1], self.weights[0]) * self.loss.compute(
            gain - self.drift, sign, self.knobs
        )
        rewards = self.knobs.beta * gain.detach().float().cpu()
        self.add(rewards[is_good.cpu()], rewards[~is_good.cpu()])
        if self.knobs.sft_weight:
            losses = losses - self.knobs.sft_weight * is_good * log_probs / lengths
        return losses

    def known(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return (N, 2) what the reference says of some comparisons."""
        assert self.reference is not None
        return self.reference[inputs["record"]]


def rows(inputs: Mapping[str, Tensor], which: slice) -> dict[str, Tensor]:
    """Return a batch of some of its rows."""
    return {
        name: tensor[which] if name in ("input_ids", "attention_mask", "labels") else tensor
        for name, tensor in inputs.items()
    }


def make_preference_trainer(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    dataset: EncodedComparisons,
    recipe: Recipe,
    steps: int,
    judge: Judge,
    folder: RunFolder,
    loss: Loss,
    knobs: Knobs,
    groups: Sequence[dict[str, Any]] | None = None,
    **arguments: Any,
) -> PreferenceTrainer:
    """Return the loop, ready to `run`; the arguments are `make_trainer`'s, and those of `PreferenceTrainer`.

    Raises:
        UserError: the device cannot train in the recipe's precision, or an optional package is missing.
    """
    kind = SingleAnswerTrainer if loss.single else PreferenceTrainer
    return kind(
        loss=loss,
        knobs=knobs,
        judge=judge,
        folder=folder,
        settings=recipe.training,
        groups=None if groups is None else [*groups],
        model=model,
        args=make_arguments(recipe, steps, folder.checkpoints, model.device, **arguments),
        train_dataset=dataset,
        data_collator=ComparingCollator(tokenizer.pad_token_id),
        examples_per_step=recipe.training.examples_per_step,
        processing_class=tokenizer,
    )
