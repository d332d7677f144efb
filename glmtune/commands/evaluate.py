"""`glmtune evaluate`: score a model on held-out examples of its task, or on a file."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.commands._arguments import (
    add_ray,
    add_settings,
    add_target,
    add_trust,
    cluster_of,
    recipe_and_settings,
    trust_of,
)
from glmtune.trust import REMEMBERED, Trust

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from glmtune.cluster import Cluster
    from glmtune.config import GenerationSettings, Recipe
    from glmtune.evaluation.evaluator import Evaluation
    from glmtune.examples import Example
    from glmtune.inference.completion import Answering
    from glmtune.inference.conversation import Exchange
    from glmtune.inference.llama_cpp.found import Found
    from glmtune.methods import Model
    from glmtune.resolution import ResolvedModel, Target
    from glmtune.tasks import Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the records, and where the report goes."""
    add_target(parser)
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE_OR_RUN",
        help="of a model without a recipe, such as a GGUF file that was exported: the recipe or the run by which it is "
        "asked",
    )
    parser.add_argument("--data", metavar="FILE", help="records of any known format: JSONL, CSV, Parquet, a folder")
    parser.add_argument("--output", metavar="OUT.json", help="write the report here")
    parser.add_argument(
        "--engine",
        metavar="ENGINE",
        help="which llama.cpp runs a GGUF file: llama-server, xllamacpp, llama-cpp-python, gpt4all, the path of a "
        "llama-server, or the address of one that serves the file; or torch, which computes it here. Default: the "
        "first llama.cpp that is found",
    )
    add_ray(parser)
    add_trust(parser)
    add_settings(parser)


def main(options: argparse.Namespace) -> None:
    """Evaluate and print the table."""
    from glmtune.libraries import quiet_libraries

    quiet_libraries()
    recipe, settings = recipe_and_settings(options)
    how = {"recipe": recipe, "engine": options.engine, "cluster": cluster_of(options)}
    _, report = run(options.target, options.data, options.output, settings, trust_of(options), **how)
    show(report, options)


def run(
    target: Target,
    data: str | None = None,
    output: str | None = None,
    overrides: Iterable[str] = (),
    trust: Trust = REMEMBERED,
    *,
    recipe: Target | None = None,
    engine: str | None = None,
    cluster: Cluster | None = None,
) -> tuple[Evaluation | None, dict[str, Any]]:
    """Score a run folder, an adapter, a checkpoint directory, a GGUF file, a hub name or `nano`.

    Args:
        target: what to evaluate.
        data: records of any known format with answers; default: held-out examples of the task.
        output: JSON file to write.
        overrides: `section.setting=value` texts.
        trust: what becomes of code that the target's recipe names.
        recipe: of a target that has none: a recipe (`.yaml`), or a run.
        engine: which llama.cpp runs a GGUF file, as `find_llama_cpp` takes it; or `torch`.
        cluster: whose workers answer; None: this process does. The answers are the same.

    Returns:
        The evaluation and its report: `n`, `accuracy`, `accuracy_ci95`, `by`, ... Where texts are judged and nothing is
        asked, no evaluation, and a report of the objective's `metric`. With `evaluation.forgetting=true` it has
        `general`, too: what the model knows of the general questions.

    Raises:
        UserError: no such model or file, a malformed record, or a cluster that cannot be asked.
    """
    from glmtune.files import check_output, write_json
    from glmtune.plan import Plan
    from glmtune.records.remote import fetched, is_remote
    from glmtune.resolution import resolve
    from glmtune.runtime import RunFolder, UserError, machine
    from glmtune.tasks import check_choice

    resolved = resolve(target, overrides, trust, recipe)
    llama_cpp = choose_engine(resolved, engine)
    if output and is_remote(output):
        raise UserError(f"--output {output}: reports are written to this machine. Name a file.")
    if output:
        check_output(output)
    if cluster is not None:
        check_cluster(cluster, llama_cpp)
    check_choice(resolved.task, resolved.recipe.generation)
    plan = Plan(resolved, RunFolder(os.fspath(target)))
    with nullcontext() if data is None else fetched(data) as file:
        records = None if file is None or resolved.objective.asks else read_records(resolved.task, file)
        is_judged = not resolved.objective.asks and (records is None or resolved.objective.judges(records))
        asked, examples = (resolved.recipe, []) if is_judged else select_examples(resolved, file)
    if is_judged and cluster is not None:
        raise UserError("--ray: its workers answer, and what the model thinks of texts is computed here. Leave it out.")
    judge = resolved.objective.judge(plan.preparation, records) if is_judged else None
    general = plan.general
    if general and (llama_cpp is not None or cluster is not None):
        remedy = "--engine torch asks them" if cluster is None else "without --ray they are asked"
        warnings.warn(
            "evaluation.forgetting: the general questions are left out, as their options are ranked by likelihood; "
            f"{remedy}.",
            stacklevel=2,
        )
        general = []

    from glmtune.evaluation.evaluator import answer_all  # torch, when paths and records are known to be right
    from glmtune.evaluation.forgetting import probe

    loaded, evaluation = resolved.load() if llama_cpp is None and cluster is None else None, None
    if judge is not None and loaded is not None:
        figures = {"metric": resolved.objective.metric, **judge(loaded[0])}
    elif cluster is not None:
        evaluation, figures = evaluate_with(partial(answer_on, cluster, resolved), resolved.task, examples, asked)
    else:
        with open_engine(resolved, loaded, llama_cpp) as answering:
            answer = partial(answer_all, answering, resolved.task, seed=asked.seed)
            evaluation, figures = evaluate_with(answer, resolved.task, examples, asked)
    if general and loaded is not None:
        figures["general"] = probe(*loaded, general, asked.generation, resolved.limit).report()
    told = data if data is None or is_remote(data) else str(Path(data))
    report = {
        **figures,
        "model": os.fspath(target),
        "data": told or f"held-out examples of task '{resolved.recipe.task.name}'",
        "machine": machine(),
    }
    if llama_cpp is not None:
        report["engine"] = llama_cpp.name
    if output:
        write_json(output, report)
    return evaluation, report


