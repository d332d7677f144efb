"""Normal forms of what is asked, so that nothing is learned that the model is judged by."""

from __future__ import annotations

import json
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from glmtune.arithmetic.characters import FULL_WIDTH, normalize_problem
from glmtune.arithmetic.problems import Problem
from glmtune.examples import Example
from glmtune.messages import Message, Prompt, text_in
from glmtune.records.conversations import earlier_questions

_NAMES = {"tool": "observation"}  # as GLM calls it: the split of a conversation depends on its plain text
_BLANKS = re.compile(r"\s+")
_LOOSE_BLANK = re.compile(r"(?<!\w) | (?!\w)|(?<=[\u2e80-\u9fff]) | (?=[\u2e80-\u9fff])")
# What may stand around an expression that is a problem by itself.
_AROUND = re.compile(
    r"计算题?|口算|算一?算|列式|简便运算|初等数学|数学题?|请问?|等于|得数?|多少|是|结果|答案|几|求|题|下面?|的|一下"
    r"|\b(?:what|is|whats|calculate|compute|solve|evaluate|equals?|the|result|value|of|find|please|how|much)\b"
    r"|[\s=?:：？，,。.!！'’]",
    re.IGNORECASE,
)


def plain_text(prompt: Prompt) -> str:
    """Return a prompt as one text: several messages with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return text_in(prompt[0]["content"])
    return "\n".join(f"{_NAMES.get(turn['role'], turn['role'])}: {text}" for turn in prompt for text in texts_of(turn))


def texts_of(message: Message) -> list[str]:
    """Return what a message says: its content, and the arguments of the calls that it makes."""
    calls = [call["function"]["arguments"] for call in message.get("tool_calls", ())]
    said = text_in(message["content"])
    return [*([said] if said or not calls else []), *(json.dumps(call, ensure_ascii=False) for call in calls)]


def normal_text(prompt: Prompt) -> str:
    """Return a form in which two ways of writing a prompt are equal: widths, case, blanks and what ends it."""
    text = unicodedata.normalize("NFC", plain_text(prompt)).translate(FULL_WIDTH).casefold()
    text = _LOOSE_BLANK.sub("", _BLANKS.sub(" ", text).strip())
    return unicodedata.normalize("NFC", text.rstrip("=?.。 ") or text)  # again: marks may have come together


def problem_of(prompt: Prompt) -> str:
    """Return what a prompt asks, in a form that is equal for two ways to write it. Its split depends on this.

    A prompt that is an arithmetic expression, and no more than a few words around it, is told by its normal form.
    """
    asked = plain_text(prompt)
    if len(asked) < 200:
        text = normalize_problem(asked)
        problem = Problem.parse(text)
        if problem is not None:
            found = re.search(r"[\s,]*".join(map(re.escape, problem.text)), text)
            around = (text[: found.start()], text[found.end() :]) if found else (text,)
            if not any(_AROUND.sub("", part) for part in around):
                return f"{problem.normal_form}="  # as most write it: such prompts are split as they always were
    return normal_text(prompt)


def without_leaks(examples: Sequence[Example], is_judged: Callable[[Prompt], bool]) -> list[Example]:
    """Return what may be learned of some examples: nothing that the model is judged by. Warn of what is left out.

    Of a conversation whose earlier questions are among that, only the last answer is learned.
    """

    def asks_that(prompt: Prompt) -> bool:
        return any(map(is_judged, forms_of(prompt)))

    rest = []
    for example in examples:
        if asks_that(example.question):
            continue
        earlier = earlier_questions(example.prompt) if example.train_on_all_turns else []
        rest.append(replace(example, train_on_all_turns=False) if any(map(asks_that, earlier)) else example)
    if len(rest) < len(examples):
        warnings.warn(
            f"{len(examples) - len(rest)} of {len(examples)} records are left out of training: the model is judged by "
            "the same problems.",
            stacklevel=2,
        )
    return rest


def forms_of(prompt: Prompt) -> list[Prompt]:
    """Return a prompt as it is, and a single question without what a system message says before it."""
    asked = [] if isinstance(prompt, str) else [text_in(turn["content"]) for turn in prompt if turn["role"] == "user"]
    return [prompt, *(asked if len(asked) == 1 else [])]


def judge_of(held_out: Sequence[Example]) -> Callable[[Prompt], bool]:
    """Return what tells whether a prompt asks what one of these examples asks."""
    judged = {problem_of(form) for example in held_out for form in forms_of(example.question)}
    return lambda prompt: problem_of(prompt) in judged


def leaks(learned: Iterable[str], judged: Iterable[str]) -> list[tuple[int, int]]:
    """Return (place in `judged`, place in `learned`) of problems that are in both.

    Args:
        learned, judged: problems in their normal form.
    """
    known: dict[str, int] = {}
    for place, problem in enumerate(learned):
        known.setdefault(problem, place)
    return [(place, known[problem]) for place, problem in enumerate(judged) if problem in known]
