"""What an exported model must have in common with what it was made of, and what is said if it has not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.exports.verification import PROMPTS_WITH_LOGITS, TOLERANCE, Answers, ask, compare
from glmtune.inference.engine import Engine
from glmtune.runtime import UserError

PROMPTS = [f"{a}+{b}=" for a in range(5) for b in range(2)]
SETTINGS = GenerationSettings(max_new_tokens=6, batch_size=4)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def answers(*texts: str, size: float = 1.0) -> Answers:
    return Answers(list(texts), size * torch.linspace(-3, 5, 24).reshape(2, 12))


def test_answers_are_those_of_predicting(tiny: tuple[Any, Any]) -> None:
    """Greedy whatever the recipe says, in the order of the prompts; logits of the first few."""
    model, tokenizer = tiny
    sampling = GenerationSettings(max_new_tokens=6, batch_size=3, do_sample=True, temperature=5.0)
    found = ask(model, tokenizer, PROMPTS, sampling)
    expected = [one.text for one in Engine(model, tokenizer).answer(PROMPTS, SETTINGS)]
    assert found.texts == expected
    assert len(PROMPTS) > PROMPTS_WITH_LOGITS == len(found.logits)
    assert found.logits.dtype == torch.float32 and not found.logits.requires_grad
    with torch.no_grad():
        for row, prompt in zip(found.logits, PROMPTS, strict=False):
            assert torch.equal(row, model(input_ids=torch.tensor([encode_prompt(tokenizer, prompt)])).logits[0, -1])
    assert sampling.do_sample  # the caller's own


def test_a_model_is_itself(tiny: tuple[Any, Any]) -> None:
    found = ask(*tiny, PROMPTS, SETTINGS)
    assert compare(found, ask(*tiny, PROMPTS, SETTINGS), PROMPTS, torch.float32) == {
        "problems": len(PROMPTS),
        "equal_answers": len(PROMPTS),
        "logits_difference": 0.0,
        "dtype": "float32",
    }


@pytest.mark.parametrize("place", ["layers.0", "layers.1", "word_embeddings", "final_layernorm"])
def test_a_little_noise_anywhere_is_found(tiny: tuple[Any, Any], place: str) -> None:
    """Far more than rounding, and far less than anyone would see in a few answers."""
    model, tokenizer = copy.deepcopy(tiny[0]), tiny[1]
    before = ask(model, tokenizer, PROMPTS, SETTINGS)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if place in name and "lora" not in name:
                weight += 0.01 * torch.randn_like(weight)
    with pytest.raises(
        UserError, match=r"is not the one that was trained: its logits differ by .*Nothing was published"
    ):
        compare(before, ask(model, tokenizer, PROMPTS, SETTINGS), PROMPTS, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_rounding_explains_passes(dtype: torch.dtype) -> None:
    """A difference is a share of the size of the logits; above its bound for a precision, it is told."""
    name = str(dtype).removeprefix("torch.")
    inside, outside = (1 + factor * TOLERANCE[dtype] for factor in (0.9, 1.1))
    for size in (1.0, 1000.0):
        before = answers("1", "2", size=size)
        found = compare(before, answers("1", "2", size=size * inside), ["a", "b"], dtype)
        assert found["dtype"] == name and found["logits_difference"] == pytest.approx(inside - 1, rel=1e-2)
        with pytest.raises(UserError, match=f"is what rounding to {name} explains"):
            compare(before, answers("1", "2", size=size * outside), ["a", "b"], dtype)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_no_number_is_no_model(number: float) -> None:
    broken = answers("1", "2")
    broken.logits[1, 3] = number
    with pytest.raises(UserError, match="is not the one that was trained"):
        compare(answers("1", "2"), broken, ["a", "b"], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_answers_are_told(dtype: torch.dtype) -> None:
    """With the first of them, and a remedy where there is one."""
    long = [{"role": "user", "content": "y" * 500}]
    with pytest.raises(UserError) as error:
        compare(answers("1", "2", "3"), answers("1", "two" * 100, "4"), ["x", long, "z"], dtype)
    message = str(error.value)
    assert "answers 2 of 3 held-out problems otherwise" in message and "'2'. Nothing was published." in message
    assert "'two" in message and "yyy" in message and len(message) < 500
    assert ("--dtype float32" in message) == (dtype != torch.float32)
