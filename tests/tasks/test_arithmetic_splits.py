"""Training and held-out problems never meet, and every machine draws the same ones."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.runtime import UserError
from glmtune.tasks import arithmetic as module
from glmtune.tasks import split_of
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings, Problem

SETTINGS: list[dict[str, Any]] = [
    {},
    {"digits": 12, "decimals": 5, "operators": "*/"},
    {"num_operands": 3, "zero_divisors": True, "maximum": 3, "kinds": ["integer"]},
    {"kinds": ["decimal"], "prompt_words": True, "trailing_zeros": 1, "operators": "+", "maximum": 1},
]


def form_of(text: str) -> str:
    problem = Problem.parse(text)
    assert problem is not None
    return problem.normal_form


def forms(count: int, split: Any, **values: Any) -> set[str]:
    """Normal forms of problems that are drawn."""
    task, rng = Arithmetic(ArithmeticSettings(name="arithmetic", **values)), random.Random(0)
    return {form_of(task.sample(rng, split).prompt) for _ in range(count)}


@settings(max_examples=50)
@given(
    numbers=st.lists(st.decimals(0, 10**9, places=3), min_size=2, max_size=4),
    operator=st.sampled_from("+-*/"),
    data=st.data(),
)
def test_equal_spellings_have_one_form(numbers: list[Decimal], operator: str, data: st.DataObject) -> None:
    def written(number: Decimal) -> str:
        zeros = "0" * data.draw(st.integers(0, 3))
        return f"{number.normalize():f}" if not zeros else f"0{number}{zeros}"

    spelled = list(map(written, numbers))
    if operator in "+*":
        spelled = data.draw(st.permutations(spelled))
    operators = (operator,) * (len(numbers) - 1)
    assert Problem(tuple(spelled), operators).normal_form == Problem(tuple(map(str, numbers)), operators).normal_form


@pytest.mark.parametrize(
    "spellings",
    [
        ("13+5", "13+5.0", "5+13", "１３＋５", " 13 + 5.00 =", "口算:5+13=\n解:", "013+5"),
        ("6*7.5", "7.50×6", "６ ✕ ７．５", "7.5*6.0"),
        ("8/4", "8÷4", "8.0 ÷ 4", "８／４＝"),
        ("8-4", "8−4", "8 – 4", "８－４", "8.00-4"),
        ("1+2+3", "3+2+1", "2.0+3+1"),
        ("1000+5", "1,000+5", "5+1,000.0"),
    ],
)
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_equal_spellings_fall_into_one_split(spellings: tuple[str, ...], share: float) -> None:
    assert len(set(map(form_of, spellings))) == 1
    assert len({split_of(form_of(spelling), share) for spelling in spellings}) == 1


def test_order_counts_where_it_matters() -> None:
    assert len(set(map(form_of, ("8-4", "4-8", "8/4", "4/8", "8+4", "8*4", "1+2*3", "2+1*3")))) == 8


@pytest.mark.parametrize("values", SETTINGS)
def test_splits_share_no_problem(values: dict[str, Any]) -> None:
    train, held_out = forms(300, "train", **values), forms(300, "held_out", **values)
    assert train and held_out and not train & held_out


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_share_held_out(share: float) -> None:
    found = forms(1000, "train", held_out=1e-9, digits=8)
    assert sum(split_of(form, share) == "held_out" for form in found) / len(found) == pytest.approx(share, abs=0.04)


def test_too_few_problems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_DRAWS", 2000)
    with pytest.raises(UserError, match=r"held_out split.*task\.maximum"):
        forms(1, "held_out", operators="+", kinds=["integer"], maximum=1, held_out=0.001)


GOLDEN: list[tuple[dict[str, Any], Any, str, str]] = [
    ({}, "train", "47/76=", "47/76=740:0:000;074:6:654;041:1:670;046:8:806;26.0|0.62"),
    ({}, "held_out", "2-62=", "2-62=-06|-60"),
    ({"digits": 9, "decimals": 3, "style": "direct"}, "train", "70363971+56655=", "70363971+56655=70420626"),
    ({"operators": "/", "echo": False}, "held_out", "62/1=", "60:6:60;20:2:20;00:0:00;00:0:00;00:0:00;00.26|62"),
    ({"num_operands": 4, "prompt_words": True}, "train", "初等数学:88-65+56+8\n解析:", "88-65+56+8=78|87"),
    (
        {"kinds": ["decimal"], "maximum": 10, "operators": "-×", "trailing_zeros": 1},
        "train",
        "4.84-0.86",
        "4.84-0.86=89.3|3.98",
    ),
]


@pytest.mark.parametrize("number", range(len(GOLDEN)))
def test_the_same_seed_draws_the_same_everywhere(number: int) -> None:
    values, split, prompt, target = GOLDEN[number]
    task = Arithmetic(ArithmeticSettings(name="arithmetic", **values))
    for _ in range(2):
        example = task.sample(random.Random(f"golden {number}"), split)
        assert (example.prompt, example.target) == (prompt, target)


@pytest.mark.parametrize(
    ("problem", "position"),  # its hash, as a share of all hashes
    [
        ("1+1", 0.28948),
        ("13+5", 0.90735),
        ("13+75", 0.17691),
        ("57.84+13.64", 0.46810),
        ("8/4", 0.02201),
        ("", 0.88942),
    ],
)
def test_the_split_is_the_same_everywhere(problem: str, position: float) -> None:
    assert split_of(problem, position - 1e-4) == "train"
    assert split_of(problem, position + 1e-4) == "held_out"


def test_what_is_held_out_is_told_of_any_prompt() -> None:
    task = Arithmetic(ArithmeticSettings(name="arithmetic"))
    rng = random.Random(0)
    for split, held in (("train", False), ("held_out", True)):
        for _ in range(20):
            asked = task.sample(rng, split).prompt  # type: ignore[arg-type]
            turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
            for prompt in (asked, f"Calculate\n{asked}", [*turns, {"role": "user", "content": asked}]):
                assert task.holds_out(prompt) == held
    assert not task.holds_out("hello") and not task.holds_out([{"role": "system", "content": "1+1"}])
