"""What a model still knows of everything else: general questions, asked before and after training.

They are of two kinds, because a model forgets in two ways. Which of some options it finds likeliest tells what it
knows, however it words its answers. Short answers in its own words tell whether it still says what it knows: a model
that answers every question with a number may know the right options all the same. How likely it finds the right answers
is no measure by itself, as that rises with every run whose answers are as short.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, Literal

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from glmtune.config import GenerationSettings
from glmtune.data.control_tokens import plain_ids
from glmtune.distributed import gather, is_main, share
from glmtune.evaluation.choices import choose
from glmtune.evaluation.general import ARITHMETIC, guessed, part_of
from glmtune.evaluation.short_answers import is_right
from glmtune.examples import Example
from glmtune.inference.completion import Request
from glmtune.inference.engine import Engine
from glmtune.inference.prompts import encode_within
from glmtune.intervals import Difference, paired_difference, wilson_interval
from glmtune.methods import Model
from glmtune.records.leaks import plain_text

FORGOT = 0.10  # share of the answers
MEASURABLE = 6  # right answers before, beyond those of guessing: that many must be lost to tell a loss from chance
RULE = (
    "each part of the questions is judged by itself, and the worst counts. Forgot: the right answers of a part fell by "
    f"{FORGOT:.0%} of it or more, and by more than chance (the paired 95% interval is without 0). Slightly "
    f"worse: by less, and by more than chance. Unknown: of a part, the base model answers fewer than {MEASURABLE} "
    "questions more rightly than guessing would, which counts for all parts but arithmetic; or the interval of all "
    f"leaves room for a loss of {FORGOT:.0%}. Kept: none of these"
)
LOST = 10  # samples in a report
ROOM = 24  # tokens of an answer beyond the longest right one: for a sentence around it

Level = Literal["kept", "unknown", "slightly worse", "forgot"]
LEVELS: tuple[Level, ...] = ("kept", "unknown", "slightly worse", "forgot")  # the worst last


@dataclass(frozen=True)
class Probe:
    """What a model made of the general set; lists of equal length.

    Attributes:
        examples: the questions.
        answers: the option that it finds likeliest, or what it wrote.
        right: whether these are right.
    """

    examples: list[Example]
    answers: list[str]
    right: list[bool]

    def report(self) -> dict[str, Any]:
        """Return it as `report.json` holds it: of all, of each part, and of each language and group of a part."""
        parts, groups = {}, {}
        for part, places in places_by(map(part_of, self.examples)).items():
            chance = sum(guessed(self.examples[place]) for place in places) / len(places)
            parts[part] = {**self._share(places), "guessed": chance}
            names = [group_name(self.examples[place]) for place in places]
            if len(set(names)) > 1:
                found = places_by(names)
                groups[part] = {name: self._share([places[one] for one in found[name]]) for name in sorted(found)}
        return {**self._share(range(len(self.right))), "parts": parts, "by": groups}

    def _share(self, places: Sequence[int]) -> dict[str, Any]:
        n, right = len(places), sum(self.right[place] for place in places)
        return {"n": n, "accuracy": right / n if n else 0.0, "accuracy_ci95": list(wilson_interval(right, n))}


@dataclass(frozen=True)
class Part:
    """A part of the questions, before and after.

    Attributes:
        name: of `part_of`.
        before, after: right answers.
        guessed: how many guessing would get right.
        difference: of the same questions.
    """

    name: str
    before: int
    after: int
    guessed: float
    difference: Difference

    @property
    def level(self) -> Level:
        """What became of it, by `RULE`."""
        if self.difference.change == "worse":
            return "forgot" if self.difference.mean <= -FORGOT else "slightly worse"
        return "kept" if self.is_measurable else "unknown"

    @property
    def is_measurable(self) -> bool:
        """Whether the model knew enough of it before to lose some."""
        return self.before - self.guessed >= MEASURABLE

    @property
    def figures(self) -> str:
        """Its right answers before and after, in short."""
        known = "" if self.is_measurable or not self.guessed else f", where guessing gives {self.guessed:.0f}"
        return f"{self.name} {self.before} → {self.after} of {self.difference.n}{known}"


@dataclass(frozen=True)
class Forgetting:
    """Two probes compared, with the verdict of `RULE` and one plain sentence.

    Attributes:
        level: of the worst part.
        statement: the verdict, why, and the figures.
        difference: of all questions but arithmetic.
        parts: of the questions.
    """

    level: Level
    statement: str
    difference: Difference
    parts: list[Part]


def probe(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: GenerationSettings,
    limit: int | None = None,
) -> Probe:
    """Ask a model the general questions, divided among the processes: rank the options, and decode greedily.

    Args:
        model: in evaluation mode.
        tokenizer: with its template.
        examples: of `read_general`.
        settings: batch size; answers may be as long as the longest right one, and `ROOM` more.
        limit: longest sequence in tokens that the model takes, where that is less than its config.json says.

    Raises:
        UserError: a question is too long for the model.
    """
    # Questions that share their options stay together, as they are judged together.
    keys = (str(sorted(example.facts.get("options", [place]))) for place, example in enumerate(examples))
    units = list(places_by(keys).values())
    mine = share(units)
    ranked = [place for unit in mine for place in unit if examples[place].facts.get("options")]
    asked = [place for unit in mine for place in unit if not examples[place].facts.get("options")]
    answers: dict[int, str] = {}
    with tqdm(total=len(ranked) + len(asked), desc="general", unit="question", disable=not is_main()) as progress:
        for number, option in choose(model, tokenizer, [examples[place] for place in ranked], limit):
            answers[ranked[number]] = option
            progress.update()
        for number, text in answer(model, tokenizer, [examples[place] for place in asked], settings, limit):
            answers[asked[number]] = text
            progress.update()
    found = zip(units, gather([[answers[place] for place in unit] for unit in mine]), strict=True)
    said = dict(chain.from_iterable(zip(unit, texts, strict=True) for unit, texts in found))
    right = [is_answered(example, said[place]) for place, example in enumerate(examples)]
    return Probe(list(examples), [said[place] for place in range(len(examples))], right)


def answer(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Example],
    settings: GenerationSettings,
    limit: int | None,
) -> Iterator[tuple[int, str]]:
    """Yield (index of a question, what the model writes to it), in the order of decoding.

    Raises:
        UserError: a question is too long for the model.
    """
    engine = Engine(model, tokenizer, limit)
    longest = max((len(plain_ids(tokenizer, question.target)) for question in questions), default=0)
    greedy = settings.model_copy(update={"do_sample": False, "max_new_tokens": longest + ROOM})
    requests = []
    for number, question in enumerate(questions, start=1):
        named = f"evaluation.general_file: {question.source or f'question {number}'}"
        input_ids = encode_within(tokenizer, question.prompt, (), engine.limit, greedy.longest, named)
        requests.append(Request(input_ids, greedy))
    for index, completion in engine.complete(requests):
        yield index, completion.text


def is_answered(question: Example, said: str) -> bool:
    """Return whether a question is answered rightly, by an option or in the model's own words."""
    facts = question.facts
    if facts.get("options"):
        return said == question.target
    return is_right(
        question.target, said, facts.get("accepted", ()), facts.get("wrong", ()), plain_text(question.prompt)
    )


