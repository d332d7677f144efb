"""Shares of other records: as many as asked for, each as often as the others, and nothing that is judged by."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from glmtune.config import Recipe, RecipeError, load_recipe
from glmtune.data.encoding import Encoder
from glmtune.data.mixture import Mixture, encoded, passes, training_set
from glmtune.runtime import UserError
from glmtune.tasks import Example
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
    recipe = recipe_of(files["own"], f"data.mixture={mixture}")
    task = Instructions(recipe.task, recipe.data)  # type: ignore[arg-type]
    dataset = training_set(recipe, task, Encoder(chatglm), 400, [])
    assert isinstance(dataset, Mixture) and len(dataset) == 400
    texts = [chatglm.decode(dataset[i]["input_ids"]) for i in range(400)]
    kinds = Counter(text.split()[0] for text in texts)
    assert kinds == {"own": 260, "general": 100, "odd": 40}
    for kind in kinds:  # none twice more often than another
        often = Counter(text for text in texts if text.startswith(kind)).values()
        assert max(often) - min(often) <= 1
    for index in (0, 399):
        assert dataset.length(index) == len(dataset[index]["input_ids"])
        assert (dataset[index]["record"] >= 0) == texts[index].startswith("own")


def test_what_the_model_is_judged_by_is_left_out(files: dict[str, Path], chatglm: Any) -> None:
    recipe = recipe_of(files["own"], f"data.mixture=[{{file: {files['general']}, share: 0.5}}]")
    task = Instructions(recipe.task, recipe.data)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="2 of 50 records are left out of training"):
        dataset = training_set(
            recipe, task, Encoder(chatglm), 300, [Example("general 7", ""), Example("General 8", "")]
        )
    texts = {chatglm.decode(dataset[i]["input_ids"]) for i in range(300)}
    assert sum(text.startswith("general") for text in texts) == 48
    assert not any("general 7" in text or "general 8" in text for text in texts)


def test_draws_and_records(files: dict[str, Path], chatglm: Any) -> None:
    recipe = load_recipe(None, [f"data.mixture=[{{file: {files['general']}, share: 0.25}}]"])
    task = Arithmetic(ArithmeticSettings(name="arithmetic"), recipe.data)
    dataset = training_set(recipe, task, Encoder(chatglm), 40, [])
    texts = [chatglm.decode(dataset[i]["input_ids"]) for i in range(40)]
    assert sum("general" in text for text in texts) == 10 and sum("=" in text for text in texts) == 30


def test_no_mixture(files: dict[str, Path], chatglm: Any) -> None:
    recipe = recipe_of(files["own"])
    task = Instructions(recipe.task, recipe.data)  # type: ignore[arg-type]
    dataset = training_set(recipe, task, Encoder(chatglm), 7, [])
    assert len(dataset) == len(task.records("train"))


def test_passes() -> None:
    numbers = passes(5, "seed")
    first, second = ([next(numbers) for _ in range(5)] for _ in range(2))
    assert sorted(first) == sorted(second) == [0, 1, 2, 3, 4] and first != second
    assert [next(passes(5, "seed")), next(passes(5, "other"))][0] == first[0]


@pytest.mark.parametrize(
    ("mixture", "told"),
    [
        ("[{file: a, share: 0.5}, {file: b, share: 0.5}]", "data.mixture: .*leave nothing"),
        ("[{file: a, share: 1.5}]", "data.mixture.0.share: .*less than 1"),
        ("[{file: a}]", "data.mixture.0.share: Field required"),
        ("[{file: a, share: 0.5, columns: {promt: x}}]", "no such name: 'promt'. Did you mean 'prompt'"),
    ],
)
def test_faults(mixture: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(None, [f"data.mixture={mixture}"])


def test_draws_that_are_too_long(chatglm: Any) -> None:
    recipe = load_recipe(None, [])
    task = Arithmetic(ArithmeticSettings(name="arithmetic"), recipe.data)
    drawn = training_set(recipe, task, Encoder(chatglm, 8), 40, [])
    with pytest.raises(UserError, match=r"data\.max_length.*data\.too_long=cut"):
        drawn[0]
    from glmtune.data import DrawnExamples

    settings = recipe.data.model_copy(update={"too_long": "cut"})
    whole = training_set(recipe, task, Encoder(chatglm), 40, [])
    length = whole.length(0) - 2
    assert encoded(DrawnExamples(task, 40, recipe.seed), Encoder(chatglm, length), settings, "x").length(0) <= length
