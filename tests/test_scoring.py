"""Targets and completions are compared by the metrics of one table, which settings, help and docs read."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.config import RecipeError, describe_settings, load_recipe
from glmtune.scoring import METRICS, Score
from glmtune.tasks.instructions import InstructionsSettings

PACKAGE = Path(__file__).parents[1] / "glmtune"


@pytest.mark.parametrize(
    ("name", "target", "completion", "verdict", "answer"),
    [
        ("exact", "a b", " a b\n", "exact", "a b"),
        ("exact", "a b", "a  b", "equal", "a  b"),
        ("exact", "a", "b", "wrong", "b"),
        ("exact", "a", " ", "unparseable", ""),
        ("numeric", "#### 18", "#### 18", "exact", "18"),
        ("numeric", "#### 18", "She makes $18.00.", "equal", "18"),
        ("numeric", "#### 18", "She makes 19", "wrong", "19"),
        ("numeric", "18", "2*9", "unparseable", None),
        ("numeric", "25", "25%", "equal", "0.25"),
        ("numeric", "25%", "25", "equal", "25"),
        ("numeric", "25%", "1/4", "equal", "0.25"),
        ("numeric", "1/3", "0.33", "wrong", "0.33"),
        ("numeric", "-3/4", r"so \boxed{-\frac{3}{4}}", "equal", "-0.75"),
        ("numeric", "3/4", r"so \boxed{-\frac{3}{4}}", "wrong", "-0.75"),
        ("numeric", "#### -5", "x = - 5", "equal", "-5"),
        ("numeric", "5", "The answer is minus 5.", "wrong", "-5"),
        ("numeric", "12", "答案是——12。", "equal", "12"),
        ("numeric", "10", "10,\\!000", "wrong", "10000"),
        ("numeric", "2500000000000", "2.5万亿", "equal", "2500000000000"),
        ("numeric", "#### 2", "#### Step 2\nunclear", "unparseable", None),
        ("numeric", "2/3", "三分之二", "equal", "2/3"),
        ("numeric", "5%", "百分之五", "equal", "0.05"),
        ("numeric", "2", r"2\pi", "unparseable", None),
        ("numeric", "red", "red", "exact", "red"),
        ("equation", "x=5/5=1", "x=5/5=1", "exact", "1"),
        ("equation", "x=(18*6)/3-18=18", "x=18*6/3-18", "equal", "18"),
        ("equation", "x=(18*6)/3-18=18", "x=18*6/3+18=18", "wrong", "54"),
        ("equation", "x=1/3=0.33", "答案是0.33", "equal", "1/3"),
        ("equation", "x=1/3=0.33", "1/3", "equal", "1/3"),
        ("equation", "x=1/3=0.33", "x=0.33", "wrong", "0.33"),
        ("equation", "x=1/3", "?", "unparseable", None),
        ("equation", "#### 18", "18", "equal", "18"),
        ("auto", "#### 18", "She makes $18.00.", "equal", "18"),
        ("auto", "x=5/5=1", "x=1", "equal", "1"),
        ("auto", "she makes 18", "18", "wrong", "18"),
    ],
)
def test_verdicts(name, target, completion, verdict, answer):
    assert METRICS[name](target, completion) == Score(verdict, answer)


@given(st.text(st.sampled_from("0123456789.,+-*/^%()[]{}=x# $是答案answer i\\boxed\\frac\n:万负"), max_size=80))
def test_a_text_is_right_by_itself_or_has_no_answer(text):
    for metric in METRICS.values():
        assert metric(text, text).verdict in ("exact", "unparseable")


def test_what_counts_as_correct():
    verdicts = {"exact": True, "equal": True, "wrong": False, "unparseable": False}
    assert {verdict: Score(verdict).correct for verdict in verdicts} == verdicts
    assert [Score(verdict).reward for verdict in verdicts] == [1.0, 1.0, 0.0, 0.0]


def test_a_metric_is_one_row(monkeypatch):
    """What the table holds can be named in a recipe; help and errors list it."""

    def length(target, completion):
        """Compare lengths."""
        return Score("equal" if len(target) == len(completion) else "wrong", completion)

    monkeypatch.setitem(METRICS, "length", length)
    recipe = load_recipe(None, ["task.name=instructions", "task.file=my.jsonl", "task.metric=length"])
    assert recipe.task.metric == "length"
    with pytest.raises(RecipeError, match=r"task\.metric: no such metric\. Did you mean 'length'\? Known: auto, "):
        load_recipe(None, ["task.name=instructions", "task.file=my.jsonl", "task.metric=lenght"])


def test_a_new_row_in_a_copy_of_the_package(tmp_path):
    """One function and one row, and no other file: a recipe, its schema and a run's score know the metric."""
    shutil.copytree(PACKAGE, tmp_path / "glmtune", ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    scoring = tmp_path / "glmtune/scoring.py"
    text = scoring.read_text("utf-8")
    row = "METRICS: dict[str, Metric] = {"
    assert text.count(row) == 1
    code = 'def length(target: str, completion: str) -> Score:\n    """Compare lengths."""\n'
    code += '    return Score("equal" if len(target) == len(completion) else "wrong", completion)\n\n\n'
    scoring.write_text(text.replace(row, f'{code}{row}"length": length, '), "utf-8")
    (tmp_path / "my.jsonl").write_text('{"prompt": "a", "target": "b"}\n', "utf-8")
    program = (
        "from glmtune import registry\n"
        "from glmtune.config import describe_settings, load_recipe, recipe_schema\n"
        "from glmtune.examples import Example\n"
        "settings = load_recipe(None, ['task.name=instructions', 'task.file=my.jsonl', 'task.metric=length']).task\n"
        "task = registry.find('glmtune.tasks', 'instructions')(settings)\n"
        "assert task.score(Example('a', 'bc'), 'de').verdict == 'equal'\n"
        "assert any('length: compare lengths' in meaning for *_, meaning in describe_settings(type(settings)))\n"
        "assert 'length' in recipe_schema()['$defs']['task.instructions']['properties']['metric']['enum']\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr


def test_help_names_every_metric():
    (told,) = (meaning for name, _, meaning in describe_settings(InstructionsSettings) if name == "metric")
    assert all(f"{name}: compare" in told for name in METRICS)
