"""Numbers and equations are read exactly, in bounded time, whatever a model wrote."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmtune.arithmetic.characters import normalize_answer
from glmtune.arithmetic.expressions import MOST_EXPONENT, MOST_NESTING
from glmtune.arithmetic.reading import (
    equation_value,
    final_number,
    find_numbers,
    read_answer,
    write_number,
)


def numbers_in(text):
    """The values of all numbers of a text; those that divide by zero are left out."""
    return [found.value for found in find_numbers(normalize_answer(text)) if found.value is not None]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("16 eggs, 3 for breakfast and 4.5", "16 3 9/2"),
        ("1,234 and 1,234,567.5 but 1, 2,3", "1234 2469135/2 1 2 3"),
        ("１２．５，３；－４", "25/2 3 -4"),
        ("负3, －３, −3; -3 a -3", "-3 -3 -3 -3 -3"),
        ("5-3, 5 - 3, (2)-1, x-5", "5 3 5 3 2 1 5"),
        ("is -5, =-6, (-7), 是-8，-$9", "-5 -6 -7 -8 -9"),
        ("- 5 apples\n- 6 pears", "5 6"),
        ("3/4, 1 3/4, 1(3/4), 4又1/2, 2½, \\frac{3}{4}, 2\\dfrac{3}{4}", "3/4 7/4 7/4 9/2 5/2 3/4 11/4"),
        ("5 7/2", "5 7/2"),
        ("20%, 20 percent, 百分之20, ２０％", "1/5 1/5 1/5 1/5"),
        ("2.5万 3亿", "25000 300000000"),
        ("H2O, 1e5, 1.2.3, 5/0, 7kg, $8, ￥9, 10元", "100000 7 8 9 10"),
        ("a 5。3 b 5。", "53/10 5"),
        ("nothing", ""),
    ],
)
def test_numbers(text, wanted):
    assert numbers_in(text) == [Fraction(one) for one in wanted.split()]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nShe makes 9 * 2 = $<<9*2=18>>18 every day\n#### 18", "18"),
        ("#### 5\nno: #### 2,125 dollars\nchecked 3 times", "2125"),
        ("####-10", "-10"),
        ("so \\boxed{42}, not 43", "42"),
        ("\\boxed{\\frac{1}{2}}", "1/2"),
        ("$\\boxed{x = 3\\text{ cm}}$ or 4", "3"),
        ("\\boxed{1{,}234\\%}", "1234/100"),
        ("The answer is 13+75=88, which is 90.", "88"),
        ("The final answer is: $1,200. That is 3 times more", "1200"),
        ("the answer is 5, since 12-5=7", "5"),
        ("12-5=7. The answer is that, in all, 5 remain.", "5"),
        ("答案是５个。共有9个", "5"),
        ("一共3个，答：还剩－２℃。", "-2"),
        ("答案为3又1/2小时", "7/2"),
        ("25.31+86.35=111.66", "5583/50"),
        ("57÷3＝１９（本）", "19"),
        ("x=(482500-250000)/(250000*6.2%)=15", "15"),
        ("x=3(1/5)*3(1/5)/1(3/5)=6(2/5)", "32/5"),
        ("x=5/8=(5/8)", "5/8"),
        ("= about 7 m", "7"),
        ("he has 3 apples and 4 pears, so 7 pieces", "7"),
        ("25%", "1/4"),
        ("5=", "5"),
    ],
)
def test_final_number(text, wanted):
    assert final_number(text) == Fraction(wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Therefore it is 14 (not 15).", "14"),
        ("The answer isn't 5, it's 6.", "6"),
        ("不是5，是6", "6"),
        ("not only 5", "5"),
        ("1/2 or 0.5", "1/2"),
        ("50% or 0.5", "1/2"),
        ("3 or 4 each, so 7", "7"),
        ("#### 3 * 4 = 12 apples\nThat is 5 more.", "12"),
        ("2\\ \\frac{1}{2}", "5/2"),
        ("90^{\\circ}", "90"),
        ("$1.5tn", str(15 * 10**11)),
        ("5 tan shirts", "5"),
        ("3元5天", "5"),
        ("1 hour 30 minutes = 90 minutes", "90"),
        ("得到5", "5"),
    ],
)
def test_what_is_denied_doubted_or_worked_out_beside_the_answer(text, wanted):
    assert final_number(text) == Fraction(wanted)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "\\frac{\\sqrt{3}}{2}",
            "\\boxed{2\\sqrt3}",
            "The answer is 5 ln 2",
            "log_2 8",
            "\\log_{2} 8",
            "sin(30)",
            "\\pi/2",
        ),
        *("e^{-2}", "x^(2)", "|-5|", "3 pi", "2*pi", "The answer is 20% of $50", "The answer is not 5."),
        *("3 or 4", "The answer is either 3 or 4.", "x = 1 or x = 2", "x=1或2", "3块5", "1米75", "5 feet 6 inches"),
        *("The answer is 42 dollars and 50 cents.", "2小时30分钟", "20到25", "5 +/- 1"),
    ],
)
def test_what_may_mean_two_things_or_is_not_worked_out(text):
    assert final_number(text) is None


@pytest.mark.parametrize("text", ["", "no idea", "x=2*3", "2+3", "the answer is 6/0", "3/4/5", "x=2*(3+4)", "3:4"])
def test_what_is_no_final_number(text):
    assert final_number(text) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x=(482500-250000)/(250000*6.2%)=15", "15"),
        ("x=3.14*(10/2)**2=78.5", "157/2"),
        ("x=3.14*(10/2)^2", "157/2"),
        ("x=1/[(1-((12+15)/(30)))/(24-15)]", "90"),
        ("x=3(1/5)*3(1/5)/1(3/5)=6(2/5)", "32/5"),
        ("Ｘ＝｛１＋【２×（３－４）】｝÷２", "-1/2"),
        ("解：设需要x天，x = 10：4 = 2.5", "5/2"),
        ("(12/(1/2000))/100=240", "240"),
        ("x=5+3元", "8"),
        ("x=3\nx=-2^2", "-4"),
        ("x=2**3**2", "512"),
        ("x=2^-2*--3", "3/4"),
        ("x=50%%", "1/200"),
        ("x=.5", "1/2"),
    ],
)
def test_equation_value(text, wanted):
    assert equation_value(text) == Fraction(wanted)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x=",
        "x=1/0",
        "x=1/(2-2)=3",
        "x=0^-1",
        "x=2^0.5",
        "x=(1+2",
        "x=1+2)",
        "x=(1+2]",
        "x=1+",
        "x=2(3+4)",
        "x=5%3",
        "x=3+4y",
        "no equation",
        "x=__import__('os')",
        f"x=2^{MOST_EXPONENT + 1}",
        "x=9^99^99^99",
        "x=" + "^".join("1" * 100),
        "x=" + "(" * (MOST_NESTING + 1) + "1" + ")" * (MOST_NESTING + 1),
        "x=" + "(" * 100_000,
        "x=" + "1+" * 100_000 + "1",
        "x=" + "(2^100)^100" + "*(2^100)^100" * 50,
        "x=" + "1" * 1001,
    ],
)
def test_what_has_no_value(text):
    assert equation_value(text) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"x=6\div\frac{3}{4}", "8"),  # not 6/3/4
        (r"x=-\frac{3}{4}+1", "1/4"),
        ("x=1,000*2", "2000"),
        (r"x=10\,000+1{,}000", "11000"),
        ("x=3×10⁵", "300000"),
        ("<think>x=5</think>x=6", "6"),
    ],
)
def test_equations_as_they_are_written(text, wanted):
    assert equation_value(text) == Fraction(wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("答案是——12。", "12"),
        ("--12", "12"),
        ("- 5", "-5"),  # the whole answer, no list
        ("x = - 5", "-5"),
        ("3-8 is minus 5", None),  # two numbers
        ("minus 5", "-5"),
        ("10,\\!000", "10000"),
        ("12，345元", "12345"),
        ("**42** (six times seven)", "42"),
        ("**42**.", "42"),
        ("9\u202f500", "9500"),
        ("2.5万", "25000"),
        ("<think>1 or 2</think>3", "3"),
        ("1,5", None),
        ("5 -3", None),
        ("1e3", None),
        ("3/4", None),
        ("五", None),
        ("80less8", None),
        ("12得gives-41.12", None),
        ("gives-41.12", "-41.12"),
        ("is5", "5"),
        ("x1=5", "5"),
        ("1" * 1000, "1" * 1000),
        ("1" * 1001, None),
    ],
)
def test_short_answers(text, wanted):
    assert read_answer(text) == wanted


def test_too_long_numbers_are_not_cut():
    assert final_number("7" * 1000) == int("7" * 1000)
    for text in ("7" * 1001, "1" + ",111" * 400, "0." + "3" * 1001, "1e1001", "9^101", "1.(" + "3" * 1001 + ")"):
        assert final_number(text) is None
    assert write_number(final_number("9" * 1000 + "e1000")) == "9" * 1000 + "0" * 1000


FRACTIONS = st.fractions(max_denominator=10**6).filter(lambda value: abs(value) < 10**12)
DECIMALS = st.integers(-(10**12), 10**12).map(lambda units: Fraction(units, 10**4))
AROUND = st.sampled_from(["", " 元", "个。", " dollars.", "\n", " kg, I think"])


def thousands(value):
    """A decimal with separators, in full width or not."""
    sign, text = ("-" if value < 0 else ""), write_number(abs(value))
    whole, point, rest = text.partition(".")
    return sign + f"{int(whole):,}" + point + rest


@given(FRACTIONS, AROUND)
def test_written_numbers_are_read_back(value, around):
    assert Fraction(write_number(value)) == value
    for text in (
        f"#### {write_number(value)}",
        f"the answer is {write_number(value)}{around}",
        f"答案是{write_number(value)}{around}",
    ):
        assert final_number(text) == value
    assert numbers_in(f"a {write_number(value)}{around}") == [value]


@given(DECIMALS, AROUND)
def test_decimals_in_every_dress(value, around):
    wide = str.maketrans("0123456789.,-", "０１２３４５６７８９．，－")
    for text in (thousands(value), thousands(value).translate(wide), write_number(value).translate(wide)):
        assert final_number(f"所以={text}{around}") == value
        assert numbers_in(f"{text}{around}") == [value]
    assert final_number(f"\\boxed{{{thousands(value * 100)}\\%}}") == value


@given(st.integers(0, 10**6), st.integers(1, 999), st.integers(2, 1000))
def test_mixed_numbers(whole, above, below):
    above %= below
    value = Fraction(whole) + Fraction(above, below)
    for text in ("{}({}/{})", "{} {}/{}", "{}又{}/{}", "{}\\frac{{{}}}{{{}}}"):
        assert numbers_in(text.format(whole, above, below)) == [value], text
        assert final_number("x=" + text.format(whole, above, below)) == value
    assert equation_value(f"x={whole}({above}/{below})") == value


def expressions():
    """(text, value or None where it divides by zero), by combining smaller ones."""
    leaves = st.integers(0, 999).map(lambda n: (str(n), Fraction(n))) | st.integers(0, 9999).map(
        lambda n: (f"{n // 100}.{n % 100:02}", Fraction(n, 100))
    )

    def combine(parts):
        def join(left, right, operator, brackets):
            values = left[1], right[1]
            text = f"{brackets[0]}{left[0]}{operator}{right[0]}{brackets[1]}"
            if None in values or (operator == "/" and values[1] == 0):
                return text, None
            results = {"+": sum(values), "-": values[0] - values[1], "*": values[0] * values[1]}
            return text, results[operator] if operator in results else values[0] / values[1]

        joined = st.builds(join, parts, parts, st.sampled_from("+-*/"), st.sampled_from(["()", "[]", "{}"]))
        percent = parts.map(lambda part: (f"({part[0]})%", None if part[1] is None else part[1] / 100))
        squared = parts.map(lambda part: (f"({part[0]})**2", None if part[1] is None else part[1] ** 2))
        return joined | percent | squared

    return st.recursive(leaves, combine, max_leaves=12)


@given(expressions())
def test_expressions_have_their_exact_value(expression):
    text, value = expression
    assert equation_value(f"x={text}") == value
    spaced = text.replace("+", " ＋ ").replace("*", "×").replace("××", "^").replace("/", "÷").replace("(", "（")
    assert equation_value(f"解:X = {spaced}=1") == value


SIGNS = [
    *"0123456789.,+-*/^%()[]{}=x# $~_±'|\n:万亿千百负点半个一二十零〇分之又年月日，",
    *"½⅓²⁵⁻",
    "\u202f",
    "\\frac",
    "\\boxed{",
]
SIGNS += [
    "the answer is ",
    "答案是",
    "minus ",
    "negative ",
    "**",
    "####",
    "\n- ",
    "1. ",
    "\n2. ",
    "e",
    "k",
    " million",
    "<think>",
]
SIGNS += [
    "twenty",
    "-one",
    " hundred",
    " and ",
    "five ",
    "\\text{",
    "\\,",
    "\\!",
    "\\times",
    "Step ",
    "</think>",
    "10^",
    "percent",
]


@given(st.lists(st.sampled_from(SIGNS), max_size=60).map("".join))
def test_nothing_fails_on_what_numbers_are_made_of(text):
    for value in (final_number(text), equation_value(text), *numbers_in(text)):
        assert value is None or (isinstance(value, Fraction) and write_number(value))
    answer = read_answer(text)
    assert answer in (None, "undefined") or Fraction(answer) is not None


@given(st.text(st.sampled_from("0123456789.,+-*/^%()[]{}=x# $是答案answer i\\boxed\\frac\n:万负"), max_size=80))
def test_nothing_fails(text):
    numbers_in(text)
    assert final_number(text) is None or final_number(text) in numbers_in(text)
    value = equation_value(text)
    assert value is None or isinstance(value, Fraction)


@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "1,",
        "111,",
        "1.",
        "-",
        "1-",
        "(",
        "x=",
        "=",
        "####",
        "\\boxed{",
        "答案是",
        "\\frac{",
        "1/",
        "<<",
        " ",
        "1 1/",
        *(
            "一",
            "半",
            "二a",
            "one ",
            "hundred and ",
            "- 1\n",
            "1. a\n",
            "Step 1 ",
            "1 x ",
            "1(",
            "0.1(",
            "1^",
            "1e",
            "分之",
        ),
        *("**a", "*a ", "_a ", "~~a", "<think>", "\\frac12", "\\text{", "1万", "1\\,111", "((", "is - 5 ", "#### 1"),
    ],
)
def test_long_texts_take_no_time(piece):
    """Of any text, the last 20,000 characters are read, in some 25 ms of an idle processor."""
    text = piece * (200_000 // len(piece))
    final_number("1")  # compiles the table
    for read in (final_number, read_answer, equation_value):
        taken = []
        for _ in range(3):  # a collection of garbage may fall into one of them
            started = time.process_time()
            read(text)
            taken.append(time.process_time() - started)
        assert min(taken) < 0.15
    numbers_in(text)
