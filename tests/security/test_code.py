"""Code that a file names runs for nobody who has not typed its path or said yes to its bytes."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import glmtune
from glmtune import cli, registry, trust
from glmtune.commands import chat, doctor, estimate, evaluate, ls, train
from glmtune.config import load_recipe, make_recipe
from glmtune.execution import Run
from glmtune.runtime import RunFolder
from glmtune.trust import Trust, UntrustedError

PACKAGE = Path(glmtune.__file__).parent
SECTIONS = ("task", "method", "objective")
TASK = """
from pathlib import Path
from glmtune.tasks.arithmetic import Arithmetic

Path({witness!r}).open("a").write("ran\\n")


class Mine(Arithmetic):
    pass
"""


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's settings, of each test its own; nobody sits at a terminal."""
    folder = tmp_path / "config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    return folder


@pytest.fixture
def hostile(tmp_path: Path, payload: str) -> Path:
    """A file of code that must not run."""
    path = tmp_path / "stranger" / "harm less.py"
    path.parent.mkdir()
    path.write_text(payload)
    return path


@pytest.fixture
def travelled(hostile: Path) -> Callable[..., Path]:
    """`travelled("run", "task")`: something of a stranger's, whose recipe names the code in a section."""

    def make(kind: str, *sections: str) -> Path:
        recipe = {section: {"name": str(hostile)} for section in sections}
        folder = hostile.parent / kind
        folder.mkdir()
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        if kind == "recipe":
            return folder / "recipe.yaml"
        if kind == "model":
            shutil.copytree(PACKAGE / "models" / "nano", folder, dirs_exist_ok=True)
        if kind == "adapter":
            (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "nano"}')
        return folder

    return make


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file of the user's own, which leaves a line in `witness` whenever it runs."""
    path = tmp_path / "mine.py"
    path.write_text(TASK.format(witness=str(tmp_path / "witness")))
    return path


def runs_of(own: Path) -> int:
    """How often the user's file has run."""
    witness = own.parent / "witness"
    return len(witness.read_text().splitlines()) if witness.exists() else 0


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


VERBS: dict[str, Callable[[Path, Path], list[object]]] = {
    "chat": lambda target, place: ["chat", target, "-q", "1+1="],
    "evaluate": lambda target, place: ["evaluate", target],
    "predict": lambda target, place: ["predict", target, "--input", place / "x.jsonl", "--output", place / "y.jsonl"],
    "export": lambda target, place: ["export", target, "--output", place / "exported"],
    "export to gguf": lambda target, place: ["export", target, "--to", "gguf", "--output", place / "x.gguf"],
    "train": lambda target, place: ["train", target, f"training.output_dir={place / 'run'}"],
    "resume": lambda target, place: ["train", "--resume", target],
}
CASES = [
    *((verb, "run", section) for verb in ("chat", "evaluate", "predict", "export", "resume") for section in SECTIONS),
    *(("train", "recipe", section) for section in SECTIONS),
    *((verb, kind, "task") for verb in ("chat", "evaluate", "export to gguf") for kind in ("model", "adapter")),
]


