from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.config import DataSettings, RecipeError, load_recipe
from glmtune.examples import Example, split_of, threshold_of
from glmtune.records.leaks import problem_of
from glmtune.records.shares import helpful_share
from glmtune.runtime import UserError
from glmtune.tasks.instructions import Instructions, InstructionsSettings


def write(path: Path, *records: Any) -> str:
    """A JSONL file; texts are lines as they are."""
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def task(file: str, data: DataSettings | None = None, **values: Any) -> Instructions:
    return Instructions(InstructionsSettings(name="instructions", file=file, **values), data)


@pytest.fixture
def poems(tmp_path: Path) -> str:
    return write(tmp_path / "poems.jsonl", *({"prompt": f"诗 {i}", "target": f"第 {i} 首"} for i in range(400)))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file"):
        task(str(tmp_path / "nowhere.jsonl")).records("train")


def test_splits_are_told_by_the_prompt(poems: str) -> None:
    records = {split: task(poems, held_out=0.2).records(split) for split in ("train", "held_out")}
    assert len(records["train"]) + len(records["held_out"]) == 400
    assert len(records["held_out"]) == pytest.approx(80, abs=30)
    for split, examples in records.items():
        assert {split_of(problem_of(example.prompt), 0.2) for example in examples} == {split}
        numbers = [int(example.prompt.split()[1]) for example in examples]
        assert numbers == sorted(numbers)  # the file's order


def test_more_records_move_none(poems: str, tmp_path: Path) -> None:
    longer = write(tmp_path / "longer.jsonl", {"prompt": "new", "target": "x"}, *Path(poems).read_text().splitlines())
    before, after = ({example.prompt for example in task(file).records("held_out")} for file in (poems, longer))
    assert before <= after


def test_equal_prompts_stay_together(tmp_path: Path) -> None:
    records = [{"prompt": f"p{i % 40}", "target": f"t{i}"} for i in range(200)]
    made = task(write(tmp_path / "twice.jsonl", *records), held_out=0.3)
    train, held_out = ({example.prompt for example in made.records(split)} for split in ("train", "held_out"))
    assert train and held_out and not train & held_out


def test_held_out_file(poems: str, tmp_path: Path) -> None:
    judged = write(tmp_path / "judged.jsonl", {"prompt": "q", "target": "a"})
    made = task(poems, held_out_file=judged)
    assert len(made.records("train")) == 400
    assert list(made.records("held_out")) == [Example("q", "a")]


def test_what_is_judged_by_is_not_learned(poems: str, tmp_path: Path) -> None:
    judged = write(tmp_path / "judged.jsonl", {"prompt": "诗 7", "target": "a"}, {"prompt": "诗  8。", "target": "a"})
    with pytest.warns(UserWarning, match="2 of 400 records are left out of training"):
        learned = task(poems, held_out_file=judged).records("train")
    assert len(learned) == 398 and not {"诗 7", "诗 8"} & {example.prompt for example in learned}


@pytest.mark.parametrize(
    ("target", "completion", "verdict"),
    [
        ("so <<1+1=2>>2 apples\n#### 2", "It is 2.", "equal"),
        ("so 2 apples\n#### 2", "#### 3", "wrong"),
        ("x=5/5=1", "x=(2+3)/5", "equal"),
        ("Say 2", "It is 2", "wrong"),
    ],
)
def test_the_metric_is_told_by_the_target(target: str, completion: str, verdict: str) -> None:
    assert task("unread.jsonl").score(Example("?", target), completion).verdict == verdict
    assert task("unread.jsonl", metric="exact").score(Example("?", target), completion).verdict == "wrong"


def test_a_split_without_records_is_told(tmp_path: Path) -> None:
    lonely = write(tmp_path / "lonely.jsonl", {"prompt": "q", "target": "a"})
    with pytest.raises(UserError, match=r"No record for the .* split: 1 different question.*task\.held_out_file"):
        task(lonely).records("train")


def test_samples_are_records(poems: str) -> None:
    made = task(poems)
    first, again = ([made.sample(random.Random(7), "held_out") for _ in range(5)] for _ in range(2))
    assert first == again and all(example in made.records("held_out") for example in first)


@pytest.mark.parametrize(
    ("completion", "verdict"),
    [
        ("Good morning, 你好", "exact"),
        ("  Good morning, 你好\n", "exact"),
        ("Good  morning,\n你好", "equal"),
        ("good MORNING, 你好", "wrong"),
        ("Good morning", "wrong"),
        ("", "unparseable"),
        (" \n", "unparseable"),
    ],
)
def test_score(completion: str, verdict: str) -> None:
    score = task("unread.jsonl").score(Example("?", "Good morning, 你好\n"), completion)
    assert (score.verdict, score.answer) == (verdict, completion.strip())


def test_settings() -> None:
    with pytest.raises(RecipeError, match=r"task\.file: is needed"):
        load_recipe(None, ["task.name=instructions"])
    recipe = load_recipe(None, ["task.name=instructions", "task.file=a.jsonl", "task.held_out=0.5"])
    assert isinstance(recipe.task, InstructionsSettings) and recipe.task.held_out == 0.5


