"""Checkpoints: found, looked over before anything is read, and loaded whole or not at all."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from glmtune.commands import evaluate, predict
from glmtune.config import ModelSettings
from glmtune.models import loading
from glmtune.models.checkpoint import fingerprint, weight_files
from glmtune.runtime import UserError

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
CHAT_TEMPLATE = "{% for m in messages %}<s>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"


def load(path: Path | str, **settings: Any) -> tuple[Any, Any]:
    return loading.load_model(ModelSettings(path=str(path), **settings))


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def sharded(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The same weights in several files."""
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "sharded"))
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint).save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def edit_config(**changes: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def behead(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>404 not found</html>")


def as_pickle(content: bytes) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)

    return change


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.layers.1.mlp.dense_h_to_4h.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json, so it is no checkpoint"),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "config.json is damaged: .*Copy or download it again",
        ),
        (edit_config(model_type="foo"), "model_type 'foo'. is of an unknown family.*never run here.*ChatGLM3-6B"),
        (edit_config(model_type="foo", auto_map={}), "model_type 'foo'. runs only with code from its repository"),
        (edit_config(model_type=None), "config.json has no model_type.*Take the file of the release again"),
        (edit_config(hidden_size=33), "cannot be read.*hidden_size=33 must be a multiple"),
        (edit_config(vocab_size=600), r"do not fit its config.json: transformer.word_embeddings.weight is \[512, 32\]"),
        (edit_config(num_layers=3), "lacks 12 weights that its config.json asks for: transformer.layers.2"),
        (drop_a_weight, "lacks 1 weights.*transformer.layers.1.mlp.dense_h_to_4h.bias"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"holds no weights \(\*\.safetensors or"),
        (
            lambda folder: (folder / "model.safetensors").write_text(LFS_POINTER),
            r"model.safetensors is a Git-LFS.*pull",
        ),
        (lambda folder: (folder / "ice_text.model").write_text(LFS_POINTER), r"ice_text.model is a Git-LFS pointer"),
        (lambda folder: (folder / "ice_text.model").unlink(), "tokenizer cannot read .*ice_text.model"),
        (truncate, r"model.safetensors is truncated: \d+ of \d+ bytes"),
        (behead, "model.safetensors is damaged: 26 bytes without a readable header"),
        (as_pickle(b"<html>"), "pytorch_model.bin is no file of weights, or damaged, and is refused. Copy or download"),
        (as_pickle(b"PK\3\4" + b"0" * 99), r"pytorch_model.bin is truncated or damaged \(RuntimeError\)"),
    ],
)
def test_a_damaged_checkpoint_is_told(checkpoint: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(checkpoint)
    with pytest.raises(UserError, match=message) as error:
        load(checkpoint)
    assert str(checkpoint) in str(error.value)
    assert len(str(error.value)) < 600


def test_a_missing_shard_is_told_before_anything_is_read(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, actual = load(sharded)[0].state_dict(), weight_files(sharded)
    assert expected.keys() == load(sharded)[0].state_dict().keys()
    actual[1].unlink()
    monkeypatch.setattr(loading, "load_tokenizer", None)
    with pytest.raises(UserError, match=rf"lacks 1 of {len(actual)} weight files: {actual[1].name}"):
        load(sharded)
    (sharded / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        load(sharded)


def test_a_sharded_checkpoint_is_the_same(sharded: Path, tiny_checkpoint: Path) -> None:
    one, many = (load(path)[0].state_dict() for path in (tiny_checkpoint, sharded))
    assert one.keys() == many.keys() and all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("wrong", ["tinny", "./tinny", "nowhere/at/all", "/nowhere/at/all", "../tiny/model"])
def test_a_wrong_path_is_answered_with_what_is_there(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.chdir(tiny_checkpoint.parent)
    with pytest.raises(UserError, match=r"model\.path: no such model directory: ") as error:
        loading.locate(wrong)
    assert "Known: nano" in str(error.value)
    if "tinny" in wrong:
        assert "Did you mean 'tiny'?" in str(error.value)


def test_runs_and_adapters_are_offered_too(tmp_path: Path) -> None:
    for name, mark in (("run-1", "recipe.yaml"), ("adapter", "adapter_config.json"), ("notes", "notes.txt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / mark).touch()
    with pytest.raises(UserError, match=rf"Did you mean '{tmp_path}/run-1'\? Known: nano, {tmp_path}/adapter, "):
        loading.locate(str(tmp_path / "run-2"))


def test_names(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading.locate("nano") == str(loading.EMBEDDED["nano"])
    assert loading.locate(str(tiny_checkpoint)) == str(tiny_checkpoint)
    monkeypatch.chdir(tmp_path)
    assert loading.locate("THUDM/chatglm-6b") == "THUDM/chatglm-6b"


def test_a_hub_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_answer(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect to the hub.\n\nAnd much advice.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_answer)
    with pytest.raises(UserError, match=r"no folder some/model here, and the hub gives no files.*connect") as error:
        load("some/model")
    assert "advice" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float16", "cuda", torch.float16),
        ("auto", "mps", torch.float32),
    ],
)
def test_dtype(name: str, device: str, expected: torch.dtype) -> None:
    assert loading.choose_dtype(name, torch.device(device), wide=True) == expected


@pytest.mark.parametrize(("has_it", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_dtype_of_a_gpu(monkeypatch: pytest.MonkeyPatch, has_it: bool, expected: torch.dtype) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_it)
    assert loading.choose_dtype("auto", torch.device("cuda"), wide=False) == expected


@pytest.mark.parametrize(("units", "wide", "packed"), itertools.product((True, False), repeat=3))
def test_dtype_of_a_cpu(monkeypatch: pytest.MonkeyPatch, units: bool, wide: bool, packed: bool) -> None:
    """Files of 32 bits are not rounded unasked; packed layers are multiplied in bfloat16 on any CPU."""
    monkeypatch.setattr("glmtune.models.precision.has_bf16_units", lambda: units)
    expected = torch.bfloat16 if (units or packed) and not wide else torch.float32
    assert loading.choose_dtype("auto", torch.device("cpu"), wide, packed) == expected


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_settings_reach_the_model(tiny_checkpoint: Path, dtype: str, attention: str) -> None:
    model, tokenizer = load(tiny_checkpoint, dtype=dtype, attention=attention)
    assert model.dtype == loading.choose_dtype(dtype, torch.device("cpu"), wide=True)
    assert model.config._attn_implementation == attention
    assert not model.training and tokenizer.pad_token_id is not None
    assert loading.max_length(model.config) == 128


def test_random_init_needs_no_weights(checkpoint: Path) -> None:
    weights = load(checkpoint)[0].state_dict()
    (checkpoint / "model.safetensors").unlink()
    torch.manual_seed(1)
    fresh = load(checkpoint, random_init=True)[0].state_dict()
    torch.manual_seed(1)
    again = load(checkpoint, random_init=True)[0].state_dict()
    name = "transformer.word_embeddings.weight"
    assert torch.equal(fresh[name], again[name]) and not torch.equal(fresh[name], weights[name])


def test_fingerprint_is_that_of_the_weights(checkpoint: Path, tiny_checkpoint: Path) -> None:
    assert fingerprint(checkpoint) == fingerprint(tiny_checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    weights["transformer.final_layernorm.bias"][0] += 1
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(checkpoint) != fingerprint(tiny_checkpoint)


def llama(folder: Path, chat_template: str | None, eos_token: str | None = "</s>") -> Path:
    """A tiny Llama whose tokens are characters."""
    vocabulary = ["<unk>", "<s>", "</s>", "<a>", *"0123456789+-*/=. "]
    tokens = Tokenizer(token_models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", bos_token="<s>", eos_token=eos_token, extra_special_tokens=["<a>"]
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("chat_template", [CHAT_TEMPLATE, None], ids=["template", "no template"])
def test_any_causal_model_works(tmp_path: Path, train_tiny: Any, write_records: Any, chat_template: str | None) -> None:
    base = llama(tmp_path / "llama", chat_template)
    done = train_tiny(tmp_path / "run", f"model.path={base}", "training.steps=3")
    assert done.folder.report.is_file() and done.report["after"]["n"] == 6
    file = write_records({"prompt": "1+2=", "target": "3"}, {"prompt": "3+4=", "target": "7"})
    _, report = evaluate.run(str(done.folder.path), str(file))
    assert report["n"] == 2
    assert predict.run(str(done.folder.path), str(file), str(tmp_path / "out.jsonl")) == 2
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["completion"] for record in records] == [sample["completion"] for sample in report["samples"]]


def test_an_answer_must_be_able_to_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no eos_token, so that no answer could end"):
        load(llama(tmp_path / "llama", None, eos_token=None))


def test_padding_is_found_for_a_tokenizer_without_it(tmp_path: Path) -> None:
    _, tokenizer = load(llama(tmp_path / "llama", None))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
