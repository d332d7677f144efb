"""`glmtune train`: fine-tune a model; without arguments, the embedded model on arithmetic with LoRA."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from glmtune.commands._arguments import add_ray, add_recipe, add_trust, cluster_of, recipe_and_settings, trust_of
from glmtune.runtime import Terminated, UserError
from glmtune.terminal import counted, say, visible
from glmtune.trust import REMEMBERED, Trust

if TYPE_CHECKING:
    from glmtune.config import Recipe
    from glmtune.evaluation.evaluator import Evaluation
    from glmtune.execution import Run
    from glmtune.plan import Plan
    from glmtune.resolution import ResolvedModel
    from glmtune.runtime import RunFolder
    from glmtune.tasks import Task
    from glmtune.terminal.console import Console

MOST_TOKENS = 400  # of the example that is shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the recipe, and what else a training is told."""
    text = "settings that differ from the defaults; or a run folder: a new run goes on from what it has learned"
    add_recipe(parser, text, "training.steps=500 method.rank=8", metavar="RECIPE.yaml|RUN")
    parser.add_argument(
        "--resume", metavar="RUN", help="go on with a run folder, by its recipe or by settings that differ"
    )
    add_ray(parser, "train")
    add_trust(parser)
    parser.add_argument("--help-settings", action="store_true", help="list every setting and exit")


def main(options: argparse.Namespace) -> int:
    """Train, on as many devices as the recipe says, then show what was learned and what to do next."""
    from glmtune import distributed
    from glmtune.libraries import quiet_libraries
    from glmtune.training.processes import count_processes

    path, settings = recipe_and_settings(options)
    if options.help_settings:
        show_settings(settings)
        return 0
    quiet_libraries()
    cluster = cluster_of(options)
    if cluster is not None and distributed.is_launched():
        raise UserError(
            "--ray: Ray starts the workers, and a launcher has started this process. Leave one of them out."
        )
    try:
        distributed.join()
        if not distributed.is_main():  # what it would be warned of, the main process is
            warnings.simplefilter("ignore")
        trust = trust_of(options, remembers=True)
        recipe = distributed.together(lambda: read_asked(path, settings, options.resume, trust))
        if cluster is not None:
            from glmtune.commands._workers import start_workers

            start_workers(cluster, recipe, options.resume, train_and_show)
            return 0
        count = 1 if distributed.is_launched() else count_processes(recipe.training.devices)
        if count > 1:
            from glmtune.commands._launching import start_processes

            return start_processes(count, as_arguments(options))
        train_and_show(recipe, options.resume)
    except Terminated as ended:
        raise Terminated(str(ended) or "Nothing was learned yet. Start it again.") from None
    return 0


def as_arguments(options: argparse.Namespace) -> list[str]:
    """Return the command line that options were read from."""
    flags = {"--trust-code": options.trust_code, "--fetch": options.fetch, "--debug": options.debug}
    given = [*filter(None, [options.recipe]), *options.settings, *(flag for flag, is_set in flags.items() if is_set)]
    return ["train", *given, *(["--resume", options.resume] if options.resume is not None else [])]


def train_and_show(recipe: Recipe, resume: str | os.PathLike[str] | None) -> None:
    """Train by a recipe, and show what was learned, by the main process."""
    from glmtune import distributed
    from glmtune.terminal.console import Console

    console = Console(quiet=not distributed.is_main())
    show(train(recipe, resume, console), console)


def run(
    recipe_path: str | os.PathLike[str] | None = None,
    overrides: Iterable[str] = (),
    resume: str | os.PathLike[str] | None = None,
    console: Console | None = None,
    trust: Trust = REMEMBERED,
) -> Run:
    """Train by a recipe, or by the defaults: the embedded model, arithmetic, LoRA.

    Args:
        recipe_path: a YAML file; or a run folder, from which a new run goes on, by its recipe.
        overrides: `section.setting=value` texts.
        resume: a run folder to go on with; its own recipe counts, with the overrides that make sense for what it has
            learned so far.
        console: where to print.
        trust: what becomes of code that the recipe's file names.

    Raises:
        UserError: faults in the recipe, the model's files or the data, told before anything is trained.
    """
    from glmtune import distributed
    from glmtune.terminal.console import Console

    distributed.join()
    recipe = distributed.together(lambda: read_asked(recipe_path, overrides, resume, trust))
    return train(recipe, resume, console or Console(stderr=True, quiet=not distributed.is_main()))


