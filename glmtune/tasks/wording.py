"""Arithmetic said in words, `57.84加13.64得` -> `57.84加13.64得71.48`: pre-training of the embedded model.

The problems are those of `arithmetic`, but no prompt is written as that task writes it: the operators are words, and
there is no equals sign. Symbols occur only in texts to be copied, `抄57.84+13.64=` -> `57.84+13.64=`, so that they are
known as characters. What they mean is left for fine-tuning on `arithmetic` to learn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from pydantic import field_validator

from glmtune.examples import Example, Split
from glmtune.messages import ToolCall
from glmtune.scoring import Score
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings

OPERATOR_WORDS = {
    "+": ("加", "加上", "plus", "and"),
    "-": ("减", "减去", "minus", "less"),
    "*": ("乘", "乘以", "times", "by"),
    "/": ("除以", "分成", "over", "per"),
}
COPY_WORDS = ("抄", "copy")
COPY_SHARE = 0.1  # share of the examples that are copied
BARE_SHARE = 0.3  # share of the others that are asked without a word for '='
EQUALS_WORDS = ("得", "等于", "是", "is", "makes", "gives")
_EQUALS = re.compile("|".join(EQUALS_WORDS))


class WordingSettings(ArithmeticSettings):
    """Those of `arithmetic`; there is no calculator for words."""

    @field_validator("style")
    @classmethod
    def _without_calculator(cls, value: str) -> str:
        if value == "tool":
            raise ValueError("the calculator reads signs, not words; set task.style=steps, or task.name=arithmetic")
        return value


class Wording(Arithmetic):
    """The problems of `arithmetic` with words for `+ - * / =`; scores are the same."""

    Settings = WordingSettings

    def sample(self, rng: random.Random, split: Split = "train") -> Example:
        """Draw a problem and say it in one of the wordings, or ask for a copy of it."""
        solution = self.draw(rng, split)
        problem = solution.problem
        if rng.random() < COPY_SHARE:
            text = problem.text + rng.choice(("", "="))
            return Example(rng.choice(COPY_WORDS) + text, text, {"operator": "copy"})
        said = "".join(rng.choice(OPERATOR_WORDS[t]) if t in OPERATOR_WORDS else t for t in problem.tokens)
        whole = said + rng.choice(EQUALS_WORDS)
        asked = said if rng.random() < BARE_SHARE else whole
        return Example(asked, self.write_target(whole, solution), problem.facts())

    def score(self, example: Example, completion: str, calls: Sequence[ToolCall] = ()) -> Score:
        """As in `arithmetic`; a copy must be the same text."""
        if example.facts.get("operator") == "copy":
            return Score("exact" if completion.strip() == example.target else "wrong", completion)
        found = _EQUALS.search(example.target)
        said = example.target[: found.end()] if found else ""  # its numbers are no answers
        bare = replace(example, target=example.target.removeprefix(said))
        answer = completion.strip().removeprefix(said).removeprefix(str(example.prompt))
        return super().score(bare, _EQUALS.sub("", answer, count=1) if _EQUALS.match(answer) else answer)
