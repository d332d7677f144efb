"""GGUF files of the families of today: read by transformers' own reader, and computed by llama.cpp itself.

llama.cpp is asked where it is installed: a new one (`pip install xllamacpp`) has all of them, that of gpt4all's wheel
those that are older than it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families_of_today
import pytest
import torch
from llama_cpp_server import served
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import glmtune
from glmtune.data.encoding import encode_prompt
from glmtune.exports.gguf.file import write_gguf
from glmtune.exports.gguf.source import check_config
from glmtune.models.checkpoint import read_json
from glmtune.runtime import UserError

pytest.importorskip("gguf", reason="needs the package gguf: pip install 'glmtune[gguf]'")

READ_BY_TRANSFORMERS = ["Qwen2.5", "Qwen3", "Gemma 3", "Llama 3.1", "SmolLM2", "Phi-4", "Qwen3-MoE"]
KNOWN_TO_GPT4ALL = ["Llama 3.1", "SmolLM2", "Mistral", "Mixtral", "Qwen2.5", "Phi-4"]
MIXTURES = ["Mixtral", "Qwen3-MoE", "GLM-4.5"]
IDS = [5, 6, 7, 8, 9, 20, 30, 1, 44, 60, 61, 62, 63, 64]
TEXTS = ["What is 57.84?", "  what\n\n is it? ", "一加二 😀", "12345+6"]

Writes = Callable[[str], tuple[Path, Path]]


@pytest.fixture
def write(tmp_path: Path) -> Writes:
    """`write("Qwen3")`: a checkpoint, and the GGUF file of it."""

    def run(family: str) -> tuple[Path, Path]:
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        families_of_today.WRITERS[family](folder)
        write_gguf(folder, tmp_path / "model.gguf", "f32")
        return folder, tmp_path / "model.gguf"

    return run


def of_each(families: list[str], quick: str = "") -> Any:
    """Parametrize a test by families, all of them slow but one."""
    cells = [pytest.param(name, marks=[] if name == quick else [pytest.mark.slow]) for name in families]
    return pytest.mark.parametrize("family", cells)


@of_each(READ_BY_TRANSFORMERS, quick="Qwen3-MoE")
def test_transformers_reads_the_same_weights(family: str, write: Writes) -> None:
    """Names, the order of rows, fused layers, stacked experts, and what is added to norms."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    folder, file = write(family)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    found = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=empty)["tensors"]
    expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert expected.keys() - found.keys() <= {"lm_head.weight"} and found.keys() <= expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(torch.as_tensor(weight).float(), expected[name], rtol=0, atol=1e-6)


@of_each([name for name in families_of_today.WRITERS if name not in MIXTURES], quick="Gemma 3")
def test_it_is_a_checkpoint_again(family: str, write: Writes) -> None:
    """Read back by this package: the same probabilities, and the same tokens in the same template."""
    folder, file = write(family)
    (model, words), (again, same) = glmtune.load(folder), glmtune.load(file)
    with torch.no_grad():
        ids = torch.tensor([IDS])
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    question = [{"role": "user", "content": "1+2= 12.5"}]
    assert encode_prompt(same, question) == encode_prompt(words, question)
    assert [same(text)["input_ids"] for text in TEXTS] == [words(text)["input_ids"] for text in TEXTS]


@of_each(MIXTURES, quick="Mixtral")
def test_a_mixture_is_not_read_back(family: str, write: Writes) -> None:
    _, file = write(family)
    with pytest.raises(UserError, match=r"is a mixture of [48] experts, which is not read from GGUF"):
        glmtune.load(file)


@of_each(list(families_of_today.WRITERS))
def test_llama_cpp_computes_the_same(family: str, write: Writes) -> None:
    """The same tokens of texts and of a question in the template, and the same probabilities."""
    folder, file = write(family)
    ask, words = served(file), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ask("/tokenize", content=text)["tokens"] == words(text, add_special_tokens=False)["input_ids"]
    question = [{"role": "user", "content": "1+2= 12.5"}]
    ids = words.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
    prompt = ask("/apply-template", messages=question)["prompt"]  # without a `bos`, which comes when it is encoded
    found = ask("/tokenize", content=prompt, add_special=words.bos_token is not None, parse_special=True)["tokens"]
    assert words.decode(found).replace(" ", "") == words.decode(ids).replace(" ", "")  # of pieces, blanks are many
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0, -1].double().log_softmax(-1)
    letter = [words.convert_tokens_to_ids("a"), 100]  # an end would be shown without numbers
    answer = ask("/completion", prompt=IDS, n_predict=1, n_probs=5, temperature=0.0, logit_bias=[letter])
    for place in answer["completion_probabilities"][0]["top_logprobs"]:
        assert math.isclose(place["logprob"], float(expected[place["id"]]), abs_tol=0.03)  # keys and values in f16


@of_each(KNOWN_TO_GPT4ALL)
def test_gpt4all_opens_it(family: str, write: Writes) -> None:
    """The llama.cpp of early 2025 takes it; what random weights make it write, gpt4all may end the process at."""
    gpt4all = pytest.importorskip("gpt4all", reason="needs a llama.cpp of early 2025: pip install gpt4all")
    _, file = write(family)
    gpt4all.GPT4All(file.name, model_path=str(file.parent), allow_download=False, device="cpu", n_ctx=128).close()


@pytest.mark.parametrize(
    ("family", "setting", "message"),
    [
        ("gemma3_text", {"layer_types": ["full_attention"] * 6}, "every 6th layer sees everything there"),
        ("gemma3_text", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar=64, head_dim=32 there"),
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30"),
        ("gemma3_text", {"hidden_activation": "silu"}, "hidden_act=silu: llama.cpp computes gelu_pytorch_tanh"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "blocks without experts"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob=false, true there"),
        ("glm4_moe", {"n_group": 2}, "n_group=2, 1 there"),
        (
            "phi3",
            {"rope_parameters": {"rope_type": "longrope"}},
            "rope_type=longrope of a phi3 model",
        ),
        ("mistral", {"hidden_act": "gelu"}, "hidden_act=gelu: llama.cpp computes silu"),
    ],
    ids=str,
)
def test_what_llama_cpp_computes_otherwise_is_refused(family: str, setting: dict[str, Any], message: str) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32, "query_pre_attn_scalar": 32}
    plain = {"model_type": family, **sizes, "norm_topk_prob": True}
    if family == "gemma3_text":
        plain |= {"hidden_activation": "gelu_pytorch_tanh"}
    check_config(plain)
    with pytest.raises(UserError, match=message):
        check_config({**plain, **setting})


def test_routers_keep_their_precision(tmp_path: Path) -> None:
    """In 16 bits they would choose other experts."""
    import gguf

    families_of_today.WRITERS["Mixtral"](tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf", "f16")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.ffn_gate_inp.weight"] == "F32" and kinds["blk.0.ffn_up_exps.weight"] == "F16"
    assert read_json(tmp_path / "config.json")["model_type"] == "mixtral"
