"""Numbers and equations in free text, read exactly: `Fraction`s throughout, and nothing that a model wrote is run.

All work is bounded: texts, numbers, nesting, exponents and results have largest sizes, and what is beyond them is None.
There are two readers of answers: `read_answer` takes the one number of a short answer as it is written, and
`final_number` finds the number that a whole explanation ends with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from glmtune.arithmetic.characters import CURRENCIES, MULTIPLIERS, normalize_answer, normalize_problem
from glmtune.arithmetic.expressions import NUMBER, NUMBER_START, UNDEFINED, ExpressionError, evaluate_start
from glmtune.arithmetic.working import DRAFT_MARK, STEP

MOST_EXPRESSION = 1000  # characters of an expression
MOST_DIGITS = 1000  # of a number in free text, before the point and after it

# A short answer.
_SIGNED_NUMBER = re.compile(rf"{NUMBER_START}-?{NUMBER}(?![.,]?\d)")
_NO_NUMBER = re.compile(r"\d\s*(?:[-+*/]|e[-+]?)\s*-?\.?\d|\d\s*[%^²³¹⁰-⁹]", re.IGNORECASE)  # 2+3, 6/8, 1e5, 2^3, 5%

# A number in free text.
_CANDIDATE = re.compile(r"(?<![\d.A-Za-z_])(?:\d|\.\d)")  # not within a number or a name: the 2 of H2O, the 5 of 1e5
_NUMBER = rf"{NUMBER}(?!\.?\d|[eE][-+]?\d)"
_MIXED = re.compile(r"(\d{1,100})(?:\s?\(\s?|\s|\s?又\s?)(\d{1,100})\s?/\s?(\d{1,100})(?!\.?\d)\)?")
_MIXED_FACTOR = re.compile(r"(?<![\d.])(\d{1,100})\((\d{1,100})/(\d{1,100})\)")
_RATIO = re.compile(rf"({_NUMBER})\s?/\s?({_NUMBER})")
_SINGLE = re.compile(rf"({_NUMBER})")
_SUFFIX = re.compile(rf"\s?(%|percent\b)|\s?([{''.join(MULTIPLIERS)}])")

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
    rf"\s{{0,3}}(?:≈|~|about|approximately|大约|约)?\s{{0,3}}(?:负|-)?\s{{0,3}}[{CURRENCIES}]?[(\[{{\s]{{0,3}}(?=\.?\d)"
)
_UNKNOWN = re.compile(r"(?<![A-Za-z])[xX]\s{0,3}=")
_EXPRESSION_GOES_ON = re.compile(r"\s*[-+*/^%().\[\]{}\d]|[xyzXYZ](?![A-Za-z])")


@dataclass(frozen=True)
class NumberInText:
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


def read_answer(text: str) -> str | None:
    """Return the one number after the last `=` or draft of a text, as written; None where there is none, or several.

    `25.31+86.35=111.66` -> `111.66`; `19+23=24|42` -> `42`; `答案是111.66。` -> `111.66`; `88, or 90` -> None. What is
    still to be worked out is no number: `2+3`, `6/8`, `1e5`, `5%` -> None.
    """
    tail = normalize_problem(text).rpartition("=")[2].rpartition(DRAFT_MARK)[2].strip()
    if tail.endswith(STEP):  # cut off within the working
        return None
    if _NO_NUMBER.search(tail):
        return None
    if tail.startswith("-"):
        tail = "-" + tail[1:].lstrip()
    numbers = set(_SIGNED_NUMBER.findall(tail))
    if len(numbers) == 1:
        return numbers.pop().replace(",", "")
    return UNDEFINED if not numbers and UNDEFINED in tail.lower() else None


def final_number(text: str) -> Fraction | None:
    r"""Return the number that a text gives as its answer.

    That is the last `#### x`, else the last `\boxed{x}`, else what follows "the answer is" or "答案是", else what
    follows the last `=`, else the last number. None where there is none, and where it is still to be worked out: `2*3`.
    """
    found = find_final_number(text)
    return found.value if found is not None else None


def find_final_number(text: str) -> NumberInText | None:
    """Return the number that `final_number` gives the value of, with how it is written."""
    return _final(normalize_answer(text))


def equation_value(text: str) -> Fraction | None:
    """Return the value of the expression behind the last `x=`, or of a text that is one: `x=(3+4)/2=3.5` -> 7/2.

    What follows a second `=` is not read. Known are + - * / ** ^ : % and brackets of all kinds, also nested;
    `1(3/4)` is a mixed number. None where there is no such expression, or one that divides by zero or is too large.
    """
    text = normalize_answer(text)
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


def write_number(value: Fraction) -> str:
    """Write a value as a decimal where that is short, else as a fraction: `3/2` -> `1.5`, `1/3` -> `1/3`."""
    for places in range(13):
        if 10**places % value.denominator == 0:
            units = abs(value.numerator) * (10**places // value.denominator)
            whole, rest = divmod(units, 10**places)
            return "-" * (value < 0) + str(whole) + (f".{rest:0{places}}" if places else "")
    return str(value)


def _final(text: str) -> NumberInText | None:
    """Return the answer in a normalized text; None where it is still to be worked out."""
    _, mark, tail = text.rpartition("####")
    if mark:
        return _result(next(find_numbers(tail.lstrip().partition("\n")[0]), None))
    boxed = _boxed(text)
    if boxed is not None:
        return _result(next(find_numbers(boxed.rpartition("=")[2]), None))
    *_, said = (None, *_ANSWER.finditer(text))
    if said is not None:
        for piece in _PIECES.split(text[said.end() :].lstrip(), maxsplit=5)[:5]:
            found = next(find_numbers(piece.rpartition("=")[2]), None)
            if found is not None:
                return _result(found)
    _, mark, tail = text.rstrip(" \n=?").rpartition("=")
    if mark and _AFTER_EQUALS.match(tail):
        return _result(next(find_numbers(tail), None))
    *_, last = (None, *find_numbers(text))
    return _result(last)


def _result(found: NumberInText | None) -> NumberInText | None:
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


def _mixed_sum(found: re.Match[str]) -> str:
    """`1(3/4)` -> `(1+3/4)`; a fraction that is none, `3(4/2)`, stays."""
    whole, above, below = found.groups()
    return f"({whole}+{above}/{below})" if int(above) < int(below) else found[0]


def find_numbers(text: str) -> Iterator[NumberInText]:
    """Yield the numbers of a normalized text, from the first to the last.

    `1,234.5`, `－３`, `负3`, `3/4`, `1 3/4`, `1(3/4)`, `4又1/2`, `20%`, `百分之20` and `2.5万` are one number each; a
    unit behind a number is no part of it.
    """
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
            value = value / 100 if is_percent else value * MULTIPLIERS.get(suffix[2] if suffix else "", 1)
            value = -value if _is_negative(before) else value
        is_result = value is not None and not (_OPERATOR_BEFORE.search(before) or _OPERATOR_AFTER.match(text, place))
        yield NumberInText(value, start, place, is_percent, is_result)


def _is_negative(before: str) -> bool:
    """Whether the end of what stands before a number is a sign, no operator (`5-3`) and no bullet (`- 3 apples`)."""
    before = before.rstrip(CURRENCIES)
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
        above, below = map(_exact_value, ratio.groups())
        return None if above is None or below is None else ((above / below if below else None), ratio.end())
    single = _SINGLE.match(text, start)
    value = _exact_value(single[1]) if single is not None else None
    return (value, single.end()) if single is not None and value is not None else None


def _exact_value(number: str) -> Fraction | None:
    """Return the value of a number as it is written; None where it is too long."""
    whole, _, decimals = number.replace(",", "").partition(".")
    return Fraction(number.replace(",", "")) if max(len(whole), len(decimals)) <= MOST_DIGITS else None


def _digits(text: str, start: int) -> str:
    """The digits and points that begin at a place; at least one."""
    end = start + 1
    while end < len(text) and (text[end].isdigit() or text[end] == "."):
        end += 1
    return text[start:end]
