"""Training and held-out problems never meet, and every machine draws the same ones."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from glmtune.arithmetic.problems import Problem
from glmtune.examples import split_of
from glmtune.runtime import UserError
from glmtune.tasks import arithmetic as module
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings

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


@pytest.mark.parametrize(
    "spellings",
    [
        ("13+5", "13+5.0", "5+13", "１３＋５", " 13 + 5.00 =", "口算:5+13=\n解:", "013+5", "(13)+[5]", "[((5)+13)]="),
        ("6*7.5", "7.50×6", "６ ✕ ７．５", "7.5*6.0"),
        ("8/4", "8÷4", "8.0 ÷ 4", "８／４＝"),
        ("3*-2", "3*(-2)", "(3)*[(-2)]", "(3*(-2))", "-2*3"),
        ("(1+2)*3-4", "[(1+2)]*3-4", "((1+2)*(3)-4)"),
        ("8-4", "8−4", "8 – 4", "８－４", "8.00-4"),
        ("1+2+3", "3+2+1", "2.0+3+1"),
        ("1000+5", "1,000+5", "5+1,000.0"),
    ],
)
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_equal_spellings_fall_into_one_split(spellings: tuple[str, ...], share: float) -> None:
    assert len(set(map(form_of, spellings))) == 1
    assert len({split_of(form_of(spelling), share) for spelling in spellings}) == 1


@pytest.mark.parametrize("values", SETTINGS)
def test_splits_share_no_problem(values: dict[str, Any]) -> None:
    train, held_out = forms(300, "train", **values), forms(300, "held_out", **values)
    assert train and held_out and not train & held_out


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_share_held_out(share: float) -> None:
    found = forms(1000, "train", held_out=1e-9, digits=8)
    assert sum(split_of(form, share) == "held_out" for form in found) / len(found) == pytest.approx(share, abs=0.04)


def test_too_few_problems_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_DRAWS", 2000)
    with pytest.raises(UserError, match=r"held_out split.*task\.maximum"):
        forms(1, "held_out", operators="+", kinds=["integer"], maximum=1, held_out=0.001)
    with pytest.raises(UserError, match=r"too long to be learned.*task\.longest_working"):
        forms(1, "train", longest_working=2)


GOLDEN: list[tuple[dict[str, Any], Any, str, str]] = [
    ({}, "train", "44/5=", "44/5=44000/5:40:0:00>44:8:04>04:8:04>00:0:00>00:0:00>;08.8|8.8"),
    (
        {"operators": {"+": 3, "-": 3, "*": 1, "/": 1}},
        "held_out",
        "36.31-73.66=",
        "36.31-73.66=13.63-66.37<53.73;-53.73|-37.35",
    ),
    ({"digits": 9, "decimals": 3, "style": "direct"}, "train", "79-5727821", "79-5727821=-5727742"),
    (
        {"operators": "/", "echo": False},
        "held_out",
        "11/93=",
        "11000/39:110:0:000>011:1:390>071:1:390>077:8:447>;21.0|0.12",
    ),
    (
        {"num_operands": 4, "prompt_words": True, "operators": {"+": 3, "-": 3, "*": 1, "/": 1}},
        "train",
        "口算:68+31-91+62\n解:",
        "68+31-91+62=86+13-19+26;86+13:990;99-19+26;99-19>80;8+26;80+26:070;07|70",
    ),
    (
        {"kinds": ["decimal"], "maximum": 10, "operators": "-×", "trailing_zeros": 1},
        "train",
        "6.72-8.82=",
        "6.72-8.82=27.6-28.8<01.2;-01.2|-2.1",
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


def test_what_is_excluded_is_never_learned(tmp_path: Path) -> None:
    """Whatever its spelling; held-out problems may be in the file."""
    values: dict[str, Any] = {"operators": "+-", "maximum": 4, "kinds": ["integer"], "held_out": 0.3}
    learned = forms(400, "train", **values)
    out = sorted(learned)[::2]
    file = tmp_path / "out.txt"
    file.write_text("\n".join(form.replace("+", ".0 + ") + "=" for form in out) + "\n\n")
    assert forms(400, "train", **values, exclude=str(file)) == learned - set(out)
    assert forms(400, "held_out", **values, exclude=str(file)) == forms(400, "held_out", **values)
    task = Arithmetic(ArithmeticSettings(name="arithmetic", **values, exclude=str(file)))
    assert all(task.holds_out(form) for form in out) and not any(map(task.holds_out, learned - set(out)))


@pytest.mark.parametrize(
    ("text", "message"), [("1+1=\nhello\n", "line 2 is no problem.*hello"), (None, "cannot be read")]
)
def test_excluded_problems_must_be_read(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "out.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=f"task.exclude=.*{message}"):
        forms(1, "train", exclude=str(file))
