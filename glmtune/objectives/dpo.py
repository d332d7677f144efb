"""Preference learning: of two answers to a prompt, the better one becomes likelier than the worse one.

Direct preference optimization (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290) and its relatives; all compare
log-probabilities of whole answers, with those of the model before it learned, where they have a reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from glmtune import distributed
from glmtune.config import NamedSettings, findable
from glmtune.objectives import Objective, predicting
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from glmtune.config import Recipe
    from glmtune.data.comparisons import Comparison, EncodedComparisons
    from glmtune.examples import Example
    from glmtune.methods import Method, Model
    from glmtune.plan import Plan, Preparation
    from glmtune.training.memory import Demand
    from glmtune.training.run_trainer import Judge, RunTrainer

METRIC = "preference_accuracy"
SMOOTHED = ("sigmoid", "robust")  # losses that know of pairs which are the wrong way round


class DpoSettings(NamedSettings):
    """How answers are compared, and where pairs of them are."""

    loss: Literal["sigmoid", "robust", "hinge", "ipo", "apo_zero", "apo_down", "sppo_hard", "simpo", "orpo", "kto"] = (
        Field(
            "sigmoid",
            description="sigmoid is DPO, and robust, hinge, ipo, apo_zero, apo_down and sppo_hard are relatives; "
            "simpo and orpo have no reference; kto learns single answers with a label, true or false, or both answers "
            "of pairs. Losses that sort or average over a batch (aot, bco) are left out, as they depend on its size",
        )
    )
    beta: float | None = Field(
        None,
        gt=0,
        description="how much a reward weighs: more keeps the model nearer to where it began. Default: 0.1; with simpo "
        "2",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="share of pairs that are thought to be the wrong way round; of sigmoid and robust",
    )
    margin: float | None = Field(
        None, ge=0, description="by which simpo wants the better answer to be better (its gamma); default: 0.5"
    )
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the cross-entropy of the better answer, which is added: keeps it from becoming unlikely",
    )
    pairs: str | None = Field(
        None,
        description="file of pairs, in any of the formats of `task.file`: these are learned, and the task asks and "
        "scores what it holds out, which is learned from nowhere. Default: the task's own records",
    )
    judge: Literal["auto", "answers", "preferences"] = Field(
        "auto",
        description="what the best weights are chosen by: the score of held-out answers, or how often of two "
        "held-out ones the better is the likelier. auto: answers with `pairs`, else preferences",
    )

    @field_validator("pairs")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        """The recipe of a run names the file so that it is found from any folder."""
        return findable(value) if value else value

    @model_validator(mode="after")
    def _says_something(self) -> DpoSettings:
        """A number that the loss does not read is a mistake."""
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise ValueError(f"label_smoothing is of {' and '.join(SMOOTHED)}; loss={self.loss} does not read it")
        if self.margin is not None and self.loss != "simpo":
            raise ValueError(f"margin is of simpo; loss={self.loss} does not read it")
        return self


class PreferenceLearning(Objective):
    """Losses of pairs, judged by answers or by held-out pairs."""

    Settings = DpoSettings
    settings: DpoSettings
    needs = frozenset({"target", "rejected"})

    def __init__(self, settings: NamedSettings):
        super().__init__(settings)
        judged = self.settings.judge
        self.asks = self.settings.pairs is not None if judged == "auto" else judged == "answers"
        self.metric = "accuracy" if self.asks else METRIC
        self.loss_unit = f"{self.settings.loss}, {'an answer' if self.takes_singles else 'a pair'}"
        self.found: list[Example] | None = None  # in `pairs`

    def learning_rate(self, method: Method, hidden_size: int) -> float:
        """Return a tenth of the method's rate; three tenths unlearn what the model knew (docs/log.md)."""
        return method.learning_rate(hidden_size) / 10

    def demand(self, recipe: Recipe) -> Demand:
        """Return what comparing takes: two answers to a prompt; of a reference, its log-probabilities alone."""
        from glmtune.training.memory import Demand

        return Demand(sequences=1 if self.takes_singles else 2)

    @property
    def takes_singles(self) -> bool:
        """Whether answers are learned one by one."""
        return self.settings.loss == "kto"

    def dataset(self, plan: Preparation) -> tuple[EncodedComparisons, int]:
        """Return what is compared, and the optimizer steps.

        Raises:
            UserError: there are no pairs, some are faulty or too long, or a setting says what is not done here.
        """
        from glmtune.data.mixture import count_steps

        self.check(plan)
        if self.asks and (held_out := self.held_out_during(plan)):
            self.compare(plan, held_out, "The held-out records")  # so that their faults are told now
        examples, name = self.records(plan)
        dataset = self.encode(plan, self.compare(plan, examples, name), name)
        return dataset, plan.recipe.training.steps or count_steps(plan.recipe, len(dataset))

    def check(self, plan: Preparation) -> None:
        """See whether pairs are at hand, and nothing is asked for that is not done.

        Raises:
            UserError: there are none, or it is.
        """
        data = plan.recipe.data
        refused = {
            "data.mixture": data.mixture and "holds answers without worse ones. objective.sft_weight learns the better",
            "data.packing=true": data.packing and "does not keep two answers beside each other. Leave it out",
            "data.turns=each": data.turns == "each" and "makes answers without worse ones. Leave it out",
            "data.too_long=truncate": data.too_long == "truncate"
            and "would cut the prompts of two answers at different places. Use data.too_long=drop",
        }
        for setting, why in refused.items():
            if why:
                raise UserError(f"{setting}: objective.name=dpo compares answers, and this {why}.")
        if distributed.world_size() > 1:
            raise UserError("objective.name=dpo learns in one process as yet. Set training.devices=1.")
        if self.settings.pairs is None and plan.task.records("train") is None:
            raise UserError(
                f"objective.name=dpo learns from pairs of answers, which task.name={plan.recipe.task.name} does not "
                "have. Name a file of them: objective.pairs=FILE. `glmtune pairs` makes one of a model's own answers."
            )

    def learned(self, plan: Preparation) -> Sequence[Example]:
        """Return the records of `objective.pairs`."""
        return self.read(plan) if self.settings.pairs is not None else ()

    def read(self, plan: Preparation) -> list[Example]:
        """Return all records of `objective.pairs`, those that are held out, too."""
        from glmtune.records import read_examples

        if self.found is None:
            self.found = read_examples(str(self.settings.pairs), plan.recipe.data)
        return self.found

    def records(self, plan: Preparation) -> tuple[list[Example], str]:
        """Return the records that are learned, and what errors call them.

        Raises:
            UserError: a file cannot be read, or the task holds out all that it has.
        """
        from glmtune.records.leaks import without_leaks

        if self.settings.pairs is None:
            return [*(plan.task.records("train") or ())], "The records of task.file"
        learned = without_leaks(self.read(plan), plan.task.holds_out)
        if not learned:
            raise UserError(f"objective.pairs: {self.settings.pairs}: all that it asks is held out; nothing is left.")
        return learned, f"objective.pairs: the records of {self.settings.pairs}"

    def compare(self, plan: Preparation, examples: Sequence[Example], name: str) -> list[Comparison]:
        """Return records as what is compared.

        Raises:
            UserError: some are faulty.
        """
        from glmtune.data.comparisons import pairs_of, singles_of

        make = singles_of if self.takes_singles else pairs_of
        return make(examples, plan.encoder.tokenizer, plan.recipe.data, name)

    def encode(self, plan: Preparation, comparisons: Sequence[Comparison], name: str) -> EncodedComparisons:
        """Return the encodings of comparisons."""
        from glmtune.data.comparisons import EncodedComparisons

        return EncodedComparisons(comparisons, plan.encoder, plan.recipe.data, name)

    def judges(self, examples: Sequence[Example]) -> bool:
        """Return whether these have answers to compare."""
        return any(example.rejected for example in examples)

    def judge(self, plan: Preparation, examples: Sequence[Example] | None = None) -> Judge:
        """Return what tells how often a model finds the better answer likelier.

        Raises:
            UserError: the records are no pairs.
        """
        from glmtune.training.preferences import LOSSES, judge_of

        if examples is None:
            examples = self.held_out(plan, plan.recipe.evaluation.num_examples)
        if not examples:
            raise UserError(
                "objective.judge=preferences: no record with answers to compare is held out. Use "
                "objective.judge=answers."
            )
        name = "The held-out records"
        dataset = self.encode(plan, self.compare(plan, examples, name), name)
        tokenizer, batch_size = plan.encoder.tokenizer, plan.recipe.training.batch_size
        return judge_of(dataset, tokenizer.pad_token_id, batch_size, LOSSES[self.settings.loss])

    def held_out(self, plan: Preparation, most: int) -> list[Example]:
        """Return records with answers to compare that are not learned, as the task holds out what they ask."""
        if self.settings.pairs is None:
            found = [*(plan.task.records("held_out") or ())]
        else:
            found = [example for example in self.read(plan) if plan.task.holds_out(example.question)]
        if not self.takes_singles:
            found = found[:most]
            return found if self.judges(found) else []
        from glmtune.data.comparisons import has_good, of_both_kinds

        found = of_both_kinds(found, most)
        return found if any(map(has_good, found)) and self.judges(found) else []

    def held_out_during(self, plan: Preparation) -> list[Example]:
        """Return those of them that are compared beside the questions that the model is asked during the training."""
        return self.held_out(plan, plan.recipe.evaluation.num_examples_during)

    def judge_during(self, plan: Preparation, judge: Judge) -> Judge:
        """Return the judge; one that asks, with how often the model finds the better of held-out answers likelier."""
        held_out = self.held_out_during(plan) if self.asks else []
        return both(judge, self.judge(plan, held_out)) if held_out else judge

    def following(self, run: str, steps: int, draws: bool) -> list[str]:
        """Return how answers of the run are looked at; where they are scored, how pairs of them are made anew."""
        if self.asks:
            return [f"evaluate {run}", f"pairs {run} --output more_pairs.jsonl", f"export {run}"]
        return [f"chat {run}", predicting(run), f"export {run}"]

    def trainer(self, plan: Plan, model: Model, judge: Judge) -> RunTrainer:
        """Return the loop with the loss of comparisons."""
        from glmtune.data.comparisons import EncodedComparisons
        from glmtune.training.preferences import LOSSES, Knobs, make_preference_trainer

        settings, dataset = self.settings, plan.dataset
        assert isinstance(dataset, EncodedComparisons)
        loss = LOSSES[settings.loss]
        margin = 0.5 if settings.margin is None else settings.margin
        knobs = Knobs(settings.beta or loss.beta, settings.label_smoothing, margin, settings.sft_weight)
        return make_preference_trainer(
            model,
            plan.tokenizer,
            dataset,
            plan.recipe,
            plan.steps,
            judge,
            plan.folder,
            loss,
            knobs,
            plan.method.parameter_groups(model),
            metric_for_best_model=self.metric,
        )


def both(judge: Judge, other: Judge) -> Judge:
    """Return what has the figures of two judges; the second one's `n` is that of its metric."""

    def judge_twice(model: Model) -> dict[str, Any]:
        beside = other(model)
        return {**beside, f"{METRIC}_n": beside["n"], **judge(model)}

    return judge_twice
