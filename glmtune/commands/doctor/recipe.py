"""What is looked at before a run: examples, method, precision, memory and disk."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

from glmtune import distributed
from glmtune.commands.doctor.checks import Examination, Finding
from glmtune.commands.doctor.patient import CHECKED, SPLITS, Patient
from glmtune.commands.estimate import at_hand, estimate, lengths, readable, remedies
from glmtune.config import DataSettings, Recipe
from glmtune.models import loading
from glmtune.models.architecture import Architecture, stored_bits
from glmtune.records import read_examples
from glmtune.runtime import UserError
from glmtune.training.memory import Estimate


def records(file: str) -> Finding:
    """A file of records."""
    return "ok", f"{file}: {len(read_examples(file)):,} records", ""


def data(patient: Patient) -> Finding:
    """Whether the task's examples can be had, and its own targets are right in its own eyes."""
    from glmtune.data import examples_of

    task, seed = patient.task, patient.recipe.seed
    train, held_out = (examples_of(task, split, CHECKED, seed) for split in SPLITS)
    for example in (*train[:CHECKED], *held_out[:CHECKED]):
        if (verdict := task.score(example, example.target).verdict) != "exact":
            finding = f"task {task.settings.name} calls its own target {example.target[:60]!r} {verdict}"
            return "failure", f"{finding}, to {str(example.prompt)[:60]!r}", "Mend Task.score, or the target."
    mixed = [
        f"; {len(read_examples(source.file, DataSettings(columns=source.columns, encoding=source.encoding))):,} of "
        f"{source.file} mixed in"
        for source in patient.recipe.data.mixture
    ]
    if task.records("train") is None:
        return "ok", f"drawn without end, e.g. {train[0].prompt!r} -> {train[0].target!r}{''.join(mixed)}", ""
    return "ok", f"{len(train):,} records to learn, {len(held_out):,} held out{''.join(mixed)}", ""


def example_lengths(patient: Patient) -> Finding:
    """Whether the model can take the examples."""
    length, target = patient.lengths
    limit = loading.max_length(patient.config)
    of = f" of the {limit} that the model takes" if limit is not None else ""
    return "ok", f"{length} tokens at most{of}, {target} of them learned, among the first {CHECKED} examples", ""


def method(patient: Patient) -> Finding:
    """Whether the method finds what it trains in such a model, which is made without its numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(patient.config)
    name = patient.recipe.method.name
    try:
        tuned = patient.method.apply(model)
    except UserError:
        raise
    except Exception as error:  # what starts from the numbers themselves
        return "ok", f"{name} cannot be tried without weights ({type(error).__name__})", ""
    count = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    return "ok", f"{name} trains {count:,} parameters", ""


def precision(patient: Patient) -> Finding:
    """Whether the device computes in the recipe's precision, and stores and trains what the recipe says."""
    from glmtune.training.arguments import check_precision
    from glmtune.training.optimizers import check_installed

    settings, where = patient.recipe.model, distributed.local_device()
    dtype = loading.choose_dtype(settings.dtype, where)
    if patient.trains:
        check_precision(dtype, where)
        patient.method.check_storage(settings, stored_bits(patient.config))
    loading.check_bits(settings, patient.config)
    check_installed(patient.recipe.training.optimizer)
    if settings.bits < stored_bits(patient.config) and importlib.util.find_spec("bitsandbytes") is None:
        remedy = "pip install 'glmtune[quantization]', or leave it out."
        return "failure", f"model.bits={settings.bits}: bitsandbytes is not installed", remedy
    names = [str(name).removeprefix("torch.") for name in (dtype, patient.config.dtype or dtype)]
    wider = f"; the files hold {names[1]}" if names[0] != names[1] else ""
    return "ok", f"{names[0]} on the {where.type}{wider}", ""


def expected(patient: Patient) -> Callable[[Recipe], Estimate]:
    """The estimate of a recipe with this model, on this machine, of examples as long as the recipe's.

    Raises:
        UserError: the sizes of the model, or what the method trains, are not known.
    """
    architecture = Architecture.from_config(patient.values)
    place = at_hand(distributed.local_device().type == "cuda")
    length, target = patient.lengths if patient.has_recipe else lengths(patient.recipe, architecture, None, None)
    return lambda recipe: estimate(recipe, architecture, place.device, length, target)


def run_memory(patient: Patient) -> Finding:
    """Whether a run fits the memory, and whether answering does where no recipe was asked about."""
    place = at_hand(distributed.local_device().type == "cuda")
    try:
        estimate_of = expected(patient)
        found = estimate_of(patient.recipe)
    except UserError as error:
        return "ok", f"not estimated: {error}", ""
    has = f"{place.name} has {readable(place.memory)}"
    answering = found.inference(found.length)
    finding = f"training takes {readable(found.peak)}, answering {readable(answering)}; {has}"
    if place.spare(found) >= 0:
        return "ok", finding, ""
    settings, _ = remedies(patient.recipe, estimate_of, place)
    remedy = "Choose a smaller model, or shorter examples." if settings is None else f"Set {shlex.join(settings)}"
    fails = patient.trains or place.spare(found) + found.peak < answering
    return "failure" if fails else "warning", f"{finding}: too little", remedy


def run_disk(patient: Patient) -> Finding:
    """Whether a run folder fits the disk."""
    try:
        needed = expected(patient)(patient.recipe).disk
    except UserError as error:
        return "ok", f"not estimated: {error}", ""
    folder = Path(patient.recipe.training.output_dir or "runs").resolve()
    place = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    finding = f"a run folder takes up to {readable(needed)}; {readable(free)} are free in {place}"
    if free >= needed:
        return "ok", finding, ""
    remedy = "Free some, set training.output_dir to a folder on another disk, or training.save_total_limit=1."
    return "failure" if patient.trains else "warning", f"{finding}: too little", remedy


RECIPE_EXAMINATIONS = [
    Examination("data", data, "Mend the task, or the records."),
    Examination("lengths", example_lengths, "Shorten the examples.", ("data", "template")),
    Examination("method", method, "Choose another method.name or other settings of it.", ("config",)),
]
RUN_EXAMINATIONS = [
    Examination("precision", precision, "Set model.dtype=auto and model.bits=16.", ("config",)),
    Examination("run memory", run_memory, "Ask `glmtune estimate`.", ("config", "lengths")),
    Examination("run disk", run_disk, "Ask `glmtune estimate`.", ("config", "lengths")),
]
