"""The files of a checkpoint: weights that are read when asked for, what is missing, and what is fetched of a hub."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

import glmtune
from glmtune.models.checkpoint import (
    WEIGHT_PATTERNS,
    check_files,
    fingerprint,
    lazy_weights,
    local_folder,
    read_json,
    reading,
    weight_files,
)
from glmtune.runtime import UserError

GLM2 = Path(__file__).parents[1] / "golden" / "glm2_glm3"
CODE = 'raise SystemExit("never run")'


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (6, 4), "a.bias": (6,), "b.weight": (3, 2)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(folder: Path, suffix: str, shards: int = 1, old: bool = False) -> list[Path]:
    """Weights in `shards` files, with an index where there are several."""
    stem, ending = ("model", "safetensors") if suffix == ".safetensors" else ("pytorch_model", "bin")
    names = [f"{stem}.{ending}"]
    if shards > 1:
        names = [f"{stem}-{number:05}-of-{shards:05}.{ending}" for number in range(1, shards + 1)]
    index = {}
    for number, name in enumerate(names):
        part = {key: weight for i, (key, weight) in enumerate(tensors().items()) if i % shards == number}
        index |= dict.fromkeys(part, name)
        if ending == "bin":
            torch.save(part, folder / name, _use_new_zipfile_serialization=not old)
        else:
            save_file(part, folder / name, {"format": "pt"})
    if shards > 1:
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return [folder / name for name in names]


# --------------------------------------------------------------------------- weights


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("suffix", "old"), [(".safetensors", False), (".bin", False), (".bin", True)])
def test_lazy_weights(tmp_path: Path, suffix: str, old: bool, shards: int) -> None:
    """Whole and in rows, of every form of files; they can be asked more than once."""
    files = write(tmp_path, suffix, shards, old)
    assert weight_files(tmp_path) == files
    found, expected = lazy_weights(tmp_path), tensors()
    assert found.keys() == expected.keys()
    for _ in range(2):
        for name, weight in expected.items():
            assert torch.equal(found[name][...], weight) and torch.equal(found[name][1:3], weight[1:3])


def test_safetensors_are_not_read_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of them is held: what is given is its receiver's own, and the file as it was."""
    [file] = write(tmp_path, ".safetensors")
    content = file.read_bytes()
    monkeypatch.setattr("torch.load", None)
    weights = lazy_weights(tmp_path)
    assert not any(isinstance(weight, Tensor) for weight in weights.values())
    weights["a.weight"][...].zero_()  # what is mapped is our own as well: the file stays
    assert torch.equal(lazy_weights(tmp_path)["a.weight"][...], tensors()["a.weight"])
    assert file.read_bytes() == content


def test_safetensors_come_first(tmp_path: Path) -> None:
    write(tmp_path, ".bin", 3)
    [file] = write(tmp_path, ".safetensors")
    assert weight_files(tmp_path) == [file]
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert lazy_weights(tmp_path).keys() == tensors().keys()
    assert weight_files(tmp_path / "nowhere") == [] == list(lazy_weights(tmp_path / "nowhere"))


class Harmful:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('run')",)


