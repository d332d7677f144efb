"""`glmtune completion`: what a shell completes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from glmtune.cli import build_parser
from glmtune.commands.completion import name_settings, run

COMPLETE = """
source ./script
function_of() { complete -p glmtune | sed 's/.*-F \\([^ ]*\\).*/\\1/'; }
COMP_WORDS=(%s)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
$(function_of) glmtune "${COMP_WORDS[$COMP_CWORD]}" "${COMP_WORDS[$((COMP_CWORD - 1))]}"
printf '%%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script() -> str:
    pytest.importorskip("shtab")
    return run(build_parser()[0], "bash")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("glmtune ev", ["evaluate"]),
        ("glmtune train --re", ["--resume"]),
        ("glmtune train demo", ["demo.yaml"]),
        ("glmtune train training.warm", ["training.warmup_ratio="]),
        ("glmtune train demo.yaml training.warm", ["training.warmup_ratio="]),
        ("glmtune export demo --to g", ["gguf"]),
        ("glmtune predict nano --input dem", ["demo.yaml"]),
    ],
)
def test_bash(script: str, words: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "script").write_text(script)
    (tmp_path / "demo.yaml").touch()
    done = subprocess.run(["bash", "-c", COMPLETE % words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.parametrize(("shell", "part"), [("zsh", "compadd -S = seed model.path"), ("tcsh", "n/predict/f/")])
def test_other_shells(shell: str, part: str) -> None:
    pytest.importorskip("shtab")
    assert part in run(build_parser()[0], shell)


def test_settings_of_every_section_are_known() -> None:
    names = name_settings()
    assert {"seed", "training.steps", "task.operators", "task.file", "method.rank", "method.num_virtual_tokens"} <= {
        *names
    }
    assert len(names) == len(set(names))
