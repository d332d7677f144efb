"""Folders as they are downloaded and saved: which split is learned, which is held out, and what is no record."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from glmtune.config import DataSettings, findable, parts_of
from glmtune.records import read_all
from glmtune.records.files import assign_splits, files_of, splits_in
from glmtune.runtime import UserError
from glmtune.tasks.instructions import Instructions, InstructionsSettings


def write(folder: Path, *names: str) -> str:
    """Files of one record each, whose prompt is the name of the file."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"prompt": name, "target": "a"}) + "\n")
    return str(folder)


def names_in(source: str) -> dict[str, list[str]]:
    folder = Path(parts_of(source)[0])
    return {
        split: [file.relative_to(folder).as_posix() for file in files] for split, files in splits_in(source).items()
    }


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["a.jsonl", "b/c.jsonl"], {}),
        (["train.jsonl", "test.jsonl"], {"train": ["train.jsonl"], "test": ["test.jsonl"]}),
        (["dev.jsonl", "train.jsonl"], {"train": ["train.jsonl"], "validation": ["dev.jsonl"]}),
        (
            ["data/test-00000-of-00001.jsonl", "data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"],
            {
                "train": ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"],
                "test": ["data/test-00000-of-00001.jsonl"],
            },
        ),
        (["my_train.jsonl", "my-eval.jsonl"], {"train": ["my_train.jsonl"], "test": ["my-eval.jsonl"]}),
        (["train/a.jsonl", "valid/a.jsonl"], {"train": ["train/a.jsonl"], "validation": ["valid/a.jsonl"]}),
        (["test/train.jsonl"], {"train": ["test/train.jsonl"]}),  # the name of the file says more than its folder's
        (["records.jsonl", "test.jsonl"], {"train": ["records.jsonl"], "test": ["test.jsonl"]}),
        (["trains.jsonl", "latest.jsonl", "contest.jsonl"], {}),  # words within words
        (
            ["data/train-00000-of-00001.jsonl", "data/extra_hard-00000-of-00001.jsonl"],
            {"train": ["data/train-00000-of-00001.jsonl"], "extra_hard": ["data/extra_hard-00000-of-00001.jsonl"]},
        ),
    ],
)
def test_splits_are_told_by_names(names: list[str], splits: dict[str, list[str]], tmp_path: Path) -> None:
    assert names_in(write(tmp_path, *names)) == splits


def test_metadata_are_no_records(tmp_path: Path) -> None:
    folder = write(tmp_path, "train.jsonl", "test.jsonl", ".cache/x.json", "train.jsonl.skipped.jsonl", "LICENSE.txt")
    for name in ("dataset_infos.json", "dataset_info.json", "state.json", "README.md", ".gitattributes", "LICENSE"):
        (tmp_path / name).write_text("{")
    (tmp_path / "cache-1234.arrow").write_bytes(b"")
    assert [example.prompt for example in read_all(f"{folder}:train")] == ["train.jsonl"]
    assert names_in(folder) == {"train": ["train.jsonl"], "test": ["test.jsonl"]}


def test_what_is_learned_and_what_is_held_out_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path, "train-1.jsonl", "train-2.jsonl", "validation.jsonl", "test.jsonl")
    said = f"{folder}: train (2 files) is learned, validation (1 file) is held out, test (1 file) not read."
    with pytest.warns(UserWarning) as told:
        assert assign_splits(folder, None) == (f"{folder}:train", f"{folder}:validation")
        task = Instructions(InstructionsSettings(name="instructions", file=folder), DataSettings())
        assert [example.prompt for example in task.records("train")] == ["train-1.jsonl", "train-2.jsonl"]
        assert [example.prompt for example in task.records("held_out")] == ["validation.jsonl"]
    assert {str(warning.message) for warning in told} == {said}
    with pytest.warns(UserWarning, match=r"train \(2 files\) is learned, mine\.jsonl is held out\.$"):
        assert assign_splits(folder, "mine.jsonl") == (f"{folder}:train", "mine.jsonl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert assign_splits(f"{folder}:test", None) == (f"{folder}:test", None)
        assert assign_splits(f"{folder}/test.jsonl", None) == (f"{folder}/test.jsonl", None)
        assert files_of(f"{folder}:test") == [tmp_path / "test.jsonl"]
    with pytest.warns(UserWarning, match=r"train \(2 files\) is read, and not validation .*:validation$"):
        assert len(read_all(folder)) == 2


def test_a_split_that_is_not_there_is_asked_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path, "test-00000-of-00001.jsonl")
    with pytest.raises(UserError, match=rf"has no split to learn, but test, which is to judge by.*{folder}:test$"):
        read_all(folder)
    assert len(read_all(f"{folder}:test")) == 1
    write(tmp_path, "train.jsonl")
    with pytest.raises(UserError, match=r"has no split 'tset'; it has train, test\. Did you mean 'test'"):
        read_all(f"{folder}:tset")


CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/tr-*
  - split: test
    path: ["main/te-*", "../outside/*"]
