"""What stands in a recipe or on the command line is read by the type of its setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.config import Recipe, RecipeError, load_recipe, to_yaml
from glmtune.config.values import Plain, Written, by_type, native, parse

# What YAML 1.1 takes for a date, a truth value, nothing, or a number.
AMBIGUOUS = (
    *(
        "2024-01-01",
        "2024-01-01 12:00:00",
        "Yes",
        "no",
        "on",
        "OFF",
        "true",
        "y",
        "1.10",
        "1:30",
        "0o17",
        "017",
        "1_000",
    ),
    *(
        "1e-4",
        "12",
        ".5",
        "0x1F",
        ".inf",
        "-",
        "--",
        "=",
        "<<",
        "data #2.jsonl",
        "a: b",
        "[1",
        "{x",
        "*x",
        "&x",
        "!x",
        "%x",
    ),
    *("@x", "`x", "a,b", "\u95ee", "C:\\runs", " x ", "x ", "it's", "| x", "> x", "? x", "x:"),
)


def setting(recipe: Recipe, name: str) -> Any:
    found: Any = recipe
    for part in name.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


@pytest.mark.parametrize("text", AMBIGUOUS)
@pytest.mark.parametrize("name", ["training.output_dir", "data.columns.prompt"])
def test_a_text_on_the_command_line_stands_as_it_is(name: str, text: str) -> None:
    assert setting(load_recipe(None, [f"{name}={text}"]), name) == text


def test_the_file_of_an_override_is_all_of_it() -> None:
    recipe: Any = load_recipe(None, ["task.name=instructions", "task.file=data #2.jsonl"])
    assert recipe.task.file == "data #2.jsonl"


@pytest.mark.parametrize("text", [text for text in AMBIGUOUS[:18] if " #" not in text])
def test_a_text_in_a_recipe_needs_no_quotes(text: str, write: Any) -> None:
    recipe = load_recipe(write(f"training:\n  output_dir: {text}\ndata:\n  columns: {{prompt: {text}}}\n"))
    assert recipe.training.output_dir == text and recipe.data.columns == {"prompt": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [("null", None), ("~", None), ("", None), ("'null'", "null"), ('"null"', "null"), ("''", ""), ("'it''s'", "it's")],
)
def test_nothing_and_quotes(text: str, value: str | None, write: Any) -> None:
    assert load_recipe(None, [f"training.output_dir={text}"]).training.output_dir == value
    assert load_recipe(write(f"training: {{output_dir: {text}}}\n")).training.output_dir == value


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("1.e-4", 1e-4), (".5", 0.5), ("+2", 2.0), ("1_0.5", 10.5)]
)
def test_a_number_is_one_in_every_form(text: str, value: float, write: Any) -> None:
    assert load_recipe(write(f"training: {{learning_rate: {text}}}\n")).training.learning_rate == value
    assert load_recipe(None, [f"training.learning_rate={text}"]).training.learning_rate == value


@pytest.mark.parametrize(("text", "value"), [("1_000", 1000), ("0x10", 16), ("0o17", 15), ("007", 7), ("+5", 5)])
def test_a_whole_number_is_one_in_every_form(text: str, value: int) -> None:
    assert load_recipe(None, [f"seed={text}"]).seed == value


@pytest.mark.parametrize("text", ["1:30", "yes", "2024-01-01", "1e400", "9" * 5000, "1.5"])
def test_what_is_no_whole_number_is_refused(text: str, write: Any) -> None:
    for path, overrides in ((None, [f"training.steps={text}"]), (write(f"training: {{steps: {text}}}\n"), [])):
        with pytest.raises(RecipeError, match=r"training\.steps: .*(integer|finite)"):
            load_recipe(path, overrides)


def test_keys_are_texts(write: Any) -> None:
    recipe = load_recipe(write("data:\n  columns: {prompt: on, target: off}\ntask:\n  num_operands: {2: 1, 3: 2}\n"))
    assert recipe.data.columns == {"prompt": "on", "target": "off"} and setting(recipe, "task.num_operands") == {
        2: 1,
        3: 2,
    }
    with pytest.raises(RecipeError, match=r"on: unknown setting"):
        load_recipe(write("on: 1\n"))
    with pytest.raises(RecipeError, match=r"data\.columns: no such name: 'yes'"):
        load_recipe(write("data: {columns: {yes: 1}}\n"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "seed: 1\ntraining: {steps: 1}\n\ntraining: {batch_size: 2}\n",
            "'training' stands in line 2 and again in line 4",
        ),
        ("training:\n  steps: 1\n  batch_size: 2\n  steps: 3\n", "'steps' stands in line 2 and again in line 4"),
        ("training: {steps: 1, steps: 1}\n", "'steps' stands in line 1 and again in line 1"),
        ("data:\n  mixture:\n    - file: a\n      file: b\n", "'file' stands in line 3 and again in line 4"),
        ("'seed': 1\nseed: 2\n", "'seed' stands in line 1 and again in line 2"),
    ],
)
def test_what_stands_twice_is_refused(text: str, told: str, write: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path := write(text))
    assert caught.value.faults == [f"{path}: {told}. Leave one."]


def test_anchors_are_no_repetition(write: Any) -> None:
    text = "training: &one {steps: 1, batch_size: 2}\nevaluation: {num_examples: 7}\n"
    assert load_recipe(write(text)).training.batch_size == 2
    merged = "data: &d {max_length: 9}\n"
    assert native(parse(f"{merged}other:\n  <<: *d\n  max_length: 10\n"))["other"] == {"max_length": 10}


@pytest.mark.parametrize(
    ("overrides", "value"),
    [
        (["training.steps=1", "training.steps=2"], 2),
        (["training.steps=1", "seed=1", "training.steps=1"], 1),
        (["data.columns.prompt=a", "data.columns={target: b}"], {"target": "b"}),
        (["data.columns.prompt=a", "data.columns=null"], None),
    ],
)
def test_of_a_setting_that_is_set_twice_the_last_one_counts_and_that_is_said(overrides: list[str], value: Any) -> None:
    name = overrides[-1].partition("=")[0]
    with pytest.warns(UserWarning) as told:
        recipe = load_recipe(None, overrides)
    assert str(told[0].message) == f"{name} is set twice: '{overrides[-1]}' counts, '{overrides[0]}' does not."
    assert setting(recipe, name) == value


def test_an_override_may_reach_into_an_earlier_one() -> None:
    recipe = load_recipe(None, ["data.columns={target: b}", "data.columns.prompt=a"])
    assert recipe.data.columns == {"target": "b", "prompt": "a"}


def test_nesting_without_end_is_told(write: Any) -> None:
    with pytest.raises(RecipeError, match="not a readable YAML file: lists or groups are nested too deeply"):
        load_recipe(write("seed: " + "[" * 5000))
    with pytest.raises(RecipeError, match=r"training\.steps: "):
        load_recipe(None, ["training.steps=" + "[" * 5000])


@pytest.mark.parametrize("place", ["mine", "data", "seed", "training.steps"])
def test_aliases_that_make_too_much_are_refused(place: str, write: Any) -> None:
    """Nine lines of aliases, each of nine of the line before, would be 9**9 values; one within itself, without end."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    section, _, name = place.partition(".")
    bomb = f"{section}: {{{name}: *a8}}" if name else f"{section}: *a8"
    for text in ("\n".join([*lines, bomb]), f"{section}: &all [*all]"):
        with pytest.raises(RecipeError, match=r"its aliases \(\*name\) make more than 100,000 values of it"):
            load_recipe(write(text))


