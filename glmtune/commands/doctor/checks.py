"""What a check is: a thing to look at, and what was found, with a remedy. Whatever is raised becomes a failure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from glmtune.runtime import UserError

Status = Literal["ok", "warning", "awaited", "failure"]
Finding: TypeAlias = tuple[Status, str, str]  # what is found: status, a sentence, remedy

SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z])")


class AwaitedError(UserError):
    """Something is not there yet, and is not expected to be: an earlier recipe makes it."""


@dataclass(frozen=True)
class Diagnosis:
    """What is said of one thing.

    Attributes:
        name: of the thing.
        status: `failure`: something would fail; `awaited`: it is not there yet, and is not expected to be; `warning`:
            it works, but look at it.
        finding: what was found.
        remedy: what to do; empty where nothing is to be done.
    """

    name: str
    status: Status
    finding: str
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    Attributes:
        name: of the thing.
        look: gives status, finding and remedy, or raises.
        remedy: where `look` raises something that names none.
        needs: names of the checks without which there is nothing to look at.
    """

    name: str
    look: Callable[..., Finding]
    remedy: str
    needs: tuple[str, ...] = ()

    def diagnose(self, *subject: Any) -> Diagnosis:
        """Look at it; whatever is raised becomes a failure."""
        try:
            return Diagnosis(self.name, *self.look(*subject))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # libraries document no classes of errors; one in Rust raises no Exception
            return failure(self.name, error, self.remedy)


def failure(name: str, error: BaseException, remedy: str) -> Diagnosis:
    """Return an error as a diagnosis.

    Args:
        name: of the check.
        error: whose own remedy counts, if it is one of ours.
        remedy: for a library's errors, which advise anything.
    """
    if isinstance(error, UserError) and error.__cause__ is None:
        finding, own = split_message(error)
        return Diagnosis(name, "awaited" if isinstance(error, AwaitedError) else "failure", finding, own or remedy)
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return Diagnosis(name, "failure", textwrap.shorten(f"{kind}{error}", 400, placeholder=" ..."), remedy)


def split_message(error: UserError) -> tuple[str, str]:
    """Return what is wrong, and the remedy: the first sentence of our own messages, and the rest."""
    finding, *rest = SENTENCE_END.split(" ".join(str(error).split()), maxsplit=1)
    return finding, " ".join(rest)


def diagnose(checks: Sequence[Check], *subject: Any) -> Iterator[Diagnosis]:
    """Yield the diagnoses in order; checks that need what is not there or failed are named together at the end."""
    unseen: list[str] = []
    missing: set[str] = set()
    for check in checks:
        if not missing.isdisjoint(check.needs):
            unseen.append(check.name)
            missing.add(check.name)
            continue
        diagnosis = check.diagnose(*subject)
        if diagnosis.status in ("failure", "awaited"):
            missing.add(check.name)
        yield diagnosis
    if unseen:
        yield Diagnosis("not checked", "warning", ", ".join(unseen), "Mend what is told above, and ask again.")
