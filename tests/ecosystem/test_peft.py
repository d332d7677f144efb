"""Every kind of adapter that peft has, on a checkpoint of each family: trained, saved, loaded, merged, put aside."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from ecosystem_matrix import FAMILIES, UNMERGED, WORKS, peft_rows
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

KINDS = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
SHORT = ["LORA", "IA3", "PROMPT_TUNING", "PREFIX_TUNING"]  # the others are slow tests
TOKENS = {"num_virtual_tokens": 4}
SETTINGS: dict[str, dict[str, Any]] = {  # that a small model needs
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "CARTRIDGE": TOKENS,
    "CPT": {"cpt_token_ids": [5, 6, 7, 8], "cpt_mask": [1] * 4, "cpt_tokens_type_mask": [1, 2, 3, 4]},
    "FOURIERFT": {"n_frequency": 50},
    "MULTITASK_PROMPT_TUNING": {**TOKENS, "num_tasks": 2},
    "POLY": {"n_tasks": 2},
    "PREFIX_TUNING": TOKENS,
    "PROMPT_TUNING": TOKENS,
    "P_TUNING": {**TOKENS, "encoder_hidden_size": 16},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [5, 6]},
    "VBLORA": {"r": 4, "num_vectors": 32, "vector_length": 32},
    "VERA": {"r": 8},
    "WAVEFT": {"n_frequency": 48},
}
PAIRS = [("1+2=", "3"), ("12+7=", "19")]

Batch = dict[str, Tensor]


@pytest.fixture(scope="module")
def base_of(checkpoint_of: Callable[[str], Path]) -> Callable[[str], tuple[Any, Batch]]:
    """`base_of("Llama")`: its model, and a batch of two examples with labels, padded on the left."""
    known: dict[str, tuple[Any, Batch]] = {}

    def make(family: str) -> tuple[Any, Batch]:
        folder = checkpoint_of(FAMILIES[family])
        model, tokenizer = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            AutoTokenizer.from_pretrained(folder),
        )
        whole = family != "ChatGLM-6B"  # whose prompts end with tokens of their own
        rows = [tokenizer(a + b if whole else a, None if whole else b)["input_ids"] for a, b in PAIRS]
        width, pad = max(map(len, rows)), tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        labels = torch.full_like(ids, -100)
        labels[:, -2:] = ids[:, -2:]
        return model, {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def find(family: str) -> tuple[Any, Batch]:
        if family not in known:
            known[family] = make(family)
        return known[family]

    return find


def logits(model: Any, batch: Batch) -> Tensor:
    """Those of the last tokens, which virtual tokens in front leave where they are."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        found: Tensor = model.eval()(**inputs).logits[:, -3:]
    return found


CELLS = [
    pytest.param(kind, family, marks=[] if kind in SHORT else pytest.mark.slow) for kind in KINDS for family in FAMILIES
]


@pytest.mark.parametrize(("kind", "family"), CELLS)
def test_every_kind_of_adapter(
    kind: str, family: str, base_of: Callable[[str], tuple[Any, Batch]], tmp_path: Path
) -> None:
    if kind == "ADAMSS" and importlib.util.find_spec("sklearn") is not None:
        pytest.skip("the cell says what is read without scikit-learn")
    base, batch = base_of(family)
    if kind in ("MULTITASK_PROMPT_TUNING", "POLY"):
        batch = batch | {"task_ids": torch.tensor([0, 1])}
    expected = peft_rows()[kind][family]
    if expected != WORKS:
        with pytest.raises((ValueError, ImportError)) as error:
            train(kind, copy.deepcopy(base), batch)
        assert expected in str(error.value)
        return
    model = train(kind, copy.deepcopy(base), batch)
    trained, plain = logits(model, batch), logits(base, {name: batch[name] for name in ("input_ids", "attention_mask")})
    if kind != "TRAINABLE_TOKENS":  # which may not be among those that are seen
        assert not torch.allclose(trained, plain, atol=1e-6)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    torch.testing.assert_close(logits(loaded, batch), trained, atol=1e-4, rtol=0)
    with torch.no_grad():
        written = loaded.generate(
            **{name: part[:1] for name, part in batch.items() if name != "labels"}, max_new_tokens=2
        )
    assert written.shape[1] >= 1
    if kind != "OSF":  # which changes the weights themselves
        with model.disable_adapter():
            torch.testing.assert_close(logits(model, batch), plain, atol=1e-4, rtol=0)
    if kind not in UNMERGED:
        torch.testing.assert_close(logits(model.merge_and_unload(), batch), trained, atol=1e-3, rtol=0)


def train(kind: str, base: Any, batch: Batch) -> Any:
    """A step with an adapter of a kind, with peft's own choice of layers."""
    torch.manual_seed(0)
    model = peft.get_peft_model(base, KINDS[kind](task_type="CAUSAL_LM", **SETTINGS.get(kind, {}))).train()
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    model(**batch).loss.backward()
    optimizer.step()
    return model


def test_the_tables_of_others_stay(checkpoint_of: Callable[[str], Path]) -> None:
    """The families' layers are put beside them."""
    from peft.utils import constants

    assert constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING["llama"] == ["k_proj", "v_proj", "down_proj"]
    assert constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["chatglm"] == ["query_key_value"]
    assert constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["glm"] == ["q_proj", "v_proj"]