@pytest.mark.parametrize(
    "line", ["{name}: &{name} {{<<: [*{before}, *{before}]}}", "{name}: &{name} [*{before}, *{before}]"]
)
def test_merges_and_keys_that_make_too_much_are_refused(line: str, write: Any) -> None:
    """They are told before anything is made of them: 2**40 values would be."""
    first = "a0: &a0 {x: 1}" if "<<" in line else "a0: &a0 [x]"
    lines = [first, *(line.format(name=f"a{n}", before=f"a{n - 1}") for n in range(1, 40)), "? *a39\n: 1"]
    with pytest.raises(RecipeError, match=r"its aliases \(\*name\) make more than 100,000 values of it"):
        load_recipe(write("\n".join(lines)))


@pytest.mark.parametrize("value", ["!!timestamp x", "!!int ''", "!!int x", "!!bool x", "!!float x", "!!nothing x"])
def test_values_that_are_not_what_their_tags_say(value: str, write: Any) -> None:
    with pytest.raises(RecipeError, match=r"not a readable YAML file: "):
        load_recipe(write(f"seed: {value}"))


def test_a_group_without_values_is_the_default() -> None:
    assert load_recipe(None, ["training=null", "task="]).model_dump() == load_recipe().model_dump()


def test_types() -> None:
    assert by_type(Plain("1"), int | str) == 1 and by_type(Plain("1"), str | None) == "1"
    assert by_type(Plain("16"), Literal[16, 8]) == 16 and by_type(Plain("8"), Literal["8", "x"]) == "8"
    assert by_type(Plain("x"), Path) == "x" and by_type(Plain("1e3"), Any) == 1000.0
    assert (
        by_type(Written("[a, 1]"), str | list[str]) == ["a", "1"]
        and by_type(Written("a, 1"), str | list[str]) == "a, 1"
    )
    assert by_type(Written("{a: yes}"), dict[str, bool]) == {"a": True}
    assert by_type({"a": [Plain("no")]}, Any) == {"a": [False]}
    assert by_type([Plain("no")], tuple[str, ...]) == ["no"] and by_type([Plain("1")], Sequence[str]) == ["1"]


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1))
def test_a_text_comes_back_from_the_recipe_of_a_run(text: str) -> None:
    recipe = Recipe()
    recipe.training.output_dir = text
    assert by_type(parse(to_yaml(recipe)), Recipe)["training"]["output_dir"] == text
