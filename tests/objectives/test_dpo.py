"""Preferences are learned by every method, judged, resumed and reported like everything else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from glmtune.commands import evaluate, export, inspect, ls, train
from glmtune.config import RecipeError, load_recipe
from glmtune.data.comparisons import singles_of
from glmtune.examples import Example
from glmtune.plan import Plan
from glmtune.plan import prepare as plan_of
from glmtune.resolution import ResolvedModel
from glmtune.runtime import RunFolder, UserError

TINY = [
    *("task.operators=+", "task.kinds=[integer]", "task.maximum=5", "task.style=direct", "task.echo=false"),
    *("training.batch_size=4", "training.logging_steps=1", "training.learning_rate=0.01"),
    *("evaluation.num_examples=4", "evaluation.num_examples_during=2", "generation.max_new_tokens=6"),
]
LEARNS = ["objective.name=dpo"]
PAIRS = [
    {"prompt": f"{a}+{b}", "chosen": str(a + b), "rejected": str(a * 7 + b)} for a in range(1, 9) for b in range(5)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", PAIRS)


@pytest.fixture
def learn(tmp_path: Path, tiny_checkpoint: Path, pairs: Path) -> Callable[..., Any]:
    """`learn("run", "method.name=full")`: a run on pairs that arithmetic judges."""

    def run(folder: str, *settings: str) -> Any:
        named = {setting.partition("=")[0] for setting in settings}
        given = [*TINY, "training.steps=4", f"model.path={tiny_checkpoint}", *LEARNS, f"objective.pairs={pairs}"]
        given = [setting for setting in given if setting.partition("=")[0] not in named]
        return train.run(overrides=[*given, f"training.output_dir={tmp_path / folder}", *settings])

    return run


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["lora", "full", "freeze", "ptuning_v2"])
@pytest.mark.parametrize("family", ["ChatGLM", "GLM-4-9B", "Llama"])
def test_every_method_begins_at_log_2_and_learns(
    method: str, family: str, learn: Callable[..., Any], tmp_path: Path, checkpoint_of: Callable[[str], Path]
) -> None:
    """The reference is what the method starts from; the margin grows, and is logged with the rewards."""
    settings = [f"method.name={method}"]
    settings += [f"model.path={checkpoint_of(family)}"] if family != "ChatGLM" else []
    settings += {"ptuning_v2": ["method.num_virtual_tokens=4"], "freeze": ["method.num_layers=1"]}.get(method, [])
    few = write(
        tmp_path / "few.jsonl", [{**row, "prompt": f"what is {row['prompt']}, in words"} for row in PAIRS[::10]]
    )
    settings += [f"objective.pairs={few}", "training.steps=12", "training.eval_steps=12", "training.warmup_ratio=0"]
    run = learn("run", *settings)
    losses = [record for record in log_of(run.path) if "loss" in record]
    assert losses[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[0]["reward_margin"] == pytest.approx(0, abs=1e-5)
    assert losses[-1]["loss"] < math.log(2) and losses[-1]["reward_margin"] > 0
    for record in losses:
        margin = record["reward_chosen"] - record["reward_rejected"]
        assert record["reward_margin"] == pytest.approx(margin, abs=2e-6) and 0 <= record["reward_accuracy"] <= 1
    assert "accuracy" in run.report["after"] and (run.path / "report.html").is_file()


def test_the_worse_answer_becomes_less_likely(
    tmp_path: Path, tiny_checkpoint: Path, pairs: Path, read_page: Any
) -> None:
    """A file of pairs by itself is judged by held-out pairs: before, during, after, and by `evaluate`."""
    write(
        pairs, [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
    )  # it likes short ones
    own = ["task.name=instructions", f"task.file={pairs}", "task.held_out=0.2", "evaluation.num_examples=50"]
    settings = [f"model.path={tiny_checkpoint}", *LEARNS, *own, *TINY[5:8], "training.steps=24"]
    run = train.run(overrides=[*settings, f"training.output_dir={tmp_path / 'run'}"])
    report = run.report
    assert report["metric"] == "preference_accuracy" and report["before"]["n"] == report["after"]["n"] > 3
    assert report["after"]["preference_accuracy"] > report["before"]["preference_accuracy"]
    judged = [record["preference_accuracy"] for record in log_of(run.path) if "preference_accuracy" in record]
    assert max(judged) == report["after"]["preference_accuracy"], "the best weights remain"
    low, high = report["after"]["preference_accuracy_ci95"]
    assert 0 <= low < report["after"]["preference_accuracy"] <= high <= 1
    page = read_page((run.path / "report.html").read_text(encoding="utf-8"))
    assert f"(95% interval {low:.1%} to {high:.1%})" in page.text and (run.path / "reward.png").is_file()
    assert "Loss (sigmoid, a pair; lower is better)" in page.text and "Rewards of better and worse answers" in page.text
    _, found = evaluate.run(run.path)
    assert found["preference_accuracy"] == report["after"]["preference_accuracy"]
    _, found = evaluate.run(run.path, str(pairs))
    assert found["n"] == len(PAIRS)
    whole = export.run(run.path, output=str(tmp_path / "whole"))
    assert "| held-out | examples | preference accuracy |" in (whole / "README.md").read_text("utf-8")
    assert ls.run(str(tmp_path))["runs"][str(run.path)].startswith("held-out preference accuracy ")


def test_both_judges(learn: Callable[..., Any], tmp_path: Path) -> None:
    """Pairs of problems that are held out are not learned; they tell how often the better answer is the likelier."""
    with pytest.warns(UserWarning, match="are left out of training"):
        run = learn("run", "task.held_out=0.4")
    judged = [record for record in log_of(run.path) if "accuracy" in record]
    assert judged[0]["step"] == 0 and judged[1:]
    for record in judged:
        low, high = record["preference_accuracy_ci95"]
        assert 0 <= low <= record["preference_accuracy"] <= high <= 1 and record["preference_accuracy_n"] > 0


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_a_resumed_run_is_one_that_never_stopped(learn: Callable[..., Any], loss: str) -> None:
    """Its reference is measured again, of the model as it began."""
    how = [f"objective.loss={loss}", "training.lr_scheduler_type=constant_with_warmup", "training.logging_steps=3"]
    how += ["training.eval_steps=2"]
    whole = learn("whole", *how)
    learn("cut", *how, "training.steps=2")
    cut = train.run(resume=str(whole.path.with_name("cut")), overrides=["training.steps=4"])
    one, other = (
        load_file(run.path / "checkpoints" / "checkpoint-4" / "trainable.safetensors") for run in (whole, cut)
    )
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=1e-6)
    last = [log_of(run.path) for run in (whole, cut)]
    figures = [[r for r in log if "loss" in r and r["step"] == 4][-1] for log in last]
    assert figures[0]["reward_chosen"] == pytest.approx(figures[1]["reward_chosen"], abs=1e-5)


@pytest.mark.parametrize(
    "loss", ["robust", "hinge", "ipo", "apo_zero", "apo_down", "sppo_hard", "simpo", "orpo", "kto"]
)
def test_micro_batches_change_no_loss(learn: Callable[..., Any], loss: str) -> None:
    """A step of four is a step of two and two; kto's point of reference is of the whole step."""
    more = [f"objective.loss={loss}", "training.steps=2"]
    more += ["objective.sft_weight=0.5"] if loss in ("hinge", "kto") else []
    whole = learn("whole", *more)
    parts = learn("parts", *more, "training.batch_size=2", "training.gradient_accumulation_steps=2")
    one, other = ([r["loss"] for r in log_of(run.path) if "loss" in r] for run in (whole, parts))
    assert one == pytest.approx(other, abs=1e-5) and len(one) == 2


