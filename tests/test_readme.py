"""What the READMEs say is true: their files exist, their figures stand in the results. `test_docs.py` runs commands."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from glmtune import registry

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.zh.md"]
PAGES = [*map(ROOT.joinpath, READMES), ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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
def test_make_targets_exist(readme: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in commands(readme):
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, flags=re.M), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


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


def change(operator: str, demo: str = "demo") -> str:
    """The accuracy of a demo before and after."""
    rows = {row["examples"]: row["accuracy"] for row in results(demo)["rows"]}
    return " → ".join(f"{rows[f'{when}, {operator}']:.1%}" for when in ("before", "after"))


def results(name: str) -> Any:
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text("utf-8"))


def figures() -> dict[str, list[str]]:
    """What the table of results has to say, by the file that it names."""
    kills = [results(name)["rows"][0] for name in ("kills", "kills_aimed", "kills_of_2")]
    faults = ("lost_steps", "different_weights", "unreadable_files")
    wide = {row["problems"]: row["right"] for row in results("wide")["rows"]}
    memory = [row for row in results("memory_cpu_full_depth")["rows"] if row["method"] == "lora" and row["bits"] == 4]
    peaks = {row["who"]: row["peak_gib"] for row in memory if not row["quantize_embedding"]}
    return {
        "demo": [change(operator) for operator in "+-*/"],
        "demo_real": [change(operator, "demo_real") for operator in "+-"],
        "wide": [f"{wide['all']:.1%}"],
        "train_throughput": [
            f"{results('train_throughput')['median_ratio']:.2f}",
            f"{results('train_throughput_real')['median_speed']:.2f}",
            f"{results('train_throughput_real')['median_peak']:.2f}",
        ],
        "kills": [
            *(f"{row['kills']:,}" for row in kills),
            str(sum(row["while_saving"] for row in kills[:2])),
            ", ".join(str(sum(row[fault] for row in kills)) for fault in faults),
        ],
        "memory_cpu_full_depth": [f"{peaks[who]:.2f} GiB" for who in ("ours", "plain")],
        "parity": [f"{results('parity')['worst']:.1e}"],
    }


@pytest.mark.parametrize("readme", READMES)
def test_figures_come_from_the_results(readme: str) -> None:
    text = (ROOT / readme).read_text(encoding="utf-8")
    table = text.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == len(figures())
    for line, (name, expected) in zip(lines, figures().items(), strict=True):
        assert f"(benchmarks/results/{name}.json)" in line and all(figure in line for figure in expected), line


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160


TABLES = {
    "methods.md": ["methods", "prefix", "memory", "speed", "memory_real", "speed_real"],
    "laptop.md": ["laptop"],
    "serving.md": ["serving"],
    "preferences.md": ["preferences"],
    "rl.md": ["rl"],
    "devices.md": ["ray", "devices"],
    "results.md": ["overview", "general", "forgetting", "demo", "demo_real", "styles", "long", "wide"],
}


@pytest.mark.parametrize(("page", "table"), [(page, table) for page, tables in TABLES.items() for table in tables])
def test_tables_are_those_of_the_results(page: str, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python benchmarks/tables.py` prints what stands in the docs."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tables = importlib.import_module("tables")
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert f"<!-- {table} -->\n{getattr(tables, table + '_table')()}\n<!-- /{table} -->" in text
