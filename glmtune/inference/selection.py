"""Which held-out examples a model is asked: the same before, during and after a training, and whenever it is judged."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import overload

from transformers import PreTrainedTokenizerBase

from glmtune.config import SHORT_ANSWER, Recipe
from glmtune.data import DrawnExamples, check_question, examples_of
from glmtune.data.acceptance import accepted
from glmtune.data.control_tokens import plain_ids
from glmtune.data.encoding import IGNORED, encode_example
from glmtune.examples import Example
from glmtune.inference.prompts import encode_within, has_room
from glmtune.runtime import UserError
from glmtune.tasks import Task


class HeldOut(Sequence[Example]):
    """Examples that a model can be asked, with their prompts encoded once for all times that it is.

    Attributes:
        input_ids: of each prompt, with the tools that it offers.
    """

    def __init__(self, examples: Sequence[Example], input_ids: Sequence[list[int]]) -> None:
        self.examples, self.input_ids = list(examples), list(input_ids)

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> HeldOut: ...
    def __getitem__(self, index: int | slice) -> Example | HeldOut:
        if isinstance(index, slice):
            return HeldOut(self.examples[index], self.input_ids[index])
        return self.examples[index]


def fit_max_new_tokens(recipe: Recipe, task: Task, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> Recipe:
    """Return the recipe with `generation.max_new_tokens`, as `fit_max_new_tokens_to` does, for a task.

    Where the task has tools, calls of them must have room, too; how long they are, examples that are learned show.
    """
    if recipe.generation.max_new_tokens is not None:
        return recipe
    asked = [example for during in (False, True) for example in choose_held_out(recipe, task, during, tokenizer)]
    calls = examples_of(task, "train", recipe.evaluation.num_examples, recipe.seed) if task.tools else []
    return fit_max_new_tokens_to(recipe, asked, tokenizer, limit, calls[: recipe.evaluation.num_examples])


def fit_max_new_tokens_to(
    recipe: Recipe,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    calls: Sequence[Example] = (),
) -> Recipe:
    """Return the recipe with `generation.max_new_tokens`: what the longest answer needs, and a quarter more.

    What the recipe says itself stays. Where records that are too long may be left out, it is half of what the model
    takes at most; else what the longest prompt leaves.

    Args:
        recipe: `generation`, `data`.
        examples: what is asked.
        tokenizer: with the template.
        limit: longest sequence in tokens that the model takes; None where it states none.
        calls: examples of calls that the model may make.
    """
    if recipe.generation.max_new_tokens is not None:
        return recipe
    longest = max((answer_length(tokenizer, example) for example in (*examples, *calls)), default=0)
    room = max(SHORT_ANSWER, longest * 5 // 4)
    if limit is not None:
        prompts = max(map(len, encode_examples(tokenizer, examples)), default=0)
        most = limit - prompts if recipe.data.too_long == "stop" else limit // 2
        room = max(1, min(room, most))
    generation = recipe.generation.model_copy(update={"max_new_tokens": room})
    return recipe.model_copy(update={"generation": generation})


def choose_held_out(
    recipe: Recipe, task: Task, during: bool, tokenizer: PreTrainedTokenizerBase | None = None
) -> Sequence[Example]:
    """Return the held-out examples that are asked, were none of them too long.

    Args:
        recipe, task, during: as `select_held_out` takes them.
        tokenizer: with the template, where it is asked by one.
    """
    examples, part = find_candidates(recipe, task, during, tokenizer)
    return examples[part]


def find_candidates(
    recipe: Recipe, task: Task, during: bool, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[Sequence[Example], slice]:
    """Return examples that may be asked, and which of them are.

    Those that the template does not take are left out where `data.on_error` says so.

    Those asked during a training are others than those before and after it: a task draws them by another seed. Of
    records, the last are asked during it and the first before and after, so that they overlap only where there are few.
    """
    settings, seed = recipe.evaluation, recipe.seed
    count, part = settings.num_examples, slice(settings.num_examples)
    if during:
        count = min(settings.num_examples_during, count)
        part, seed = slice(-count, None), seed + 1
    examples = examples_of(task, "held_out", count, seed)
    if tokenizer is not None and recipe.data.on_error == "skip":
        examples = accepted(examples, tokenizer, recipe.data)
    return examples, part


def select_held_out(
    recipe: Recipe,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    during: bool = False,
    whole: bool = True,
) -> HeldOut:
    """Return held-out examples that the model can be asked, with room for their answers.

    Records that are too long are left out where `data.too_long` says so of those that are learned.

    Args:
        recipe: `evaluation`, `generation`, `data`, `seed`.
        task: whose examples these are.
        tokenizer: with the template.
        limit: longest sequence in tokens that the model takes; None where it states none.
        during: those that are asked during a training; else those before and after it.
        whole: right answers must not be cut off by `generation.max_new_tokens`.

    Raises:
        UserError: one is too long; says which and how long it is. Or none is left.
    """
    examples, part = find_candidates(recipe, task, during, tokenizer)
    is_drawn, room = isinstance(examples, DrawnExamples), recipe.generation.longest
    if recipe.data.too_long == "stop" or is_drawn:
        examples = examples[part]
        if whole:
            check_answers(tokenizer, examples, limit, room, is_drawn)
        return HeldOut(examples, encode_examples(tokenizer, examples, limit, room))
    input_ids = encode_examples(tokenizer, examples)
    fitting = [
        index
        for index, example in enumerate(examples)
        if answer_length(tokenizer, example) <= room and has_room(len(input_ids[index]), limit, room)
    ]
    if not fitting:
        answers = sorted(answer_length(tokenizer, example) for example in examples)
        prompts = sorted(map(len, input_ids))
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
    return HeldOut([examples[index] for index in fitting], [input_ids[index] for index in fitting])[part]


def encode_examples(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], limit: int | None = None, max_new_tokens: int = 0
) -> list[list[int]]:
    """Return the token ids of what examples ask, with the tools that they offer.

    Raises:
        UserError: one leaves no room for its answer, or has no form in the template; says where it stands.
    """
    encoded = []
    for number, example in enumerate(examples, start=1):
        name = str(example.source or f"Held-out problem {number}")
        check_question(example, name)
        encoded.append(encode_within(tokenizer, example.prompt, example.tools, limit, max_new_tokens, name))
    return encoded


def answer_length(tokenizer: PreTrainedTokenizerBase, example: Example) -> int:
    """Return how many tokens a right answer has, with the one that ends it."""
    if not example.tool_calls and not example.reasoning_content:
        return len(plain_ids(tokenizer, example.target)) + 1
    labels = encode_example(tokenizer, example.prompt, example.answer, tools=example.tools)["labels"]
    return len(labels) - labels.count(IGNORED)


def check_answers(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], limit: int | None, room: int, is_drawn: bool
) -> None:
    """See whether right answers have room.

    Args:
        tokenizer: with the template.
        examples: what is asked.
        limit: longest sequence in tokens that the model takes; None where it states none.
        room: `generation.max_new_tokens`.
        is_drawn: they are no records, of which some could be left out.

    Raises:
        UserError: one has not.
    """
    longest = max((answer_length(tokenizer, example) for example in examples), default=0)
    if longest <= room:
        return
    is_possible = limit is None or max(map(len, encode_examples(tokenizer, examples))) + longest <= limit
    more = f"Set generation.max_new_tokens={longest} or more" if is_possible else ""
    if is_drawn:
        less = "let the task draw problems with shorter answers"
    else:
        less = "leave out what is longer with data.too_long=drop"
        less += "" if is_possible else ", and set generation.max_new_tokens to what most answers need"
    raise UserError(
        f"generation.max_new_tokens={room} cuts off held-out answers, the longest of which has {longest} tokens. "
        f"{f'{more}, or {less}' if more else less.capitalize()}."
    )