def choose_engine(resolved: ResolvedModel, wish: str | None) -> Found | None:
    """Return the llama.cpp that runs a GGUF file; None where torch computes the model here, as for what texts cost.

    Raises:
        UserError: there is none, or what is asked is no GGUF file.
    """
    from glmtune.models.loading import find_gguf
    from glmtune.runtime import UserError

    is_file = resolved.adapter is None and resolved.run is None and find_gguf(resolved.base) is not None
    if wish not in (None, "torch") and not resolved.objective.asks:
        raise UserError(f"--engine {wish}: what texts cost a model is computed by torch alone. Leave it out.")
    if wish == "torch" or not (is_file or wish) or not resolved.objective.asks:
        return None
    if not is_file:
        raise UserError(f"--engine {wish}: {resolved.target} is no GGUF file, which llama.cpp runs. Leave it out.")

    from glmtune.inference.llama_cpp.found import find_llama_cpp

    return find_llama_cpp(wish)


def check_cluster(cluster: Cluster, llama_cpp: Found | None) -> None:
    """See whether a cluster can be asked.

    Raises:
        UserError: it cannot, or a llama.cpp of this machine would answer.
    """
    from glmtune.runtime import UserError

    if llama_cpp is not None:
        raise UserError("--ray: llama.cpp answers on this machine alone. Add --engine torch, or leave --ray out.")
    cluster.check()


def evaluate_with(
    answer: Callable[[Sequence[Example], GenerationSettings], list[Exchange]],
    task: Task,
    examples: Sequence[Example],
    recipe: Recipe,
) -> tuple[Evaluation, dict[str, Any]]:
    """Ask all examples once and, where several samples are to be chosen from, so often again.

    Args:
        answer: answers examples by some settings.
        task: scores the answers.
        examples: what is asked.
        recipe: with room for the answers.

    Returns:
        What was answered once, and the report; of the samples, it has `sampled`.
    """
    from glmtune.evaluation.evaluator import score_answers
    from glmtune.evaluation.sampled import compare_samples, repeated

    settings = recipe.generation
    once = answer(examples, settings)
    evaluation = score_answers(task, examples, once)
    figures = evaluation.report(recipe.evaluation.text_metrics)
    if settings.num_samples > 1:
        sampled = answer(repeated(examples, settings.num_samples), settings.sampled)
        figures["sampled"] = compare_samples(task, examples, once, sampled, settings)
    return evaluation, figures


