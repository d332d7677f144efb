"""`report.html` is well-formed, loads nothing, shows foreign text as text, and says what to do."""

import pytest
import yaml

from glmtune.config import load_recipe, to_yaml
from glmtune.evaluation.comparison import compare
from glmtune.evaluation.evaluator import Evaluation
from glmtune.evaluation.page import describe_run, page, write_judged_page, write_page
from glmtune.examples import Example
from glmtune.runtime import read_json_lines

pytestmark = pytest.mark.usefixtures("drawn_charts")

SECTIONS = ["run", "results", "curves", "by-left_digits", "changed", "failures", "forgetting", "costs", "recipe"]


@pytest.fixture(scope="module")
def recipe():
    return to_yaml(load_recipe(None, ["training.steps=10", "training.learning_rate=0.001"]))


@pytest.fixture(scope="module")
def log():
    scores = [{"step": step, "accuracy": step / 10, "accuracy_ci95": [0, 1], "n": 9} for step in (0, 5, 10)]
    losses = [{"step": step, "loss": 3 / (1 + step), "learning_rate": 1e-3, "seconds": step} for step in range(1, 11)]
    return [*scores, *losses, {"step": 7, "loss": float("nan"), "seconds": 7}]


@pytest.fixture(scope="module")
def whole(report_of):
    return report_of(0.2, 0.7, (40, 30), evil=True)


def test_every_section_is_there(whole, log, recipe, tmp_path, read_page):
    path = write_page(whole, log, recipe, tmp_path)
    assert path == tmp_path / "report.html"
    read = read_page(path.read_text(encoding="utf-8"))
    assert read.ids == SECTIONS
    for said in (
        "Do not keep",
        "95% interval",
        "320 in 10 steps of 32",
        "was 2",
        "8 min",
        "2.00 GiB",
        "rouge-L",
    ):
        assert said in read.text, said
    assert "learning_rate: 0.001" in read.text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ([], {"Data": "as by default", "Method": "lora", "Objective": "sft"}),
        (
            ["task.operators=+", "task.maximum=9", "method.rank=3"],
            {"Data": "operators +:1, maximum 9", "Method": "lora, rank 3"},
        ),
        (
            ["task={name: instructions, file: /a.jsonl}", "objective={name: grpo, top_p: 0.9}"],
            {"Data": "file /a.jsonl", "Objective": "grpo, top_p 0.9"},
        ),
    ],
)
def test_of_the_settings_those_are_told_that_matter(settings, told):
    recipe = yaml.safe_load(to_yaml(load_recipe(None, settings)))
    done = dict(describe_run({"after": {"n": 3}}, recipe))
    assert {name: done[name] for name in told} == told
    own = {"task": {"name": "/mine/own.py", "level": 3}}
    assert dict(describe_run({"after": {"n": 3}}, own))["Data"] == "level 3"


def test_it_loads_nothing_and_runs_nothing(whole, log, recipe, read_page, evil):
    text = page(whole, log, recipe, evil)
    read = read_page(text)
    assert read.links == [] and not read.tags & {"script", "img", "link", "iframe", "object", "embed", "base"}
    assert evil.splitlines()[0] in read.text  # as text
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text


def test_answers_that_were_cut_off_are_told(whole, log, recipe, read_page):
    assert "cut off" not in read_page(page(whole, log, recipe, "run")).text
    cut = {**whole["after"], "finish_reasons": {"stop": 190, "length": 10, "tool_calls": 0}}
    read = read_page(page({**whole, "after": cut}, log, recipe, "run"))
    assert "After training, 10 of 200 answers were cut off" in read.text and "Before training, " not in read.text


