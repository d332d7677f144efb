from __future__ import annotations

import sys
from pathlib import Path

import pytest

from glmtune import registry
from glmtune.methods.lora import Lora
from glmtune.tasks.arithmetic import Arithmetic
from glmtune.tasks.wording import Wording


@pytest.fixture
def write(tmp_path: Path):
    """Write a user's Python file and return its path."""

    def written(text: str, name: str = "mine.py") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return written


def test_names_are_the_modules_of_the_folder() -> None:
    folder = Path(registry.__file__).parent / "tasks"
    expected = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert registry.names("glmtune.tasks") == sorted(expected)
    assert {"lora", "full"} <= set(registry.names("glmtune.methods"))


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("arithmatic", " Did you mean 'arithmetic'? Known: arithmetic, wording."),
        ("ARITHMETIC", " Known: arithmetic, wording."),
        ("xyz", " Known: arithmetic, wording."),
        ("", " Known: arithmetic, wording."),
    ],
)
def test_suggestions(wrong: str, hint: str) -> None:
    assert registry.suggest(wrong, ["arithmetic", "wording"]) == hint


@pytest.mark.parametrize(
    ("package", "name", "found"),
    [
        ("glmtune.tasks", "arithmetic", Arithmetic),
        ("glmtune.tasks", "wording", Wording),  # its module holds its base class as well
        ("glmtune.methods", "lora", Lora),
    ],
)
def test_find(package: str, name: str, found: type) -> None:
    assert registry.find(package, name) is found


@pytest.mark.parametrize("name", ["arithmetics", "", "__init__", "arithmetic.Arithmetic", "../config", "os", "lora"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown name '{name}'\\..*Known: arithmetic, .*own .py file works as well"):
        registry.load("glmtune.tasks", name)


@pytest.mark.parametrize("name", ["nowhere.py", "glmtune/tasks.py", ".py"])
def test_missing_files(name: str) -> None:
    with pytest.raises(ValueError, match=f"no such file: {name}"):
        registry.load("glmtune.tasks", name)


def test_a_link_to_itself_is_no_file(tmp_path: Path) -> None:
    (link := tmp_path / "own.py").symlink_to(link)
    for find in (registry.find, registry.admitted):
        with pytest.raises(ValueError, match="no such file"):
            find("glmtune.tasks", str(link))


def test_own_file(write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("from glmtune.tasks.arithmetic import Arithmetic\nclass Mine(Arithmetic):\n    pass\n")
    found = registry.find("glmtune.tasks", path)
    assert issubclass(found, Arithmetic) and found.__name__ == "Mine"
    monkeypatch.chdir(Path(path).parent)
    assert registry.find("glmtune.tasks", "mine.py").__name__ == "Mine"


def test_own_file_is_read_anew(write) -> None:
    path = write("answer = 1\n")
    assert registry.load("glmtune.tasks", path).answer == 1
    write("answer = 2222\n")
    assert registry.load("glmtune.tasks", path).answer == 2222


def test_own_file_may_be_called_anything(write) -> None:
    json = sys.modules["json"]
    assert registry.load("glmtune.tasks", write("x = 1\n", "json.py")).x == 1
    assert registry.load("glmtune.tasks", write("x = 2\n", "my own-task.v2.py")).x == 2
    assert sys.modules["json"] is json


def test_own_file_with_late_annotations(write) -> None:
    """Dataclasses and settings look their annotations up in the module that defines them."""
    text = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from typing import ClassVar, Literal\n"
        "from glmtune.config import NamedSettings\n"
        "Mode = Literal['a', 'b']\n"
        "@dataclass\n"
        "class Pair:\n    left: Mode\n    many: ClassVar[int] = 2\n"
        "class Own(NamedSettings):\n    mode: Mode = 'a'\n"
    )
    module = registry.load("glmtune.tasks", write(text))
    assert module.Pair("a").left == "a" and module.Own(mode="b").mode == "b"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("from glmtune.tasks.arithmetic import Arithmetic\n", 0),
        ("class Mine:\n    pass\n", 0),
        ("from glmtune.tasks import Task\nclass A(Task):\n    pass\nclass B(Task):\n    pass\n", 2),
    ],
)
def test_a_file_defines_exactly_one(text: str, count: int, write) -> None:
    with pytest.raises(ValueError, match=f"must define exactly one subclass of Task; it has {count}"):
        registry.find("glmtune.tasks", write(text))


def test_a_method_is_no_task() -> None:
    path = str(Path(registry.__file__).parent / "methods" / "lora.py")
    with pytest.raises(ValueError, match="must define exactly one subclass of Task; it has 0"):
        registry.find("glmtune.tasks", path)
