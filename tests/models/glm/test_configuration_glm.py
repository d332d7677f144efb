"""The configuration of ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B, in transformers' words; what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GlmConfig, GlmForCausalLM

from glmtune.models import loading
from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.chatglm.modeling_chatglm import ChatGLMForCausalLM
from glmtune.models.glm.configuration_glm import EXPECTED, OriginalGlmConfig, translate_config
from glmtune.models.glm.family import ORIGINAL_KEYS, legacy_keys
from glmtune.runtime import UserError

GOLDEN = Path(__file__).parents[2] / "golden"
ORIGINAL: dict[str, Any] = json.loads((GOLDEN / "glm2_glm3/config.json").read_text())
# What the releases say otherwise than the tiny one: their sizes, and GLM-4-9B's numbers of its own.
CHATGLM2_6B = ORIGINAL | {
    "_name_or_path": "THUDM/chatglm2-6b",
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "num_layers": 28,
    "padded_vocab_size": 65024,
    "seq_length": 32768,
    "torch_dtype": "float16",
}
GLM4_9B_CHAT = CHATGLM2_6B | {
    "_name_or_path": "THUDM/glm-4-9b-chat",
    "eos_token_id": [151329, 151336, 151338],
    "layernorm_epsilon": 1.5625e-07,
    "num_layers": 40,
    "pad_token_id": 151329,
    "padded_vocab_size": 151552,
    "rope_ratio": 500,
    "seq_length": 131072,
    "torch_dtype": "bfloat16",
}


def read(folder: Path, values: dict[str, Any]) -> Any:
    """The configuration that transformers makes of a `config.json`."""
    (folder / "config.json").write_text(json.dumps(values))
    return AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize(("values", "parameters"), [(CHATGLM2_6B, 6_243_584_000), (GLM4_9B_CHAT, 9_399_951_360)])
def test_release(tmp_path: Path, values: dict[str, Any], parameters: int) -> None:
    """Every number has its place, and they make a model of the release's size."""
    config = read(tmp_path, values)
    assert isinstance(config, GlmConfig) and config.architectures == ["GlmForCausalLM"]
    found = {
        "ffn_hidden_size": config.intermediate_size,
        "hidden_size": config.hidden_size,
        "kv_channels": config.head_dim,
        "layernorm_epsilon": config.rms_norm_eps,
        "multi_query_group_num": config.num_key_value_heads,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "padded_vocab_size": config.vocab_size,
        "seq_length": config.max_position_embeddings,
        "add_qkv_bias": config.attention_bias,
        **{key: vars(config)[key] for key in ("eos_token_id", "pad_token_id", "tie_word_embeddings", "use_cache")},
    }
    assert found == {key: values[key] for key in found}
    assert str(config.dtype) == f"torch.{values['torch_dtype']}"
    rope = {"rope_type": "default", "rope_theta": 10000.0 * values.get("rope_ratio", 1), "partial_rotary_factor": 0.5}
    assert config.rope_parameters == rope
    with torch.device("meta"):
        model = GlmForCausalLM(GlmConfig.from_dict(config.to_dict()))
    assert model.num_parameters() == parameters


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"multi_query_attention": False}, {"num_key_value_heads": 4}),
        ({"multi_query_group_num": 1}, {"num_key_value_heads": 1}),
        ({"add_qkv_bias": False}, {"attention_bias": False}),
        ({"tie_word_embeddings": True}, {"tie_word_embeddings": True}),
        ({"eos_token_id": [7, 8]}, {"eos_token_id": [7, 8]}),
        ({"attention_dropout": 0.25}, {"attention_dropout": 0.25}),
        ({"quantization_bit": 0, "vision_config": None, "pre_seq_len": None}, {}),
    ],
)
def test_other_values(tmp_path: Path, changes: dict[str, Any], found: dict[str, Any]) -> None:
    config = read(tmp_path, ORIGINAL | changes).to_dict()
    assert config.items() >= found.items()
    unchanged = read(tmp_path, ORIGINAL).to_dict()
    assert {key for key in config if config[key] != unchanged[key]} == set(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({key: not value}, f"{key}={not value} in config.json: ChatGLM2-6B.*{value}")
            for key, value in EXPECTED.items()
        ),
        ({"quantization_bit": 4}, "quantization_bit=4 in config.json: .*the 16-bit release, with model.bits=8 or 4"),
        ({"vision_config": {"width": 1}}, "vision_config in config.json: models that see"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, ORIGINAL | changes)
    with pytest.raises(UserError, match=message):
        loading.load_config(str(tmp_path))


