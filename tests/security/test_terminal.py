"""Whatever a model writes or a file holds, the terminal shows it and obeys nothing of it."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from glmtune import cli, terminal
from glmtune.commands import chat, ls
from glmtune.evaluation.report import sample_table
from glmtune.examples import Example
from glmtune.scoring import Score
from glmtune.terminal import say, secure, to_json, visible
from glmtune.terminal.console import Console

PACKAGE = Path(__file__).parents[2] / "glmtune"

# What a terminal obeys, and how it is shown.
COMMANDS = {
    "\x1b]52;c;cm0gLXJmIH4K\x07": r"\x1b]52;c;cm0gLXJmIH4K\x07",  # fills the clipboard
    "\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\": r"\x1b]8;;http://evil.example\x1b\here\x1b]8;;\x1b" + "\\",
    "\x1b[2J\x1b[H": r"\x1b[2J\x1b[H",  # clears the screen
    "\x1b[8mhidden\x1b[0m": r"\x1b[8mhidden\x1b[0m",
    "\x9b31mred": r"\x9b31mred",  # the same in one byte of Latin-1
    "\x9d0;title\x9c": r"\x9d0;title\x9c",
    "\x90q\x9c": r"\x90q\x9c",
    "wrong\rright": r"wrong\rright",
    "wrong\b\b\b\b\bright": r"wrong\x08\x08\x08\x08\x08right",
    "\x07\x0b\x0c\x0e\x0f\x00\x7f\x85": r"\x07\x0b\x0c\x0e\x0f\x00\x7f\x85",
    "\u202egnp.exe\u202c": r"\u202egnp.exe\u202c",  # is read from the right
    "\u2066\u2067\u2068\u2069\u202a": r"\u2066\u2067\u2068\u2069\u202a",
    "\u202b\u202d\u200e\u200f\u061c": r"\u202b\u202d\u200e\u200f\u061c",
    "pay\u200bpal\ufeff\u2060\xad": r"pay\u200bpal\ufeff\u2060\xad",
    "\u2028\u2029": r"\u2028\u2029",
    "\U000e0069\U000e0067": r"\U000e0069\U000e0067",  # letters that nobody sees
    "\ud800 and \udfff": r"\ud800 and \udfff",
}
HARMLESS = [
    "two\nlines\tand a tab",
    "答案是 42。",
    "é ü ñ \u0301",
    "👩\u200d👩\u200d👧 می\u200cخواهم",
    "½ ² × −",
    "a\\x1bb",
    "",
]
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\u200b\ud800-\udfff]")


@pytest.fixture
def heard(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`heard("ls")`: exit code of a command, and all that it says, of which a terminal would obey nothing."""

    def run(*arguments: Any) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        told = "".join(capsys.readouterr())
        assert OBEYED.search(told) is None, told
        return int(end.value.code or 0), told

    return run


@pytest.mark.parametrize(("command", "shown"), COMMANDS.items(), ids=repr)
def test_commands_are_shown(command: str, shown: str) -> None:
    assert visible(command) == shown
    assert visible(shown) == shown


@pytest.mark.parametrize("text", HARMLESS)
def test_texts_stay(text: str) -> None:
    assert visible(text) == text


@given(st.text(st.characters()))
def test_nothing_is_obeyed(text: str) -> None:
    shown = visible(text)
    assert OBEYED.search(shown) is None
    kinds = {unicodedata.category(char) for char in shown if char not in "\n\t\u200c\u200d"}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}
    assert "".join(map(visible, text)) == shown  # a command that comes in pieces is none either


@given(st.recursive(st.text(st.characters()) | st.integers() | st.none(), lambda inner: st.lists(inner)), st.text())
def test_json_keeps_its_value(value: Any, name: str) -> None:
    for indent in (None, 2):
        text = to_json({name: value}, indent)
        assert OBEYED.search(text) is None
        assert json.loads(text) == json.loads(json.dumps({name: value}))
    assert to_json("é答😀") == '"é答😀"'


