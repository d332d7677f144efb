"""Two evaluations of the same examples, compared one by one: what changed, what is still wrong and how."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from glmtune.arithmetic.reading import final_number, write_number
from glmtune.evaluation.evaluator import Evaluation
from glmtune.examples import Example
from glmtune.intervals import paired_difference
from glmtune.scoring import Score
from glmtune.tasks import Task

CHANGED = 10  # samples that got better, and as many that got worse
SHOWN = 3  # samples of a group of failures
LONGEST = 500  # characters of a text in a sample


def compare(task: Task, before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """Return what `report.json` says of before and after.

    Args:
        task: tells the right answer from a target.
        before, after: of the same examples.

    Returns:
        `difference` of the accuracy, with its paired interval; `changed`: examples that got `better` and `worse`;
        `failure_groups` of the model after, the largest first.
    """
    examples, scores = after.examples, after.scores
    right = [task.score(example, example.target, example.tool_calls).answer or example.target for example in examples]
    was = [score.correct for score in before.scores]
    now = [score.correct for score in scores]
    samples = [
        {
            "prompt": prompt_text(example)[:LONGEST],
            "right": right[index][:LONGEST],
            "before": said(before.scores[index], before.completions[index]),
            "after": said(scores[index], after.completions[index]),
            **({"fault": str(fault)[:LONGEST]} if (fault := scores[index].fault) else {}),
        }
        for index, example in enumerate(examples)
    ]
    pairs = list(zip(samples, was, now, strict=True))
    return {
        "difference": paired_difference(was, now).report(),
        "changed": {
            "better": [sample for sample, then, today in pairs if today and not then][:CHANGED],
            "worse": [sample for sample, then, today in pairs if then and not today][:CHANGED],
        },
        "failure_groups": failure_groups(samples, right, scores, after.completions),
    }


def prompt_text(example: Example) -> str:
    """Return a prompt as one text; of a conversation, the last message."""
    prompt: Any = example.prompt
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def said(score: Score, completion: str) -> str:
    """Return the answer that was read off a completion; all of it where none could be read."""
    return (completion if score.answer is None else score.answer)[:LONGEST]


def failure_groups(
    samples: Sequence[dict[str, str]], right: Sequence[str], scores: Sequence[Score], completions: Sequence[str]
) -> list[dict[str, Any]]:
    """Wrong answers by what is wrong with them: `group`, `n`, first `samples`."""
    groups: dict[str, list[dict[str, str]]] = {}
    for sample, wanted, score, completion in zip(samples, right, scores, completions, strict=True):
        if not score.correct:
            groups.setdefault(failure_of(wanted, score, completion), []).append(sample)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [{"group": name, "n": len(group), "samples": group[:SHOWN]} for name, group in ordered]


def failure_of(right: str, score: Score, completion: str) -> str:
    """Return what is wrong with a wrong answer."""
    if not completion.strip():
        return "nothing was answered"
    if score.fault is not None:
        return f"{score.fault.kind} in the working"
    if score.verdict == "unparseable" or score.answer is None:
        return "no answer could be read"
    wanted, given = final_number(right), final_number(score.answer)
    if wanted is not None and given is not None and wanted != given:
        return _numeric_failure(wanted, given)
    if right.strip().casefold() == score.answer.strip().casefold():
        return "right but for upper and lower case"
    if right.strip() in score.answer:
        return "the right answer with more text around it"
    return "another text"


def _numeric_failure(wanted: Fraction, given: Fraction) -> str:
    if given == -wanted:
        return "the sign is wrong"
    ratio = given / wanted if wanted and given else Fraction(0)
    if (
        ratio
        and {*str(ratio.numerator), *str(ratio.denominator)} <= {"0", "1"}
        and 1
        in (
            ratio.numerator,
            ratio.denominator,
        )
    ):
        return "the point or the zeros are misplaced"
    digits, others = write_number(wanted), write_number(given)
    if len(digits) == len(others) and sum(a != b for a, b in zip(digits, others, strict=True)) == 1:
        return "one digit is wrong"
    if sorted(digits) == sorted(others):
        return "the digits are in another order"
    if abs(given - wanted) * 100 <= abs(wanted):
        return "less than 1% off"
    if len(digits.partition(".")[0]) != len(others.partition(".")[0]):
        return "a number of another length"
    return "another number of the same length"
