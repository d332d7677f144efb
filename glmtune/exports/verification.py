"""What an exported model must have in common with what it was made of: rounding is told from error.

Error shows in what rounding cannot touch. A weight in the files is the one that was merged, to the last bit, and
computed in fp32 the logits along the run's own answers differ no more than computing in 16 bits moves those of the run
itself, on the same texts. What 16 bits do leave open are near ties between two tokens, at which answers may part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.examples import Example
from glmtune.exports.reference import Reference, along, ask, judge, keep, relative_difference
from glmtune.inference.completion import Completion
from glmtune.intervals import paired_difference
from glmtune.messages import Prompt
from glmtune.methods import Model
from glmtune.runtime import UserError
from glmtune.tasks import Task

FACTOR = 1.5  # times what computing in 16 bits moves the logits is as much as merging in them may move them
SHOWN = 60  # characters


def digests(model: Model, dtype: torch.dtype) -> dict[str, str]:
    """Return name -> digest of each weight, as files of a precision hold it."""
    found = {}
    for name, weight in model.state_dict().items():
        values = weight.to(dtype) if weight.is_floating_point() else weight
        data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        found[name] = hashlib.blake2b(data, digest_size=16).hexdigest()
    return found


def check_weights(model: Model, expected: Mapping[str, str], dtype: torch.dtype) -> None:
    """Check that files hold the weights that were written to them.

    Args:
        model: read back from the files.
        expected: `digests` of what was written.
        dtype: precision of the files.

    Raises:
        UserError: a weight is another, or is missing.
    """
    found = digests(model, dtype)
    if others := [name for name in {**expected, **found} if found.get(name) != expected.get(name)]:
        raise unlike(f"{len(others)} of its {len(expected)} weights are not those that were merged, {others[0]} first")


def compare(
    reference: Reference,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: GenerationSettings,
    task: Task,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Check that an exported model is the model that it was made of.

    Args:
        reference: what the run answers.
        model, tokenizer: read back from the files.
        examples: what both are asked.
        settings: how to decode.
        task: judges the answers.
        dtype: precision of the exported files; rounding to it explains some difference.

    Returns:
        What was checked, for the model card.

    Raises:
        UserError: they differ by more than rounding explains.
    """
    prompts = [example.prompt for example in examples]
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    if other := [index for index, ids in enumerate(encoded) if ids != reference.prompts[index]]:
        raise unlike(f"its tokenizer makes other tokens of {str(prompts[other[0]])[:SHOWN]!r}")
    paths = [(ids, one.token_ids) for ids, one in zip(encoded, reference.completions, strict=True)]
    kept: list[Tensor] = []
    for logits in along(model, paths, torch.float32):
        if sum(map(len, kept)) == len(reference.logits):
            break
        kept += keep(logits, kept)
    difference = relative_difference(torch.cat(kept), reference.logits)
    name = str(dtype).removeprefix("torch.")
    if not difference <= FACTOR * reference.noise:  # nor if it is no number
        higher = " Files of higher precision round less: --dtype float32." if dtype != torch.float32 else ""
        raise unlike(
            f"its logits differ by {difference:.1e} of their size, {FACTOR * reference.noise:.1e} is what rounding to "
            f"{name} explains",
            f" Its adapter may hold very large weights, or changes so small that {name} loses them.{higher}",
        )
    answers = ask(model, tokenizer, prompts, settings)
    ties = near_ties(reference, answers, prompts)
    return {
        "problems": len(prompts),
        "equal_answers": len(prompts) - ties,
        "logits_difference": difference,
        "noise": reference.noise,
        "dtype": name,
        **accuracy(reference, judge(task, examples, answers)),
    }