def test_columns_and_skipped_records(tmp_path: Path) -> None:
    records = [{"问": f"q{i}", "答": f"a{i}"} for i in range(60)]
    file = write(tmp_path / "own.jsonl", *records, {"问": "q"}, "{")
    names = {"prompt": "问", "target": "答"}
    with pytest.raises(
        UserError, match=r"2 faults:\n.*line 61: data\.columns\.target: no field '答'.*\n.*line 62: not"
    ):
        task(file, DataSettings(columns=names), held_out=0.3).records("train")
    made = task(file, DataSettings(columns=names, on_error="skip"), held_out=0.3)
    assert len(made.records("train")) + len(made.records("held_out")) == 60
    assert len((tmp_path / "own.jsonl.skipped.jsonl").read_text().splitlines()) == 2
    with pytest.raises(RecipeError, match=r"data\.columns: no such name: 'answer'"):
        load_recipe(None, ["task.name=instructions", f"task.file={file}", "data.columns.answer=答"])


def test_a_system_message_hides_no_judged_problem(poems: str, tmp_path: Path) -> None:
    told = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "诗 7"}]
    judged = write(tmp_path / "judged.jsonl", {"prompt": told, "target": "a"}, {"prompt": "诗 9", "target": "a"})
    with pytest.warns(UserWarning, match="2 of 400 records are left out"):
        learned = task(poems, held_out_file=judged).records("train")
    assert not {"诗 7", "诗 9"} & {example.prompt for example in learned}


def test_judged_problems_are_not_learned_as_earlier_turns(tmp_path: Path) -> None:
    """Such a conversation teaches its last answer alone."""
    turns = [{"role": role, "content": text} for role, text in [("user", "q0"), ("assistant", "a0"), ("user", "more")]]
    own = write(
        tmp_path / "own.jsonl", {"prompt": turns, "target": "b"}, {"prompt": [*turns[:2], turns[2]], "target": "c"}
    )
    for question, train_on_all_turns in (("q0", False), ("q1", True)):
        judged = write(tmp_path / "judged.jsonl", {"prompt": question, "target": "a"})
        learned = task(own, held_out_file=judged).records("train")
        assert [example.train_on_all_turns for example in learned] == [train_on_all_turns] * 2


# How much is held out


@pytest.mark.parametrize("count", [1, 2, 60])
def test_one_question_cannot_be_parted(tmp_path: Path, count: int) -> None:
    """No share helps, and none is proposed."""
    file = write(tmp_path / "one.jsonl", *({"prompt": "诗", "target": f"{i}"} for i in range(count)))
    with pytest.raises(UserError, match=r"1 different question in .*Name records that ask .*held_out_file") as error:
        task(file).records("train")
    assert "task.held_out=" not in str(error.value)
    with pytest.raises(UserError, match=r"nothing is left to learn\. Name records that ask something else"):
        task(file, held_out_file=file).records("train")


@given(st.sets(st.text("abc", min_size=1), min_size=2, max_size=6), st.sampled_from([0.001, 0.05, 0.5, 0.999]))
def test_a_share_that_is_proposed_helps(problems: set[str], wanted: float) -> None:
    share = helpful_share(problems, wanted)
    if share is not None:
        assert 0 < share < 1 and {split_of(problem, share) for problem in problems} == {"train", "held_out"}


def test_a_share_is_as_a_person_writes_it(tmp_path: Path) -> None:
    """Of ten records of which the usual share holds out none, and of the closest that only a finer one parts."""
    problems = [one for i in range(60) if threshold_of(problem_of(one := f"诗 {i}")) / 2**64 > 0.101][:10]
    file = write(tmp_path / "ten.jsonl", *({"prompt": one, "target": "x"} for one in problems))
    with pytest.raises(UserError, match=r"Set task\.held_out=0\.\d5?, which holds out \d of them, or name") as error:
        task(file).records("train")
    told = re.search(r"held_out=([\d.]+), which holds out (\d)", str(error.value))
    assert told and len(task(file, held_out=float(told[1])).records("held_out")) == int(told[2]) > 0


def test_few_questions_are_told_with_what_helps(tmp_path: Path) -> None:
    file = write(tmp_path / "few.jsonl", *({"prompt": f"诗 {i}", "target": "x"} for i in range(3)))
    with pytest.raises(UserError, match=r"3 different questions in 3 records.* Set task\.held_out=0\.\d+") as error:
        task(file, held_out=0.001).records("train")
    share = float(str(error.value).partition("task.held_out=")[2].partition(",")[0])
    assert task(file, held_out=share).records("held_out")


def test_more_is_held_out_than_was_asked_for(tmp_path: Path) -> None:
    """Two questions: one of them is half of all."""
    low, *_, high = sorted((f"诗 {i}" for i in range(20)), key=lambda text: threshold_of(problem_of(text)))
    file = write(tmp_path / "two.jsonl", *({"prompt": (low, high)[i % 2], "target": f"{i}"} for i in range(60)))
    share = threshold_of(problem_of(low)) / 2**64 + 1e-6
    assert share < 0.4
    with pytest.warns(UserWarning, match=r"30 of 60 records are held out \(50%\): there are 2 different questions"):
        assert len(task(file, held_out=share).records("held_out")) == 30


def test_a_share_that_chance_explains_is_not_told(poems: str, recwarn: pytest.WarningsRecorder) -> None:
    for share in (0.01, 0.05, 0.2, 0.5):
        task(poems, held_out=share).records("held_out")
    assert not recwarn.list
