"""What hostile files are tried with: a marker that must not appear, files outside that must not change, one line."""

from __future__ import annotations

import hashlib
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from stand_in_hub import Hub

from glmtune import cli


def contents(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder, by its path; of a link, where it points."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"-> {path.readlink()}"
        elif path.is_file():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """Give the file that a payload writes when it runs; the test fails where it was written."""
    path = tmp_path / "MARKER"
    yield path
    assert not path.exists(), "the payload ran"


@pytest.fixture
def payload(marker: Path) -> str:
    """Give Python source that leaves the marker when it is imported."""
    return f"from pathlib import Path\nPath({str(marker)!r}).write_text('ran')\n"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """Give a folder of the user's with two files, which must be as they were when the test ends."""
    folder = tmp_path / "outside"
    (folder / "step-10").mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work\n")
    (folder / "step-10" / "state.pt").write_text("days of training\n")
    before = contents(folder)
    yield folder
    assert contents(folder) == before, "a file outside was changed"
    shutil.rmtree(folder)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Give a function that runs a command line in this process, expects a refusal, and returns its one line."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert stop.value.code == 2, f"exit code {stop.value.code}: {printed.out[-2000:]}{printed.err[-2000:]}"
        assert "Traceback" not in printed.err
        lines = [line for line in printed.err.splitlines() if line.startswith("glmtune ")]
        assert len(lines) == 1, printed.err
        return lines[0]

    return run


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Give a small hub in the place of huggingface.co, with a cache of its own; every other connection fails.

    `hub.models["owner/name"] = folder` and `hub.datasets[...]` are what it serves; `hub.requests` is what it was asked.
    The test fails where anything else was asked, of whatever host, even if that was caught.
    """
    elsewhere: list[Any] = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def connect_here(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[1] != server.server_port:
            elsewhere.append(address)
            raise OSError(f"a connection to {address}")
        connect(self, address)

    def resolve_here(host: Any, *arguments: Any, **options: Any) -> Any:
        if host != "127.0.0.1":
            elsewhere.append(host)
            raise OSError(f"a question for {host}")
        return resolve(host, *arguments, **options)

    cache = tmp_path / "hub-cache"
    close_session()
    with Hub().serving() as server, monkeypatch.context() as patch:
        for name, value in {
            "ENDPOINT": server.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "AGENT_HARNESSES_PATH": str(cache / "agents.json"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            patch.setattr(constants, name, value)
        patch.setattr(socket.socket, "connect", connect_here)
        patch.setattr(socket, "getaddrinfo", resolve_here)
        yield server
    close_session()
    assert not elsewhere, f"a host other than the hub was asked: {elsewhere}"
