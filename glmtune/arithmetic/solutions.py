"""What a problem comes to: its answer, and how it is worked out up to there."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from glmtune.arithmetic.expressions import UNDEFINED, ExpressionError
from glmtune.arithmetic.problems import Problem
from glmtune.arithmetic.working import DRAFT_MARK, Cut, expression_steps, items_of


@dataclass(frozen=True)
class Solution:
    """A problem with its answer, draft and working; each is made when it is first asked for, and once.

    Attributes:
        problem: what is solved.
        decimals: of an answer that is rounded.
        round_all: every answer is rounded, not quotients alone.
        working_decimals: of quotients, and with `round_all` of products, within the working; None: one more than
            `decimals`, and all of products.
        inner_decimals: the same of results that are not terms of the whole expression; None: as `working_decimals`.
    """

    problem: Problem
    decimals: int
    round_all: bool = False
    working_decimals: int | None = None
    inner_decimals: int | None = None

    @cached_property
    def answer(self) -> str:
        """The right answer, rounded half-up; `undefined` where a divisor is zero."""
        return self.problem.answer(self.decimals, self.round_all)

    @cached_property
    def draft(self) -> str:
        """The sign, then the digits from the last to the first: `17.60` -> `06.71|`.

        Backwards, every step is local: the last digit of the column needs no carry, each further one only the digit
        before it. A small model learns to write this many times faster than the first digit first, which needs all
        carries at once. Zeros at the end stay, so that there is no exception.
        """
        if self.answer == UNDEFINED:
            return ""
        column = self.problem.column(self.decimals)
        return "-" * column.startswith("-") + column.removeprefix("-")[::-1] + DRAFT_MARK

    @property
    def working(self) -> str:
        """One operation after the other, and the draft of the last result; empty where there are no steps."""
        return self._worked[0]

    @property
    def is_consistent(self) -> bool:
        """Whether the working leads to the answer; decimals that are cut may be missing in the end."""
        return self._worked[1]

    @cached_property
    def _worked(self) -> tuple[str, bool]:
        if self.answer == UNDEFINED:
            return "", True
        places = self.decimals + 1 if self.working_decimals is None else self.working_decimals
        kept = self.working_decimals if self.round_all else None
        cut = Cut(places, kept, self.inner_decimals)
        try:
            steps, value = expression_steps(items_of(self.problem.tokens), cut)
        except ExpressionError:  # a divisor of which all decimals are cut; an exponent for which there are no steps
            return "", False
        if self.round_all or "/" in self.problem.tokens:
            value = value.rounded(self.decimals)
        is_right = Fraction(value.units, 10**value.places) == Fraction(self.answer)
        return f"{steps}{value.backwards}{DRAFT_MARK}", is_right
