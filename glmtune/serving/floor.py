"""Who has the floor: the event loop, or the thread that decodes.

Where a model is small, both are Python's work. Threads that take Python from each other at every product of torch spend
their time in waiting for it; so each keeps it until it has nothing to do, or a step is done.
"""

from __future__ import annotations

import selectors
import time
from threading import Lock

HELD = 0.02  # seconds that an event loop which is never done keeps the floor


class Floor:
    """A lock of two threads, in which who waits comes before who has just had it."""

    def __init__(self) -> None:
        self._next, self._held = Lock(), Lock()

    def __enter__(self) -> None:
        with self._next:
            self._held.acquire()

    def __exit__(self, *_: object) -> None:
        self._held.release()


class FloorSelector(selectors.DefaultSelector):
    """The selector of an event loop that has the floor, but where it waits for something to do."""

    def __init__(self, floor: Floor) -> None:
        """A selector whose event loop has not begun."""
        super().__init__()
        self._floor = floor
        self._until: float | None = None  # by the clock, where it has the floor

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for what can be read and written, as of `BaseSelector`."""
        is_busy = timeout is not None and timeout <= 0
        if is_busy and self._until is not None and time.monotonic() < self._until:
            return super().select(timeout)
        self._leave()
        try:
            return super().select(timeout)
        finally:
            self._floor.__enter__()
            self._until = time.monotonic() + HELD

    def close(self) -> None:
        """Leave the floor to others for good."""
        self._leave()
        super().close()

    def _leave(self) -> None:
        if self._until is not None:
            self._until = None
            self._floor.__exit__()
