"""The general questions: what stands in them, whether they favour anything, and what is said of faulty ones."""

import re
from collections import Counter
from statistics import fmean

import pytest

from glmtune.arithmetic.reading import equation_value
from glmtune.evaluation.general import ARITHMETIC, fault_of, guessed, part_of, read_general
from glmtune.evaluation.short_answers import is_right
from glmtune.examples import Example
from glmtune.runtime import UserError

EXPRESSION = re.compile(r"\d+ ?[-+*/] ?\d+")


@pytest.fixture(scope="module")
def general():
    return read_general()


@pytest.fixture(scope="module")
def choices(general):
    return [question for question in general if question.facts.get("options")]


@pytest.fixture(scope="module")
def open_questions(general):
    return [question for question in general if not question.facts.get("options")]


def test_how_many_there_are(general):
    assert len(general) == len({question.prompt for question in general}) == 200
    assert Counter(map(part_of, general)) == {"choices": 104, "short answers": 66, ARITHMETIC: 30}
    assert Counter(question.facts["language"] for question in general) == {"English": 115, "Chinese": 85}
    assert len({question.facts["group"] for question in general}) == 10
    for question in general:
        assert fault_of(question) is None and question.source is None
        is_arithmetic = question.facts["group"] == ARITHMETIC
        assert bool(re.search("[\u4e00-\u9fff]", question.prompt)) == (question.facts["language"] == "Chinese")
        assert bool(EXPRESSION.search(question.prompt)) == is_arithmetic
        assert set(question.facts) <= {"group", "language", "options", "accepted", "wrong"}


def test_arithmetic_is_right(general):
    for question in general:
        if part_of(question) == ARITHMETIC:
            value = equation_value(EXPRESSION.search(question.prompt)[0])
            assert value == int(question.target)
            assert all(option.isdecimal() for option in question.facts.get("options", ()))


def test_nothing_is_right_by_being_preferred(choices):
    """Four questions share four options, each of which is right once: who does not read is right in one of four."""
    sets = {}
    for question in choices:
        sets.setdefault(frozenset(question.facts["options"]), []).append(question)
    for options, questions in sets.items():
        assert len(options) == len(questions) == 4
        assert {question.target for question in questions} == options
        assert len({question.facts["group"] for question in questions}) == 1
    assert sum(map(guessed, choices)) == len(choices) / 4 == 30


def test_options_are_alike(choices):
    places = Counter(question.facts["options"].index(question.target) for question in choices)
    assert places == dict.fromkeys(range(4), 30)
    for question in choices:
        options = question.facts["options"]
        assert max(map(len, options)) - min(map(len, options)) <= 4
        assert len({option.isascii() for option in options}) == len({option.isdecimal() for option in options}) == 1
        assert len({option[0].isupper() for option in options}) == 1
    right = fmean(len(question.target) for question in choices)
    assert right == fmean(len(option) for question in choices for option in question.facts["options"])


def test_what_is_wrong_is_not_asked_for_by_name(open_questions):
    for question in open_questions:
        facts = question.facts
        for word in facts.get("wrong", ()):
            assert not is_right(word, question.prompt), (question.prompt, word)
            assert not is_right(question.target, word, facts.get("accepted", ()), facts["wrong"], question.prompt)
        for word in (question.target, *facts.get("accepted", ())):
            said = f"The answer is {word}." if question.prompt.isascii() else f"答案是{word}。"
            for answer in (word, said):
                assert is_right(
                    question.target, answer, facts.get("accepted", ()), facts.get("wrong", ()), question.prompt
                ), (question.prompt, answer)
        assert not is_right(question.target, question.prompt, facts.get("accepted", ()), (), question.prompt)


def test_the_users_questions(write_records):
    path = write_records({"prompt": "p", "target": "t", "facts": {"group": "g"}})
    assert read_general(str(path)) == [Example("p", "t", {"group": "g"})]
    with pytest.raises(UserError, match="nowhere"):
        read_general("nowhere.jsonl")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"options": "t"}, "facts.options: a text, not a list of texts"),
        ({"options": ["t", 2]}, "facts.options: 2 is no text; write it in quotes"),
        ({"options": ["t"]}, "two different texts or more are needed, not ['t']"),
        ({"options": ["t", "t"]}, "two different texts or more are needed"),
        ({"options": ["a", "b"]}, "the target 't' is not among ['a', 'b']"),
        ({"accepted": ["a", ""]}, "facts.accepted: '' is no text"),
        ({"accepted": ["a"], "wrong": ["a"]}, "facts.wrong: 'a' is a right answer, too"),
        ({"wrong": ["t"]}, "facts.wrong: 't' is a right answer, too"),
    ],
)
def test_faulty_questions_are_told_by_file_and_line(write_records, facts, message):
    good = {"prompt": "p", "target": "t", "facts": {"options": ["t", "u"]}}
    path = write_records(good, {"prompt": "q", "target": "t", "facts": facts})
    with pytest.raises(UserError) as told:
        read_general(str(path))
    assert f"{path}, line 2: " in str(told.value) and message in str(told.value)
