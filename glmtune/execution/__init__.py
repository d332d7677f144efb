"""A plan carried out: the model before, the training, the model after, and a run folder that holds all of it."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from safetensors import SafetensorError

from glmtune import distributed
from glmtune.config import read_log, to_yaml
from glmtune.data import EncodedDataset
from glmtune.evaluation.comparison import compare
from glmtune.evaluation.evaluator import Evaluation
from glmtune.evaluation.examination import Examination
from glmtune.evaluation.forgetting import Probe, compare_probes
from glmtune.evaluation.held_out import explain_during
from glmtune.evaluation.page import write_judged_page, write_page
from glmtune.evaluation.plots import write_plots
from glmtune.execution.asking import Asked, choose_asked, examine, examine_before, judge_of
from glmtune.files import replacing, write_json, write_text
from glmtune.methods import Model
from glmtune.models.quantization import count_parameters
from glmtune.objectives import Objective
from glmtune.plan import Plan
from glmtune.runtime import RunFolder, UserError, machine, seed_everything
from glmtune.tasks import Task
from glmtune.terminal.console import Console
from glmtune.training import sharding
from glmtune.training.callbacks import start_log
from glmtune.training.checkpoints import trained_weights
from glmtune.training.placement import readable
from glmtune.training.processes import describe_processes
from glmtune.training.resumption import Change, write_record
from glmtune.training.run_trainer import DivergenceError, Judge, RunTrainer

STARTED_FROM = 16  # examples


@dataclass(frozen=True)
class Run:
    """What a training leaves behind. It stands for its folder wherever a path is asked for.

    Attributes:
        folder: the run folder.
        task: what was learned.
        objective: what was learned from an example.
        before, after: answers of the model before and after; None where the objective asks nothing.
        report: what `report.json` holds.
    """

    folder: RunFolder
    task: Task
    objective: Objective
    before: Evaluation | None
    after: Evaluation | None
    report: dict[str, Any]

    @property
    def path(self) -> Path:
        """The run folder's path."""
        return self.folder.path

    @property
    def accuracy_before(self) -> float:
        """Share of the held-out examples that the model answered rightly before, 0 to 1."""
        return float(self.report["before"]["accuracy"])

    @property
    def accuracy(self) -> float:
        """Share of the held-out examples that the model answers rightly now, 0 to 1."""
        return float(self.report["after"]["accuracy"])

    def __fspath__(self) -> str:
        return str(self.path)


def execute(plan: Plan, console: Console) -> Run:
    """Train as planned, from the last checkpoint of the run folder where it has one.

    Raises:
        UserError: the loss diverged, or the disk is full.
        KeyboardInterrupt: after Ctrl-C or SIGTERM (`Terminated`); says how to go on.
    """
    announce(plan, console)
    announce_past(plan, console)
    distributed.on_main(lambda: write_recipe(plan))
    seed_everything(plan.recipe.seed)
    base, _ = plan.model.load()
    asked = choose_asked(plan, base, console)
    judge = plan.objective.judge_during(plan.preparation, plan.judge or judge_of(plan, asked))
    before = examine_before(plan, base, asked, judge, console)
    model = apply_method(plan, base)
    if plan.model.adapter is None:
        plan.method.initialize(model, first_examples(plan))
    with distributed.grouped() if is_divided(plan) else nullcontext():
        if is_divided(plan):
            sharding.shard(model, plan.recipe.training.cpu_offload)
        if plan.start == 0 or not plan.folder.log.exists():
            figures = {**before.figures, **probe_before(plan, model, console)}
            distributed.on_main(lambda: start_log(plan.folder.log, figures))
        announce_training(plan, model, asked, console)
        return learn(plan, model, before, asked, judge, console)


def is_divided(plan: Plan) -> bool:
    """Return whether the weights are divided while they learn."""
    return plan.recipe.training.sharding == "full"


def first_examples(plan: Plan) -> list[torch.Tensor]:
    """Return the token ids of the first examples that are learned, for a method that starts from them."""
    dataset = plan.dataset
    if not isinstance(dataset, EncodedDataset):  # of an objective of the user's own
        return []
    return [torch.tensor(dataset[index]["input_ids"]) for index in range(min(STARTED_FROM, len(dataset)))]


def write_recipe(plan: Plan) -> None:
    """Write `recipe.yaml` with what was changed on the way.

    It comes before all else: by it the folder is known for a run, whenever it is interrupted.
    """
    notes = "".join(f"# {change}\n" for change in changes_of(plan))
    write_text(plan.folder.recipe, notes + to_yaml(plan.recipe))


