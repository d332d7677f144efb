from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from glmtune.config import DataSettings
from glmtune.examples import Example
from glmtune.runtime import UserError
from glmtune.tasks.texts import Texts, TextsSettings


def texts(file: Path, **settings: object) -> Texts:
    return Texts(TextsSettings(name="texts", file=str(file), held_out=0.3, **settings), DataSettings())  # type: ignore[arg-type]


def test_records_with_a_text(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(20)))
    task = texts(file)
    train, held_out = task.records("train"), task.records("held_out")
    assert train and held_out and len(train) + len(held_out) == 20
    lines = {str(example.source): example.text for example in (*train, *held_out)}
    assert lines[f"line 5 of {file}"] == "text 4"
    assert task.sample(random.Random(0)) in train
    file.write_text(file.read_text() + json.dumps({"text": "more"}) + "\n")
    moved = {example.text for example in texts(file).records("train")}
    assert {example.text for example in train} <= moved


def test_a_folder_of_documents(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text(f" 第{number}篇\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("# notes")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "picture.png").write_bytes(b"\x89")
    task = texts(tmp_path)
    found = {example.text for split in ("train", "held_out") for example in task.records(split)}  # type: ignore[arg-type]
    assert found == {"# notes", *(f"第{number}篇" for number in range(12))}


def test_other_names_and_faults(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"content": f"text {number}"}) + "\n" for number in range(20)))
    assert texts(file, field="content").records("train")
    with pytest.raises(UserError, match=r"corpus\.jsonl, line 1.*'text'"):
        texts(file).records("train")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"a\.txt.*cannot be read as utf-8"):
        texts(tmp_path / "a.txt").records("train")
    (tmp_path / "b.txt").write_text("alone")
    with pytest.raises(UserError, match=r"leaves no text for the (train|held_out) split \(1 in all\)"):
        texts(tmp_path / "b.txt").records("train")


def test_texts_ask_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"objective\.name=pretrain"):
        texts(tmp_path).score(Example("", "", text="x"), "x")