@pytest.mark.parametrize("command", COMMANDS, ids=repr)
def test_streams(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A model's answer comes token by token, so that a sequence may be split anywhere."""

    class Speaker:
        def ask(self, question: str) -> Iterator[str]:
            yield from command

    chat.answer(Speaker().ask("?"))
    assert capsys.readouterr().out == f"{COMMANDS[command]}\n"
    say(command, error=True)
    assert capsys.readouterr() == ("", f"{COMMANDS[command]}\n")


def print_tables(text: str, **options: Any) -> str:
    """All ways in which a text gets into what rich prints."""
    file = io.StringIO()
    console = Console(file=file, width=400, **options)
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    table.add_row(Text(text))
    console.print(text, Text.assemble(text, (text, "bold")), table, [text])
    console.print(text, highlight=False, soft_wrap=True)
    console.out(visible(text))
    return file.getvalue()


@pytest.mark.parametrize("command", COMMANDS, ids=repr)
def test_tables(command: str) -> None:
    assert OBEYED.search(print_tables(command)) is None
    assert print_tables(command).count(COMMANDS[command]) >= 6  # some of it rich leaves out of a `Text`
    own = re.compile(r"\x1b\[[\d;]*m")  # rich's styles
    styled = print_tables(command, force_terminal=True, color_system="standard")
    assert own.search(styled) and OBEYED.search(own.sub("", styled)) is None
    assert not set(own.findall(styled)) & set(own.findall(command)) - {"\x1b[0m"}


@pytest.mark.parametrize(
    "text", ["[red]x[/red]", "[link=http://evil.example]x[/]", "[/]", ":bomb:", "[@click=f()]x[/]"]
)
def test_markup_is_text(text: str) -> None:
    assert print_tables(text).count(text) >= 9


def test_answers_in_the_table() -> None:
    answer, examples = "\x1b]0;pwned\x07[red]\u202e7\r9", [Example("1+1=\x9b31m", "2\x1b[8m")]
    scores = [Score("wrong", answer)]
    file = io.StringIO()
    Console(file=file, width=400).print(sample_table(examples, [answer], [answer], scores, scores))
    assert OBEYED.search(file.getvalue()) is None and r"\x1b]0;" in file.getvalue() and "[red]" in file.getvalue()


# What commands print of files and of what is typed.


@pytest.mark.parametrize("verb", [verb for verb in cli.verbs() if verb != "completion"])
@pytest.mark.parametrize("command", ["\x1b]52;c;YQ==\x07", "\u202etxt.exe", "a\rb", "\x9b2J"], ids=repr)
def test_arguments(verb: str, command: str, heard: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    for arguments in ([command], [f"--{command}"], [f"data.{command}=1"], ["--output", f"{tmp_path}/no/\0{command}"]):
        code, _ = heard(verb, *arguments)
        assert code in (0, 2)
    assert heard(command)[0] == 2


@pytest.mark.parametrize("command", ["\x1b]52;c;YQ==\x07", "a\r\x9b2J", "\u202etxt\x00", "\ud800"], ids=repr)
def test_records(command: str, heard: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "target": "2"}, {f"pro{command}mpt": command}, {"messages": [{"role": command}]}]
    file = tmp_path / "records.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for arguments in (
        ["predict", "nano", "--input", file, "--output", tmp_path / "out.jsonl"],
        ["inspect", file],
        ["doctor", file],
        ["doctor", file, "--json"],
        ["train", "task.name=instructions", f"task.file={file}", f"training.output_dir={tmp_path / 'run'}"],
    ):
        code, told = heard(*arguments)
        assert code == 2 and ("line 2" in told or "record" in told)
    assert heard("inspect", file, "--output", tmp_path / "report.json")[0] == 2
    assert OBEYED.search((tmp_path / "report.json").read_text("utf-8")) is None


