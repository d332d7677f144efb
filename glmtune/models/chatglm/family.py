"""ChatGLM-6B (https://github.com/THUDM/ChatGLM-6B): its classes are in this folder. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glmtune.models.architecture import LinearLayer, plain_sizes
from glmtune.models.families import Family, OriginalLayout, ReleasedFile
from glmtune.models.releases import other_ends
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from torch import Tensor, dtype
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# What the `config.json` and the `tokenizer_config.json` of a release hold.
CONFIG_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "gmask_token_id",
    "hidden_size",
    "inner_hidden_size",
    "layernorm_epsilon",
    "mask_token_id",
    "max_sequence_length",
    "num_attention_heads",
    "num_layers",
    "pad_token_id",
    "position_encoding_2d",
    "use_cache",
    "vocab_size",
)
TOKEN_KEYS = ("bos_token", "eos_token", "end_token", "gmask_token", "mask_token", "pad_token", "unk_token")
TOKENIZER_KEYS = ("do_lower_case", "remove_space", "num_image_tokens", "chat_template")
# Names of the release's own code, which is not part of an export: tools that run it bring it along.
MODEL_CODE = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
}
TOKENIZER_CODE = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}


def sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `Architecture`: LayerNorm, and linear layers with biases."""
    width, heads = values["hidden_size"], values["num_attention_heads"]
    inner = values.get("inner_hidden_size") or 4 * width
    linears = (
        LinearLayer("query_key_value", "attention", width, 3 * width, True),
        LinearLayer("dense", "attention", width, width, True),
        LinearLayer("dense_h_to_4h", "mlp", width, inner, True),
        LinearLayer("dense_4h_to_h", "mlp", inner, width, True),
    )
    max_length = values.get("max_sequence_length", 2048)
    return plain_sizes(values, width, values["num_layers"], heads, linears, 2, max_length)


def check_tokenizer(path: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Compare the ids of the control tokens in the tokenizer with those in the configuration.

    Raises:
        UserError: they differ, or the tokenizer is another model's.
    """
    from glmtune.models.chatglm.tokenization_chatglm import ChatGLMTokenizer

    if not isinstance(tokenizer, ChatGLMTokenizer):
        raise other_ends(path, tokenizer, config)
    ids = {
        tokenizer.gmask_token: config.gmask_token_id,
        tokenizer.bos_token: config.bos_token_id,
        tokenizer.eos_token: config.eos_token_id,
    }
    for token, expected in ids.items():
        if (found := tokenizer.convert_tokens_to_ids(token)) != expected:
            raise UserError(
                f"model.path: {path} mixes two releases: its tokenizer has {token} at {found}, its config.json at "
                f"{expected}. Copy ice_text.model, tokenizer_config.json and config.json from the release that "
                "the weights are of (v1.0 has 150528 tokens, v1.1 130528)."
            )


def release_weights(model: PreTrainedModel, dtype: dtype) -> dict[str, Tensor]:
    """Return every weight that a release holds: the tied head, too, and the rotary frequencies, which nothing reads."""
    import torch

    from glmtune.models.chatglm.modeling_chatglm import ROPE_BASE

    weights = {name: weight.detach().to(dtype) for name, weight in model.state_dict().items()}
    head = model.get_output_embeddings().weight  # type: ignore[union-attr]
    weights["lm_head.weight"] = head.detach().to(dtype).clone()
    rows = 2 if model.config.position_encoding_2d else 1
    width = model.config.head_dim // rows
    frequencies = 1.0 / ROPE_BASE ** (torch.arange(0, width, 2).float() / width)
    for index in range(model.config.num_layers):
        weights[f"transformer.layers.{index}.attention.rotary_emb.inv_freq"] = frequencies.to(torch.float16).clone()
    return {name: weight.contiguous() for name, weight in weights.items()}


def release_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the `config.json` of a release."""
    values = config.to_dict()
    release = {key: values[key] for key in CONFIG_KEYS}
    if not config.tie_word_embeddings:  # of which releases say nothing
        release["tie_word_embeddings"] = False
    return release | {"model_type": "chatglm", "architectures": ["ChatGLMModel"], "auto_map": MODEL_CODE}


def release_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the `tokenizer_config.json` of a release."""
    tokens = {key: str(tokenizer.special_tokens_map.get(key) or tokenizer.init_kwargs[key]) for key in TOKEN_KEYS}
    settings = {key: vars(tokenizer)[key] for key in TOKENIZER_KEYS}
    code = {"tokenizer_class": "ChatGLMTokenizer", "auto_map": TOKENIZER_CODE}
    return tokens | settings | {"padding_side": "left"} | code


ATTENTION, MLP = ("query_key_value", "dense"), ("dense_h_to_4h", "dense_4h_to_h")
CHATGLM = Family(
    model_types=("chatglm",),
    sizes=sizes,
    peft_targets={
        "ADALORA_TARGET": ATTENTION[:1],
        "VBLORA_TARGET": ATTENTION[:1],
        "OSF_TARGET": ATTENTION + MLP,
        "IA3_TARGET": (ATTENTION[0], MLP[1]),
        "IA3_FEEDFORWARD": MLP[1:],
        "LNTUNING_TARGET": ("input_layernorm", "post_attention_layernorm", "final_layernorm"),
    },
    releases=("ChatGLM-6B",),
    own_classes=True,
    template="chatglm",
    released_files=(
        ReleasedFile(
            name="ice_text.model",
            size=2_706_249,
            sha256="5e974d9a69c242ce014c88c2b26089270f6198f3c0b700a887666cd3e816f17e",
            vocab_size=130_528,
        ),
    ),
    release_hint="ChatGLM-6B v1.0 numbers its special tokens 20,000 higher than v1.1.",
    check_tokenizer=check_tokenizer,
    prefix_takes_positions=False,
    reads_original_prefix=True,
    gguf_remedy=(
        "config.json: model_type=chatglm is ChatGLM-6B, and llama.cpp has no such architecture: its positions have "
        "two rows, and it reads a prompt in both directions. Use --to merged or --to original."
    ),
    original_layout=OriginalLayout(release_weights, release_config, release_tokenizer),
)
