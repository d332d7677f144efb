"""GGUF files: that they hold the checkpoint, in the order and under the names that llama.cpp computes with.

llama.cpp itself is most often not here: `logits` computes what its graphs compute, from the file alone, and `pieces`
cuts texts as its SentencePiece does; transformers has a reader of its own for Llama. Where xllamacpp is installed,
which has llama.cpp in it, that is asked as well.
"""

import json
import math
import re
import sys
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_tokenizers import CORPUS, LLAMA3, SIZES, VOCAB_SIZE, byte_level, sentencepiece
from llama_cpp_server import served
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Glm4Config,
    GlmConfig,
    LlamaConfig,
)

from glmtune.exports.gguf import tensors
from glmtune.exports.gguf.file import read_numbers, verify_gguf, write_gguf
from glmtune.exports.gguf.precisions import PRECISIONS
from glmtune.exports.gguf.source import check_config
from glmtune.models.templates import read_preset
from glmtune.runtime import UserError

gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install 'glmtune[gguf]'")

CONFIGS = {"glm": GlmConfig, "glm4": Glm4Config, "llama": LlamaConfig}
TEXTS = ["people of 1234", "  what\n\n is it? ", "philosophy", "你们好 😀", "", "57.84+13.64=71.48"]
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]

Makes = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Makes:
    """`make("llama", sentencepiece, hidden_size=64)`: a checkpoint of random weights."""

    def run(family: str, tokenizer: Any = byte_level, template: str | None = None, **settings: Any) -> Path:
        folder = tmp_path / "checkpoint"
        sizes: dict[str, Any] = {**SIZES, "rms_norm_eps": 1.5625e-7}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[family](**{**sizes, **settings}))
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", ".bias")):  # they would be ones and zeros, which hide mistakes
                torch.nn.init.uniform_(weight, 0.5, 1.5)
        model.save_pretrained(folder)
        words = tokenizer(family)
        words.chat_template = template
        words.save_pretrained(folder)
        return folder

    return run


def fields(file: Path) -> dict[str, Any]:
    """Key -> value of a GGUF file."""
    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}


