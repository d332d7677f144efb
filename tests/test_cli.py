"""The command line: what it says, where it says it, and with which exit code it ends."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune import __version__, cli
from glmtune.commands import evaluate
from glmtune.execution import Run

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"

Runs = Callable[..., tuple[int, str, str]]


@pytest.fixture
def glmtune(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """`glmtune("train", ...)`: (exit code, stdout, stderr) of a command in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def places(tmp_path: Path, tiny_run: Run, tiny_checkpoint: Path, write_records: Any) -> dict[str, str]:
    """Good and bad files, by the name in braces under which the cases below use them."""
    pointer, truncated = (Path(shutil.copytree(tiny_checkpoint, tmp_path / name)) for name in ("pointer", "truncated"))
    (pointer / "model.safetensors").write_text(LFS_POINTER)
    weights = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    good = {"prompt": "1+2=", "target": "3"}
    files = {
        "good": write_records(good, name="good.jsonl"),
        "malformed": write_records(good, '{"prompt": 1', name="malformed.jsonl"),
        "blank": write_records(good, "", good, name="blank.jsonl"),
        "empty": write_records(name="empty.jsonl"),
        "lacking": write_records(good, {"frage": "1+2="}, name="lacking.jsonl"),
        "long": write_records(good, {"prompt": "1" * 200, "target": "1"}, name="long.jsonl"),
    }
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("precious")
    return {
        "run": str(tiny_run.folder.path),
        "tiny": str(tiny_checkpoint),
        "pointer": str(pointer),
        "truncated": str(truncated),
        **{name: str(path) for name, path in files.items()},
    }


