"""What is written: never through a link that somebody planted, in folders of one's own, as the user's umask says."""

from __future__ import annotations

import marshal
import os
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from glmtune import files, prediction
from glmtune.commands import predict
from glmtune.config import DataSettings
from glmtune.data import cache as cached_rows
from glmtune.data.cache import ROWS
from glmtune.data.table import encode_records
from glmtune.evaluation import metrics
from glmtune.examples import Example
from glmtune.execution import Run
from glmtune.records import output as output_file
from glmtune.runtime import UserError

Refused = Callable[..., str]
FEW = ["generation.max_new_tokens=1"]


@pytest.fixture
def input(write_records: Any) -> Path:
    file: Path = write_records({"prompt": "1+1="}, {"prompt": "2+2="})
    return file


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def asked(run: Run, input: Path, output: Path, *flags: str) -> list[object]:
    return ["predict", run.path, "--input", input, "--output", output, *flags, *FEW]


@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--resume",)])
@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
@pytest.mark.parametrize("target", ["thesis.txt", "nothing", "."])
def test_an_output_that_is_a_link_is_told(
    tiny_run: Run, input: Path, outside: Path, refused: Refused, flags: tuple[str, ...], name: str, target: str
) -> None:
    output = input.parent / name
    output.symlink_to(outside / target)
    message = refused(*asked(tiny_run, input, output, *flags))
    assert f"--output {output}: is a" in message
    if target != ".":
        assert f"is a link to {outside / target}" in message and "Name that path itself" in message
    assert output.is_symlink() and not (outside / "nothing").exists()


@pytest.mark.parametrize("verb", ["evaluate", "inspect", "inspect page", "data", "export", "schema"])
def test_every_output_that_is_a_link_is_told(
    tiny_run: Run, input: Path, outside: Path, refused: Refused, verb: str
) -> None:
    output = input.parent / "out"
    output.symlink_to(outside / "thesis.txt")
    commands: dict[str, list[object]] = {
        "evaluate": ["evaluate", tiny_run.path, "--output", output],
        "inspect": ["inspect", input, "--output", output],
        "inspect page": ["inspect", input, "--html", output],
        "data": ["data", "arithmetic", "--n", 3, "--output", output],
        "export": ["export", tiny_run.path, "--output", output, "--overwrite"],
        "schema": ["schema", "--output", output],
    }
    assert f"{output}: is a link to {outside / 'thesis.txt'}" in refused(*commands[verb])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--resume",)])
def test_planted_where_unfinished_lines_go(
    tiny_run: Run, input: Path, outside: Path, refused: Refused, suffix: str, flags: tuple[str, ...]
) -> None:
    """A folder that is a link, a link in a folder, and the name that earlier versions wrote to."""
    output = input.parent / f"out{suffix}"
    folder = input.parent / f".out{suffix}.unfinished"
    folder.symlink_to(outside)
    assert f"{folder}: is a link, where a folder of your own is to be. Remove it." in refused(
        *asked(tiny_run, input, output, *flags)
    )
    folder.unlink()
    folder.write_text("a file")
    assert f"{folder}: is no folder" in refused(*asked(tiny_run, input, output, *flags))
    folder.unlink()
    folder.mkdir()
    for target in (outside / "thesis.txt", outside / "nothing"):
        (folder / "lines.jsonl").symlink_to(target)
        assert "lines.jsonl: is a link, or another user's. Remove it" in refused(
            *asked(tiny_run, input, output, *flags)
        )
        (folder / "lines.jsonl").unlink()
    folder.rmdir()
    (input.parent / f"out{suffix}.partial.jsonl").symlink_to(outside / "thesis.txt")
    assert predict.run(tiny_run, str(input), str(output), FEW, resume="--resume" in flags) == 2
    assert not folder.exists() and not (outside / "nothing").exists()


