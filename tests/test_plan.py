"""A recipe is decided once: what the plan holds is complete, and nothing that was given is changed."""

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from glmtune.config import load_recipe
from glmtune.models import loading
from glmtune.plan import Plan, prepare, run_name
from glmtune.resolution import ResolvedModel, resolve
from glmtune.runtime import RunFolder, UserError


@pytest.fixture
def plan_of(tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`plan_of("training.steps=8", ...)`: a plan by `tiny_settings`; no weights are read for it."""
    monkeypatch.setattr(loading, "load_model", None)
    few = [text for text in tiny_settings if not text.startswith(("training.steps", "training.learning", "generation"))]
    return lambda *settings: Plan(resolve(None, [*few, *settings]), RunFolder(tmp_path / "run"))


def test_everything_is_decided(plan_of: Any, tmp_path: Path) -> None:
    sketch = plan_of("training.steps=8")
    before = sketch.model.recipe.model_dump()
    plan = prepare(sketch.model, sketch.folder)
    recipe = plan.recipe
    assert (recipe.training.steps, plan.steps, len(plan.dataset)) == (8, 8, 32)
    assert recipe.training.learning_rate and recipe.generation.max_new_tokens
    assert Path(recipe.model.path).is_absolute()
    assert (len(plan.held_out), len(plan.held_out_during)) == (6, 2)
    assert plan.lengths.example > plan.lengths.target > 0
    assert plan.placement.estimate.length == plan.lengths.example
    assert any("Only 6 held-out examples" in remark for remark in plan.remarks)
    assert sketch.model.recipe.model_dump() == before  # settings are copied, not changed
    assert not (tmp_path / "run").exists()
    with pytest.raises(FrozenInstanceError):
        plan.folder = RunFolder(tmp_path)


def test_pieces_are_worked_out_once(plan_of: Any) -> None:
    plan = plan_of()
    assert plan.dataset is plan.dataset and plan.held_out is plan.held_out and plan.recipe is plan.recipe


def test_a_broken_piece_breaks_no_other(plan_of: Any) -> None:
    plan = plan_of("data.max_length=8")
    assert len(plan.held_out) == 6
    with pytest.raises(UserError, match=r"data\.max_length"):
        _ = plan.lengths


def test_what_was_asked_for_stays(plan_of: Any) -> None:
    recipe = plan_of("training.learning_rate=0.5", "generation.max_new_tokens=9").recipe
    assert (recipe.training.learning_rate, recipe.generation.max_new_tokens) == (0.5, 9)


def test_a_base_is_found_from_any_folder(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_checkpoint.parent)
    model = ResolvedModel(load_recipe(None, [f"model.path={tiny_checkpoint.name}"]))
    assert Plan(model, RunFolder(tmp_path)).asked.model.path == str(tiny_checkpoint)


def test_the_name_of_a_run() -> None:
    assert run_name(load_recipe()) == "arithmetic-lora"


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ("[dense, lm_head]", r"lm_head cannot learn by itself: head and embedding are one"),
        ("[word_embeddings]", r"word_embeddings cannot learn by itself"),
        (".*head", r"lm_head cannot learn by itself"),
        ("[densee]", r"no layer is named 'densee'\. Did you mean 'dense'"),
    ],
)
def test_what_cannot_learn_is_told_before_weights_are_read(plan_of: Any, targets: str, told: str) -> None:
    sketch = plan_of(f"method.target_modules={targets}")
    with pytest.raises(UserError, match=told):
        prepare(sketch.model, sketch.folder)
    assert sketch.model.method.start == {}


def test_what_needs_the_numbers_is_tried_when_they_are_there(plan_of: Any) -> None:
    sketch = plan_of("method.init=pissa")
    assert prepare(sketch.model, sketch.folder).method.start == {}
