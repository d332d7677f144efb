from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from glmtune.runtime import RunFolder, UserError, machine, read_json_lines, seed_everything


def test_read_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": "你\\n好"}\n{"b": "\u2028"}', encoding="utf-8")
    assert list(read_json_lines(path)) == [(1, {"a": "你\n好"}), (2, {"b": "\u2028"})]
    assert list(read_json_lines(str(path))) == list(read_json_lines(path))
    path.write_text("")
    assert list(read_json_lines(path)) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("", "empty; every line must be one JSON object. Delete the line"),
        ("   ", "empty"),
        ("{", "not JSON: the line ends in mid-record"),
        ("{'a': 1}", "not JSON: Expecting"),
        ('{"a": 1} {"b": 2}', "not JSON: Extra data"),
        ("[1]", r"a list, not a JSON object"),
        ('"text"', r"a str, not a JSON object"),
        ("null", r"a NoneType, not a JSON object"),
        ('{"a": ' + "1" * 5000 + "}", "not JSON: Exceeds the limit"),
        ("[" * 200_000, "not JSON: "),
    ],
)
def test_faulty_lines_are_told_with_file_and_number(line: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n', encoding="utf-8")
    with pytest.raises(UserError, match=rf"data\.jsonl, line 2: {fault}"):
        list(read_json_lines(path))


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "gbk.jsonl").write_bytes('{"a": "你好"}\n'.encode("gbk"))
    with pytest.raises(UserError, match=r"gbk\.jsonl: not UTF-8 text.*iconv"):
        list(read_json_lines(tmp_path / "gbk.jsonl"))
    for missing in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(UserError, match="no such file"):
            list(read_json_lines(missing))


def test_run_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (RunFolder.create(None, "arithmetic-lora").path for _ in range(2))
    assert (first, second) == (Path("runs/arithmetic-lora-1"), Path("runs/arithmetic-lora-2"))
    first.rmdir()
    (tmp_path / "runs" / "arithmetic-lora-3").write_text("a file")
    taken = [RunFolder.create(None, name).path.name for name in ("arithmetic-lora", "arithmetic-lora", "other")]
    assert taken == ["arithmetic-lora-1", "arithmetic-lora-4", "other-1"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "a" / "b"):
        assert RunFolder.create(path, "unused").path.is_dir()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"training\.output_dir: .*run is not empty.*Nothing in it was touched") as told:
        RunFolder.create(run, "unused")
    assert "--resume" not in str(told.value)
    (run / "recipe.yaml").write_text("seed: 1")
    with pytest.raises(UserError, match=r"already holds a run.*glmtune train --resume"):
        RunFolder.create(run, "unused")
    assert sorted(file.name for file in run.iterdir()) == ["notes.txt", "recipe.yaml"]
    with pytest.raises(UserError, match="is not empty"):
        RunFolder.create(run / "notes.txt", "unused")
    with pytest.raises(UserError, match="cannot be made"):
        RunFolder.create(run / "notes.txt" / "below", "unused")


def test_parts_of_a_run(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    parts = (run.recipe, run.log, run.adapter, run.model, run.checkpoints, run.report)
    assert [part.name for part in parts] == [
        "recipe.yaml",
        "log.jsonl",
        "adapter",
        "model",
        "checkpoints",
        "report.json",
    ]
    assert {part.parent for part in parts} == {tmp_path}
    assert not RunFolder.is_run(tmp_path) and not RunFolder.is_run(tmp_path / "nowhere")
    run.recipe.write_text("")
    assert RunFolder.is_run(tmp_path)


def test_seeds() -> None:
    def numbers() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(5)
    first = numbers()
    assert numbers() != first
    seed_everything(5)
    assert numbers() == first


def test_machine() -> None:
    facts = machine()
    assert facts["processor"] and facts["cores"] >= 1 and facts["memory_gib"] > 0
    assert set(facts["versions"]) == {"glmtune", "torch", "transformers", "peft", "accelerate"}
    json.dumps(facts)
