"""A real server in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.conftest import FakeService

from glmtune.serving.app import make_app
from glmtune.serving.asking import Access, Limits
from glmtune.serving.floor import Floor
from glmtune.serving.serving import Server, make_server


@dataclass
class Live:
    """A server that listens on a port of its own."""

    server: Server
    port: int
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@contextmanager
def live(
    service: FakeService,
    limits: Limits | None = None,
    access: Access | None = None,
    timeout: float = 5.0,
    floor: Floor | None = None,
) -> Iterator[Live]:
    limits = limits or Limits()
    app = make_app(service, limits, access or Access())
    server = make_server(app, service, "127.0.0.1", 0, limits, timeout, floor)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    running = Live(server, server.servers[0].sockets[0].getsockname()[1], thread)
    try:
        yield running
    finally:
        running.end()


def wait_for(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is so; fail if it does not become so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)
