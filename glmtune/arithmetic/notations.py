r"""How numbers are written: one table of notations, from which the reader, its tests and docs/numbers.md are made.

A notation is a row: a pattern without nested repetition, what its match is worth, and examples with their values. The
patterns are those of a text in its normal form (`characters.normalize_answer`), in which `\frac{3}{4}` is 3/4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from glmtune.arithmetic.numerals import (
    CHINESE,
    CHINESE_DIGITS,
    CHINESE_UNITS,
    ENGLISH_SCALES,
    ENGLISH_TENS,
    ENGLISH_UNITS,
    MOST_DIGITS,
    UNITS_AND_PARTS,
    chinese_value,
    decimal_value,
    english_value,
    is_part,
    power,
)

_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]+)?|\.[0-9]+)"
_END = r"(?!\.?[0-9]|[eE][-+]?[0-9])"  # not within a number
_EXPONENT = r" ?(?:\^|\*\*) ?(?:\{ ?|\( ?)?([-+]? ?[0-9]+)(?: ?\}| ?\))?"
_UNIT = r"(?:[万亿]|千(?![克米瓦卡赫焦帕伏字])|百(?![分帕]))"
_NUMERAL = rf"[{CHINESE}]{{1,40}}"
_ENGLISH = "|".join([*ENGLISH_UNITS, *ENGLISH_TENS, *ENGLISH_SCALES])
# What may follow a numeral of one sign or word, which otherwise is a part of some word: 一共, 一样, the one that.
_MEASURE = r"[个只条张本元块米岁人天年月次支件份辆]?(?=[^\w]|$)"

Match = re.Match[str]
Value = Fraction | None


@dataclass(frozen=True, eq=False)
class Notation:
    """One way to write numbers without a sign.

    Attributes:
        name: what it is, for people.
        pattern: of the number; `begins` says what a text before it must not be.
        value: of a match; None where it has none: it divides by zero, is too large, or means no number.
        examples: texts and their values, as `write_number` writes them; None: no number.
        begins: whether figures or words begin it.
        is_it: whether a match is this notation; others are tried where it is not.
        is_decimal: a row of digits, which the task of arithmetic takes as an answer.
        is_small: one sign or word, read only where an answer is expected.
    """

    name: str
    pattern: str
    value: Callable[[Match], Value]
    examples: Mapping[str, str | None]
    begins: Literal["figure", "chinese", "english"] = "figure"
    is_it: Callable[[Match], bool] | None = None
    is_decimal: bool = False
    is_small: bool = False

    @property
    def is_word(self) -> bool:
        """Whether it is written without figures."""
        return self.begins != "figure"


def _times(value: Value, factor: Value) -> Value:
    return None if value is None or factor is None else value * factor


def _sum(value: Value, other: Value) -> Value:
    return None if value is None or other is None else value + other


def _quotient(above: Value, below: Value) -> Value:
    return above / below if above is not None and below else None


def _scientific(found: Match) -> Value:
    return _times(decimal_value(found[1]), power(Fraction(10), found[2]))


def _mixed(found: Match) -> Value:
    return Fraction(found[1].replace(",", "")) + Fraction(int(found[2]), int(found[3]))


def _part_of(found: Match) -> Value:
    """`3又4分之1`: the denominator stands first; a unit alone is one as well: `百分之五`."""
    whole, below, above = (_number(part) if part else None for part in found.groups())
    share = _quotient(above, below)
    return share if found[1] is None else _sum(whole, share)


def _number(text: str) -> Value:
    if text in CHINESE_UNITS:  # 百分之百
        return Fraction(CHINESE_UNITS[text])
    return decimal_value(text) if text[-1] in "0123456789" else chinese_value(text)


def _recurring(found: Match) -> Value:
    whole, fixed, period = found[1] or "0", found[2], found[3] or found[4]
    if max(map(len, (whole, fixed, period))) > MOST_DIGITS:
        return None
    ends = Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    return Fraction(f"{whole}.{fixed or 0}") + ends


def _no_number(found: Match) -> Value:
    return None


_SHARE = rf"(?:[0-9]+(?:\.[0-9]+)?[千万亿]?|{_NUMERAL}(?:点[{''.join(CHINESE_DIGITS)}]{{1,40}})?)"
_PARTS = rf"(?:({_SHARE}) ?又 ?)?({_SHARE}) ?分之 ?({_SHARE})"

_DATE = r"[0-9]{4}年[0-9]{1,2}月(?:[0-9]{1,2}[日号])?|[0-9]{1,2}月[0-9]{1,2}[日号]"
_SMALLER = "|".join(rf"(?:{unit}) ?(?:and |又|零)?{_DECIMAL} ?(?:{part})" for unit, part in UNITS_AND_PARTS.items())
_TWO_UNITS = rf"{_DECIMAL} ?(?:{_SMALLER})"

# Of two notations that a text may be, the first is read.
NOTATIONS = (
    Notation("version", r"[0-9]+(?:\.[0-9]+){2,}", _no_number, {"1.2.3": None, "1.234.567,89": None}),
    Notation("date", _DATE, _no_number, {"2024年1月2日": None}),
    Notation("two units", _TWO_UNITS, _no_number, {"5元5角": None, "1 hour and 30 minutes": None}),
    Notation("part of", _PARTS, _part_of, {"3分之1": "1/3", "10万分之3": "0.00003", "2又3分之1": "7/3"}),
    Notation(
        "mixed number",
        r"([1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]{1,100})(?: ?\( ?| {1,3}| ?又 ?)([0-9]{1,100}) ?/ ?([0-9]{1,100})"
        r"(?!\.?[0-9])\)?",
        _mixed,
        {"1 3/4": "1.75", "1 ½": "1.5", "1(3/4)": "1.75", "4又1/2": "4.5", r"2\frac{3}{4}": "2.75"},
        is_it=lambda found: int(found[2]) < int(found[3]),
    ),
    Notation(
        "fraction in brackets",  # Math23K's
        r"([0-9]{0,100})\(\(([0-9]{1,100})\)/\(([0-9]{1,100})\)\)",
        lambda found: _sum(Fraction(found[1] or 0), _quotient(Fraction(found[2]), Fraction(found[3]))),
        {"((3)/(10))": "0.3", "7((1)/(3))": "22/3"},
    ),
    Notation(
        "recurring decimal",
        r"([0-9]*)\.([0-9]*)(?:\(([0-9]+)\)|\\(?:overline|bar|dot) ?\{?([0-9]+)\}?)",
        _recurring,
        {"0.(3)": "1/3", "0.1(6)": "1/6", r"0.\overline{142857}": "1/7", r"0.\dot{3}": "1/3"},
    ),
    Notation(
        "power of ten",
        rf"({_DECIMAL})(?:[eE]([-+]?[0-9]+)(?![0-9A-Za-z]|\.[0-9]))",
        _scientific,
        {"1.5e3": "1500", "1.5E+3": "1500", "1e-3": "0.001", "1e999999999": None},
    ),
    Notation(
        "times a power of ten",
        rf"({_DECIMAL})(?=[ *xX]) {{0,3}}[*xX] {{0,3}}10{_EXPONENT}{_END}",
        _scientific,
        {"1.5×10⁵": "150000", r"1.5 \times 10^{5}": "150000", r"1.5 \cdot 10^{-3}": "0.0015", "3*10^4": "30000"},
    ),
    Notation(
        "power",
        rf"({_DECIMAL}){_EXPONENT}{_END}",
        lambda found: power(decimal_value(found[1]), found[2]),
        {"2^{10}": "1024", "10^5": "100000", "10⁻⁵": "0.00001", "2**3": "8", "9^999999": None},
    ),
    Notation(
        "fraction",
        rf"({_DECIMAL}) ?/ ?({_DECIMAL}){_END}",
        lambda found: _quotient(decimal_value(found[1]), decimal_value(found[2])),
        {"3/4": "0.75", "3 / 4": "0.75", "½": "0.5", r"\dfrac34": "0.75", r"\frac{1}{3}": "1/3", "5/0": None},
    ),
    Notation("range", rf"{_DECIMAL} ?[~至到] ?{_DECIMAL}{_END}", _no_number, {"3~5": None, "3到5": None}),
    Notation(
        "thousands parted by blanks",
        r"[1-9][0-9]{0,2}(?:(?: [0-9]{3}){2,}| 000)(?:\.[0-9]+)?(?![.,]?[0-9])",
        lambda found: decimal_value(found[0].replace(" ", "")),
        {"1 234 567": "1234567", "9 000": "9000"},
        is_decimal=True,
    ),
    Notation("one blank", r"[1-9][0-9]{0,2} [0-9]{3}(?! ?/|[.,]?[0-9])", _no_number, {"9 500": None}),
    Notation(
        "Chinese unit",
        rf"{_DECIMAL} ?{_UNIT}{{1,3}}(?:零?{_DECIMAL}{_UNIT}{{1,3}}){{0,6}}(?:零?[0-9]{{1,4}}(?![0-9]|[.,][0-9]))?",
        lambda found: chinese_value(found[0].replace(",", "").replace(" ", "")) if len(found[0]) < 100 else None,
        {"2.5万": "25000", "2.5万亿": "2500000000000", "3千万": "30000000", "1万2千5百": "12500", "3万5": "35000"},
        is_decimal=True,
    ),
    Notation(
        "English unit",
        rf"({_DECIMAL})[ -]?(?=[A-Za-z])((?i:{'|'.join(ENGLISH_SCALES)}))\b(?: ((?i:{'|'.join(ENGLISH_SCALES)}))\b)?",
        lambda found: _times(
            decimal_value(found[1]),
            Fraction(ENGLISH_SCALES[found[2].lower()] * ENGLISH_SCALES.get((found[3] or "").lower(), 1)),
        ),
        {"5 million": "5000000", "2.5 billion": "2500000000", "5 thousand": "5000"},
        is_decimal=True,
    ),
    Notation(
        "k for thousand",
        rf"({_DECIMAL})k(?![0-9A-Za-z])",
        lambda found: _times(decimal_value(found[1]), Fraction(1000)),
        {"1k": "1000", "2.5k": "2500"},
        is_decimal=True,
    ),
    Notation(
        "millions of money",
        rf"(?<=[$¥€£])({_DECIMAL}) ?([KMBT]|[mbt]n)(?![0-9A-Za-z])",
        lambda found: _times(decimal_value(found[1]), Fraction(1000 ** (" kmbt".index(found[2][0].lower())))),
        {"$1.2M": "1200000", "€3 bn": "3000000000", "$50K": "50000"},
        is_decimal=True,
    ),
    Notation(
        "and a half",
        rf"({_DECIMAL})(?:[个倍天年]半| and (?:a|one)[- ]half\b)",
        lambda found: _sum(decimal_value(found[1]), Fraction(1, 2)),
        {"3个半": "3.5", "2 and a half": "2.5"},
    ),
    Notation(
        "decimal",
        rf"({_DECIMAL}){_END}",
        lambda found: decimal_value(found[1]),
        {
            "42": "42",
            "1,234.5": "1234.5",
            ".5": "0.5",
            "5.": "5",
            "１２．５": "12.5",
            "12，345元": "12345",
            r"10,\!000": "10000",
            r"9\,500": "9500",
            "9\u202f500": "9500",
            "1'234": "1234",
            "1{,}000": "1000",
        },
        is_decimal=True,
    ),
    Notation(
        "part of, in words",
        _PARTS,
        _part_of,
        {"三分之二": "2/3", "百分之十二点五": "0.125", "百分之20": "0.2", "三又四分之一": "3.25"},
        begins="chinese",
    ),
    Notation(
        "and a half, in words",
        rf"({_NUMERAL})[个倍天年]半",
        lambda found: _sum(chinese_value(found[1]), Fraction(1, 2)),
        {"一个半": "1.5"},
        begins="chinese",
    ),
    Notation(
        "Chinese numeral",
        rf"(?=[{CHINESE}][{CHINESE}点]){_NUMERAL}(?:点[{''.join(CHINESE_DIGITS)}]{{1,40}}[万亿]{{0,2}})?(?![{CHINESE}])",
        lambda found: chinese_value(found[0]),
        {
            "二十": "20",
            "一百零五": "105",
            "一万二": "12000",
            "壹佰贰拾": "120",
            "廿五": "25",
            "二〇二四": "2024",
            "一千二百三十四点五六": "1234.56",
            "两百": "200",
            "七八": None,
        },
        begins="chinese",
        is_it=lambda found: len(found[0]) > 1 and chinese_value(found[0]) is not None,
    ),
    Notation(
        "one Chinese numeral",
        rf"(?:[{''.join(CHINESE_DIGITS)}十廿卅]|一?半)(?![{CHINESE}半]){_MEASURE}",
        lambda found: Fraction(1, 2) if "半" in found[0] else chinese_value(found[0][0]),
        {"五": "5", "五个。": "5", "一半": "0.5"},
        begins="chinese",
        is_small=True,
    ),
    Notation(
        "English numeral",
        rf"(?:{_ENGLISH})(?:(?: and |[ -])(?:{_ENGLISH})\b){{1,20}}(?!-?[A-Za-z])",
        lambda found: english_value(found[0]),
        {"five hundred and twelve": "512", "twenty-one": "21", "two million": "2000000"},
        begins="english",
        is_it=lambda found: english_value(found[0]) is not None and not is_part(found.string, found.end()),
    ),
    Notation(
        "one English numeral",
        rf"(?:{'|'.join([*ENGLISH_UNITS, *ENGLISH_TENS])})(?![-A-Za-z])(?=(?: [a-z]{{1,20}})? ?(?:[^\w\s]|\n|$))",
        lambda found: english_value(found[0]),
        {"five": "5", "Twenty apples.": "20"},
        begins="english",
        is_it=lambda found: not is_part(found.string, found.end()),
        is_small=True,
    ),
)
