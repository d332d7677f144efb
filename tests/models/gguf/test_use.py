"""A model that is only there as a GGUF file is trained, asked, and exported as any other."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import glmtune
from glmtune import adapters
from glmtune.commands import export, train
from glmtune.resolution import resolve
from glmtune.runtime import UserError
from glmtune.terminal.console import Console

pytest.importorskip("gguf", reason="needs the package gguf: pip install 'glmtune[gguf]'")

Makes = Callable[..., tuple[Path, Path]]
SETTINGS = (
    *("task.operators=+", "task.kinds=[integer]", "task.maximum=5", "task.style=direct", "task.echo=false"),
    *("task.held_out=0.3", "training.steps=2", "training.batch_size=2", "evaluation.num_examples=4"),
    *("evaluation.num_examples_during=2", "generation.max_new_tokens=4", "method.rank=2"),
)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_from_a_file_to_a_file(make: Makes, tmp_path: Path, console: Console) -> None:
    """Trained from a file, put back on it, merged, written as a file, and read again: the same answers."""
    _, file = make(precision="q8_0")
    settings = [*SETTINGS, f"model.path={file.parent}", f"training.output_dir={tmp_path / 'run'}"]
    run = train.run(overrides=settings, console=console)
    record = adapters.record_of(run.folder.adapter)
    assert record["base"] == str(file.parent)
    assert record["fingerprint"] == resolve(file).fingerprint
    output = str(tmp_path / "tuned.gguf")
    place = export.run(run.folder.path, "gguf", output, precision="float32", console=console)
    (ours, words), (theirs, same) = glmtune.load(run.folder.path), glmtune.load(place)
    ids = torch.tensor([words("1+2=")["input_ids"]])
    assert same("1+2=")["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_knows_its_file(make: Makes, tmp_path: Path, console: Console) -> None:
    _, file = make()
    settings = [*SETTINGS, f"model.path={file}", f"training.output_dir={tmp_path / 'run'}"]
    run = train.run(overrides=settings, console=console)
    moved = file.rename(tmp_path / "moved.gguf")
    with pytest.raises(UserError, match=r"The base of the adapter .* If it has moved, add model\.path="):
        resolve(run.folder.path)
    assert resolve(run.folder.path, [f"model.path={moved}"]).load()[1].eos_token == "<|endoftext|>"
    _, other = make(initializer_range=0.3)
    with pytest.raises(UserError, match="was trained on other weights than"):
        resolve(run.folder.path, [f"model.path={other}"])


@pytest.mark.parametrize("bits", [8, 4])
def test_a_file_at_8_and_4_bits(make: Makes, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    folder, file = make()
    found = resolve(file).load(dtype="float32", bits=bits)[0].state_dict()
    expected = resolve(folder).load(dtype="float32", bits=bits)[0].state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
