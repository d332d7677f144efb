"""P-Tuning v2: what the original code computed, before and after saving, and the original's own files."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GlmConfig, LlamaConfig

import glmtune
from glmtune.methods.ptuning_v2 import PTuningV2, PTuningV2Settings
from glmtune.models.architecture import Architecture
from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.runtime import UserError

GLM1 = Path(__file__).parents[1] / "golden" / "glm1"
PREFIX = "transformer.prefix_encoder."
NAMES = {False: "noproj", True: "proj"}

both = pytest.mark.parametrize("projection", [False, True])


def golden(projection: bool) -> dict[str, Tensor]:
    """What the original code computed in fp32 without dropout."""
    with np.load(GLM1 / f"ptuning_{NAMES[projection]}.npz") as arrays:
        return {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays}


def weights(projection: bool) -> dict[str, Tensor]:
    return load_file(GLM1 / f"ptuning_{NAMES[projection]}.safetensors")


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(GLM1, dtype=torch.float32)


def method(projection: bool = False, **settings: Any) -> PTuningV2:
    values = {"num_virtual_tokens": 8, "dropout": 0.0, "prefix_projection": projection, **settings}
    return PTuningV2(PTuningV2Settings(name="ptuning_v2", **values))


def peft_name(name: str) -> str:
    return name.removeprefix(PREFIX).replace("trans.", "transform.")


def applied(model: Any, projection: bool) -> Any:
    """The method on a model, with the golden weights."""
    model = method(projection).apply(model)
    own = {peft_name(name): tensor for name, tensor in weights(projection).items()}
    model.prompt_encoder["default"].load_state_dict(own)
    return model


@pytest.fixture
def original(tmp_path: Path) -> Callable[..., Path]:
    """`original(True, pre_seq_len=9, binary=True)`: a directory as the original scripts leave it."""

    def write(projection: bool, tensors: dict | None = None, binary: bool = False, **config: Any) -> Path:
        values = json.loads((GLM1 / "config.json").read_text())
        values |= {"pre_seq_len": 8, "prefix_projection": projection, **config}
        (tmp_path / "config.json").write_text(json.dumps(values))
        tensors = weights(projection) if tensors is None else tensors
        if binary:
            torch.save(tensors, tmp_path / "pytorch_model.bin")
        else:
            save_file(tensors, tmp_path / "model.safetensors")
        return tmp_path

    return write


def close(found: Tensor, expected: Tensor, atol: float = 2e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@torch.no_grad()
def check(model: Any, projection: bool) -> None:
    """Logits, cached and not, and greedy tokens are those of the original."""
    expected = golden(projection)
    for case in ("single_gmask", "single_mask"):
        close(model(input_ids=expected[f"{case}.input_ids"]).logits, expected[f"{case}.logits"])
    padding = {
        "input_ids": expected["leftpad_batch.input_ids"],
        "attention_mask": (~expected["leftpad_batch.attention_mask"][:, 0, -1]).long(),
    }
    close(model(**padding).logits[:, -1], expected["leftpad_batch.logits_last"])
    found = model.generate(
        input_ids=expected["greedy.input_ids"],
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(found.sequences, expected["greedy.sequences"])
    close(torch.stack(found.logits, 1), expected["greedy.step_logits"])


@both
def test_answers_as_the_original(projection: bool, tmp_path: Path) -> None:
    model = applied(base(), projection).eval()
    check(model, projection)
    keys_and_values = golden(projection)["prefix_kv"]  # (L, 2, P, H, D)
    for layer, expected in zip(model.get_prompt(1).layers, keys_and_values, strict=True):
        close(torch.stack((layer.keys[0], layer.values[0])).transpose(1, 2), expected, atol=1e-6)
    model = method(projection).finish(model)
    check(model, projection)
    method(projection).save_weights(model, tmp_path)
    PTuningV2.check(tmp_path, method().settings.model_dump())
    check(PeftModel.from_pretrained(base(), str(tmp_path)), projection)


@both
@pytest.mark.parametrize("checkpointing", ["off", "before", "after"])
def test_learns_as_the_original(projection: bool, checkpointing: str) -> None:
    model, expected = base(), golden(projection)
    if checkpointing == "before":
        model.gradient_checkpointing_enable()
    model = applied(model, projection)
    if checkpointing == "after":
        model.base_model.gradient_checkpointing_enable()
    assert model.base_model.is_gradient_checkpointing == (checkpointing != "off")
    loss = model.train()(input_ids=expected["train.input_ids"], labels=expected["train.labels"]).loss
    loss.backward()
    close(loss, expected["train.loss"], atol=1e-5)
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    gradients = {name: tensor for name, tensor in expected.items() if "grad." in name}
    assert len(found) == len(gradients)
    for name, gradient in gradients.items():
        own = found[f"prompt_encoder.default.{peft_name(name.removeprefix('train.grad.'))}"]
        close(own, gradient, atol=1e-5 * max(1.0, gradient.abs().max()))


@both
@pytest.mark.parametrize("binary", [False, True])
def test_reads_original_prefixes(projection: bool, binary: bool, original: Callable[..., Path]) -> None:
    folder = original(projection, binary=binary)
    assert PTuningV2.holds(folder)
    PTuningV2.check(folder, method().settings.model_dump())
    model = PTuningV2.attach(base(), folder)
    assert isinstance(model, PeftModel) and not model.training
    check(model, projection)


def test_what_is_no_original_prefix(original: Callable[..., Path], tmp_path: Path) -> None:
    assert not PTuningV2.holds(tmp_path)
    assert not PTuningV2.holds(GLM1)
    assert not PTuningV2.holds(original(False, pre_seq_len=None))
    assert not PTuningV2.holds(original(False, load_file(GLM1 / "model.safetensors")))
    whole = {"transformer.word_embeddings.weight": torch.zeros(2, 2), **weights(False)}
    assert not PTuningV2.holds(original(False, whole))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"projection": False, "pre_seq_len": 9}, ["pre_seq_len is 9", "has 8 tokens", "Set pre_seq_len to 8"]),
        (
            {"projection": True, "prefix_projection": False},
            ["prefix_projection is false", "trans.2.weight", "Set prefix_projection to true"],
        ),
        (
            {"projection": False, "prefix_projection": True},
            ["prefix_projection is true", "trans.2.weight", "Set prefix_projection to false"],
        ),
        (
            {"projection": False, "tensors": {f"{PREFIX}embedding.weight": torch.zeros(8, 256)}},
            ["256 numbers a token", "takes 384", "64 for each of 3 layers", "model.path"],
        ),
    ],
)
def test_an_original_prefix_that_does_not_fit(files: dict, said: list[str], original: Callable[..., Path]) -> None:
    with pytest.raises(UserError) as error:
        folder = original(**files)
        PTuningV2.check(folder)
        PTuningV2.attach(base(), folder)
    assert all(text in str(error.value) for text in said)


def test_an_original_prefix_on_another_family(original: Callable[..., Path]) -> None:
    model = AutoModelForCausalLM.from_config(GlmConfig(**TINY))
    with pytest.raises(UserError, match=r"prefix for ChatGLM-6B; the base has model_type glm.*model\.path"):
        PTuningV2.attach(model, original(False))


def test_a_damaged_file(original: Callable[..., Path]) -> None:
    folder = original(False, binary=True)
    (folder / "pytorch_model.bin").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is no file of weights, or damaged"):
        PTuningV2.holds(folder)


def test_another_length(tmp_path: Path) -> None:
    method().apply(base()).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"num_virtual_tokens=4: .* another length than the recipe says, 8 tokens"):
        PTuningV2.check(tmp_path, {"num_virtual_tokens": 4})
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"num_virtual_tokens": 8', '"num_virtual_tokens": 9'))
    with pytest.raises(UserError, match=r"num_virtual_tokens is 9, .* 8 tokens\. Set num_virtual_tokens to 8"):
        PTuningV2.check(tmp_path)
    config.write_text('{"peft_type": "LORA"}')
    PTuningV2.check(tmp_path, {"num_virtual_tokens": 4})


def test_a_run_whose_recipe_says_another_length(train_tiny: Any, tmp_path: Path) -> None:
    settings = "method={name: ptuning_v2, num_virtual_tokens: 3}"
    folder = train_tiny(tmp_path / "run", settings).folder
    assert glmtune.load(folder.path)
    folder.recipe.write_text(folder.recipe.read_text().replace("num_virtual_tokens: 3", "num_virtual_tokens: 5"))
    with pytest.raises(
        UserError, match=r"method\.num_virtual_tokens=5: .* 3 tokens\. Set method\.num_virtual_tokens=3"
    ):
        glmtune.load(folder.path)
    assert glmtune.load(folder.adapter)


TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


@both
@pytest.mark.parametrize("width", [None, 24])
@pytest.mark.parametrize("make", [base, lambda: AutoModelForCausalLM.from_config(LlamaConfig(**TINY))])
def test_number_of_parameters(make: Callable[[], Any], width: int | None, projection: bool) -> None:
    own, model = method(projection, encoder_hidden_size=width), make()
    sizes = Architecture.from_config(model.config.to_dict())
    trained = {name: weight for name, weight in own.apply(model).named_parameters() if weight.requires_grad}
    assert all(name.startswith("prompt_encoder.") for name in trained)
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert own.trainable_spec(sizes).parameters == sum(weight.numel() for weight in trained.values())


def test_number_of_parameters_of_chatglm_6b() -> None:
    sizes = Architecture.from_config(ChatGLMConfig().to_dict())
    assert method(num_virtual_tokens=128).trainable_spec(sizes).parameters == 29_360_128
    assert method(True, num_virtual_tokens=128).trainable_spec(sizes).parameters == 957_059_072


def test_settings_need_no_torch() -> None:
    code = "import sys, glmtune.methods.ptuning_v2; assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
