"""Files that would take all time or memory are told in a line, soon, with a remedy."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from glmtune import cli
from glmtune.config import RecipeError, load_recipe
from glmtune.models.loading import load_config
from glmtune.runtime import UserError

SECONDS = 20  # generous: on a busy machine; all of this takes a second or two


@pytest.fixture(autouse=True)
def ends_soon() -> Iterator[None]:
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start < SECONDS


@pytest.fixture
def diagnosed(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Give a function that returns what `doctor` says fails."""

    def run(target: Path) -> list[str]:
        with pytest.raises(SystemExit) as end:
            cli.main(["doctor", str(target)])
        assert end.value.code == 2
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILS")]

    return run


def chain(count: int, link: str) -> str:
    """YAML in which each name stands several times in the next."""
    names = [f"n{number}" for number in range(count)]
    return "".join(f"{name}: &{name} {link.format(names[max(0, place - 1)])}\n" for place, name in enumerate(names))


# Recipes.

RECIPES = {
    "aliases": "n0: &n0 [1, 2]\n" + chain(30, "[*{0}, *{0}, *{0}]").partition("\n")[2],
    "merges": "n0: &n0 {x: 1}\n"
    + chain(30, "{{{{<<: [*{0}, *{0}, *{0}]}}}}").replace("{{", "{").replace("}}", "}").partition("\n")[2],
    "itself": "a: &a [*a]",
    "lists": "a: " + "[" * 9000 + "]" * 9000,
    "groups": "\n".join(" " * depth + "a:" for depth in range(600)),
    "unclosed": "a: " + "[" * 9000,
    "long": "seed: " + "a" * 300_000,
    "many": "".join(f"k{number}: 1\n" for number in range(10_000)),
    "long name": "a" * 100_000 + ": 1",
    "long value": "seed: " + "a" * 100_000,
    "integer": "seed: " + "9" * 100_000,
    "hexadecimal": "training: {steps: 0x" + "f" * 100_000 + "}",
    "large": "training: {steps: 1" + "0" * 30 + "}",
    "infinite": "training: {learning_rate: 1e400}",
    "no number": "training: {learning_rate: .nan}",
    "sixty": "seed: " + "1:" * 50_000,
    "twice": "seed: 1\nseed: 2",
    "tag": "a: !!python/object/apply:os.system ['echo']",
    "undefined": "a: *nobody",
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPES[name])
    with pytest.raises(RecipeError) as refusal:
        load_recipe(path)
    assert len(str(refusal.value)) < 10_000 and len(str(refusal.value).splitlines()) <= 22
    assert all(len(line) < 1000 for line in str(refusal.value).splitlines())
    assert "faults" in refused("estimate", path)


# Checkpoints.

CONFIGS: dict[str, Any] = {
    "layers": {"num_layers": 10_000_000},
    "negative": {"num_layers": -1},
    "none": {"hidden_size": 0},
    "a text": {"hidden_size": "x"},
    "a number as a text": {"vocab_size": "512"},
    "true": {"num_attention_heads": True},
    "no number": {"hidden_size": float("nan")},
    "infinite": {"vocab_size": float("inf")},
    "wide": {"inner_hidden_size": 10**12},
    "long": {"max_sequence_length": 10**30},
    "fraction": {"num_layers": 2.5},
    "list": {"hidden_size": [128]},
    "wide layer": {"intermediate_size": [128, 10**12]},
    "object": {"num_layers": {"a": 1}},
    "labels": {"num_labels": 10**9},
    "labels of a part": {"vision_config": {"num_labels": 10**9}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations(
    name: str, tiny_checkpoint: Path, tmp_path: Path, refused: Callable[..., str], diagnosed: Callable[..., list[str]]
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | CONFIGS[name]))
    records = tmp_path / "records.jsonl"
    records.write_text('{"prompt": "1", "target": "2"}\n')
    for arguments in (
        ["estimate", f"model.path={folder}"],
        ["chat", folder, "-q", "1+1="],
        ["inspect", records, "--model", folder],
        ["predict", folder, "--input", records, "--output", tmp_path / "out.jsonl"],
    ):
        told = refused(*arguments)
        assert "config.json" in told and len(told) < 1000
    assert any("config.json" in line for line in diagnosed(folder))


@pytest.mark.parametrize("name", ["text_config", "decoder"])
@pytest.mark.parametrize("value", [5, "x", [1], {"hidden_size": 8}])
def test_parts_that_are_no_model(name: str, value: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    values = json.loads((tiny_checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, name: value}))
    with pytest.raises(UserError, match=r"config\.json: what stands there for a model of texts"):
        load_config(str(tmp_path))


JSONS = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "digits": '{"a": ' + "9" * 100_000 + "}",
    "cut off": '{"model_type": "chatglm"',
    "a list": "[1]",
    "no text": "\x00\x01",
    "empty": "",
}


