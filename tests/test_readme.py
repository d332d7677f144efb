"""What the READMEs say is true: their commands parse, their files exist, their figures stand in the results."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from glmtune import cli, registry
from glmtune.config import load_recipe

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.zh.md"]


def commands(readme: str) -> list[str]:
    """Command lines of the shell blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), flags=re.S)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("readme", READMES)
def test_first_command_stands_above_line_20(readme: str) -> None:
    lines = (ROOT / readme).read_text(encoding="utf-8").splitlines()
    assert next(number for number, line in enumerate(lines, start=1) if line.startswith("make demo")) <= 20


@pytest.mark.parametrize("readme", READMES)
def test_glmtune_commands_parse(readme: str) -> None:
    """Every verb is shown, and every line of it is understood, settings included."""
    shown = [shlex.split(line) for line in commands(readme) if line.startswith("glmtune")]
    verbs = {words[1] for words in shown}
    assert verbs == set(cli.verbs())
    for words in shown:
        options = cli.parse([word for word in words[1:] if word != "RECIPE.yaml"])
        assert options.verb == words[1]
        if words[1] == "train":
            load_recipe(None, [word for word in words[2:] if "=" in word])


@pytest.mark.parametrize("readme", READMES)
def test_make_targets_exist(readme: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in commands(readme):
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, flags=re.M), line


@pytest.mark.parametrize("readme", READMES)
def test_linked_files_exist(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


def test_nothing_is_left_to_fill_in() -> None:
    for readme in READMES:
        assert not re.findall(r"DEMO_OUTPUT|RESULTS_TABLE|TODO", (ROOT / readme).read_text(encoding="utf-8"))


def test_file_tree_names_every_package() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    packages = {path.parent.name for path in (ROOT / "glmtune").glob("*/__init__.py")}
    assert all(f"  {package}/" in text for package in packages)


def test_every_task_and_method_is_named() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in [*registry.names("glmtune.tasks"), *registry.names("glmtune.methods")]:
        assert name in text


@pytest.mark.parametrize("readme", READMES)
def test_figures_come_from_the_results(readme: str) -> None:
    """Each figure of the demo in the table of results is the one in benchmarks/results/demo.json."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    rows = {row["examples"]: row for row in json.loads((ROOT / "benchmarks/results/demo.json").read_text())["rows"]}
    table = text.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    change = {
        operator: " → ".join(f"{rows[f'{when}, {operator}']['accuracy']:.1%}" for when in ("before", "after"))
        for operator in "+-*/"
    }
    first, minus, products, foreign = [line for line in table.splitlines() if line.startswith("| ")][1:5]
    assert change["+"] in first and change["-"] in minus
    assert change["*"] in products and products.index(change["*"]) < products.rindex(change["/"])
    assert f"{rows['after, foreign + and -']['accuracy']:.1%}" in foreign


@pytest.mark.parametrize("table", ["methods", "memory", "speed"])
def test_tables_are_those_of_the_results(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python benchmarks/tables.py` prints what stands in the README."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("tables")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- {table} -->\n{getattr(tables, table + '_table')()}\n<!-- /{table} -->" in text
