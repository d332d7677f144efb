"""Tokens are drawn as their distribution says, and a seed holds in any company."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from glmtune.config import GenerationSettings
from glmtune.inference.completion import Request
from glmtune.inference.sampling import TokenChoice, draw, make_generator

SAMPLED = GenerationSettings(max_new_tokens=12, do_sample=True, temperature=2.0, top_p=0.8)
CPU = torch.device("cpu")


@pytest.mark.parametrize("top_p", [1e-6, 0.5, 0.8, 1.0])
def test_the_distribution_is_that_of_the_library(top_p: float) -> None:
    scores = torch.randn(1, 30, generator=torch.Generator().manual_seed(0)) * 2
    warped = TopPLogitsWarper(top_p)(None, scores)  # type: ignore[arg-type]
    count = 200_000
    chances = (torch.arange(count)[:, None] + 0.5) / count
    tokens = draw(scores.expand(count, -1), torch.full((count, 1), top_p), chances)
    shares = torch.bincount(tokens[:, 0], minlength=30) / count
    torch.testing.assert_close(shares, warped.softmax(-1)[0], atol=2e-5, rtol=0)


def test_the_ends_of_chance() -> None:
    scores = torch.tensor([[0.0, 1.0, -torch.inf]]).repeat(2, 1)
    assert draw(scores, torch.ones(2, 1), torch.tensor([[0.0], [1.0]])).tolist() == [[1], [0]]


def test_rows_are_chosen_as_their_requests_say() -> None:
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    greedy = Request([1], GenerationSettings(max_new_tokens=3))
    requests = [greedy, Request([1], SAMPLED, seed=3), Request([1], SAMPLED, seed=4)]
    choice = TokenChoice(requests, [make_generator(request) for request in requests], CPU)
    chosen = choice(None, scores)  # type: ignore[arg-type]
    assert (chosen.isfinite().sum(-1) == 1).all()
    assert chosen[0].argmax() == scores[0].argmax()
    warped = TemperatureLogitsWarper(2.0)(None, scores)  # type: ignore[arg-type]
    for row in (1, 2):
        chance = torch.rand(1, 1, generator=make_generator(requests[row]))
        assert chosen[row].argmax() == draw(warped[[row]], torch.tensor([[0.8]]), chance)


def test_log_probabilities_are_the_models_own() -> None:
    scores = torch.randn(1, 50)
    choice = TokenChoice([Request([1], SAMPLED, logprobs=True)], [None], CPU)
    token = choice(None, scores).argmax(-1)  # type: ignore[arg-type]
    assert choice.logprobs[0].item() == pytest.approx(scores.log_softmax(-1)[0, token].item())


def test_the_likeliest_tokens_need_no_help() -> None:
    greedy = Request([1], GenerationSettings(max_new_tokens=3))
    assert not TokenChoice([greedy], [None], CPU).is_needed
