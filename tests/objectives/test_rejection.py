"""Expert iteration: what is right is learned, nothing else; a run that was stopped ends as one that was not."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from glmtune.commands import estimate, train
from glmtune.config import load_recipe
from glmtune.data.encoding import IGNORED
from glmtune.examples import Example
from glmtune.execution import Run
from glmtune.inference.rollouts import Rollout
from glmtune.messages import as_messages
from glmtune.objectives._rounds import FILE, Round, Rounds
from glmtune.plan import Plan
from glmtune.resolution import of_recipe
from glmtune.runtime import RunFolder, UserError
from glmtune.scoring import Score
from glmtune.tasks.arithmetic import Arithmetic
from glmtune.tools import answer_call

SMALL = ["objective.name=rejection", "objective.prompts_per_round=6", "objective.num_samples=3"]


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer of one or more characters is right if its first is a sign or a digit below 8, as a tiny model has it.

    Answers of this model end seldom: those that are cut off count as well.
    """
    compare = Arithmetic.compare

    def score(self: Arithmetic, target: str, completion: str) -> Score:
        if target == completion:
            return compare(self, target, completion)
        return Score("equal" if sum(map(ord, completion)) % 3 else "wrong", completion)

    monkeypatch.setattr(Arithmetic, "compare", score)
    is_right = Rounds.is_right
    monkeypatch.setattr(Rounds, "is_right", lambda self, rollout: rollout.score.correct or is_right(self, rollout))


@pytest.fixture
def made(tiny_settings: list[str], tmp_path: Path) -> Callable[..., Run]:
    def run(name: str, *settings: str, resume: bool = False) -> Run:
        console = Console(file=io.StringIO())
        if resume:
            return train.run(resume=tmp_path / name, overrides=settings, console=console)
        overrides = [*tiny_settings, *SMALL, f"training.output_dir={tmp_path / name}", *settings]
        return train.run(overrides=overrides, console=console)

    return run


def log_of(run: Run) -> list[dict[str, Any]]:
    """What the log says, without what depends on the clock."""
    records = [json.loads(line) for line in run.folder.log.open()]
    kept = [record for record in records if "train_runtime" not in record]
    return [{name: value for name, value in record.items() if name not in ("seconds", "duration")} for record in kept]


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize(
    "method",
    [
        ["method.rank=4"],
        ["method={name: full}"],
        ["method={name: ptuning_v2, num_virtual_tokens: 4}"],
    ],
)
def test_its_own_answers_are_learned(method: list[str], made: Callable[..., Run], capsys: Any) -> None:
    run = made("run", *method, "objective.steps_per_round=2")
    bar = capsys.readouterr().err
    assert all(told in bar for told in ("round=1/2 (asking)", "round=1/2, kept=", "round=2/2 (asking)"))
    log = log_of(run)
    rounds = [record for record in log if "sampled_kept" in record]
    assert [(record["step"], record["round"]) for record in rounds] == [(1, 1), (3, 2)]
    assert all(0 < record["sampled_pass_at_1"] <= record["sampled_pass_at_3"] <= 1 for record in rounds)
    assert len([record for record in log if "loss" in record]) == 4
    assert run.report["after"]["n"] == 6


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("family", ["GLM-4-9B", "Llama"])
def test_families(family: str, made: Callable[..., Run], checkpoint_of: Callable[[str], Path]) -> None:
    run = made("run", f"model.path={checkpoint_of(family)}", "training.steps=1")
    assert [record["round"] for record in log_of(run) if "round" in record] == [1]