def verdict(before: Probe, after: Probe) -> Forgetting:
    """Return whether general knowledge survived, by `RULE`.

    Raises:
        ValueError: the probes are not of the same questions.
    """
    if before.examples != after.examples:
        raise ValueError(f"{len(before.examples)} and {len(after.examples)} answers: not of the same questions")
    parts = [
        Part(
            name,
            sum(before.right[place] for place in places),
            sum(after.right[place] for place in places),
            sum(guessed(before.examples[place]) for place in places),
            difference_at(places, before, after),
        )
        for name, places in places_by(map(part_of, before.examples)).items()
    ]
    known = [place for place, example in enumerate(before.examples) if part_of(example) != ARITHMETIC]
    difference = difference_at(known, before, after)
    counted = [part for part in parts if part.name != ARITHMETIC or part.level != "unknown"] or parts
    level: Level = max((part.level for part in counted), key=LEVELS.index, default="unknown")
    if level == "kept" and difference.ci95[0] <= -FORGOT:
        level = "unknown"
    figures = "; ".join(part.figures for part in parts) or "none"
    return Forgetting(level, f"{opening_of(level, counted)} (right answers: {figures}).", difference, parts)


def difference_at(places: Sequence[int], before: Probe, after: Probe) -> Difference:
    """Return how the answers to some of the questions changed."""
    return paired_difference([before.right[place] for place in places], [after.right[place] for place in places])


def opening_of(level: Level, parts: Sequence[Part]) -> str:
    """Return what the statement begins with."""
    if level == "kept":
        return "General knowledge was kept"
    if level == "forgot":
        return "The model forgot general knowledge"
    if level == "slightly worse":
        return "General knowledge got slightly worse"
    if any(part.level == "unknown" for part in parts):
        return "Whether the model forgot cannot be told, as it knew too little before"
    return "Whether the model forgot cannot be told, as too few questions were asked"


def compare_probes(before: Probe, after: Probe) -> dict[str, Any]:
    """Return both probes, the verdict and what got lost, as `report.json` holds them.

    Parts that are worst come first, and by turns, so that the first samples show each of them.
    """
    found = verdict(before, after)
    worst = [part.name for part in found.parts if part.level == found.level]
    pairs = zip(before.examples, before.answers, before.right, after.answers, after.right, strict=True)
    samples = [
        (part_of(example), {"prompt": example.prompt, "target": example.target, "before": said, "after": now})
        for example, said, was_right, now, is_right_now in pairs
        if was_right and not is_right_now
    ]
    of_worst = [[sample for part, sample in samples if part == name] for name in worst]
    lost = [sample for turn in zip_longest(*of_worst) for sample in turn if sample is not None]
    lost += [sample for part, sample in samples if part not in worst]
    return {
        "level": found.level,
        "statement": found.statement,
        "rule": RULE,
        "difference": found.difference.report(),
        "parts": {part.name: {"level": part.level, **part.difference.report()} for part in found.parts},
        "before": before.report(),
        "after": after.report(),
        "lost": lost[:LOST],
    }


def group_name(question: Example) -> str:
    """Return what a row of a report calls the questions of a language and a group."""
    facts = question.facts
    return ", ".join(str(facts[name]) for name in ("language", "group") if name in facts) or "others"


def places_by(names: Iterable[str]) -> dict[str, list[int]]:
    """Return the places of each name, the names in the order of their first places."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return places
