"""What a model is asked before, during and after a training: how much, and once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from glmtune import distributed
from glmtune.evaluation.evaluator import Evaluation, evaluate
from glmtune.evaluation.examination import Examination, keep, key_of, recall
from glmtune.evaluation.forgetting import probe
from glmtune.evaluation.pace import Pace, measure_seconds
from glmtune.examples import Example
from glmtune.methods import Model
from glmtune.plan import Plan
from glmtune.records.leaks import problem_of
from glmtune.terminal.console import Console
from glmtune.training.run_trainer import Judge


@dataclass(frozen=True)
class Asked:
    """The held-out examples that the model is asked: before and after the training, and at each evaluation."""

    before: Sequence[Example]
    during: Sequence[Example]

    @property
    def counts(self) -> dict[str, int]:
        """How many these are, and how many problems are in both."""
        both = {problem_of(example.prompt) for example in self.before}
        shared = sum(problem_of(example.prompt) in both for example in self.during)
        return {"before": len(self.before), "during": len(self.during), "shared": shared}


def choose_asked(plan: Plan, model: Model, console: Console) -> Asked:
    """Return the held-out examples that the model can answer in the time that the recipe gives it.

    A run that goes on asks what it asked so far, unless it is told to ask more or less.
    """
    before, during = plan.held_out, plan.held_out_during
    if not before:
        return Asked((), ())
    if plan.past is not None and plan.past.asked is not None:
        changed = {change.setting for change in plan.changes}
        settled, during = plan.past.asked[0], during[: plan.past.asked[1]]  # which the best weights are chosen by
        if not changed & {"evaluation.num_examples", "evaluation.max_seconds"}:
            return Asked(before[:settled], during)

    def answer(examples: Sequence[Example]) -> Evaluation:
        return evaluate(model, plan.tokenizer, plan.task, examples, generation, progress=False, limit=plan.model.limit)

    recipe, generation = plan.recipe, plan.recipe.generation
    seconds = measure_seconds(answer, before, generation.batch_size, recipe.evaluation.max_seconds)
    evaluations = 1 + -(-plan.steps // recipe.training.evaluated_every(plan.steps))  # the first before any step
    pace = Pace(seconds, (len(before), len(during)), evaluations, recipe.evaluation)
    if pace.asked != pace.wanted:
        console.print(str(pace), highlight=False, soft_wrap=True)
    return Asked(before[: pace.asked[0]], during[: pace.asked[1]])


def examine_before(plan: Plan, model: Model, asked: Asked, judge: Judge, console: Console) -> Examination:
    """Ask the model before the training, unless the run has its answers to the same questions from its beginning.

    What the log says of it is what it is judged by during the training, so that both are of the same examples.
    """
    recipe = plan.recipe
    storage = recipe.model.model_dump(exclude={"path", "adapter", "merge_adapter"})
    said = (plan.present.base, storage, recipe.generation, recipe.seed, plan.tokenizer.chat_template, plan.model.limit)
    judged = () if plan.objective.asks else (plan.present.records, recipe.evaluation, recipe.data)
    key = key_of((*said, *judged), [*asked.before, *asked.during, *plan.general])
    if plan.past is not None and (known := recall(plan.folder.before, key, plan.task, asked.before, plan.general)):
        console.print("Before: as the model answered when the run began.")
        return known
    if plan.objective.asks:
        told = f" with {plan.model.adapter}" if plan.model.adapter is not None else ""
        console.print(f"Before: {recipe.model.path}{told} answers {len(asked.before)} held-out problems ...")
    found = examine(plan, model, asked)
    if plan.objective.asks:
        found = replace(found, figures=judge(model))
    distributed.on_main(lambda: keep(plan.folder.before, key, found))
    return found


def examine(plan: Plan, model: Model, asked: Asked) -> Examination:
    """Ask a model what it is asked before and after the training, or have it judged."""
    generation, limit, seed = plan.recipe.generation, plan.model.limit, plan.recipe.seed
    general = probe(model, plan.tokenizer, plan.general, generation, limit) if plan.general else None
    if plan.judge is not None:
        return Examination(plan.judge(model), None, general)
    held_out = evaluate(model, plan.tokenizer, plan.task, asked.before, generation, limit=limit, seed=seed)
    return Examination(figures_of(held_out), held_out, general)


def judge_of(plan: Plan, asked: Asked) -> Judge:
    """Return what scores a model during the training: greedy decoding on held-out examples of its own."""
    greedy = plan.recipe.generation.model_copy(update={"do_sample": False})

    def judge(model: Model) -> dict[str, Any]:
        questions = plan.tokenizer, plan.task, asked.during, greedy
        return figures_of(evaluate(model, *questions, progress=False, limit=plan.model.limit))

    return judge


def figures_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the log says of an evaluation."""
    report = evaluation.report(text_metrics=False)
    return {name: report[name] for name in ("accuracy", "accuracy_ci95", "n")}