def test_parts_that_are_missing_are_left_out(recipe, evaluated, read_page):
    _, only = evaluated(0.5)
    report = {"after": only.report(text_metrics=False)}
    read = read_page(page(report, [], recipe, "run"))
    assert read.ids == ["run", "results", "by-left_digits", "forgetting", "costs", "recipe"]
    assert "Not certain" in read.text and "Not measured" in read.text
    assert "before" not in read.text.partition("Not measured")[0].lower()
    assert read_page(page(report | {"before": None}, [], "", "run")).ids == read.ids


def test_records_without_operators(recipe, log, evaluated, read_page):
    task, examples = evaluated(1)[0], [Example("say 1", "1"), Example([{"role": "user", "content": "2?"}], "2")]
    then, now = (
        Evaluation(examples, said, [task.score(e, c) for e, c in zip(examples, said, strict=True)], task.axes)
        for said in (["", "3"], ["1", "2"])
    )
    report = {"before": then.report(), "after": now.report(), **compare(task, then, now)}
    read = read_page(page(report, log, recipe, "run"))
    assert "by-left_digits" not in read.ids and "every held-out example is answered rightly" in read.text


def test_a_run_has_its_page(tiny_run):
    text = (tiny_run.folder.path / "report.html").read_text(encoding="utf-8")
    log = [record for _, record in read_json_lines(tiny_run.folder.log)]
    assert {"difference", "changed", "failure_groups", "peak_memory"} <= tiny_run.report.keys()
    assert {"mean", "ci95"} <= tiny_run.report["difference"].keys() and "forgetting" not in tiny_run.report
    assert text == page(tiny_run.report, log, tiny_run.folder.recipe.read_text("utf-8"), tiny_run.folder.path.name)


def test_a_run_that_asks_general_questions(train_tiny, tmp_path, write_records):
    questions = write_records(*({"prompt": f"{i}?", "target": "yes"} for i in range(4)))
    run = train_tiny(tmp_path / "run", "evaluation.forgetting=true", f"evaluation.general_file={questions}")
    found = run.report["forgetting"]
    assert found["level"] == "unknown" and found["before"]["n"] == found["after"]["n"] == 4
    assert "Whether the model forgot cannot be told" in (run.folder.path / "report.html").read_text("utf-8")


OLD = {
    "level": "kept",
    "statement": "General knowledge was kept: it answers 9 of 60.",
    "rule": "forgot: ...",
    "difference": {},
    "before": {"n": 60, "accuracy": 0.2, "accuracy_ci95": [0.1, 0.3], "by": {"capitals": {"n": 6, "accuracy": 0.5}}},
    "after": {"n": 60, "accuracy": 0.2, "accuracy_ci95": [0.1, 0.3], "by": {"capitals": {"n": 6, "accuracy": 0.5}}},
    "lost": [{"prompt": "Which?", "target": "a", "before": "a", "after": "b"}],
}


def test_general_questions_of_an_older_report(whole, log, recipe, read_page):
    """Without parts; and a verdict by a rule that has been given up is none of today."""
    read = read_page(page({**whole, "forgetting": OLD}, log, recipe, "run"))
    assert read.ids == SECTIONS and "capitals" in read.text and "Which?" in read.text


def test_parts_of_the_general_questions(whole, log, recipe, read_page):
    text = read_page(page(whole, log, recipe, "run")).text
    assert "choices: forgot" in text and "short answers: forgot" in text


def test_a_page_of_what_is_not_asked_tells_of_general_questions(log, recipe, tmp_path, read_page, whole):
    judged = {"metric": "bits_per_character", "before": {"bits_per_character": 3.0, "n": 2}}
    judged |= {"after": {"bits_per_character": 2.0, "n": 2}}
    for forgetting, said in (
        (None, "Whether it forgot other things was not measured"),
        (whole["forgetting"], "For instance"),
    ):
        report = judged if forgetting is None else {**judged, "forgetting": forgetting}
        read = read_page(write_judged_page(report, log, recipe, tmp_path).read_text("utf-8"))
        assert said in read.text.partition("What was done")[0] and "forgetting" in read.ids