def probe_before(plan: Plan, model: Model, console: Console) -> dict[str, float]:
    """Return what the objective measures of a model before the training, and say what is to be thought of it.

    Raises:
        UserError: there is nothing that it could learn.
    """
    probed = plan.objective.probe(plan, model)
    if advice := plan.objective.advise(probed):
        console.print(advice, highlight=False, soft_wrap=True)
    return probed


def probes(plan: Plan, model: Model, log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what `report.json` says of what the objective measures before, as the log has it, and after."""
    after = plan.objective.probe(plan, model)
    first = log[0] if log else {}
    before = {name: first[name] for name in after if name in first}
    return {"probe": {"before": before or None, "after": after}} if after else {}


def changes_of(plan: Plan) -> list[Change]:
    """Return what was changed on the way, up to now."""
    return [*(plan.past.changes if plan.past else ()), *plan.changes]


def learn(plan: Plan, model: Model, before: Examination, asked: Asked, judge: Judge, console: Console) -> Run:
    """Train a model to which the method is applied, save it, and report on it.

    Raises:
        UserError: the loss diverged; the best weights before that are saved. Or the disk is full.
        KeyboardInterrupt: after Ctrl-C or SIGTERM (`Terminated`); says how to go on.
    """
    try:
        trainer = plan.objective.trainer(plan, model, judge)
        present = replace(plan.present, changes=changes_of(plan), asked=(len(asked.before), len(asked.during)))
        distributed.on_main(lambda: write_record(plan.folder, present))
        trainer.run()
        announce_best(plan, trainer, console)
        model = keep(plan, model, trainer)
        if plan.objective.asks:
            console.print("After: the same problems again ...")
        return report(plan, model, before, examine(plan, model, asked), asked)
    except DivergenceError as error:
        if not error.rescued:
            raise
        model = keep(plan, model, trainer)
        report(plan, model, before, examine(plan, model, asked), asked)
        raise UserError(f"{error} The best weights before that are in {plan.folder.path}, ready for use.") from error
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)(f"Go on with: glmtune train --resume {plan.folder.path}") from None


def keep(plan: Plan, model: Model, trainer: RunTrainer) -> Model:
    """Save what was learned, and return the model that is used from then on; a divided one is given up for it."""
    if not sharding.is_sharded(model):
        return save(plan, model)
    trainer.give_back()
    whole, divided = apply_method(plan, plan.model.load()[0]), trained_weights(model)
    with torch.no_grad():
        for name, weight in trained_weights(whole).items():
            weight.copy_(sharding.whole(divided[name]))
    sharding.release(model)
    saved: Any = save(plan, whole.eval())
    return saved.to(distributed.local_device())


def apply_method(plan: Plan, base: Any) -> Model:
    """Return a model of which the method trains its part: fresh, by the seed alone, or what an adapter has learned."""
    if is_divided(plan) and plan.method.trains_base:
        base.cpu()  # in fp32, a device may have no room for all of it
    seed_everything(plan.recipe.seed)
    return plan.method.apply(base) if plan.model.adapter is None else plan.method.go_on(base)


def announce(plan: Plan, console: Console) -> None:
    """Say what the user should know before anything is loaded."""
    try:
        place, estimate = plan.placement.place, plan.placement.estimate
        console.print(f"Expected peak of memory: {readable(estimate.peak)}; {place.name} has {readable(place.memory)}.")
    except UserError:  # nothing is said of models and methods whose sizes are not known
        pass
    for remark in plan.remarks:
        console.print(remark, highlight=False, soft_wrap=True)


def announce_past(plan: Plan, console: Console) -> None:
    """Say where a run goes on, and by which other settings; or that it has ended, and how it would go on."""
    past = plan.past
    if past is None:
        return
    if plan.start == 0:
        told = f"{plan.folder.path} was interrupted before its first checkpoint: it begins anew."
    elif past.has_ended and not plan.goes_on:
        why = "all are made" if plan.start >= plan.steps else "stopped early, as evaluations were no better"
        told = (
            f"{plan.folder.path} is finished after step {plan.start:,} of {plan.steps:,}: {why}. It is judged once "
            f"more. To train it longer: glmtune train --resume {plan.folder.path} {past.remedy}"
        )
    else:
        told = f"{plan.folder.path} goes on after step {plan.start:,} of {plan.steps:,}."
    for line in (*past.damaged, told, *(f"Changed: {change}." for change in plan.changes)):
        console.print(line, highlight=False, soft_wrap=True)


def announce_training(plan: Plan, model: Model, asked: Asked, console: Console) -> None:
    """Say what is about to be trained, and by which examples it is judged."""
    recipe, training = plan.recipe, plan.recipe.training
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    names = [(name, "bold") for name in (recipe.task.name, recipe.method.name, recipe.model.path)]
    counts = (
        f"{trainable:,} of {count_parameters(model):,} parameters learn, {plan.steps:,} steps of "
        f"{training.batch_size * training.gradient_accumulation_steps} examples on {sharding.device_of(model)}"
    )
    console.print(Text.assemble(names[0], " with ", names[1], " on ", names[2], f": {counts}"))
    if together := describe_processes(model, training.examples_per_step, training.batch_size):
        console.print(together, highlight=False, soft_wrap=True)
    if plan.objective.asks:
        console.print(explain_during(**asked.counts), highlight=False, soft_wrap=True)
    console.print(f"Run folder: {plan.folder.path}")


def announce_best(plan: Plan, trainer: RunTrainer, console: Console) -> None:
    """Say which weights are kept, where those of the last step are not."""
    state = trainer.state
    if (best := state.best_global_step) is not None and best < state.global_step:
        metric = plan.objective.metric.replace("_", " ")
        console.print(f"Kept: the weights of step {best:,} of {state.global_step:,}, the best by held-out {metric}.")


def save(plan: Plan, model: Model) -> Model:
    """Save what was learned, and return the model that is used from then on.

    Raises:
        UserError: the disk is full; the checkpoints are still there.
    """
    model = plan.method.finish(model)
    distributed.on_main(lambda: write_model(plan, model))
    return model


def write_model(plan: Plan, model: Model) -> None:
    """Write the adapter, or the whole model, whole or not at all.

    Raises:
        UserError: the disk is full.
    """
    method, folder = plan.method, plan.folder
    with replacing(folder.adapter if method.saves_adapter else folder.model) as temporary:
        temporary.mkdir()
        try:
            method.save(model, plan.tokenizer, temporary, plan.recipe.model)
        except SafetensorError as error:  # in place of an OSError
            raise OSError(str(error)) from error


def report(plan: Plan, model: Model, before: Examination, after: Examination, asked: Asked) -> Run:
    """Write the report, its page and the plots, of a model that has learned."""
    folder = plan.folder
    log = read_log(folder)
    values: dict[str, Any] = {
        "format": 2,
        **results_of(plan, before, after),
        **({"asked": asked.counts} if plan.objective.asks else {}),
        "loss_unit": plan.objective.loss_unit,
        **probes(plan, model, log),
        **forgotten(before.general, after.general),
        **({"changes": [asdict(change) for change in changes]} if (changes := changes_of(plan)) else {}),
        "training_seconds": max((record["seconds"] for record in log), default=0),
        "peak_memory": peak_memory(),
        **({"processes": count} if (count := distributed.world_size()) > 1 else {}),
        "machine": machine(),
    }
    distributed.on_main(lambda: write_report(plan, values, log))
    return Run(folder, plan.task, plan.objective, before.held_out, after.held_out, values)


def write_report(plan: Plan, values: dict[str, Any], log: list[dict[str, Any]]) -> None:
    """Write `report.html`, the plots and `report.json`.

    The report comes last: by it a run is known to have ended.
    """
    folder = plan.folder
    if plan.objective.asks:
        write_page(values, log, to_yaml(plan.recipe), folder.path)
    else:
        write_judged_page(values, log, to_yaml(plan.recipe), folder.path)
    write_plots(values, log, folder.path)
    write_json(folder.report, values)


def results_of(plan: Plan, before: Examination, after: Examination) -> dict[str, Any]:
    """Return what `report.json` says of the model before and after."""
    if before.held_out is None or after.held_out is None:
        return {"metric": plan.objective.metric, "before": before.figures, "after": after.figures}
    text_metrics = plan.recipe.evaluation.text_metrics
    return {
        "before": before.held_out.report(text_metrics),
        "after": after.held_out.report(text_metrics),
        **compare(plan.task, before.held_out, after.held_out),
    }


def forgotten(before: Probe | None, after: Probe | None) -> dict[str, Any]:
    """Return what `report.json` says of the general questions; nothing where they were not asked."""
    return {} if before is None or after is None else {"forgetting": compare_probes(before, after)}


def peak_memory() -> int | None:
    """Return the most bytes that this process held, of the GPU where there is one, else resident; None if unknown."""
    if distributed.local_device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
