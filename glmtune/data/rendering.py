"""Messages to pieces of text: the template is rendered, and cut into control tokens and what stands between them.

A template is rendered with signs that stand for what people wrote, so that only control tokens that stand in the
template itself count as such. But for tools, rendering depends on the roles alone, and each sequence of roles is
rendered once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from glmtune.messages import Message
from glmtune.runtime import UserError

TOOL_ROLES = ("observation", "tool")  # what tools say: in GLM's templates, in those of others

# The first of the characters that stand for what people wrote while a template is rendered, one for each text. They
# are for private use, so that no template writes them and no tokenizer has tokens for them.
_CONTENT = 0xF0000
_CONTENT_PATTERN = re.compile("[\U000f0000-\U000ffffd]")
_NAME = re.compile(r"[\w.$-]+")
# Where a template does more with a content than to write it.
_LOOKS = re.compile(r"\|\s*trim|\bstrip\(|\.(split|replace|startswith|endswith)\(|\bin\s+\w+(\.content|\[.content.\])")
_MARK = re.compile(r"{%-?\s*generation\s*-?%}")


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered template: a control token, or text with signs for contents in it; learned or not."""

    text: str
    is_control: bool
    learned: bool


def with_known_roles(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[Message]:
    """What a tool said in the role that the template has for it: GLM's say `observation`, those of others `tool`.

    Raises:
        UserError: it has none, and would leave the tool's words out.
    """
    if tokenizer.chat_template is None or all(message.get("role") not in TOOL_ROLES for message in messages):
        return messages
    role = _tool_role(tokenizer.get_chat_template(), tuple(named_tokens(tokenizer).items()))
    if role is None:
        raise UserError(
            f"The model's chat template has no form for what a tool says, the role {' or '.join(TOOL_ROLES)}. Choose "
            "another data.template, such as chatml, or leave out turns of tools."
        )
    return [{**message, "role": role} if message.get("role") in TOOL_ROLES else message for message in messages]


@lru_cache(maxsize=64)
def _tool_role(template: str, named: tuple[tuple[str, str], ...]) -> str | None:
    # Some write whatever role they are given; what they name comes first.
    for role in sorted(TOOL_ROLES, key=lambda role: role not in template):
        turns, _ = with_stand_ins([{"role": name, "content": "."} for name in ("user", "assistant", role)])
        try:
            rendered, _ = _render(template, turns, True, dict(named))
        except TemplateError:
            continue
        if turns[-1]["content"] in rendered:
            return role
    return None


def with_stand_ins(messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """Messages with a sign in place of each text but the roles, and the texts; an empty text stays empty.

    Texts within tools and the like, which templates write as JSON, are written as JSON writes them.

    Raises:
        UserError: a role or the name of a field is no name.
    """
    texts: list[str] = []

    def sign(value: Any, nested: bool = False) -> Any:
        if isinstance(value, Mapping):
            return {name(key): sign(inner, True) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [sign(inner, True) for inner in value]
        if not isinstance(value, str) or not value:
            return value
        texts.append(json.dumps(value, ensure_ascii=False)[1:-1] if nested else value)
        return chr(_CONTENT + len(texts) - 1)

    for message in messages:
        if message.get("content") is None:
            raise UserError(f"{str(message)[:80]}: a message needs a 'role' and a 'content', which may be empty.")
    return [
        {name(key): name(value) if key == "role" else sign(value) for key, value in message.items()}
        for message in messages
    ], texts


def name(text: Any) -> str:
    """The text, if it is a name: templates write these as they are.

    Raises:
        UserError: it is none.
    """
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise UserError(
            f"{text!r}: roles and fields of messages are names, of letters, digits and any of _ - . $ only."
        )
    return text


def render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], for_answer: bool
) -> tuple[str, list[tuple[int, int]]]:
    """The template's text for some messages, and where in it stands what is learned, as far as the template says.

    Args:
        tokenizer: with a template.
        messages: with signs for contents.
        for_answer: let the assistant's answer follow (`add_generation_prompt`).
    """
    named = named_tokens(tokenizer)
    shape = tuple(tuple(message.items()) for message in messages)
    template = tokenizer.get_chat_template()
    if any(not isinstance(value, str) for message in messages for value in message.values()):  # tools
        return _render(template, messages, for_answer, named)
    return _render_shape(template, shape, for_answer, tuple(named.items()))


@lru_cache(maxsize=256)
def _render_shape(
    template: str, shape: tuple[tuple[tuple[str, str], ...], ...], for_answer: bool, named: tuple[tuple[str, str], ...]
) -> tuple[str, list[tuple[int, int]]]:
    return _render(template, [dict(message) for message in shape], for_answer, dict(named))


def _render(
    template: str, messages: list[Message], for_answer: bool, named: Mapping[str, str]
) -> tuple[str, list[tuple[int, int]]]:
    library: Any = render_jinja_template  # its annotations do not say what it returns
    texts, spans = library(
        conversations=[messages],
        chat_template=template,
        return_assistant_tokens_mask=_MARK.search(template) is not None,
        add_generation_prompt=for_answer,
        **named,
    )
    return texts[0], [(int(first), int(last)) for first, last in (spans[0] if spans else [])]


def as_rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], stand_ins: list[Message], texts: list[str]
) -> list[str]:
    """The texts as the template itself writes them: as they are, or stripped of the blanks around them.

    Args:
        tokenizer: with a template.
        messages: as they were given.
        stand_ins: the same with signs.
        texts: what the signs stand for.

    Raises:
        UserError: the template looks at what is in the texts, e.g. for a word that ends reasoning.
    """
    template = tokenizer.get_chat_template()
    if _LOOKS.search(template) is None:
        return texts
    rendered, _ = render(tokenizer, stand_ins, for_answer=True)
    whole, _ = _render(template, messages, True, named_tokens(tokenizer))
    for candidate in (texts, [text.strip() for text in texts]):
        if written(rendered, candidate) == whole:
            return candidate
    raise UserError(
        "The model's chat template treats messages by what is in them (it takes reasoning out of earlier answers, for "
        "instance), which is not supported. Take that out of the messages, or choose another data.template."
    )


def conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], train_on_all_turns: bool = False
) -> list[Piece]:
    """A conversation that ends with an answer, and what of it is learned: the answer, and an end token in any case.

    Args:
        tokenizer: with a template.
        messages: with signs for contents, the last one the assistant's.
        train_on_all_turns: learn what the template marks in earlier turns, too.
    """
    asked, _ = render(tokenizer, messages[:-1], for_answer=True)
    whole, spans = render(tokenizer, messages, for_answer=False)
    content = messages[-1]["content"]
    if not spans:  # an unmarked template: what follows the prompt, up to the control token that ends the turn
        if not whole.startswith(asked) or (content and content not in whole[len(asked) :]):
            whole = asked + content
        last = whole.rindex(content) + len(content) if content else len(asked)
        following = next(iter(pieces_of(tokenizer, whole[last:], [], [])), None)
        last += len(following.text) if following is not None and following.is_control else 0
        whole, spans = whole[:last], [(len(asked), last)]
    spans = [with_end(tokenizer, whole, span) for span in spans]
    learned = spans if train_on_all_turns else spans[-1:]
    pieces = pieces_of(tokenizer, whole[: spans[-1][1]], spans, learned)
    if not pieces or not pieces[-1].is_control:
        pieces.append(Piece(str(tokenizer.eos_token), is_control=True, learned=True))
    return pieces


def with_end(tokenizer: PreTrainedTokenizerBase, rendered: str, span: tuple[int, int]) -> tuple[int, int]:
    """What is learned of an answer, with the control token that ends it where that stands outside of the marks."""
    first, last = span
    inside, behind = (pieces_of(tokenizer, text, [], []) for text in (rendered[first:last], rendered[last:]))
    has_end = bool(inside) and inside[-1].is_control
    if not has_end and behind and (following := behind[0]).is_control:
        return first, last + len(following.text)
    return span


