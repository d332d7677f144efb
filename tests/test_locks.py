"""One process works in a folder; the others are told which."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from killing import ends

from glmtune import locks
from glmtune.locks import held
from glmtune.runtime import UserError


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.02)
    monkeypatch.setattr(locks, "SILENCE", 0.3)


def be_killed_in(folder: Path) -> None:
    with held(folder):
        os.kill(os.getpid(), signal.SIGKILL)


def test_who_holds_it_is_told(tmp_path: Path) -> None:
    with held(tmp_path) as left:
        assert left is None
        with pytest.raises(UserError, match=rf"works in it \(process {os.getpid()} on {platform.node()}, since 2"):
            held(tmp_path).__enter__()
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path) as left:
        assert left is None


def test_what_a_killed_process_held_is_taken_and_told(tmp_path: Path) -> None:
    assert ends(lambda: be_killed_in(tmp_path)) == -signal.SIGKILL
    assert (tmp_path / ".lock").is_file()
    with held(tmp_path) as left:
        assert left is not None and left.pid != os.getpid() and left.host == platform.node()
    with held(tmp_path) as left:
        assert left is None


def test_a_copy_is_held_by_nobody(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with held(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with held(tmp_path / "copy") as left:
            assert left is None


@pytest.mark.parametrize("lives", [True, False])
def test_another_machine(tmp_path: Path, lives: bool) -> None:
    """Whose locks are not seen here: it works as long as it gives signs of life."""
    with held(tmp_path):
        values = json.loads((tmp_path / ".lock").read_text())
    file = tmp_path / ".lock"
    file.write_text(json.dumps(values | {"host": "elsewhere"}))
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(0.05):
            os.utime(file)

    thread = threading.Thread(target=live)
    if lives:
        thread.start()
        with pytest.raises(UserError, match="on elsewhere"):
            held(tmp_path).__enter__()
        ended.set()
        thread.join()
    with held(tmp_path) as left:
        assert left is not None and left.host == "elsewhere"


@pytest.mark.parametrize("lives", [True, False])
def test_where_the_system_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: bool) -> None:
    """The number of the process tells, and when it was started."""
    monkeypatch.setattr(locks, "lock", lambda folder, wait: None)
    with held(tmp_path):
        values = json.loads((tmp_path / ".lock").read_text())
    parent = {"pid": os.getppid(), "born": locks.born(os.getppid()) if lives else 1.0}
    (tmp_path / ".lock").write_text(json.dumps(values | parent))
    if lives:
        with pytest.raises(UserError, match=f"process {os.getppid()} on"):
            held(tmp_path).__enter__()
    else:
        with held(tmp_path) as left:
            assert left is not None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', "[" * 100_000, "null"])
def test_a_file_of_anything(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    with held(tmp_path) as left:
        assert left is None


def test_signs_of_life(tmp_path: Path) -> None:
    with held(tmp_path):
        before = locks.touched(tmp_path / ".lock")
        end = time.monotonic() + 5
        while locks.touched(tmp_path / ".lock") == before:
            assert time.monotonic() < end
            time.sleep(0.01)
