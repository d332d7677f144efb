"""How long a regular expression is once its repeats are written out."""

from __future__ import annotations

import re

_PART = re.compile(
    r"\\.|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]"  # a character, a set
    r"|(?P<flags>\(\?[\w-]*\))|(?P<open>\((?:\?(?:[\w-]*:|P?<\w+>))?)|(?P<close>\))"
    r"|\{(?P<least>\d+),?(?P<most>\d*)\}|(?P<sign>[*+?|])|.",
    re.DOTALL,
)
_MOST_DIGITS = 9  # of a number that is read


def length_written_out(expression: str) -> int:
    """Return how many characters, or sets of them, a regular expression has with its repeats written out.

    `a{2,5}b` has six, `(a{1,10}){1,10}` a hundred. Nothing is checked: what is broken has some length, too.
    """
    groups = [0]  # lengths of the groups that are open
    last = 0  # length of what a repeat would repeat
    for part in _PART.finditer(expression):
        if part["open"]:
            groups.append(0)
        elif part["close"]:
            last = groups.pop() if len(groups) > 1 else 0
            groups[-1] += last
        elif part["least"]:
            times = max(int(number[:_MOST_DIGITS] or 0) for number in (part["least"], part["most"]))
            groups[-1] += last * (times - 1)
            last *= times
        elif not part["sign"] and not part["flags"]:
            last = 1
            groups[-1] += last
    return sum(groups)
