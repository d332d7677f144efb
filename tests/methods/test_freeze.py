"""Freeze: the layers that were chosen learn in place, nothing else does, and nothing else is saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CodeGenConfig, CodeGenForCausalLM, GlmConfig, GlmForCausalLM, LlamaConfig, LlamaForCausalLM

import glmtune
from glmtune.config import ModelSettings, load_recipe
from glmtune.execution import Run
from glmtune.inference.engine import Engine
from glmtune.methods.freeze import WEIGHTS, Freeze, FreezeSettings
from glmtune.models import loading
from glmtune.models.architecture import Architecture
from glmtune.runtime import UserError

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def freeze(**settings: Any) -> Freeze:
    return Freeze(FreezeSettings(**{"name": "freeze"} | settings))


def base(checkpoint: Path, dtype: Any = "float32", bits: Any = 16) -> Any:
    return loading.load_model(ModelSettings(path=str(checkpoint), dtype=dtype, bits=bits))[0]


def learning(model: Any) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.fixture(scope="module")
def freeze_run(tmp_path_factory: pytest.TempPathFactory, train_tiny: Any) -> Run:
    return train_tiny(tmp_path_factory.mktemp("freeze") / "run", "method={name: freeze, num_layers: 1}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_layers": 1}, [3]),
        ({"num_layers": 3}, [1, 2, 3]),
        ({"num_layers": 2, "side": "first"}, [0, 1]),
        ({"layers": [-1, 0, 0]}, [0, 3]),
        ({"layers": [2]}, [2]),
    ],
)
@pytest.mark.parametrize(
    "make", [lambda: LlamaForCausalLM(LlamaConfig(**SIZES)), lambda: GlmForCausalLM(GlmConfig(**SIZES))]
)
def test_which_layers_learn(make: Any, settings: dict[str, Any], expected: list[int]) -> None:
    model = freeze(**settings).apply(make())
    whole = {
        f"model.layers.{index}.{name}" for index in expected for name, _ in model.model.layers[0].named_parameters()
    }
    assert learning(model) == whole


@pytest.mark.parametrize(("part", "kept", "left"), [("attention", "attention.", "mlp."), ("mlp", "mlp.", "attention.")])
def test_halves_of_chatglm(tiny_checkpoint: Path, part: str, kept: str, left: str) -> None:
    names = learning(freeze(num_layers=1, part=part).apply(base(tiny_checkpoint)))
    assert names and all(f"layers.1.{kept}" in name for name in names)
    assert not any(left in name or "norm" in name for name in names)


@pytest.mark.parametrize("part", ["all", "attention", "mlp"])
@pytest.mark.parametrize(
    "make",
    [
        lambda checkpoint: base(checkpoint),
        lambda checkpoint: GlmForCausalLM(GlmConfig(**SIZES)),
        lambda checkpoint: LlamaForCausalLM(LlamaConfig(**SIZES)),
        lambda checkpoint: CodeGenForCausalLM(
            CodeGenConfig(vocab_size=96, n_embd=32, n_layer=3, n_head=4, rotary_dim=4)
        ),
    ],
    ids=["chatglm", "glm", "llama", "codegen"],
)
def test_counts_what_learns(tiny_checkpoint: Path, make: Any, part: str) -> None:
    method = freeze(num_layers=2, part=part)
    model = make(tiny_checkpoint)
    told = method.trainable_spec(Architecture.from_config(model.config.to_dict()))
    names = learning(method.apply(model))
    assert told.parameters == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert told.in_place and told.blocks == 2 and told.norms == any("norm" in n or "ln_" in n for n in names)


def test_learns_in_fp32_and_ends_as_it_was(tiny_checkpoint: Path) -> None:
    method, model = freeze(num_layers=1), base(tiny_checkpoint, "bfloat16")
    method.apply(model)
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == {torch.bfloat16}
    method.finish(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_saves_what_was_trained_alone(freeze_run: Run, tiny_checkpoint: Path) -> None:
    weights = load_file(freeze_run.folder.adapter / WEIGHTS)
    before = dict(base(tiny_checkpoint).named_parameters())
    assert weights.keys() == {name for name in before if ".layers.1." in name}
    assert all(not torch.equal(weight, before[name]) for name, weight in weights.items())


def test_reloads_as_it_was_trained(freeze_run: Run, tiny_checkpoint: Path) -> None:
    prompts = [example.prompt for example in freeze_run.after.examples]
    for arguments in ((freeze_run.folder.path,), (tiny_checkpoint, freeze_run.folder.adapter)):
        model, tokenizer = glmtune.load(*arguments)
        answers = Engine(model, tokenizer).answer(prompts, load_recipe(freeze_run.folder.recipe).generation)
        assert [answer.text for answer in answers] == freeze_run.after.completions


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 9}, r"method\.num_layers=9: the model has 4 layers\. Set at most 4"),
        ({"layers": [4]}, r"no layer 4; the model has 4, 0 to 3, or -4 to -1.*nearest is 3"),
        ({"layers": [-5]}, r"no layer -5.*nearest is -4"),
    ],
)
def test_layers_that_are_not_there(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        freeze(**settings).apply(LlamaForCausalLM(LlamaConfig(**SIZES)))


def test_parts_that_are_not_there() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    for layer in model.model.layers:
        layer.other = nn.Linear(1, 1)
        del layer.mlp
    with pytest.raises(UserError, match=r"method\.part=mlp: .* they have .*self_attn.*Set method\.part=all"):
        freeze(part="mlp").apply(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, weight: (name.replace("attention", "attn"), weight), "another kind of model"),
        (lambda name, weight: (name, weight[:3]), "a model of another size"),
    ],
)
def test_layers_of_another_model(
    freeze_run: Run, tiny_checkpoint: Path, tmp_path: Path, change: Any, message: str
) -> None:
    weights = load_file(freeze_run.folder.adapter / WEIGHTS)
    save_file(dict(change(name, weight) for name, weight in weights.items()), tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=message):
        glmtune.load(tiny_checkpoint, adapter=tmp_path)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_base_is_refused(
    freeze_run: Run, tiny_checkpoint: Path, train_tiny: Any, tmp_path: Path, bits: int
) -> None:
    pytest.importorskip("bitsandbytes")
    with pytest.raises(
        UserError, match=rf"method\.name=freeze changes the weights.*model\.bits={bits}.*lora or ptuning_v2"
    ):
        train_tiny(tmp_path / "run", "method={name: freeze, num_layers: 1}", f"model.bits={bits}")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"stores .* at 8 or 4 bits\. Load it at 16"):
        glmtune.load(tiny_checkpoint, adapter=freeze_run.folder.path, bits=bits)