@pytest.mark.parametrize(("verb", "kind", "section"), CASES, ids="-".join)
def test_a_file_names_code(
    verb: str,
    kind: str,
    section: str,
    travelled: Callable[..., Path],
    hostile: Path,
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    line = refused(*VERBS[verb](travelled(kind, section), tmp_path))
    for part in ("recipe.yaml", f"{section}.name asks to run {hostile}", digest(hostile), "--trust-code"):
        assert part in line
    assert f"type '{section}.name={hostile}'" in line  # as a shell takes it


def test_all_that_is_asked_is_told_in_one_line(
    travelled: Callable[..., Path], refused: Callable[..., str], hostile: Path
) -> None:
    line = refused("chat", travelled("run", *SECTIONS), "-q", "1+1=")
    assert line.count(f"asks to run {hostile}") == 3 and line.count(digest(hostile)) == 3


CALLS: dict[str, Callable[[Path], Any]] = {
    "train": lambda run: glmtune.train(run / "recipe.yaml", quiet=True),
    "resume": lambda run: glmtune.train(resume=run, quiet=True),
    "evaluate": glmtune.evaluate,
    "predict": lambda run: glmtune.predict(run, ["1+1="]),
    "export": glmtune.export,
    "load": glmtune.load,
    "load on a base": lambda run: glmtune.load("nano", adapter=run),
}


@pytest.mark.parametrize("call", CALLS)
def test_in_python_as_well(call: str, travelled: Callable[..., Path], hostile: Path, tiny_run: Run) -> None:
    run = travelled("run", "task")
    shutil.copytree(tiny_run.folder.adapter, run / "adapter")
    with pytest.raises(UntrustedError, match=r"trust_code=True") as told:
        CALLS[call](run)
    assert str(hostile) in str(told.value) and digest(hostile) in str(told.value)


@pytest.mark.parametrize("kind", ["run", "recipe", "model", "adapter"])
@pytest.mark.parametrize("section", SECTIONS)
def test_doctor_says_what_is_asked(section: str, kind: str, travelled: Callable[..., Path], hostile: Path) -> None:
    found = {diagnosis.name: diagnosis for diagnosis in doctor.run(str(travelled(kind, section)))}
    code = found["code"]
    assert code.status == "failure"
    assert f"{section}.name asks to run {hostile} (SHA-256 {digest(hostile)})" in code.finding
    assert code.remedy.endswith(f"name it yourself: '{section}.name={hostile}'")
    assert found["python"].status == "ok"
    if kind in ("recipe", "model"):  # what can be said without it
        assert {found[name].status for name in ("model", "config", "tokenizer", "template")} == {"ok"}
        assert "precision" in found["not checked"].finding
    if kind == "recipe":
        assert {"data", "lengths", "method"} <= {*found["not checked"].finding.split(", ")}


def test_doctor_ends_with_a_failure(travelled: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", str(travelled("run", "task"))])
    assert stop.value.code == 2 and "FAILS    code: " in capsys.readouterr().out


def test_estimate_does_without(
    travelled: Callable[..., Path], hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = travelled("recipe", "task", "objective")
    assert estimate.run(recipe).estimate.peak == estimate.run().estimate.peak
    said = capsys.readouterr().err
    assert said.count(f"asks to run {hostile}") == 2 and len(said.splitlines()) == 1


def test_estimate_needs_the_method(travelled: Callable[..., Path], hostile: Path, refused: Callable[..., str]) -> None:
    line = refused("estimate", travelled("recipe", "method"))
    assert f"method.name asks to run {hostile} (SHA-256 {digest(hostile)})" in line
    assert line.endswith(f"type 'method.name={hostile}'.")  # it has no --trust-code


def test_inspect_needs_the_tokens_alone(
    travelled: Callable[..., Path], hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text('{"prompt": "1+1=", "target": "2"}\n')
    with pytest.raises(SystemExit) as stop:
        cli.main(["inspect", str(records), "--model", str(travelled("model", "task", "method"))])
    assert stop.value.code == 0 and f"task.name asks to run {hostile}" in capsys.readouterr().out


def test_ls_says_what_is_asked(travelled: Callable[..., Path], hostile: Path) -> None:
    run = travelled("run", "task")
    found = ls.run(str(hostile.parent), str(run))
    assert found["runs"][str(run)].endswith(f"; asks to run {hostile}")
    assert found["recipes"][str(run / "recipe.yaml")].endswith(f"asks to run {hostile}")


@pytest.mark.parametrize("verb", ["doctor", "estimate"])
def test_what_was_allowed_is_not_run_where_one_only_looks(verb: str, own: Path, tmp_path: Path) -> None:
    trust.remember(own, digest(own))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"task: {{name: {own}}}\n")
    assert doctor.run(str(recipe)) if verb == "doctor" else estimate.run(recipe)
    assert runs_of(own) == 0
    assert load_recipe(recipe).task.name == str(own) and runs_of(own) == 1


@pytest.mark.parametrize("typed", ["task.name={}", "task={{name: {}}}", "task.name='{}'"])
def test_what_is_typed_runs(typed: str, own: Path) -> None:
    assert load_recipe(None, [typed.format(own)]).task.name == str(own)
    assert runs_of(own) == 1


def test_what_is_typed_may_be_what_the_file_says(own: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"task: {{name: {own}, digits: 4}}\n")
    assert load_recipe(recipe, [f"task.name={own}"]).task.digits == 4


def test_what_is_typed_vouches_for_itself_alone(
    travelled: Callable[..., Path], refused: Callable[..., str], own: Path
) -> None:
    line = refused("chat", travelled("run", "method"), f"task.name={own}", "method.rank=4")
    assert "method.name asks to run" in line and "task.name" not in line
    assert runs_of(own) == 0  # nothing runs before all is allowed


def test_a_built_in_name_can_be_typed_in_its_place(travelled: Callable[..., Path]) -> None:
    recipe = load_recipe(travelled("recipe", "task"), ["task.name=arithmetic"])
    assert recipe.task.name == "arithmetic"


def test_a_run_with_ones_own_task(own: Path, tmp_path: Path, tiny_settings: list[str], config: Path) -> None:
    """What was typed at training is not asked of again, until it changes."""
    more = [f"task.name={own}", f"training.output_dir={tmp_path / 'run'}"]
    run = train.run(overrides=[*tiny_settings, *more], trust=Trust(remembers=True))
    assert run.path == tmp_path / "run"
    store = config / "glmtune" / "trusted-code"
    assert store.read_text() == f"{digest(own)}  {own}\n"
    assert evaluate.run(run.path)[1]["n"] == 6
    own.write_text(own.read_text() + "# another day\n")
    before = runs_of(own)
    for ask in (evaluate.run, chat.Chat):
        with pytest.raises(UntrustedError, match=digest(own)):
            ask(run.path)
    with pytest.raises(UntrustedError, match=digest(own)):
        train.run(resume=run.path)
    assert runs_of(own) == before
    assert evaluate.run(run.path, trust=Trust(everything=True))[1]["n"] == 6
    assert load_recipe(run.path / "recipe.yaml", [f"task.name={own}"]).task.name == str(own)
    assert digest(own) not in store.read_text()  # neither is a yes for another time


@pytest.fixture
def run_of_own(own: Path, tiny_run: Run, tmp_path: Path) -> Path:
    """A run whose recipe names the user's file, as it came from another machine."""
    run = shutil.copytree(tiny_run.folder.path, tmp_path / "arrived")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["task"]["name"] = str(own)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return run


@pytest.mark.parametrize("said", [["--trust-code"], ["task.name={}"]], ids=str)
def test_both_remedies_work(said: list[str], run_of_own: Path, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["chat", str(run_of_own), "-q", "1+1=", *(text.format(own) for text in said)])
    assert stop.value.code == 0 and capsys.readouterr().err == "" and runs_of(own) == 1
    assert not trust.is_remembered(digest(own))


def test_trust_in_python(run_of_own: Path, own: Path) -> None:
    with pytest.raises(UntrustedError):
        glmtune.evaluate(run_of_own)
    assert glmtune.evaluate(run_of_own, trust_code=True).accuracy >= 0
    assert [answer.text for answer in glmtune.predict(run_of_own, ["1+1="], settings={"task.name": str(own)})]
    assert runs_of(own) == 1  # the same bytes are one module


@pytest.mark.parametrize("verb", ["chat", "evaluate", "predict", "export", "train"])
def test_every_verb_that_runs_code_has_the_flag(verb: str) -> None:
    more = ["--input", "a", "--output", "b"] if verb == "predict" else []
    assert cli.parse([verb, "x", "--trust-code", *more]).trust_code is True


def test_a_run_that_goes_on_is_vouched_for_as_any(own: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.recipe.write_text(f"task: {{name: {own}}}\n")
    with pytest.raises(UntrustedError):
        train.read_resumed(run, None, [], Trust())
    assert runs_of(own) == 0
    assert train.read_resumed(run, None, [f"task.name={own}"], Trust()).task.name == str(own)
    assert runs_of(own) == 1


def test_the_record_of_a_run_names_no_other_code(
    own: Path, hostile: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """What was allowed is what recipe.yaml names, not what lies beside the checkpoints."""
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    run.recipe.write_text(f"task: {{name: {own}}}\n")
    values = {"recipe": {"task": {"name": str(hostile)}}, "base": None, "records": None, "changes": []}
    (run.checkpoints / "run.json").write_text(json.dumps(values))
    assert "run.json" in refused("train", "--resume", run.path, f"task.name={own}")


@pytest.mark.parametrize(("answer", "runs"), [("y\n", 1), ("YES\n", 1), ("n\n", 0), ("\n", 0), ("", 0), ("yes!\n", 0)])
def test_who_sits_at_a_terminal_is_asked(
    answer: str, runs: int, own: Path, tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"task: {{name: {own}}}\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    if runs:
        load_recipe(recipe, trust=Trust(asks=True))
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        load_recipe(recipe, trust=Trust(asks=True))  # once is enough
    else:
        with pytest.raises(UntrustedError):
            load_recipe(recipe, trust=Trust(asks=True))
    said = capsys.readouterr().err
    assert said.count(f"{recipe}: task.name asks to run {own} (SHA-256 {digest(own)})") == 1
    assert runs_of(own) == runs
    assert (config / "glmtune").exists() == bool(runs)


def test_a_changed_file_is_asked_of_again(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"task: {{name: {own}}}\n")
    asked: list[str] = []
    monkeypatch.setattr(trust, "confirm", lambda question: asked.append(question) is None)
    for text in ("# a\n", "# a\n", "# b\n", "# a\n"):
        own.write_text(TASK.format(witness=str(tmp_path / "witness")) + text)
        load_recipe(recipe, trust=Trust(asks=True))
    assert len(asked) == 2 == len(set(asked))


def test_the_store_is_the_users_alone(own: Path, config: Path) -> None:
    trust.remember(own, "a" * 64)
    trust.remember(own, "b" * 64)
    trust.remember(own, "a" * 64)
    file = config / "glmtune" / "trusted-code"
    assert file.read_text() == f"{'a' * 64}  {own}\n{'b' * 64}  {own}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["trusted-code"]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_store_that_others_can_write_has_nothing_to_say(mode: int, own: Path, config: Path) -> None:
    trust.remember(own, "a" * 64)
    file = config / "glmtune" / "trusted-code"
    file.chmod(mode)
    assert not trust.is_remembered("a" * 64)
    trust.remember(own, "b" * 64)
    assert file.read_text() == f"{'b' * 64}  {own}\n" and stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_store_is_not_read_or_written_through_a_link(own: Path, config: Path, outside: Path) -> None:
    (config / "glmtune").mkdir(parents=True)
    (config / "glmtune" / "trusted-code").symlink_to(outside / "thesis.txt")
    trust.remember(own, "a" * 64)
    assert not trust.is_remembered("a" * 64)


@pytest.mark.parametrize("value", ["", "here", "./here", None])
def test_the_store_is_never_beside_what_travels(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative XDG_CONFIG_HOME does not count, by its own specification."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", value) if value is not None else monkeypatch.delenv("XDG_CONFIG_HOME")
    assert trust.store() == tmp_path / "home" / ".config" / "glmtune" / "trusted-code"


def test_nothing_can_be_remembered_and_all_goes_on(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    load_recipe(None, [f"task.name={own}"], Trust(remembers=True))
    assert runs_of(own) == 1 and not trust.is_remembered(digest(own))


def test_the_bytes_that_were_read_are_those_that_run(own: Path, payload: str) -> None:
    source = registry.Source.read(str(own))
    own.write_text(payload)
    assert source.sha256 != digest(own)
    assert source.run().Mine.__name__ == "Mine" and runs_of(own) == 1


def test_compiled_code_beside_it_is_not_looked_at(own: Path, payload: str) -> None:
    cached = Path(importlib.util.cache_from_source(str(own)))
    cached.parent.mkdir()
    code = importlib.util.source_from_cache  # the header of a file that is taken unchecked
    assert code(str(cached)) == str(own)
    loader = importlib.machinery.SourceFileLoader("x", str(own))
    compiled = importlib._bootstrap_external._code_to_hash_pyc(  # type: ignore[attr-defined]
        loader.source_to_code(payload.encode(), str(own)), b"\0" * 8, False
    )
    cached.write_bytes(compiled)
    assert registry.find("glmtune.tasks", str(own)).__name__ == "Mine"
    assert cached.read_bytes() == compiled


def test_a_recipe_made_of_values_runs_nothing(hostile: Path) -> None:
    with pytest.raises(ValueError, match=r"was not run: nobody typed or allowed it"):
        make_recipe({"task": {"name": str(hostile)}})


NAMES = [
    "os.system",
    "..evil",
    "_private",
    "__init__",
    "a/b",
    "../../arithmetic",
    "glmtune.tasks.arithmetic",
    "arithmetic\0",
    "evil\0.py",
    "evil\x1b[2J.py",
    "cod\u202eyp.py",
    "nowhere/task.py",
    "folder.py",
    "pipe.py",
    "long.py",
    ["task.py"],
    {"name": "task.py"},
    5,
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
@pytest.mark.parametrize("section", SECTIONS)
def test_what_is_no_name(
    section: str, name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.py").mkdir()
    os.mkfifo("pipe.py")
    Path("long.py").write_bytes(b"#" * (registry.MOST_BYTES + 1))
    Path("recipe.yaml").write_text(yaml.safe_dump({section: {"name": name}}))
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "recipe.yaml"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in said
    line = next(line for line in said.splitlines() if f"{section}.name" in line or f"{section}:" in line)
    assert line.strip().isprintable()


def test_code_that_is_none_is_told_with_its_line(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "mine.py").write_text("x = 1\nclass Mine(:\n")
    assert f"{tmp_path / 'mine.py'}, line 2: " in refused("train", f"task.name={tmp_path / 'mine.py'}")


def test_the_recipe_of_a_base_is_not_read(
    travelled: Callable[..., Path], tiny_run: Run, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = travelled("run", *SECTIONS)
    shutil.copytree(tiny_checkpoint, base, dirs_exist_ok=True)
    adapter = shutil.copytree(tiny_run.folder.adapter, tmp_path / "adapter")
    record = json.loads((adapter / "base.json").read_text()) | {"base": str(base), "method": str(base / "evil.py")}
    (adapter / "base.json").write_text(json.dumps(record))
    assert glmtune.load(adapter)


@pytest.mark.parametrize("name", ["yaml", "regex", "pydantic", "bitsandbytes"])
def test_modules_in_the_working_folder(name: str, payload: str, tmp_path: Path) -> None:
    """`python -m` puts that folder first on the path."""
    (tmp_path / f"{name}.py").write_text(payload)
    done = subprocess.run(
        [sys.executable, "-m", "glmtune", "train", "--help-settings"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# The reader of recipes runs files; these find names that there are, of the package.
BUILT_IN = {
    "evaluation/page.py",
    "config/describing.py",
    "config/faults.py",
    "commands/completion.py",
    "commands/serve.py",
    "adapters.py",
    "data/forms.py",
}


def test_one_place_runs_code() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "registry.find",
                "registry.load",
                "registry.Source",
                "importlib.util.spec_from_file_location",
                "runpy.run_path",
                "sys.path",
            ):
                found.setdefault(path.relative_to(PACKAGE).as_posix(), set()).add(ast.unparse(node))
    assert found.pop("config/reading.py") == {"registry.Source"}
    assert found.pop("cluster.py") == {"registry.Source"}  # on other nodes, the bytes that were allowed on this one
    assert found.pop("objectives/_rewards.py") == {"registry.Source"}  # read, to say what is wrong with it; not run
    assert found.pop("__main__.py") == {"sys.path"}
    assert {*found} == BUILT_IN and set().union(*found.values()) == {"registry.find"}
