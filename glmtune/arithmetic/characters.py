"""What people and models write for the signs of arithmetic: full-width, look-alike and typographic characters, LaTeX.

One table serves problems and answers. Unicode's NFKC would go too far: it turns 5² into 52.
"""

from __future__ import annotations

import re

# ！ to ～, and the ideographic blank.
FULL_WIDTH = {ord("！") + offset: chr(ord("!") + offset) for offset in range(94)} | {ord("\u3000"): " "}
OPERATORS = {"*": "×✕✖∗·⋅", "/": "÷∕⁄➗", "-": "−‐‑‒–—―➖﹣⁻", "+": "➕﹢"}
PUNCTUATION = {"[": "【〔", "]": "】〕", ";": "，、", "¥": "￥", " ": "\u00a0\u2009"}
TYPOGRAPHIC = {"½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3", "⅔": " 2/3", "²": "^2", "³": "^3"}
LATEX = {r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": "", "{,}": ",", r"\%": "%", r"\$": "$"}
CURRENCIES = "$¥€£"
MULTIPLIERS = {"万": 10**4, "亿": 10**8}

MOST_CHARACTERS = 20_000  # of an answer; of a longer one, only the end is read


def _translation(*tables: dict[str, str]) -> dict[int, str]:
    return FULL_WIDTH | {ord(sign): ascii for table in tables for ascii, signs in table.items() for sign in signs}


_IN_PROBLEMS = _translation(OPERATORS, {".": "。"})
_IN_ANSWERS = _translation(OPERATORS, PUNCTUATION) | {ord(sign): text for sign, text in TYPOGRAPHIC.items()}

_COMMA = re.compile(r"(?<=\d),(?=\d{3})")
_POINT = re.compile(r"(?<=\d)。(?=\d)")
_WIDE_THOUSANDS = re.compile(r"(?<=[０-９])，(?=[０-９]{3}(?![０-９]))")
_CALCULATION = re.compile(r"<<[^<>]{0,200}>>")  # GSM8K's notes for a calculator
_LATEX_SIGNS = re.compile("|".join(map(re.escape, LATEX)))
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s?\{([^{}]{1,100})\}\s?\{([^{}]{1,100})\}")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mbox|mathbf)\s?\{([^{}]{0,100})\}|\\[,;:! ]|\\quad")


def normalize_problem(text: str) -> str:
    """Return a text with ASCII digits and operators: `５７．８×２` -> `57.8*2`."""
    return text.translate(_IN_PROBLEMS)


def without_commas(text: str) -> str:
    """Return a text without commas between thousands: `1,234+5` -> `1234+5`."""
    return _COMMA.sub("", text)


def normalize_answer(text: str) -> str:
    r"""Return the end of a text in ASCII, as far as digits, punctuation, operators and LaTeX are concerned.

    `是½，或\frac{3}{4}。` -> `是 1/2;或 3/4。`. A wide comma that parts numbers becomes `;`, one within a number `,`.
    """
    text = _CALCULATION.sub("", text[-MOST_CHARACTERS:])
    text = _POINT.sub(".", _WIDE_THOUSANDS.sub(",", text)).translate(_IN_ANSWERS)
    if "\\" in text:
        text = _LATEX_SIGNS.sub(lambda found: LATEX[found[0]], text)
        text = _LATEX_FRACTION.sub(_write_fraction, text)
        text = _LATEX_TEXT.sub(lambda found: f" {found[1] or ''} ", text)
    return text


def _write_fraction(found: re.Match[str]) -> str:
    r"""Return `\frac{3}{4}` as ` 3/4`, `\frac{a+b}{4}` as `(a+b)/(4)`."""
    above, below = found[1].strip(), found[2].strip()
    return f" {above}/{below}" if above.isdigit() and below.isdigit() else f"({above})/({below})"