def logits(file: Path, ids: list[int]) -> Any:
    """What llama.cpp's graphs of these architectures compute from a file, [T, V].

    T tokens, C width, H heads, K key-value heads, D head size. Pairs of neighbouring numbers turn; the first half of a
    fused `ffn_up` is the gate (ggml_swiglu).
    """
    reader = gguf.GGUFReader(file)
    values = fields(file)
    prefix = values["general.architecture"]
    size = {key.removeprefix(f"{prefix}."): value for key, value in values.items()}
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
    heads, shared = size["attention.head_count"], size["attention.head_count_kv"]
    width = size.get("attention.key_length", size["embedding_length"] // heads)

    def norm(x: Any, name: str) -> Any:
        mean = (x**2).mean(-1, keepdims=True) + size["attention.layer_norm_rms_epsilon"]
        return x / np.sqrt(mean) * tensors[f"{name}.weight"]

    def linear(x: Any, name: str) -> Any:
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0)

    def turned(x: Any) -> Any:  # [T, heads, D]
        count = size["rope.dimension_count"]
        angles = np.arange(len(x))[:, None] * size["rope.freq_base"] ** (-np.arange(0, count, 2) / count)
        angles = angles / tensors.get("rope_freqs.weight", 1) / size.get("rope.scaling.factor", 1)
        even, odd = x[..., 0:count:2], x[..., 1:count:2]
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        result = x.copy()
        result[..., 0:count:2], result[..., 1:count:2] = even * cos - odd * sin, odd * cos + even * sin
        return result

    x = tensors["token_embd.weight"][ids]
    for layer in range(size["block_count"]):
        block = f"blk.{layer}."
        h = norm(x, block + "attn_norm")
        q, k, v = (linear(h, block + f"attn_{part}").reshape(len(ids), -1, width) for part in "qkv")
        q, k = turned(q), np.repeat(turned(k), heads // shared, 1)
        weights = np.einsum("thd,shd->hts", q, k) / np.sqrt(width)
        weights = np.where(np.tril(np.ones_like(weights[0])), weights, -np.inf)
        weights = np.exp(weights - weights.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        h = np.einsum("hts,shd->thd", weights, np.repeat(v, heads // shared, 1)).reshape(len(ids), -1)
        h = linear(h, block + "attn_output")
        x = x + (norm(h, block + "post_attention_norm") if prefix == "glm4" else h)
        h = norm(x, block + "ffn_norm")
        up = linear(h, block + "ffn_up")
        gate, up = np.split(up, 2, -1) if prefix != "llama" else (linear(h, block + "ffn_gate"), up)
        h = linear(gate / (1 + np.exp(-gate)) * up, block + "ffn_down")
        x = x + (norm(h, block + "post_ffw_norm") if prefix == "glm4" else h)
    return norm(x, "output_norm") @ tensors.get("output.weight", tensors["token_embd.weight"]).T


def pieces(file: Path, text: str) -> list[int]:
    """Tokens of a text as llama.cpp's tokenizer `llama` makes them, control tokens not looked for."""
    values = {key.removeprefix("tokenizer.ggml."): value for key, value in fields(file).items()}
    ids = {token: index for index, token in enumerate(values["tokens"])}
    own = [token for token, kind in zip(values["tokens"], values["token_type"], strict=True) if kind == 4]
    result, special = [], True
    for part in re.split(f"({'|'.join(map(re.escape, own))})", text):
        if part in own:
            result.append(ids[part])
            special = True
            continue
        symbols = (
            list(((" " if special and values["add_space_prefix"] else "") + part).replace(" ", "▁")) if part else []
        )
        while True:
            joined = [(values["scores"][ids[a + b]], -i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in ids]
            if not joined:
                break
            at = -max(joined)[1]
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        for symbol in symbols:
            result += [ids[symbol]] if symbol in ids else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        special = special and not part
    return result


def transformers_logits(model: Any, ids: list[int]) -> Any:
    """The same from a transformers model."""
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", CONFIGS)
def test_a_file_holds_the_checkpoint(make: Makes, tmp_path: Path, family: str, precision: Any) -> None:
    folder, file = make(family), tmp_path / "out" / f"tiny-{precision}.gguf"
    write_gguf(folder, file, precision)
    verify_gguf(folder, file)
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert {kind for name, kind in kinds.items() if "norm" in name or "bias" in name} == {"F32"}
    others = {kind for name, kind in kinds.items() if not ("norm" in name or "bias" in name or name == "output.weight")}
    assert others == {"q4_k_m": {"Q5_0", "Q8_0"}}.get(precision, {precision.upper()})
    assert kinds["output.weight"] == {"q4_0": "Q8_0", "q4_k_m": "Q8_0"}.get(precision, precision.upper())
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for theirs, ours in (("model.embed_tokens", "token_embd"), ("model.layers.1.mlp.down_proj", "blk.1.ffn_down")):
        stored = next(tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == f"{ours}.weight")
        weight = weights[f"{theirs}.weight"].numpy()
        off = np.abs(gguf.dequantize(stored.data, stored.tensor_type) - weight).max() / np.abs(weight).max()
        bounds = {"f32": 0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 250, "q4_0": 1 / 8, "q4_k_m": 1 / 16}
        assert off <= bounds[precision]


@pytest.mark.parametrize(
    "family, settings",
    [
        ("glm", {"attention_bias": False, "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}}),
        (
            "glm",
            {
                "rope_parameters": {
                    "rope_theta": 1e4,
                    "rope_type": "linear",
                    "factor": 4.0,
                    "partial_rotary_factor": 0.5,
                }
            },
        ),
        ("glm4", {"head_dim": 8, "tie_word_embeddings": True}),
        ("llama", {"head_dim": 32, "tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        (
            "llama",
            {"rope_parameters": LLAMA3},
        ),
    ],
)
def test_llama_cpp_computes_the_same(make: Makes, tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    folder, file = make(family, **settings), tmp_path / "tiny.gguf"
    write_gguf(folder, file, "f32")
    expected = transformers_logits(AutoModelForCausalLM.from_pretrained(folder), IDS)
    np.testing.assert_allclose(logits(file, IDS), expected, atol=1e-4 * np.abs(expected).max())
    tied = settings.get("tie_word_embeddings", False)
    assert ("output.weight" in {tensor.name for tensor in gguf.GGUFReader(file).tensors}) is not tied


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_reads_a_llama_back(make: Makes, tmp_path: Path, tied: bool) -> None:
    folder = make("llama", sentencepiece, tie_word_embeddings=tied)
    write_gguf(folder, tmp_path / "tiny.gguf", "f32")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32)
    expected = transformers_logits(AutoModelForCausalLM.from_pretrained(folder), IDS)
    np.testing.assert_array_equal(transformers_logits(again, IDS), expected)


def test_weights_may_be_in_several_files(make: Makes, tmp_path: Path) -> None:
    folder, file = make("glm"), tmp_path / "tiny.gguf"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink()
    write_gguf(folder, file, "f32")
    assert len(list(folder.glob("*.safetensors"))) > 1
    expected = transformers_logits(AutoModelForCausalLM.from_pretrained(folder), IDS)
    np.testing.assert_allclose(logits(file, IDS), expected, atol=1e-4 * np.abs(expected).max())


def test_rows_that_q8_0_does_not_divide_become_f16(make: Makes, tmp_path: Path) -> None:
    write_gguf(make("llama", intermediate_size=72), tmp_path / "tiny.gguf", "q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16"
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


@pytest.mark.parametrize("family", CONFIGS)
def test_a_byte_level_tokenizer(make: Makes, tmp_path: Path, family: str) -> None:
    folder, file = make(family), tmp_path / "tiny.gguf"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_gguf(folder, file)
    values, tokenizer = fields(file), AutoTokenizer.from_pretrained(folder)
    assert values["tokenizer.ggml.model"] == "gpt2"
    assert values["tokenizer.ggml.pre"] == ("llama-bpe" if family == "llama" else "glm4")
    tokens = values["tokenizer.ggml.tokens"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert tokens[len(tokenizer) :] == [f"[PAD{index}]" for index in range(len(tokenizer), VOCAB_SIZE)]
    kinds = dict(zip(tokens, values["tokenizer.ggml.token_type"], strict=True))
    assert [kinds[text] for text in ("a", "<|endoftext|>", "<tool>", tokens[-1])] == [1, 3, 4, 5]
    assert len(values["tokenizer.ggml.merges"]) == len(
        json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    )
    ends = [
        tokens[values[f"tokenizer.ggml.{end}_token_id"]]
        for end in ("eos", "eot", "eom")
        if f"tokenizer.ggml.{end}_token_id" in values
    ]
    assert ends == ["<|endoftext|>", *(["<|user|>", "<|observation|>"] if family != "llama" else [])]
    assert values["tokenizer.ggml.add_bos_token"] is (family == "llama")
    assert ("tokenizer.ggml.bos_token_id" in values) is (family == "llama")


@pytest.mark.parametrize("family", ["glm", "llama"])
def test_a_sentencepiece_like_tokenizer(make: Makes, tmp_path: Path, family: str) -> None:
    folder, file = make(family, sentencepiece), tmp_path / "tiny.gguf"
    with pytest.warns(UserWarning, match=r"'▁</mark>' out of texts, after which llama.cpp puts a blank"):
        write_gguf(folder, file)
    values, tokenizer = fields(file), AutoTokenizer.from_pretrained(folder)
    assert values["tokenizer.ggml.model"] == "llama"
    assert values["tokenizer.ggml.add_space_prefix"] is True
    assert values["tokenizer.ggml.add_bos_token"] is (family == "llama")
    assert values["tokenizer.ggml.unknown_token_id"] == values["tokenizer.ggml.padding_token_id"] == 0
    tokens = values["tokenizer.ggml.tokens"]
    kinds = dict(zip(tokens, values["tokenizer.ggml.token_type"], strict=True))
    assert [kinds[text] for text in ("<unk>", "</s>", "<0x0A>", "▁", " </mark>", tokens[-1])] == [2, 3, 6, 1, 4, 5]
    for text in [*TEXTS, *CORPUS, "they </mark>"]:
        assert pieces(file, text) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_control_word_gets_brackets(make: Makes, tmp_path: Path) -> None:
    """llama.cpp would find `eop` in `people`."""
    folder, file = make("glm", sentencepiece, read_preset("chatglm3").replace("<sop>", "sop")), tmp_path / "tiny.gguf"
    with pytest.warns(UserWarning):
        write_gguf(folder, file)
    values, tokenizer = fields(file), AutoTokenizer.from_pretrained(folder)
    for word in ("sop", "eop"):
        assert values["tokenizer.ggml.tokens"].index(f"<{word}>") == tokenizer.convert_tokens_to_ids(word)
        assert word not in values["tokenizer.ggml.tokens"]
    messages = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    ours = tokenizer.apply_chat_template(messages, tokenize=False)
    theirs = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=values["tokenizer.chat_template"])
    assert theirs == ours.replace("[gMASK]sop", "[gMASK]<sop>")


@pytest.mark.parametrize("name", ["glm4", "chatml", "plain", "alpaca", "vicuna"])
def test_the_template_says_the_same_without_marks_for_training(make: Makes, tmp_path: Path, name: str) -> None:
    folder, file = make("glm4", byte_level, read_preset(name)), tmp_path / "tiny.gguf"
    write_gguf(folder, file)
    template, tokenizer = fields(file)["tokenizer.chat_template"], AutoTokenizer.from_pretrained(folder)
    assert "{%- generation" not in template
    talk = [{"role": role, "content": f" {role}\n"} for role in ("system", "user", "assistant", "user", "assistant")]
    for messages, prompt in ((talk, False), (talk[:-1], True)):
        ours = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        settings: dict[str, Any] = {"tokenize": False, "add_generation_prompt": prompt, "chat_template": template}
        assert tokenizer.apply_chat_template(messages, **settings) == ours


def test_several_templates_and_metaspace(make: Makes, tmp_path: Path) -> None:
    folder, file = make("llama", sentencepiece), tmp_path / "tiny.gguf"
    change(folder / "tokenizer_config.json", chat_template=[{"name": "default", "template": "plain"}])
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
    change(folder / "tokenizer.json", normalizer=None, pre_tokenizer=metaspace, post_processor=None)
    write_gguf(folder, file)
    values = fields(file)
    assert values["tokenizer.chat_template"] == "plain"
    assert values["tokenizer.ggml.add_space_prefix"] is False
    assert values["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize(
    "part, value, what",
    [
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}, "no name for"),
        ("normalizer", {"type": "NFC"}, "no name for"),
    ],
)
def test_what_llama_cpp_has_no_name_for_is_told(
    make: Makes, tmp_path: Path, part: str, value: dict[str, Any], what: str
) -> None:
    folder, file = make("llama"), tmp_path / "tiny.gguf"
    change(folder / "tokenizer.json", **{part: value})
    with pytest.warns(UserWarning, match=what):
        write_gguf(folder, file)
    assert fields(file)["tokenizer.ggml.pre"] == ("gpt-2" if "use_regex" in value else "llama-bpe")


def test_a_way_to_cut_texts_that_llama_cpp_does_not_have_is_refused(make: Makes, tmp_path: Path) -> None:
    """By its steps; it is not guessed."""
    folder = make("llama")
    steps = [{"type": "Split", "pattern": {"Regex": "[aeiou]"}, "behavior": "Isolated"}, {"type": "ByteLevel"}]
    change(folder / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    with pytest.raises(
        UserError, match=r"no name for its pre_tokenizer Split \+ ByteLevel \('\[aeiou\]'\).*--to merged"
    ):
        write_gguf(folder, tmp_path / "tiny.gguf")


@pytest.mark.parametrize("tied", [False, True])
def test_the_mixture_is_that_of_llama_cpp(make: Makes, tmp_path: Path, tied: bool) -> None:
    """Of 8 layers the first and the last, and each third between, have finer values and ways out."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "tie_word_embeddings": tied}
    write_gguf(make("llama", **sizes), tmp_path / "tiny.gguf", "q4_k_m")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    for name in ("attn_v", "ffn_down"):
        finer = [layer for layer in range(8) if kinds[f"blk.{layer}.{name}.weight"] == "Q6_K"]
        assert finer == [0, 3, 6, 7]
    assert {kinds[f"blk.{layer}.{name}.weight"] for layer in range(8) for name in ("attn_q", "ffn_up")} == {"Q4_K"}
    assert kinds["token_embd.weight"] == ("Q6_K" if tied else "Q4_K") and ("output.weight" in kinds) is not tied


@pytest.mark.parametrize("precision", ["bf16", "q8_0", "q4_0", "q4_k_m"])
def test_a_model_can_be_given_the_numbers_of_a_file(make: Makes, tmp_path: Path, precision: Any) -> None:
    """Back in the order of the checkpoint: what it then computes is what llama.cpp's graph computes from the file."""
    folder, file = make("llama", hidden_size=256, head_dim=64), tmp_path / "tiny.gguf"
    write_gguf(folder, file, precision)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert read_numbers(folder, file, model)
    expected = logits(file, IDS)
    np.testing.assert_allclose(transformers_logits(model, IDS), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("moved, told", [(False, False), (True, True), (None, True)])
def test_an_order_of_merges_that_llama_cpp_cannot_follow_is_told(
    make: Makes, tmp_path: Path, moved: bool | None, told: bool
) -> None:
    folder = make("llama", sentencepiece)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    made = ["".join(pair) for pair in model["merges"]]
    one_of_two = model["merges"].pop(next(at for at, piece in enumerate(made) if piece in made[:at]))
    if moved is not None:
        model["merges"].insert(len(made) - 1 if moved else made.index("".join(one_of_two)), one_of_two)
    change(folder / "tokenizer.json", model=model)
    with pytest.warns(UserWarning) as warned:
        write_gguf(folder, tmp_path / "tiny.gguf")
    assert any("merges in an order" in str(warning.message) for warning in warned) is told


def change(file: Path, **values: Any) -> None:
    """Set values of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("size", [10, 4000, -1])
def test_a_damaged_file_is_told(make: Makes, tmp_path: Path, size: int) -> None:
    folder, file = make("glm"), tmp_path / "tiny.gguf"
    write_gguf(folder, file)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match="no whole GGUF file"):
        verify_gguf(folder, file)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_changed_number_is_told(make: Makes, tmp_path: Path, precision: Any) -> None:
    folder, file = make("llama"), tmp_path / "tiny.gguf"
    write_gguf(folder, file, precision)
    tensor = next(tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == "blk.1.attn_q.weight")
    content = bytearray(file.read_bytes())
    content[tensor.data_offset + 1] ^= 0x10  # the second byte is in the number for f16 and bf16, and in a step for q8_0
    content[tensor.data_offset + 3] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"blk\.1\.attn_q\.weight holds other numbers"):
        verify_gguf(folder, file)


def test_a_checkpoint_that_changed_is_told(make: Makes, tmp_path: Path) -> None:
    folder, file = make("llama"), tmp_path / "tiny.gguf"
    write_gguf(folder, file)
    change(folder / "config.json", rms_norm_eps=1e-5)
    with pytest.raises(UserError, match=r"llama\.attention\.layer_norm_rms_epsilon is 1\.56.*, not 1e-05"):
        verify_gguf(folder, file)
    make("llama", tie_word_embeddings=True)
    with pytest.raises(UserError, match=r"holds 21 tensors, .* makes 20; output\.weight is only in one"):
        verify_gguf(folder, file)
    make("glm")
    with pytest.raises(UserError, match=r"general\.architecture is 'llama', not 'chatglm'"):
        verify_gguf(folder, file)


def test_what_does_not_read_back_is_not_published(make: Makes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "out" / "tiny.gguf"
    encode = tensors.encode_tensor
    monkeypatch.setattr("glmtune.exports.gguf.file.encode_tensor", lambda tensor, kind: encode(tensor, kind) * 0)
    with pytest.raises(UserError, match="holds other numbers"):
        write_gguf(make("glm"), file)
    assert not list(file.parent.iterdir())


def test_numbers_too_large_for_f16_are_told(make: Makes, tmp_path: Path) -> None:
    folder = make("glm")
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.model.embed_tokens.weight.data[3, 4] = -1e5
    model.save_pretrained(folder)
    with pytest.raises(UserError, match=r"token_embd\.weight has numbers up to 1e\+05.*Use precision bf16"):
        write_gguf(folder, tmp_path / "tiny.gguf", "f16")
    write_gguf(folder, tmp_path / "tiny.gguf", "bf16")


@pytest.mark.parametrize(
    "config, reason",
    [
        ({"model_type": "chatglm"}, "no such architecture.*--to merged or --to original"),
        ({"model_type": "chatglm", "ffn_hidden_size": 8}, "original layout.*--to merged first"),
        ({"model_type": "gpt2"}, "model_type=gpt2 .* only .*glm, glm4, .*llama"),
        ({}, "model_type=None"),
        ({"model_type": "glm", "quantization_config": {"load_in_4bit": True}}, "quantization_config=.*16 bits"),
        ({"model_type": "glm", "quantization_bit": 8}, "quantization_bit=8"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "yarn"}}, "rope_type=yarn of a llama .* llama3"),
        ({"model_type": "glm", "rope_scaling": {"type": "llama3"}}, "rope_type=llama3 of a glm .* default, linear"),
        (
            {"model_type": "glm", "hidden_size": 64, "num_attention_heads": 4, "head_dim": 8},
            "4 heads with head_dim=8 do not make hidden_size=64",
        ),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        check_config(config)


def test_what_can_be_written_is_not_refused() -> None:
    for kind in CONFIGS.values():
        check_config(kind().to_dict())


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: change(folder / "config.json", num_hidden_layers=3), "lacks the weight model.layers.2"),
        (lambda folder: change(folder / "config.json", num_hidden_layers=1), "9 weights are not of a llama model"),
        (
            lambda folder: change(folder / "config.json", intermediate_size=64),
            r"is \[96, 64\] in the files, \[64, 64\]",
        ),
        (lambda folder: change(folder / "tokenizer.json", model={"type": "Unigram", "vocab": {"a": 0}}), "no Unigram"),
        (
            lambda folder: (
                change(folder / "tokenizer_config.json", eos_token=None),
                change(folder / "generation_config.json", eos_token_id=None),
            ),
            "no eos_token",
        ),
        (
            lambda folder: change(
                folder / "tokenizer.json",
                added_tokens=[{"id": 600, "content": "x", "special": True, "single_word": False}],
            ),
            "has token 600, config.json says vocab_size=512",
        ),
        (
            lambda folder: change(
                folder / "tokenizer.json",
                added_tokens=[{"id": 500, "content": "[PAD501]", "special": True, "single_word": False}],
            ),
            r"2 tokens are '\[PAD501\]'",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_told(
    make: Makes, tmp_path: Path, spoil: Callable[[Path], Any], reason: str
) -> None:
    folder = make("llama")
    spoil(folder)
    with pytest.raises(UserError, match=reason):
        write_gguf(folder, tmp_path / "tiny.gguf")
    assert not (tmp_path / "tiny.gguf").exists()


def test_the_package_is_asked_for(make: Makes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'glmtune\[gguf\]'"):
        write_gguf(make("glm"), tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    "family, tokenizer, template",
    [
        ("glm", byte_level, "glm4"),
        ("glm", sentencepiece, "chatglm3"),
        ("glm4", byte_level, "glm4"),
        ("llama", byte_level, "plain"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_llama_cpp_itself(make: Makes, tmp_path: Path, family: str, tokenizer: Any, template: str) -> None:
    folder, file = make(family, tokenizer, read_preset(template)), tmp_path / "tiny.gguf"
    write_gguf(folder, file, "f32")
    ask, words = served(file), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "philosophy of people 1234"}]
    prompt = ask("/apply-template", messages=messages)["prompt"]
    ids = words.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ask("/tokenize", content=prompt, add_special=False, parse_special=True)["tokens"] == ids
    for text in TEXTS:
        assert ask("/tokenize", content=text)["tokens"] == words(text, add_special_tokens=False)["input_ids"]
    expected = transformers_logits(AutoModelForCausalLM.from_pretrained(folder), IDS)[-1].astype(np.float64)
    expected -= math.log(np.exp(expected).sum())
    letter = [words.convert_tokens_to_ids("a"), 100]  # no byte and no end, which are shown without numbers
    answer = ask("/completion", prompt=IDS, n_predict=1, n_probs=5, temperature=0.0, logit_bias=[letter])
    for place in answer["completion_probabilities"][0]["top_logprobs"]:
        assert math.isclose(place["logprob"], expected[place["id"]], abs_tol=0.02)  # keys and values in f16
