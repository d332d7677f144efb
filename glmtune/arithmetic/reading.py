"""Numbers and equations in free text, read exactly: `Fraction`s throughout, and nothing that a model wrote is run.

All work is bounded: texts, numbers, nesting, exponents and results have largest sizes, and what is beyond them is None.
Expressions are read by `glmtune.arithmetic.expressions`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from glmtune.arithmetic.expressions import ExpressionError, evaluate_start

Judgement = tuple[Literal["exact", "equal", "wrong", "unparseable"], str | None]  # verdict, the answer that was read

MOST_CHARACTERS = 20_000  # of a text; of a longer one, only the end is read
MOST_EXPRESSION = 1000  # characters of an expression

_FULL_WIDTH = {ord("！") + offset: ord("!") + offset for offset in range(94)} | {ord("\u3000"): " ", ord("，"): ";"}
_LOOKALIKES = str.maketrans("×✕✖∗·⋅÷∕⁄➗−‐‑‒–—―➖﹣⁻➕﹢【】〔〕、￥\u00a0\u2009", "******////----------++[][];¥  ")
_WRITTEN_OUT = {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3", "²": "^2", "³": "^3"}
_PLAIN: dict[int, int | str] = {**_FULL_WIDTH, **_LOOKALIKES, **{ord(one): text for one, text in _WRITTEN_OUT.items()}}
_LATEX = {r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": "", "{,}": ",", r"\%": "%", r"\$": "$"}
_LATEX_SIGNS = re.compile("|".join(map(re.escape, _LATEX)))
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s?\{([^{}]{1,100})\}\s?\{([^{}]{1,100})\}")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mbox|mathbf)\s?\{([^{}]{0,100})\}|\\[,;:! ]|\\quad")
_CALCULATION = re.compile(r"<<[^<>]{0,200}>>")  # GSM8K's notes for a calculator
_POINT = re.compile(r"(?<=\d)。(?=\d)")
_WIDE_THOUSANDS = re.compile(r"(?<=[０-９])，(?=[０-９]{3}(?![０-９]))")

_START = r"(?<![\d.A-Za-z_])"  # not within a number or a name: the 2 of H2O, the 5 of 1e5
_END = r"(?!\.?\d|[eE][-+]?\d)"
_NUMBER = rf"(?:(?:\d{{1,3}}(?:,\d{{3}}){{1,20}}(?!\d)|\d{{1,1000}})(?:\.\d{{1,1000}})?|\.\d{{1,1000}}){_END}"
_MIXED = re.compile(r"(\d{1,100})(?:\s?\(\s?|\s|\s?又\s?)(\d{1,100})\s?/\s?(\d{1,100})(?!\.?\d)\)?")
_MIXED_FACTOR = re.compile(r"(?<![\d.])(\d{1,100})\((\d{1,100})/(\d{1,100})\)")
_RATIO = re.compile(rf"({_NUMBER})\s?/\s?({_NUMBER})")
_SINGLE = re.compile(rf"({_NUMBER})")
_CANDIDATE = re.compile(rf"{_START}(?:\d|\.\d)")
_SUFFIX = re.compile(r"\s?(%|percent\b)|\s?([万亿])")
_MULTIPLIERS = {"万": 10**4, "亿": 10**8}

# What stands before a number, the last characters of the text so far.
_HUNDREDTHS = re.compile(r"百分之\s?$")
_OPERATOR_BEFORE = re.compile(r"[\d)\]}%](?:\s{0,3}[-+*/^]\s{0,3}|:)[-(\[{]{0,3}\s?$")
_OPERATOR_AFTER = re.compile(r"[)\]}]{0,3}\s{0,3}(?:[-+*/^]{1,2}\s{0,3}[\d(.\[{]|:\d)")
_LOOK_BACK = 16

_ANSWER = re.compile(
    r"answer\s{0,2}(?:is|=|:|would be|equals)+\s{0,2}:?|答案?\s{0,2}(?:应该)?(?:是|为|等于|:|=)\s{0,2}:?", re.IGNORECASE
)
_PIECES = re.compile(r"\n|。|;|[.,!?](?:\s|$)")
_AFTER_EQUALS = re.compile(
    r"\s{0,3}(?:≈|~|about|approximately|大约|约)?\s{0,3}(?:负|-)?\s{0,3}[$¥€£]?[(\[{\s]{0,3}(?=\.?\d)"
)
_UNKNOWN = re.compile(r"(?<![A-Za-z])[xX]\s{0,3}=")
_EXPRESSION_GOES_ON = re.compile(r"\s*[-+*/^%().\[\]{}\d]|[xyzXYZ](?![A-Za-z])")


@dataclass(frozen=True)
class Found:
    """A number in a text.

    Attributes:
        value: None where it divides by zero.
        start, end: where it stands, without its sign.
        is_percent: it was written in hundredths; `value` is the hundredth part.
        is_result: no operator beside it leaves something to be worked out.
    """

    value: Fraction | None
    start: int
    end: int
    is_percent: bool
    is_result: bool


def plain(text: str) -> str:
    """The end of a text, in ASCII where digits, punctuation, operators and LaTeX's fractions are concerned."""
    text = _CALCULATION.sub("", text[-MOST_CHARACTERS:])
    text = _POINT.sub(".", _WIDE_THOUSANDS.sub(",", text)).translate(_PLAIN)
    if "\\" in text:
        text = _LATEX_SIGNS.sub(lambda found: _LATEX[found[0]], text)
        text = _LATEX_FRACTION.sub(_fraction, text)
        text = _LATEX_TEXT.sub(lambda found: f" {found[1] or ''} ", text)
    return text


