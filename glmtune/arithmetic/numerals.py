"""What numerals are worth: decimals, Chinese numerals, also with figures among them, and English ones.

`1,234.56`, `一千二百三十四点五六`, `1万2千5百`, `five hundred and twelve`. What is no numeral, or one that is too long,
has no value: it is None.
"""

from __future__ import annotations

import re
from fractions import Fraction

from glmtune.arithmetic.expressions import MOST_BITS, MOST_EXPONENT

MOST_DIGITS = 1000  # of a decimal, before the point and after it; of powers of ten as well

CHINESE_DIGITS = {
    **{digit: value for value, digit in enumerate("零一二三四五六七八九")},
    **{digit: value for value, digit in enumerate("〇壹贰叁肆伍陆柒捌玖")},
    "两": 2,
}
CHINESE_UNITS = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "亿": 10**8, "拾": 10, "佰": 100, "仟": 1000}
CHINESE_TENS = {"廿": 20, "卅": 30}
CHINESE = "".join([*CHINESE_DIGITS, *CHINESE_UNITS, *CHINESE_TENS])
_ITEM = re.compile(rf"(?P<figures>[0-9]+(?:\.[0-9]+)?)|(?P<sign>[{CHINESE}点])")
_LARGE = 10**4  # from here on, a unit counts all that was said before it

