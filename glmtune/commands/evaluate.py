"""`glmtune evaluate`: how good a run or model is, on its held-out examples or on a file."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from glmtune import methods, models, registry
from glmtune.config import Recipe, load_recipe
from glmtune.data.encoding import plain_ids
from glmtune.evaluation.evaluator import Evaluation, evaluate
from glmtune.examples import Example
from glmtune.inference.engine import encode_prompts
from glmtune.inference.selection import fit_max_new_tokens, fit_max_new_tokens_to, select_held_out
from glmtune.messages import Prompt
from glmtune.methods import Model
from glmtune.models.templates import adopt
from glmtune.runtime import RunFolder, UserError, machine, seed_everything, write_json
from glmtune.tasks import Task
from glmtune.tasks.instructions import read_examples


def recipe_of(target: str, overrides: list[str] | None) -> Recipe:
    """The recipe of a run, or of a checkpoint that carries one, or the default one, with overrides.

    Raises:
        UserError: faults in it.
    """
    own = RunFolder(target).recipe
    return load_recipe(own if own.is_file() else None, overrides or [])


def load(
    target: str, recipe: Recipe, prompts: Sequence[Prompt] = (), label: str = "Prompt"
) -> tuple[Model, PreTrainedTokenizerBase]:
    """The model and tokenizer of a target, once it is known that the model can take some prompts.

    Args:
        target: run folder, adapter, checkpoint directory, hub name or `nano`.
        recipe: of the target. If it names a `model.path`, that is the base for an adapter.
        prompts: what it will be asked.
        label: what an error calls a prompt, before its number.

    Raises:
        UserError: no such model, or a prompt that it cannot take; told before weights are read.
    """
    if prompts:
        tokenizer, limit = reader_of(target, recipe)
        encode_prompts(tokenizer, prompts, limit, recipe.generation.longest, label)
    base, folder = found(target, recipe)
    model = recipe.model
    bits = model.bits if "bits" in model.model_fields_set else None  # as the adapter was trained
    quantize_embedding = model.quantize_embedding if "quantize_embedding" in model.model_fields_set else None
    loaded, tokenizer = methods.load(base, folder, model.dtype, None, model.attention, bits, quantize_embedding)
    return loaded, with_template(tokenizer, template_for(target, recipe))


def found(target: str, recipe: Recipe) -> tuple[str, Path | None]:
    """Base and adapter of a target; the base that the recipe names, if it names one for an adapter."""
    base_is_named = "path" in recipe.model.model_fields_set and methods.is_adapter(Path(target))
    return methods.find(recipe.model.path, target) if base_is_named else methods.find(target)


def reader_of(target: str, recipe: Recipe) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The tokenizer of a target, with its template, and how many tokens it can take. No weights are read."""
    base, folder = found(target, recipe)
    config = models.load_config(models.locate(base))
    limit = models.max_length(config)
    if limit is not None and RunFolder.is_run(target):
        limit -= registry.find("glmtune.methods", recipe.method.name)(recipe.method).num_prefix_positions(
            config.model_type
        )
    return with_template(methods.tokenizer_of(base, folder), template_for(target, recipe)), limit


def template_for(target: str, recipe: Recipe) -> str | None:
    """The template that a bare model is to be asked with; a run's own is in its tokenizer.

    Raises:
        UserError: another one is asked for than a run learned with.
    """
    if not RunFolder.is_run(target):
        return recipe.data.template
    if recipe.data.template != load_recipe(RunFolder(target).recipe).data.template:
        raise UserError(
            f"data.template={recipe.data.template}: {target} answers with the template that it learned with. Leave the "
            "setting out."
        )
    return None


def with_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer, with another template if one is named.

    Raises:
        UserError: no such template, or one that the tokenizer lacks tokens for.
    """
    if template is not None:
        adopt(tokenizer, template)
    return tokenizer


def check_output(output: str) -> None:
    """Find out before the work whether its result can be written.

    Raises:
        UserError: it cannot.
    """
    path = Path(output)
    if path.is_dir():
        raise UserError(f"--output {output}: is a folder. Name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") if path.exists() else tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}. Choose another place.") from error


def examples_from(task: Task, file: str) -> list[Example]:
    """Records of a file, read as the recipe's `data` says; facts that they lack are the task's to find.

    Raises:
        UserError: with file and line number.
    """
    return [
        replace(example, facts={**task.describe(example.prompt, example.target), **example.facts})
        for example in read_examples(file, task.data)
    ]


def run(
    target: str,
    data: str | None = None,
    output: str | None = None,
    overrides: list[str] | None = None,
) -> tuple[Evaluation, dict[str, Any]]:
    """Score a run folder, an adapter, a checkpoint directory, a hub name or `nano`.

    Args:
        target: what to evaluate.
        data: JSONL file of records with `prompt` and `target`; default: held-out examples of the task.
        output: JSON file to write.
        overrides: `section.setting=value` texts.

    Returns:
        The evaluation and its report: `n`, `accuracy`, `accuracy_ci95`, `by`, ...

    Raises:
        UserError: no such model or file, or a malformed record.
    """
    recipe = recipe_of(target, overrides)
    task: Task = registry.find("glmtune.tasks", recipe.task.name)(recipe.task, recipe.data)
    if output:
        check_output(output)
    reader = reader_of(target, recipe)
    if data:
        examples: Sequence[Example] = examples_from(task, data)
        recipe = fit_max_new_tokens_to(recipe, examples, *reader)
        if cut := sum(len(plain_ids(reader[0], example.target)) >= recipe.generation.longest for example in examples):
            warnings.warn(
                f"{data}: {cut} of {len(examples)} answers have more tokens than "
                f"generation.max_new_tokens={recipe.generation.longest}, and cannot be given in whole.",
                stacklevel=2,
            )
    else:
        recipe = fit_max_new_tokens(recipe, task, *reader)
        examples = select_held_out(recipe, task, *reader)
    model, tokenizer = load(target, recipe, [example.prompt for example in examples] if data else (), f"{data}, line")
    seed_everything(recipe.seed)
    evaluation = evaluate(model, tokenizer, task, examples, recipe.generation)
    report = {
        **evaluation.report(recipe.evaluation.text_metrics),
        "model": target,
        "data": str(Path(data)) if data else f"held-out examples of task '{recipe.task.name}'",
        "machine": machine(),
    }
    if output:
        write_json(output, report)
    return evaluation, report
