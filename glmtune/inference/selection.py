"""Which held-out examples a model is asked: the same before, during and after a training, and whenever it is judged."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from glmtune.config import SHORT_ANSWER, Recipe
from glmtune.data import DrawnExamples, examples_of
from glmtune.data.control_tokens import plain_ids
from glmtune.examples import Example
from glmtune.inference.prompts import encode_prompts
from glmtune.runtime import UserError
from glmtune.tasks import Task


def fit_max_new_tokens(recipe: Recipe, task: Task, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> Recipe:
    """The recipe with `generation.max_new_tokens`, where it does not say it: what held-out answers need, and a little.

    Half of what the model takes at most, where records that are too long may be left out; else what all prompts leave.
    """
    settings = recipe.evaluation
    examples = [
        *examples_of(task, "held_out", settings.num_examples, recipe.seed)[: settings.num_examples],
        *examples_of(task, "held_out", settings.num_examples_during, recipe.seed + 1)[-settings.num_examples_during :],
    ]
    return fit_max_new_tokens_to(recipe, examples, tokenizer, limit)


def fit_max_new_tokens_to(
    recipe: Recipe, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> Recipe:
    """The recipe with `generation.max_new_tokens`, where it does not say it, for some examples."""
    if recipe.generation.max_new_tokens is not None:
        return recipe
    longest = max((len(plain_ids(tokenizer, example.target)) + 1 for example in examples), default=0)
    room = max(SHORT_ANSWER, longest * 5 // 4)
    if limit is not None:
        prompts = max(prompt_lengths(tokenizer, examples), default=0)
        most = limit - prompts if recipe.data.too_long == "stop" else limit // 2
        room = max(1, min(room, most))
    generation = recipe.generation.model_copy(update={"max_new_tokens": room})
    return recipe.model_copy(update={"generation": generation})


def select_held_out(
    recipe: Recipe,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    during: bool = False,
    whole: bool = True,
) -> Sequence[Example]:
    """Held-out examples that the model can be asked, with room for their answers.

    Those asked `during` a training are others than those before and after it, unless a task has too few records for
    both. Records that are too long are left out where `data.too_long` says so of those that are learned.

    Args:
        recipe: `evaluation`, `generation`, `data`, `seed`.
        task: whose examples these are.
        tokenizer: with the template.
        limit: longest sequence in tokens that the model takes; None where it states none.
        during: `evaluation.num_examples_during` of them, not `num_examples`.
        whole: right answers must not be cut off by `generation.max_new_tokens`.

    Raises:
        UserError: one is too long; says which and how long it is. Or none is left.
    """
    settings = recipe.evaluation
    count = settings.num_examples_during if during else settings.num_examples
    examples = examples_of(task, "held_out", count, recipe.seed + during)
    part = slice(-count, None) if during else slice(count)
    if recipe.data.too_long == "stop" or isinstance(examples, DrawnExamples):
        asked = examples[part]
        check(recipe, tokenizer, limit, asked, whole, drawn=isinstance(examples, DrawnExamples))
        return asked
    room = recipe.generation.longest
    lengths = prompt_lengths(tokenizer, examples)
    fitting = [
        example
        for example, length in zip(examples, lengths, strict=True)
        if len(plain_ids(tokenizer, example.target)) < room and (limit is None or length + room <= limit)
    ]
    if not fitting:
        answers = sorted(len(plain_ids(tokenizer, example.target)) + 1 for example in examples)
        prompts = sorted(lengths)
        raise UserError(
            f"None of {len(examples)} held-out examples can be asked: generation.max_new_tokens={room} must hold an "
            f"answer, of {answers[0]} to {answers[-1]} tokens (half of them up to {answers[len(answers) // 2]}), and "
            f"leave room for a prompt, of {prompts[0]} to {prompts[-1]}"
            f"{f', in the {limit} that the model takes' if limit else ''}. Set it to what most answers need."
        )
    if len(fitting) < len(examples):
        warnings.warn(
            f"Of {len(examples):,} held-out examples, {len(examples) - len(fitting):,} are too long to be asked.",
            stacklevel=2,
        )
    return fitting[part]


def prompt_lengths(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[int]:
    """Tokens of each prompt.

    Raises:
        UserError: messages that the template has no form for.
    """
    return [len(ids) for ids in encode_examples(tokenizer, examples, None, 0)]


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], limit: int | None, max_new_tokens: int
) -> list[list[int]]:
    """Return the token ids of what held-out examples ask.

    Raises:
        UserError: as `encode_prompts` does; says where the record stands.
    """
    names = [example.source or f"Held-out problem {number}" for number, example in enumerate(examples, start=1)]
    for name, example in zip(names, examples, strict=True):
        if example.text is not None:
            raise UserError(f"{name}: 'text' is plain text, which asks nothing. objective.name=pretrain learns it.")
        if example.images:
            raise UserError(f"{name}: 'images' are files that models of text cannot read. Leave such records out.")
    return encode_prompts(tokenizer, [example.prompt for example in examples], limit, max_new_tokens, names)


def check(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    examples: Sequence[Example],
    whole: bool,
    drawn: bool,
) -> None:
    """See whether all examples, `drawn` or records, can be asked, and answered in whole.

    Raises:
        UserError: one cannot.
    """
    room = recipe.generation.longest
    longest = max((len(plain_ids(tokenizer, example.target)) + 1 for example in examples), default=0)
    if whole and longest > room:
        possible = limit is None or max(prompt_lengths(tokenizer, examples)) + longest <= limit
        more = f"Set generation.max_new_tokens={longest} or more" if possible else ""
        if drawn:
            less = "let the task draw problems with shorter answers"
        else:
            less = "leave out what is longer with data.too_long=drop"
            less += "" if possible else ", and set generation.max_new_tokens to what most answers need"
        raise UserError(
            f"generation.max_new_tokens={room} cuts off held-out answers, the longest of which has {longest} tokens. "
            f"{f'{more}, or {less}' if more else less.capitalize()}."
        )
    encode_examples(tokenizer, examples, limit, room)