_UNITS = """zero one two three four five six seven eight nine ten
eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ENGLISH_UNITS = {word: value for value, word in enumerate(_UNITS.split())}
ENGLISH_TENS = {word: 10 * value for value, word in enumerate(_TENS.split(), 2)}
_ENGLISH_PART = re.compile(
    r"(?: and (?:a|one))?[- ](?:hal(?:f|ves)|quarters?|thirds?|[a-z]+ths?|dozens?)\b| point\b", re.IGNORECASE
)
ENGLISH_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

UNITS_AND_PARTS = {  # that say one quantity with two numbers
    "元": "[角分]",
    "块钱?": r"(?:[毛角]|(?![.\w]))",
    "米": r"(?:[分厘]米|(?![.\w]))",
    "公里|千米": "米",
    "公斤|千克": "克",
    "年": "个月",
    "周": "天",
    "天": "个?小时",
    "小?时": "分",
    "分钟?": "秒",
    "years?": r"months?\b",
    "weeks?": r"days?\b",
    "days?": r"hours?\b",
    "hours?|hrs?|h": r"(?:minutes?|mins?|m)\b",
    "minutes?|mins?": r"(?:seconds?|secs?|s)\b",
    "feet|foot|ft": r"(?:inch|inches|in)\b",
    "pounds?|lbs?": r"(?:ounces?|oz)\b",
    "km": r"m\b",
    "kg": r"g\b",
    "dollars?": r"cents?\b",
}


def decimal_value(text: str) -> Fraction | None:
    """Return the value of a decimal, commas between thousands included: `1,234.5`."""
    digits = text.replace(",", "")
    whole, _, decimals = digits.partition(".")
    return Fraction(digits) if max(len(whole), len(decimals)) <= MOST_DIGITS else None


def power(base: Fraction | None, exponent: str) -> Fraction | None:
    """Return a power; None where it is too large, or divides by zero."""
    digits = exponent.replace(" ", "")
    if base is None or len(digits) > 5:
        return None
    times = int(digits)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    most = MOST_DIGITS if base == 10 else MOST_EXPONENT
    if abs(times) > most or bits * abs(times) > MOST_BITS or (not base and times < 0):
        return None
    return base**times


def chinese_value(text: str) -> Fraction | None:
    """Return the value of a Chinese numeral, or of figures with Chinese units: `一万二`, `1万2千` -> 12000.

    A digit at the end stands for the next lower unit, unless a zero parts them: `一百五` -> 150, `一百零五` -> 105.
    Without units it is a row of digits, which has a zero in it: `二〇二四`; `七八` is no number but an estimate.
    """
    whole, _, decimals = text.partition("点")
    if decimals.strip("万亿"):
        digits = decimals.rstrip("万亿")
        value = chinese_value(whole) if len(whole) > 1 else _digit(whole)
        if value is None or not all(digit in CHINESE_DIGITS for digit in digits):
            return None
        value += Fraction(int("".join(str(CHINESE_DIGITS[digit]) for digit in digits)), 10 ** len(digits))
        for unit in decimals[len(digits) :]:
            value *= CHINESE_UNITS[unit]
        return value
    if len(text) > 1 and all(sign in CHINESE_DIGITS for sign in text):
        is_row = any(sign in "零〇" for sign in text)
        return Fraction(int("".join(str(CHINESE_DIGITS[sign]) for sign in text))) if is_row else None
    return _with_units(text)


def _digit(text: str) -> Fraction | None:
    if text in CHINESE_DIGITS or text == "十":
        return Fraction(CHINESE_DIGITS.get(text, 10))
    return None


def _with_units(text: str) -> Fraction | None:
    """Add up digits and units; None where they do not go down."""
    total, section = Fraction(0), Fraction(0)
    pending: Fraction | None = None  # a digit that waits for its unit
    after_zero, small, large, last = False, _LARGE, 10**12, 1
    for item in _ITEM.finditer(text):
        sign = item["sign"]
        if sign in ("零", "〇"):
            if pending is not None:
                return None
            after_zero = True
        elif sign in CHINESE_UNITS and CHINESE_UNITS[sign] < _LARGE:
            unit = CHINESE_UNITS[sign]
            if unit >= small or (pending is None and unit != 10):
                return None
            section += (1 if pending is None else pending) * unit
            pending, small, last, after_zero = None, unit, unit, False
        elif sign in CHINESE_UNITS:
            unit = CHINESE_UNITS[sign]
            group = section + (pending or 0)
            if not group and last == unit:
                return None
            if unit > large:  # 一万二千亿, 2.5万亿
                total = (total + group) * unit
            elif group and unit < large:
                total += group * unit
            else:
                return None
            section, pending, small, large, last, after_zero = Fraction(0), None, _LARGE, unit, unit, False
        elif pending is not None:
            return None
        elif sign in CHINESE_TENS:
            if small <= 10:
                return None
            section, small, last = section + CHINESE_TENS[sign], 10, 10
        else:
            pending = Fraction(item["figures"]) if item["figures"] else Fraction(CHINESE_DIGITS[sign])
    if pending is None:
        return total + section
    colloquial = last > 1 and not after_zero and pending < 10 and pending.denominator == 1
    return total + section + pending * (last // 10 if colloquial else 1)


def english_value(text: str) -> Fraction | None:
    """Return the value of an English numeral: `five hundred and twelve` -> 512."""
    words = [word for word in re.split(r"[\s-]+", text.lower()) if word]
    total, section = 0, 0
    last, scale = "", 10**15
    for place, word in enumerate(words):
        if word == "and":
            if last not in ENGLISH_SCALES or place + 1 == len(words):
                return None
            continue
        if word in ENGLISH_UNITS:
            small = ENGLISH_UNITS[word]
            if last in ENGLISH_UNITS or (last in ENGLISH_TENS and not 0 < small < 10) or (last and not small):
                return None
            section += small
        elif word in ENGLISH_TENS:
            if last in ENGLISH_UNITS or last in ENGLISH_TENS:
                return None
            section += ENGLISH_TENS[word]
        elif word == "hundred":
            if not 0 < section < 100:
                return None
            section *= 100
        else:
            if not section or ENGLISH_SCALES[word] >= scale:
                return None
            scale = ENGLISH_SCALES[word]
            total, section = total + section * scale, 0
        last = word
    return Fraction(total + section) if words else None


def is_part(text: str, place: int) -> bool:
    """Whether English words go on to a part of a number there: `two thirds`, `five and a half`, `five point two`."""
    return _ENGLISH_PART.match(text, place) is not None
