"""`train`: a recipe in, a run folder out; a fault leaves nothing behind, a stop can be undone."""

import io
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors import SafetensorError

from glmtune import cli
from glmtune.commands import evaluate, export, train
from glmtune.config import load_recipe, read_log, to_yaml
from glmtune.data.encoder import Encoder
from glmtune.data.mixture import training_set
from glmtune.evaluation.decision import decide
from glmtune.evaluation.held_out import explain_during
from glmtune.examples import split_of
from glmtune.execution import Run, asking
from glmtune.methods import Method
from glmtune.models import loading
from glmtune.plan import Plan
from glmtune.records.leaks import problem_of
from glmtune.resolution import ResolvedModel
from glmtune.runtime import RunFolder, UserError
from glmtune.tasks.instructions import Instructions
from glmtune.training import trainer
from glmtune.training.placement import Place

Trains = Callable[..., Run]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_run_folder(tiny_run: Run) -> None:
    folder = tiny_run.folder
    plots = {"loss.png", "accuracy.png", "breakdown.png"}
    assert (
        names(folder.path)
        == {"recipe.yaml", "log.jsonl", "before.json", "adapter", "checkpoints", "report.json", "report.html"} | plots
    )
    assert all((folder.path / name).read_bytes().startswith(b"\x89PNG") for name in plots)
    assert {"adapter_config.json", "adapter_model.safetensors", "base.json", "tokenizer_config.json"} <= names(
        folder.adapter
    )
    assert all((path / "trainer_state.json").is_file() for path in folder.checkpoints.glob("checkpoint-*"))
    assert {"step", "seconds"} <= json.loads(folder.log.read_text().splitlines()[0]).keys()


def test_the_recipe_is_whole(tiny_run: Run, tiny_checkpoint: Path) -> None:
    recipe = load_recipe(tiny_run.folder.recipe)
    assert (recipe.format, recipe.model.path, recipe.training.steps) == (2, str(tiny_checkpoint), 12)
    assert recipe.training.learning_rate == 0.01
    assert to_yaml(recipe) == tiny_run.folder.recipe.read_text()


def test_the_course_is_of_one_set(tiny_settings: list[str], tmp_path: Path, read_page: Any) -> None:
    """The curve begins where its examples stood, and it is told that these are others than those of the report."""
    told = io.StringIO()
    settings = ["evaluation.num_examples=9", "training.eval_steps=2", f"training.output_dir={tmp_path / 'run'}"]
    done = train.run(overrides=[*tiny_settings, *settings], console=Console(file=told, width=200))
    course = [record for record in read_log(done.folder) if "accuracy" in record]
    assert [(record["step"], record["n"]) for record in course] == [(0, 2), (2, 2), (4, 2)]
    asked = done.report["asked"]
    assert (asked["before"], asked["during"]) == (done.report["after"]["n"], 2) == (9, 2)
    said = explain_during(**asked)
    page = read_page((done.path / "report.html").read_text(encoding="utf-8"))
    assert said in told.getvalue() and said in page.text


def test_the_report(tiny_run: Run) -> None:
    report = json.loads(tiny_run.folder.report.read_text())
    assert report == tiny_run.report
    assert report["format"] == 2 and report["training_seconds"] > 0
    assert {"processor", "cores", "versions", "date"} <= report["machine"].keys()
    for moment, evaluation in (("before", tiny_run.before), ("after", tiny_run.after)):
        right = sum(score.correct for score in evaluation.scores)
        assert (report[moment]["n"], report[moment]["accuracy"]) == (6, right / 6)
        assert [sample["completion"] for sample in report[moment]["samples"]] == evaluation.completions
    assert tiny_run.before.examples == tiny_run.after.examples


