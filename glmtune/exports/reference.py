"""What a run says, how sure it is of it, and how far computing in 16 bits moves that: measured on its own answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.examples import Example
from glmtune.exports.computing import Computing
from glmtune.inference.completion import Completion
from glmtune.inference.engine import Engine
from glmtune.messages import Prompt
from glmtune.methods import Model
from glmtune.tasks import Task

# Largest difference between the logits of two models that should be one, as a share of the logits (both root mean
# square). Merging rounds each changed weight once more, to the base's precision: in models of 28 layers that was seen
# to make 2e-6, 4e-3 and 3e-2.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
TIE = 6.0  # times what 16 bits move the distance of two likely tokens (root mean square) makes a near tie
LIKELY = 8  # tokens at each place whose logits are kept
NUMBERS = 2**25  # logits that are kept whole, and that are computed at a time: 128 MiB

Path = tuple[Sequence[int], Sequence[int]]  # ids of a prompt, and of an answer to it


@dataclass(frozen=True)
class Reference:
    """What a run answers, and how sure it is of it.

    Attributes:
        prompts: ids of what is asked.
        completions: greedy answers, in the run's own precision.
        logits: (N, V) fp32, computed in fp32, at places along the first answers.
        likely, likely_logits: of each answer (T, K), the likeliest tokens at each place by fp32, and their logits.
        noise: how far the logits are moved by computing in the precision of the files, as a share of their size.
        tie: logits of two tokens that are no further apart may change places by rounding.
        correct: whether each answer is right; empty where the task cannot say so of an answer alone.
    """

    prompts: list[list[int]]
    completions: list[Completion]
    logits: Tensor
    likely: list[Tensor]
    likely_logits: list[Tensor]
    noise: float
    tie: float
    correct: list[bool]


def ask(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], settings: GenerationSettings
) -> list[Completion]:
    """Return the answers of a model, greedy whatever the settings say."""
    return Engine(model, tokenizer).answer(prompts, settings.model_copy(update={"do_sample": False}))


def refer(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: GenerationSettings,
    task: Task,
    dtype: torch.dtype,
) -> Reference:
    """Return what a run answers, what fp32 says of it, and what computing in `dtype` makes of that."""
    problems = [example.prompt for example in examples]
    prompts = [encode_prompt(tokenizer, prompt) for prompt in problems]
    completions = ask(model, tokenizer, problems, settings)
    paths = [(ids, completion.token_ids) for ids, completion in zip(prompts, completions, strict=True)]
    likely, values = [], []
    kept: list[Tensor] = []
    rounded: list[Tensor] = []
    apart: list[Tensor] = []
    for found in along(model, paths, torch.float32):
        best = found.topk(min(LIKELY, found.shape[-1]))
        likely.append(best.indices)
        values.append(best.values)
        kept += keep(found, kept)
    logits = torch.cat(kept)
    for found, tokens, exact in zip(along(model, paths, dtype), likely, values, strict=True):
        off = found.gather(-1, tokens) - exact
        apart.append(off[:, 1:] - off[:, :1])
        rounded += keep(found, rounded)
    noise = max(relative_difference(torch.cat(rounded), logits), TOLERANCE[torch.float32])
    gap = torch.cat(apart).square().mean().sqrt().item()
    tie = TIE * max(gap, TOLERANCE[torch.float32] * logits.square().mean().sqrt().item())
    return Reference(prompts, completions, logits, likely, values, noise, tie, judge(task, examples, completions))


@torch.inference_mode()
def along(model: Model, paths: Sequence[Path], dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the logits at each token of each answer, (T, V) fp32, computed in `dtype`.

    Args:
        model: its own precision is left as it is where it is `dtype`.
        paths: prompts with their answers.
        dtype: precision of the products.
    """
    start = 0
    while start < len(paths):
        batch = fitting(paths[start:], model.config.get_text_config().vocab_size)
        width = max(len(prompt) + len(answer) for prompt, answer in batch)
        rows = [[*prompt, *answer] for prompt, answer in batch]
        input_ids = torch.tensor([row + row[-1:] * (width - len(row)) for row in rows], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
        with Computing(dtype) if model.dtype != dtype else nullcontext():
            logits = model(input_ids=input_ids, attention_mask=mask).logits
        for (prompt, answer), row in zip(batch, logits, strict=True):
            yield row[len(prompt) - 1 : len(prompt) - 1 + len(answer)].float().cpu()
        start += len(batch)


def fitting(paths: Sequence[Path], vocab_size: int) -> Sequence[Path]:
    """Return the first paths, as many as have room for their logits; one at least."""
    width = 0
    for count, (prompt, answer) in enumerate(paths):
        width = max(width, len(prompt) + len(answer))
        if count and (count + 1) * width * vocab_size > NUMBERS:
            return paths[:count]
    return paths


def keep(found: Tensor, kept: Sequence[Tensor]) -> list[Tensor]:
    """Return logits of an answer as far as there is room for them beside those that are kept."""
    room = NUMBERS // found.shape[-1] - sum(map(len, kept))
    return [found[:room]] if room > 0 else []


def judge(task: Task, examples: Sequence[Example], completions: Sequence[Completion]) -> list[bool]:
    """Return whether each answer is right; nothing where there are tools to be called, or no target."""
    if task.tools or any(example.tools or not example.target for example in examples):
        return []
    return [task.score(one, found.text, []).correct for one, found in zip(examples, completions, strict=True)]


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return how far numbers are from those expected, as a share of these (both root mean square)."""
    return float((found - expected).norm() / expected.norm())
