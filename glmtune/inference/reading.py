"""Token ids of an answer to its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from glmtune.data.control_tokens import collect_control_tokens
from glmtune.data.encoding import stop_ids
from glmtune.data.pieces import lead_in, without_lead_in
from glmtune.inference.completion import Delta
from glmtune.methods import Model

if TYPE_CHECKING:
    from glmtune.inference.rows import Row

BYTES, AROUND = 4, 8  # tokens of one character at most; those beside a text on which its reading may depend
HALF_CHARACTER = "\ufffd"  # decoded from bytes of which some are yet to come


def stops_of(model: Model, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: those of the tokenizer and its template, and those of the checkpoint."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    return sorted({*stop_ids(tokenizer), *(named if isinstance(named, list) else [] if named is None else [named])})


def lead_in_as_read(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what a template puts before answers, as it is read: without special tokens, which are skipped."""
    special = {
        *tokenizer.all_special_tokens,
        *(str(one) for one in tokenizer.added_tokens_decoder.values() if one.special),
    }
    cut = collect_control_tokens(tokenizer).cut(lead_in(tokenizer))
    return "".join(text for _, text, is_control in cut if not is_control or text not in special)


def news(told: str, text: str) -> str:
    """Return what a text has behind what was told of it; where that reads otherwise now, all that differs."""
    if text.startswith(told):
        return text[len(told) :]
    pairs = zip(told, text, strict=False)
    same = next((place for place, (old, new) in enumerate(pairs) if old != new), min(len(told), len(text)))
    return text[same:]


def before_stop(text: str, stop: Sequence[str]) -> str:
    """Return a text up to the first of the texts that end it."""
    return text[: min((text.find(one) for one in stop if one in text), default=len(text))]


@dataclass(frozen=True)
class AnswerReader:
    """Reads answers as a template has them.

    Attributes:
        tokenizer: with the template.
        stops: tokens that end an answer.
        lead_in: what the template puts before answers that the model writes itself; no part of them.
    """

    tokenizer: PreTrainedTokenizerBase
    stops: Sequence[int]
    lead_in: str = ""

    @classmethod
    def of(cls, model: Model, tokenizer: PreTrainedTokenizerBase) -> AnswerReader:
        """Return the reader of a model's answers."""
        return cls(tokenizer, stops_of(model, tokenizer), lead_in_as_read(tokenizer))

    def read(self, token_ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """Return the text up to the token, or the first of the texts, that ends it."""
        end = next((place for place, token in enumerate(token_ids) if token in self.stops), len(token_ids))
        text = str(self.tokenizer.decode(list(token_ids[:end]), skip_special_tokens=True))
        return before_stop(without_lead_in(text, self.lead_in), stop)

    def read_begun(self, token_ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """Return as much of the text as no later token can change: no half character, no beginning of a stop text."""
        text = self.read(token_ids, stop).rstrip(HALF_CHARACTER)
        begun = (
            length
            for one in stop
            for length in range(min(len(one) - 1, len(text)), 0, -1)
            if text.endswith(one[:length])
        )
        return text[: len(text) - max(begun, default=0)]

    def follow(self) -> Reading:
        """Return what reads an answer as it comes."""
        return Reading(self)

    def is_stopped(self, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether one of the texts that end the answer has been written."""
        text = self.read(token_ids) if stop else ""
        return any(one in text for one in stop)

    def ends_stopped(self, token_ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the last token completes one of the texts that end the answer; reads no more than may be of it."""
        if not stop:
            return False
        end = self.tokenizer.decode(
            list(token_ids[-(BYTES * max(map(len, stop)) + AROUND) :]), skip_special_tokens=True
        )
        return any(one in end for one in stop) and self.is_stopped(token_ids, stop)


class Reading:
    """An answer that is read as it comes: each token once, and its text as soon as no later token can change it."""

    def __init__(self, reader: AnswerReader) -> None:
        self.reader, self.tokens, self.text = reader, 0, ""

    def next(self, row: Row, until: int, is_last: bool) -> Delta:
        """Return what is new since the last time; with the last token, all that is left.

        Args:
            row: which may be going on meanwhile.
            until: how many of its tokens count.
            is_last: the answer ends with these.
        """
        begun = self.reader.read if is_last else self.reader.read_begun
        text = begun(row.token_ids[:until], row.request.stop)
        piece = news(self.text, text)
        if piece or is_last:
            self.text = text
        new, self.tokens = slice(self.tokens, until), until
        wanted = row.request
        return Delta(
            piece,
            row.token_ids[new],
            row.logprobs[new] if wanted.logprobs else None,
            row.top_logprobs[new] if wanted.logprobs and wanted.top_logprobs else None,
        )
