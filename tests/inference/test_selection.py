"""Which held-out examples a model is asked, and how much room their answers get."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from glmtune.config import SHORT_ANSWER, Recipe, load_recipe
from glmtune.data import examples_of
from glmtune.data.encoding import encode_prompt
from glmtune.inference.selection import answer_length, fit_max_new_tokens, select_held_out
from glmtune.models.templates import adopt
from glmtune.runtime import UserError
from glmtune.tasks.arithmetic import Arithmetic
from glmtune.tasks.instructions import Instructions


def records(path: Path, *pairs: tuple[Any, str]) -> str:
    path.write_text("".join(json.dumps({"prompt": prompt, "target": target}) + "\n" for prompt, target in pairs))
    return str(path)


def of_records(tmp_path: Path, *settings: str, judged: list[tuple[Any, str]]) -> tuple[Recipe, Instructions]:
    file = records(tmp_path / "own.jsonl", ("learned", "x"))
    held_out = records(tmp_path / "judged.jsonl", *judged)
    recipe = load_recipe(None, [f"task={{name: instructions, file: {file}, held_out_file: {held_out}}}", *settings])
    return recipe, Instructions(recipe.task, recipe.data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("length", "limit", "rule", "room"),
    [
        (10, None, "stop", SHORT_ANSWER),
        (200, None, "stop", 252),  # 202 tokens with the end and the blank before it, and a quarter more
        (200, 230, "stop", 226),  # what the prompt of 4 leaves
        (200, 230, "drop", 115),
    ],
)
def test_room(length: int, limit: int | None, rule: str, room: int, tiny: tuple[Any, Any], tmp_path: Path) -> None:
    recipe, task = of_records(tmp_path, f"data.too_long={rule}", judged=[("1", "2"), ("3", "4" * length)])
    assert fit_max_new_tokens(recipe, task, tiny[1], limit).generation.max_new_tokens == room
    assert recipe.generation.max_new_tokens is None and recipe.generation.longest == SHORT_ANSWER
    recipe = load_recipe(None, ["generation.max_new_tokens=7"])
    assert fit_max_new_tokens(recipe, task, tiny[1], limit) is recipe


def test_what_is_too_long(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    """Stops, or is left out before the examples are counted."""
    long, judged = ("1+" * 40, "x"), [(f"{i}=", str(i)) for i in range(6)]
    for rule in ("stop", "drop"):
        settings = (f"data.too_long={rule}", "evaluation.num_examples=4", "generation.max_new_tokens=8")
        recipe, task = of_records(tmp_path, *settings, judged=[*judged[:2], long, *judged[2:]])
        if rule == "stop":
            with pytest.raises(UserError, match=r"line 3 of .*jsonl has \d+ tokens"):
                select_held_out(recipe, task, tiny[1], 40)
            continue
        with pytest.warns(UserWarning, match="Of 7 held-out examples, 1 are too long"):
            asked = select_held_out(recipe, task, tiny[1], 40)
        assert [example.prompt for example in asked] == ["0=", "1=", "2=", "3="]
        recipe.generation.max_new_tokens = 1
        with pytest.raises(UserError, match=r"None of 7 held-out .* of 3 to 3 tokens"):
            select_held_out(recipe, task, tiny[1], 40)


def test_answers_that_would_be_cut_off(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    recipe, task = of_records(tmp_path, "generation.max_new_tokens=8", judged=[("1", "2" * 20)])
    for limit, remedy in ((None, "Set generation.max_new_tokens=22 or more, or leave"), (23, "Leave out")):
        with pytest.raises(UserError, match=rf"cuts off held-out answers, .* 22 tokens\. {remedy}"):
            select_held_out(recipe, task, tiny[1], limit)
    assert len(select_held_out(recipe, task, tiny[1], None, whole=False)) == 1


def test_drawn_answers_that_would_be_cut_off(tiny: tuple[Any, Any]) -> None:
    """There are no records to leave out."""
    recipe = load_recipe(None, ["generation.max_new_tokens=2", "evaluation.num_examples=3"])
    for limit, remedy in ((None, r"or more, or let the task"), (20, r"\. Let the task")):
        with pytest.raises(UserError, match=rf"{remedy} draw problems with shorter answers\.$"):
            select_held_out(recipe, Arithmetic(recipe.task), tiny[1], limit)


def test_messages_without_a_form(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "tool")]
    tokenizer = copy.deepcopy(tiny[1])
    adopt(tokenizer, "chatglm")
    for rule in ("stop", "drop"):
        recipe, task = of_records(tmp_path, f"data.too_long={rule}", judged=[(turns, "y")])
        with pytest.raises(
            UserError, match=r"line 1 of .*jsonl: The model's chat template has no form for what a tool says"
        ):
            select_held_out(fit_max_new_tokens(recipe, task, tokenizer, None), task, tokenizer, None)


def test_prompts_are_encoded_for_good(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    recipe, task = of_records(tmp_path, judged=[(f"{i}=", str(i)) for i in range(6)])
    for rule in ("stop", "drop"):
        recipe.data.too_long = rule  # type: ignore[assignment]
        found = select_held_out(recipe, task, tiny[1], None, during=True)
        assert found.input_ids == [encode_prompt(tiny[1], example.prompt) for example in found]
        part = found[1:3]
        assert (part.examples, part.input_ids) == (found.examples[1:3], found.input_ids[1:3])


def test_calls_have_room(tiny: tuple[Any, Any]) -> None:
    """A call is longer than the answer, which is all that a held-out target holds."""
    recipe = load_recipe(None, ["task.style=tool", "task.digits=40", "task.kinds=[integer]", "task.operators=+"])
    task = Arithmetic(recipe.task, recipe.data)
    calls = [example for example in examples_of(task, "train", 20, 0) if example.tool_calls]
    longest = max(answer_length(tiny[1], example) for example in calls)
    answers = max(answer_length(tiny[1], example) for example in examples_of(task, "held_out", 20, 0))
    room = fit_max_new_tokens(recipe, task, tiny[1], None).generation.longest
    assert answers < SHORT_ANSWER < longest <= room


def test_other_draws_during_a_training(tiny: tuple[Any, Any]) -> None:
    recipe = load_recipe(None, ["evaluation.num_examples=20", "evaluation.num_examples_during=5"])
    task = Arithmetic(recipe.task, recipe.data)
    recipe = fit_max_new_tokens(recipe, task, tiny[1], None)
    before, during = (select_held_out(recipe, task, tiny[1], None, during=when) for when in (False, True))
    assert (len(before), len(during)) == (20, 5) and not set(map(repr, before)) & set(map(repr, during))
    assert all(task.holds_out(example.prompt) for example in (*before, *during))