@pytest.mark.parametrize("missing", [["kv_channels"], ["ffn_hidden_size", "padded_vocab_size"], ["num_layers"]])
def test_missing_keys_are_told(tmp_path: Path, missing: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"it has .*rmsnorm.*but lacks (\w+, )?{', '.join(missing)}\. Copy"):
        read(tmp_path, {key: value for key, value in ORIGINAL.items() if key not in missing})


@pytest.mark.parametrize("missing", ["multi_query_group_num", "seq_length"])
def test_other_missing_keys_are_told(tmp_path: Path, missing: str) -> None:
    with pytest.raises(ValueError, match=f"but lacks {missing}"):
        read(tmp_path, {key: value for key, value in ORIGINAL.items() if key != missing})


def test_no_foreign_ids_where_the_original_names_none(tmp_path: Path) -> None:
    config = read(tmp_path, {key: value for key, value in ORIGINAL.items() if not key.endswith("_token_id")})
    named = [config.pad_token_id, *(config.eos_token_id if isinstance(config.eos_token_id, list) else [])]
    assert all(index is None or index < config.vocab_size for index in named)
    GlmForCausalLM(GlmConfig.from_dict(config.to_dict()))  # an embedding cannot pad with a row that it lacks


@pytest.mark.parametrize("name", ["chatglm-6b", "chatglm2-6b", "glm-4-9b-chat"])
@pytest.mark.parametrize(("golden", "kind"), [("glm1", ChatGLMForCausalLM), ("glm2_glm3", GlmForCausalLM)])
def test_the_config_tells_and_never_the_name(tmp_path: Path, golden: str, kind: type, name: str) -> None:
    folder = tmp_path / "THUDM" / name
    folder.mkdir(parents=True)
    shutil.copy(GOLDEN / golden / "model.safetensors", folder)
    values = json.loads((GOLDEN / golden / "config.json").read_text())
    assert values["model_type"] == "chatglm"
    (folder / "config.json").write_text(json.dumps(values | {"_name_or_path": f"THUDM/{name}"}))
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is kind
    is_first = kind is ChatGLMForCausalLM
    assert type(loading.load_config(str(folder))) is (ChatGLMConfig if is_first else OriginalGlmConfig)


@pytest.mark.parametrize("key", ORIGINAL_KEYS)
def test_each_key_of_a_later_generation_tells(tmp_path: Path, key: str) -> None:
    """One of them is enough: what lacks the others is damaged, and never taken for ChatGLM-6B."""
    first = json.loads((GOLDEN / "glm1/config.json").read_text())
    with pytest.raises(ValueError, match=rf"is of ChatGLM2-6B or later \(it has {key}\), but lacks"):
        read(tmp_path, first | {key: ORIGINAL[key]})


@pytest.mark.parametrize("values", [ORIGINAL, CHATGLM2_6B, GLM4_9B_CHAT], ids=["tiny", "ChatGLM2-6B", "GLM-4-9B"])
def test_legacy_keys(values: dict[str, Any]) -> None:
    """There and back again; also from what transformers saves."""
    kept = {key: values[key] for key in ("layernorm_epsilon", "seq_length")}
    expected = {"rope_ratio": values.get("rope_ratio", 1), **kept}
    assert legacy_keys(translate_config(values)) == expected
    assert legacy_keys(GlmConfig(**translate_config(values)).to_dict()) == expected


def test_config_survives_saving(tmp_path: Path) -> None:
    """Saved, it is transformers' own: the next reader needs nothing of the original."""
    config = read(tmp_path, GLM4_9B_CHAT)
    config.save_pretrained(tmp_path / "saved")
    again = AutoConfig.from_pretrained(tmp_path / "saved")
    assert type(again) is GlmConfig
    assert again.to_diff_dict() == config.to_diff_dict()
