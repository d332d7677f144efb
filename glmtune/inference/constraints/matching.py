"""Which tokens may be next in an answer that must be something, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from glmtune.inference.completion import Matcher
from glmtune.inference.constraints.vocabulary import LONGEST, Mask, Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher


@dataclass(frozen=True)
class GrammarConstraint:
    """An answer that is a text of a grammar.

    Attributes:
        vocabulary: of the tokenizer.
        size: number of the model's logits.
        stops: tokens that end an answer.
        start: of the grammar, with the text before an answer that the model writes itself.
    """

    vocabulary: Vocabulary
    size: int
    stops: Sequence[int]
    start: LLMatcher

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning of an answer."""
        vocabulary = self.vocabulary
        return GrammarMatcher(self, self.start.deep_copy(), vocabulary.opening, vocabulary.head)

    @cached_property
    def ending(self) -> Tensor:
        """The tokens that end an answer, alone."""
        return self.to_allowed(np.zeros(0, bool), True)

    def to_allowed(self, mask: Mask, may_end: bool) -> Tensor:
        """Return (V,) bool of the tokens of a mask, and of those that end an answer if it may end."""
        allowed = np.zeros(self.size, bool)
        known = min(len(mask), self.size)
        allowed[:known] = mask[:known]
        allowed[list(self.stops)] = may_end
        return torch.from_numpy(allowed)


class GrammarMatcher:
    """How far an answer has come in a grammar.

    Attributes:
        fault: why nothing more can be written, though the text is not complete; None where there is no such reason.
    """

    def __init__(
        self, constraint: GrammarConstraint, state: LLMatcher, opening: Sequence[int], head: bytes | None
    ) -> None:
        """Begin.

        Args:
            constraint: what the answer must be.
            state: of the grammar.
            opening: tokens that are written first.
            head: text before the answer itself; None where the answer has begun.
        """
        self.constraint, self.state = constraint, state
        self.opening, self.head = list(opening), head
        self.written = b""  # the end of it
        self.has_ended = False
        self.fault: str | None = None

    def allowed(self) -> Tensor:
        """Return (V,) bool: which tokens may be next."""
        constraint, vocabulary = self.constraint, self.constraint.vocabulary
        if self.opening:
            mask = np.zeros(len(vocabulary.tokens), bool)
            mask[self.opening[0]] = True
            return constraint.to_allowed(mask, False)
        if self.has_ended or self.state.is_stopped():
            return self._end(self.state.get_error() or None)
        may_end = self.state.is_accepting()
        mask = self._mask()
        if not may_end and not mask.any():
            return self._end(self.state.get_error() or "no token of the model can go on with it")
        return constraint.to_allowed(mask, may_end)

    def advance(self, token_id: int) -> None:
        """Go on with the next token of the answer."""
        if self.opening:
            self.opening.pop(0)
        elif token_id in self.constraint.stops:
            self.has_ended = True
        else:
            token = self.constraint.vocabulary.tokens[token_id]
            self.state.consume_token(token_id)
            self.written = (self.written + token)[-LONGEST:]
            if self.head is not None:
                self.head = self.head[len(token) :] if len(token) <= len(self.head) else None

    def _end(self, fault: str | None) -> Tensor:
        self.fault = self.fault or fault
        return self.constraint.ending

    def _mask(self) -> Mask:
        """Which tokens may go on with the text, without those that end it."""
        vocabulary = self.constraint.vocabulary
        bits = np.frombuffer(self.state.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=len(vocabulary.tokens), bitorder="little").view(bool)
        if self.head is not None and vocabulary.loses_blanks:
            mask &= ~(vocabulary.begin_with(self.head + b" ") if self.head else vocabulary.droppable)
        if finishing := vocabulary.finish(self.written):
            mask[finishing] = False
        return mask
