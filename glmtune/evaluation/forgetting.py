"""What a model still knows of everything else: a small general set, asked before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from glmtune.config import GenerationSettings
from glmtune.data.collation import Collator
from glmtune.data.control_tokens import plain_ids
from glmtune.data.encoder import Encoder
from glmtune.data.encoding import IGNORED
from glmtune.evaluation.intervals import Difference, paired_difference, wilson_interval
from glmtune.examples import Example
from glmtune.inference.engine import Engine
from glmtune.methods import Model
from glmtune.models.loading import max_length
from glmtune.runtime import UserError
from glmtune.scoring import numeric

FORGOT = 0.10  # share of the answers
SLIGHTLY = 0.03
LIKELIHOOD = 0.1  # nats a token: the right answers' tokens became a tenth less probable
MEASURABLE = 6  # right answers before: that many must be lost before a loss can be told from chance
RULE = (
    f"forgot: the general questions answered rightly fell by {FORGOT:.0%} of all or more, by more than chance; "
    f"slightly worse: they fell by {SLIGHTLY:.0%} or more, or the mean log-likelihood of the right answers fell by "
    f"more than {LIKELIHOOD} nats a token; kept: neither; unknown: the base model answers fewer than {MEASURABLE} "
    "rightly"
)
LOST = 10  # samples in a report
_BATCH = 8  # sequences whose logits are held at once
_PUNCTUATION = " \n\t.。!！?？,，;；:：\"'“”‘’「」`*"

Level = Literal["kept", "slightly worse", "forgot", "unknown"]


@dataclass(frozen=True)
class Probe:
    """What a model made of the general set.

    Attributes:
        examples, completions, right: the questions, its answers, and whether these are right.
        log_likelihood: mean over the tokens of all right answers, their end included, in nats.
        tokens: how many these are.
    """

    examples: list[Example]
    completions: list[str]
    right: list[bool]
    log_likelihood: float
    tokens: int

    @property
    def accuracy(self) -> float:
        """Share of the questions answered rightly."""
        return sum(self.right) / len(self.right) if self.right else 0.0

    def report(self) -> dict[str, Any]:
        """Return it as `report.json` holds it, with the share of each group."""
        groups: dict[str, list[bool]] = {}
        for example, right in zip(self.examples, self.right, strict=True):
            groups.setdefault(str(example.facts.get("group", "all")), []).append(right)
        return {
            "n": len(self.right),
            "accuracy": self.accuracy,
            "accuracy_ci95": list(wilson_interval(sum(self.right), len(self.right))),
            "log_likelihood": self.log_likelihood,
            "tokens": self.tokens,
            "by": {name: {"n": len(group), "accuracy": sum(group) / len(group)} for name, group in groups.items()},
        }


@dataclass(frozen=True)
class Forgetting:
    """Two probes compared, with the verdict of `RULE` and one plain sentence."""

    level: Level
    statement: str
    difference: Difference


def probe(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: GenerationSettings,
    limit: int | None = None,
) -> Probe:
    """Ask a model the general questions, greedily, and measure how likely it finds the right answers.

    Args:
        model: in evaluation mode.
        examples: of `read_general`.
        settings: batch size; answers may be as long as the longest right one, and a little more.
        limit: longest sequence in tokens that the model takes, where that is less than its config.json says.

    Raises:
        UserError: a question is too long for the model.
    """
    examples = list(examples)
    longest = max((len(plain_ids(tokenizer, example.target)) for example in examples), default=0)
    greedy = settings.model_copy(update={"do_sample": False, "max_new_tokens": longest + 8})
    log_likelihood, tokens = likelihood(model, tokenizer, examples, limit)
    answers = Engine(model, tokenizer, limit).answer([example.prompt for example in examples], greedy)
    completions = [answer.text for answer in answers]
    right = [is_right(example.target, text) for example, text in zip(examples, completions, strict=True)]
    return Probe(examples, completions, right, log_likelihood, tokens)


@torch.inference_mode()
def likelihood(
    model: Model, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], limit: int | None = None
) -> tuple[float, int]:
    """Return the mean log-likelihood in nats of the targets' tokens, and how many these are."""
    encoder = Encoder(tokenizer, max_length(model.config) if limit is None else limit)
    encodings = [encoder(example) for example in examples]
    for number, encoding in enumerate(encodings, start=1):
        if not encoder.fits(encoding):
            raise UserError(f"evaluation.general_file: question {number} {encoder.too_long(encoding)}. Shorten it.")
    encodings.sort(key=lambda encoding: len(encoding["input_ids"]))
    collate = Collator(tokenizer.pad_token_id)
    total, tokens = 0.0, 0
    for start in range(0, len(encodings), _BATCH):
        batch = {key: value.to(model.device) for key, value in collate(encodings[start : start + _BATCH]).items()}
        kept, labels = batch["logits_to_keep"], batch["labels"][:, batch["logits_to_keep"] + 1]
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits[
            :, kept
        ]  # (B, K, V)
        picked = logits.float().log_softmax(dim=-1).gather(2, labels.clamp(min=0)[..., None]).squeeze(2)
        learned = labels != IGNORED
        total += picked[learned].sum(dtype=torch.float64).item()
        tokens += int(learned.sum())
    return (total / tokens if tokens else 0.0), tokens


def is_right(target: str, completion: str) -> bool:
    """Whether it is the same text but for case and punctuation around it, or the same number if the target is one.

    A target in capitals asks for them.
    """
    if target.strip().isdecimal():
        return numeric(target, completion).correct
    wanted, given = (" ".join(text.split()).strip(_PUNCTUATION) for text in (target, completion))
    return wanted == given or (not wanted.isupper() and wanted.casefold() == given.casefold())


def verdict(before: Probe, after: Probe) -> Forgetting:
    """Whether general knowledge survived, by `RULE`.

    Raises:
        ValueError: the probes are not of the same questions.
    """
    difference = paired_difference(before.right, after.right)
    fell = before.log_likelihood - after.log_likelihood
    level: Level = "kept"
    if sum(before.right) < MEASURABLE:
        level = "unknown"
    elif difference.change == "worse" and difference.mean <= -FORGOT:
        level = "forgot"
    elif difference.mean <= -SLIGHTLY or fell > LIKELIHOOD:
        level = "slightly worse"
    figures = (
        f"it answers {sum(after.right)} of {len(after.right)} general questions, {sum(before.right)} before; the right "
        f"answers' log-likelihood is {after.log_likelihood:.2f} a token, {before.log_likelihood:.2f} before"
    )
    opening = {
        "kept": "General knowledge was kept",
        "slightly worse": "General knowledge got slightly worse",
        "forgot": "The model forgot general knowledge",
        "unknown": "Whether the model forgot cannot be told, as it knew too little before",
    }[level]
    return Forgetting(level, f"{opening}: {figures}.", difference)


def compare_probes(before: Probe, after: Probe) -> dict[str, Any]:
    """Return both probes, the verdict and what got lost, as `report.json` holds them."""
    found = verdict(before, after)
    pairs = zip(before.examples, before.completions, before.right, after.completions, after.right, strict=True)
    lost = [
        {"prompt": example.prompt, "target": example.target, "before": said_before, "after": said_after}
        for example, said_before, was_right, said_after, is_right_now in pairs
        if was_right and not is_right_now
    ]
    return {
        "level": found.level,
        "statement": found.statement,
        "rule": RULE,
        "difference": found.difference.report(),
        "before": before.report(),
        "after": after.report(),
        "lost": lost[:LOST],
    }
