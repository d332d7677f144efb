"""How long a regular expression is once its repeats are written out."""

from __future__ import annotations

import re

_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]|\(\??|\)|\||\{(\d+)(,?)(\d*)\}|[*+?]|.", re.DOTALL)


def length_written_out(expression: str) -> int:
    """Return how many characters, or sets of them, a regular expression has with its repeats written out.

    `a{2,5}b` has six, `(a{1,10}){1,10}` a hundred. Nothing is checked: what is broken has some length, too.
    """
    groups = [0]  # lengths of the groups that are open
    last = 0  # length of what a repeat would repeat
    for part in _PART.finditer(expression):
        text = part[0]
        if text.startswith("(") and not text.startswith("\\"):
            groups.append(0)
            last = 0
        elif text == ")":
            last = groups.pop() if len(groups) > 1 else 0
            groups[-1] += last
        elif part[1] is not None:
            times = max(int(part[1][:9]), int(part[3][:9] or 0))
            groups[-1] += last * (times - 1)
            last *= times
        elif text not in ("*", "+", "?", "|"):
            last = 1
            groups[-1] += last
    return sum(groups)
