"""GGUF files as checkpoints: what is written is read back, to number and id; what is foreign is told in a line."""

import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_tokenizers import LLAMA3, byte_level, sentencepiece
from transformers import AutoModelForCausalLM, AutoTokenizer

from glmtune.config import ModelSettings
from glmtune.data.encoding import encode_prompt
from glmtune.models import loading
from glmtune.models.gguf.header import read_header
from glmtune.resolution import resolve
from glmtune.runtime import UserError

gguf = pytest.importorskip("gguf", reason="needs the package gguf: pip install 'glmtune[gguf]'")

FAMILIES = ["glm", "glm4", "llama"]
Makes = Callable[..., tuple[Path, Path]]


def random_texts(count: int) -> list[str]:
    """Texts of digits, letters, blanks, control tokens and what few tokenizers know."""
    rng = random.Random(0)
    pieces = [
        *"0123456789+-=.abehst",
        " ",
        "  ",
        "\n",
        "\t",
        "that ",
        "你好",
        "½",
        "😀",
        "naïve",
        "<tool>",
        "[MASK]",
        "'ll",
    ]
    return ["".join(rng.choices(pieces, k=rng.randrange(30))) for _ in range(count)]


@pytest.mark.parametrize(
    "family, settings",
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "head_dim": 32, "attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": LLAMA3}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
        ("glm", {"attention_bias": True, "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}}),
        ("glm4", {"head_dim": 8, "tie_word_embeddings": True}),
    ],
)
def test_a_written_model_is_read_back_to_the_bit(make: Makes, family: str, settings: dict[str, Any]) -> None:
    folder, file = make(family, **settings)
    expected = AutoModelForCausalLM.from_pretrained(folder)
    model, _ = loading.load_model(ModelSettings(path=str(file), dtype="float32"))
    assert type(model) is type(expected)
    assert model.state_dict().keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected.eval()(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("words", [byte_level, sentencepiece])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_written_tokenizer_gives_the_same_ids(make: Makes, family: str, words: Any) -> None:
    folder, file = make(family, words)
    expected, found = AutoTokenizer.from_pretrained(folder), loading.load_tokenizer(loading.fetch(str(file), False))
    for text in random_texts(300):
        assert found(text)["input_ids"] == expected(text)["input_ids"], text
        if words is byte_level:  # the other has no decoder
            ids = expected(text, add_special_tokens=False)["input_ids"]
            assert found.decode(ids) == expected.decode(ids)
    for role in ("bos", "eos", "unk", "pad"):
        assert getattr(found, f"{role}_token_id") == getattr(expected, f"{role}_token_id")
    assert found.chat_template == expected.chat_template
    assert max(found.get_vocab().values()) == len(found) - 1 == len(expected) - 1


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q5_1", "F16", "BF16"])
def test_blocks_become_floats(make: Makes, tmp_path: Path, kind: str) -> None:
    """Numbers of any type are those of ggml's own reader."""
    _, file = make()
    other = rewritten(file, tmp_path / "other.gguf", kind=kind)
    stored = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(other).tensors
    }
    model, _ = loading.load_model(ModelSettings(path=str(other), dtype="bfloat16"))
    found = model.state_dict()["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(found, torch.tensor(stored["blk.1.ffn_down.weight"].astype(np.float32)).bfloat16())


def rewritten(file: Path, output: Path, kind: str = "F32", tensors: Any = None, **changes: Any) -> Path:
    """Write a GGUF file again with other keys (None: without) and other types of matrices."""
    reader = gguf.GGUFReader(file)
    values = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    writer = gguf.GGUFWriter(output, str(changes.pop("architecture", values["general.architecture"].contents())))
    for key, field in values.items():
        if key == "general.architecture":
            continue
        value = changes.pop(key, field.contents())
        if value is None:
            continue
        of_file = field.types[0] if field.contents() is value else gguf.GGUFValueType.get_type(value)
        inner = field.types[-1] if of_file == gguf.GGUFValueType.ARRAY and field.contents() is value else None
        writer.add_key_value(key, value, of_file, inner)
    for key, value in changes.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        if tensors is not None and tensor.name not in tensors:
            continue
        own = gguf.GGMLQuantizationType[kind if len(tensor.shape) > 1 else "F32"]
        data = gguf.quants.quantize(gguf.dequantize(tensor.data, tensor.tensor_type), own)
        writer.add_tensor(tensor.name, data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return output


def test_a_file_and_its_folder_are_one_model(make: Makes) -> None:
    _, file = make(precision="f16")
    by_file, by_folder = resolve(file), resolve(file.parent)
    assert by_file.place == by_folder.place == str(file)
    assert by_file.fingerprint == by_folder.fingerprint
    assert by_file.values["dtype"] == "float16"
    assert by_file.architecture.parameters == by_file.load()[0].num_parameters()
    assert not by_file.is_remote
    for name in ("other.gguf", "UPPER.GGUF", "sha256-0123"):  # the last is how Ollama names them
        file = file.rename(file.with_name(name))
        assert resolve(file).fingerprint == by_file.fingerprint
        assert resolve(file).tokenizer.eos_token == "<|endoftext|>"


def test_sizes_are_known_without_torch(make: Makes, monkeypatch: pytest.MonkeyPatch) -> None:
    _, file = make("glm4")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torch", "transformers")]:
        monkeypatch.setitem(sys.modules, name, None)
    assert resolve(file).architecture.num_layers == 2


def split(file: Path, parts: int) -> list[Path]:
    """Write a file as llama-gguf-split does."""
    names = [tensor.name for tensor in gguf.GGUFReader(file).tensors]
    made = []
    for number in range(parts):
        part = file.with_name(f"tiny-{number + 1:05d}-of-{parts:05d}.gguf")
        counts = {"split.no": number, "split.count": parts, "split.tensors.count": len(names)}
        made.append(rewritten(file, part, tensors=names[number::parts], **counts))
    return made


def test_parts_are_one_model(make: Makes) -> None:
    _, file = make()
    expected = loading.load_model(ModelSettings(path=str(file), dtype="float32"))[0].state_dict()
    parts = split(file, 3)
    file.unlink()
    for named in (parts[0], parts[2], file.parent):
        found = loading.load_model(ModelSettings(path=str(named), dtype="float32"))[0].state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    parts[1].unlink()
    with pytest.raises(UserError, match=r"lacks 1 of its 3 parts: tiny-00002-of-00003\.gguf\. Copy or download"):
        resolve(parts[0])
    only = parts[0].rename(file.with_name("first.gguf"))
    parts[2].unlink()
    with pytest.raises(UserError, match="is one of 3 parts, which are found by their names"):
        resolve(only)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architecture": "mamba2"}, "general.architecture=mamba2 is none that is read from GGUF. Take the release"),
        ({"architecture": "clip"}, "the part of a model that sees images, without the model. Name the file beside it"),
        ({"general.type": "adapter"}, "a LoRA adapter, no model. Name the model, and train from the adapter's folder"),
        ({"general.type": "imatrix"}, "a record of what matters"),
        ({"llama.block_count": None}, "does not say llama.block_count, which its model needs"),
        ({"llama.block_count": -3}, "num_hidden_layers is '-3', and must be a whole number"),
        ({"llama.embedding_length": "wide"}, "llama.embedding_length is 'wide', and must be of type int"),
        ({"llama.expert_count": 8}, "a mixture of 8 experts"),
        ({"llama.rope.scaling.type": "longrope"}, "scaling.type=longrope is not read"),
        ({"llama.rope.freq_base": float("nan")}, "rope.freq_base is nan"),
        ({"llama.rope.freq_base": float("inf")}, "rope.freq_base is inf"),
        ({"llama.rope.dimension_count": 0}, "rope.dimension_count is 0, and a head has"),
        ({"llama.attention.key_length": 0}, "head_dim is '0', .* Take other.gguf of the release again"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "layer_norm_rms_epsilon is 0.0. Copy or download"),
        ({"tokenizer.ggml.tokens": None}, "its tokenizer is incomplete: it has no tokens. Take another file"),
        ({"tokenizer.ggml.merges": None}, "its tokenizer is incomplete: it has no merges"),
        ({"tokenizer.ggml.merges": ["zz qq"]}, "its merge zz qq needs the token 'zz', which it lacks"),
        ({"tokenizer.ggml.tokens": ["<s>", "a", "b", "a"]}, "its tokens number 1 and 3 are both 'a'"),
        ({"tokenizer.ggml.token_type": [1, 2, 3]}, "512 tokens have 3 types"),
        ({"tokenizer.ggml.eos_token_id": None}, "it names no token that ends an answer"),
        ({"tokenizer.ggml.eos_token_id": 512}, "its eos token is number 512 of 512"),
        ({"tokenizer.ggml.bos_token_id": None}, "it puts a bos token around texts .add_bos_token., and names none"),
        (
            {"tokenizer.ggml.model": "bert"},
            "tokenizer.ggml.model=bert is none that is read from GGUF, only gpt2 and llama",
        ),
        (
            {"tokenizer.ggml.pre": "llama-pbe"},
            "pre=llama-pbe: texts are cut .* not known here.* Did you mean 'llama-bpe'",
        ),
        ({"tensors": ["token_embd.weight", "output_norm.weight"]}, "lacks .* weights that its config.json asks for"),
    ],
)
def test_what_is_foreign_is_told_in_a_line(make: Makes, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    _, file = make()
    other = rewritten(file, tmp_path / "other.gguf", **changes)
    with pytest.raises(UserError, match=message) as caught:
        resolve(other).load()
    assert "\n" not in str(caught.value)
    assert str(other) in str(caught.value)


def test_two_files_in_a_folder(make: Makes) -> None:
    _, file = make()
    file.with_name("more.gguf").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"holds 2 GGUF files: more\.gguf, tiny\.gguf\. Name one of them"):
        resolve(file.parent)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file: .*none\.gguf\."):
        resolve(None, [f"model.path={tmp_path / 'none.gguf'}"])
    with pytest.raises(UserError, match=r"no run, adapter, checkpoint or recipe at .*none\.gguf\."):
        resolve(tmp_path / "none.gguf")