def test_unfinished_lines_are_of_this_user_alone(
    tiny_run: Run, input: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, folder = input.parent / "out.csv", input.parent / ".out.csv.unfinished"
    folder.mkdir(mode=0o777)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        assert f"{folder}: belongs to another user (number " in refused(*asked(tiny_run, input, output))
        patch.setattr(files, "private_folder", Path)
        (folder / "lines.jsonl").touch()
        assert "another user's" in refused(*asked(tiny_run, input, output))
    with monkeypatch.context() as patch:
        patch.setattr(output_file, "write_rows", None)
        with pytest.raises(TypeError):
            predict.run(tiny_run, str(input), str(output), FEW)
    assert mode_of(folder) == 0o700 and [path.name for path in folder.iterdir()] == ["lines.jsonl"]
    assert "was begun already" in refused(*asked(tiny_run, input, output))
    assert predict.run(tiny_run, str(input), str(output), FEW, resume=True) == 2 and not folder.exists()


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_a_link_that_comes_while_the_model_is_loaded(
    tiny_run: Run, input: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    output = input.parent / name
    place = prediction.Output.at(output).working
    loaded = prediction.ResolvedModel.load

    def load(self: Any) -> Any:
        found = loaded(self)
        if place.parent != output.parent:
            place.parent.mkdir(mode=0o700)
        place.symlink_to(outside / "thesis.txt")
        return found

    monkeypatch.setattr(prediction.ResolvedModel, "load", load)
    if name == "out.csv":  # where the link is taken away, in a folder of one's own
        assert predict.run(tiny_run, str(input), str(output), FEW) == 2
    else:
        with pytest.raises(UserError, match=r"--output .*out\.jsonl: cannot be written: .*symbolic links"):
            predict.run(tiny_run, str(input), str(output), FEW)


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_results_are_as_the_umask_says(tiny_run: Run, input: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        for name in ("out.jsonl", "out.csv", "out.parquet"):
            predict.run(tiny_run, str(input), str(input.parent / name), FEW)
    finally:
        os.umask(before)
    assert {mode_of(input.parent / name) for name in ("out.jsonl", "out.csv", "out.parquet")} == {mode}


def test_a_pipe_is_not_waited_for(tiny_run: Run, input: Path, refused: Refused) -> None:
    for name in ("out.jsonl", "out.csv"):
        os.mkfifo(input.parent / name)
        assert f"{name}: is a pipe, which is not replaced" in refused(*asked(tiny_run, input, input.parent / name))


# Caches

EXAMPLES = [Example(f"{number}+1=", str(number + 1)) for number in range(ROWS)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "glmtune"


@pytest.fixture
def encode(tiny: tuple[Any, Any]) -> Callable[[], Any]:
    from glmtune.data.encoder import Encoder

    return lambda: encode_records(EXAMPLES, Encoder(tiny[1], 64, False), DataSettings(), "records")


@pytest.fixture
def open_mask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_mask")
def test_the_cache_is_of_this_user_alone(cache: Path, encode: Callable[[], Any]) -> None:
    encode()
    assert mode_of(cache) == 0o700
    assert {path.suffix: mode_of(path) for path in cache.iterdir()} == {".arrow": 0o600, ".lock": 0o600}
    cache.chmod(0o777)  # as an earlier version made it
    encode()
    assert mode_of(cache) == 0o700


def test_a_cache_elsewhere_is_not_used(cache: Path, outside: Path, encode: Callable[[], Any]) -> None:
    cache.parent.mkdir()
    cache.symlink_to(outside)
    with pytest.warns(UserWarning, match=r"tokens are not kept for the next run: .*glmtune: is a link"):
        assert len(encode()) == ROWS


def test_what_others_left_in_the_cache_is_made_anew(
    cache: Path, outside: Path, encode: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [encode()[index] for index in (0, ROWS - 1)]
    [file] = cache.glob("*.arrow")
    content = file.read_bytes()
    file.unlink()
    file.symlink_to(outside / "thesis.txt")
    with pytest.warns(UserWarning, match="does not hold what was written to it"):
        assert encode()[0] == expected[0]
    assert encode()[ROWS - 1] == expected[1]
    assert not file.is_symlink() and file.read_bytes() == content
    with monkeypatch.context() as patch:
        patch.setattr("glmtune.data.cache.private_folder", Path)
        patch.setattr(os, "geteuid", lambda: 12345)  # whose the file is not
        written: list[Path] = []
        write = cached_rows.write
        patch.setattr(cached_rows, "write", lambda parts, to: (written.append(to), write(parts, to)))
        with pytest.warns(UserWarning, match="does not hold what was written to it"):
            encode()
        assert written == [file]


def test_words_are_not_taken_from_a_shared_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """jieba reads its dictionary, by marshal, from a file in /tmp that anybody could have put there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    planted = tmp_path / "jieba.cache"
    planted.write_bytes(marshal.dumps(({"planted": 1}, 1)))
    before = planted.read_bytes()
    import jieba

    monkeypatch.setattr(jieba, "dt", jieba.Tokenizer())
    monkeypatch.setattr(jieba, "cut", jieba.dt.cut)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert metrics._words(["我来到北京清华大学"]) == ["我 来到 北京 清华大学"]
    assert "planted" not in jieba.dt.FREQ and planted.read_bytes() == before
    assert list(tmp_path.iterdir()) == [planted]
