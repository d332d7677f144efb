from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from glmtune import registry
from glmtune.config import (
    NamedSettings,
    Recipe,
    RecipeError,
    Settings,
    describe_settings,
    load_recipe,
    make_recipe,
    open_sections,
    read_yaml,
    to_yaml,
    with_overrides,
)
from glmtune.methods.lora import LoraSettings
from glmtune.runtime import UserError
from glmtune.tasks.arithmetic import ArithmeticSettings


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a recipe file."""

    def written(text: str, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return written


def faults_of(*overrides: str, path: Path | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert all(fault in str(caught.value) for fault in caught.value.faults)
    return caught.value.faults


def test_defaults() -> None:
    recipe = load_recipe()
    assert isinstance(recipe, Recipe) and recipe.format == 1
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


def test_all_faults_are_told_at_once(write: Any) -> None:
    path = write("modle: {path: x}\ntraining: {stpes: 3, batch_size: 0}\ntask: {maximum: 0, digit: 3}\n")
    faults = faults_of("method.rnak=8", "generation.top_p=2", "evaluation.num_examples=many", path=path)
    for beginning in (
        "modle: unknown setting. Did you mean 'model'? Known: format, seed, model,",
        "training.stpes: unknown setting. Did you mean 'steps'? Known: output_dir, steps,",
        "training.batch_size: Input should be greater than or equal to 1 (got 0)",
        "task.maximum: Input should be greater than or equal to 1 (got 0)",
        "task.digit: unknown setting. Did you mean 'digits'? Known: name, operators,",
        "method.rnak: unknown setting. Did you mean 'rank'? Known: name, rank,",
        "generation.top_p: Input should be less than or equal to 1 (got 2)",
        "evaluation.num_examples: Input should be a valid integer, unable to parse string as an integer (got 'many')",
    ):
        assert sum(fault.startswith(beginning) for fault in faults) == 1, beginning
    assert len(faults) == 8


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("training.steps=0", "training.steps: Input should be greater than or equal to 1 (got 0)"),
        ("training.steps=2.5", "training.steps: Input should be a valid integer"),
        ("task.num_operands=1", "task.num_operands: Input should be greater than or equal to 2 (got 1)"),
        ("task.num_operands={2: 0}", "task.num_operands.2: Input should be greater than 0 (got 0)"),
        ("task.num_operands={1: 3}", "task.num_operands.1: Input should be greater than or equal to 2 (got 1)"),
        ("task.num_operands=[3]", "task.num_operands: Input should be a valid integer"),
        ("task.style=toll", "task.style: Input should be 'direct', 'draft', 'steps' or 'tool' (got 'toll'). Did you"),
        ("task.operators=", "task.operators: name at least one operator"),
        ("task.operators=+x", "task.operators.x: Input should be '+', '-', '*' or '/' (got 'x')"),
        ("model.attention=flash", "model.attention: Input should be 'sdpa' or 'eager' (got 'flash')"),
        ("model.path=", "model.path: Input should be a valid string (got None)"),
        ("model=nano", "model: Input should be a valid dictionary or instance of ModelSettings (got 'nano')"),
        ("task=arithmetic", "task: must be a group of settings such as {name: ...}, not 'arithmetic'"),
        ("method=[lora]", "method: must be a group of settings such as {name: ...}, not ['lora']"),
        ("format=2", "format: Input should be 1 (got 2)"),
        ("training.warmup_ratio=1", "training.warmup_ratio: Input should be less than 1 (got 1)"),
        ("seed=-1", "seed: Input should be greater than or equal to 0 (got -1)"),
    ],
)
def test_wrong_values(override: str, fault: str) -> None:
    assert faults_of(override)[0].startswith(fault)


def test_all_faults_of_a_value_of_several_types_are_told() -> None:
    assert faults_of("task.num_operands={2: [1], 3: -1, x: 2}") == [
        "task.num_operands.2: Input should be a valid number (got [1])",
        "task.num_operands.3: Input should be greater than 0 (got -1)",
        "task.num_operands.x: Input should be a valid integer, unable to parse string as an integer (got 'x')",
    ]
    assert faults_of("task.num_operands=1") == ["task.num_operands: Input should be greater than or equal to 2 (got 1)"]


def test_an_override_may_reach_into_what_a_run_left_empty() -> None:
    values = load_recipe().model_dump(mode="json")
    assert values["data"]["columns"] is None
    assert make_recipe(with_overrides(values, ["data.columns.prompt=q"])).data.columns == {"prompt": "q"}


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("task.name=arithmetics", "task.name: unknown name 'arithmetics'. Did you mean 'arithmetic'? Known: "),
        ("method.name=lroa", "method.name: unknown name 'lroa'. Did you mean 'lora'? Known: "),
        ("task.name=mine.py", "task.name: no such file: mine.py"),
        ("method.name=12", "method.name: unknown name '12'. Known: "),
    ],
)
def test_unknown_names(override: str, fault: str) -> None:
    (found,) = faults_of(override, override.partition(".")[0] + ".whatever=1")
    assert found.startswith(fault)


def test_unknown_names_are_told_with_the_rest() -> None:
    faults = faults_of("task.name=arithmetics", "method.name=lroa", "training.steps=0")
    assert [fault.partition(":")[0] for fault in faults] == ["task.name", "method.name", "training.steps"]


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
    assert text.startswith("format: 1\n") and "运行" in text
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


def test_a_recipe_error_is_one_for_users() -> None:
    error = RecipeError(["a: b", "c: d"])
    assert isinstance(error, UserError) and str(error) == "The recipe has faults:\n  a: b\n  c: d"


def test_pieces() -> None:
    assert with_overrides({}, ["a.b.c=1", "a.d=x"]) == {"a": {"b": {"c": 1}, "d": "x"}}
    assert make_recipe({"seed": 3}).seed == 3
    recipe, values, faults = open_sections({"task": {"name": "wording"}})
    assert not faults and values["task"] == {"name": "wording"} and values["method"] == {"name": "lora"}
    assert issubclass(recipe, Recipe)


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("recipes/*.yaml")), ids=lambda path: path.name)
def test_recipes_of_the_repository(path: Path) -> None:
    values = read_yaml(path)
    if values.get("task", {}).get("name") == "instructions":
        values["task"].setdefault("file", "x.jsonl")
    make_recipe(values)


def settings_groups(group: type[Settings]) -> list[type[Settings]]:
    inner = [info.annotation for info in group.model_fields.values() if isinstance(info.annotation, type)]
    return [group, *(found for one in inner if issubclass(one, Settings) for found in settings_groups(one))]


@pytest.mark.parametrize("package", ["glmtune.tasks", "glmtune.methods"])
def test_every_setting_says_what_it_means(package: str) -> None:
    groups = settings_groups(Recipe) + [registry.find(package, name).Settings for name in registry.names(package)]
    for group in groups:
        assert group.__doc__ and (issubclass(group, NamedSettings) or group.model_config["extra"] == "forbid")
    for name, default, meaning in (row for group in groups for row in describe_settings(group)):
        assert meaning and (default or name.endswith("name")), name


def test_described_settings_are_those_of_the_recipe() -> None:
    recipe, _, _ = open_sections({})
    rows = {name: default for name, default, _ in describe_settings(recipe)}
    assert rows["training.batch_size"] == str(load_recipe().training.batch_size)
    assert rows["task.maximum"] == "100" and rows["method.rank"] == "16" and "format" not in rows
    dumped = yaml.safe_load(to_yaml(load_recipe()))
    flat = {f"{section}.{key}" for section, group in dumped.items() if isinstance(group, dict) for key in group}
    assert set(rows) == flat | {"seed"}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("steps=100", r"steps: unknown setting\. It is training\.steps"),
        ("batch_size=4", r"batch_size: unknown setting\. It is training\.batch_size"),
        ("generation.seed=3", r"generation\.seed: unknown setting\.(?! It is)"),
        ("task.columns.prompt=x", r"task\.columns: unknown setting\. It is data\.columns"),
        ("data.mixture=[{file: a, shar: 1}]", r"data\.mixture\.0\.shar: unknown setting\. Did you mean 'share'"),
        ("r.yaml", r"'r\.yaml': a recipe's file stands first"),
    ],
)
def test_a_setting_at_the_wrong_place(override: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(None, [override])
