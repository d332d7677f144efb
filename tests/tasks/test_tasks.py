from __future__ import annotations

import random
import textwrap
from pathlib import Path

import pytest

from glmtune import registry
from glmtune.config import RecipeError, load_recipe, to_yaml
from glmtune.evaluation.page import page
from glmtune.evaluation.report import summarize
from glmtune.examples import Example, split_of
from glmtune.scoring import Score
from glmtune.tasks import Task
from glmtune.trust import Trust

OWN_TASK = textwrap.dedent(
    '''
    """Spell a word backwards."""

    from __future__ import annotations

    import random
    from collections.abc import Sequence
    from dataclasses import dataclass
    from typing import Literal

    from pydantic import Field

    from glmtune.config import NamedSettings
    from glmtune.examples import Example, Split, split_of
    from glmtune.messages import ToolCall
    from glmtune.scoring import Score
    from glmtune.tasks import Axis, Task, up_to


    @dataclass(frozen=True)
    class Word:
        text: str
        case: Case

    Case = Literal["lower", "upper"]


    class BackwardsSettings(NamedSettings):
        length: int = Field(5, ge=1, description="letters in a word")
        case: Case = Field("lower", description="case of the letters")


    class Backwards(Task):
        Settings = BackwardsSettings
        axes = (Axis("first", "first letter", {"c": "c as in cat"}, across="length"), Axis("length", group=up_to(6)))

        def sample(self, rng: random.Random, split: Split = "train") -> Example:
            while True:
                text = "".join(rng.choices("abc", k=self.settings.length))
                if split_of(text, 0.2) == split:
                    word = Word(text.upper() if self.settings.case == "upper" else text, self.settings.case)
                    return Example(word.text, word.text[::-1], {"first": text[0], "length": len(text)})

        def score(self, example: Example, completion: str, calls: Sequence[ToolCall] = ()) -> Score:
            return Score("exact" if completion == example.target else "wrong", completion)
    '''
)


@pytest.fixture
def own_task(tmp_path: Path) -> Path:
    """A user's file. Its name is that of a standard module."""
    path = tmp_path / "string.py"
    path.write_text(OWN_TASK)
    return path


def test_own_task_in_a_recipe(own_task: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"task:\n  name: {own_task}\n  length: 7\n")
    recipe = load_recipe(tmp_path / "recipe.yaml", ["task.case=upper"], Trust(everything=True))
    made: Task = registry.find("glmtune.tasks", recipe.task.name)(recipe.task, recipe.data)
    example = made.sample(random.Random(0))
    assert len(example.prompt) == 7 and example.prompt.isupper() and example.target == example.prompt[::-1]
    assert made.score(example, example.target).correct
    assert made.records("train") is None and made.describe(example.prompt, example.target) == {}
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert to_yaml(load_recipe(tmp_path / "again.yaml", trust=Trust(everything=True))) == to_yaml(recipe)


def test_own_task_has_its_own_report(own_task: Path) -> None:
    """Tables and pages break its scores down by what it declares."""
    recipe = load_recipe(None, [f"task.name={own_task}", "task.length=7"])
    made: Task = registry.find("glmtune.tasks", recipe.task.name)(recipe.task, recipe.data)
    examples = [made.sample(random.Random(seed)) for seed in range(30)]
    completions = [example.target if example.facts["first"] == "a" else "?" for example in examples]
    scores = [made.score(*pair) for pair in zip(examples, completions, strict=True)]
    report = summarize(examples, completions, scores, made.axes, text_metrics=False)
    assert list(report["by"]["first"]) == ["c", "a", "b"] and list(report["by"]["length"]) == ["7+"]
    assert [report["by"]["first,length"][f"{first} 7+"]["accuracy"] for first in "abc"] == [1, 0, 0]
    shown = page({"before": None, "after": report}, [], to_yaml(recipe), "run")
    assert "c as in cat" in shown and "addition" not in shown


def test_own_task_hides_no_module(own_task: Path) -> None:
    registry.load("glmtune.tasks", str(own_task))
    import string

    assert string.ascii_lowercase.startswith("abc")


def test_settings_of_an_own_task_are_checked(own_task: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, [f"task.name={own_task}", "task.lenght=3", "task.case=title", "task.length=0"])
    assert caught.value.faults == [
        "task.length: Input should be greater than or equal to 1 (got 0)",
        "task.case: Input should be 'lower' or 'upper' (got 'title')",
        "task.lenght: unknown setting. Did you mean 'length'? Known: name, length, case.",
    ]


@pytest.mark.parametrize("name", registry.names("glmtune.tasks"))
def test_every_task_is_complete(name: str) -> None:
    task = registry.find("glmtune.tasks", name)
    assert issubclass(task, Task) and not task.__abstractmethods__ and task.__doc__
    for setting, info in task.Settings.model_fields.items():
        assert info.description, f"task.{setting} has no description"


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_share_held_out(share: float) -> None:
    held_out = sum(split_of(f"problem {i}", share) == "held_out" for i in range(4000))
    assert held_out / 4000 == pytest.approx(share, abs=0.03)


def test_a_larger_share_keeps_what_was_held_out() -> None:
    small, large = ({i for i in range(2000) if split_of(str(i), share) == "held_out"} for share in (0.1, 0.2))
    assert small < large


def test_ends_of_the_share() -> None:
    assert {split_of(str(i), 0) for i in range(200)} == {"train"}
    assert {split_of(str(i), 1) for i in range(200)} == {"held_out"}


def test_what_counts_as_correct() -> None:
    verdicts = {"exact": True, "equal": True, "wrong": False, "unparseable": False}
    assert {verdict: Score(verdict).correct for verdict in verdicts} == verdicts
    assert Example("a", "b") == Example("a", "b", {})