def near_ties(reference: Reference, answers: Sequence[Completion], prompts: Sequence[Prompt]) -> int:
    """Return how many answers are others, all of which part at a near tie.

    Raises:
        UserError: an answer parts where one token was likelier by more than rounding explains.
    """
    parted = 0
    for index, (was, now) in enumerate(zip(reference.completions, answers, strict=True)):
        if was.token_ids == now.token_ids and was.text == now.text:
            continue
        parted += 1
        if not (margin := margin_of(reference, index, now.token_ids)) <= reference.tie:
            common = next(
                (at for at, pair in enumerate(zip(was.text, now.text, strict=False)) if len(set(pair)) > 1), 0
            )
            start = max(0, common - SHOWN // 2)
            raise unlike(
                f"{str(prompts[index])[:SHOWN]!r} gets {now.text[start : start + SHOWN]!r} instead of "
                f"{was.text[start : start + SHOWN]!r}, and their logits are {margin:.2g} apart, {reference.tie:.2g} is "
                "what rounding explains"
            )
    return parted


def margin_of(reference: Reference, index: int, token_ids: Sequence[int]) -> float:
    """Return how far apart by fp32 the tokens are at which an answer parts from a run's; infinite where it does not.

    Of a token that is none of the likeliest, it is at least how far the last of these is away.
    """
    own = reference.completions[index].token_ids
    place = next((at for at, pair in enumerate(zip(own, token_ids, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return float("inf")
    values = reference.likely_logits[index][place]
    logits = dict(zip(reference.likely[index][place].tolist(), values.tolist(), strict=True))
    least = float(values[-1])
    return abs(logits.get(own[place], least) - logits.get(token_ids[place], least))


def accuracy(reference: Reference, correct: Sequence[bool]) -> dict[str, Any]:
    """Return the share of right answers of the run and of the export; nothing where no answer is judged.

    Raises:
        UserError: the export is worse by more than chance explains.
    """
    if not (correct and reference.correct):
        return {}
    difference = paired_difference(reference.correct, correct)
    if difference.change == "worse":
        raise unlike(f"it answers worse: {difference.statement}")
    shares = {"accuracy_as_trained": sum(reference.correct) / len(correct), "accuracy": sum(correct) / len(correct)}
    return {**shares, "statement": difference.statement}


def compare_quantized(
    reference: Reference,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: GenerationSettings,
    task: Task,
) -> dict[str, Any]:
    """Return what a model of few bits answers beside the run: another model, of which nothing is promised.

    Args:
        reference: what the run answers.
        model: with the numbers of the file; it computes in its own precision, not in llama.cpp's.
        tokenizer, examples, settings, task: as of the run.
    """
    answers = ask(model, tokenizer, [example.prompt for example in examples], settings)
    pairs = zip(answers, reference.completions, strict=True)
    found = {"problems": len(answers), "equal_answers": sum(now.text == was.text for now, was in pairs)}
    correct = judge(task, examples, answers)
    if not correct:
        return found
    difference = paired_difference(reference.correct, correct)
    return {**found, "accuracy": sum(correct) / len(correct), "statement": difference.statement}


def unlike(how: str, remedy: str = "") -> UserError:
    """Return what is said of an export that is another model."""
    return UserError(f"The exported model is not the one that was trained: {how}. Nothing was published.{remedy}")


def describe_rounding(found: Mapping[str, Any]) -> str:
    """Return in one line what rounding did to an export."""
    told = (
        f"Rounding to {found['dtype']} moves the logits by {found['logits_difference']:.1e} of their size, computing "
        f"in it by {found['noise']:.1e}"
    )
    others = found["problems"] - found["equal_answers"]
    told += f"; {others} of {found['problems']} answers part from the run's, all at near ties" if others else ""
    return f"{told}. {found.get('statement', '')}".strip()


def describe_quantized(found: Mapping[str, Any], precision: str, place: Path) -> str:
    """Return in one line what few bits did to an export, and that it is still to be scored as it will run."""
    told = (
        f"{precision} is another model: {found['equal_answers']} of {found['problems']} answers are those of the run."
    )
    scored = f"Score it as it will run: glmtune evaluate {place}"
    return " ".join(part for part in (told, found.get("statement", ""), scored) if part)
