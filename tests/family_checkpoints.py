"""Tiny checkpoints of random weights in the layouts in which the families are published."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families_of_today
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as token_models
from transformers import (
    CodeGenConfig,
    CodeGenForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from glmtune.models.quantization import pack

GOLDEN = Path(__file__).parent / "golden"
TEXT = [
    "1+2=3 12.5-7.25=5.25 99*3=297 100/8=12.5 " * 3,
    "What is 57.84 + 13.64? The answer is 71.48.",
    "一加二等于三，请计算。",
]
IMAGE_TOKENS = 20  # v1.0 has 20,000
GLM4_CONTROLS = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


def write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values))


def chatglm(folder: Path, **config: Any) -> dict[str, torch.Tensor]:
    """Configuration and tokenizer of ChatGLM-6B v1.1, and the weights, which are not written."""
    values = json.loads((GOLDEN / "glm1/config.json").read_text())
    values["auto_map"] = {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"}
    write_json(folder / "config.json", values | config)
    declared = json.loads((GOLDEN / "tokenizer/tokenizer_config.json").read_text())
    declared["auto_map"] = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}
    write_json(folder / "tokenizer_config.json", declared)
    shutil.copy(GOLDEN / "tokenizer/toy.model", folder / "ice_text.model")
    return load_file(GOLDEN / "glm1/model.safetensors")


def chatglm_v11(folder: Path) -> None:
    """Sharded pickles, as the release has them."""
    weights = chatglm(folder)
    names = sorted(weights)
    files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for index, file in enumerate(files):
        torch.save({name: weights[name] for name in names[index::2]}, folder / file)
    index = {name: files[place % 2] for place, name in enumerate(names)}
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": index})


def chatglm_v10(folder: Path) -> None:
    """Ids after those of the image tokens, a tokenizer file of text pieces alone, and `<eop>` beside `</s>`."""
    ids = {"bos_token_id": 172, "eos_token_id": 173, "mask_token_id": 168, "gmask_token_id": 169, "pad_token_id": 3}
    moved = {name: index + IMAGE_TOKENS for name, index in ids.items()}
    weights = chatglm(folder, vocab_size=512 + IMAGE_TOKENS, **moved)
    images = torch.randn(IMAGE_TOKENS, 64, generator=torch.Generator().manual_seed(0)).half()
    for name in ("transformer.word_embeddings.weight", "lm_head.weight"):
        weights[name] = torch.cat((images, weights[name]))
    torch.save(weights, folder / "pytorch_model.bin")
    declared = json.loads((folder / "tokenizer_config.json").read_text())
    del declared["num_image_tokens"], declared["end_token"]
    write_json(folder / "tokenizer_config.json", declared | {"eos_token": "</s>", "eop_token": "<eop>"})
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((GOLDEN / "tokenizer/toy.model").read_bytes())
    del proto.pieces[168:]
    proto.trainer_spec.byte_fallback = False
    (folder / "ice_text.model").write_bytes(proto.SerializeToString())


def chatglm_packed(bits: int) -> Callable[[Path], None]:
    """`chatglm-6b-int8` or `-int4`."""

    def write(folder: Path) -> None:
        weights = chatglm(folder, quantization_bit=bits)
        for name, weight in list(weights.items()):
            if weight.ndim == 2 and ".layers." in name:
                weights[name], weights[f"{name}_scale"] = pack(weight, bits)
        torch.save(weights, folder / "pytorch_model.bin")

    return write


def later_generation(folder: Path, vocabulary: int, **config: Any) -> dict[str, torch.Tensor]:
    """Configuration of ChatGLM2-6B and later, and weights under their names."""
    values = json.loads((GOLDEN / "glm2_glm3/config.json").read_text())
    values["auto_map"] = {"AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration"}
    write_json(folder / "config.json", values | {"padded_vocab_size": vocabulary, **config})
    weights = load_file(GOLDEN / "glm2_glm3/model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in ("transformer.embedding.word_embeddings.weight", "transformer.output_layer.weight"):
        weights[name] = torch.randn(vocabulary, 64, generator=generator).half()
    return weights


def sentencepiece_release(roles: bool) -> Callable[[Path], None]:
    """ChatGLM2-6B, or ChatGLM3-6B, whose files name its roles."""

    def write(folder: Path) -> None:
        (folder / "text.txt").write_text("\n".join(TEXT))
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text.txt"),
            model_prefix=str(folder / "tokenizer"),
            model_type="bpe",
            vocab_size=340,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
        (folder / "text.txt").unlink()
        declared = {
            "tokenizer_class": "ChatGLMTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_chatglm.X", None]},
        }
        write_json(folder / "tokenizer_config.json", declared)
        names = "['<|system|>', '<|user|>']" if roles else "['sop', 'eop']"
        (folder / "tokenization_chatglm.py").write_text(f"raise SystemExit('never run: {names}')".replace("'", '"'))
        torch.save(later_generation(folder, 384), folder / "pytorch_model.bin")

    return write


def byte_level_bpe(size: int) -> Tokenizer:
    """A BPE over bytes."""
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def glm4_9b(folder: Path) -> None:
    """A tiktoken file, with the control tokens in `tokenizer_config.json`."""
    bytes_of = {character: byte for byte, character in bytes_to_unicode().items()}
    vocabulary = byte_level_bpe(300).get_vocab()
    ranked = sorted(vocabulary.items(), key=lambda item: item[1])
    lines = [f"{base64.b64encode(bytes(bytes_of[c] for c in token)).decode()} {rank}" for token, rank in ranked]
    (folder / "tokenizer.model").write_text("\n".join(lines) + "\n")
    first = len(lines)
    controls = {str(first + i): {"content": token} for i, token in enumerate([*GLM4_CONTROLS, *ROLES])}
    declared = {"tokenizer_class": "ChatGLM4Tokenizer", "auto_map": {"AutoTokenizer": ["tokenization_chatglm.X", None]}}
    write_json(folder / "tokenizer_config.json", declared | {"added_tokens_decoder": controls})
    ends = {"eos_token_id": [first, first + 7, first + 9], "pad_token_id": first}
    weights = later_generation(folder, 320, rope_ratio=500, layernorm_epsilon=1.5625e-07, **ends)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def fast_tokenizer(folder: Path, controls: list[str], first: str | None = None, **named: str) -> None:
    """A tokenizer as transformers saves it."""
    tokenizer = byte_level_bpe(300)
    tokenizer.add_special_tokens(controls)
    if first is not None:
        from tokenizers.processors import TemplateProcessing

        tokenizer.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 300)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)


def save_random(kind: Any, config: Any, folder: Path) -> None:
    """Weights large enough to have something to say."""
    torch.manual_seed(0)
    config.initializer_range = 0.3
    kind(config).save_pretrained(folder)


SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}


def glm4_0414(folder: Path) -> None:
    fast_tokenizer(folder, [*GLM4_CONTROLS, *ROLES], eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    ends = {"eos_token_id": [300, 307, 309], "pad_token_id": 300}
    config = Glm4Config(
        **SIZES, vocab_size=320, num_key_value_heads=2, head_dim=16, max_position_embeddings=256, **ends
    )
    save_random(Glm4ForCausalLM, config, folder)


def llama(folder: Path) -> None:
    fast_tokenizer(folder, ["<s>", "</s>"], first="<s>", bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(**SIZES, vocab_size=320, num_key_value_heads=2, bos_token_id=300, eos_token_id=301)
    save_random(LlamaForCausalLM, config, folder)


def codegen(folder: Path) -> None:
    fast_tokenizer(folder, ["<|endoftext|>"], eos_token="<|endoftext|>")
    sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "n_ctx": 256, "rotary_dim": 16}
    config = CodeGenConfig(**sizes, vocab_size=320, bos_token_id=300, eos_token_id=300, tie_word_embeddings=False)
    save_random(CodeGenForCausalLM, config, folder)


WRITERS: dict[str, Callable[[Path], None]] = {
    "ChatGLM-6B v1.0": chatglm_v10,
    "ChatGLM-6B v1.1": chatglm_v11,
    "ChatGLM-6B-INT8": chatglm_packed(8),
    "ChatGLM-6B-INT4": chatglm_packed(4),
    "ChatGLM2-6B": sentencepiece_release(roles=False),
    "ChatGLM3-6B": sentencepiece_release(roles=True),
    "GLM-4-9B": glm4_9b,
    "GLM-4-0414": glm4_0414,
    "Llama": llama,
    "CodeGen": codegen,
    **families_of_today.WRITERS,
}
