"""Whether to keep a model: the one sentence at the head of a report."""

from __future__ import annotations

from typing import Any, Literal

from glmtune.reporting.numbers import percent, points

Decision = tuple[Literal["keep", "discard", "open"], str, str]  # which, in two words, the rest of the sentence

GOOD = 0.9  # share of right answers below which the sentence reminds of the wrong ones
KNOWLEDGE = {
    "kept": "Its general knowledge was kept.",
    "slightly worse": "Its general knowledge got slightly worse.",
    "unknown": "Whether it forgot other things cannot be told.",
}


def decide(report: dict[str, Any]) -> Decision:
    """Decide whether to keep the model of a report.

    Keep: it answers more of the held-out examples rightly than before, by more than chance, and did not forget other
    things. Discard: it answers fewer of them, by more than chance, or it forgot. Otherwise it is open.
    """
    after, difference, forgetting = report["after"], report.get("difference"), report.get("forgetting")
    share = f"{percent(after['accuracy'], 1)} of the held-out examples"
    if difference is None or report.get("before") is None:
        return "open", "Not certain", f"it answers {share} rightly; there is nothing to compare that with."
    low, high = difference["ci95"]
    course = f"it answers {share} rightly, {percent(report['before']['accuracy'], 1)} before training"
    interval = f"the change is {points(low)} to {points(high)} points (95% interval)"
    if difference["change"] == "worse":
        return "discard", "Do not keep", f"{course}; {interval}, a loss beyond chance."
    if forgetting is not None and forgetting["level"] == "forgot":
        lost = f"{percent(forgetting['after']['accuracy'])} instead of {percent(forgetting['before']['accuracy'])}"
        return "discard", "Do not keep", f"{course}, but it forgot other things: {lost} of the general questions."
    if difference["change"] == "better":
        known = "Whether it forgot other things was not measured."
        if forgetting is not None:
            known = KNOWLEDGE.get(forgetting["level"], known)
        rest = f" It is still wrong in {percent(1 - after['accuracy'])} of them." if after["accuracy"] < GOOD else ""
        return "keep", "Keep it", f"{course}; {interval}, a gain beyond chance. {known}{rest}"
    advice = "Evaluate on more examples, or train longer."
    return "open", "Not certain", f"{course}; {interval}, which may be chance. {advice}"
