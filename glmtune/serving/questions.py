"""What clients ask, as questions to a model that is served."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.inference.completion import Constraint
from glmtune.inference.constraints import make_call_constraint, make_constraint
from glmtune.inference.constraints.calls import CallConstraint
from glmtune.inference.conversation import Conversation, Question
from glmtune.inference.engine import Engine
from glmtune.inference.prompts import has_room
from glmtune.messages import Prompt
from glmtune.resolution import ResolvedModel
from glmtune.runtime import UserError
from glmtune.serving.asking import Asked, RefusedError, ServedModel
from glmtune.serving.hosting import Host

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(eq=False)
class Served:
    """A model with a name.

    Attributes:
        info: what clients are told of it.
        resolved: what it was made of.
        engine: encodes, and reads answers; the worker decodes.
        conversation: with the tools that are run here.
        host: its base.
        adapter: what the base's host activates it by.
        is_fixed: named when the server began.
    """

    info: ServedModel
    resolved: ResolvedModel
    engine: Engine
    conversation: Conversation
    host: Host
    adapter: str | None
    is_fixed: bool = True


def prepare(served: Served, asked: Asked) -> tuple[Conversation, list[Question]]:
    """Return what is asked as questions, one for each answer, and the conversation that they are put in.

    Raises:
        RefusedError: it cannot be asked.
    """
    conversation, constraint = conversation_of(served, asked), constraint_of(served, asked)
    input_ids = encode(served, asked)
    settings = settings_of(asked, served.resolved.recipe.generation)
    limit = served.engine.limit
    if not has_room(len(input_ids), limit, settings.max_new_tokens or 1):
        if asked.max_tokens is not None or not has_room(len(input_ids), limit, 1):
            wanted = f" and an answer of {asked.max_tokens}" if asked.max_tokens else ""
            raise RefusedError(
                f"The prompt has {len(input_ids)} tokens{wanted}; the model takes {limit} together. Shorten the "
                "prompt, or ask for fewer tokens.",
                field="prompt" if asked.is_raw else "messages",
                code="context_length_exceeded",
            )
        settings = settings.model_copy(update={"max_new_tokens": None})
    seed = secrets.randbits(31) if asked.seed is None and settings.do_sample else asked.seed
    prompt: Prompt = "" if asked.is_raw else asked.prompt  # type: ignore[assignment]
    questions = [
        conversation.ask(
            prompt,
            settings,
            asked.tools if asked.tool_choice != "none" else (),
            input_ids,
            is_raw=asked.is_raw,
            seed=None if seed is None else seed + index,
            stop=asked.stop,
            logprobs=asked.logprobs,
            top_logprobs=asked.top_logprobs,
            constraint=constraint,
        )
        for index in range(asked.n)
    ]
    return conversation, questions


def encode(served: Served, asked: Asked) -> list[int]:
    """Return the token ids of a prompt, with its tools.

    Raises:
        RefusedError: it cannot be asked.
    """
    tokenizer = served.engine.tokenizer
    if asked.is_raw and not isinstance(asked.prompt, str):
        known = served.engine.model.config.get_text_config().vocab_size
        if wrong := [one for one in asked.prompt if not (isinstance(one, int) and 0 <= one < known)]:
            raise RefusedError(f"{wrong[0]!r} is no token id: there are 0 to {known - 1}.", field="prompt")
        return list(asked.prompt)  # type: ignore[arg-type]
    if asked.is_raw:
        return list(tokenizer(str(asked.prompt))["input_ids"])
    tools = conversation_of(served, asked).offered(asked.tools if asked.tool_choice != "none" else ())
    try:
        return encode_prompt(tokenizer, asked.prompt, tools)  # type: ignore[arg-type]
    except UserError as error:
        # A template that takes the messages alone does not take the tools.
        field = "tools" if tools and is_taken(tokenizer, asked.prompt) else "messages"
        remedy = str(error).replace("data.template", "glmtune serve --set data.template=NAME")
        raise RefusedError(remedy, field=field) from error


def is_taken(tokenizer: PreTrainedTokenizerBase, prompt: Any) -> bool:
    """Return whether the template takes messages without tools."""
    try:
        encode_prompt(tokenizer, prompt)
    except UserError:
        return False
    return True


def conversation_of(served: Served, asked: Asked) -> Conversation:
    """Return who converses: with the tools that are run here, unless the client brings its own, or wants none."""
    if asked.is_raw or asked.tools or asked.tool_choice == "none":
        return Conversation(served.engine)
    return served.conversation


def settings_of(asked: Asked, own: GenerationSettings) -> GenerationSettings:
    """Return how to decode: as is asked, else as the run says. Who gives a temperature, top_p or top_k samples."""
    given = {
        "max_new_tokens": asked.max_tokens,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "repetition_penalty": asked.repetition_penalty,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if asked.temperature == 0:
        changes |= {"do_sample": False}
    elif asked.temperature is not None or (not own.do_sample and (asked.top_p is not None or asked.top_k is not None)):
        changes |= {"do_sample": True, "temperature": asked.temperature or 1.0, "top_p": asked.top_p or 1.0}
    return own.model_copy(update=changes)


def constraint_of(served: Served, asked: Asked) -> Constraint | None:
    """Return what the answer must be; None where it may be anything.

    Raises:
        RefusedError: that cannot be kept.
    """
    if asked.tool_choice not in ("auto", "none"):
        return call_of(served, asked)
    if asked.format is None:
        return None
    field, task = asked.format.field, served.resolved.task if served.resolved.has_task else None
    if asked.stop:
        raise RefusedError("An answer of a form ends when it is whole. Leave `stop` out.", field="stop")
    if conversation_of(served, asked).offered(asked.tools if asked.tool_choice != "none" else ()):
        raise RefusedError("An answer of a form calls no tools. Set tool_choice to 'none'.", field=field)
    engine = served.engine
    after = None if task is None or asked.is_raw else task.final_marker
    try:
        form = asked.format
        return make_constraint(engine.tokenizer, num_logits(engine), engine.reader.stops, form.kind, form.value, after)
    except UserError as error:
        raise RefusedError(f"{field}: {error}", field=field) from error


def call_of(served: Served, asked: Asked) -> CallConstraint:
    """Return the constraint of an answer that must call a tool.

    Raises:
        RefusedError: there is no such tool, or no call can be promised.
    """
    tools, engine = served.conversation.offered(asked.tools), served.engine
    named = [tool for tool in tools if asked.tool_choice in ("required", tool["function"]["name"])]
    if not named:
        known = ", ".join(tool["function"]["name"] for tool in tools) or "none"
        raise RefusedError(
            f"tool_choice: there is no tool {asked.tool_choice!r}; there are: {known}.", 400, "tool_choice"
        )
    if asked.format is not None:
        raise RefusedError("An answer that calls a tool is of no other form.", field=asked.format.field)
    try:
        return make_call_constraint(engine.tokenizer, num_logits(engine), engine.reader.stops, named)
    except UserError as error:
        raise RefusedError(f"tool_choice: {error}", field="tool_choice") from error


def num_logits(engine: Engine) -> int:
    """Return V of the model's logits (B, T, V), which may be more than there are tokens."""
    head: Any = engine.model.get_output_embeddings()
    return int(head.out_features)
