"""One HTTP request on its way: who asks, what it has come to; and which of them are open."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from anyio import CancelScope, current_time

_PLAIN = re.compile(r"[A-Za-z0-9._:-]{1,64}")


@dataclass
class Call:
    """What is known of one request: for its log line, its metrics, and the header of its response.

    Attributes:
        id: of the request; the client's own, where it sends a short and plain one.
        status: of the response; None until it has begun.
        is_complete: the response has been sent.
        is_gone: the client went away before that.
        model: the name that answered.
        prompt_tokens, completion_tokens: how many.
        started, first_token: by `time.perf_counter`.
    """

    id: str
    status: int | None = None
    is_complete: bool = False
    is_gone: bool = False
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = field(default_factory=time.perf_counter)
    first_token: float | None = None

    @classmethod
    def of(cls, given: str) -> Call:
        """Return a call with the client's id, or one of our own."""
        return cls(given if _PLAIN.fullmatch(given) else secrets.token_hex(16))

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.perf_counter() - self.started


class OpenCalls:
    """The answers that are under way, and whether more are taken.

    Attributes:
        is_draining: no more are.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self._scopes: set[CancelScope] = set()
        self._is_over = False

    @contextmanager
    def open(self, seconds: float) -> Iterator[CancelScope]:
        """Cancel what is done within once it has taken so long, or the server ends."""
        with CancelScope() as scope:
            scope.deadline = current_time() + seconds
            self._scopes.add(scope)
            if self._is_over:
                scope.cancel()
            try:
                yield scope
            finally:
                self._scopes.discard(scope)

    def drain(self) -> None:
        """Take no more requests."""
        self.is_draining = True

    def end(self) -> None:
        """End all that are under way."""
        self.is_draining = self._is_over = True
        for scope in list(self._scopes):
            scope.cancel()