def read_asked(
    recipe_path: str | os.PathLike[str] | None,
    overrides: Iterable[str],
    resume: str | os.PathLike[str] | None,
    trust: Trust = REMEMBERED,
) -> Recipe:
    """Return the recipe of a training: a new one's, also from a run on, or that by which a run is to go on.

    Raises:
        UserError: there are faults in it, or no such run.
    """
    from glmtune.config import load_recipe
    from glmtune.runtime import RunFolder

    if resume is not None:
        return read_resumed(RunFolder(os.fspath(resume)), recipe_path, overrides, trust)
    if recipe_path is not None and Path(recipe_path).is_dir():
        from glmtune.distributed import is_main
        from glmtune.succession import describe_inherited, recipe_after

        overrides = [*overrides]
        recipe = recipe_after(recipe_path, overrides, trust)
        if is_main():
            say(describe_inherited(recipe_path, recipe, overrides), error=True)
        return recipe
    return load_recipe(None if recipe_path is None else Path(recipe_path), overrides, trust)


def train(recipe: Recipe, resume: str | os.PathLike[str] | None, console: Console) -> Run:
    """Train by a recipe, in a run folder that is gone on with or is new, on all processes that there are."""
    from glmtune import distributed
    from glmtune.runtime import RunFolder
    from glmtune.training.processes import check_processes

    check_processes(recipe)
    if resume is not None:
        folder = RunFolder(os.fspath(resume))
        with working_in(folder.path, console):
            return carry_out(recipe, folder, console)
    given = recipe.training.output_dir
    if distributed.on_main(lambda: is_interrupted(given)):
        assert given is not None
        with working_in(given, console):
            return carry_out(recipe, RunFolder(given), console, may_change=False)
    with new_folder(recipe, console) as folder:
        return carry_out(recipe, folder, console)


def carry_out(recipe: Recipe, folder: RunFolder, console: Console, may_change: bool = True) -> Run:
    """Plan a training and execute it; torch is not imported before the plan needs it."""
    from glmtune import distributed
    from glmtune.plan import prepare
    from glmtune.training.processes import check_seen

    distributed.together(lambda: check_seen(folder))
    model = begin_from(recipe, folder, console)
    plan = distributed.together(lambda: prepare(model, folder, may_change))
    if distributed.world_size() > 1:
        present = distributed.together(lambda: plan.present)
        distributed.check_alike({"what model.path holds": present.base, "what task.file holds": present.records})

    from glmtune.execution import execute

    show_example(plan, console)
    return execute(plan, console)


def begin_from(recipe: Recipe, folder: RunFolder, console: Console) -> ResolvedModel:
    """Return what is trained: of an adapter, a copy that learns on, or the whole model that is made of it first.

    Either lies in the run folder, which needs nothing more of where it began; the whole model is checked against the
    adapter on its base.

    Raises:
        UserError: there is no such adapter, it does not fit its base, it can neither learn on nor be merged, or the
            folder was begun with another one.
    """
    from dataclasses import replace

    from glmtune import distributed
    from glmtune.resolution import of_recipe
    from glmtune.succession import merges, with_base, with_start

    model = of_recipe(recipe)
    if model.adapter is None:
        return model
    distributed.together(model.check)
    distributed.together(lambda: check_begun(folder, model))
    if not distributed.together(lambda: merges(model)):
        console.print(f"{model.adapter} learns on.", highlight=False, soft_wrap=True)
        distributed.on_main(lambda: copy_adapter(model, folder))
        return of_recipe(with_start(recipe, folder.start))

    def merge() -> None:
        if folder.base.is_dir():  # by an earlier start, which was interrupted
            return
        from glmtune.exports.exporting import check_disk, export_checked, few_held_out, refuse

        console.print(
            f"{model.adapter} becomes part of the weights first, in {folder.base}.", highlight=False, soft_wrap=True
        )
        origin = replace(model, target=recipe.model.adapter)
        refuse(origin, "merged", "auto")
        check_disk(folder.base, origin, "auto", copies=1, named="training.output_dir:")
        export_checked(origin, "merged", folder.base, "auto", few_held_out(origin), console)

    distributed.on_main(merge)
    return of_recipe(with_base(recipe, folder.base))


def check_begun(folder: RunFolder, model: ResolvedModel) -> None:
    """See whether what a start that was interrupted left in the run folder was made of the same adapter.

    Raises:
        UserError: it was made of another.
    """
    from glmtune.exports.destination import RECORD
    from glmtune.models.checkpoint import fingerprint, read_json

    assert model.adapter is not None, "it goes on from one"
    begun, record = [], folder.base / RECORD
    if folder.base.is_dir():
        begun.append(read_json(record).get("adapter_fingerprint") if record.is_file() else None)
    if folder.start.is_dir():
        begun.append(fingerprint(folder.start))
    if any(made_of != fingerprint(model.adapter) for made_of in begun):
        raise UserError(
            f"training.output_dir: {folder.path} was begun with another adapter than {model.adapter} is. Choose "
            "another folder, or remove it yourself."
        )


