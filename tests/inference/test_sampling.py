"""Tokens are drawn as their distribution says, and a seed holds in any company."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from glmtune.config import GenerationSettings
from glmtune.inference.completion import Request
from glmtune.inference.reading import AnswerReader
from glmtune.inference.rows import Row
from glmtune.inference.sampling import changed_scores, choose, draw, needs_scores

SAMPLED = GenerationSettings(max_new_tokens=12, do_sample=True, temperature=2.0, top_p=0.8)


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


def row_of(request: Request) -> Row:
    return Row(request, AnswerReader(None, [0]))  # type: ignore[arg-type]


def test_rows_are_chosen_as_their_requests_say() -> None:
    scores = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    greedy = Request([1], GenerationSettings(max_new_tokens=3))
    rows = [row_of(request) for request in (greedy, Request([1], SAMPLED, seed=3), Request([1], SAMPLED, seed=4))]
    choose(scores, rows)
    assert rows[0].token_ids == [scores[0].argmax()]
    warped = TemperatureLogitsWarper(2.0)(None, scores)  # type: ignore[arg-type]
    for place in (1, 2):
        chance = torch.rand(1, 1, generator=torch.Generator().manual_seed(2 + place))
        assert rows[place].token_ids == [draw(warped[[place]], torch.tensor([[0.8]]), chance)]


def test_log_probabilities_are_the_models_own() -> None:
    scores = torch.randn(1, 50)
    row = row_of(Request([1], SAMPLED.model_copy(update={"top_k": 2}), logprobs=True, top_logprobs=2))
    choose(scores, [row])
    logprobs = scores.log_softmax(-1)[0]
    assert row.logprobs == [pytest.approx(logprobs[row.token_ids[0]].item())]
    assert [token for token, _ in row.top_logprobs[0]] == logprobs.topk(2).indices.tolist()


def test_the_likeliest_tokens_need_no_help() -> None:
    assert not needs_scores(row_of(Request([1], GenerationSettings(max_new_tokens=3))))


@pytest.mark.parametrize("top_k", [1, 3, 30])
def test_the_likeliest_few_are_those_of_the_library(top_k: int) -> None:
    scores = torch.randn(1, 30, generator=torch.Generator().manual_seed(0)) * 2
    warped = TopPLogitsWarper(0.9)(None, TopKLogitsWarper(top_k)(None, scores))  # type: ignore[arg-type]
    count = 100_000
    chances = (torch.arange(count)[:, None] + 0.5) / count
    many = scores.expand(count, -1)
    tokens = draw(many, torch.full((count, 1), 0.9), chances, torch.full((count, 1), top_k))
    shares = torch.bincount(tokens[:, 0], minlength=30) / count
    torch.testing.assert_close(shares, warped.softmax(-1)[0], atol=4e-5, rtol=0)


def test_penalties_are_those_of_the_library() -> None:
    scores = torch.randn(1, 50)
    settings = GenerationSettings(max_new_tokens=9, repetition_penalty=1.7)
    row = row_of(Request([3, 4], settings))
    row.token_ids = [5, 5]
    warped = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[3, 4, 5, 5]]), scores.clone())
    torch.testing.assert_close(changed_scores(scores[0], row), warped[0])
    row = row_of(Request([3, 4], GenerationSettings(presence_penalty=0.5, frequency_penalty=0.25)))
    row.token_ids = [5, 5]
    expected = scores[0].clone()
    expected[5] -= 0.5 + 2 * 0.25
    torch.testing.assert_close(changed_scores(scores[0], row), expected)


@pytest.mark.parametrize(("temperature", "top_p"), [(1e-40, 1.0), (5e-38, 0.5), (1.0, 1e-46), (1e-40, 1e-46)])
def test_what_is_too_small_for_floats_takes_the_likeliest_token(temperature: float, top_p: float) -> None:
    scores = torch.randn(2, 50) * 100
    settings = GenerationSettings(do_sample=True, temperature=temperature, top_p=top_p, frequency_penalty=-2)
    rows = [row_of(Request([1], settings, seed)) for seed in range(2)]
    choose(scores, rows)
    assert [row.token_ids[0] for row in rows] == scores.argmax(-1).tolist()