@pytest.mark.parametrize("verb", [None, *cli.verbs()])
def test_help(glmtune: Runs, verb: str | None) -> None:
    code, out, err = glmtune(*filter(None, [verb]), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: glmtune {verb or ''}")
    assert verb is None or "--debug" in out
    if verb is None:
        assert all(f"\n    {name}" in out for name in cli.verbs())


def test_without_a_verb(glmtune: Runs) -> None:
    assert glmtune() == glmtune("--help")
    assert glmtune("--version") == (0, f"glmtune {__version__}\n", "")


def test_every_setting_is_listed(glmtune: Runs) -> None:
    code, out, _ = glmtune("train", "--help-settings")
    assert code == 0
    assert all(f"\n{name} = " in f"\n{out}" for name in ("seed", "training.steps", "task.operators", "method.rank"))


BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    "no such verb": (["trian"], ["no such verb: trian. Did you mean 'train'?"]),
    "no such flag": (["chat", "{run}", "--hsitory"], ["unrecognized arguments: --hsitory"]),
    "no such model": (
        ["evaluate", "/no/such/model"],
        ["no run, adapter, checkpoint or recipe at /no/such/model.", "Known: nano"],
    ),
    "nearly a model": (
        ["chat", "./pointr", "-q", "1"],
        ["no run, adapter, checkpoint or recipe at ./pointr.", "'pointer'"],
    ),
    "LFS pointer": (["evaluate", "{pointer}"], ["pointer/model.safetensors is a Git-LFS pointer", "git lfs pull"]),
    "truncated": (["train", "model.path={truncated}"], ["truncated/model.safetensors is truncated: ", "again"]),
    "unknown setting": (["train", "training.step=5"], ["training.step: unknown setting", "'steps'"]),
    "unknown section": (["train", "trainig.steps=5"], ["trainig: unknown setting", "'training'"]),
    "wrong type": (["train", "training.steps=many"], ["training.steps: ", "integer", "'many'"]),
    "out of range": (["train", "training.learning_rate=-1"], ["training.learning_rate: ", "greater than 0", "-1"]),
    "no setting": (["train", "seed=1", "training.steps"], ["'training.steps': write it as section.setting=value"]),
    "several faults": (
        ["train", "training.step=5", "method.rank=0", "task.operators=^", "model.bits=3"],
        ["training.step: ", "method.rank: ", "task.operators", "'^'", "model.bits: "],
    ),
    "unknown task": (["train", "task.name=arithmetics"], ["task.name: unknown name 'arithmetics'", "'arithmetic'"]),
    "unknown method": (["train", "method.name=lorra"], ["method.name: unknown name 'lorra'", "'lora'"]),
    "no such recipe": (["train", "none.yaml"], ["none.yaml: no such file"]),
    "task without file": (["train", "task.name=instructions"], ["task.file: "]),
    "unknown task of data": (["data", "arithmetics", "--output", "out"], ["'arithmetics'", "'arithmetic'"]),
    "no examples": (["data", "arithmetic", "--n", "0", "--output", "out"], ["--n 0: must be at least 1"]),
    "malformed line": (
        ["evaluate", "{run}", "--data", "{malformed}"],
        ["malformed.jsonl, line 2: not JSON", "data.on_error=skip"],
    ),
    "blank line": (["evaluate", "{run}", "--data", "{blank}"], ["blank.jsonl, line 2: empty", "Delete the line"]),
    "empty file": (["evaluate", "{run}", "--data", "{empty}"], ["empty.jsonl: no records"]),
    "missing field": (["evaluate", "{run}", "--data", "{lacking}"], ["lacking.jsonl, line 2: 'prompt'", "frage"]),
    "malformed prompt": (
        ["predict", "{run}", "--input", "{malformed}", "--output", "out"],
        ["line 2: not JSON", "--on-error record"],
    ),
    "missing prompt": (["predict", "{run}", "--input", "{lacking}", "--output", "out"], ["line 2: 'prompt'"]),
    "long prompt": (
        ["predict", "{run}", "--input", "{long}", "--output", "out"],
        ["long.jsonl, line 2: the prompt has 203 tokens", "the 128 that this model takes", "Shorten the prompt"],
    ),
    "no input": (["predict", "{run}", "--input", "no.jsonl", "--output", "out"], ["no.jsonl: no such file"]),
    "output exists": (
        ["predict", "{run}", "--input", "{good}", "--output", "{long}"],
        ["long.jsonl: exists already", "--overwrite"],
    ),
    "output is a folder": (["predict", "{run}", "--input", "{good}", "--output", "taken"], ["taken: is a folder"]),
    "output in no folder": (["evaluate", "{run}", "--output", "{good}/out.json"], ["good.jsonl/out.json: cannot be"]),
    "folder holds a run": (["train", "training.output_dir={run}"], ["already holds a run", "--resume {run}"]),
    "folder is taken": (["train", "training.output_dir=taken"], ["taken is not empty", "Nothing in it was touched"]),
    "resume nothing": (["train", "--resume", "taken"], ["--resume taken: no run there", "glmtune ls"]),
    "resume and unlearn": (["train", "--resume", "{run}", "training.steps=9"], ["has made 12 steps already", "Set 12"]),
    "resume and change": (["train", "--resume", "{run}", "seed=1"], ["seed=1 (42 so far)", "Start a new run"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(
    glmtune: Runs, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """One clear message with the name, the value and the remedy; no weight is read, nothing is written or changed."""
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    arguments, expected = ([text.format(**places) for text in texts] for texts in BAD_INPUT[case])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code, out, err = glmtune(*arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert [part for part in expected if part not in err] == [], err
    lines = [line for line in err.splitlines() if line.startswith("glmtune")]
    assert len(lines) == 1 and lines[0].startswith(("glmtune: error: ", f"glmtune {arguments[0]}: "))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_debug_shows_the_traceback(places: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="no run, adapter, checkpoint or recipe at"):
        cli.main(["evaluate", "/no/such/model", "--debug"])


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch, places: dict[str, str]) -> None:
    def defect(*args: Any, **options: Any) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(evaluate, "run", defect)
    with pytest.raises(KeyError):
        cli.main(["evaluate", places["run"]])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_too_little_memory(glmtune: Runs, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(evaluate, "run", fail)
    code, _, err = glmtune("evaluate", "nano")
    assert code == 2 and "out of memory. Lower training.batch_size" in err and "Traceback" not in err


def test_ctrl_c(glmtune: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "run", interrupt)
    assert glmtune("evaluate", "nano") == (130, "", "\nInterrupted. What is written stays.\n")


@pytest.mark.parametrize("ignores_ctrl_c", [True, False])
def test_kill_ends_as_ctrl_c_does(glmtune: Runs, monkeypatch: pytest.MonkeyPatch, ignores_ctrl_c: bool) -> None:
    """Also in the background, where a shell lets Ctrl-C be ignored; the exit code tells which it was."""
    before = signal.getsignal(signal.SIGTERM)
    had = signal.signal(signal.SIGINT, signal.SIG_IGN if ignores_ctrl_c else signal.default_int_handler)
    monkeypatch.setattr(evaluate, "run", lambda *_, **options: signal.raise_signal(signal.SIGTERM))
    try:
        assert glmtune("evaluate", "nano") == (143, "", "\nInterrupted. What is written stays.\n")
    finally:
        signal.signal(signal.SIGINT, had)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_full_disk(glmtune: Runs, places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The old report is still there."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    Path("report.json").write_text("precious")
    monkeypatch.setattr(os, "replace", full)
    code, _, err = glmtune("evaluate", places["run"], "--data", places["good"], "--output", "report.json")
    assert code == 2 and "report.json: cannot be written: No space left on device" in err and "MB free" in err
    assert Path("report.json").read_text() == "precious"


def test_a_day_with_it(glmtune: Runs, tiny_settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """data, train, evaluate, predict, chat and ls, one after the other; settings stand before and after flags."""
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = glmtune("data", "arithmetic", "--n", "5", "--output", "sums.jsonl", "task.operators=+", "seed=7")
    assert (code, out) == (0, "5 examples written to sums.jsonl\n")
    code, out, err = glmtune("train", *tiny_settings)
    assert code == 0 and "Traceback" not in err and "Warning" not in err
    assert "Right answers" in out and "Some of the answers" in out
    run = "runs/arithmetic-lora-1"
    assert f"Run folder: {run}; report.html tells" in out and f"glmtune chat {run}\n" in out
    code, out, _ = glmtune("evaluate", run, "--data", "sums.jsonl", "--output", "out.json", "generation.batch_size=2")
    assert code == 0 and "Written: out.json" in out
    assert json.loads(Path("out.json").read_text())["n"] == 5
    code, out, _ = glmtune("predict", run, "seed=1", "--input", "sums.jsonl", "--output", "out.jsonl", "--overwrite")
    assert (code, out) == (0, "5 records written to out.jsonl\n")
    assert len(Path("out.jsonl").read_text().splitlines()) == 5
    code, out, _ = glmtune("chat", run, "-q", "1+2=", "generation.max_new_tokens=2")
    assert code == 0 and out.endswith("\n")
    code, out, _ = glmtune("ls")
    assert code == 0 and f"  {run}  held-out accuracy" in out and "nano  embedded" in out


def test_a_reader_that_leaves_is_no_error() -> None:
    """As with `glmtune ls | head -1`."""
    code = "from glmtune import cli; from glmtune.commands import ls; "
    code += "ls.main = lambda options: print(input()); cli.main(['ls'])"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write("for nobody\n")
        process.stdin.close()
        assert (process.wait(timeout=60), process.stderr.read()) == (0, "")


def test_declaring_the_verbs_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from glmtune import cli\n"
        "cli.build_parser()\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'yaml', 'rich', 'jinja2', 'shtab'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
