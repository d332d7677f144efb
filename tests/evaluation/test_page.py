"""`report.html` is well-formed, loads nothing, shows foreign text as text, and says what to do."""

import random
import re
from html.parser import HTMLParser

import pytest

from glmtune.config import load_recipe, to_yaml
from glmtune.evaluation.charts import Line, line_chart, logarithmic_ticks, ticks
from glmtune.evaluation.comparison import compare
from glmtune.evaluation.evaluator import Evaluation
from glmtune.evaluation.forgetting import Probe, compare_probes
from glmtune.evaluation.page import decide, page, write_page
from glmtune.examples import Example
from glmtune.runtime import read_json_lines
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings

SECTIONS = ["run", "results", "curves", "digits", "changed", "failures", "forgetting", "costs", "recipe"]
EVIL = "<script>alert('&')</script>\n\"<img src=http://x.example/y>"
VOID = {"meta", "img", "br", "path", "circle", "polyline", "polygon"}


class Reader(HTMLParser):
    """Ids, tags and texts of a page; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.tags, self.text = [], [], set(), ""
        self.links = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def recipe():
    return to_yaml(load_recipe(None, ["training.steps=10", "training.learning_rate=0.001"]))


@pytest.fixture(scope="module")
def log():
    scores = [{"step": step, "accuracy": step / 10, "accuracy_ci95": [0, 1], "n": 9} for step in (0, 5, 10)]
    losses = [{"step": step, "loss": 3 / (1 + step), "learning_rate": 1e-3, "seconds": step} for step in range(1, 11)]
    return [*scores, *losses, {"step": 7, "loss": float("nan"), "seconds": 7}]


def evaluated(share, evil=False, count=200):
    """The arithmetic task, and an evaluation in which a share of the answers is right."""
    task, rng, chance = Arithmetic(ArithmeticSettings(name="arithmetic")), random.Random(3), random.Random(share)
    examples = [task.sample(rng, "held_out") for _ in range(count)]
    completions = [e.target if chance.random() < share else EVIL if evil else "=1" for e in examples]
    scores = [task.score(e, c) for e, c in zip(examples, completions, strict=True)]
    return task, Evaluation(examples, completions, scores)


def report_of(before, after, known=None, evil=False):
    (task, then), (_, now) = evaluated(before, evil), evaluated(after, evil)
    report = {"format": 1, "before": then.report(), "after": now.report(), **compare(task, then, now)}
    if known is not None:
        report["forgetting"] = compare_probes(*(probe_of(right) for right in known))
    return report | {"training_seconds": 500.0, "peak_memory": 2**31, "machine": {"processor": EVIL, "versions": {}}}


def probe_of(right):
    examples = [Example(EVIL, "a", {"group": EVIL})] * 60
    return Probe(examples, [EVIL] * 60, [i < right for i in range(60)], -1.0, 60)


@pytest.fixture(scope="module")
def whole():
    return report_of(0.2, 0.7, (40, 30), evil=True)


def test_every_section_is_there(whole, log, recipe, tmp_path):
    path = write_page(whole, log, recipe, tmp_path)
    assert path == tmp_path / "report.html"
    read = Reader(path.read_text(encoding="utf-8"))
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


def test_it_loads_nothing_and_runs_nothing(whole, log, recipe):
    text = page(whole, log, recipe, EVIL)
    read = Reader(text)
    assert read.links == [] and not read.tags & {"script", "img", "link", "iframe", "object", "embed", "base"}
    assert EVIL.splitlines()[0] in read.text  # as text
    assert "default-src 'none'" in text and "url(" not in text and "@import" not in text


def test_parts_that_are_missing_are_left_out(recipe):
    _, only = evaluated(0.5)
    report = {"after": only.report(text_metrics=False)}
    read = Reader(page(report, [], recipe, "run"))
    assert read.ids == ["run", "results", "forgetting", "costs", "recipe"]
    assert "Not certain" in read.text and "Not measured" in read.text
    assert "before" not in read.text.partition("Not measured")[0].lower()
    assert Reader(page(report | {"before": None}, [], "", "run")).ids == read.ids


def test_records_without_operators(recipe, log):
    task, examples = evaluated(1)[0], [Example("say 1", "1"), Example([{"role": "user", "content": "2?"}], "2")]
    then, now = (
        Evaluation(examples, said, [task.score(e, c) for e, c in zip(examples, said, strict=True)])
        for said in (["", "3"], ["1", "2"])
    )
    report = {"before": then.report(), "after": now.report(), **compare(task, then, now)}
    read = Reader(page(report, log, recipe, "run"))
    assert "digits" not in read.ids and "every held-out example is answered rightly" in read.text


@pytest.mark.parametrize(
    ("before", "after", "known", "which"),
    [
        (0.2, 0.7, None, "keep"),
        (0.2, 0.7, (40, 40), "keep"),
        (0.2, 0.7, (40, 38), "keep"),
        (0.2, 0.7, (0, 0), "keep"),
        (0.2, 0.7, (40, 20), "discard"),
        (0.7, 0.2, None, "discard"),
        (0.5, 0.52, (40, 40), "open"),
        (0.5, 0.5, None, "open"),
        (0.5, 0.52, (40, 20), "discard"),
    ],
)
def test_the_decision(before, after, known, which):
    found, words, rest = decide(report_of(before, after, known))
    assert found == which
    assert words == {"keep": "Keep it", "discard": "Do not keep", "open": "Not certain"}[which]
    assert "of the held-out examples rightly" in rest and rest.endswith(".")


def test_charts_stay_within_their_frame():
    lines = [
        Line("<a>", [(0, 100.0), (5, 0.1), (10, 3.0)], "--accent", [(0, 90.0, 100.0), (10, 2.0, 4.0)], marked=True)
    ]
    text = line_chart(lines, "t<", "step", str)
    assert Reader(text).text.count("<a>") == 1
    for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", text):
        assert 0 <= float(x) <= 400 and -5 <= float(y) <= 240
    assert Reader(line_chart([Line("one", [(3, 1.0)], "--accent")], "t", "step", str))


def test_ticks():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10] and ticks(0, 2500) == [0, 500, 1000, 1500, 2000, 2500]
    assert ticks(0, 0.07) == pytest.approx([0, 0.02, 0.04, 0.06])
    assert logarithmic_ticks(0.03, 4) == [0.1, 1.0] and logarithmic_ticks(1, 30) == [1, 2, 5, 10, 20]


def test_a_run_has_its_page(tiny_run):
    text = (tiny_run.folder.path / "report.html").read_text(encoding="utf-8")
    log = [record for _, record in read_json_lines(tiny_run.folder.log)]
    assert {"difference", "changed", "failure_groups", "operand_digits", "peak_memory"} <= tiny_run.report.keys()
    assert {"mean", "ci95"} <= tiny_run.report["difference"].keys() and "forgetting" not in tiny_run.report
    assert text == page(tiny_run.report, log, tiny_run.folder.recipe.read_text("utf-8"), tiny_run.folder.path.name)


def test_a_run_that_asks_general_questions(train_tiny, tmp_path, write_records):
    questions = write_records(*({"prompt": f"{i}?", "target": "yes"} for i in range(4)))
    run = train_tiny(tmp_path / "run", "evaluation.forgetting=true", f"evaluation.general_file={questions}")
    found = run.report["forgetting"]
    assert found["level"] == "unknown" and found["before"]["n"] == found["after"]["n"] == 4
    assert found["before"]["log_likelihood"] != found["after"]["log_likelihood"]
    assert "Whether the model forgot cannot be told" in (run.folder.path / "report.html").read_text("utf-8")
