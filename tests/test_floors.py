"""Imports point down, and a few words stay out of the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "glmtune"

# From the bottom. A module imports what stands on lower floors; within a package its modules import each other.
FLOORS = [
    {"runtime", "registry", "messages"},
    {"config", "arithmetic", "examples", "reporting", "distributed"},
    {"scoring", "records", "tools"},
    {"tasks", "models"},
    {"data", "methods"},
    {"adapters", "inference", "training"},
    {"objectives"},
    {"resolution", "evaluation"},
    {"plan"},
    {"execution", "prediction", "exports", "inspection"},
    {"commands"},
    {"cli", "api"},
]
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}
EXEMPT = {"__init__.py", "__main__.py"}  # of the package itself
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).as_posix() not in EXEMPT]


def part_of(path: Path) -> str:
    """The package or module of glmtune that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, functions' too, but for what is under `if TYPE_CHECKING`."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for other in node.orelse:
            yield from nodes(other)
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from nodes(child)


def imported_parts(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """(line, part of glmtune) of every import."""
    package = ["glmtune", *path.relative_to(PACKAGE).parts[:-1]]
    for node in nodes(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "glmtune":
                yield node.lineno, (*name.split("."), "")[1]


def violations(source: str, path: Path) -> list[str]:
    own = part_of(path)
    return [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {own} (floor {FLOOR[own]}) imports {part}"
        for line, part in imported_parts(ast.parse(source), path)
        if part in FLOOR and part != own and FLOOR[part] >= FLOOR[own]
    ]


def test_every_part_has_a_floor() -> None:
    assert {part_of(path) for path in FILES} <= set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    assert violations(path.read_text("utf-8"), path) == []


@pytest.mark.parametrize(
    ("file", "source", "count"),
    [
        ("runtime.py", "from glmtune import config", 1),
        ("runtime.py", "def late():\n    import glmtune.tasks.arithmetic", 1),
        ("tasks/arithmetic.py", "from ..models import load", 1),
        ("tasks/arithmetic.py", "from glmtune.tasks import Task\nfrom . import wording\nimport json", 0),
        ("models/__init__.py", "from glmtune.tasks import Task", 1),
        (
            "data/encoding.py",
            "if TYPE_CHECKING:\n    from glmtune.cli import main\nelse:\n    import glmtune.commands",
            1,
        ),
        ("commands/train.py", "try:\n    from glmtune import cli, config\nexcept ImportError:\n    pass", 1),
        ("cli.py", "from glmtune.commands.train import run\nfrom glmtune import __version__", 0),
    ],
)
def test_the_reader_of_imports(file: str, source: str, count: int) -> None:
    assert len(violations(source, PACKAGE / file)) == count


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_what_stays_out(path: Path) -> None:
    """No text is run, no remote code is trusted, nothing is unpickled, no variable of the environment is our own."""
    assert path.stem not in ("utils", "util", "misc", "common", "helpers", "helper")
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile", "__import__"), f"line {node.lineno}"
        if isinstance(node, ast.keyword | ast.arg):
            says_no = isinstance(node, ast.keyword) and ast.unparse(node.value) == "False"
            assert node.arg != "trust_remote_code" or says_no, ast.unparse(node)
        if isinstance(node, ast.ImportFrom):
            found = {node.module, *(alias.name for alias in node.names)}
            assert not found & {"pickle", "environ", "getenv"}, f"line {node.lineno}"
        if isinstance(node, ast.Attribute):
            # Trackers are told by theirs alone where to write, and to stay offline.
            if path.name != "trackers.py":
                assert node.attr not in ("environ", "getenv", "putenv"), f"line {node.lineno}"
            assert ast.unparse(node.value) != "pickle" or node.attr == "UnpicklingError", f"line {node.lineno}"


def test_tasks_and_tools_need_no_torch() -> None:
    code = (
        "import importlib, sys\n"
        "from glmtune import registry\n"
        "for package in ('glmtune.tasks', 'glmtune.tools'):\n"
        "    for name in registry.names(package):\n"
        "        registry.find(package, name)\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
