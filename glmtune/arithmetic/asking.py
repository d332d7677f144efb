"""Questions that ask what one problem comes to, and nothing else."""

from __future__ import annotations

import re

from glmtune.arithmetic.problems import Problem

MOST_ASKED = 400  # characters of a question

_BEFORE = re.compile(
    "(?:what is|what's|how much is|calculate|compute|evaluate|work out|solve|"
    "问题?|请?计算题?|口算|简便运算|数学题|初等数学|请?算一下|请?算|求)[:：]?",
    re.IGNORECASE,
)
_AFTER = re.compile(
    "(?:equals|is|等于几|等于多少|是几|是多少|得几|得多少|答案?|回答|解答?|剖析|点拨|解析)[:：]?$", re.IGNORECASE
)
_ENDS = " \t\r\n\u3000=＝?？.。!！"


def problem_asked(text: str) -> Problem | None:
    """Return the problem whose value a question asks for, or None: `What is 5+3?` and `问:5+3=` -> 5+3.

    A text that has more to say may mean something else by its numbers, such as a date, and is none.
    """
    if len(text) > MOST_ASKED:
        return None
    text = text.strip().rstrip(_ENDS)
    before = _BEFORE.match(text)
    text = text[before.end() :] if before else text
    after = _AFTER.search(text)
    return Problem.exactly((text[: after.start()] if after else text).rstrip(_ENDS))