def answer_on(
    cluster: Cluster, resolved: ResolvedModel, examples: Sequence[Example], settings: GenerationSettings
) -> list[Exchange]:
    """Let the workers of a cluster answer all examples.

    Args:
        cluster: answers.
        resolved: who is asked.
        examples: what is asked.
        settings: how to decode, with room for the answers.

    Raises:
        UserError: the cluster cannot be asked.
    """
    from tqdm import tqdm

    from glmtune.cluster import Asked
    from glmtune.inference.selection import HeldOut

    encoded = examples.input_ids if isinstance(examples, HeldOut) else [None] * len(examples)
    questions = [
        Asked(number, example.prompt, example.tools, input_ids)
        for number, (example, input_ids) in enumerate(zip(examples, encoded, strict=True))
    ]
    with cluster.join() as workers:
        answers = workers.answer(resolved, settings, questions, settings.batch_size)
        return [exchange for _, exchange in tqdm(answers, total=len(questions), desc="answering", unit="problem")]


def open_engine(
    resolved: ResolvedModel, loaded: tuple[Model, PreTrainedTokenizerBase] | None, llama_cpp: Found | None
) -> AbstractContextManager[Answering]:
    """Return who answers for a model: itself, where it is loaded, or the llama.cpp that runs its file."""
    if llama_cpp is None or loaded is not None:
        from glmtune.inference.engine import Engine

        assert loaded is not None
        return nullcontext(Engine(*loaded, resolved.limit))

    from glmtune.inference.llama_cpp.engine import LlamaCppEngine

    return LlamaCppEngine(llama_cpp, Path(resolved.place), resolved.tokenizer, resolved.stops, resolved.limit)


def show(report: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table, and where the report is written."""
    from glmtune.evaluation.report import comparison_table, general_table, sampled_table
    from glmtune.terminal.console import Console

    console = Console()
    if "metric" in report:
        name = report["metric"]
        console.print(f"Held-out {name.replace('_', ' ')}: {report[name]:.4f} (n = {report['n']:,})")
    else:
        console.print(comparison_table(None, report))
    if "sampled" in report:
        console.print(sampled_table(report))
    if "general" in report:
        console.print(general_table(report["general"]))
    if "engine" in report:
        console.print(f"Answered by {report['engine']}, on {report['data']}.")
    if options.output:
        console.print(f"Written: {options.output}")


def select_examples(resolved: ResolvedModel, data: str | None) -> tuple[Recipe, Sequence[Example]]:
    """Return the examples that a model is asked, and the recipe with room for their answers.

    Raises:
        UserError: no such file, or an example that the model cannot take; with file and line.
    """
    recipe, task = resolved.recipe, resolved.task
    examples = task.records("held_out") or [] if data is None else read_records(task, data)

    from glmtune.data.acceptance import accepted
    from glmtune.data.control_tokens import plain_ids
    from glmtune.inference.selection import (
        HeldOut,
        encode_examples,
        fit_max_new_tokens,
        fit_max_new_tokens_to,
        select_held_out,
    )

    tokenizer, limit = resolved.tokenizer, resolved.limit
    if data is None:
        recipe = fit_max_new_tokens(recipe, task, tokenizer, limit)
        return recipe, select_held_out(recipe, task, tokenizer, limit)
    examples = accepted(examples, tokenizer, recipe.data)
    recipe = fit_max_new_tokens_to(recipe, examples, tokenizer, limit)
    longest = recipe.generation.longest
    if cut := sum(len(plain_ids(tokenizer, example.target)) >= longest for example in examples):
        warnings.warn(
            f"{data}: {cut} of {len(examples)} answers have more tokens than generation.max_new_tokens={longest}, and "
            "cannot be given in whole.",
            stacklevel=2,
        )
    tools = [tool.definition() for tool in task.tools]
    offering = [example if example.tools else replace(example, tools=tools) for example in examples]
    return recipe, HeldOut(examples, encode_examples(tokenizer, offering, limit, longest))


def read_records(task: Task, file: str) -> list[Example]:
    """Return the records of a file, read as the recipe's `data` says; facts that they lack are the task's to find.

    Raises:
        UserError: with file and line number.
    """
    from glmtune.records import read_examples

    return [
        replace(example, facts={**task.describe(example.prompt, example.target), **example.facts})
        for example in read_examples(file, task.data)
    ]
