"""What was saved comes back: from a run folder, from an adapter, and on a base that is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import glmtune
from glmtune.config import load_recipe
from glmtune.execution import Run
from glmtune.inference.engine import Engine
from glmtune.runtime import UserError


@pytest.fixture
def run_copy(tiny_run: Run, tmp_path: Path) -> Path:
    """A run folder to damage."""
    return Path(shutil.copytree(tiny_run.folder.path, tmp_path / "run"))


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in model.state_dict().items() if "lora_" in name}


@pytest.mark.parametrize("how", ["run", "adapter", "base and run", "base and adapter"])
def test_reloaded_is_trained(tiny_run: Run, tiny_checkpoint: Path, how: str) -> None:
    run, adapter = tiny_run.folder.path, tiny_run.folder.adapter
    arguments: dict[str, tuple[Any, ...]] = {
        "run": (run,),
        "adapter": (adapter,),
        "base and run": (tiny_checkpoint, run),
        "base and adapter": (str(tiny_checkpoint), str(adapter)),
    }
    model, tokenizer = glmtune.load(*arguments[how])
    assert not model.training
    prompts = [example.prompt for example in tiny_run.after.examples]
    answers = Engine(model, tokenizer).answer(prompts, load_recipe(tiny_run.folder.recipe).generation)
    assert [answer.text for answer in answers] == tiny_run.after.completions


def test_dtype_is_the_bases(tiny_run: Run) -> None:
    model, _ = glmtune.load(tiny_run.folder.path, dtype="bfloat16")
    assert {weight.dtype for name, weight in model.named_parameters() if "lora_" not in name} == {torch.bfloat16}


def test_the_tokenizer_travels_with_the_adapter(run_copy: Path) -> None:
    (run_copy / "adapter/chat_template.jinja").write_text("{{ messages[0].content }}!{{ '[gMASK]<sop>' }}")
    _, tokenizer = glmtune.load(run_copy)
    assert "!" in tokenizer.decode(tokenizer.apply_chat_template([{"role": "user", "content": "1"}])["input_ids"])
    shutil.copy(run_copy / "adapter/adapter_config.json", run_copy)  # an adapter of somebody else, without a tokenizer
    shutil.copy(run_copy / "adapter/adapter_model.safetensors", run_copy)
    (run_copy / "recipe.yaml").unlink()
    _, tokenizer = glmtune.load(run_copy)
    assert "!" not in tokenizer.decode(tokenizer.apply_chat_template([{"role": "user", "content": "1"}])["input_ids"])


def test_a_base_that_changed_is_refused(run_copy: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    assert glmtune.load(other, adapter=run_copy)
    weights = load_file(other / "model.safetensors")
    weights["transformer.final_layernorm.bias"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"trained on other weights.*fingerprint") as error:
        glmtune.load(other, adapter=run_copy)
    assert str(other) in str(error.value) and "model.path" in str(error.value)


def edit(file: str, **changes: Any) -> Callable[[Path], Any]:
    """A change of some keys of a JSON file of the adapter."""

    def change(adapter: Path) -> None:
        values = json.loads((adapter / file).read_text()) | changes
        (adapter / file).write_text(json.dumps(values))

    return change


def drop_one_weight(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})


def truncate(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, r"holds no adapter.*train --resume"),
        (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "holds no weights"),
        (truncate, r"adapter_model\.safetensors is truncated: \d+ of \d+ bytes"),
        (lambda adapter: (adapter / "adapter_config.json").write_text("{"), r"adapter_config\.json is damaged"),
        (lambda adapter: (adapter / "base.json").write_text("[]"), r"base\.json is damaged"),
        (lambda adapter: (adapter / "ice_text.model").unlink(), "tokenizer cannot"),
        (edit("adapter_config.json", r=3), "adapter cannot be read.*size mismatch"),
        (edit("adapter_config.json", peft_type="NEW"), "adapter cannot be read.*NEW"),
        (drop_one_weight, "adapter cannot be read.*missing adapter keys"),
    ],
)
def test_a_damaged_adapter_is_told(run_copy: Path, change: Callable[[Path], Any], message: str) -> None:
    change(run_copy / "adapter")
    with pytest.raises(UserError, match=message):
        glmtune.load(run_copy)


def test_an_adapter_without_a_base_is_told(run_copy: Path, tiny_checkpoint: Path) -> None:
    adapter = run_copy / "adapter"
    edit("adapter_config.json", base_model_name_or_path=None)(adapter)
    (adapter / "base.json").unlink()
    with pytest.raises(UserError, match=r"names no base model; name it with model\.path"):
        glmtune.load(adapter)
    assert glmtune.load(tiny_checkpoint, adapter=adapter)


def test_a_base_that_is_gone_is_told(run_copy: Path) -> None:
    edit("base.json", base="/no/such/base")(run_copy / "adapter")
    with pytest.raises(UserError, match=r"no such model directory: /no/such/base.*model\.path"):
        glmtune.load(run_copy / "adapter")
