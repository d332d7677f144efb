import io
import json
import random

import pytest
from rich.console import Console

from glmtune.evaluation.report import comparison_table, explain_cut_off, representative, sample_table, summarize
from glmtune.examples import Example
from glmtune.intervals import wilson_interval
from glmtune.scoring import Score
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings


@pytest.fixture(scope="module")
def task():
    return Arithmetic(ArithmeticSettings(name="arithmetic"))


@pytest.fixture(scope="module")
def asked(task):
    """Examples, completions and scores: two in three right, some unreadable."""
    rng = random.Random(3)
    examples = [task.sample(rng, "held_out") for _ in range(300)]
    wrong = ("=1", "1 or 2", "", "\x1b[31m[bold]no\nidea[/]")
    completions = [e.target if rng.random() < 0.66 else rng.choice(wrong) for e in examples]
    return examples, completions, [task.score(e, c) for e, c in zip(examples, completions, strict=True)]


@pytest.fixture(scope="module")
def report(asked):
    return summarize(*asked, Arithmetic.axes)


def shown(table, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_counts_add_up(report, asked):
    examples, _, scores = asked
    right = sum(score.correct for score in scores)
    assert report["format"] == 2 and report["n"] == len(examples)
    assert sum(report["verdicts"].values()) == report["n"]
    assert report["verdicts"]["exact"] + report["verdicts"]["equal"] == right
    assert report["accuracy"] == right / len(scores)
    assert report["accuracy_ci95"] == list(wilson_interval(right, len(scores)))


def test_it_survives_json(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_samples_and_failures(report, asked):
    completions = asked[1]
    assert len(report["samples"]) == len(report["failures"]) == 20
    assert [sample["completion"] for sample in report["samples"]] == completions[:20]
    assert report["samples"][0].keys() == {"prompt", "target", "completion", "answer", "verdict"}
    assert {failure["verdict"] for failure in report["failures"]} <= {"wrong", "unparseable"}


def test_text_metrics_can_be_left_out(report, asked):
    names = {"rouge-1", "rouge-2", "rouge-l", "bleu-4"}
    assert report.keys() - summarize(*asked, Arithmetic.axes, text_metrics=False).keys() == names
    assert all(0 < report[name] < 100 for name in names)


def test_nothing_asked_and_unequal_lists():
    report = summarize([], [], [])
    assert report["n"] == 0 and report["accuracy_ci95"] == [0.0, 1.0] and report["by"] == {}
    assert "all" in shown(comparison_table(None, report))
    with pytest.raises(ValueError, match="1 examples, 0 completions, 0 scores"):
        summarize([Example("1+1=", "2")], [], [])


def test_comparison_has_a_row_for_each_operator(report):
    before = {**report, "accuracy": 0.0}
    text = shown(comparison_table(before, report), width=80)
    rows = [line.split() for line in text.splitlines() if line.split()[:1] and line.split()[0] in "+-*/all"]
    assert [row[0] for row in rows] == ["+", "-", "*", "/", "all"]
    assert rows[-1][-3:] == ["300", "0.0%", f"{report['accuracy']:.1%}"]
    first = report["by"]["operator,kind"]["+ integer"]
    assert rows[0][1:4] == [str(first["n"]), *[f"{first['accuracy']:.1%}"] * 2]
    alone = shown(comparison_table(None, report))
    assert text.count("before") == 3 and not any(word in alone for word in ("before", "after"))


def test_comparison_without_facts_or_with_other_examples(report):
    small = {**report, "by": {}, "n": 7}
    text = shown(comparison_table(small, report))
    assert "7 / 300" in text and "–" in text
    rows = [line.split() for line in shown(comparison_table(small, small)).splitlines() if line.startswith(" all ")]
    assert rows == [["all", "7", *[f"{report['accuracy']:.1%}"] * 2]]


def test_samples_show_every_operator_and_kind(asked):
    examples = asked[0]
    chosen = [examples[i].facts for i in representative(examples, 8, Arithmetic.axes)]
    assert [(f["operator"], f["kind"]) for f in chosen] == [(o, k) for o in "+-*/" for k in ("integer", "decimal")]
    few = [examples[i].facts for i in representative(examples, 5, Arithmetic.axes)]
    assert {f["operator"] for f in few} == set("+-*/") and {f["kind"] for f in few} == {"integer", "decimal"}
    assert representative(examples[:3], 8) and representative([], 8) == []


def test_sample_table_marks_answers_and_tames_them(asked, task):
    examples, completions, scores = asked
    before = ["\x1b[31m[bold]no\nidea[/]"] * len(examples)
    wrong = [Score("unparseable")] * len(examples)
    right = [task.score(e, e.target).answer for e in examples]
    text = shown(sample_table(examples, before, completions, wrong, scores, right, axes=Arithmetic.axes))
    assert text.count(r"✗ \x1b[31m[bold]no idea[/]") == 8
    assert "\x1b" not in text and "✓" in text
    assert all(right[index] in text for index in representative(examples, 8, Arithmetic.axes))
    assert "before" not in shown(sample_table(examples, None, completions, None, scores))


def test_sample_table_leaves_out_the_repeated_problem():
    examples = [Example("1+2=", "1+2=3"), Example("2+2", "2+2=4")]
    text = shown(sample_table(examples, None, ["1+2=3", ""], None, [Score("exact", "3"), Score("unparseable")]))
    assert [line.split()[:4] for line in text.splitlines() if "2" in line] == [
        ["1+2=", "3", "✓", "3"],
        ["2+2", "4", "✗", "(nothing)"],
    ]


@pytest.mark.parametrize(
    ("cut", "count", "told"),
    [
        (1, 1, "1 of 1 answer was cut"),
        (1, 7, "1 of 7 answers was cut"),
        (1200, 2000, "1,200 of 2,000 answers were cut"),
    ],
)
def test_how_many_answers_were_cut_off(cut: int, count: int, told: str) -> None:
    assert explain_cut_off({"n": count, "finish_reasons": {"length": cut}}).startswith(told)
