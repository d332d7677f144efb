"""What people and models write for the signs of arithmetic: full-width, look-alike and typographic characters, LaTeX.

One table serves problems and answers. Unicode's NFKC would go too far: it turns 5² into 52.
"""

from __future__ import annotations

import re

# ！ to ～, and the ideographic blank.
FULL_WIDTH = {ord("！") + offset: chr(ord("!") + offset) for offset in range(94)} | {ord("\u3000"): " "}
OPERATORS = {"*": "×✕✖∗·⋅", "/": "÷∕⁄➗", "-": "−‐‑‒–—―➖﹣⁻", "+": "➕﹢"}
PUNCTUATION = {"[": "【〔", "]": "】〕", ";": "，、", "¥": "￥", "'": "’", " ": "\u00a0\u2007\u2009\u202f"}
_VULGAR = "½1/2 ⅓1/3 ⅔2/3 ¼1/4 ¾3/4 ⅕1/5 ⅖2/5 ⅗3/5 ⅘4/5 ⅙1/6 ⅚5/6 ⅛1/8 ⅜3/8 ⅝5/8 ⅞7/8"
TYPOGRAPHIC = {"²": "^2", "³": "^3"} | {part[0]: f" {part[1:]}" for part in _VULGAR.split()}
LATEX = {r"\times": "*", r"\cdot": "*", r"\div": "/", r"\left": "", r"\right": "", r"\%": "%", r"\$": "$", r"\pm": "±"}
LATEX |= {r"^{\circ}": "°", r"^\circ": "°"}
CURRENCIES = "$¥€£"
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"  # of no width; they part no number

MOST_CHARACTERS = 20_000  # of an answer; of a longer one, only the end is read


def _translation(*tables: dict[str, str]) -> dict[int, str]:
    return FULL_WIDTH | {ord(sign): ascii for table in tables for ascii, signs in table.items() for sign in signs}


_IN_PROBLEMS = _translation(OPERATORS, {".": "。"})
_IN_ANSWERS = _translation(OPERATORS, PUNCTUATION, {"": INVISIBLE}) | {
    ord(sign): text for sign, text in TYPOGRAPHIC.items()
}

_COMMA = re.compile(r"(?<=\d),(?=\d{3})")
_SIGNED_VULGAR = re.compile("(?<=[-+−－$¥€£])[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")  # its sign stays beside it
_POINT = re.compile(r"(?<=\d)。(?=\d)")
# Between thousands: wide commas and thin blanks, and LaTeX's. A plain blank may as well part two numbers.
_THOUSANDS = re.compile(
    r"(?<=[0-9０-９])(?:，|,\\!|\{,\}|[\u00a0\u2007\u2009\u202f'’_]|\\[,;:! ])(?=[0-9０-９]{3}(?![0-9０-９]))"
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUPERSCRIPT = re.compile(r"[⁺⁻]?[⁰¹²³⁴-⁹]{1,20}")
_CALCULATION = re.compile(r"<<[^<>]{0,200}>>")  # GSM8K's notes for a calculator

# Markdown. `2**3**2` and `2 * 3 * 4` are arithmetic: nothing of a number stands before an emphasis, or behind it.
_STRUCK_OUT = re.compile(r"~~[^~\n]{1,200}~~")
_EMPHASIS = re.compile(
    r"(?<![A-Za-z0-9)*])(?<![0-9)] )\*\*(?=[^\s*])((?:[^*\n]|\*(?!\*)){1,200})\*\*(?![A-Za-z0-9*])"
    r"|(?<![A-Za-z0-9)*])(?<![0-9)] )\*(?=[^\s*])([^*\n]{1,100})(?<!\s)\*(?![A-Za-z0-9(*])(?! [0-9(])"
    r"|(?<![A-Za-z0-9_])__?(?=[^\s_])([^_\n]{1,100})(?<!\s)__?(?![A-Za-z0-9_])"
)

_LATEX_SIGNS = re.compile("|".join(map(re.escape, LATEX)))
_LATEX_PART = r"\s?(?:\{((?:[^{}]|\{[^{}]{0,100}\}){1,100})\}|([0-9]))"
_LATEX_FRACTION = re.compile(rf"([-+]\s{{0,3}})?\\[dtc]?frac{_LATEX_PART}{_LATEX_PART}")
_LATEX_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|tt)?|math(?:rm|bf|it|sf)|mbox|bm|boldsymbol|underline|emph)\s?\{([^{}]{0,100})\}"
    r"|\\[,;:! ]|\\q?quad"
)
_LATEX_NESTING = 3  # fractions within fractions
_PART = re.compile(r"(-?)\s?((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")


def normalize_problem(text: str) -> str:
    """Return a text with ASCII digits and operators: `５７．８×２` -> `57.8*2`."""
    return text.translate(_IN_PROBLEMS)


def without_commas(text: str) -> str:
    """Return a text without commas between thousands: `1,234+5` -> `1234+5`."""
    return _COMMA.sub("", text)


def normalize_answer(text: str) -> str:
    r"""Return the end of a text in ASCII, as far as digits, punctuation, operators, Markdown and LaTeX are concerned.

    `是½，或\frac{3}{4}。` -> `是 1/2;或 3/4。`. A wide comma that parts numbers becomes `;`. What parts thousands
    becomes `,`, and what is struck out goes.
    """
    text = _CALCULATION.sub("", text[-MOST_CHARACTERS:])
    text = _SUPERSCRIPT.sub(lambda found: "^" + found[0].translate(_SUPERSCRIPTS), _THOUSANDS.sub(",", text))
    text = _SIGNED_VULGAR.sub(lambda found: TYPOGRAPHIC[found[0]].strip(), text)
    text = _POINT.sub(".", text).translate(_IN_ANSWERS).replace("+/-", "±")
    text = _STRUCK_OUT.sub(" ", text)
    text = _EMPHASIS.sub(lambda found: found[1] or found[2] or found[3], text)
    if "\\" in text:
        text = _LATEX_SIGNS.sub(lambda found: LATEX[found[0]], text)
        text = _LATEX_TEXT.sub(lambda found: f" {found[1] or ''} ", text)
        for _ in range(_LATEX_NESTING):
            text = _LATEX_FRACTION.sub(_write_fraction, text)
    return text


def _write_fraction(found: re.Match[str]) -> str:
    r"""Return `\frac{3}{4}` as ` 3/4`, `\frac{a+b}{4}` as `(a+b)/(4)`; in brackets where it is divided by."""
    sign = found[1] or ""
    above, below = (found[2] or found[3]).strip(), (found[4] or found[5]).strip()
    parts = _PART.fullmatch(above), _PART.fullmatch(below)
    if parts[0] is None or parts[1] is None:
        return f"{sign}({above})/({below})"
    (minus, over), (other, under) = parts[0].groups(), parts[1].groups()
    fraction = f"{'-' * (minus != other)}{over}/{under}"
    before = found.string[max(0, found.start() - 3) : found.start()].rstrip()
    if before.endswith("/") or found.string[found.end() : found.end() + 1] == "^":
        return f"{sign}({fraction})"
    return (
        sign + fraction if sign or before != found.string[max(0, found.start() - 3) : found.start()] else f" {fraction}"
    )