@pytest.mark.parametrize("name", JSONS)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_json(
    name: str, file: str, tiny_checkpoint: Path, tmp_path: Path, refused: Callable[..., str], diagnosed: Any
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    (folder / file).write_text(JSONS[name])
    told = refused("chat", folder, "-q", "1+1=")
    assert file in told and len(told) < 1000
    assert any(file in line for line in diagnosed(folder))


def test_a_file_of_gigabytes(tiny_checkpoint: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    with (folder / "config.json").open("wb") as file:
        file.truncate(2**33)  # of which none is on the disk
    assert "config.json" in refused("chat", folder, "-q", "1+1=")
    recipe = tmp_path / "recipe.yaml"
    with recipe.open("wb") as file:
        file.truncate(2**33)
    refused("estimate", recipe)


# Weights.


def header(size: int, content: bytes) -> bytes:
    return struct.pack("<Q", size) + content


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}).encode()


WEIGHTS = {
    "a header of exabytes": header(2**62, b"{}"),
    "a header of gigabytes": header(2**33, b"{}"),
    "no header": b"",
    "half a header": header(100, b'{"a":'),
    "deep": header(200_000, b"[" * 100_000 + b"]" * 100_000),
    "a weight of exabytes": header(len(entry([2**40, 2**20], 0, 2**62)), entry([2**40, 2**20], 0, 2**62)),
    "a negative size": header(len(entry([-1], 0, 4)), entry([-1], 0, 4) + b"1234"),
    "a shape that does not fit": header(len(entry([9], 0, 4)), entry([9], 0, 4) + b"1234"),
    "before the file": header(len(entry([1], -8, -4)), entry([1], -8, -4) + b"1234"),
    "a list": header(6, b"[1, 2]"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(
    name: str, tiny_checkpoint: Path, tmp_path: Path, refused: Callable[..., str], diagnosed: Callable[..., list[str]]
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(WEIGHTS[name])
    told = refused("chat", folder, "-q", "1+1=")
    assert str(folder) in told and len(told) < 1000
    assert any("weights" in line or "fit" in line or "files" in line for line in diagnosed(folder))


# A tokenizer's own patterns and normalizers run in Rust, whose patterns give up after a million steps back.


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(?:a*)*b", "(.*)*x", r"(?=(a+))a*\1b"])
def test_patterns_of_a_tokenizer(pattern: str) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    try:
        split.pre_tokenize_str("a" * 20_000 + "!")
    except BaseException as error:
        told = cli.explain(error)
        assert told is not None and "\n" not in told and "tokenizer" in told


# Records.


@pytest.mark.parametrize("by", ["dictionary", "zstd"])
def test_a_table_that_is_small_when_packed(by: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = pyarrow.array(["a" * 3_000_000] * 100)
    path = tmp_path / "records.parquet"
    table = pyarrow.table({"prompt": texts, "target": pyarrow.array(["2"] * 100)})
    parquet.write_table(table, path, compression="zstd", use_dictionary=by == "dictionary")
    assert path.stat().st_size < 100_000  # of 300 MB
    told = refused("predict", "nano", "--input", path, "--output", tmp_path / "out.jsonl")
    assert "records.parquet" in told and "bytes" in told


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        ("a.jsonl.gz", b'{"prompt": "%s", "target": "2"}\n' % (b"1" * 200)),
        ("a.csv.gz", b"prompt,target,%s\n" % (b"1" * 200)),
        ("a.txt.gz", b"a"),
        ("a.json.gz", b"1,"),
    ],
    ids=["jsonl", "csv", "txt", "json"],
)
def test_texts_that_are_small_when_packed(name: str, piece: bytes, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        packed = gzip.compress(piece * (2**24 // len(piece)), mtime=0)
        file.write(packed * 64)  # a gigabyte: gzip reads what stands behind one another as one
    told = refused("predict", "nano", "--input", path, "--output", tmp_path / "out.jsonl")
    assert name in told and ("at least 1000 faults" if name == "a.json.gz" else "unpack it with gunzip") in told


def test_reading_is_bounded_in_python_too(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPES["merges"])
    with pytest.raises(UserError):
        load_recipe(path)


def test_a_tokenizer_of_several_is_refused(tiny_checkpoint: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tokenizer_class": "RagTokenizer"}))
    assert f"the tokenizer of {model} is a RagTokenizer, which is no single one" in refused("chat", model, "-q", "1+1=")
