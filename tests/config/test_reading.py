from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glmtune.config import (
    Recipe,
    RecipeError,
    load_recipe,
    make_recipe,
    open_sections,
    read_yaml,
    to_yaml,
    with_overrides,
)
from glmtune.methods.lora import LoraSettings
from glmtune.tasks.arithmetic import ArithmeticSettings


def faults_of(*overrides: str, path: Path | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert all(fault in str(caught.value) for fault in caught.value.faults)
    return caught.value.faults


def test_defaults() -> None:
    recipe = load_recipe()
    assert isinstance(recipe, Recipe) and recipe.format == 2
    assert isinstance(recipe.task, ArithmeticSettings) and recipe.task == ArithmeticSettings(name="arithmetic")
    assert isinstance(recipe.method, LoraSettings) and recipe.method.name == "lora"
    assert recipe.model.path == "nano"


def test_file(write: Any) -> None:
    path = write(
        "# 注\nseed: 7\ntask:\n  operators: '+-'\n  kinds: [integer]\ntraining: {steps: 3, learning_rate: 2e-3}\n"
    )
    recipe = load_recipe(path)
    assert recipe.seed == 7 and recipe.task.operators == {"+": 1, "-": 1} and recipe.task.kinds == ["integer"]
    assert recipe.training.steps == 3 and recipe.training.learning_rate == 0.002
    assert recipe.training.batch_size == load_recipe().training.batch_size
    assert load_recipe(str(path)).model_dump() == recipe.model_dump()


@pytest.mark.parametrize("text", ["", "# nothing\n", "task:\ntraining:\nmethod:\nseed:\n"])
def test_empty_files_and_sections_are_the_defaults(text: str, write: Any) -> None:
    assert to_yaml(load_recipe(write(text))) == to_yaml(load_recipe())


def test_overrides_come_after_the_file(write: Any) -> None:
    recipe = load_recipe(write("training:\n  steps: 3\n"), ["training.steps=5", "training.steps=6", "seed=1"])
    assert recipe.training.steps == 6 and recipe.seed == 1


def test_an_empty_section_takes_overrides(write: Any) -> None:
    assert load_recipe(write("training:\n  # steps: 3\n"), ["training.steps=5"]).training.steps == 5


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.steps=100", 100),
        ("training.steps=null", None),
        ("training.learning_rate=1e-4", 1e-4),
        ("training.learning_rate=3", 3.0),
        ("training.gradient_checkpointing=true", True),
        ("training.output_dir=runs/a=b", "runs/a=b"),
        ("training.output_dir='12'", "12"),
        ("model.path=[1", "[1"),  # no YAML, so a text
        ("task.operators=+-", {"+": 1, "-": 1}),
        ("task.operators=-", {"-": 1}),  # in YAML a list of nothing
        ("task.operators=*", {"*": 1}),  # in YAML a broken alias
        ("task.operators={+: 2, /: 1}", {"+": 2, "/": 1}),
        ("task.kinds=[decimal]", ["decimal"]),
        ("task.echo=no", False),
        ("method.target_modules=[query_key_value, dense]", ["query_key_value", "dense"]),
        ("generation.do_sample=True", True),
    ],
)
def test_overrides_are_yaml(override: str, value: Any) -> None:
    section, _, setting = override.partition("=")[0].partition(".")
    found = getattr(getattr(load_recipe(None, [override]), section), setting)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("override", ["steps", "=5", ".steps=5", "training.=5", "training..steps=5", ""])
def test_malformed_overrides(override: str) -> None:
    (fault,) = faults_of(override)
    assert fault == f"'{override}': write it as section.setting=value, e.g. training.steps=100"


def test_overrides_of_what_is_no_section() -> None:
    assert faults_of("seed=1", "seed.deep=2", "nonsense") == [
        "'seed.deep=2': seed is no section",
        "'nonsense': write it as section.setting=value, e.g. training.steps=100",
    ]


def test_an_override_may_reach_into_what_a_run_left_empty() -> None:
    values = load_recipe().model_dump(mode="json")
    assert values["data"]["columns"] is None
    assert make_recipe(with_overrides(values, ["data.columns.prompt=q"])).data.columns == {"prompt": "q"}


def test_a_file_of_that_name_is_no_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora").touch()
    assert load_recipe(None, ["method.name=lora"]).method.name == "lora"


def test_settings_follow_the_name() -> None:
    assert load_recipe(None, ["task.name=instructions", "task.file=x.jsonl"]).task.file == "x.jsonl"
    assert "task.maximum: unknown setting" in faults_of("task.name=instructions", "task.file=x", "task.maximum=3")[0]
    assert not hasattr(load_recipe(None, ["method.name=full"]).method, "rank")


def test_round_trip(write: Any) -> None:
    recipe = load_recipe(
        None,
        [
            "task.operators=-/",
            "task.style=direct",
            "method.target_modules=[a, b]",
            "training.learning_rate=1.5e-5",
            "training.output_dir=运行/1",
            "task.held_out=0.25",
            "data.max_length=64",
        ],
    )
    text = to_yaml(recipe)
    assert text.startswith("format: 2\n") and "运行" in text
    again = load_recipe(write(text))
    assert again.model_dump() == recipe.model_dump() and to_yaml(again) == text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("task: [", "not a readable YAML file: while parsing"),
        ("a: b: c", "not a readable YAML file: mapping values"),
        ("\tseed: 1", "not a readable YAML file: while scanning"),
        ("- task", "must hold `section: {setting: value}`, it holds a list"),
        ("just text", "must hold `section: {setting: value}`, it holds a str"),
        ("seed: !!python/object/apply:os.getcwd []", "not a readable YAML file: could not determine a constructor"),
    ],
)
def test_malformed_files(text: str, fault: str, write: Any) -> None:
    path = write(text)
    assert faults_of(path=path)[0].startswith(f"{path}: {fault}")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"seed: \xff\xfe")
    assert "not a readable YAML file" in faults_of(path=path)[0]
    assert "not a readable YAML file" in faults_of(path=tmp_path)[0]


def test_missing_file(write: Any) -> None:
    path = write("seed: 1", "arithmetic.yaml")
    (fault,) = faults_of(path=path.with_name("arithmetik.yaml"))
    assert fault.endswith("no such file. Did you mean 'arithmetic.yaml'? Known: arithmetic.yaml.")
    assert "no such file" in faults_of(path=path.parent / "nowhere" / "x.yaml")[0]


def test_pieces() -> None:
    assert with_overrides({}, ["a.b.c=1", "a.d=x"]) == {"a": {"b": {"c": "1"}, "d": "x"}}  # of no type yet
    assert make_recipe({"seed": 3}).seed == 3
    recipe, values, faults = open_sections({"task": {"name": "wording"}})
    assert not faults and values["task"] == {"name": "wording"} and values["method"] == {"name": "lora"}
    assert issubclass(recipe, Recipe)


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("recipes/*.yaml")), ids=lambda path: path.name)
def test_recipes_of_the_repository(path: Path) -> None:
    values = read_yaml(path)
    if values.get("task", {}).get("name") == "instructions":
        values["task"].setdefault("file", "x.jsonl")
    make_recipe(values)
