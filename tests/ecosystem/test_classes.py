"""The Auto classes of transformers on a checkpoint of each family: what they load, and where scores are taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ecosystem_matrix import FAMILIES
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_the_bare_model_is_that_under_the_head(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    folder = checkpoint_of(FAMILIES[family])
    bare, info = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)("12+7=", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = bare(input_ids=ids).last_hidden_state
        expected = whole.base_model(input_ids=ids).last_hidden_state
    assert not info["missing_keys"] and torch.equal(states, expected)


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_are_taken_at_the_last_real_token(
    family: str, side: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint_of(FAMILIES[family])
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    tokenizer.pad_token = tokenizer.pad_token or "<s>"
    torch.manual_seed(0)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    texts = ["1+2=", "123+456="]
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        scores = model(**batch).logits
        for text, found in zip(texts, scores, strict=True):
            alone = tokenizer(text, return_tensors="pt", return_token_type_ids=False)["input_ids"]
            expected = model.score(model.base_model(input_ids=alone).last_hidden_state[:, -1])[0]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(again(**batch).logits, scores)


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_of_embeddings_are_taken_there_too(side: str, checkpoint_of: Callable[[str], Path]) -> None:
    """As behind virtual tokens, with which the library takes the last token, padding or not."""
    folder = checkpoint_of("ChatGLM-6B v1.1")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, dtype=torch.float32)
    batch = tokenizer(["1+2=", "123+456="], padding=True, return_tensors="pt")
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with torch.no_grad():
        found = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
        torch.testing.assert_close(found, model(**batch).logits, atol=1e-4, rtol=0)


@every_family
def test_every_token_gets_scores(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    folder = checkpoint_of(FAMILIES[family])
    model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=3, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)("12+7=", return_tensors="pt")["input_ids"]
    out = model(input_ids=ids, labels=torch.zeros_like(ids))
    assert out.logits.shape == (*ids.shape, 3)
    out.loss.backward()


def test_a_configuration_names_no_code_and_does_not_save_that() -> None:
    """trl reads `auto_map` of any class that transformers does not have, to load a model to compare with."""
    from transformers import AutoConfig

    from glmtune.models import loading

    config = AutoConfig.from_pretrained(loading.EMBEDDED["nano"])
    assert config.auto_map == {} and "auto_map" not in config.to_dict()
    utils = pytest.importorskip("trl.trainer.utils")
    model = utils.create_model_from_path(str(loading.EMBEDDED["nano"]), dtype="float32", device_map=None)
    assert type(model).__name__ == "ChatGLMForCausalLM"
