"""Shares of other records: as many as asked for, each as often as the others, and nothing that is judged by."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from glmtune.config import DataSettings, Recipe, RecipeError, load_recipe
from glmtune.data.encoder import Encoder
from glmtune.data.mixture import Mixture, encoded, passes, training_set
from glmtune.examples import Example
from glmtune.runtime import UserError
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings
from glmtune.tasks.instructions import Instructions


def recipe_of(file: Path, *overrides: str) -> Recipe:
    return load_recipe(None, ["task.name=instructions", f"task.file={file}", *overrides])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    def write(name: str, **fields: str) -> Path:
        path = tmp_path / name
        rows = ({key: value.format(i) for key, value in fields.items()} for i in range(50))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return {
        "own": write("own.jsonl", prompt="own {}", target="o {}"),
        "general": write("general.jsonl", question="general {}", answer="g {}"),
        "odd": write("odd.jsonl", ask="odd {}", say="x {}"),
    }


def test_shares(files: dict[str, Path], chatglm: Any) -> None:
    mixture = f"[{{file: {files['general']}, share: 0.25}}, "
    mixture += f"{{file: {files['odd']}, share: 0.1, columns: {{prompt: ask, target: say}}}}]"
    recipe = recipe_of(files["own"], f"data.mixture={mixture}", "training.steps=50", "training.batch_size=8")
    task = Instructions(recipe.task, recipe.data)  # type: ignore[arg-type]
    dataset = training_set(recipe, task, Encoder(chatglm))[0]
    assert isinstance(dataset, Mixture) and len(dataset) == 400
    texts = [chatglm.decode(dataset[i]["input_ids"]) for i in range(400)]
    kinds = Counter(text.split()[0] for text in texts)
    assert kinds == {"own": 260, "general": 100, "odd": 40}
    for kind in kinds:  # none twice more often than another
        often = Counter(text for text in texts if text.startswith(kind)).values()
        assert max(often) - min(often) <= 1
    for index in (0, 399):
        assert dataset.length(index) == len(dataset[index]["input_ids"])
        assert dataset[index]["record"] == index
        kind, number = texts[index].split()[:2]  # each record says which line of its file it is, counted from 0
        name = f"line {int(number) + 1} of {files.get(kind)}"
        assert str(dataset.source(index)) == dataset.name([index]) == name


def test_what_the_model_is_judged_by_is_left_out(files: dict[str, Path], chatglm: Any, tmp_path: Path) -> None:
    """By the task, and by the questions about general knowledge."""
    (tmp_path / "judged.jsonl").write_text('{"prompt": "general 7", "target": "x"}')
    recipe = recipe_of(
        files["own"],
        f"task.held_out_file={tmp_path / 'judged.jsonl'}",
        f"data.mixture=[{{file: {files['general']}, share: 0.5}}]",
    )
    task = Instructions(recipe.task, recipe.data)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="2 of 50 records are left out of training"):
        dataset, _ = training_set(recipe, task, Encoder(chatglm), [Example("GENERAL 8", "")])
    texts = {chatglm.decode(dataset[i]["input_ids"]) for i in range(len(dataset))}
    assert sum(text.startswith("general") for text in texts) == 48
    assert not any(text.startswith(("general 7", "general 8")) for text in texts)


def test_draws_and_records(files: dict[str, Path], chatglm: Any, tmp_path: Path) -> None:
    """None of the problems that a task holds out is learned from other records."""
    rows = [{"prompt": f"{i}+{i + 1}=", "target": f"mixed {2 * i + 1}"} for i in range(200)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(None, [f"data.mixture=[{{file: {tmp_path / 'sums.jsonl'}, share: 0.5}}]", "training.steps=25"])
    task = Arithmetic(ArithmeticSettings(name="arithmetic"), recipe.data)
    with pytest.warns(UserWarning, match="of 200 records are left out of training"):
        dataset, steps = training_set(recipe, task, Encoder(chatglm))
    assert steps == 25 and len(dataset) == 800
    texts = [chatglm.decode(dataset[i]["input_ids"]) for i in range(800)]
    mixed = [text for text in texts if "mixed" in text]
    assert len(mixed) == 400 and not any(task.holds_out(text) for text in mixed)


def test_no_mixture(files: dict[str, Path], chatglm: Any) -> None:
    recipe = recipe_of(files["own"])
    task = Instructions(recipe.task, recipe.data)  # type: ignore[arg-type]
    dataset, _ = training_set(recipe, task, Encoder(chatglm))
    assert len(dataset) == len(task.records("train"))


def test_nothing_left_to_mix_in(files: dict[str, Path], chatglm: Any) -> None:
    recipe = recipe_of(
        files["own"],
        f"task.held_out_file={files['general']}",
        f"data.mixture=[{{file: {files['general']}, share: 0.5}}]",
    )
    with pytest.warns(UserWarning), pytest.raises(UserError, match="all that it has is asked, too"):
        training_set(recipe, Instructions(recipe.task, recipe.data), Encoder(chatglm))  # type: ignore[arg-type]


def test_shares_never_exceed_the_whole(chatglm: Any) -> None:
    one = encoded([Example("1", "1")], Encoder(chatglm), DataSettings(), "x")
    for size in range(1, 12):
        mixture = Mixture([one] * 4, [0.33, 0.33, 0.33], size, 1)
        assert len(mixture) == size and all(len(mixture[i]["input_ids"]) for i in range(size))


def test_passes() -> None:
    numbers = passes(5, "seed")
    first, second = ([next(numbers) for _ in range(5)] for _ in range(2))
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4] and first != second
    assert [next(passes(100, seed)) for seed in ("seed", "seed")] == [next(passes(100, "seed"))] * 2
    whole = list(islice(passes(5, "seed"), 20))
    assert all(list(islice(passes(5, "seed", first), 20 - first)) == whole[first:] for first in range(20))
    assert list(islice(passes(100, "seed"), 100)) != list(islice(passes(100, "other"), 100))


@pytest.mark.parametrize(
    ("mixture", "told"),
    [
        ("[{file: a, share: 0.5}, {file: b, share: 0.5}]", "data.mixture: .*leave nothing"),
        ("[{file: a, share: 1.5}]", "data.mixture.0.share: .*less than 1"),
        ("[{file: a}]", "data.mixture.0.share: is needed: share of all examples"),
        ("[{file: a, shar: 0.5}]", "data.mixture.0.shar: unknown setting. Did you mean 'share'"),
        ("[{file: a, share: 0.5, columns: {promt: x}}]", "no such name: 'promt'. Did you mean 'prompt'"),
    ],
)
def test_faults(mixture: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(None, [f"data.mixture={mixture}"])


def test_draws_that_are_too_long(chatglm: Any) -> None:
    recipe = load_recipe(None, [])
    task = Arithmetic(ArithmeticSettings(name="arithmetic"), recipe.data)
    drawn, _ = training_set(recipe, task, Encoder(chatglm, 8))
    with pytest.raises(UserError, match=r"data\.max_length or the model's 8.*Let the task draw shorter"):
        drawn[0]
    for rule in ("drop", "truncate"):
        recipe = load_recipe(None, [f"data.too_long={rule}"])
        with pytest.raises(UserError, match=f"data.too_long={rule}: is for records"):
            training_set(recipe, task, Encoder(chatglm, 8))
