"""Where a run takes place: memories as they are written, and the device at hand."""

import subprocess
from typing import Any

import pytest

from glmtune import runtime
from glmtune.config import load_recipe
from glmtune.resolution import ResolvedModel
from glmtune.runtime import UserError
from glmtune.training import placement
from glmtune.training.memory import GIB
from glmtune.training.placement import (
    Place,
    Placement,
    assume_lengths,
    at_hand,
    estimate,
    parse_memory,
    place_of,
    readable,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GB", 8 * GIB), ("8", 8 * GIB), ("11.5 GiB", int(11.5 * GIB)), ("81920MB", 80 * GIB), ("1tb", 1024 * GIB)],
)
def test_memory_sizes(text: str, expected: int) -> None:
    assert parse_memory(text) == expected


def test_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(command: list[str], **_: Any) -> Any:
        assert command[0] == "nvidia-smi"
        return subprocess.CompletedProcess(command, 0, "NVIDIA H100, 80GB HBM3, 81559\nNVIDIA T4, 15360\n", "")

    monkeypatch.setattr(placement.subprocess, "run", answer)
    assert at_hand() == Place("cuda", "NVIDIA H100, 80GB HBM3", 81559 * 2**20)


@pytest.mark.parametrize("failure", [FileNotFoundError(), subprocess.CalledProcessError(9, "nvidia-smi")])
def test_no_gpu_at_hand(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(placement.subprocess, "run", fail)
    assert at_hand() == Place("cpu", "the CPU of this machine", runtime.memory_size())


def test_a_gpu_that_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.subprocess, "run", None)
    assert at_hand(with_gpu=False).device == "cpu"


@pytest.mark.parametrize("version", ["2.13.0", "2.13.0+cpu"])
def test_a_gpu_counts_only_where_torch_would_use_it(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """As the training does: a driver alone is not enough."""
    answer = subprocess.CompletedProcess("nvidia-smi", 0, "NVIDIA T4, 15360\n", "")
    monkeypatch.setattr(placement.subprocess, "run", lambda *_, **__: answer)
    monkeypatch.setattr(placement.metadata, "version", lambda _: version)
    assert place_of(None, None).device == ("cpu" if version.endswith("+cpu") else "cuda")
    assert place_of("cpu", None).device == "cpu"


def test_a_place_that_is_only_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place_of(None, "8GB") == place_of("gpu", "8GB") == Place("cuda", "a GPU of 8GB", 8 * GIB)
    assert place_of("cpu", "8GB") == Place("cpu", "a CPU with 8GB", 8 * GIB)
    monkeypatch.setattr(placement, "at_hand", lambda with_gpu: Place("cpu", "a CPU", GIB))
    with pytest.raises(UserError, match="--device gpu: there is none here that torch would use"):
        place_of("gpu", None)


def test_a_placement_tells_what_would_make_it_fit() -> None:
    recipe = load_recipe(None, ["training.batch_size=512"])
    architecture = ResolvedModel(recipe).architecture

    def on(memory: int) -> Placement:
        place = Place("cpu", "a machine", memory)
        return Placement(recipe, place, lambda changed: estimate(changed, architecture, "cpu", 128, 64))

    assert on(64 * GIB).fits and on(64 * GIB).remedy[0] == []
    settings, then = on(GIB).remedy
    assert not on(GIB).fits and on(GIB).spare < 0
    assert settings and Place("cpu", "a machine", GIB).spare(then) >= 0
    assert on(2**20).remedy[0] is None


def test_lengths_are_assumed_where_nothing_tells() -> None:
    recipe = load_recipe(None, ["data.max_length=40"])
    architecture = ResolvedModel(recipe).architecture
    assert assume_lengths(recipe, architecture) == (40, 20)
    assert assume_lengths(load_recipe(), architecture) == (128, 64)
    with pytest.raises(UserError, match="at least 2 tokens"):
        assume_lengths(recipe, architecture, 1)


def test_bytes_are_readable() -> None:
    assert (readable(3 * 2**20), readable(3 * GIB)) == ("3.0 MiB", "3.00 GiB")
