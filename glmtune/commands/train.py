"""`glmtune train`: a recipe in, a run folder out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from glmtune import distributed, registry
from glmtune.commands.estimate import architecture_of, at_hand, estimate, readable
from glmtune.config import Recipe, load_recipe, read_log, to_yaml
from glmtune.data import EncodedDataset, EncodedDraws
from glmtune.data.encoding import IGNORED, Encoder, check_template
from glmtune.data.mixture import Mixture, training_set
from glmtune.evaluation.comparison import compare
from glmtune.evaluation.evaluator import Evaluation, evaluate
from glmtune.evaluation.forgetting import Probe, compare_probes, probe, read_general
from glmtune.evaluation.intervals import wilson_interval
from glmtune.examples import Example
from glmtune.inference.selection import fit_max_new_tokens, select_held_out
from glmtune.methods import Method, Model
from glmtune.models import loading
from glmtune.models.architecture import stored_bits
from glmtune.models.quantization import count_parameters
from glmtune.models.releases import check_release
from glmtune.models.templates import adopt
from glmtune.runtime import RunFolder, UserError, machine, replacing, seed_everything, write_json
from glmtune.tasks import Task
from glmtune.training.arguments import check_precision
from glmtune.training.callbacks import start_log
from glmtune.training.run_trainer import DivergenceError, Judge
from glmtune.training.trainer import make_trainer

# Examples whose lengths are checked before training, where a task draws without end.
CHECKED_DRAWS = 1000
FEW_HELD_OUT = 30


@dataclass
class Run:
    """What a training leaves behind.

    Attributes:
        folder: the run folder.
        task: what was learned.
        before, after: held-out results of the model before and after.
        report: what `report.json` holds.
    """

    folder: RunFolder
    task: Task
    before: Evaluation
    after: Evaluation
    report: dict[str, Any]


def run(
    recipe_path: str | None = None,
    overrides: list[str] | None = None,
    resume: str | None = None,
    console: Console | None = None,
) -> Run:
    """Train by a recipe, or by the defaults: the embedded model, arithmetic, LoRA.

    Args:
        recipe_path: a YAML file.
        overrides: `section.setting=value` texts.
        resume: a run folder to go on with instead; its own recipe counts.
        console: where to print.

    Raises:
        UserError: faults in the recipe, the model's files or the data, told before anything is trained.
    """
    console = console or Console(stderr=True)
    if resume is not None:
        return learn(resumed_recipe(resume, recipe_path, overrides), RunFolder(resume), console)
    recipe = load_recipe(recipe_path, overrides or [])
    with new_folder(recipe) as folder:
        return learn(recipe, folder, console)


@contextmanager
def new_folder(recipe: Recipe) -> Iterator[RunFolder]:
    """A new run folder, taken away again if the block fails before training starts.

    Raises:
        UserError: there is something in it.
    """
    given = recipe.training.output_dir
    existed = given is not None and Path(given).exists()
    folder = RunFolder.create(given, run_name(recipe))
    try:
        yield folder
    except BaseException:
        if not folder.checkpoints.exists():
            folder.recipe.unlink(missing_ok=True)
            folder.log.unlink(missing_ok=True)
            if not existed:
                shutil.rmtree(folder.path)
        raise


def learn(recipe: Recipe, folder: RunFolder, console: Console) -> Run:
    """Train in a run folder, from its last checkpoint where it has one.

    Raises:
        UserError: faults in the model's files or the data.
        KeyboardInterrupt: after Ctrl-C; says how to go on.
    """
    task: Task = registry.find("glmtune.tasks", recipe.task.name)(recipe.task, recipe.data)
    method: Method = registry.find("glmtune.methods", recipe.method.name)(recipe.method)
    general = read_general(recipe.evaluation.general_file) if recipe.evaluation.forgetting else []

    location = loading.locate(recipe.model.path)
    if Path(recipe.model.path).is_dir():  # the run folder is to be usable from anywhere
        recipe.model.path = str(Path(recipe.model.path).resolve())
    config, tokenizer = loading.load_config(location), loading.load_tokenizer(location)
    check_release(recipe.model.path, tokenizer, config)
    if recipe.data.template is not None:
        adopt(tokenizer, recipe.data.template)
    check_template(tokenizer)
    limit = loading.max_length(config)
    if limit is not None:
        limit -= method.num_prefix_positions(config.model_type)
    recipe = fit_max_new_tokens(recipe, task, tokenizer, limit)
    held_out = select_held_out(recipe, task, tokenizer, limit)
    asked_during = select_held_out(recipe, task, tokenizer, limit, during=True)
    check_precision(loading.choose_dtype(recipe.model.dtype, distributed.local_device()), distributed.local_device())
    method.check_storage(recipe.model, stored_bits(config))
    loading.check_bits(recipe.model, config)
    encoder = Encoder(tokenizer, recipe.data.max_length or limit, recipe.data.train_on_bos)
    dataset, recipe.training.steps = training_set(recipe, task, encoder, general)
    steps = recipe.training.steps
    for remark in [*dataset.remarks, *too_few(held_out, recipe.evaluation.num_examples), *no_bos(encoder)]:
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
    announce_memory(console, recipe, *longest_of(dataset))
    seed_everything(recipe.seed)
    base, _ = loading.load_model(recipe.model)
    if recipe.training.learning_rate is None:
        recipe.training.learning_rate = method.learning_rate(base.config.hidden_size)
    started = folder.log.exists()
    console.print(f"Before: {recipe.model.path} answers {len(held_out)} held-out problems ...")
    before = evaluate(base, tokenizer, task, held_out, recipe.generation)
    known = [probe(base, tokenizer, general, recipe.generation)] if general else []
    if not started:
        start_log(folder.log, figures_of(before))
    seed_everything(recipe.seed)  # what a method draws must not depend on how the questions were answered
    model = method.apply(base)
    with replacing(folder.recipe) as temporary:
        temporary.write_text(to_yaml(recipe), encoding="utf-8")
    announce(console, recipe, model, folder, steps)

    judge, groups = make_judge(recipe, task, tokenizer, asked_during), method.parameter_groups(model)
    try:
        make_trainer(model, tokenizer, dataset, recipe, steps, judge, folder, groups).run()
        model = method.finish(model)
        save(method, model, tokenizer, folder, recipe)
        console.print("After: the same problems again ...")
        after = evaluate(model, tokenizer, task, held_out, recipe.generation)
        known += [probe(model, tokenizer, general, recipe.generation)] if general else []
        return finish(folder, task, recipe, before, after, known)
    except DivergenceError as error:
        if not error.rescued:
            raise
        model = method.finish(model)
        save(method, model, tokenizer, folder, recipe)
        finish(folder, task, recipe, before, evaluate(model, tokenizer, task, held_out, recipe.generation))
        raise UserError(f"{error} The best weights before that are in {folder.path}, ready for use.") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"Go on with: glmtune train --resume {folder.path}") from None


def too_few(held_out: Sequence[Example], asked: int) -> Iterator[str]:
    """What is said where so few examples are asked that a score of them says little."""
    if len(held_out) < FEW_HELD_OUT:
        low, high = wilson_interval(len(held_out) // 2, len(held_out))
        more = f"evaluation.num_examples={FEW_HELD_OUT} or more" if asked <= len(held_out) else "task.held_out=0.2"
        yield (
            f"Only {len(held_out)} held-out examples are asked: half of them right would mean anything from {low:.0%} "
            f"to {high:.0%}. Ask more ({more}{'' if asked <= len(held_out) else ', or more records'})."
        )


def no_bos(encoder: Encoder) -> Iterator[str]:
    """What is said where `data.train_on_bos` changes nothing."""
    example = Example("1+1=", "2")
    if encoder.train_on_bos and encoder(example) == replace(encoder, train_on_bos=False)(example):
        yield "data.train_on_bos=true changes nothing: this template has no control token right before an answer."


def longest_of(dataset: EncodedDataset) -> tuple[int, int]:
    """Tokens of the longest example to be learned, and of the longest target; of draws, the first are looked at.

    Raises:
        UserError: one is too long.
    """
    if isinstance(dataset, Mixture):
        lengths, target_lengths = zip(*map(longest_of, dataset.sources), strict=True)
        return max(lengths), max(target_lengths)
    length = target_length = 1
    for index in range(min(len(dataset), CHECKED_DRAWS) if isinstance(dataset, EncodedDraws) else len(dataset)):
        labels = dataset[index]["labels"]
        length = max(length, len(labels))
        target_length = max(target_length, len(labels) - labels.count(IGNORED))
    return length, target_length


def resumed_recipe(resume: str, recipe_path: str | None, overrides: list[str] | None) -> Recipe:
    """The recipe of a run that is to go on.

    Raises:
        UserError: no run, or other settings given.
    """
    if not RunFolder.is_run(resume):
        raise UserError(f"--resume {resume}: no run there (recipe.yaml is missing). `glmtune ls` lists the runs.")
    if recipe_path or overrides:
        raise UserError("--resume goes on with the run's own recipe; leave the recipe and the settings out.")
    return load_recipe(RunFolder(resume).recipe)


def run_name(recipe: Recipe) -> str:
    """`arithmetic-lora`: the name of a run that the user did not name."""
    return f"{Path(recipe.task.name).stem}-{Path(recipe.method.name).stem}"


def make_judge(recipe: Recipe, task: Task, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Example]) -> Judge:
    """Scores a model by greedy decoding on the examples that are asked during training."""
    greedy = recipe.generation.model_copy(update={"do_sample": False})

    def judge(model: Model) -> dict[str, Any]:
        return figures_of(evaluate(model, tokenizer, task, asked, greedy, progress=False))

    return judge


def figures_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return what the log says of an evaluation."""
    report = evaluation.report(text_metrics=False)
    return {name: report[name] for name in ("accuracy", "accuracy_ci95", "n")}