- config_name: socratic
  data_dir: socratic
{more}
---
# A data set
"""


def test_the_card_tells_configurations_and_splits(tmp_path: Path) -> None:
    folder = write(tmp_path / "own", "main/tr-0.jsonl", "main/te-0.jsonl", "socratic/train.jsonl", "socratic/dev.jsonl")
    write(tmp_path, "outside/a.jsonl")
    (tmp_path / "own/README.md").write_text(CARD.format(more=""))
    with pytest.raises(UserError, match=rf"has the configurations main, socratic\. Name one: {folder}@main"):
        splits_in(folder)
    assert names_in(f"{folder}@main") == {"train": ["main/tr-0.jsonl"], "test": ["main/te-0.jsonl"]}
    assert names_in(f"{folder}@socratic") == {"train": ["socratic/train.jsonl"], "validation": ["socratic/dev.jsonl"]}
    assert [example.prompt for example in read_all(f"{folder}@main:test")] == ["main/te-0.jsonl"]
    with pytest.raises(UserError, match=r"no configuration 'mian'\. Did you mean 'main'"):
        splits_in(f"{folder}@mian")
    (tmp_path / "own/README.md").write_text(CARD.format(more="  default: true"))
    assert names_in(folder) == names_in(f"{folder}@socratic")


@pytest.mark.parametrize(
    "card",
    ["no head", "---\nconfigs: [\n---\n", "---\nconfigs: 3\n---\n", "---\nconfigs: [{data_files: {a: 1}}]\n---\n"],
)
def test_a_card_that_tells_nothing_is_none(card: str, tmp_path: Path) -> None:
    folder = write(tmp_path, "train.jsonl", "test.jsonl")
    (tmp_path / "README.md").write_text(card)
    assert names_in(folder) == {"train": ["train.jsonl"], "test": ["test.jsonl"]}


@pytest.mark.parametrize("saved", ["{}", '{"splits": 3}', '{"splits": null}', "[]", "[" * 100_000])
def test_a_list_of_splits_that_tells_nothing_is_none(saved: str, tmp_path: Path) -> None:
    folder = write(tmp_path, "train.jsonl", "test.jsonl")
    (tmp_path / "dataset_dict.json").write_text(saved)
    assert names_in(folder) == {"train": ["train.jsonl"], "test": ["test.jsonl"]}


def test_a_card_of_one_pattern_is_all_to_learn(tmp_path: Path) -> None:
    folder = write(tmp_path, "a/x.jsonl", "y.jsonl", "test.jsonl")
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: '**/[xy].jsonl'\n---\n")
    assert names_in(folder) == {"train": ["a/x.jsonl", "y.jsonl"]}


def test_what_datasets_saved_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="folders are saved by datasets")
    parts = {
        name: datasets.Dataset.from_list([{"prompt": f"{name} {i}", "target": "a"} for i in range(3)])
        for name in ("train", "test", "odd_ones")
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "all"))
    parts["test"].save_to_disk(str(tmp_path / "one"))
    assert list(splits_in(f"{tmp_path}/all")) == ["train", "test", "odd_ones"]
    assert [example.prompt for example in read_all(f"{tmp_path}/all:odd_ones")] == [f"odd_ones {i}" for i in range(3)]
    with pytest.warns(UserWarning, match=r"train \(1 file\) is learned, test \(1 file\) is held out, odd_ones"):
        assert assign_splits(f"{tmp_path}/all", None) == (f"{tmp_path}/all:train", f"{tmp_path}/all:test")
    assert [example.prompt for example in read_all(f"{tmp_path}/one")] == [f"test {i}" for i in range(3)]
    assert [example.prompt for example in read_all(f"{tmp_path}/all/test")] == [f"test {i}" for i in range(3)]


def test_names_of_folders_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "own", "train.jsonl")
    write(tmp_path / "a:b", "train.jsonl")
    monkeypatch.chdir(tmp_path)
    assert findable("own@main:test") == f"{tmp_path}/own@main:test" and findable("own:test") == f"{tmp_path}/own:test"
    assert findable("a:b") == f"{tmp_path}/a:b" and parts_of("a:b") == ("a:b", None, None)
    assert findable("owner/name@main:test") == "owner/name@main:test"
    (tmp_path / "own/train.jsonl").write_text('{"prompt": "1"}\n{"prompt": "2", "target": "3"}\n')
    assert len(read_all("own:train", on_error="skip")) == 1
    assert (tmp_path / "own-train.skipped.jsonl").is_file()


BOMB = "\n".join(["x0: &x0 [a, a]", *(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]" for n in range(1, 40))])


@pytest.mark.parametrize(
    "configs",
    [
        "[{config_name: *x39, data_files: a.jsonl}]",
        "[{config_name: a, data_dir: *x39}]",
        "[{config_name: a, data_files: [{split: train, path: *x39}]}]",
        "[{config_name: a, data_files: [{split: *x39, path: a.jsonl}]}]",
    ],
)
def test_a_card_that_makes_too_much_says_nothing(configs: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    (tmp_path / "README.md").write_text(f"---\n{BOMB}\nconfigs: {configs}\n---\n")
    assert names_in(str(tmp_path)) == {}


@pytest.mark.parametrize("saved", ["{}", '{"splits": null}', '{"splits": 5}', '{"splits": [5]}', "[]", "[" * 100_000])
def test_what_was_saved_of_splits_may_be_anything(saved: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    (tmp_path / "dataset_dict.json").write_text(saved)
    assert names_in(str(tmp_path)) == {}