def copy_adapter(model: ResolvedModel, folder: RunFolder) -> None:
    """Copy an adapter into the run folder: its files, without what lies in folders beside them."""
    from glmtune.files import replacing

    assert model.adapter is not None, "it learns on"
    if folder.start.is_dir():
        return
    with replacing(folder.start) as temporary:
        temporary.mkdir()
        for file in model.adapter.iterdir():
            if file.is_file():
                shutil.copyfile(file, temporary / file.name)


def show_example(plan: Plan, console: Console) -> None:
    """Print the first example as the loss sees it: its tokens, and which of them are learned."""
    from glmtune.commands._tokens import explain_marks, mark_tokens
    from glmtune.data import EncodedDataset
    from glmtune.data.encoding import IGNORED
    from glmtune.data.showing import shown_tokens

    dataset = plan.dataset
    if not isinstance(dataset, EncodedDataset) or plan.objective.demand(plan.recipe).rolls_out:
        return  # what is learned is not there yet
    encoding = dataset[0]
    count = len(encoding["labels"])
    learned = count - encoding["labels"].count(IGNORED)
    console.print(
        f"What the loss sees of {dataset.name([0])}: {count:,} tokens, {learned:,} of them learned; "
        f"{explain_marks(console)}:",
        highlight=False,
        soft_wrap=True,
    )
    console.print(mark_tokens(shown_tokens(plan.tokenizer, encoding, MOST_TOKENS), console), soft_wrap=True)


def read_resumed(
    run: RunFolder, recipe_path: str | os.PathLike[str] | None, overrides: Iterable[str], trust: Trust = REMEMBERED
) -> Recipe:
    """Return the recipe by which a run is to go on.

    Raises:
        UserError: no run, one with a link out of its folder, no checkpoint of it, or another recipe given.
    """
    from glmtune.config import at_home, load_recipe
    from glmtune.files import check_folder
    from glmtune.resolution import ResolvedModel
    from glmtune.runtime import RunFolder
    from glmtune.training.resumption import read_past

    check_folder(run.path)
    if not RunFolder.is_run(run.path):
        raise UserError(f"--resume {run.path}: no run there (recipe.yaml is missing). `glmtune ls` lists the runs.")
    if recipe_path is not None:
        raise UserError(
            f"--resume {run.path}: goes on with the run's own recipe, not with {recipe_path}. Leave the recipe out; "
            "settings that differ are named one by one, such as training.steps=2000."
        )
    recipe, past = at_home(load_recipe(run.recipe, overrides, trust), run), read_past(run)
    assert past is not None, "it is a run"
    if past.step == 0 and run.report.is_file():
        raise UserError(
            f"--resume {run.path}: is finished, and its checkpoints are gone, so that it cannot go on. Start a new run."
        )
    training, before = recipe.training, past.recipe.training
    if training.epochs != before.epochs and training.steps == before.steps:  # the steps are to follow from them
        if ResolvedModel(recipe).task.records("train") is None:
            raise UserError(
                f"training.epochs={training.epochs:g}: this task draws without end, which has no epochs. Set "
                "training.steps=N."
            )
        training = training.model_copy(update={"steps": None})
    return recipe.model_copy(update={"training": training})


def is_interrupted(place: str | None) -> TypeGuard[str]:
    """Return whether `training.output_dir` names a run that was begun and has not ended.

    Raises:
        UserError: it has a link out of its folder, or is damaged.
    """
    from glmtune.files import check_folder
    from glmtune.runtime import RunFolder
    from glmtune.training.resumption import read_past

    if place is None or not RunFolder.is_run(place):
        return False
    check_folder(place)
    run = RunFolder(place)
    past = read_past(run)
    return past is not None and not (run.report.is_file() and (past.has_ended or past.step == 0))


@contextmanager
def working_in(folder: str | os.PathLike[str], console: Console) -> Iterator[None]:
    """Hold a run folder, by the main process for all, while the block runs; say so if whoever held it was killed.

    Raises:
        UserError: another process works in it, and is none of those that train here together.
    """
    from glmtune.distributed import on_main
    from glmtune.locks import held

    with ExitStack() as stack:
        left = on_main(lambda: stack.enter_context(held(os.fspath(folder))))
        if left is not None:
            console.print(
                f"{os.fspath(folder)} was held by {left}, which has ended without giving it back. It is taken.",
                highlight=False,
                soft_wrap=True,
            )
        yield


