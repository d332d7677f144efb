"""Rendered templates cut into control tokens and what stands between them, and which of it is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from glmtune.data.control_tokens import collect_control_tokens, once_per_tokenizer
from glmtune.data.rendering import render
from glmtune.data.signs import Signed, fill_in, sign_texts
from glmtune.messages import Message, make_tool_call
from glmtune.runtime import UserError

Span = tuple[int, int]

_SHOWN = 40  # characters of a template in a message

# Turns to try a template with.
_QUESTION: Message = {"role": "user", "content": "."}
_ANSWER: Message = {"role": "assistant", "content": "."}
_CALL: Message = {"role": "assistant", "tool_calls": [make_tool_call("calculate", {"expression": "1+1"})]}
_RESULT: Message = {"role": "tool", "content": "."}


@dataclass(frozen=True)
class Piece:
    """A stretch of a rendered template: a control token, or text with signs for contents in it; learned or not."""

    text: str
    is_control: bool
    learned: bool


def split_pieces(
    tokenizer: PreTrainedTokenizerBase, rendered: str, spans: Sequence[Span] = (), chosen: Sequence[Span] = ()
) -> list[Piece]:
    """Cut a rendered template at control tokens, and at the bounds of all answers, so that each has tokens of its own.

    Args:
        tokenizer: knows control tokens.
        rendered: a template's text.
        spans: answers in it.
        chosen: those of them that are learned.
    """
    bounds = sorted({bound for span in spans for bound in span})
    pieces = []
    for start, text, is_control in collect_control_tokens(tokenizer).cut(rendered):
        inner = [bound - start for bound in bounds if start < bound < start + len(text)]
        for first, last in zip([0, *inner], [*inner, len(text)], strict=True):
            learned = any(left <= start + first and start + last <= right for left, right in chosen)
            pieces.append(Piece(text[first:last], is_control, learned))
    return pieces


def split_conversation(
    tokenizer: PreTrainedTokenizerBase, signed: Signed, train_on_all_turns: bool = False
) -> list[Piece]:
    """Cut a conversation that ends with an answer. Learned are the answer, and an end token in any case.

    Args:
        tokenizer: with a template.
        signed: a conversation with signs, its last message the assistant's.
        train_on_all_turns: learn what the template marks in earlier turns, too.
    """
    whole = render(tokenizer, signed.messages, signed.tools)
    text, spans = whole.text, whole.spans
    if not spans:
        spans = [_find_answer(tokenizer, signed, text)]
    spans = [_include_end(tokenizer, text, span) for span in spans]
    learned = spans if train_on_all_turns else spans[-1:]
    pieces = split_pieces(tokenizer, text[: spans[-1][1]], spans, learned)
    if not pieces or not pieces[-1].is_control:
        pieces.append(Piece(str(tokenizer.eos_token), is_control=True, learned=True))
    return pieces


def _find_answer(tokenizer: PreTrainedTokenizerBase, signed: Signed, whole: str) -> Span:
    """Find the answer where the template does not mark it: what follows the prompt, up to the token that ends the turn.

    Raises:
        UserError: the template begins an answer otherwise than it asks for one, so that what is learned would never be
            asked.
    """
    asked = render(tokenizer, signed.messages[:-1], signed.tools, for_answer=True).text
    if not whole.startswith(asked):
        common = next((i for i, pair in enumerate(zip(asked, whole, strict=False)) if pair[0] != pair[1]), len(whole))
        tag = asked.rfind("<", 0, common)
        common = tag if tag >= 0 and ">" not in asked[tag:common] else common  # a control token is shown as a whole
        filled = ["..."] * len(signed.texts)
        asks, begins = (fill_in(text[common:], filled)[:_SHOWN] for text in (asked, whole))
        raise UserError(
            f"The model's chat template asks for an answer with {asks!r}, but goes on with {begins!r} where there is "
            "one, so that what is learned would never be asked. Choose another data.template."
        )
    return len(asked), _find_end(tokenizer, signed.messages[-1], whole, len(asked))


def _find_end(tokenizer: PreTrainedTokenizerBase, answer: Message, whole: str, start: int) -> int:
    """Return where an answer ends that a template does not mark: behind the control token that follows its content.

    Without such a token, or behind calls, it is the last place of what usually ends an answer.
    """
    if answer.get("tool_calls"):
        ending = _find_ending(tokenizer)
        last = whole.rfind(ending, start)
        return last + len(ending) if last >= 0 else len(whole.rstrip())
    content = answer["content"]
    last = whole.rindex(content, start) + len(content) if content and content in whole[start:] else start
    place, token = next(collect_control_tokens(tokenizer).find(whole, last), (last, ""))
    return place + len(token)


def _include_end(tokenizer: PreTrainedTokenizerBase, rendered: str, span: Span) -> Span:
    """Return the span of an answer with the control token that ends it, where that stands outside of the marks."""
    first, last = span
    inside = split_pieces(tokenizer, rendered[first:last])
    has_end = bool(inside) and inside[-1].is_control
    return span if has_end else (first, last + len(collect_control_tokens(tokenizer).at(rendered, last)))


def _find_ending(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the control token that ends an answer, also of a template that asks otherwise than it answers."""
    signed = sign_texts(tokenizer, [_QUESTION, _ANSWER])
    try:
        return split_conversation(tokenizer, signed)[-1].text
    except UserError:
        pass
    try:
        whole = render(tokenizer, signed.messages).text
    except UserError:  # it answers nothing
        return str(tokenizer.eos_token)
    *_, last = split_pieces(tokenizer, whole[: _find_end(tokenizer, signed.messages[-1], whole, 0)])
    return last.text if last.is_control else str(tokenizer.eos_token)


