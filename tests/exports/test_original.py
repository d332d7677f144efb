"""ChatGLM-6B written as its release has it: the release comes out again, weight by weight and key by key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GlmConfig

import glmtune
from glmtune.exports import original
from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.chatglm.family import release_weights
from glmtune.models.checkpoint import check_files, read_json, weight_files
from glmtune.runtime import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASE = load_file(GOLDEN / "glm1/model.safetensors")
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ChatGLM-6B as it is published, from the original code. No test may change it."""
    folder = tmp_path_factory.mktemp("release") / "chatglm-6b"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "glm1" / name, folder)
    shutil.copy(GOLDEN / "tokenizer/toy.model", folder / "ice_text.model")
    shutil.copy(GOLDEN / "tokenizer/tokenizer_config.json", folder)
    return folder


@pytest.fixture(scope="module")
def loaded(release: Path) -> tuple[Any, Any]:
    return glmtune.load(release, dtype="float32")


def saved(loaded: tuple[Any, Any], folder: Path, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Weights of the files that `original.save` writes."""
    folder.mkdir(exist_ok=True)
    original.save_original(*loaded, folder, dtype)
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        part = load_file(file)
        assert not weights.keys() & part.keys()
        weights |= part
    return weights


def test_the_release_comes_out_again(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    """All names: the tied head and the rotary frequencies, too; all numbers, to the last bit."""
    weights = saved(loaded, tmp_path)
    assert weights.keys() == RELEASE.keys()
    assert {"lm_head.weight", "transformer.layers.2.attention.rotary_emb.inv_freq"} <= weights.keys()
    for name, weight in RELEASE.items():
        assert weights[name].dtype == weight.dtype == torch.float16 and torch.equal(weights[name], weight), name


def test_configuration_and_tokenizer_are_the_release_ones(
    loaded: tuple[Any, Any], release: Path, tmp_path: Path
) -> None:
    saved(loaded, tmp_path, torch.float32)
    for name in ("config.json", "tokenizer_config.json"):
        theirs = read_json(release / name)
        for key in ("transformers_version", "name_or_path"):
            theirs.pop(key, None)
        assert theirs.items() <= read_json(tmp_path / name).items()
    assert (tmp_path / "ice_text.model").read_bytes() == (release / "ice_text.model").read_bytes()
    config, before = AutoConfig.from_pretrained(tmp_path), loaded[0].config.to_diff_dict()
    assert type(config) is ChatGLMConfig
    assert {key: value for key, value in config.to_diff_dict().items() if key != "auto_map"} == before
    # Tools that run the release's code find it by these names, and bring it along.
    code = read_json(tmp_path / "config.json")["auto_map"]
    assert code["AutoModel"] == "modeling_chatglm.ChatGLMForConditionalGeneration"
    assert not list(tmp_path.glob("*.py"))


def test_it_loads_back(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    saved(loaded, tmp_path, torch.float32)
    model, tokenizer = glmtune.load(tmp_path, dtype="float32")
    with np.load(GOLDEN / "glm1/forward.npz") as arrays:
        ids, logits = (torch.from_numpy(arrays[f"single_gmask.{key}"]) for key in ("input_ids", "logits"))
    with torch.no_grad():
        found = model(ids).logits
        assert torch.equal(found, loaded[0](ids).logits)
    torch.testing.assert_close(found, logits, rtol=0, atol=2e-4)
    assert tokenizer("1+1=", "2")["input_ids"] == loaded[1]("1+1=", "2")["input_ids"]
    assert tokenizer.chat_template == loaded[1].chat_template
    assert tokenizer.response_template == loaded[1].response_template is not None
    assert tokenizer.special_tokens_map == loaded[1].special_tokens_map


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision(loaded: tuple[Any, Any], tmp_path: Path, dtype: torch.dtype) -> None:
    weights = saved(loaded, tmp_path, dtype)
    assert weights.keys() == RELEASE.keys()
    assert {weight.dtype for name, weight in weights.items() if not name.endswith("inv_freq")} == {dtype}
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == dtype
    assert {weight.dtype for weight in loaded[0].parameters()} == {torch.float32}  # the model stays as it was


def test_shards(loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is larger than allowed, and the index names every weight once."""
    monkeypatch.setattr(original, "SHARD_BYTES", 100_000)
    weights = saved(loaded, tmp_path)
    assert weights.keys() == RELEASE.keys() and all(torch.equal(weights[name], RELEASE[name]) for name in weights)
    files = weight_files(tmp_path)
    assert [file.name for file in files] == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, 6)]
    assert all(sum(weight.nbytes for weight in load_file(file).values()) <= 100_000 for file in files)
    index = read_json(tmp_path / INDEX)
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in weights.values())
    check_files(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in loaded[0].state_dict().items())


def test_release_v1_0(release: Path, tmp_path: Path) -> None:
    """Its image tokens are in the settings, and its ids are 20,000 higher; here, 20."""
    source, images = tmp_path / "source", 20
    shutil.copytree(release, source)
    (source / "model.safetensors").unlink()
    config = read_json(source / "config.json")
    moved = {key: value + images for key, value in config.items() if key.endswith("token_id") or key == "vocab_size"}
    (source / "config.json").write_text(json.dumps(config | moved))
    declared = read_json(source / "tokenizer_config.json") | {"num_image_tokens": images}
    (source / "tokenizer_config.json").write_text(json.dumps(declared))
    rows = torch.cat((torch.zeros(images, 64).half(), RELEASE["lm_head.weight"]))
    first = {"lm_head.weight": rows, "transformer.word_embeddings.weight": rows}
    torch.save(RELEASE | first, source / "pytorch_model.bin")
    loaded = glmtune.load(source)
    weights = saved(loaded, tmp_path / "out")
    assert torch.equal(weights["lm_head.weight"], rows)
    assert read_json(tmp_path / "out/config.json").items() >= moved.items()
    again = glmtune.load(tmp_path / "out")[1]
    assert again("1+1=", "2")["input_ids"] == loaded[1]("1+1=", "2")["input_ids"]
    assert again.num_image_tokens == images


def test_one_row_of_positions(loaded: tuple[Any, Any]) -> None:
    """The rotation then spans the whole head, with as many more frequencies."""
    config = ChatGLMConfig.from_dict(loaded[0].config.to_dict() | {"position_encoding_2d": False})
    names = release_weights(AutoModelForCausalLM.from_config(config), torch.float16)
    frequencies = names["transformer.layers.0.attention.rotary_emb.inv_freq"]
    assert torch.equal(frequencies, (1 / 10000.0 ** (torch.arange(0, 16, 2) / 16)).half())
    assert names.keys() == RELEASE.keys()


def test_a_head_of_its_own(release: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(release, tie_word_embeddings=False)
    torch.manual_seed(0)
    model, tokenizer = AutoModelForCausalLM.from_config(config, dtype=torch.float32), glmtune.load(release)[1]
    saved((model, tokenizer), tmp_path, torch.float32)
    again = glmtune.load(tmp_path, dtype="float32")[0]
    assert torch.equal(again.get_output_embeddings().weight, model.get_output_embeddings().weight)


def test_only_chatglm_has_this_layout(loaded: tuple[Any, Any]) -> None:
    original.original_layout(loaded[0].config)
    with pytest.raises(UserError, match=r"--to original: .* ChatGLM-6B, and this is a glm model.*--to merged"):
        original.original_layout(GlmConfig())