@contextmanager
def new_folder(recipe: Recipe, console: Console) -> Iterator[RunFolder]:
    """Make a new run folder, which is taken away again if the block fails before training starts.

    Raises:
        UserError: there is something in it, or another process works in it.
    """
    from glmtune.distributed import is_main, on_main
    from glmtune.files import flush_names
    from glmtune.plan import run_name
    from glmtune.runtime import RunFolder

    given = recipe.training.output_dir
    existed = given is not None and Path(given).exists()
    begun = () if recipe.model.adapter is None else ("base", "start")  # by a start that was killed
    folder = on_main(lambda: RunFolder.create(given, run_name(recipe), begun))
    with working_in(folder.path, console):
        on_main(lambda: RunFolder.create(folder.path, "", begun))  # nobody has worked in it meanwhile
        made = [place for place in (folder.base, folder.start) if not place.exists()]
        on_main(lambda: flush_names(folder.path.parent))
        try:
            yield folder
        except BaseException:
            if is_main() and not folder.checkpoints.exists():
                folder.recipe.unlink(missing_ok=True)
                folder.log.unlink(missing_ok=True)
                folder.before.unlink(missing_ok=True)
                for place in made:
                    shutil.rmtree(place, ignore_errors=True)
                if not existed:
                    shutil.rmtree(folder.path)
            raise


def show(done: Run, console: Console) -> None:
    """Print what was learned, some answers, and what to do next."""
    from rich.text import Text

    from glmtune.config import read_log
    from glmtune.evaluation.decision import knowledge
    from glmtune.evaluation.page import write_figure

    run_folder = Text.assemble("Run folder: ", (str(done.path), "bold"))
    quoted = shlex.quote(str(done.path))
    steps = max((record["step"] for record in read_log(done.folder)), default=0)
    following = done.objective.following(quoted, steps, done.task.records("train") is None)
    if done.before is not None and done.after is not None:
        show_answers(done.report, done.task, done.before, done.after, console)
        show_decision(done.report, console)
    else:
        name = done.report["metric"]
        before, after = (write_figure(done.report[time], name) for time in ("before", "after"))
        count = counted(done.report["after"]["n"], "example")
        figures = (f"{before} before, ", (after, "bold"), f" after, by {count}")
        console.print(Text.assemble(f"Held-out {name.replace('_', ' ')}: ", *figures))
        console.print(visible(knowledge(done.report.get("forgetting"))), highlight=False, soft_wrap=True)
    console.print(run_folder.append("; report.html tells what was learned, as a page"), soft_wrap=True)
    console.print("Next:")
    for command in following:
        console.print(f"  {name_program()} {command}", highlight=False, soft_wrap=True)


def show_answers(report: dict[str, Any], task: Task, before: Evaluation, after: Evaluation, console: Console) -> None:
    """Print how good the answers were and are, and some of them."""
    from glmtune.evaluation.report import comparison_table, sample_table

    console.print(comparison_table(report["before"], report["after"]))
    right = [task.score(example, example.target).answer or example.target for example in after.examples]
    answers = (before.completions, after.completions, before.scores, after.scores, right)
    console.print(sample_table(after.examples, *answers, axes=task.axes))


def show_decision(report: dict[str, Any], console: Console) -> None:
    """Print whether to keep the model, and why: what `report.html` begins with."""
    from rich.text import Text

    from glmtune.evaluation.decision import decide

    which, words, rest = decide(report)
    style = {"keep": "bold green", "discard": "bold red", "open": "bold yellow"}[which]
    console.print(Text.assemble((f"{words}: ", style), visible(rest)), soft_wrap=True)


def name_program() -> str:
    """Return how this program is called here: `.venv/bin/glmtune` where no venv is active."""
    if shutil.which("glmtune"):
        return "glmtune"
    return sys.argv[0] if Path(sys.argv[0]).name == "glmtune" else "python -m glmtune"


def show_settings(settings: list[str]) -> None:
    """Print every setting with its default and meaning; of the task, method and objective that `settings` name."""
    from glmtune.config import describe_settings, open_sections, read_values

    recipe, _, _ = open_sections(read_values(None, settings))
    for name, default, meaning in describe_settings(recipe):
        say(f"{name} = {default}\n    {meaning}")
    say("\nThose of other tasks, methods and objectives: add task.name=instructions, method.name=ptuning_v2, ...")
