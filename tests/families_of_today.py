"""Tiny checkpoints of random weights of the families of today, with tokenizers and templates of their kinds.

Sizes are small; what is a family's own is there: fused and tied matrices, norms of heads, sliding windows, experts,
stretched rotations, the expression that cuts texts, control tokens and chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

GOLDEN = Path(__file__).parent / "golden"
TEMPLATES = {file.stem: file for kind in ("foreign", "family") for file in GOLDEN.glob(f"{kind}_templates/*.jinja")}
TEXT = [
    "1+2=3 12.5-7.25=5.25 99*3=297 100/8=12.5 " * 3,
    "What is 57.84 + 13.64? The answer is 71.48.",
    "一加二等于三，请计算。",
]
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
QWEN_CUT, LLAMA_CUT = CONTRACTIONS + WORDS % "", CONTRACTIONS + WORDS % "{1,3}"
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
CONFIGS = {"Gemma3": "Gemma3Text"}  # where the classes of model and configuration have other names
FIRST = 300  # id of the first control token: the pieces of a byte-level vocabulary come before it


def byte_level(folder: Path, controls: Sequence[str], template: str, cuts: Sequence[str], **named: Any) -> None:
    """A BPE over bytes: `cuts` are expressions that cut a text first, `digits`, or nothing, which is GPT-2's way."""
    core = Tokenizer(token_models.BPE())
    steps = [
        pre_tokenizers.Digits(individual_digits=True)
        if cut == "digits"
        else pre_tokenizers.Split(Regex(cut), behavior="isolated")
        for cut in cuts
    ]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not any(cut != "digits" for cut in cuts))
    core.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=FIRST, initial_alphabet=alphabet, show_progress=False)
    )
    core.add_special_tokens(list(controls))
    if bos := named.get("bos_token"):
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    save(core, folder, template, **named)


def byte_fallback(folder: Path, controls: Sequence[str], template: str, prefix: bool, **named: Any) -> None:
    """What becomes of a SentencePiece BPE: control tokens first, then bytes, then pieces with blanks as `▁`."""
    trained = Tokenizer(token_models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=100, show_progress=False))
    learned = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    pairs = [
        (p[:cut], p[cut:]) for p, _ in learned for cut in range(1, len(p)) if {p[:cut], p[cut:]} <= {*dict(learned)}
    ]
    pieces = [*controls, *(f"<0x{byte:02X}>" for byte in range(256)), *(piece for piece, _ in learned)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    core = Tokenizer(token_models.BPE(vocabulary, pairs, unk_token="<unk>", byte_fallback=True))
    before = [normalizers.Prepend("▁")] if prefix else []
    core.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens(list(controls))
    bos = named["bos_token"]
    core.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])])
    save(core, folder, template, unk_token="<unk>", **named)


def save(core: Tokenizer, folder: Path, template: str, **named: Any) -> None:
    """Write a tokenizer as transformers does."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **named)
    tokenizer.chat_template = TEMPLATES[template].read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)


def save_random(kind: str, folder: Path, **config: Any) -> None:
    """Write weights large enough to have something to say; norms and what corrects routers are random, too."""
    torch.manual_seed(0)
    settings = getattr(transformers, f"{CONFIGS.get(kind, kind)}Config")(
        **{**SIZES, "initializer_range": 0.3, **config}
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(settings)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if weight.ndim == 1 and weight.is_floating_point() and not name.endswith("inv_freq"):
                weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(folder)


CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
CHATML_ENDS = {"eos_token_id": FIRST + 2, "pad_token_id": FIRST, "bos_token_id": None}


def qwen(kind: str, template: str = "qwen3", **config: Any) -> Callable[[Path], None]:
    """Qwen2.5 and Qwen3, dense and with experts."""

    def write(folder: Path) -> None:
        byte_level(folder, CHATML, template, [QWEN_CUT], eos_token="<|im_end|>", pad_token="<|endoftext|>")
        save_random(kind, folder, vocab_size=320, **CHATML_ENDS, **config)

    return write


def gemma3(folder: Path) -> None:
    """Gemma 3 of 270M: tied, windows of 8 tokens in five of six layers, a vocabulary larger than the rest."""
    controls = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    byte_fallback(folder, controls, "gemma", prefix=False, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    windows = {"sliding_window": 8, "num_hidden_layers": 6}
    save_random(
        "Gemma3", folder, vocab_size=1024, head_dim=32, query_pre_attn_scalar=32, **windows, eos_token_id=[1, 5]
    )


def llama3(folder: Path) -> None:
    """Llama 3.1: stretched rotations, `<|begin_of_text|>` before a text."""
    controls = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    byte_level(
        folder, controls, "llama3", [LLAMA_CUT], bos_token=controls[0], eos_token="<|eot_id|>", pad_token=controls[1]
    )
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    ends = {"bos_token_id": FIRST, "eos_token_id": [FIRST + 1, FIRST + 4]}
    save_random("Llama", folder, vocab_size=320, rope_parameters=rope, **ends)


def smollm2(folder: Path) -> None:
    """SmolLM2: a tied Llama that cuts digits off one by one."""
    controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    byte_level(folder, controls, "qwen25", ["digits"], eos_token="<|im_end|>", pad_token="<|im_end|>")
    ends = {"bos_token_id": FIRST + 1, "eos_token_id": FIRST + 2, "pad_token_id": FIRST + 2}
    save_random("Llama", folder, vocab_size=320, tie_word_embeddings=True, **ends)


def phi4(folder: Path) -> None:
    """Phi-4: fused queries, keys and values, fused gate and up."""
    controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"]
    byte_level(folder, controls, "phi4", [LLAMA_CUT], eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ends = {"bos_token_id": FIRST, "eos_token_id": FIRST + 2, "pad_token_id": FIRST}
    save_random("Phi3", folder, vocab_size=320, original_max_position_embeddings=256, sliding_window=None, **ends)


def mistral(kind: str, **config: Any) -> Callable[[Path], None]:
    """Mistral and Mixtral of the SentencePiece generation."""

    def write(folder: Path) -> None:
        controls = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
        byte_fallback(folder, controls, "mistral", prefix=True, bos_token="<s>", eos_token="</s>", pad_token="</s>")
        save_random(kind, folder, vocab_size=384, bos_token_id=1, eos_token_id=2, sliding_window=None, **config)

    return write


def glm45(folder: Path) -> None:
    """GLM-4.5: a dense layer, then routed experts beside a shared one; half of each head turns."""
    controls = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
    controls += ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<think>", "</think>", "/nothink"]
    byte_level(folder, controls, "glm45", [LLAMA_CUT], eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    experts = {"n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5}
    ends = {"eos_token_id": [FIRST, FIRST + 7, FIRST + 9], "pad_token_id": FIRST}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    more = {"use_qk_norm": True, "attention_bias": True, "head_dim": 32, "rope_parameters": rope}
    save_random("Glm4Moe", folder, vocab_size=320, **EXPERTS, **experts, **ends, **more)


WRITERS: dict[str, Callable[[Path], None]] = {
    "Qwen2.5": qwen("Qwen2", "qwen25", tie_word_embeddings=True),
    "Qwen3": qwen("Qwen3", head_dim=32, tie_word_embeddings=True),
    "Gemma 3": gemma3,
    "Llama 3.1": llama3,
    "SmolLM2": smollm2,
    "Phi-4": phi4,
    "Mistral": mistral("Mistral"),
    "Qwen3-MoE": qwen("Qwen3Moe", head_dim=32, num_experts=8, norm_topk_prob=True, **EXPERTS),
    "Mixtral": mistral("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "GLM-4.5": glm45,
}
