"""Whether to keep a model: the one sentence at the head of a report."""

from __future__ import annotations

from typing import Any, Literal

from glmtune.evaluation.breakdown import Report
from glmtune.reporting.numbers import percent, points

Which = Literal["keep", "discard", "open"]
Decision = tuple[Which, str, str]  # which, in two words, the rest of the sentence

GOOD = 0.9  # share of right answers below which the sentence reminds of the wrong ones
SHOWN = 2  # examples of what was lost
LONGEST = 60  # characters of each text in them
UNMEASURED = (
    "Whether it forgot other things was not measured; evaluation.forgetting=true measures it, also with --resume."
)
# What becomes of a model that is better at its task, by what it still knows of other things.
BETTER: dict[str, tuple[Which, str]] = {
    "kept": ("keep", "Keep it"),
    "slightly worse": ("open", "Weigh it up"),
    "unknown": ("open", "Better, the rest unknown"),
    "unmeasured": ("open", "Better, the rest unchecked"),
}


def decide(report: Report) -> Decision:
    """Decide whether to keep the model of a report.

    Keep: it answers more of the held-out examples rightly than before, by more than chance, and it was measured that
    it did not forget other things. Discard: it answers fewer of them, by more than chance, or it forgot. What was not
    measured, or cannot be told, leaves it open.
    """
    after, difference, forgetting = report["after"], report.get("difference"), report.get("forgetting")
    share = f"{percent(after['accuracy'], 1)} of the held-out examples"
    if difference is None or report.get("before") is None:
        return "open", "Not certain", f"it answers {share} rightly; there is nothing to compare that with."
    low, high = difference["ci95"]
    course = f"it answers {share} rightly, {percent(report['before']['accuracy'], 1)} before training"
    interval = f"the change is {points(low)} to {points(high)} points (95% interval)"
    if difference["change"] == "worse":
        return "discard", "Do not keep", f"{course}; {interval}, a loss beyond chance. {knowledge(forgetting)}"
    if forgetting is not None and forgetting["level"] == "forgot":
        return "discard", "Do not keep", f"{course}. {knowledge(forgetting)}"
    if difference["change"] == "better":
        level = "unmeasured" if forgetting is None else forgetting["level"]
        which, words = BETTER.get(level, BETTER["unknown"])
        rest = f" It is still wrong in {percent(1 - after['accuracy'])} of them." if after["accuracy"] < GOOD else ""
        return which, words, f"{course}; {interval}, a gain beyond chance.{rest} {knowledge(forgetting)}"
    advice = "Evaluate on more examples, or train longer."
    return "open", "Not certain", f"{course}; {interval}, which may be chance. {advice} {knowledge(forgetting)}"


def knowledge(forgetting: dict[str, Any] | None) -> str:
    """Return what is said of other things than the task: the verdict with its figures, and examples of losses."""
    if forgetting is None:
        return UNMEASURED
    lost = forgetting.get("lost", [])[:SHOWN] if forgetting["level"] in ("slightly worse", "forgot") else []
    examples = "; ".join(
        f"{shortened(prompt_of(sample))} → {shortened(sample['after']) or 'nothing'}, "
        f"{shortened(sample['before'])} before"
        for sample in lost
    )
    return f"{forgetting['statement']}{f' For instance: {examples}.' if examples else ''}"


def shortened(text: str) -> str:
    """Return a text on one line, in quotation marks; nothing where there is none."""
    line = " ".join(text.split())
    cut = line if len(line) <= LONGEST else f"{line[: LONGEST - 1].rstrip()}…"
    return f"“{cut}”" if cut else ""


def prompt_of(sample: dict[str, Any]) -> str:
    """Return what was asked last."""
    prompt = sample["prompt"]
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content", ""))
