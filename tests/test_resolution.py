"""What users name is resolved to one model: its base, its adapter, its recipe; nothing is read twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from glmtune.execution import Run
from glmtune.inference.reading import AnswerReader
from glmtune.models import loading
from glmtune.resolution import ResolvedModel, identify, resolve, resolve_adapter
from glmtune.runtime import UserError


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may read weights."""
    monkeypatch.setattr(loading, "load_model", None)


@pytest.mark.usefixtures("no_weights")
def test_what_can_be_named(tiny_run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model: {{path: {tiny_checkpoint}}}\n")
    base, folder = str(tiny_checkpoint), tiny_run.folder

    def told(resolved: ResolvedModel) -> tuple[Any, ...]:
        return resolved.base, resolved.adapter, resolved.run is not None, resolved.is_recipe

    assert told(resolve(folder.path)) == told(resolve(tiny_run)) == (base, folder.adapter, True, False)
    assert told(resolve(folder.adapter)) == (base, folder.adapter, False, False)
    assert told(resolve(tiny_checkpoint)) == (base, None, False, False)
    assert told(resolve("nano")) == ("nano", None, False, False)
    assert told(resolve(recipe)) == (base, None, False, True)
    assert told(resolve()) == ("nano", None, False, True)
    assert resolve(folder.path).recipe.task.name == "arithmetic" and resolve(folder.path).has_recipe


@pytest.mark.usefixtures("no_weights")
def test_a_run_that_holds_a_whole_model_is_that_model(tiny_run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(tiny_run.folder.recipe, run)
    shutil.copytree(tiny_checkpoint, run / "model")
    resolved = resolve(run, ["model.random_init=true"])
    assert (resolved.base, resolved.adapter) == (str(run / "model"), None)
    assert not resolved.storage.random_init  # which is how it began


def test_each_file_is_read_once(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noted(name: str, actual: Any) -> Any:
        def load(*args: Any) -> Any:
            read.append(name)
            return actual(*args)

        return load

    for name, actual in (("config", loading.load_config), ("tokenizer", loading.load_tokenizer)):
        monkeypatch.setattr(loading, f"load_{name}", noted(name, actual))
    resolved = resolve(tiny_run)
    _ = (resolved.limit, resolved.stops, resolved.tokenizer, resolved.config)
    resolved.load()
    assert sorted(read) == ["config", "tokenizer"]


def test_the_limit_leaves_room_for_a_prefix(tiny_checkpoint: Path) -> None:
    def limit(*settings: str) -> int | None:
        return resolve(None, [f"model.path={tiny_checkpoint}", *settings]).limit

    assert limit() == 128
    assert limit("method={name: ptuning_v2, num_virtual_tokens: 8}") in (120, 128)


@pytest.mark.parametrize("named", [None, 9, [8, 9]])
def test_stops_are_those_of_the_loaded_model(tiny_checkpoint: Path, tmp_path: Path, named: Any) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    if named is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    resolved = resolve(folder)
    assert set(resolved.stops) == set(AnswerReader.of(*resolved.load()).stops)


def test_storage_is_as_asked_or_as_it_was_trained(tiny_run: Run, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(tiny_run.folder.adapter, tmp_path / "adapter"))
    record = json.loads((adapter / "base.json").read_text())
    (adapter / "base.json").write_text(json.dumps(record | {"bits": 4, "quantize_embedding": True}))
    storage = resolve(adapter).storage
    assert (storage.bits, storage.quantize_embedding) == (4, True)
    assert resolve(adapter, ["model.bits=16"]).storage.bits == 16


def test_a_run_keeps_the_template_it_learned_with(tiny_run: Run) -> None:
    with pytest.raises(UserError, match="answers with the template that it learned with"):
        _ = resolve(tiny_run, ["data.template=plain"]).tokenizer


def test_a_checkpoint_beside_a_recipe_says_what_it_was_taught(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert not resolve(tiny_checkpoint).has_task and not resolve("nano").has_task
    taught = Path(shutil.copytree(tiny_checkpoint, tmp_path / "taught"))
    (taught / "recipe.yaml").write_text("task: {name: arithmetic, decimals: 3}")
    found = resolve(taught)
    assert found.has_task and not found.has_recipe and found.task.settings.decimals == 3


@pytest.mark.usefixtures("no_weights")
def test_identify_looks_at_nothing(tmp_path: Path) -> None:
    resolved = identify("/no/such/model")
    with pytest.raises(UserError, match=r"no run, adapter, checkpoint or recipe at /no/such/model\."):
        resolved.check()
    damaged = tmp_path / "adapter"
    damaged.mkdir()
    (damaged / "base.json").write_text("{")
    assert identify(damaged).adapter is None


def test_an_adapter_on_a_base_of_choice(tiny_run: Run, tiny_checkpoint: Path) -> None:
    assert resolve_adapter(tiny_run, tiny_checkpoint).base == str(tiny_checkpoint)
    with pytest.raises(UserError, match="has no adapter put on it"):
        resolve_adapter(tiny_run.folder.adapter, tiny_run)
    with pytest.raises(UserError, match="holds no adapter"):
        resolve_adapter(tiny_checkpoint, "nano")