def test_labels_and_pairs_are_learned_as_single_answers(learn: Callable[..., Any], tmp_path: Path) -> None:
    """kto takes records with a label, and both answers of pairs."""
    labelled = [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in PAIRS
        for name in ("chosen", "rejected")
    ]
    file = write(tmp_path / "labels.jsonl", labelled)
    runs = [learn("pairs", "objective.loss=kto"), learn("labels", "objective.loss=kto", f"objective.pairs={file}")]
    one, other = ([r["loss"] for r in log_of(run.path) if "loss" in r] for run in runs)
    assert one == pytest.approx(other, abs=1e-5)
    assert one[0] == pytest.approx(0.5, abs=0.2), "half of both kinds"


def test_labels_that_are_sorted_are_judged(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The first of those that are held out are of one kind, and both are needed."""
    rows = [{"prompt": f"q{number}", "completion": "a", "label": number < 60} for number in range(120)]
    file = write(tmp_path / "labels.jsonl", rows)
    own = ["task.name=instructions", f"task.file={file}", "task.held_out=0.3", "objective.loss=kto"]
    plan = prepared([*own, "evaluation.num_examples=5"], tiny_checkpoint, tmp_path)
    chosen = plan.objective.held_out(plan.preparation, 5)  # type: ignore[attr-defined]
    assert [bool(example.target) for example in chosen] == [True, True, True, False, False]
    assert plan.judge is not None


def test_answers_to_other_prompts_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is thought goes with the answer that was thought of, to whatever prompt."""
    monkeypatch.setattr("glmtune.data.comparisons.refusal_of", lambda tokenizer, row: None)
    examples = [Example("a", "1", reasoning_content="one"), Example("b", "2"), Example("c", "", rejected="3")]
    found = singles_of(examples, None, load_recipe().data, "records")  # type: ignore[arg-type]
    said = [(one.other.prompt, one.other.target, one.other.reasoning_content) for one in found]
    assert said == [("a", "2", ""), ("b", "3", ""), ("c", "1", "one")]


def test_a_run_goes_on_with_the_pairs_that_it_began_with(learn: Callable[..., Any], pairs: Path) -> None:
    run = learn("run", "training.steps=2")
    write(pairs, [{**row, "rejected": "99"} for row in PAIRS])
    with pytest.raises(UserError, match="has other records than when"):
        train.run(resume=str(run.path), overrides=["training.steps=4"])


def test_one_process_learns(
    tiny_checkpoint: Path, tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glmtune.distributed.world_size", lambda: 2)
    with pytest.raises(UserError, match=r"learns in one process as yet\. Set training\.devices=1"):
        prepared([f"objective.pairs={pairs}"], tiny_checkpoint, tmp_path)


def prepared(settings: list[str], tiny_checkpoint: Path, tmp_path: Path) -> Plan:
    folder = RunFolder(tmp_path / "none")
    named = {setting.partition("=")[0] for setting in settings}
    given = [*(TINY if "task.name" not in named else TINY[5:]), f"model.path={tiny_checkpoint}", *LEARNS]
    given = [setting for setting in given if setting.partition("=")[0] not in named]
    recipe = load_recipe(None, [*given, *settings])
    return plan_of(ResolvedModel(recipe), folder)


GOOD = {"prompt": "1+1", "chosen": "2", "rejected": "3"}
FAULTS: dict[str, tuple[list[dict[str, Any]], list[str], str]] = {
    "no pairs": (
        [{"prompt": "1+1", "target": "2"}],
        [],
        "have no 'rejected' .*glmtune pairs.*objective.loss=kto",
    ),
    "equal": ([GOOD, {**GOOD, "rejected": " 2 "}], [], "pairs.jsonl, line 2: 'chosen' and 'rejected' are the same"),
    "one without": ([GOOD, {"prompt": "1+2", "target": "3"}], [], "line 2: 'rejected' is missing"),
    "empty": ([GOOD, {**GOOD, "rejected": " "}], [], "line 2: 'rejected' is missing, empty or not a text"),
    "no prompt": ([GOOD, {"chosen": "2", "rejected": "3"}], [], "line 2: 'prompt' is missing"),
    "other prompts": (
        [
            {
                "chosen": "\n\nHuman: 1+1?\n\nAssistant: 2",
                "rejected": "\n\nHuman: 1+2?\n\nAssistant: 3",
            }
        ],
        [],
        "line 1: 'chosen' and 'rejected' answer different conversations",
    ),
    "labels": (
        [GOOD, {"prompt": "1+1", "completion": "3", "label": False}],
        [],
        "line 2: a single answer with a 'label', which objective.loss=kto learns from",
    ),
    "labels of one kind": (
        [{"prompt": "1+1", "completion": "2", "label": True}],
        ["objective.loss=kto"],
        "are all good answers.*'label' that is true or false",
    ),
    "equal answers": ([GOOD, {**GOOD, "rejected": "2"}], ["objective.loss=kto"], "line 2: .*are the same answer"),
    "packing": ([GOOD], ["data.packing=true"], "data.packing=true: objective.name=dpo"),
    "mixture": ([GOOD], ["data.mixture=[{file: a.jsonl, share: 0.1}]"], "data.mixture: objective.name=dpo"),
    "truncate": ([GOOD], ["data.too_long=truncate"], "data.too_long=truncate: .*different places"),
    "too long": ([GOOD, {**GOOD, "rejected": "3" * 300}], [], "line 2 of .*pairs.jsonl has .* tokens"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_before_anything_is_loaded(
    name: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings, said = FAULTS[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [{"prompt": "q", "target": "a"}])
    file = write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(UserError, match=f"(?s){said}"):
        prepared([f"objective.pairs={file}", *settings], tiny_checkpoint, tmp_path)


def test_a_task_without_pairs_and_settings_of_another_loss(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"objective\.pairs=FILE.*glmtune pairs"):
        prepared([], tiny_checkpoint, tmp_path)
    with pytest.raises(UserError, match=r"no record with answers to compare is held out"):
        rows = [{**row, "prompt": "a tale, please"} for row in PAIRS]
        file = write(tmp_path / "words.jsonl", rows)
        prepared([f"objective.pairs={file}", "objective.judge=preferences"], tiny_checkpoint, tmp_path)
    with pytest.raises(RecipeError, match="label_smoothing is of sigmoid and robust; loss=ipo does not read it"):
        load_recipe(None, [*LEARNS, "objective.loss=ipo", "objective.label_smoothing=0.1"])
    with pytest.raises(RecipeError, match="margin is of simpo"):
        load_recipe(None, [*LEARNS, "objective.margin=1"])


def test_faulty_pairs_can_be_skipped_and_long_ones_dropped(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = [{**row, "prompt": f"{row['prompt']} in words"} for row in PAIRS[:6]]
    rows += [{**GOOD, "rejected": "2"}, {**GOOD, "prompt": "9+9 in words", "rejected": "3" * 300}]
    file = write(tmp_path / "pairs.jsonl", rows)
    settings = [f"objective.pairs={file}", "data.on_error=skip", "data.too_long=drop"]
    with pytest.warns(UserWarning, match="1 records that are no pairs are left out"):
        plan = prepared(settings, tiny_checkpoint, tmp_path)
    assert len(plan.dataset) == 6
    assert any(remark.startswith("Of 7 comparisons, 1 are left out") for remark in plan.remarks)
    assert "skipped" in "".join(path.name for path in tmp_path.iterdir())


def test_the_default_rate_is_far_below_that_of_targets(tiny_checkpoint: Path, tmp_path: Path, pairs: Path) -> None:
    plans = [
        prepared(["training.learning_rate=null", *more], tiny_checkpoint, tmp_path)
        for more in ([f"objective.pairs={pairs}"], ["objective.name=sft"])
    ]
    one, other = (plan.recipe.training.learning_rate or 0 for plan in plans)
    assert one == pytest.approx(other / 10)


def test_answers_without_a_better_one_are_no_targets(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """What a label calls bad is not learned by mistake."""
    file = write(
        tmp_path / "labels.jsonl", [{"prompt": f"{a}+1", "completion": "5", "label": a > 4} for a in range(60)]
    )
    with pytest.raises(UserError, match=r"line 1 of .*: 'label' says that this answer is bad"):
        prepared(
            ["objective.name=sft", "task.name=instructions", f"task.file={file}", "task.held_out=0.3"],
            tiny_checkpoint,
            tmp_path,
        )
    report = inspect.run([str(file)])
    assert report["formats"] == {"labelled": 60} and report["notes"]
