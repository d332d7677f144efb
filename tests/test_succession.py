"""A training that goes on from a run: what was learned is where it starts, and stays one adapter."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import glmtune
from glmtune.commands import doctor, estimate, evaluate, train
from glmtune.config import load_recipe, to_yaml
from glmtune.data import DrawnExamples, LengthGroupedSampler
from glmtune.data.encoding import IGNORED
from glmtune.execution import Run
from glmtune.models.checkpoint import fingerprint
from glmtune.objectives._rounds import Rounds
from glmtune.objectives.pretrain import total_loss
from glmtune.plan import Plan
from glmtune.resolution import ResolvedModel, of_recipe, resolve
from glmtune.runtime import UserError
from glmtune.succession import describe_inherited, recipe_after

Goes = Callable[..., Run]

METHODS = {
    "lora": ["method.rank=4"],
    "rslora": ["method.rank=4", "method.use_rslora=true"],
    "dora": ["method.rank=4", "method.use_dora=true"],
    "pissa": ["method.rank=4", "method.init=pissa"],
    "lora at 8 bits": ["method.rank=4", "model.bits=8"],
    "lora at 4 bits": ["method.rank=4", "model.bits=4"],
    "ptuning_v2": ["method.name=ptuning_v2", "method.num_virtual_tokens=4"],
    "projection": ["method.name=ptuning_v2", "method.num_virtual_tokens=4", "method.prefix_projection=true"],
    "prefix at 4 bits": ["method.name=ptuning_v2", "method.num_virtual_tokens=4", "model.bits=4"],
    "freeze": ["method.name=freeze", "method.num_layers=1"],
    "full": ["method.name=full"],
}


@pytest.fixture(scope="module")
def shared(tiny_settings: list[str]) -> list[str]:
    return [setting for setting in tiny_settings if not setting.startswith("method.")]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, shared: list[str]) -> Callable[[str], Run]:
    """`run_of("dora")`: a run by that method. No test may change its folder."""
    made: dict[str, Run] = {}

    def find(method: str) -> Run:
        if method not in made:
            place = tmp_path_factory.mktemp("runs") / "first"
            overrides = [*shared, *METHODS[method], f"training.output_dir={place}"]
            made[method] = train.run(overrides=overrides, console=Console(file=io.StringIO()))
        return made[method]

    return find


def go_on(run: Run | Path, place: Path, *settings: str) -> Run:
    return train.run(run, [f"training.output_dir={place}", *settings], console=Console(file=io.StringIO()))


def resume(place: Path, *settings: str) -> Run:
    return train.run(resume=place, overrides=settings, console=Console(file=io.StringIO()))


def stopped(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def loss_of_first_step(run: Run, place: Path) -> float:
    """The loss of a run's model, as it is loaded for use, on the examples of the first step of the next one."""
    recipe = recipe_after(run, [f"training.output_dir={place}"])
    plan = Plan(of_recipe(recipe), run.folder)
    model, tokenizer = glmtune.load(run)
    step = recipe.training.examples_per_step
    order = list(LengthGroupedSampler(plan.dataset, step, recipe.seed))[:step]
    batch = [plan.dataset[index] for index in order]
    learned = sum(label != IGNORED for encoding in batch for label in encoding["labels"])
    return total_loss(model, batch, tokenizer.pad_token_id, step) / learned  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_with_what_was_learned(method: str, run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """The model before is the run's after; the first loss is that of its model; one adapter is left, on its base."""
    run = run_of(method)
    expected = loss_of_first_step(run, tmp_path / "next")
    after = go_on(run, tmp_path / "next")
    assert after.before is not None and run.after is not None and after.after is not None
    assert after.before.completions == run.after.completions and after.before.examples == run.after.examples
    losses = [record["loss"] for line in after.folder.log.open() if "loss" in (record := json.loads(line))]
    assert losses[0] == pytest.approx(expected, rel=2e-3) and losses[-1] != losses[0]
    if method == "full":
        assert load_recipe(after.folder.recipe).model.path == str(run.folder.model.resolve())
        return
    noted = [json.loads((one.folder.adapter / "base.json").read_text()) for one in (run, after)]
    assert noted[0]["fingerprint"] == noted[1]["fingerprint"] and noted[0]["base"] == noted[1]["base"]
    assert not after.folder.base.exists()
    moved = tmp_path / "moved"
    shutil.copytree(after.folder.path, moved)  # it needs nothing of the run before it
    evaluation, _ = evaluate.run(moved)
    assert evaluation is not None and evaluation.completions == after.after.completions


def test_no_step_changes_nothing(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """A rate of nothing, in place of no step at all, leaves the weights as they were."""
    import torch
    from safetensors.torch import load_file

    run = run_of("lora")
    after = go_on(run, tmp_path / "next", "training.learning_rate=1e-30", "training.steps=1")
    first, second = (load_file(one.folder.adapter / "adapter_model.safetensors") for one in (run, after))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "method, other",
    [
        ("lora", ["method.rank=2"]),
        ("lora", ["method.alpha=8"]),
        ("lora", ["method.target_modules=[query_key_value]"]),
        ("lora", ["method.name=full"]),
        ("lora", ["method.name=ptuning_v2", "method.num_virtual_tokens=4"]),
        ("lora", ["model.merge_adapter=true"]),
        ("dora", ["method.use_dora=false"]),
        ("pissa", ["method.rank=4"]),
        ("freeze", ["method.layers=[0]"]),
        ("lora at 4 bits", ["method.rank=2", "model.bits=16"]),
    ],
)
def test_another_shape_is_merged_first(
    method: str, other: list[str], run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    run = run_of(method)
    after = go_on(run, tmp_path / "next", *other)
    base = after.folder.base
    assert load_recipe(after.folder.recipe).model.path == str(base.resolve())
    if "bits" not in method:  # of quantized numbers the merged model has none
        assert after.before is not None and run.after is not None
        assert after.before.completions == run.after.completions
    if after.folder.adapter.is_dir():
        assert json.loads((after.folder.adapter / "base.json").read_text())["fingerprint"] == fingerprint(base)
    assert resolve(after).base == str(base.resolve() if after.folder.adapter.is_dir() else after.folder.model)
    assert json.loads((base / "glmtune.json").read_text())["verification"]


@pytest.mark.parametrize(
    "settings, told",
    [
        (["method.name=lora"], "nothing but this prefix itself can learn on: method.name=ptuning_v2"),
        (["method.num_virtual_tokens=5"], "method.num_virtual_tokens=4"),
        (["model.merge_adapter=true"], "without model.merge_adapter"),
    ],
)
def test_prefixes_are_not_merged(settings: list[str], told: str, run_of: Callable[[str], Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot become part of them") as refused:
        go_on(run_of("ptuning_v2"), tmp_path / "next", *settings)
    assert told in str(refused.value) and not (tmp_path / "next").exists()


def test_it_is_a_recipe(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """The run's recipe with what differs: not its folder; the same from its own recipe.yaml, and by --resume."""
    run = run_of("lora")
    after = go_on(run, tmp_path / "next", "training.steps=6")
    recipe, first = load_recipe(after.folder.recipe), load_recipe(run.folder.recipe)
    assert recipe.model == first.model.model_copy(update={"adapter": str(after.folder.start.resolve())})
    assert fingerprint(after.folder.start) == fingerprint(run.folder.adapter)
    assert recipe.method == first.method and recipe.task == first.task and recipe.seed == first.seed
    assert (recipe.training.output_dir, recipe.training.steps) == (str(tmp_path / "next"), 6)
    copied = tmp_path / "next.yaml"
    shutil.copy(after.folder.recipe, copied)
    again = train.run(copied, [f"training.output_dir={tmp_path / 'again'}"], console=Console(file=io.StringIO()))
    weights = [one.folder.adapter / "adapter_model.safetensors" for one in (after, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    resumed = train.run(resume=again, overrides=["training.steps=8"], console=Console(file=io.StringIO()))
    assert resumed.report["before"] == after.report["before"]
    assert after.report["before"]["accuracy"] == run.report["after"]["accuracy"]


def test_what_was_worked_out_is_worked_out_anew(run_of: Callable[[str], Run]) -> None:
    """Another method, objective or task brings its own; a setting that is typed counts."""
    run = run_of("lora")
    kept = recipe_after(run, ["training.batch_size=2"])
    assert (kept.training.learning_rate, kept.training.steps, kept.generation.max_new_tokens) == (0.01, 4, 6)
    other = recipe_after(run, ["method.name=full", "task.digits=3"])
    assert (other.training.learning_rate, other.training.steps, other.generation.max_new_tokens) == (None, 4, None)
    assert other.method.model_dump() == {"name": "full"} and other.task.maximum == 5  # type: ignore[attr-defined]
    named = recipe_after(run, ["method.name=full", "training.learning_rate=0.1"])
    assert named.training.learning_rate == 0.1
    records = recipe_after(run, ["task.name=instructions", "task.file=x.jsonl"])
    assert records.training.steps is None and "operators" not in records.task.model_dump()
    projected = recipe_after(run_of("projection"), [])
    assert projected.method.prefix_projection is False  # type: ignore[attr-defined]
    doubled = recipe_after(run_of("pissa"), [])
    assert (doubled.method.rank, doubled.method.init) == (8, "default")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "settings, told",
    [
        (["training.output_dir={run}"], "glmtune train --resume"),
        (["model.adapter={run}"], "Leave one of the two out"),
        (["model.path=nano"], "trained on other weights"),
        (["model.merge_adapter=false", "method.rank=2"], "cannot learn on"),
    ],
)
def test_what_contradicts_the_run_is_told(
    settings: list[str], told: str, run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    run = run_of("lora")
    with pytest.raises(UserError, match=told):
        go_on(run, tmp_path / "next", *(setting.format(run=run.path) for setting in settings))
    assert not (tmp_path / "next").exists()


def test_what_is_no_finished_run_is_told(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no run that training could go on from"):
        go_on(tmp_path / "empty", tmp_path / "next")
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run_of("lora").folder.recipe, begun)
    with pytest.raises(UserError, match=f"glmtune train --resume {begun}"):
        go_on(begun, tmp_path / "next")
    damaged = tmp_path / "damaged"
    shutil.copytree(run_of("lora").path, damaged)
    weights = damaged / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors"):
        go_on(damaged, tmp_path / "next")
    with pytest.raises(UserError, match=r"model\.path=nano: .* holds a whole model"):
        go_on(run_of("full").path, tmp_path / "next", "model.path=nano")


def test_a_changed_adapter_is_told(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """A run that was begun with other weights than an adapter holds does not go on with it, but with its own copy."""
    origin = tmp_path / "origin"
    shutil.copytree(run_of("lora").path, origin)
    after = go_on(origin, tmp_path / "next", "training.steps=2")
    train.run(resume=origin, overrides=["training.steps=8"], console=Console(file=io.StringIO()))
    with pytest.raises(UserError, match="begun with another adapter"):
        train.run(resume=after, overrides=[f"model.adapter={origin}"], console=Console(file=io.StringIO()))
    assert resume(after.path, "training.steps=4").report["before"] == after.report["before"]


@pytest.mark.parametrize("method", ["lora", "ptuning_v2", "freeze", "merged"])
def test_its_folder_is_enough(method: str, run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """Moved, and without the run where it began, it answers, goes on and is gone on from; nothing is asked again."""
    merged = method == "merged"
    origin, settings = tmp_path / "origin", ["method.rank=2"] if merged else []
    shutil.copytree(run_of("lora" if merged else method).path, origin)
    kept = go_on(origin, tmp_path / "kept", *settings, "training.steps=6")
    first = go_on(origin, tmp_path / "first", *settings)
    shutil.rmtree(origin)
    moved = first.path.rename(tmp_path / "elsewhere")
    evaluation, _ = evaluate.run(moved)
    assert first.after is not None and evaluation is not None
    assert evaluation.completions == first.after.completions
    shown = io.StringIO()
    longer = train.run(resume=moved, overrides=["training.steps=6"], console=Console(file=shown, width=1000))
    assert "Before: as the model answered when the run began." in shown.getvalue()
    assert "other weights" not in shown.getvalue() and longer.report["before"] == kept.report["before"]
    assert longer.after is not None
    further = go_on(moved, tmp_path / "further", "training.steps=1")
    assert further.before is not None and further.before.completions == longer.after.completions


@pytest.mark.parametrize("settings, left", [([], "start"), (["method.rank=2"], "base")])
def test_a_start_that_was_killed_is_begun_again(
    settings: list[str], left: str, run_of: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before `recipe.yaml` is there, the same command goes on with what is made; with another adapter it does not."""
    run, place = run_of("lora"), tmp_path / "next"
    with monkeypatch.context() as patch:  # nobody tidies up after a kill
        patch.setattr("glmtune.plan.prepare", stopped)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            go_on(run, place, *settings)
    assert [inner.name for inner in place.iterdir() if inner.name[0] != "."] == [left]
    for method in ("rslora", "dora"):
        with pytest.raises(UserError, match="begun with another adapter"):
            go_on(run_of(method), place, *settings)
    assert (place / left).is_dir()
    with pytest.raises(UserError, match="is not empty"):
        train.run(overrides=[f"training.output_dir={place}"], console=Console(file=io.StringIO()))
    after = go_on(run, place, *settings)
    assert after.report["before"]["samples"] == run.report["after"]["samples"]


@pytest.mark.parametrize("settings", [[], ["method.rank=2"]])
def test_no_run_goes_on_from_another_than_it_was_begun_with(
    settings: list[str], run_of: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run goes on by the same command, and not by that of another run whose recipe is the same."""
    run, place, other = run_of("lora"), tmp_path / "next", tmp_path / "other"
    shutil.copytree(run.path, other)
    train.run(resume=other, overrides=["training.steps=8"], console=Console(file=io.StringIO()))
    with monkeypatch.context() as patch:
        patch.setattr("glmtune.training.run_trainer.RunTrainer.run", stopped)
        with pytest.raises(KeyboardInterrupt):
            go_on(run, place, *settings, "training.steps=4")
    with pytest.raises(UserError, match="begun with another adapter"):
        go_on(other, place, *settings, "training.steps=4")
    assert go_on(run, place, *settings, "training.steps=4").report["before"]["samples"]


@pytest.mark.parametrize("objective", ["sft", "grpo", "rejection"])
def test_other_examples_are_learned(objective: str, run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """A task that draws without end draws on after the steps of the run, and of that before it; held out stays."""
    run = run_of("lora")
    first = Plan(resolve(run), run.folder)
    assert recipe_after(run, []).data.first_draw == 4 * 4
    place = tmp_path / "next"
    place.mkdir()
    following = recipe_after(run, ["training.steps=5"])
    (place / "recipe.yaml").write_text(to_yaml(following))
    shutil.copytree(run.folder.adapter, place / "adapter")
    assert recipe_after(place, []).data.first_draw == 4 * 4 + 5 * 4
    assert recipe_after(place, ["seed=7"]).data.first_draw == 0
    assert recipe_after(place, ["data.first_draw=3"]).data.first_draw == 3
    plan = Plan(of_recipe(following), run.folder)
    assert [plan.dataset.examples[0], *first.held_out] == [  # type: ignore[attr-defined]
        DrawnExamples(plan.task, 17, following.seed)[16],
        *plan.held_out,
    ]
    other = Plan(of_recipe(recipe_after(run, [f"objective.name={objective}", "training.batch_size=8"])), run.folder)
    if objective == "grpo":
        assert other.dataset.examples[0] == plan.dataset.examples[0]  # type: ignore[attr-defined]
    if objective == "rejection":
        rounds = Rounds(other, other.recipe.objective)  # type: ignore[arg-type]
        assert rounds.examples(0)[0].prompt == DrawnExamples(plan.task, 17, following.seed + 1)[16].prompt


@pytest.mark.parametrize("settings, left", [(["training.batch_size=2"], "start"), (["method.rank=2"], "base")])
def test_what_is_kept_of_the_start_is_counted(
    settings: list[str], left: str, run_of: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`estimate` and `doctor` count on the disk what training goes on from; a full disk is told by the setting."""
    run, settings = run_of("lora"), [*settings, f"training.output_dir={tmp_path / 'next'}"]
    estimated = estimate.run(run, settings).estimate
    after = go_on(run, tmp_path / "next", *settings[:1])
    files = [file for file in (after.path / left).iterdir() if left == "start" or file.suffix == ".safetensors"]
    assert estimated.start == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)
    assert estimated.disk > estimated.start
    settings[-1] = f"training.output_dir={tmp_path / 'other'}"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=estimated.disk - 1))
    assert {check.name: check for check in doctor.run(str(run.path), settings)}["run disk"].status == "failure"
    if left == "base":
        with pytest.raises(UserError, match=r"training\.output_dir: .*other/base"):
            go_on(run, tmp_path / "other", *settings[:1])


@pytest.mark.parametrize("method", ["lora", "ptuning_v2", "freeze"])
def test_fresh_weights_are_not_left_behind(method: str, shared: list[str], tmp_path: Path) -> None:
    """An adapter on weights that nobody saves could not be used, nor gone on from."""
    settings = [*shared, f"method.name={method}", "model.random_init=true", f"training.output_dir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=r"model\.random_init: .* Use method\.name=full"):
        train.run(overrides=settings, console=Console(file=io.StringIO()))


def test_an_adapter_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.adapter=.*gone: there is no such folder"):
        train.run(overrides=[f"model.adapter={tmp_path / 'gone'}"], console=Console(file=io.StringIO()))


def test_fresh_weights_have_no_adapter(run_of: Callable[[str], Run]) -> None:
    run = run_of("lora")
    recipe = load_recipe(None, [f"model.adapter={run.path}", "model.random_init=true"])
    with pytest.raises(UserError, match=r"model\.random_init"):
        of_recipe(recipe).check()
    assert isinstance(of_recipe(load_recipe(None, [f"model.adapter={run.path}"])), ResolvedModel)
    assert of_recipe(load_recipe(None, [f"model.adapter={run.path}"])).base == load_recipe(run.folder.recipe).model.path


def test_in_python(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    after = glmtune.train(run_of("lora"), {"training": {"output_dir": str(tmp_path / "next"), "steps": 1}}, quiet=True)
    assert after.accuracy_before == run_of("lora").accuracy


def test_it_is_looked_at_before(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    """`estimate` and `doctor` tell of the training that is to come; without other settings, of the run itself."""
    run = run_of("lora").path
    assert doctor.plan_of(str(run), [])[0].model.run is not None
    assert doctor.plan_of(str(run), ["training.batch_size=2"])[0].model.run is not None
    found = {check.name: check for check in doctor.run(str(run), [f"training.output_dir={tmp_path / 'next'}"])}
    assert not [check for check in found.values() if check.status == "failure"]
    assert "learns on" in found["start"].finding
    found = {check.name: check for check in doctor.run(str(run), ["method.rank=2"])}
    assert "becomes part of the weights first" in found["start"].finding
    found = {check.name: check for check in doctor.run(str(run_of("ptuning_v2").path), ["method.name=lora"])}
    assert found["start"].status == "failure" and "method.name=ptuning_v2" in found["start"].finding
    with pytest.raises(UserError, match="nothing but this prefix itself can learn on"):
        estimate.run(run_of("ptuning_v2").path, ["method.name=lora"])
    own, next_one = estimate.run(run), estimate.run(run, ["method.name=full"])
    assert next_one.estimate.trainable.parameters > own.estimate.trainable.parameters


def test_what_a_new_run_takes_over_is_told() -> None:
    """Settings of the training that nobody typed and that are not the usual ones; steps say what epochs would."""
    has = ["training.steps=40", "training.epochs=9", "training.batch_size=8", "training.output_dir=new"]
    recipe = load_recipe(None, has)
    told = describe_inherited("runs/one", recipe, ["training.output_dir=new", "training.batch_size=8"])
    assert told == "The training is that of runs/one where nothing else is typed: training.steps=40."
    assert "training.epochs=9" in describe_inherited("run", load_recipe(None, has[1:]), [])
    assert describe_inherited("run", load_recipe(None), []).endswith("typed: as by default.")