def numbers_in(text: str) -> list[Fraction]:
    """All numbers of a text, in order; those that divide by zero are left out.

    `1,234.5`, `－３`, `负3`, `3/4`, `1 3/4`, `1(3/4)`, `4又1/2`, `20%`, `百分之20` and `2.5万` are one number each; a
    unit behind a number is no part of it.
    """
    return [found.value for found in _numbers(plain(text)) if found.value is not None]


def final_number(text: str) -> Fraction | None:
    r"""The number that a text gives as its answer.

    That is the last `#### x`, else the last `\boxed{x}`, else what follows "the answer is" or "答案是", else what
    follows the last `=`, else the last number. None where there is none, and where it is still to be worked out: `2*3`.
    """
    found = _final(plain(text))
    return found.value if found is not None else None


def equation_value(text: str) -> Fraction | None:
    """The value of the expression behind the last `x=`, or of a text that is an expression: `x=(3+4)/2=3.5` -> 7/2.

    What follows a second `=` is not read. Known are + - * / ** ^ : % and brackets of all kinds, also nested;
    `1(3/4)` is a mixed number. None where there is no such expression, or one that divides by zero or is too large.
    """
    text = plain(text)
    start = 0
    for found in _UNKNOWN.finditer(text):
        start = found.end()
    text = _MIXED_FACTOR.sub(_mixed_sum, text[start : start + MOST_EXPRESSION + 1].partition("=")[0])
    if len(text) > MOST_EXPRESSION:
        return None
    try:
        value, rest = evaluate_start(text.replace(":", "/"))
    except ExpressionError:
        return None
    return None if _EXPRESSION_GOES_ON.match(rest) else value


