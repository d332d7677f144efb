"""Full fine-tuning: every weight in fp32, and a run folder that is a checkpoint of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch

import glmtune
from glmtune.config import ModelSettings, load_recipe
from glmtune.execution import Run
from glmtune.inference.engine import Engine
from glmtune.methods.full import Full, FullSettings
from glmtune.models import loading
from glmtune.models.checkpoint import check_checkpoint


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory, train_tiny: Any) -> Run:
    return train_tiny(tmp_path_factory.mktemp("full") / "run", "method={name: full}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_weight_is_trained_in_fp32(tiny_checkpoint: Path, dtype: Any) -> None:
    base, _ = loading.load_model(ModelSettings(path=str(tiny_checkpoint), dtype=dtype))
    base.requires_grad_(False)
    model = Full(FullSettings(name="full")).apply(base)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())


def test_the_run_folder_holds_a_checkpoint(full_run: Run, tiny_checkpoint: Path) -> None:
    folder = full_run.folder
    assert not folder.adapter.exists()
    check_checkpoint(folder.model)
    before = loading.load_model(ModelSettings(path=str(tiny_checkpoint)))[0].state_dict()
    after = glmtune.load(folder.path)[0].state_dict()
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_it_reloads_as_it_was_trained(full_run: Run) -> None:
    model, tokenizer = glmtune.load(full_run.folder.path)
    again, _ = glmtune.load(full_run.folder.model)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())
    assert model.config.use_cache
    prompts = [example.prompt for example in full_run.after.examples]
    answers = Engine(model, tokenizer).answer(prompts, load_recipe(full_run.folder.recipe).generation)
    assert [answer.text for answer in answers] == full_run.after.completions
