"""What is looked at before a run: examples, method, precision, memory and disk."""

from __future__ import annotations

import shlex
import shutil
from functools import partial

from glmtune import distributed
from glmtune.commands.doctor.awaited import check_awaited
from glmtune.commands.doctor.checks import Check, Finding
from glmtune.config import DataSettings, ModelSettings, Source
from glmtune.examples import Split
from glmtune.models import loading
from glmtune.plan import Plan
from glmtune.records import read_examples
from glmtune.runtime import UserError
from glmtune.succession import kept_of
from glmtune.terminal import counted
from glmtune.training.placement import Placement, assume_lengths, placement_of, readable
from glmtune.training.requirements import check_model, check_packages, count_trainable
from glmtune.trust import UntrustedError

SPLITS: tuple[Split, ...] = ("train", "held_out")
SHOWN = 80  # characters of a text
TOLD = 3  # records that are told one by one
CHECKED = 200  # examples of each split that are scored


def trains(plan: Plan) -> bool:
    """Return whether a training is what is to come: where it does not fit, something will fail."""
    run = plan.model.run
    return plan.model.has_recipe and (run is None or not (run.model.is_dir() or run.adapter.is_dir()))


def code(refused: UntrustedError, plan: Plan) -> Finding:
    """Say which code the files ask to run, which it is not."""
    finding = "; ".join(map(str, refused.requests))
    return "failure", finding, f"It was not run. Read it; if you want it to run, name it yourself: {refused.typed}"


def code_checks(refused: UntrustedError | None) -> list[Check]:
    """Return what is said of code that nobody typed, where there is any; what needs it is not looked at."""
    return [] if refused is None else [Check("code", partial(code, refused), "")]


def records(file: str) -> Finding:
    """Read a file of records, and see whether the template of the default model takes the first of them."""
    from glmtune.data.acceptance import refusal_of
    from glmtune.resolution import resolve

    model = ModelSettings().path
    found = read_examples(file)
    asked = [example for example in found if example.text is None][:CHECKED]
    tokenizer = resolve(model).tokenizer
    refused = [fault for example in asked if (fault := refusal_of(tokenizer, example)) is not None]
    read = f"{file}: {counted(len(found), 'record')}"
    if refused:
        told = "; ".join(str(fault).rstrip(".") for fault in refused[:TOLD])
        more = f"; and {len(refused) - TOLD} more" if len(refused) > TOLD else ""
        finding = f"{read}; of the first {len(asked)}, {len(refused)} are refused by {model}: {told}{more}"
        return "failure", finding, "Name the model that is to learn them (model.path=NAME), or set data.on_error=skip."
    return "ok", read, ""


def data(plan: Plan) -> Finding:
    """See whether the task's examples can be had, and its own targets are right in its own eyes."""
    from glmtune.data import examples_of

    task, seed, sources = plan.task, plan.model.recipe.seed, plan.model.recipe.data.mixture
    for source in sources:
        check_awaited(plan.model, source.file)
    train, held_out = (examples_of(task, split, CHECKED, seed) for split in SPLITS)
    asked = (*train[:CHECKED], *held_out[:CHECKED]) if plan.objective.asks else ()
    for example in asked:
        if (verdict := task.score(example, example.target, example.tool_calls).verdict) != "exact":
            finding = f"task {task.settings.name} calls its own target {shorten(example.target)!r} {verdict}"
            return "failure", f"{finding}, to {shorten(str(example.prompt))!r}", "Mend Task.score, or the target."
    mixed = "".join(f"; {count_records(source):,} of {source.file} mixed in" for source in sources)
    if task.records("train") is None:
        drawn = f"{train[0].prompt!r} -> {shorten(train[0].target)!r}"
        return "ok", f"drawn without end, e.g. {drawn}{mixed}", ""
    return "ok", f"{counted(len(train), 'record')} to learn, {len(held_out):,} held out{mixed}", ""


