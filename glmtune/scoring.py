"""How answers are judged: one form of verdict, used by tasks, evaluation and rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["exact", "equal", "wrong", "unparseable"]


@dataclass(frozen=True)
class Score:
    """How good an answer is.

    Attributes:
        verdict: `exact` as the target has it; `equal` the same value, written otherwise; `wrong`; `unparseable` no
            answer, or several.
        answer: the answer that was read off the completion.
        faithful: where a tool was to be called: whether it was called with what was asked.
    """

    verdict: Verdict
    answer: str | None = None
    faithful: bool | None = None

    @property
    def correct(self) -> bool:
        """The value is right: `exact` or `equal`."""
        return self.verdict in ("exact", "equal")