def test_a_type_of_blocks_that_nobody_knows(make: Makes) -> None:
    _, file = make()
    content = bytearray(file.read_bytes())
    place = content.index(b"blk.0.ffn_down.weight") + len(b"blk.0.ffn_down.weight") + 4 + 16
    content[place : place + 4] = struct.pack("<I", 4)  # Q4_2, which was given up
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"blk\.0\.ffn_down\.weight is stored as ggml's type 4, .* Q8_0 or Q4_K_M"):
        resolve(file)
    content[place : place + 4] = struct.pack("<I", 26)  # I32, which are no floats
    file.write_bytes(content)
    with pytest.raises(UserError, match="is stored as I32, which cannot be made into floats here"):
        resolve(file).load()


def test_a_way_to_cut_texts_that_is_not_said(make: Makes, tmp_path: Path) -> None:
    _, file = make()
    with pytest.warns(UserWarning, match="does not say how texts are cut into words"):
        loading.fetch(str(rewritten(file, tmp_path / "other.gguf", **{"tokenizer.ggml.pre": None})), False)


def test_a_library_that_is_missing(make: Makes, monkeypatch: pytest.MonkeyPatch) -> None:
    _, file = make()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"needs the package gguf\. Install it: pip install 'glmtune\[gguf\]'"):
        read_header(file)


def test_the_template_is_weighed_as_others_are(make: Makes, tmp_path: Path) -> None:
    _, file = make()
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    hostile = rewritten(file, tmp_path / "other.gguf", **{"tokenizer.chat_template": endless})
    tokenizer = loading.load_tokenizer(loading.fetch(str(hostile), False))
    with pytest.raises(UserError, match="template"):
        encode_prompt(tokenizer, "1+1=")