@once_per_tokenizer
def find_endings(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Return the control tokens that the template puts behind an answer, last or between turns."""
    endings = {_find_ending(tokenizer)}
    for answer, following in ((_ANSWER, _QUESTION), (_CALL, _RESULT), (_ANSWER, _RESULT)):
        try:
            whole = render(tokenizer, sign_texts(tokenizer, [_QUESTION, answer, following]).messages)
        except UserError:  # a template for one turn, or without such a role
            continue
        for span in whole.spans:
            first, last = _include_end(tokenizer, whole.text, span)
            *_, ending = split_pieces(tokenizer, whole.text[first:last])
            endings |= {ending.text} if ending.is_control else set()
    return frozenset(endings)


def learn_starts(pieces: Sequence[Piece]) -> list[Piece]:
    """Return the pieces, with the control token before each answer learned as well."""
    following = [piece.learned for piece in pieces[1:]] + [False]
    return [
        replace(piece, learned=True) if piece.is_control and is_followed else piece
        for piece, is_followed in zip(pieces, following, strict=True)
    ]


def can_train_on_all_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template can learn all answers of a conversation in one pass, and not the last alone."""
    if tokenizer.chat_template is None:
        return False
    signed = sign_texts(tokenizer, [_QUESTION, _ANSWER, _QUESTION, _ANSWER])
    try:
        pieces = split_conversation(tokenizer, signed, train_on_all_turns=True)
    except UserError:  # single questions only
        return False
    return any(piece.learned and signed.messages[1]["content"] in piece.text for piece in pieces)


@once_per_tokenizer
def lead_in(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what a template puts before an answer that the model writes itself, e.g. the line for a tool's name."""
    if tokenizer.chat_template is None:
        return ""
    signed = sign_texts(tokenizer, [_QUESTION, _ANSWER])
    try:
        learned = "".join(piece.text for piece in split_conversation(tokenizer, signed) if piece.learned)
    except UserError:  # it asks otherwise than it answers
        return ""
    return learned.partition(signed.messages[1]["content"])[0]


def without_lead_in(text: str, first: str) -> str:
    """Return an answer, or its beginning, without what the template puts before answers."""
    if first.startswith(text):
        return ""
    return text.removeprefix(first) if text.startswith(first) else text.removeprefix(first.rstrip(" "))
