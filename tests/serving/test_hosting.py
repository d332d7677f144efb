"""Adapters come to a base and go, in any order, and it answers as before; those that fail leave nothing behind."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_variants import logits
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from glmtune.resolution import resolve
from glmtune.runtime import UserError
from glmtune.serving.hosting import Host, key_of


@pytest.fixture(scope="module")
def folders(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of the tiny checkpoint; `broken` has a weight of another size, which peft reads last."""
    made: dict[str, Path] = {}
    for seed, (name, settings) in enumerate(
        {
            "a": {"target_modules": ["query_key_value"]},
            "b": {"target_modules": ["query_key_value", "dense"], "modules_to_save": ["final_layernorm"]},
            "broken": {"target_modules": ["query_key_value", "dense_4h_to_h"], "modules_to_save": ["final_layernorm"]},
            "biased": {"target_modules": ["query_key_value"], "bias": "lora_only"},
        }.items()
    ):
        torch.manual_seed(seed)
        base, _ = resolve(tiny_checkpoint).load_base()
        config = LoraConfig(r=4, task_type="CAUSAL_LM", base_model_name_or_path=str(tiny_checkpoint), **settings)
        model: Any = get_peft_model(base, config)
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data += torch.randn_like(weight) * 0.3
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
        file = made[name] / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tiny_checkpoint)}))
    file = made["broken"] / "adapter_model.safetensors"
    weights = load_file(file)
    last = max(weights)
    save_file({**weights, last: torch.zeros(7, *weights[last].shape[1:])}, file, metadata={"format": "pt"})
    return made


@pytest.fixture
def host(tiny_checkpoint: Path) -> Host:
    return Host(*resolve(tiny_checkpoint).load_base())


def answer(host: Host, name: str | None) -> Any:
    host.activate(name)
    return logits(host.mixed if name is not None else host.base, host.tokenizer)


@pytest.mark.parametrize("first", ["a", "b"])
def test_in_any_order(host: Host, folders: dict[str, Path], first: str) -> None:
    base = answer(host, None)
    modules = [type(part) for part in host.base.modules()]
    known: dict[str, Any] = {}
    for leaving in permutations(["a", "b"]):
        names = {}
        for folder in sorted(["a", "b"], key=lambda folder: folder != first):
            names[folder] = host.attach(folders[folder])[1]
            assert torch.equal(answer(host, None), base)
            found = answer(host, names[folder])
            assert not torch.allclose(found, base)
            torch.testing.assert_close(found, known.setdefault(folder, found))
        for folder in leaving:
            host.detach(names.pop(folder))
            assert torch.equal(answer(host, None), base)
            for left, name in names.items():
                torch.testing.assert_close(answer(host, name), known[left])
        assert host.mixed is None and [type(part) for part in host.base.modules()] == modules


@pytest.mark.parametrize("others", [(), ("a",), ("a", "b")])
def test_one_that_fails_leaves_nothing_behind(host: Host, folders: dict[str, Path], others: tuple[str, ...]) -> None:
    base = answer(host, None)
    names = [host.attach(folders[other])[1] for other in others]
    before = [answer(host, name) for name in names]
    for _ in range(2):
        with pytest.raises(UserError):
            host.attach(folders["broken"])
        assert torch.equal(answer(host, None), base)
        assert all(torch.equal(answer(host, name), one) for name, one in zip(names, before, strict=True))
    assert not any(f"adapter_{host.count}" in name for name, _ in host.base.named_parameters())
    _, name = host.attach(folders["b"])
    assert not torch.allclose(answer(host, name), base) and torch.equal(answer(host, None), base)


def test_one_that_changes_the_base_has_it_to_itself(folders: dict[str, Path], tiny_checkpoint: Path) -> None:
    """Biases of its own are the base's from then on."""
    key = key_of(resolve(tiny_checkpoint))
    assert key_of(resolve(folders["a"])) == key_of(resolve(folders["b"])) == key
    assert key_of(resolve(folders["biased"])) != key