def endings(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Control tokens that the template puts behind an answer, last or between turns."""
    found = set()
    for following in ([], ["user"], ["observation"]):
        turns = ["user", "assistant", *following]
        messages, _ = with_stand_ins([{"role": role, "content": "."} for role in turns])
        try:
            if not following:
                found.add(conversation(tokenizer, messages)[-1].text)
                continue
            whole, spans = render(tokenizer, messages, for_answer=False)
        except TemplateError:  # a template for one turn, or without such a role
            continue
        for span in spans:
            first, last = with_end(tokenizer, whole, span)
            *_, ending = pieces_of(tokenizer, whole[first:last], [], [])
            found |= {ending.text} if ending.is_control else set()
    return found


def with_starts(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, and learned with each answer the control token before it."""
    following = [piece.learned for piece in pieces[1:]] + [False]
    return [
        replace(piece, learned=True) if piece.is_control and is_followed else piece
        for piece, is_followed in zip(pieces, following, strict=True)
    ]


def pieces_of(
    tokenizer: PreTrainedTokenizerBase,
    rendered: str,
    spans: Sequence[tuple[int, int]],
    chosen: Sequence[tuple[int, int]],
) -> list[Piece]:
    """A rendered template cut at control tokens, and at the bounds of all answers, so that each has tokens of its own.

    Args:
        tokenizer: knows control tokens.
        rendered: a template's text.
        spans: answers in it.
        chosen: those of them that are learned.
    """
    bounds = sorted({bound for span in spans for bound in span})
    pieces = []
    for start, text, is_control in cut_at(control_pattern(tokenizer), rendered):
        inner = [bound - start for bound in bounds if start < bound < start + len(text)]
        for first, last in zip([0, *inner], [*inner, len(text)], strict=True):
            learned = any(left <= start + first and start + last <= right for left, right in chosen)
            pieces.append(Piece(text[first:last], is_control, learned))
    return pieces


def cut_at(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, str, bool]]:
    """(place, text, whether it matches) of what matches a pattern and of what stands between, in order."""
    place = 0
    for found in pattern.finditer(text):
        if place < found.start():
            yield place, text[place : found.start()], False
        yield found.start(), found[0], True
        place = found.end()
    if place < len(text):
        yield place, text[place:], False


def written(piece: str, texts: Sequence[str]) -> str:
    """A piece with the texts in place of their signs."""
    return _CONTENT_PATTERN.sub(lambda found: texts[ord(found[0]) - _CONTENT], piece)


def named_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The special tokens that have names, such as `eos_token`; templates know them by these."""
    return {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Every token that a template may use as a control token."""
    return {*named_tokens(tokenizer).values(), *tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}


def control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """What matches a control token, the longest first."""
    return _control_pattern(frozenset(control_tokens(tokenizer)))


@lru_cache(maxsize=64)
def _control_pattern(tokens: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def can_train_on_all_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template can learn all answers of a conversation in one pass, and not the last alone."""
    if tokenizer.chat_template is None:
        return False
    roles = ("user", "assistant", "user", "assistant")
    messages, _ = with_stand_ins([{"role": role, "content": "."} for role in roles])
    try:
        pieces = conversation(tokenizer, messages, train_on_all_turns=True)
    except TemplateError:  # single questions only
        return False
    return any(piece.learned and messages[1]["content"] in piece.text for piece in pieces)


def lead_in(tokenizer: PreTrainedTokenizerBase) -> str:
    """What a template puts before an answer that the model writes itself, e.g. a line for metadata; no part of it."""
    if tokenizer.chat_template is None:
        return ""
    messages, _ = with_stand_ins([{"role": role, "content": "."} for role in ("user", "assistant")])
    learned = "".join(piece.text for piece in conversation(tokenizer, messages) if piece.learned)
    return learned.partition(messages[1]["content"])[0]
