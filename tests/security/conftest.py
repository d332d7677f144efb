"""What every hostile file is tried with: a marker that must not appear, files outside that must not change, one line."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