def written(value: Fraction) -> str:
    """A value as a decimal where that is short, else as a fraction: `3/2` -> `1.5`, `1/3` -> `1/3`."""
    for places in range(13):
        if 10**places % value.denominator == 0:
            units = abs(value.numerator) * (10**places // value.denominator)
            whole, rest = divmod(units, 10**places)
            return "-" * (value < 0) + str(whole) + (f".{rest:0{places}}" if places else "")
    return str(value)


def exact(target: str, completion: str) -> Judgement:
    """`exact`: the same text; `equal`: the same but for runs of blanks; else `wrong`, or `unparseable` if empty."""
    answer = completion.strip()
    if answer == target.strip():
        return "exact", answer
    same = answer.split() == target.split()
    return ("equal" if same else "wrong") if answer else "unparseable", answer


def numeric(target: str, completion: str) -> Judgement:
    """Compare final numbers by value; a target without one is compared as a text.

    `exact` is the same text, `equal` the same value. 25% equals 0.25, and also 25: the question may have
    named the unit.
    """
    wanted, given = _final(plain(target)), _final(plain(completion))
    if wanted is None or wanted.value is None:
        return exact(target, completion)
    if given is None or given.value is None:
        return "unparseable", None
    if completion.strip() == target.strip():
        return "exact", written(given.value)
    same = given.value == wanted.value
    if given.is_percent != wanted.is_percent:
        same = same or given.value * (100 if given.is_percent else 1) == wanted.value * (
            100 if wanted.is_percent else 1
        )
    return "equal" if same else "wrong", written(given.value)


def equation(target: str, completion: str) -> Judgement:
    """Compare the values of two equations `x=...` as exact fractions; the results behind them are not read.

    A completion without an equation is right if its final number is the target's value, or the result that the target
    states, which may be rounded. A target that is no equation is compared by its number.
    """
    wanted = equation_value(target)
    if wanted is None:
        return numeric(target, completion)
    given = equation_value(completion)
    if given is None:
        stated = final_number(target)
        given = final_number(completion)
        if given is not None and given == stated:
            given = wanted
    if given is None:
        return "unparseable", None
    if completion.strip() == target.strip():
        return "exact", written(given)
    return "equal" if given == wanted else "wrong", written(given)


def _final(text: str) -> Found | None:
    """The answer in a text that is `plain`; None where it is still to be worked out."""
    _, mark, tail = text.rpartition("####")
    if mark:
        return _result(next(_numbers(tail.lstrip().partition("\n")[0]), None))
    boxed = _boxed(text)
    if boxed is not None:
        return _result(next(_numbers(boxed.rpartition("=")[2]), None))
    *_, said = (None, *_ANSWER.finditer(text))
    if said is not None:
        for piece in _PIECES.split(text[said.end() :].lstrip(), maxsplit=5)[:5]:
            found = next(_numbers(piece.rpartition("=")[2]), None)
            if found is not None:
                return _result(found)
    _, mark, tail = text.rstrip(" \n=?").rpartition("=")
    if mark and _AFTER_EQUALS.match(tail):
        return _result(next(_numbers(tail), None))
    *_, last = (None, *_numbers(text))
    return _result(last)


def _result(found: Found | None) -> Found | None:
    return found if found is not None and found.is_result else None


def _boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start, depth = start + len("\\boxed{"), 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return text[start:]


def _fraction(found: re.Match[str]) -> str:
    r"""`\frac{3}{4}` -> ` 3/4`, `\frac{a+b}{4}` -> `(a+b)/(4)`."""
    above, below = found[1].strip(), found[2].strip()
    return f" {above}/{below}" if above.isdigit() and below.isdigit() else f"({above})/({below})"


def _mixed_sum(found: re.Match[str]) -> str:
    """`1(3/4)` -> `(1+3/4)`; a fraction that is none, `3(4/2)`, stays."""
    whole, above, below = found.groups()
    return f"({whole}+{above}/{below})" if int(above) < int(below) else found[0]


def _numbers(text: str) -> Iterator[Found]:
    """The numbers of a text that is `plain`, from the first to the last."""
    place = 0
    while (candidate := _CANDIDATE.search(text, place)) is not None:
        start = candidate.start()
        read = _magnitude(text, start)
        if read is None:  # too long, or no number: 1.2.3
            place = start + len(_digits(text, start))
            continue
        value, place = read
        before = text[max(0, start - _LOOK_BACK) : start]
        suffix = _SUFFIX.match(text, place)
        is_percent = bool((suffix and suffix[1]) or _HUNDREDTHS.search(before))
        if suffix is not None:
            place = suffix.end()
        if value is not None:
            value = value / 100 if is_percent else value * _MULTIPLIERS.get(suffix[2] if suffix else "", 1)
            value = -value if _is_negative(before) else value
        is_result = value is not None and not (_OPERATOR_BEFORE.search(before) or _OPERATOR_AFTER.match(text, place))
        yield Found(value, start, place, is_percent, is_result)


def _is_negative(before: str) -> bool:
    """Whether the end of what stands before a number is a sign, no operator (`5-3`) and no bullet (`- 3 apples`)."""
    before = before.rstrip("$¥€£")
    if before.endswith(("负", "负 ", "negative ")):
        return True
    signed = before.rstrip(" ")
    if not signed.endswith("-"):
        return False
    is_apart, left = signed != before, signed[:-1].rstrip(" ")
    if not left or left[-1] == "\n":
        return not is_apart
    if left[-1] in "0123456789)]}%":
        return False
    if left[-1].isalpha():
        return not is_apart and (left != signed[:-1] or not left[-1].isascii())
    return True


def _magnitude(text: str, start: int) -> tuple[Fraction | None, int] | None:
    """The number that begins at a place, None as its value if it divides by zero, and where it ends."""
    mixed = _MIXED.match(text, start)
    if mixed is not None and int(mixed[2]) < int(mixed[3]):
        return Fraction(mixed[1]) + Fraction(int(mixed[2]), int(mixed[3])), mixed.end()
    ratio = _RATIO.match(text, start)
    if ratio is not None:
        above, below = (Fraction(part.replace(",", "")) for part in ratio.groups())
        return (above / below if below else None), ratio.end()
    single = _SINGLE.match(text, start)
    return (Fraction(single[1].replace(",", "")), single.end()) if single is not None else None


def _digits(text: str, start: int) -> str:
    """The digits and points that begin at a place; at least one."""
    end = start + 1
    while end < len(text) and (text[end].isdigit() or text[end] == "."):
        end += 1
    return text[start:end]
