"""The choice of the next token, for each row of a batch as its own request says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from glmtune.inference.completion import Request


def make_generator(request: Request) -> torch.Generator | None:
    """Return the source of chance of a request with a seed; on the CPU, so that a seed means the same everywhere."""
    return None if request.seed is None else torch.Generator().manual_seed(request.seed)


class TokenChoice(LogitsProcessor):
    """Chooses tokens in place of `generate`, which is left with one possible token a row and takes it.

    Args:
        requests: one a row.
        generators: of `make_generator`, one a row; each gives one number a token.
        device: of the scores.

    Attributes:
        is_needed: the likeliest tokens are not enough.
        logprobs: for each step, (B,) log-probabilities of the tokens; empty where no request asks for them.
    """

    def __init__(
        self, requests: Sequence[Request], generators: Sequence[torch.Generator | None], device: torch.device
    ) -> None:
        self.device = device
        self.sampled = [row for row, request in enumerate(requests) if request.settings.do_sample]
        self.generators = [generators[row] for row in self.sampled]
        settings = [requests[row].settings for row in self.sampled]
        self.temperature = torch.tensor([[one.temperature] for one in settings], device=device)
        self.top_p = torch.tensor([[one.top_p] for one in settings], device=device)
        self.wants_logprobs = any(request.logprobs for request in requests)
        self.is_needed = bool(self.sampled) or self.wants_logprobs
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores with minus infinity for all tokens but the chosen ones."""
        chosen = scores.argmax(dim=-1, keepdim=True)  # (B, 1)
        if self.sampled:
            chances = torch.cat([torch.rand(1, 1, generator=generator) for generator in self.generators])
            chosen[self.sampled] = draw(scores[self.sampled] / self.temperature, self.top_p, chances.to(scores.device))
        if self.wants_logprobs:
            self.logprobs.append(scores.log_softmax(dim=-1).gather(1, chosen)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


def draw(scores: Tensor, top_p: Tensor, chances: Tensor) -> Tensor:
    """Draw a token a row from the likeliest ones, of the total probability `top_p` or just above (nucleus sampling).

    Args:
        scores: (B, V) logits.
        top_p: (B, 1) over 0, up to 1.
        chances: (B, 1) where in the cumulative distribution the token lies, 0 to 1.

    Returns:
        (B, 1) tokens. By the inverse of the distribution, one number a token is enough, whatever else is in the batch.
        (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751)
    """
    probabilities, tokens = scores.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.cumsum(dim=-1)
    count = (cumulative - probabilities < top_p).sum(dim=-1, keepdim=True)  # of candidates; the first always is one
    total = cumulative.gather(1, count - 1)
    place = (cumulative <= chances * total).sum(dim=-1, keepdim=True).minimum(count - 1)
    return tokens.gather(1, place)