def announce_memory(console: Console, recipe: Recipe, length: int, target_length: int) -> None:
    """Say how much memory the run will take, before anything is loaded, and what to do if that is too much.

    Nothing is said of models and methods whose sizes are not known.
    """
    place = at_hand(distributed.local_device().type == "cuda")
    try:
        expected = estimate(recipe, architecture_of(recipe), place.device, length, target_length)
    except UserError:
        return
    console.print(f"Expected peak of memory: {readable(expected.peak)}; {place.name} has {readable(place.memory)}.")
    if place.spare(expected) < 0:
        console.print(
            f"[bold yellow]This is too much.[/] See `glmtune estimate` with the same recipe, --length {length} and "
            f"--target-length {target_length} for settings with which it fits."
        )


def announce(console: Console, recipe: Recipe, model: Model, folder: RunFolder, steps: int) -> None:
    """Say what is about to happen."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    console.print(
        f"[bold]{recipe.task.name}[/] with [bold]{recipe.method.name}[/] on [bold]{recipe.model.path}[/]: "
        f"{trainable:,} of {count_parameters(model):,} parameters learn, {steps:,} steps of "
        f"{recipe.training.batch_size * recipe.training.gradient_accumulation_steps} examples on {model.device}"
    )
    console.print(f"Run folder: {folder.path}")


def save(method: Method, model: Model, tokenizer: PreTrainedTokenizerBase, folder: RunFolder, recipe: Recipe) -> None:
    """Write the adapter, or the whole model, whole or not at all.

    Raises:
        UserError: the disk is full; the checkpoints are still there.
    """
    with replacing(folder.adapter if method.saves_adapter else folder.model) as temporary:
        temporary.mkdir()
        try:
            method.save(model, tokenizer, temporary, recipe.model)
        except SafetensorError as error:  # in place of an OSError
            raise OSError(str(error)) from error


def finish(
    folder: RunFolder,
    task: Task,
    recipe: Recipe,
    before: Evaluation,
    after: Evaluation,
    known: Sequence[Probe] = (),
) -> Run:
    """Write the report, its page and the plots. `known` holds the probes of general knowledge before and after."""
    from glmtune.evaluation.page import write_page
    from glmtune.evaluation.plots import write_plots

    log = read_log(folder)
    report: dict[str, Any] = {
        "format": 2,
        "before": before.report(recipe.evaluation.text_metrics),
        "after": after.report(recipe.evaluation.text_metrics),
        **compare(task, before, after),
        **({"forgetting": compare_probes(*known)} if len(known) == 2 else {}),
        "training_seconds": max((record["seconds"] for record in log), default=0),
        "peak_memory": peak_memory(),
        "machine": machine(),
    }
    write_json(folder.report, report)
    write_page(report, log, to_yaml(recipe), folder.path)
    write_plots(report, log, folder.path)
    return Run(folder, task, before, after, report)


def peak_memory() -> int | None:
    """Most bytes that this process held so far: of the GPU where there is one, else resident; None where unknown."""
    if distributed.local_device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