def test_pickles_hold_nothing_but_tensors(tmp_path: Path) -> None:
    torch.save({"a": Harmful()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        lazy_weights(tmp_path)


def test_other_pickles_are_no_weights(tmp_path: Path) -> None:
    """Such as what a training run leaves."""
    for name in ("training_args.bin", "optimizer.bin", "scheduler.pt"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
    assert weight_files(tmp_path) == [] and lazy_weights(tmp_path) == {}


# --------------------------------------------------------------------------- whole or not


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_missing_shards_are_named(tmp_path: Path, suffix: str) -> None:
    files = write(tmp_path, suffix, 3)
    check_files(tmp_path)
    files[1].unlink()
    with pytest.raises(UserError, match=rf"lacks 1 of 3 weight files: {files[1].name}\. Copy or download them"):
        check_files(tmp_path)
    files[2].unlink()
    with pytest.raises(UserError, match=rf"lacks 2 of 3 weight files: {files[1].name}, {files[2].name}"):
        check_files(tmp_path)
    files[0].unlink()  # the index alone says that there should be some
    with pytest.raises(UserError, match=f"lacks 3 of 3 weight files: {files[0].name}"):
        check_files(tmp_path)


@pytest.mark.parametrize(("left", "there"), [(".bin", ".safetensors"), (".safetensors", ".bin")])
def test_an_index_of_another_format_does_not_matter(tmp_path: Path, left: str, there: str) -> None:
    """As where a repository has both, and one of them was fetched."""
    for file in write(tmp_path, left, 3):
        file.unlink()
    write(tmp_path, there)
    check_files(tmp_path)
    assert torch.equal(lazy_weights(tmp_path)["a.bias"][...], tensors()["a.bias"])


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def point(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def test_json_that_is_nested_too_deeply_is_damaged(tmp_path: Path) -> None:
    (file := tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"config\.json is damaged: maximum recursion depth"):
        read_json(file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"is truncated: \d+ of \d+ bytes"),
        (point, "is a Git-LFS pointer, not the file itself. Fetch it: cd .* && git lfs pull"),
        (lambda file: file.write_bytes(b"\xff" * 64), "is damaged: 64 bytes without a readable header"),
        (
            lambda file: file.write_bytes((100_000).to_bytes(8, "little") + b"[" * 200_000),
            "is damaged: 200008 bytes without a readable header",
        ),
        (lambda file: file.write_bytes(b""), "is damaged: 0 bytes without a readable header"),
    ],
)
def test_damage_is_told(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    file = write(tmp_path, ".safetensors", 2)[1]
    damage(file)
    with pytest.raises(UserError, match=message) as error:
        check_files(tmp_path)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_fingerprint(tmp_path: Path, suffix: str) -> None:
    """The same of equal files wherever they are; another one of a single other weight, or another number of files."""
    folders = [tmp_path / name for name in "abc"]
    for folder, shards in zip(folders, (1, 1, 3), strict=True):
        folder.mkdir()
        write(folder, ".safetensors", shards)
        (folder / f"{folder.name}.json").write_text("{}")
    one, same, other = map(fingerprint, folders)
    assert one == same != other
    changed = tensors()
    changed["b.weight"][2, 1] += 1
    save_file(changed, folders[1] / "model.safetensors", {"format": "pt"})
    assert fingerprint(folders[1]) != one


# --------------------------------------------------------------------------- a hub


class Hub:
    """Serves a folder as huggingface_hub does: what matches the patterns, and remembers what it was asked."""

    def __init__(self, repository: Path, cache: Path):
        self.repository, self.cache = repository, cache
        self.asked: list[dict[str, Any]] = []

    def __call__(
        self, name: str, revision: str | None = None, allow_patterns: Any = None, local_files_only: bool = False
    ) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("the cache is empty")
        self.asked.append({"name": name, "revision": revision, "patterns": list(allow_patterns)})
        self.cache.mkdir(exist_ok=True)
        for file in self.repository.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, self.cache)
        return str(self.cache)

    @property
    def fetched(self) -> set[str]:
        return {file.name for file in self.cache.iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with one repository: small files, code, safetensors and the same as a pickle."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("config.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "merges.txt"):
        (repository / name).write_text("{}")
    (repository / "modeling_chatglm.py").write_text(CODE)
    write(repository, ".safetensors")
    write(repository, ".bin")
    served = Hub(repository, tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", served)
    monkeypatch.chdir(tmp_path)
    return served


SMALL = {"config.json", "tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "merges.txt"}


def test_without_weights_no_weights_are_fetched(hub: Hub) -> None:
    assert local_folder("THUDM/chatglm2-6b", weights=False, revision="v1") == hub.cache
    assert hub.fetched == SMALL
    [asked] = hub.asked
    assert (asked["name"], asked["revision"]) == ("THUDM/chatglm2-6b", "v1")
    assert not any(
        fnmatch(file, pattern) for pattern in asked["patterns"] for file in ("a.safetensors", "a.bin", "a.py")
    )


def test_pickles_are_left_where_there_are_safetensors(hub: Hub) -> None:
    assert local_folder("THUDM/chatglm2-6b") == hub.cache
    assert hub.fetched == {*SMALL, "model.safetensors"} and len(hub.asked) == 1


def test_pickles_are_fetched_where_there_is_nothing_else(hub: Hub) -> None:
    (hub.repository / "model.safetensors").unlink()
    assert local_folder("THUDM/chatglm2-6b", revision="main") == hub.cache
    assert hub.fetched == {*SMALL, "pytorch_model.bin"}
    assert [asked["revision"] for asked in hub.asked] == ["main", "main"]
    assert hub.asked[1]["patterns"] == list(WEIGHT_PATTERNS) and "*.bin" not in " ".join(hub.asked[0]["patterns"])


def test_a_folder_is_never_asked_for(hub: Hub) -> None:
    assert local_folder(str(hub.repository)) == hub.repository
    assert not hub.asked


def test_a_model_of_the_hub(hub: Hub) -> None:
    """Loaded as one from a disk; its code is not fetched at all."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GLM2 / name, hub.repository)
    for name in ("tokenizer_config.json", "tokenizer.model", "chat_template.jinja", "merges.txt", "pytorch_model.bin"):
        (hub.repository / name).unlink()
    config = json.loads((hub.repository / "config.json").read_text()) | {"eos_token_id": 256}
    (hub.repository / "config.json").write_text(json.dumps(config))
    (hub.repository / "tokenizer.model").write_bytes(
        b"".join(b"%s %d\n" % (base64.b64encode(bytes([i])), i) for i in range(256))
    )
    model, tokenizer = glmtune.load("THUDM/glm-4-tiny")
    assert type(model).__name__ == "GlmForCausalLM" and model.name_or_path == "THUDM/glm-4-tiny"
    assert len(tokenizer) == 266 and hub.fetched == {"config.json", "model.safetensors", "tokenizer.model"}
    expected = load_file(GLM2 / "model.safetensors")["transformer.output_layer.weight"]
    assert torch.equal(model.lm_head.weight, expected.float())


def test_what_libraries_will_change_one_day_is_not_said(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with reading("weights", str(tmp_path)):
        warnings.warn("`torch_dtype` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("some weights are not used", UserWarning, stacklevel=1)
    assert [str(one.message) for one in recwarn] == ["some weights are not used"]
