"""Records in object storage: read as copies, written in parts from which any machine goes on. Here the storage is a
folder, by its address."""

import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.commands import evaluate, predict
from glmtune.execution import Run
from glmtune.inference.conversation import Conversation
from glmtune.records import remote
from glmtune.records.remote import fetched, is_remote
from glmtune.runtime import UserError

pytest.importorskip("pyarrow")

PROMPTS = ["1+2=", "3", "2+2=", "5+1=", "4"]


@pytest.fixture
def run(tiny_run: Run) -> str:
    return str(tiny_run.folder.path)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    folder = tmp_path / "storage"
    folder.mkdir()
    return folder


def test_what_is_in_object_storage() -> None:
    assert is_remote("s3://bucket/a.jsonl") and is_remote("file:///a") and is_remote(Path("x")) is False
    assert not any(map(is_remote, ("a.jsonl", "/a", "C:/a", "OWNER/NAME", "OWNER/NAME@config:split")))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_answers_are_those_of_files_here(run: str, write_records: Any, storage: Path, suffix: str) -> None:
    file = write_records(*({"prompt": prompt} for prompt in PROMPTS))
    here, there = storage.parent / f"here{suffix}", storage / f"there{suffix}"
    predict.run(run, str(file), str(here))
    predict.run(run, file.as_uri(), there.as_uri())
    assert there.read_bytes() == here.read_bytes()
    assert [path.name for path in storage.iterdir()] == [there.name]
    with pytest.raises(UserError, match=f"--output {there.as_uri()}: exists already"):
        predict.run(run, file.as_uri(), there.as_uri())
    with pytest.raises(UserError, match="is whole already"):
        predict.run(run, file.as_uri(), there.as_uri(), resume=True)
    predict.run(run, file.as_uri(), there.as_uri(), overwrite=True)
    assert there.read_bytes() == here.read_bytes()


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_another_machine_goes_on(
    run: str, write_records: Any, storage: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored is not answered again."""
    monkeypatch.setattr("glmtune.prediction.BATCHES_PER_WINDOW", 1)
    monkeypatch.setattr(remote, "PART_SECONDS", 0.0)
    file, there = write_records(*({"prompt": prompt} for prompt in PROMPTS)), storage / f"there{suffix}"
    whole = storage.parent / f"whole{suffix}"
    settings = ["generation.batch_size=2"]
    predict.run(run, str(file), str(whole), settings)
    answer, windows = Conversation.answer, []

    def stopped(conversation: Any, questions: Any) -> Any:
        windows.append(len(questions))
        if len(windows) == 2:
            raise RuntimeError("the machine is gone")
        yield from answer(conversation, questions)

    with monkeypatch.context() as patch:
        patch.setattr(Conversation, "answer", stopped)
        with pytest.raises(RuntimeError):
            predict.run(run, str(file), there.as_uri(), settings)
    parts = sorted((storage / f"{there.name}.parts").iterdir())
    assert [json.loads(line)["prompt"] for part in parts for line in part.read_text().splitlines()] == PROMPTS[:2]
    with pytest.raises(UserError, match="was begun already"):
        predict.run(run, str(file), there.as_uri(), settings)
    windows.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Conversation, "answer", lambda self, asked: windows.append(len(asked)) or answer(self, asked))
        predict.run(run, str(file), there.as_uri(), settings, resume=True)
    assert windows == [2, 1]
    assert there.read_bytes() == whole.read_bytes()
    assert [path.name for path in storage.iterdir()] == [there.name]


def test_a_folder_is_fetched_whole(storage: Path) -> None:
    (storage / "deep").mkdir()
    for name in ("a.jsonl", "deep/b.jsonl"):
        (storage / name).write_text('{"prompt": "1"}\n')
    with fetched(storage.as_uri()) as folder:
        assert sorted(path.name for path in Path(folder).rglob("*.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert not Path(folder).exists()


def test_evaluate_reads_it(run: str, write_records: Any) -> None:
    file = write_records({"prompt": "1+2=", "target": "3"})
    _, here = evaluate.run(run, str(file))
    _, there = evaluate.run(run, file.as_uri())
    assert {**there, "data": str(file)} == here and there["data"] == file.as_uri()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///nowhere/at/all.jsonl", "file:///nowhere/at/all.jsonl: no such file"),
        ("ftp://host/a.jsonl", r"ftp://host/a\.jsonl: no such storage: .*Known: s3, gs"),
    ],
)
def test_nothing_there(run: str, tmp_path: Path, uri: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict.run(run, uri, str(tmp_path / "out.jsonl"))
    with pytest.raises(UserError, match="reports are written to this machine"):
        evaluate.run(run, output="s3://bucket/report.json")
