"""The configuration: what is accepted, what is refused, and the models that are made from it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.chatglm.modeling_chatglm import ChatGLMForCausalLM

# `config.json` as the Hub has it for release v1.1.
RELEASE_1_1: dict[str, Any] = {
    "_name_or_path": "THUDM/chatglm-6b",
    "architectures": ["ChatGLMModel"],
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
    },
    "bos_token_id": 130004,
    "eos_token_id": 130005,
    "mask_token_id": 130000,
    "gmask_token_id": 130001,
    "pad_token_id": 3,
    "hidden_size": 4096,
    "inner_hidden_size": 16384,
    "layernorm_epsilon": 1e-05,
    "max_sequence_length": 2048,
    "model_type": "chatglm",
    "num_attention_heads": 32,
    "num_layers": 28,
    "position_encoding_2d": True,
    "torch_dtype": "float16",
    "transformers_version": "4.23.1",
    "use_cache": True,
    "vocab_size": 130528,
}


def write_config(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(RELEASE_1_1 | changes))
    return folder


def test_release_config_loads_as_the_defaults(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(write_config(tmp_path))
    assert type(config) is ChatGLMConfig
    assert config.dtype == torch.float16 and config.tie_word_embeddings and config.head_dim == 128
    assert (config.num_hidden_layers, config.intermediate_size) == (28, 16384)
    assert config.max_position_embeddings == 2048
    about_files = {"_name_or_path", "architectures", "auto_map", "torch_dtype", "transformers_version"}
    settings = {key: value for key, value in RELEASE_1_1.items() if key not in about_files}
    assert settings.items() <= ChatGLMConfig().to_dict().items()


def test_config_survives_saving(tmp_path: Path) -> None:
    config = ChatGLMConfig(num_layers=3, position_encoding_2d=False, tie_word_embeddings=False)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize(("vocab_size", "parameters"), [(130528, 6_173_286_400), (150528, 6_255_206_400)])
def test_number_of_parameters(vocab_size: int, parameters: int) -> None:
    with torch.device("meta"):
        model = ChatGLMForCausalLM(ChatGLMConfig(vocab_size=vocab_size))
    assert model.num_parameters() == parameters  # the tied head counts once


def test_fresh_weights() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 1000, "hidden_size": 128, "num_layers": 2, "num_attention_heads": 4}
    config = ChatGLMConfig(**sizes, inner_hidden_size=256, gmask_token_id=6, bos_token_id=7)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "layernorm" in name or name.endswith("bias"):
            assert (parameter == float(name.endswith("layernorm.weight"))).all(), name
        else:
            assert parameter.isfinite().all()
            assert parameter.std().item() == pytest.approx(config.initializer_range, rel=0.05), name
    ids = torch.randint(10, 1000, (4, 64))
    ids[:, 20], ids[:, 21] = 6, 7
    assert model.eval()(ids, labels=ids).loss.item() == pytest.approx(math.log(1000), abs=0.3)


@pytest.mark.parametrize("key", ["multi_query_attention", "rmsnorm"])
@pytest.mark.parametrize("auto_class", [AutoConfig, AutoModelForCausalLM])
def test_a_mixture_of_generations_is_refused(tmp_path: Path, auto_class: Any, key: str) -> None:
    """Keys of ChatGLM2-6B in the configuration of ChatGLM-6B."""
    with pytest.raises(ValueError, match=rf"(?s)chatglm.*ChatGLM2-6B or later \(it has {key}\), but lacks kv_channels"):
        auto_class.from_pretrained(write_config(tmp_path, **{key: True}))


@pytest.mark.parametrize(
    ("hidden_size", "two_rows", "fits"),
    [(64, True, True), (66, True, False), (72, True, False), (72, False, True)],
)
def test_head_size_must_split_into_rotary_pairs(hidden_size: int, two_rows: bool, fits: bool) -> None:
    arguments = {"hidden_size": hidden_size, "num_attention_heads": 4, "position_encoding_2d": two_rows}
    if fits:
        assert ChatGLMConfig(**arguments).head_dim == hidden_size // 4
    else:
        with pytest.raises(ValueError, match=f"hidden_size={hidden_size} must be a multiple of 4"):
            ChatGLMConfig(**arguments)