@pytest.mark.parametrize("command", [text for text in COMMANDS if "\0" not in text and "\ud800" not in text], ids=repr)
def test_names_of_files(
    command: str, heard: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = command.replace("/", "|")
    run = tmp_path / "runs" / name
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("seed: 1\n")
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / f"{name}.yaml").write_text(f"# {command}\nsection: 1\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code, told = heard("ls")
    assert code == 0 and told.count(visible(name)) >= 3
    assert name in "".join(ls.run()["runs"])
    for arguments in (["chat", run], ["doctor", run], ["estimate", recipes / f"{name}.yaml"], ["evaluate", run]):
        assert heard(*arguments)[0] == 2


def test_a_checkpoint(heard: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    command = "\x1b]52;c;YQ==\x07\u202e\r"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": command, "architectures": [command]}))
    for verb in ("estimate", "doctor"):
        code, told = heard(verb, folder) if verb != "estimate" else heard(verb, f"model.path={folder}")
        assert code == 2 and r"\x1b]52;" in told


def test_a_forged_line(heard: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """A name with a line break cannot pass for what the program says next."""
    file = tmp_path / "records.jsonl"
    file.write_text(json.dumps({"a\nglmtune predict: all is well": 1}) + "\n")
    _, told = heard("predict", "nano", "--input", file, "--output", tmp_path / "out.jsonl")
    assert [line for line in told.splitlines() if line.startswith("glmtune predict: ")] == [told.splitlines()[0]]
    assert "  glmtune predict: all is well" in told


# What others print.


@pytest.fixture
def secured() -> Iterator[None]:
    hook, factory, form = sys.excepthook, logging.getLogRecordFactory(), warnings.formatwarning
    secure()
    yield
    sys.excepthook, warnings.formatwarning = hook, form
    logging.setLogRecordFactory(factory)


def test_libraries(secured: None, capsys: pytest.CaptureFixture[str]) -> None:
    command = "\x1b]0;pwned\x07\u202e"
    said = io.StringIO()
    logger, handler = logging.getLogger("a library"), logging.StreamHandler(said)
    logger.addHandler(handler)
    logger.error("the file %s", command)
    assert said.getvalue() == "the file \\x1b]0;pwned\\x07\\u202e\n"
    assert visible(told := warnings.formatwarning(command, UserWarning, command, 1)) == told and "pwned" in told
    try:
        raise KeyError(command)
    except KeyError as error:
        sys.excepthook(KeyError, error, error.__traceback__)
    try:
        raise RuntimeError(command)
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    told = capsys.readouterr().err
    assert OBEYED.search(told) is None and told.count("Traceback") == 2 and r"RuntimeError: \x1b]0;pwned" in told


def test_a_terminal_without_the_characters(secured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    secure()
    say("答案是 42")
    assert stream.buffer.getvalue() == rb"\u7b54\u6848\u662f 42" + b"\n"  # type: ignore[attr-defined]


# There is no other way to the terminal.


def ways_around(source: str) -> list[str]:
    """What in a module prints without `glmtune.terminal`, or writes JSON without `to_json`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        text = ast.unparse(node) if isinstance(node, ast.Call | ast.Attribute) else ""
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in ("print", "input"):
                found.append(text)
            written = isinstance(node.func, ast.Attribute) and node.func.attr in ("write", "write_text", "writelines")
            if written and any("json.dump" in ast.unparse(argument) for argument in node.args):
                found.append(text)
            if text.startswith("json.dump("):
                found.append(text)
        if re.match(r"(sys\.)?(__)?std(out|err)(__)?\.(write|writelines|buffer)$", text):
            found.append(text)
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] == "rich"]
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
            around = ("rich.console", "rich.print", "rich.live", "rich.progress", "rich.logging", "rich.get_console")
            found += [name for name in names if name.startswith(around)]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_only_way(path: Path) -> None:
    if Path(terminal.__file__).parent != path.parent:
        assert ways_around(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("print('a')", 1),
        ("import sys\ndef f():\n    sys.stderr.write('a')", 1),
        ("sys.stdout.buffer.write(b'a')", 1),
        ("from rich.console import Console", 1),
        ("if TYPE_CHECKING:\n    from rich.console import Console", 1),
        ("import rich\nfrom rich import print", 2),
        ("file.write(json.dumps(row) + '\\n')", 1),
        ("json.dump(row, file)", 1),
        ("sys.stdout.flush()\nfile.write('a')\nfrom rich.table import Table\nsay('a')\nkey = json.dumps(row)", 0),
    ],
)
def test_the_finder_of_other_ways(source: str, count: int) -> None:
    assert len(ways_around(source)) == count


def test_what_another_process_printed_moves_on_and_does_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.relay("1/2\r2/2\n\x1b[2Jgone", error=True)
    assert capsys.readouterr().err == "1/2\r2/2\n\\x1b[2Jgone"
