"""Arithmetic said in words, `57.84加13.64得` -> `57.84加13.64得71.48`: pre-training of the embedded model.

The problems are those of `arithmetic`, but no prompt is written as that task writes it: the operators are words, and
there is no equals sign. Symbols occur only in texts to be copied, `抄57.84+13.64=` -> `57.84+13.64=`, so that they are
known as characters. What they mean is left for fine-tuning on `arithmetic` to learn.
"""

from __future__ import annotations

import random
from dataclasses import replace

from glmtune.tasks import Example, Score, Split
from glmtune.tasks.arithmetic import Arithmetic, Problem

OPERATOR_WORDS = {
    "+": ("加", "加上", "plus", "and"),
    "-": ("减", "减去", "minus", "less"),
    "*": ("乘", "乘以", "times", "by"),
    "/": ("除以", "分成", "over", "per"),
}
COPY_WORDS = ("抄", "copy")
COPY_SHARE = 0.1  # share of the examples that are copied
EQUALS_WORDS = ("得", "等于", "是", "is", "makes", "gives")


class Wording(Arithmetic):
    """The problems of `arithmetic` with words for `+ - * / =`; settings and scores are the same."""

    def sample(self, rng: random.Random, split: Split = "train") -> Example:
        """Draw a problem and say it in one of the wordings, or ask for a copy of it."""
        problem = self.draw(rng, split)
        if rng.random() < COPY_SHARE:
            text = problem.text + rng.choice(("", "="))
            return Example(rng.choice(COPY_WORDS) + text, text, {"operator": "copy"})
        said = problem.operands[0]
        for operator, operand in zip(problem.operators, problem.operands[1:], strict=True):
            said += rng.choice(OPERATOR_WORDS[operator]) + operand
        said += rng.choice(EQUALS_WORDS)
        return Example(said, self.write_target(said, problem), problem.facts())

    def draft(self, problem: Problem) -> str:
        """The answer itself: zeros that it drops are left out of the draft as well, unlike in `arithmetic`."""
        return problem.answer(self.settings.decimals)

    def score(self, example: Example, completion: str) -> Score:
        """As in `arithmetic`; a copy must be the same text."""
        if example.facts.get("operator") == "copy":
            return Score("exact" if completion.strip() == example.target else "wrong", completion)
        said = str(example.prompt)  # its numbers are no answers
        bare = replace(example, target=example.target.removeprefix(said))
        return super().score(bare, completion.strip().removeprefix(said))