def test_runs_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_settings: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        done = train.run(overrides=[*tiny_settings, "training.steps=1"])
        assert str(done.folder.path) == f"runs/arithmetic-lora-{number}"


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.path=/no/such/model"], r"model\.path: no such model directory: /no/such/model"),
        (["generation.max_new_tokens=500"], r"Held-out problem 1 has \d tokens.*max_new_tokens=500.*128"),
        (["data.max_length=8"], r"An example has \d+ tokens.*data\.max_length"),
        (["task={name: instructions, file: no.jsonl}"], r"no\.jsonl: no such file"),
        (["task.nme=arithmetic"], r"task\.nme: unknown setting.*'name'"),
        (["method.name=lorra"], r"method\.name: unknown name 'lorra'.*'lora'"),
    ],
)
def test_a_fault_is_found_before_weights_are_read(
    train_tiny: Trains, tmp_path: Path, settings: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train_tiny(tmp_path / "runs/new", *settings)
    assert not (tmp_path / "runs/new").exists()


@pytest.mark.usefixtures("no_weights")
def test_every_record_is_checked(train_tiny: Trains, tmp_path: Path, write_records: Any) -> None:
    """Also the last of more than are checked where a task draws without end."""
    short = [{"prompt": f"{i}", "target": "1"} for i in range(1100)]
    file = write_records(*short, {"prompt": "the long one", "target": "1" * 200})
    (judged := tmp_path / "judged.jsonl").write_text('{"prompt": "q", "target": "1"}')
    with pytest.raises(
        UserError, match=r"1 of 1,101 records are too long:\n  line 1101 of .*\.jsonl has \d+ tokens.*'the long"
    ):
        train_tiny(tmp_path / "new", f"task={{name: instructions, file: {file}, held_out_file: {judged}}}")


@pytest.mark.parametrize("existed", [True, False])
def test_a_fault_in_the_method_leaves_nothing_behind(train_tiny: Trains, tmp_path: Path, existed: bool) -> None:
    folder = tmp_path / "run"
    if existed:
        folder.mkdir()
    with pytest.raises(UserError, match=r"method\.target_modules"):
        train_tiny(folder, "method.target_modules=[nothing]")
    assert folder.exists() == existed and (not existed or not names(folder))


def test_ctrl_c_before_training_leaves_nothing_behind(
    train_tiny: Trains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(asking, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt) as interruption:
        train_tiny(tmp_path / "run")
    assert not str(interruption.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_not_touched(train_tiny: Trains, tmp_path: Path, tiny_run: Run) -> None:
    folder = Path(shutil.copytree(tiny_run.folder.path, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UserError, match=r"already holds a run.*--resume.*Nothing in it was touched"):
        train_tiny(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError(28, "No space left on device")])
def test_a_full_disk_at_the_end_costs_nothing(
    train_tiny: Trains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: Run, error: Exception
) -> None:
    def fail(*args: Any) -> None:
        raise error

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Method, "save", fail)
        with pytest.raises(UserError, match="adapter: cannot be written: No space left on device") as told:
            train_tiny(folder, "training.steps=12")
    assert "MB free" in str(told.value)
    assert names(folder) == {"recipe.yaml", "log.jsonl", "before.json", "checkpoints"}
    done = train.run(resume=str(folder))
    assert done.after.completions == tiny_run.after.completions
    assert names(folder) == names(tiny_run.folder.path)


def wait_for(found: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def train_with_errors_in(file: Path, settings: list[str]) -> None:
    """Be the process of a command line."""
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    cli.main(["train", *settings])


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [(signal.SIGINT, 130, "Ending after this step"), (signal.SIGTERM, 75, "saving within 30 seconds")],
)
def test_a_signal_and_resume(tmp_path: Path, tiny_settings: list[str], sent: int, code: int, said: str) -> None:
    """A real process and a real signal; it is a fork, which has the libraries already."""
    folder, log, told = tmp_path / "run", tmp_path / "run/log.jsonl", tmp_path / "errors.txt"
    settings = [*tiny_settings, f"training.output_dir={folder}", "training.steps=100", "training.eval_steps=100"]
    process = multiprocessing.get_context("fork").Process(target=train_with_errors_in, args=(told, settings))
    process.start()
    try:
        wait_for(lambda: not process.is_alive() or (log.is_file() and '"loss"' in log.read_text()))
        assert process.pid is not None
        os.kill(process.pid, sent)
        process.join(timeout=60)
    finally:
        process.kill()
    errors = told.read_text()
    assert process.exitcode == code, errors
    assert said in errors and "Traceback" not in errors
    assert f"Interrupted. Go on with: glmtune train --resume {folder}" in errors
    [checkpoint] = folder.joinpath("checkpoints").glob("checkpoint-*")
    assert int(checkpoint.name.removeprefix("checkpoint-")) < 100
    done = train.run(resume=str(folder))
    assert done.folder.report.is_file() and done.folder.adapter.is_dir()
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, 101))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"steps": 7}, 7), ({"epochs": 3}, 8), ({"epochs": 0.1}, 1), ({"epochs": 3, "gradient_accumulation_steps": 2}, 4)],
)
def test_steps_from_epochs(
    write_records: Any, settings: dict[str, Any], expected: int, tmp_path: Path, tiny: tuple[Any, Any]
) -> None:
    """Passes over what is learned: what is too long is no part of them, what is mixed in comes on top."""
    file = write_records(
        *({"prompt": f"{i}", "target": "1"} for i in range(10)), {"prompt": "1" * 200, "target": "too long"}
    )
    for name in ("judged", "general"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"prompt": "{name}", "target": "1"}}')
    overrides = [
        f"task={{name: instructions, file: {file}, held_out_file: {tmp_path / 'judged.jsonl'}}}",
        *("data.too_long=drop", "training.batch_size=4"),
        *(f"training.{name}={value}" for name, value in settings.items()),
    ]
    encoder = Encoder(tiny[1], 100)
    recipe = load_recipe(None, overrides)
    assert training_set(recipe, Instructions(recipe.task, recipe.data), encoder)[1] == expected  # type: ignore[arg-type]
    if "epochs" in settings:
        recipe = load_recipe(None, [*overrides, f"data.mixture=[{{file: {tmp_path / 'general.jsonl'}, share: 0.5}}]"])
        dataset, steps = training_set(recipe, Instructions(recipe.task, recipe.data), encoder)  # type: ignore[arg-type]
        assert steps in (2 * expected - 1, 2 * expected) and len(dataset) >= steps * 4


