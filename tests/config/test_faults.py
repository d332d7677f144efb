from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glmtune import registry
from glmtune.config import OPEN_SECTIONS, Recipe, RecipeError, describe_settings, load_recipe
from glmtune.config.faults import OTHER_NAMES
from glmtune.runtime import UserError


def faults_of(*overrides: str, path: Path | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert all(fault in str(caught.value) for fault in caught.value.faults)
    return caught.value.faults


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
        ("model.path=", "model.path: has no value. Leave it out for the default, nano"),
        ("evaluation.num_examples=", "evaluation.num_examples: has no value. Leave it out for the default, 500"),
        ("training.batch_size=null", "training.batch_size: has no value. Leave it out for the default, 32"),
        ("training.steps=yes", "training.steps: Input should be a valid integer, unable to parse string as an integer"),
        (
            "training.steps=1:30",
            "training.steps: Input should be a valid integer, unable to parse string as an integer",
        ),
        ("task.operators={+: 1, +: 2}", "task.operators: '+' stands in line 1 and again in line 1. Leave one."),
        ("model=nano", "model: must be a group of settings such as {path: ...}, not 'nano'"),
        ("task=arithmetic", "task: must be a group of settings such as {name: ...}, not 'arithmetic'"),
        ("method=[lora]", "method: must be a group of settings such as {name: ...}, not ['lora']"),
        ("format=3", "format: Input should be 2 (got 3)"),
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


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("task.name=arithmetics", "task.name: unknown name 'arithmetics'. Did you mean 'arithmetic'? Known: "),
        ("objective.name=stf", "objective.name: unknown name 'stf'. Did you mean 'sft'? Known: "),
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


def test_a_recipe_error_is_one_for_users() -> None:
    error = RecipeError(["a: b", "c: d"])
    assert isinstance(error, UserError) and str(error) == "The recipe has faults:\n  a: b\n  c: d"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("steps=100", r"steps: unknown setting\. It is training\.steps"),
        ("batch_size=4", r"batch_size: unknown setting\. It is training\.batch_size"),
        ("generation.seed=3", r"generation\.seed: unknown setting\.(?! It is)"),
        ("task.columns.prompt=x", r"task\.columns: unknown setting\. It is data\.columns"),
        ("data.mixture=[{file: a, shar: 1}]", r"data\.mixture\.0\.shar: unknown setting\. Did you mean 'share'"),
        ("r.yaml", r"'r\.yaml': a recipe's file stands first"),
        ("training.lr=1", r"training\.lr: unknown setting\. It is training\.learning_rate\."),
        ("lr=1", r"lr: unknown setting\. It is training\.learning_rate\."),
        ("training.num_train_epochs=1", r"training\.num_train_epochs: unknown setting\. It is training\.epochs\."),
        ("training.bs=1", r"training\.bs: unknown setting\. It is training\.batch_size\."),
        ("method.lora_r=8", r"method\.lora_r: unknown setting\. It is method\.rank\."),
        ("cutoff_len=512", r"cutoff_len: unknown setting\. It is data\.max_length\."),
        ("task.file=", r"task\.file: unknown setting\. It is a setting of task\.name=instructions\."),
        ("method.prefix_length=8", r"method\.prefix_length: unknown setting\. It is method\.num_virtual_tokens\."),
        ("method.num_virtual_tokens=8", r"unknown setting\. It is a setting of method\.name=ptuning_v2\."),
    ],
)
def test_a_setting_at_the_wrong_place(override: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(None, [override])


def test_a_name_with_a_point_in_a_file(write: Any) -> None:
    (fault,) = faults_of(path=write("training.steps: 4\n"))
    assert fault == "training.steps: unknown setting. In a file it is written training: {steps: ...}."


def test_other_names_lead_to_settings_that_there_are() -> None:
    names = {name for name, _, _ in describe_settings(Recipe)}
    for section, package in OPEN_SECTIONS.items():
        for entry in registry.names(package):
            settings = registry.find(package, entry).Settings
            names |= {name for name, _, _ in describe_settings(settings, f"{section}.")}
    assert set(OTHER_NAMES.values()) <= names
    assert not {other for other in OTHER_NAMES if f"training.{other}" in names or f"data.{other}" in names}
