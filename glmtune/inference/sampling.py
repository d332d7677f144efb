"""The choice of the next token, for each row of a batch as its own request says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glmtune.inference.rows import Row

COLDEST = 1e-5  # temperature, below which the likeliest token is taken anyway


def choose(scores: Tensor, rows: Sequence[Row | None]) -> None:
    """Let each row of a batch take its next token.

    Args:
        scores: (B, V) logits; V may be more than the tokens that there are.
        rows: one of each; None where nobody is.
    """
    chosen = scores.argmax(dim=-1)  # (B,)
    special = [place for place, row in enumerate(rows) if row is not None and needs_scores(row)]
    if special:
        changed = torch.stack([changed_scores(scores[place].float(), one_of(rows, place)) for place in special])
        chosen[special] = pick(changed, [one_of(rows, place) for place in special])
    told = [place for place, row in enumerate(rows) if row is not None and row.request.logprobs]
    if told:
        tell(scores[told].float().log_softmax(dim=-1), chosen[told], [one_of(rows, place) for place in told])
    for row, token_id in zip(rows, chosen.tolist(), strict=True):
        if row is not None:
            row.take(token_id)


def one_of(rows: Sequence[Row | None], place: int) -> Row:
    row = rows[place]
    assert row is not None
    return row


def needs_scores(row: Row) -> bool:
    """Whether the likeliest token is not enough."""
    settings = row.request.settings
    return settings.do_sample or row.matcher is not None or has_penalties(row)


def has_penalties(row: Row) -> bool:
    """Whether tokens that stand already are less likely."""
    settings = row.request.settings
    return (settings.repetition_penalty, settings.presence_penalty, settings.frequency_penalty) != (1, 0, 0)


def changed_scores(scores: Tensor, row: Row) -> Tensor:
    """Return (V,) scores by which a row chooses: penalties off, and minus infinity for what it must not be.

    The penalties are those of CTRL (Keskar et al. 2019, https://arxiv.org/abs/1909.05858) and of OpenAI's API.
    """
    settings = row.request.settings
    if has_penalties(row):
        scores = scores.clone()
        seen = torch.tensor([*{*row.request.input_ids, *row.token_ids}], device=scores.device)
        old, factor = scores[seen], settings.repetition_penalty
        scores[seen] = torch.where(old > 0, old / factor, old * factor)
        written = torch.bincount(torch.tensor(row.token_ids, dtype=torch.long), minlength=len(scores)).to(scores.device)
        scores -= settings.frequency_penalty * written + settings.presence_penalty * (written > 0)
    if row.matcher is not None:
        scores = scores.masked_fill(~row.matcher.allowed().to(scores.device), -torch.inf)
    return scores


def pick(scores: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return (B,) the likeliest tokens by scores (B, V), drawn ones where rows sample."""
    chosen = scores.argmax(dim=-1)
    sampled = [place for place, row in enumerate(rows) if row.request.settings.do_sample]
    if not sampled:
        return chosen
    settings = [rows[place].request.settings for place in sampled]

    def column(numbers: Sequence[float]) -> Tensor:
        return torch.tensor(numbers, device=scores.device)[:, None]

    chances = torch.cat([torch.rand(1, 1, generator=rows[place].generator) for place in sampled]).to(scores.device)
    warm = scores[sampled]
    # Off the largest first, or small temperatures lead beyond what floats can hold.
    heated = (warm - warm.amax(dim=-1, keepdim=True)) / column([max(one.temperature, COLDEST) for one in settings])
    top_k = column([one.top_k or scores.shape[1] for one in settings])
    chosen[sampled] = draw(heated, column([one.top_p for one in settings]), chances, top_k)[:, 0]
    return chosen


def tell(logprobs: Tensor, chosen: Tensor, rows: Sequence[Row]) -> None:
    """Let rows know the log-probabilities (B, V) of the tokens (B,), and of the likeliest ones."""
    found = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
    most = max(row.request.top_logprobs for row in rows)
    numbers, tokens = (part.tolist() for part in logprobs.topk(most, dim=-1)) if most else ([[]] * len(rows),) * 2
    for row, number, best, which in zip(rows, found, numbers, tokens, strict=True):
        row.logprobs.append(number)
        count = row.request.top_logprobs
        row.top_logprobs.append(list(zip(which[:count], best[:count], strict=True)))


def draw(scores: Tensor, top_p: Tensor, chances: Tensor, top_k: Tensor | None = None) -> Tensor:
    """Draw a token a row from the likeliest ones, of the total probability `top_p` or just above (nucleus sampling).

    Args:
        scores: (B, V) logits.
        top_p: (B, 1) over 0, up to 1.
        chances: (B, 1) where in the cumulative distribution the token lies, 0 to 1.
        top_k: (B, 1) how many tokens there are to draw from, whose probabilities are 1 together; None: all.

    Returns:
        (B, 1) tokens. By the inverse of the distribution, one number a token is enough, whatever else is in the batch.
        (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751)
    """
    ordered, tokens = scores.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        places = torch.arange(scores.shape[1], device=scores.device)
        ordered = ordered.masked_fill(places >= top_k, -torch.inf)
    probabilities = ordered.softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    count = (cumulative - probabilities < top_p).sum(dim=-1, keepdim=True)  # of candidates; the first always is one
    count = count.minimum((probabilities > 0).sum(dim=-1, keepdim=True)).clamp(min=1)
    total = cumulative.gather(1, count - 1)
    place = (cumulative <= chances * total).sum(dim=-1, keepdim=True).minimum(count - 1)
    return tokens.gather(1, place)