@pytest.mark.parametrize(("memory", "warned"), [(2**40, False), (2**20, True)])
def test_memory_is_announced_before_anything_is_loaded(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int, warned: bool
) -> None:
    place = Place("cpu", "a small machine", memory)
    loaded = loading.load_model
    monkeypatch.setattr("glmtune.training.placement.at_hand", lambda with_gpu: place)
    told = io.StringIO()

    def load(*args: Any) -> Any:
        assert "Expected peak of memory: " in told.getvalue()
        return loaded(*args)

    monkeypatch.setattr(loading, "load_model", load)
    train.run(
        overrides=[*tiny_settings, f"training.output_dir={tmp_path / 'run'}"], console=Console(file=told, width=200)
    )
    assert ("too much for a small machine with its 1.0 MiB. See `glmtune estimate`" in told.getvalue()) == warned
    assert ("--target-length" in told.getvalue()) == warned


def test_a_method_that_tells_no_sizes_trains_all_the_same(train_tiny: Trains, tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(
        "from glmtune.methods import Method\n\n\nclass Mine(Method):\n    saves_adapter = False\n\n"
        "    def apply(self, model):\n        return model.requires_grad_(True)\n"
    )
    done = train_tiny(tmp_path / "run", f"method={{name: {own}}}")
    assert done.folder.model.is_dir()


@pytest.mark.parametrize(
    "method",
    [
        "{name: lora, rank: 4, dropout: 0.3}",
        "{name: ptuning_v2, num_virtual_tokens: 4}",
        "{name: freeze, num_layers: 1}",
    ],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_report_is_what_evaluate_says(train_tiny: Trains, tmp_path: Path, method: str, checkpointing: bool) -> None:
    """Nothing drops out of the model that is judged, and nothing is recomputed in it."""
    settings = [f"training.gradient_checkpointing={checkpointing}", "training.steps=12", "training.learning_rate=0.05"]
    done = train_tiny(tmp_path / "run", f"method={method}", *settings)
    evaluation, report = evaluate.run(str(done.folder.path))
    assert evaluation.completions == done.after.completions
    assert report["verdicts"] == done.report["after"]["verdicts"]


@pytest.mark.parametrize("settings", [[], ["data.packing=true"], ["mixture"]])
def test_a_loss_that_is_no_number_names_file_and_line(
    settings: list[str],
    train_tiny: Trains,
    write_records: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Of the file, not of the split: what is held out or left out counts as well."""
    file = write_records(*({"prompt": f"{i}+1=", "target": str(i + 1)} for i in range(40)))
    general = write_records({"prompt": "q", "target": "a"}, "", {"prompt": "r", "target": "b"}, name="general.jsonl")
    if settings == ["mixture"]:
        settings = [f"data.mixture=[{{file: {general}, share: 0.5}}]", "data.on_error=skip"]
    monkeypatch.setattr(trainer, "target_loss", lambda *args: args[0].sum() * float("nan"))
    monkeypatch.setattr(trainer, "check_packing", lambda *args: None)
    task = f"task={{name: instructions, file: {file}, held_out: 0.3}}"
    with pytest.raises(UserError, match=r"The loss of step 1 is nan \(lines? .* of .*\)") as error:
        train_tiny(tmp_path / "run", task, "training.steps=2", "training.batch_size=4", *settings)
    named = re.findall(r"lines? ([\d, ]+) of (\S+jsonl)", str(error.value))
    lines = {Path(name).name: [int(number) for number in numbers.split(", ")] for numbers, name in named}
    held_out = [i + 1 for i in range(40) if split_of(problem_of(f"{i}+1="), 0.3) == "held_out"]
    assert held_out and not set(lines.get("records.jsonl", [])) & set(held_out)
    assert lines.get("general.jsonl", [1]) in ([1], [3], [1, 3])


def test_a_run_that_went_astray_is_reported_as_far_as_it_was_good(
    train_tiny: Trains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, count = trainer.target_loss, iter(range(99))
    monkeypatch.setattr(
        trainer, "target_loss", lambda *args: plain(*args) * (float("nan") if next(count) == 3 else 1.0)
    )
    with pytest.raises(
        UserError, match=r"loss of step 4 is nan \(examples .*The best weights before that are in .*run"
    ):
        train_tiny(tmp_path / "run", "training.eval_steps=2")
    folder = RunFolder(tmp_path / "run")
    evaluation, _ = evaluate.run(str(folder.path))
    kept = json.loads(folder.report.read_text())["after"]["samples"]
    assert evaluation.completions == [sample["completion"] for sample in kept]


@pytest.mark.parametrize(
    "settings", [["method={name: lora, init: pissa}", "model.bits=4"], ["model.bits=4", "model.random_init=true"]]
)
def test_storage_that_does_not_go_is_told_before_anything_is_loaded(
    train_tiny: Trains, tmp_path: Path, no_weights: None, settings: list[str]
) -> None:
    with pytest.raises(UserError, match=r"16 bits|model\.bits=16"):
        train_tiny(tmp_path / "run", *settings)
    assert not (tmp_path / "run").exists()


def test_records_with_all_that_data_offers(
    tiny_settings: list[str], write_records: Any, tmp_path: Path, tiny: tuple[Any, Any]
) -> None:
    """What is too long is left out on either side, other records are mixed in, and all of it is said."""
    records = [{"prompt": f"{i}+1=", "target": str(i + 1)} for i in range(60)]
    long = [{"prompt": "1+" * 99 + f"{i}=", "target": "x"} for i in range(60)]
    file = write_records(*records, *long)
    general = write_records(*({"question": f"{i}-1=", "answer": str(i - 1)} for i in range(9)), name="general.jsonl")
    told = io.StringIO()
    with pytest.warns(UserWarning, match="held-out examples, .* are too long to be asked"):
        done = train.run(
            overrides=[
                *(setting for setting in tiny_settings if not setting.startswith("task.")),
                f"task={{name: instructions, file: {file}, held_out: 0.3}}",
                *("data.too_long=drop", "data.train_on_bos=true", "generation.max_new_tokens=6"),
                f"data.mixture=[{{file: {general}, share: 0.25}}]",
                f"training.output_dir={tmp_path / 'run'}",
            ],
            console=Console(file=told, width=300),
        )
    text = told.getvalue()
    assert "records, longer than 128 tokens: " in text
    assert "held-out examples are asked: half of them right would mean" in text
    assert all("+1=" in example.prompt and len(example.prompt) < 10 for example in done.after.examples)
    assert load_recipe(done.folder.recipe).data.mixture[0].file == str(general)
    # Whoever judges it later asks the same.
    with pytest.warns(UserWarning, match="are too long to be asked"):
        again, _ = evaluate.run(str(done.folder.path))
    assert again.examples == done.after.examples and again.completions == done.after.completions
    with pytest.warns(UserWarning, match="are too long to be asked"):
        place = export.run(str(done.folder.path), output=str(tmp_path / "merged"), console=Console(file=io.StringIO()))
    card = (place / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in card and "general.jsonl" in card and "25% are records of other files" in card


def test_a_template_by_which_nothing_is_learned_is_told(train_tiny: Trains, tmp_path: Path, no_weights: None) -> None:
    (tmp_path / "bad.jinja").write_text("{% for turn in messages %}{{ turn.content }}{% endfor %}")
    with pytest.raises(UserError, match=r"template leaves out \[gMASK\]<sop>"):
        train_tiny(tmp_path / "run", f"data.template={tmp_path / 'bad.jinja'}")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, "learned is what stands in \u27e6 \u27e7:"),
        ({"force_terminal": True, "color_system": None}, "learned is what stands in \u27e6 \u27e7:"),
        ({"force_terminal": True, "color_system": "standard", "no_color": True}, "in \u27e6 \u27e7:"),
        ({"force_terminal": True, "color_system": "standard", "no_color": False}, "learned is what is coloured:"),
    ],
)
def test_what_the_loss_sees_is_shown(
    options: dict[str, Any], shown: str, tmp_path: Path, tiny_checkpoint: Path, write_records: Any
) -> None:
    """The first example, with its learned tokens in colour or in brackets, and how long it is."""
    file = write_records(*({"prompt": f"{n}+1=", "target": f"[{n + 1}]"} for n in range(60)))
    settings = ["task.name=instructions", f"task.file={file}", "task.held_out=0.3", f"model.path={tiny_checkpoint}"]
    model = ResolvedModel(load_recipe(None, settings))
    output = io.StringIO()
    console = Console(file=output, width=200, **options)
    train.show_example(Plan(model, RunFolder(tmp_path / "run")), console)
    text = output.getvalue()
    assert re.search(r"What the loss sees of line \d+ of .*: \d+ tokens, \d+ of them learned; ", text) and shown in text
    learned = re.search("\u27e6(.*)\u27e7", text.partition("\n")[2])
    assert (learned is None) == ("coloured" in shown)
    assert learned is None or re.fullmatch(r"\[\d+\]<eop>", learned[1])


@pytest.mark.parametrize(
    ("records", "offered"),
    [
        (None, "glmtune train task.name=instructions task.file=YOURS.jsonl"),
        ([], "predict {} --input prompts.jsonl --output answers.csv"),
    ],
)
def test_what_comes_next_is_not_what_was_just_done(
    tiny_run: Run, records: list[Any] | None, offered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_run.task, "records", lambda split: records)
    output = io.StringIO()
    train.show(tiny_run, Console(file=output, width=200))
    following = output.getvalue().partition("Next:\n")[2].splitlines()
    assert len(following) == 3 and following[-1].endswith(offered.format(tiny_run.path))


@pytest.mark.parametrize(
    ("objective", "offered"),
    [
        ("grpo", ["evaluate runs/a", "train --resume runs/a training.steps=40", "export runs/a"]),
        ("rejection", ["evaluate runs/a", "train --resume runs/a training.steps=40", "export runs/a"]),
        ("dpo", ["chat runs/a", "predict runs/a --input prompts.jsonl --output answers.csv", "export runs/a"]),
        ("dpo objective.pairs=x.jsonl", ["evaluate runs/a", "pairs runs/a --output more_pairs.jsonl", "export runs/a"]),
    ],
)
def test_what_comes_next_depends_on_the_objective(objective: str, offered: list[str]) -> None:
    recipe = load_recipe(None, f"objective.name={objective}".split())
    found = ResolvedModel(recipe).objective.following("runs/a", 20, True)
    assert found == offered
    for command in found:
        cli.parse(shlex.split(command))


def test_the_console_says_whether_to_keep_the_model(tiny_run: Run) -> None:
    output = io.StringIO()
    train.show(tiny_run, Console(file=output, width=200))
    line = next(line for line in output.getvalue().splitlines() if "of the held-out examples rightly" in line)
    _, words, rest = decide(tiny_run.report)
    assert line == f"{words}: {rest}" and line.endswith("also with --resume.")


def test_a_run_that_has_ended_is_asked_general_questions_later(
    train_tiny: Any, tmp_path: Path, write_records: Any
) -> None:
    run = train_tiny(tmp_path / "run")
    assert "forgetting" not in run.report
    questions = write_records({"prompt": "Who?", "target": "we"}, name="general.jsonl")
    settings = ["evaluation.forgetting=true", f"evaluation.general_file={questions}"]
    again = train.run(None, settings, resume=run, console=Console(file=io.StringIO()))
    assert again.report["forgetting"]["before"]["n"] == 1
    assert again.report["after"]["accuracy"] == run.report["after"]["accuracy"]
