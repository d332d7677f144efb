"""What a check is: a thing to look at, and what was found, with a remedy. Whatever is raised becomes a failure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from glmtune.runtime import UserError

Status = Literal["ok", "warning", "failure"]
Finding: TypeAlias = tuple[Status, str, str]  # what a check gives: status, what was found, remedy


SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z])")


@dataclass(frozen=True)
class Check:
    """What is told of one thing.

    Attributes:
        name: of the thing.
        status: `failure`: something would fail; `warning`: it works, but look at it.
        finding: what was found.
        remedy: what to do; empty where nothing is to be done.
    """

    name: str
    status: Status
    finding: str
    remedy: str = ""


@dataclass(frozen=True)
class Examination:
    """One thing to look at.

    Attributes:
        name: of the check.
        look: gives status, finding and remedy, or raises.
        remedy: where `look` raises something that names none.
        needs: names of the checks without which there is nothing to look at.
    """

    name: str
    look: Callable[..., Finding]
    remedy: str
    needs: tuple[str, ...] = ()

    def check(self, *about: Any) -> Check:
        """Look at it; whatever is raised becomes a failure."""
        try:
            return Check(self.name, *self.look(*about))
        except Exception as error:  # libraries document no classes of errors
            return failure(self.name, error, self.remedy)


def failure(name: str, error: Exception, remedy: str) -> Check:
    """An error as a check that failed.

    Args:
        name: of the check.
        error: whose own remedy counts, if it is one of ours.
        remedy: for a library's errors, which advise anything.
    """
    if isinstance(error, UserError) and error.__cause__ is None:
        finding, own = told(error)
        return Check(name, "failure", finding, own or remedy)
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return Check(name, "failure", textwrap.shorten(f"{kind}{error}", 400, placeholder=" ..."), remedy)


def told(error: UserError) -> tuple[str, str]:
    """What is wrong, and the remedy: the first sentence of our own messages, and the rest."""
    finding, *rest = SENTENCE_END.split(" ".join(str(error).split()), maxsplit=1)
    return finding, " ".join(rest)


def examine(examinations: Sequence[Examination], *about: Any) -> Iterator[Check]:
    """The checks in order; those that need what failed are named together at the end."""
    unseen: list[str] = []
    failed: set[str] = set()
    for examination in examinations:
        if not failed.isdisjoint(examination.needs):
            unseen.append(examination.name)
            failed.add(examination.name)
            continue
        check = examination.check(*about)
        if check.status == "failure":
            failed.add(check.name)
        yield check
    if unseen:
        yield Check("not checked", "warning", ", ".join(unseen), "Mend what fails above, and ask the doctor again.")