def shorten(text: str) -> str:
    """Return a text, cut where it is too long to be read at a glance."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def count_records(source: Source) -> int:
    """Return how many records a file has that is mixed in."""
    return len(read_examples(source.file, DataSettings(columns=source.columns, encoding=source.encoding)))


def objective(plan: Plan) -> Finding:
    """See whether the objective has what it needs; where it learns from rewards, each is tried on a right answer."""
    plan.objective.check(plan.preparation)
    return "ok", plan.objective.settings.name, ""


def held_out(plan: Plan) -> Finding:
    """See whether the model can be asked the held-out examples."""
    if not plan.objective.asks:
        return "ok", f"none is asked; {plan.objective.metric} is measured", ""
    before, during = len(plan.held_out), len(plan.held_out_during)
    longest = plan.asked.generation.longest
    return "ok", f"{before} before and after training, {during} during it, answers of up to {longest} tokens", ""


def lengths(plan: Plan) -> Finding:
    """See whether the model can take the examples."""
    from glmtune.data.lengths import CHECKED_DRAWS

    length, target = plan.lengths
    limit = plan.model.limit
    of = f" of the {limit} that the model takes" if limit is not None else ""
    among = f", among the first {CHECKED_DRAWS:,} examples" if plan.task.records("train") is None else ""
    return "ok", f"{length} tokens at most{of}, {target} of them learned{among}; {plan.steps:,} steps", ""


def remarks(plan: Plan) -> Finding:
    """Say what training would remark on."""
    return ("warning", " ".join(plan.remarks), "") if plan.remarks else ("ok", "none", "")


def method(plan: Plan) -> Finding:
    """See whether the method finds what it trains in such a model, which is made without its numbers."""
    name, count = plan.model.recipe.method.name, count_trainable(plan.method, plan.model.config)
    if count is None:
        return "ok", f"{name} cannot be tried without weights", ""
    return "ok", f"{name} trains {count:,} parameters", ""


def precision(plan: Plan) -> Finding:
    """See whether the device computes in the recipe's precision, and stores and trains what the recipe says."""
    recipe, config, device = plan.model.recipe, plan.model.config, distributed.local_device()
    check_packages(recipe, config)
    if trains(plan):
        check_model(recipe, config, plan.method)
    settings = recipe.model
    loading.check_bits(settings, config)
    dtype = loading.dtype_of(settings, config, device)
    names = [str(name).removeprefix("torch.") for name in (dtype, config.dtype or dtype)]
    wider = f"; the files hold {names[1]}" if names[0] != names[1] else ""
    return "ok", f"{names[0]} on the {device.type}{wider}", ""


def placement(plan: Plan) -> Placement:
    """Return the memory and disk of a training on this machine, of examples as long as the recipe's.

    Raises:
        UserError: the sizes of the model, or what the method trains, are not known.
    """
    if plan.model.has_recipe:
        return plan.placement
    recipe = plan.model.recipe
    return placement_of(recipe, plan.model.architecture, *assume_lengths(recipe, plan.model.architecture))


def memory(plan: Plan) -> Finding:
    """See whether a run fits the memory, and whether answering does where no recipe was asked about."""
    try:
        found = placement(plan)
        estimate, place = found.estimate, found.place
    except UserError as error:
        return "ok", f"not estimated: {error}", ""
    answering = estimate.inference(estimate.length)
    finding = (
        f"training takes {readable(estimate.peak)}, answering {readable(answering)}; {place.name} has "
        f"{readable(place.memory)}"
    )
    if found.fits:
        return "ok", finding, ""
    settings, _ = found.remedy
    remedy = "Choose a smaller model, or shorter examples." if settings is None else f"Set {shlex.join(settings)}"
    fails = trains(plan) or found.spare + estimate.peak < answering
    return "failure" if fails else "warning", f"{finding}: too little", remedy


def disk(plan: Plan) -> Finding:
    """See whether a run folder fits the disk."""
    try:
        needed = placement(plan).estimate.disk + kept_of(plan.model)
    except UserError as error:
        return "ok", f"not estimated: {error}", ""
    folder = plan.folder.path.resolve()
    place = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    finding = f"a run folder takes up to {readable(needed)}; {readable(free)} are free in {place}"
    if free >= needed:
        return "ok", finding, ""
    remedy = "Free some, or set training.output_dir to a folder on another disk."
    return "failure" if trains(plan) else "warning", f"{finding}: too little", remedy


def checkpoints(plan: Plan) -> Finding:
    """See whether a run could go on from its last checkpoint, and nothing in that carries code."""
    from glmtune.training.checkpoints import check_resumable, find_last

    assert plan.model.run is not None, "asked of runs only"
    found = check_resumable(plan.model.run.checkpoints)
    _, damaged = find_last(plan.model.run.checkpoints)
    if damaged:
        return "warning", " ".join(damaged), f"Nothing: {found.name} counts." if found else "Put a copy of one back."
    return "ok", "none" if found is None else f"{found.name} is whole", ""


def run_checks(plan: Plan) -> list[Check]:
    """Return what is looked at in the recipe and its run, in order."""
    of_recipe = [
        Check("data", data, "Mend the task, or the records.", ("code",)),
        Check("held-out examples", held_out, "Shorten the examples.", ("data", "template")),
        Check("objective", objective, "Choose another objective.name, or mend what it calls.", ("held-out examples",)),
        Check("lengths", lengths, "Shorten the examples.", ("objective",)),
        Check("method", method, "Choose another method.name or other settings of it.", ("config", "code")),
    ]
    return [
        *([Check("checkpoints", checkpoints, "Delete the last one.")] if plan.model.run is not None else []),
        *(of_recipe if plan.model.has_recipe else []),
        Check("precision", precision, "Set model.dtype=auto and model.bits=16.", ("config", "code")),
        Check("run memory", memory, "Ask `glmtune estimate`.", ("config", "lengths")),
        Check("run disk", disk, "Ask `glmtune estimate`.", ("config", "lengths")),
        *([Check("remarks", remarks, "", ("lengths",))] if trains(plan) else []),
    ]
