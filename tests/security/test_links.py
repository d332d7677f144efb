"""Links, pipes and devices in folders that travel: refused before anything is read or written, by every verb."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmtune import cli
from glmtune.commands import doctor, ls
from glmtune.execution import Run
from glmtune.models.checkpoint import local_folder, shards_of
from glmtune.runtime import UserError

Refused = Callable[..., str]
RECORD = '{"prompt": "1+1=", "target": "2"}\n'


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run.folder.path, tmp_path / "run"))


@pytest.fixture
def model(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


@pytest.fixture
def records(tmp_path: Path) -> Path:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.jsonl").write_text(RECORD * 3)
    return tmp_path / "records"


def link(place: Path, target: Path | str) -> None:
    """Put a link in the place of what is there."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def diagnosed(target: Path, *told: str) -> None:
    """The doctor names what is wrong, and what to do."""
    failures = [one for one in doctor.run(str(target)) if one.status == "failure"]
    assert failures, target
    assert any(all(text in one.finding + one.remedy for text in told) and one.remedy for one in failures), failures


VERBS: dict[str, Callable[[Path, Path], list[object]]] = {
    "train": lambda run, out: ["train", "--resume", run],
    "evaluate": lambda run, out: ["evaluate", run, "--output", out],
    "chat": lambda run, out: ["chat", run],
    "predict": lambda run, out: ["predict", run, "--input", run.parent / "in.jsonl", "--output", out],
    "export": lambda run, out: ["export", run, "--output", out],
    "estimate": lambda run, out: ["estimate", run],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_a_run_with_a_link(run: Path, outside: Path, refused: Refused, verb: str) -> None:
    (run.parent / "in.jsonl").write_text(RECORD)
    link(run / "checkpoints", outside)
    message = refused(*VERBS[verb](run, run.parent / "out"))
    assert f"{run / 'checkpoints'}: is a link out of its folder, to {outside}" in message and "Name" in message
    assert not (run.parent / "out").exists()
    diagnosed(run, "checkpoints: is a link out of its folder", "put a copy")


ENTRIES = [
    "recipe.yaml",
    "log.jsonl",
    "report.json",
    "report.html",
    "loss.png",
    "adapter",
    "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json",
    "checkpoints/checkpoint-2",
    "checkpoints/checkpoint-2/optimizer.pt",
    "model",
    "notes",
    ".hidden",
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_entry_of_a_run_leads_out(run: Path, outside: Path, refused: Refused, entry: str) -> None:
    target = outside / "step-10" if entry in ("adapter", "model") or "." not in entry else outside / "thesis.txt"
    (run / entry).parent.mkdir(exist_ok=True)
    link(run / entry, target)
    for command in (["train", "--resume", run], ["evaluate", run]):
        assert f"{run / entry}: is a link out of its folder" in refused(*command)


@pytest.mark.parametrize(
    "target", ["../nothing", "/nothing/at/all", "checkpoints", "/dev/zero", "/proc/self/fd/0", "/"]
)
def test_links_to_nothing_and_everything(run: Path, refused: Refused, target: str) -> None:
    link(run / "checkpoints", target)
    told = refused("train", "--resume", run)
    assert f"{run / 'checkpoints'}: is a link " in told
    diagnosed(run, "checkpoints: is a link ")


@pytest.mark.parametrize("entry", ["log.jsonl", "report.json", "checkpoints/more"])
def test_a_pipe_is_not_waited_for(run: Path, refused: Refused, entry: str) -> None:
    (run / entry).unlink(missing_ok=True)
    os.mkfifo(run / entry)
    assert f"{run / entry}: is a pipe, and only files are read" in refused("train", "--resume", run)
    diagnosed(run, "is a pipe")


def test_recipes_that_are_pipes(run: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    """Named, beside what is named, and listed."""
    (run / "recipe.yaml").unlink()
    os.mkfifo(run / "recipe.yaml")
    assert "recipe.yaml: is a pipe" in refused("train", "--resume", run)
    recipes = run.parent / "recipes"
    recipes.mkdir()
    os.mkfifo(recipes / "pipe.yaml")
    (recipes / "device.yaml").symlink_to("/dev/zero")
    assert "pipe.yaml: is a pipe, not a file" in refused("train", recipes / "pipe.yaml")
    assert "device.yaml: is a device, not a file" in refused("train", recipes / "device.yaml")
    (recipes / "next.yaml").write_text(
        f"model: {{path: {recipes}/made/model}}\ntraining: {{output_dir: {recipes}/next}}\n"
    )
    doctor.run(str(recipes / "next.yaml"))  # asks every recipe beside it what it makes
    assert ls.run(str(run.parent / "none"), str(recipes))["recipes"] == {str(recipes / "next.yaml"): ""}
    diagnosed(recipes / "pipe.yaml", "is a pipe")


def test_the_target_itself_may_be_a_link(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a user links on purpose, and names; and links that stay within."""
    (run.parent / "named").symlink_to(run)
    (run / "latest").symlink_to("checkpoints")
    with pytest.raises(SystemExit) as done:
        cli.main(["evaluate", str(run.parent / "named"), "evaluation.num_examples=2"])
    assert done.value.code == 0, capsys.readouterr().err


def test_ls_tells_of_a_run_that_is_refused(run: Path, outside: Path) -> None:
    link(run / "report.json", outside / "thesis.txt")
    listed = ls.run(str(run.parent), str(run.parent))["runs"][str(run)]
    assert listed.startswith(f"refused: {run / 'report.json'}: is a link out of its folder") and "\n" not in listed


def test_a_link_that_comes_while_a_run_trains(run: Path, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old checkpoints are deleted: the folder is looked at before each is saved."""
    from transformers import Trainer

    from glmtune.commands import train

    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints" / "checkpoint-12")
    decoys = [outside.parent / f"outside-{number}" / "checkpoint-1" for number in range(2)]
    for decoy in decoys:
        decoy.mkdir(parents=True)
    learn = Trainer.train

    def swap(self: Any, *args: Any, **kwargs: Any) -> Any:
        shutil.move(run / "checkpoints", run.parent / "moved")
        (run / "checkpoints").symlink_to(decoys[0].parent)
        return learn(self, *args, **{**kwargs, "resume_from_checkpoint": None})

    monkeypatch.setattr(Trainer, "train", swap)
    with pytest.raises(UserError, match="checkpoints: is a link out of its folder"):
        train.run(resume=run)
    assert all(decoy.is_dir() and not list(decoy.iterdir()) for decoy in decoys)


MODEL_VERBS: dict[str, Callable[[Path, Path], list[object]]] = {
    "evaluate": lambda model, out: ["evaluate", model],
    "export": lambda model, out: ["export", model, "--output", out],
    "estimate": lambda model, out: ["estimate", f"model.path={model}"],
    "train": lambda model, out: ["train", f"model.path={model}", f"training.output_dir={out}"],
    "inspect": lambda model, out: ["inspect", out.parent / "in.jsonl", "--model", model],
}


@pytest.mark.parametrize("verb", MODEL_VERBS)
@pytest.mark.parametrize("entry", ["config.json", "model.safetensors", "more/notes.txt"])
def test_every_verb_refuses_a_model_with_a_link(
    model: Path, outside: Path, refused: Refused, verb: str, entry: str
) -> None:
    (model.parent / "in.jsonl").write_text(RECORD)
    (model / entry).parent.mkdir(exist_ok=True)
    link(model / entry, outside / "thesis.txt")
    assert f"{model / entry}: is a link out of its folder" in refused(*MODEL_VERBS[verb](model, model.parent / "out"))
    assert not (model.parent / "out").exists()
    diagnosed(model, f"{entry}: is a link out of its folder")


def test_an_adapter_by_itself(run: Path, outside: Path, refused: Refused) -> None:
    adapter = Path(shutil.copytree(run / "adapter", run.parent / "alone"))
    link(adapter / "tokenizer_config.json", outside / "thesis.txt")
    assert "tokenizer_config.json: is a link out of its folder" in refused("evaluate", adapter)
    diagnosed(adapter, "is a link out of its folder")


NAMES = [
    "../secret.safetensors",
    "/etc/passwd",
    "a\0b",
    "..",
    ".",
    "",
    "deep/model.safetensors",
    "~/x",
    "a\nb",
    3,
    None,
]
INDEXES = ["model.safetensors.index.json", "pytorch_model.bin.index.json"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
@pytest.mark.parametrize("index", INDEXES)
def test_an_index_names_files_beside_it_alone(model: Path, refused: Refused, index: str, name: Any) -> None:
    (model / index).write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    assert f"{index} is refused: it names {str(name)[:80]!r}" in refused("evaluate", model)


def test_the_doctor_names_the_index(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / INDEXES[0]).write_text(json.dumps({"weight_map": {"lm_head.weight": "../x.safetensors"}}))
    diagnosed(model, "'../x.safetensors'", "Take the index")
    (model / INDEXES[0]).write_text(json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}))
    assert shards_of(model / INDEXES[0]) == {"model-00001-of-00002.safetensors"}


def test_what_the_hub_gives_is_looked_at_too(
    model: Path, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links to the blobs of its cache are its own; others, and an index of files elsewhere, are not."""
    cache = tmp_path / "hub" / "models--org--name"
    (cache / "snapshots").mkdir(parents=True)
    snapshot, blobs = Path(shutil.move(model, cache / "snapshots" / "abc")), cache / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    assert local_folder("org/name") == local_folder(str(snapshot)) == snapshot
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../../x"}}')
    with pytest.raises(UserError, match=r"is refused: it names '\.\./\.\./\.\./x'"):
        local_folder("org/name")
    link(snapshot / "model.safetensors.index.json", outside / "thesis.txt")
    with pytest.raises(UserError, match="is a link out of its folder"):
        local_folder("org/name")


DATA_VERBS: dict[str, Callable[[Path], list[object]]] = {
    "inspect": lambda data: ["inspect", data],
    "held out": lambda data: ["inspect", data.parent / "in.jsonl", f"task.held_out_file={data}"],
    "train": lambda data: ["train", "task.name=instructions", f"task.file={data}", "training.steps=1"],
    "mixture": lambda data: ["train", f"data.mixture=[{{file: {data}, share: 0.5}}]", "training.steps=1"],
    "evaluate": lambda data: ["evaluate", "nano", "--data", data],
    "predict": lambda data: ["predict", "nano", "--input", data, "--output", data.parent / "out.jsonl"],
}


@pytest.mark.parametrize("verb", DATA_VERBS)
def test_every_verb_refuses_records_with_a_link(
    records: Path, outside: Path, refused: Refused, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(records.parent)
    (records.parent / "in.jsonl").write_text(RECORD)
    (records / "b.jsonl").symlink_to(outside / "thesis.txt")
    assert f"{records / 'b.jsonl'}: is a link out of its folder" in refused(*DATA_VERBS[verb](records))
    written = [path.name for path in records.parent.rglob("*") if path.is_file() and outside not in path.parents]
    assert sorted(written) == ["a.jsonl", "b.jsonl", "in.jsonl"]


@pytest.mark.parametrize("entry", ["b.jsonl", "deep", "notes.txt"])
def test_records_beside_a_link(records: Path, outside: Path, refused: Refused, entry: str) -> None:
    (records / entry).symlink_to(outside)
    assert f"{records / entry}: is a link out of its folder" in refused("inspect", records)


def test_records_that_are_pipes(records: Path, refused: Refused) -> None:
    os.mkfifo(records / "b.jsonl")
    assert "b.jsonl: is a pipe" in refused("inspect", records)
    assert "no such file" in refused("inspect", records / "b.jsonl")


def test_a_file_that_is_named_may_be_a_link(records: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (records.parent / "named.jsonl").symlink_to(records / "a.jsonl")
    (records / "again.jsonl").symlink_to("a.jsonl")
    (records / ".venv" / "bin").mkdir(parents=True)
    (records / ".venv" / "bin" / "python").symlink_to("/usr/bin/python3")  # what is hidden is not read
    for target in ("named.jsonl", "records"):
        with pytest.raises(SystemExit) as done:
            cli.main(["inspect", str(records.parent / target)])
        assert done.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize(("setting", "name"), [("task.exclude", "named"), ("data.template", "named.jinja")])
def test_what_a_setting_names_is_a_file(setting: str, name: str, tmp_path: Path, refused: Refused) -> None:
    """What never ends is not read."""
    os.mkfifo(tmp_path / name)
    assert f"{setting}={tmp_path / name}: is a pipe, not a file. Name a file." in refused(
        "train", f"{setting}={tmp_path / name}"
    )
    assert "task.exclude=/dev/zero: is a device, not a file." in refused("train", "task.exclude=/dev/zero")
