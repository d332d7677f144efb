"""No float makes or checks an answer."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "glmtune"
FILES = [*sorted((PACKAGE / "arithmetic").glob("*.py")), PACKAGE / "tasks/arithmetic.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_float_makes_or_checks_an_answer(path: Path) -> None:
    """Floats are shares of examples: settings, what `rng.random()` is compared with, a measure beside a verdict."""
    tree = ast.parse(path.read_text("utf-8"))
    allowed = {
        id(inner)
        for node in ast.walk(tree)
        if (isinstance(node, ast.ClassDef) and node.name.endswith("Settings"))
        or (isinstance(node, ast.Compare) and ast.unparse(node.left) == "rng.random()")
        or (isinstance(node, ast.arg) and ast.unparse(node) == "signed_brackets: float")
        or (isinstance(node, ast.keyword) and node.arg == "metrics")
        or (isinstance(node, ast.FunctionDef) and node.name == "measure")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            assert id(node) in allowed, f"line {node.lineno}"
        if isinstance(node, ast.Name):
            assert node.id not in ("float", "round", "math") or id(node) in allowed, f"line {node.lineno}"
