"""The floor: one works at a time, and nobody waits for ever."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from serving.conftest import FakeService
from serving.live import live
from serving.test_openai import ASKED, CHAT

from glmtune.serving import floor
from glmtune.serving.floor import Floor, FloorSelector


class Decoding:
    """A thread that takes the floor whenever it can."""

    def __init__(self, held: Floor) -> None:
        self.floor, self.inside, self.turns, self.is_over = held, False, 0, False

    def run(self) -> None:
        while not self.is_over:
            with self.floor:
                self.inside = True
                time.sleep(0.001)
                self.inside = False
                self.turns += 1


@contextmanager
def decoding(held: Floor) -> Iterator[Decoding]:
    working = Decoding(held)
    thread = threading.Thread(target=working.run, daemon=True)
    thread.start()
    try:
        yield working
    finally:
        working.is_over = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def loop() -> Iterator[tuple[asyncio.AbstractEventLoop, Floor]]:
    held = Floor()
    loop = asyncio.SelectorEventLoop(FloorSelector(held))
    yield loop, held
    loop.close()


def test_one_works_at_a_time(loop: tuple[asyncio.AbstractEventLoop, Floor]) -> None:
    overlaps: list[bool] = []

    async def work(other: Decoding) -> None:
        for _ in range(30):
            await asyncio.sleep(0.002)
            begun = other.turns
            time.sleep(0.002)  # works, and would let another thread do so
            overlaps.append(other.inside or other.turns > begun)

    with decoding(loop[1]) as other:
        loop[0].run_until_complete(work(other))
        loop[0].close()  # what it held is free now
    assert overlaps == [False] * 30 and other.turns > 30


def test_a_loop_that_is_never_done_gives_way(
    loop: tuple[asyncio.AbstractEventLoop, Floor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "HELD", 0.005)

    async def work(other: Decoding) -> int:
        rounds = 0
        end = time.monotonic() + 10
        while other.turns < 20 and time.monotonic() < end:
            rounds += 1
            await asyncio.sleep(0)
        return rounds

    with decoding(loop[1]) as other:
        rounds = loop[0].run_until_complete(work(other))
        assert other.turns >= 20 and rounds > 20  # several rounds a turn, and turns nevertheless
        loop[0].close()


def test_a_server_takes_turns(service: FakeService) -> None:
    held = Floor()
    with decoding(held) as other, live(service, floor=held) as server:
        begun = other.turns
        for _ in range(5):
            assert httpx.post(f"{server.url}{CHAT}", json=ASKED, timeout=20).status_code == 200
        assert other.turns > begun
