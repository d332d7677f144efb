"""Imports point down and make no circle, no command imports another, and a few words stay out of the code."""

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
    {"runtime", "registry", "messages", "terminal", "libraries"},
    {"files", "network"},
    {"trust", "locks"},
    {"config", "arithmetic", "examples", "reporting", "distributed"},
    {"scoring", "records", "tools", "intervals"},
    {"tasks", "models"},
    {"data", "methods"},
    {"adapters", "inference", "training"},
    {"objectives"},
    {"resolution", "evaluation"},
    {"cluster", "plan", "succession"},
    {"execution", "prediction", "exports", "inspection", "serving"},
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


def imported_names(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import of glmtune's own."""
    package = ["glmtune", *path.relative_to(PACKAGE).parts[:-1]]
    for node in nodes(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "glmtune")


def violations(source: str, path: Path) -> list[str]:
    own = part_of(path)
    return [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {own} (floor {FLOOR[own]}) imports {part}"
        for line, name in imported_names(ast.parse(source), path)
        if (part := (*name.split("."), "")[1]) in FLOOR and part != own and FLOOR[part] >= FLOOR[own]
    ]


def commands_imported(source: str, path: Path) -> list[str]:
    """Other commands that a command imports; what several share begins with an underscore."""
    own = path.relative_to(PACKAGE / "commands").with_suffix("").parts[0]
    return [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {name}"
        for line, name in imported_names(ast.parse(source), path)
        if name.startswith("glmtune.commands.") and not name.split(".")[2].startswith((own, "_"))
    ]


def module_of(name: str) -> str | None:
    """The module that a dotted name is, or is in."""
    while name:
        place = PACKAGE.parent.joinpath(*name.split("."))
        if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file():
            return name
        name = name.rpartition(".")[0]
    return None


def imports_between_modules() -> dict[str, set[str]]:
    """Module -> modules that it imports, in functions as well."""
    graph: dict[str, set[str]] = {}
    for path in FILES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        own = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found = {module_of(name) for _, name in imported_names(ast.parse(path.read_text("utf-8")), path)}
        graph[own] = {name for name in found if name not in (None, own, "glmtune")}  # type: ignore[misc]
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty if there are none."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module not in done:
            for other in sorted(graph.get(module, ())):
                if found := walk(other, [*way, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in graph if (found := walk(module, []))), [])


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


@pytest.mark.parametrize("path", sorted((PACKAGE / "commands").rglob("*.py")), ids=lambda path: path.name)
def test_no_command_imports_another(path: Path) -> None:
    assert commands_imported(path.read_text("utf-8"), path) == []


@pytest.mark.parametrize(
    ("file", "source", "count"),
    [
        ("train.py", "from glmtune.commands.evaluate import run", 1),
        ("train.py", "def late():\n    from glmtune.commands import evaluate", 1),
        ("doctor/__init__.py", "from .. import train\nfrom . import checks", 1),
        ("doctor/model.py", "from glmtune.commands.doctor.checks import Check", 0),
        ("train.py", "from glmtune.commands._arguments import add_recipe", 0),
    ],
)
def test_the_reader_of_commands(file: str, source: str, count: int) -> None:
    assert len(commands_imported(source, PACKAGE / "commands" / file)) == count


def test_no_circle() -> None:
    assert " -> ".join(circle(imports_between_modules())) == ""


def test_the_finder_of_circles() -> None:
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    graph = imports_between_modules()
    assert "glmtune.plan" in graph["glmtune.execution"] and "glmtune.resolution" in graph["glmtune.commands.predict"]


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
            # Trackers are told by theirs alone where to write, and to stay offline; libraries, to tell nobody of us;
            # the folder of a user's settings is told by the system's; launchers say by theirs who a process is.
            if path.name not in ("trackers.py", "network.py", "trust.py", "distributed.py"):
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
