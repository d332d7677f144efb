"""What an exported model must have in common with what it was made of: its answers, and its logits up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.inference.engine import Engine
from glmtune.messages import Prompt
from glmtune.methods import Model
from glmtune.runtime import UserError

# Largest difference between the logits of two models that should be one, as a share of the logits (both root mean
# square). Merging rounds each changed weight once more, to the base's precision: in models of 28 layers that was seen
# to make 2e-6, 4e-3 and 3e-2.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
PROMPTS_WITH_LOGITS = 8
SHOWN = 60  # characters


@dataclass(frozen=True)
class Answers:
    """What a model says.

    Attributes:
        texts: greedy answers, one for each prompt.
        logits: (N, V) fp32, of the first token of the first few answers.
    """

    texts: list[str]
    logits: Tensor


@torch.inference_mode()
def ask(
    model: Model, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], settings: GenerationSettings
) -> Answers:
    """Return the answers of a model, greedy whatever the settings say."""
    greedy = settings.model_copy(update={"do_sample": False})
    texts = [completion.text for completion in Engine(model, tokenizer).answer(prompts, greedy)]
    rows = []
    for prompt in prompts[:PROMPTS_WITH_LOGITS]:
        input_ids = torch.tensor([encode_prompt(tokenizer, prompt)], device=model.device)
        rows.append(model(input_ids=input_ids).logits[0, -1].float().cpu())
    return Answers(texts, torch.stack(rows))


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """Return how far numbers are from those expected, as a share of these (both root mean square)."""
    return float((found - expected).norm() / expected.norm())


def compare(before: Answers, after: Answers, prompts: Sequence[Prompt], dtype: torch.dtype) -> dict[str, Any]:
    """Check that an exported model is the model that it was made of.

    Args:
        before, after: their answers.
        prompts: what they were asked.
        dtype: precision of the exported files; rounding to it explains some difference of the logits.

    Returns:
        What was checked, for the model card.

    Raises:
        UserError: they answer otherwise, or their logits differ by more than rounding explains.
    """
    name = str(dtype).removeprefix("torch.")
    difference, tolerance = relative_difference(after.logits, before.logits), TOLERANCE[dtype]
    if not difference <= tolerance:  # nor if it is no number
        raise UserError(
            f"The exported model is not the one that was trained: its logits differ by {difference:.1e} of their "
            f"size, {tolerance:.0e} is what rounding to {name} explains. Nothing was published. Look whether the "
            "adapter holds very large weights."
        )
    remedy = " Files of higher precision round less: --dtype float32." if dtype != torch.float32 else ""
    compare_answers(before, after, prompts, remedy)
    return {"problems": len(prompts), "equal_answers": len(prompts), "logits_difference": difference, "dtype": name}


def compare_answers(before: Answers, after: Answers, prompts: Sequence[Prompt], remedy: str) -> None:
    """Check that two models give the same answers.

    Raises:
        UserError: they do not; shows where the first two that differ part.
    """
    others = [index for index, text in enumerate(after.texts) if text != before.texts[index]]
    if others:
        first = others[0]
        was, now = before.texts[first], after.texts[first]
        common = next((place for place, pair in enumerate(zip(was, now, strict=False)) if pair[0] != pair[1]), 0)
        start = max(0, common - SHOWN // 2)
        raise UserError(
            f"The exported model answers {len(others)} of {len(prompts)} held-out problems otherwise than the one that "
            f"was trained: {str(prompts[first])[:SHOWN]!r} gets {now[start : start + SHOWN]!r} instead of "
            f"{was[start : start + SHOWN]!r}{f', from character {start + 1} on' if start else ''}. Nothing was "
            f"published.{remedy}"
        )