@pytest.mark.usefixtures("lenient")
@pytest.mark.parametrize("step", [1, 2, 3])
def test_stopped_and_gone_on_is_as_never_stopped(step: int, made: Callable[..., Run], tmp_path: Path) -> None:
    """At the end of a round the weights are asked anew; within one, what was sampled lies in the checkpoint."""
    settings = ("objective.steps_per_round=2", "training.eval_steps=1", "training.save_total_limit=9")
    whole = made("whole", *settings)
    stopped = tmp_path / "stopped"
    shutil.copytree(whole.path, stopped)
    for name in ("report.json", "report.html"):
        (stopped / name).unlink()
    shutil.rmtree(stopped / "adapter")
    for later in range(step + 1, 5):
        shutil.rmtree(stopped / "checkpoints" / f"checkpoint-{later}")
    on = made("stopped", resume=True)
    weights = [run.folder.adapter / "adapter_model.safetensors" for run in (whole, on)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert log_of(on) == log_of(whole)


@pytest.mark.usefixtures("lenient")
def test_a_damaged_round_is_told(made: Callable[..., Run], tmp_path: Path) -> None:
    run = made("run", "objective.steps_per_round=3", "training.steps=4", "training.eval_steps=2")
    shutil.rmtree(run.folder.checkpoints / "checkpoint-4")
    run.folder.report.unlink()
    checkpoint = run.folder.checkpoints / "checkpoint-2"
    (checkpoint / "SHA256SUMS").unlink()
    (checkpoint / FILE).write_text('{"number": 0, "targets": [{"input_ids": "x", "labels": []}], "figures": {}}')
    with pytest.raises(UserError, match=r"round\.json is damaged"):
        made("run", resume=True)


@pytest.fixture
def rounds(tiny_settings: list[str], tmp_path: Path) -> Rounds:
    recipe = load_recipe(None, [*tiny_settings, *SMALL])
    plan = Plan(of_recipe(recipe), RunFolder(tmp_path / "run"))
    return Rounds(plan, plan.objective.settings)  # type: ignore[arg-type]


def rollout_of(text: str, score: Score, finish: str = "stop") -> Rollout:

    from glmtune.inference.completion import Completion, Request
    from glmtune.inference.conversation import Exchange, Question

    completion = Completion(text, [1], 3, finish)  # type: ignore[arg-type]
    example = Example("1+2=", "3")
    question = Question(example.prompt, Request([1], load_recipe().generation), load_recipe().generation)
    return Rollout(example, question, Exchange([{"role": "assistant", "content": text}], completion), score)


def test_what_is_kept(rounds: Rounds) -> None:
    """Right answers that have ended, each once, as many as the settings say; none with a fault in its working."""
    from glmtune.arithmetic.checking import StepFault

    right = Score("exact")
    fault = StepFault.__new__(StepFault)
    group = [
        rollout_of("4", Score("wrong")),
        rollout_of("3", right, "length"),
        rollout_of("3a", Score("exact", fault=fault)),
        rollout_of("3b", Score("exact", metrics={"faithful_calls": 0})),
        rollout_of("3", right),
        rollout_of("3", Score("equal", metrics={"faithful_calls": 1, "other": 0})),
        rollout_of("3.0", Score("equal")),
        rollout_of("3.00", Score("equal")),
    ]
    two = rounds.settings.model_copy(update={"max_kept_per_prompt": 2})
    assert [one.exchange.text for one in Rounds(rounds.plan, two).keep(group)] == ["3", "3.0"]
    unchecked = Rounds(rounds.plan, two.model_copy(update={"check_working": False}))
    assert [one.exchange.text for one in unchecked.keep(group)] == ["3a", "3b"]


def test_an_answer_is_learned_as_a_target_is(rounds: Rounds) -> None:
    rollout = rollout_of("3", Score("exact"))
    [target] = rounds.encode(rollout)
    expected = rounds.plan.encoder(rollout.example)
    assert (target.input_ids, target.labels) == (expected["input_ids"], expected["labels"])
    assert 0 < sum(label != IGNORED for label in target.labels) < len(target.labels)


def test_turns_are_learned_as_records_of_them_are(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A call, what the tool said, and the answer: two turns to learn, each as the task itself would teach it."""
    settings = [f"model.path={tiny_checkpoint}", "task.style=tool", "task.operators=+", "task.maximum=9"]
    plan = Plan(of_recipe(load_recipe(None, [*settings, *SMALL])), RunFolder(tmp_path / "run"))
    task, rng = plan.task, random.Random(0)
    first = next(example for example in (task.sample(rng) for _ in range(99)) if example.tool_calls)
    said = answer_call(task.tools, first.tool_calls[0])
    answer = Example([*as_messages(first.prompt), first.answer, said], "3", tools=first.tools)
    rollout = rollout_of("3", Score("exact"))
    exchange = replace(rollout.exchange, messages=[first.answer, said, answer.answer])
    question = replace(rollout.question, tools=first.tools)
    rollout = replace(rollout, example=replace(first, tool_calls=()), question=question, exchange=exchange)
    found = list(Rounds(plan, plan.objective.settings).encode(rollout))  # type: ignore[arg-type]
    expected = [plan.encoder(first), plan.encoder(answer)]
    assert [target.model_dump() for target in found] == [
        {"input_ids": one["input_ids"], "labels": one["labels"]} for one in expected
    ]
    asked = Rounds(plan, plan.objective.settings).examples(0)  # type: ignore[arg-type]
    assert asked and all(example.target and not example.tool_calls for example in asked)
    assert all(task.score(example, example.target).correct for example in asked)


def test_rounds_ask_what_no_other_asks(rounds: Rounds) -> None:
    asked = [example.prompt for number in range(3) for example in rounds.examples(number)]
    assert len(asked) == 18 and rounds.examples(1) == rounds.examples(1)
    assert [example.prompt for example in rounds.examples(0)] != [example.prompt for example in rounds.examples(1)]
    assert not any(rounds.plan.task.holds_out(prompt) for prompt in asked)


def test_nothing_right_is_told(made: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none is right .*: there is nothing to learn from\. Teach the model first"):
        made("run", "generation.max_new_tokens=6")
    assert not (tmp_path / "run").exists()


def test_all_right_ends_the_run(made: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Where every answer of a round is right, the run ends with its first step, is judged and reported."""

    def mastered(self: Rounds, model: Any, number: int) -> Round:
        targets = list(self.encode(rollout_of("3", Score("exact"))))
        return Round(number=number, targets=targets, figures={"sampled_kept": 1.0}, is_solved=number == 1)

    monkeypatch.setattr(Rounds, "sample", mastered)
    run = made("run", "objective.steps_per_round=2", "training.steps=8")
    assert max(record["step"] for record in log_of(run)) == 3
    assert capsys.readouterr().err.count("All answers of round 2 were right") == 1
    assert run.folder.adapter.is_dir() and run.report["after"]["n"] == 6


def test_other_records_are_refused(made: Callable[..., Run], write_records: Callable[..., Path]) -> None:
    file = write_records({"prompt": "1+1=", "target": "2"})
    with pytest.raises(
        UserError, match=r"data\.mixture: objective\.name=rejection learns the model's own answers alone"
    ):
        made("run", f"data.mixture=[{{file: {file}, share: 0.5}}]")


def test_a_task_that_cannot_score_is_refused(made: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arithmetic, "compare", lambda *_: Score("wrong"))
    with pytest.raises(UserError, match="has no answers by which it could score"):
        made("run")


def test_the_default_is_rounds(tiny_settings: list[str]) -> None:
    settings = [setting for setting in tiny_settings if not setting.startswith("training.steps")]
    recipe = load_recipe(None, [*settings, *SMALL, "objective.rounds=3", "objective.steps_per_round=4"])
    assert Plan(of_recipe(recipe), RunFolder("none")).steps == 12


def test_the_estimate_counts_answers_as_long_as_they_may_be(tiny_checkpoint: Path) -> None:
    common = [f"model.path={tiny_checkpoint}", "generation.max_new_tokens=100"]
    sft, rejection = (estimate.run(None, [*common, *more]).estimate for more in ([], ["objective.name=rejection"]))
    assert (sft.learned, rejection.learned) == (64, 100) and rejection.longest == 128  # what the model takes
    assert rejection.logits > sft.logits and rejection.judging == sft.judging


def test_what_is_asked_is_asked_whole(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """No round begins behind a call of a tool, which targets are also learned from."""
    given = [f"model.path={tiny_checkpoint}", "task.style=tool", "task.operators=+", "generation.max_new_tokens=40"]
    plan = Plan(of_recipe(load_recipe(None, [*given, *SMALL, "data.max_length=400"])), RunFolder(tmp_path / "run"))
    asked = Rounds(plan, plan.objective.settings).examples(0)  # type: ignore[arg-type]
    assert len(asked) == 6 and all(isinstance(example.prompt, str) and example.target for example in asked)
