"""What counts as a right answer in a model's own words."""

import pytest

from glmtune.evaluation.short_answers import LONGEST, is_right

WRONG = ("London", "Berlin", "上海")


@pytest.mark.parametrize(
    "completion",
    [
        "paris.",
        "It is Paris",
        "The capital of France is Paris.",
        "**Paris**",
        "It is not London but Paris.",
        "Not London, but Paris",
        "It isn't Berlin. It's Paris!",
        "Lutetia, or Paris.",
        "Paris (France)",
        "答案是Paris。",
    ],
)
def test_a_right_word_within_a_short_answer(completion):
    assert is_right("Paris", completion, ("Lutetia",), WRONG)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "Parisian food",
        "Comparison",
        "It is not Paris.",
        "Paris isn't the capital",
        "Paris is wrong.",
        "Paris or Lyon",
        "Lyon or Paris?",
        "Is it Paris? I do not know.",
        "Paris, London, Berlin",
        "London. Paris.",
        "London, not Paris",
        "Rome",
        " " * LONGEST + "Paris",
    ],
)
def test_what_is_no_right_answer(completion):
    assert not is_right("Paris", completion, (), WRONG)


@pytest.mark.parametrize(
    ("target", "completion", "right"),
    [
        ("北京", "“北京”。", True),
        ("北京", "中国的首都是北京市。", True),
        ("北京", "中国的首都不是上海，而是北京。", True),
        ("北京", "不是北京", False),
        ("北京", "北京或者天津", False),
        ("北京", "上海和北京", False),
        ("小", "反义词是小。", True),
        ("小", "“大”的反义词是“小”。", True),
        ("小", "小孩", False),
        ("二月", "三月的前一个月是二月。", True),
        ("二月", "十二月", False),
        ("不是", "不是", True),
        ("不是", "是", False),
        ("非洲", "埃及在非洲。", True),
    ],
)
def test_chinese(target, completion, right):
    assert is_right(target, completion, (), WRONG) is right


@pytest.mark.parametrize(
    ("target", "completion", "right"),
    [
        ("RIVER", "river", False),
        ("RIVER", "It is RIVER.", True),
        ("H2O", "The formula is H2O.", True),
        ("H2O", "h2o", False),
        ("H2O", "H2O2", False),
        ("B", "The letter after A is B.", True),
        ("B", "A bee", False),
        ("c-a-t", "C-A-T", True),
        ("thank you", "Thank  you!", True),
        ("Sun", "sunny", False),
    ],
)
def test_case_and_boundaries(target, completion, right):
    assert is_right(target, completion) is right


@pytest.mark.parametrize(
    ("target", "completion", "question", "right"),
    [
        ("7", "7 days", "", True),
        ("7", "１７", "", False),
        ("100", "100.0", "", True),
        ("100", "100000000000000", "", False),
        ("100", "There are 100 centimetres in 1 metre.", "How many centimetres are in 1 metre?", True),
        ("100", "There are 100 centimetres in 1 metre.", "", False),
        ("14", "6 + 8 = 14", "What is 6 + 8?", True),
        ("14", "6 + 8 = 15", "What is 6 + 8?", False),
        ("14", "The answer is 14.", "What is 6 + 8?", True),
        ("42", "27 + 15 = 30 + 12 = 42", "What is 27 + 15?", True),
        ("14", "14 or 15", "", False),
        ("14", "15, 14", "", False),
        ("14", "12, 13, 14, 15", "", False),
        ("3", "3 or 7", "Which is less, 3 or 7?", False),
        ("55", "34+21=55", "34+21等于多少？", True),
        ("12", "一年有十二个月。", "一年有几个月？", True),
        ("24", "There are twenty-four hours.", "", True),
        ("8", "A spider has eight legs.", "", True),
        ("8", "eight or nine", "", False),
        ("8", "Not eight.", "", False),
        ("8", "", "", False),
    ],
)
def test_numbers_are_exact(target, completion, question, right):
    assert is_right(target, completion, ("eight",), (), question) is right
