"""Text to token ids. The template travels with the tokenizer; what users write can never become a control token.

Only control tokens that stand in the template itself become ids, and everything between two of them is encoded as one
text, as the original models do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict, cast

from transformers import PreTrainedTokenizerBase

from glmtune.data.arrival import sign_conversation
from glmtune.data.control_tokens import plain_ids
from glmtune.data.forms import fit_to_template
from glmtune.data.pieces import Piece, find_endings, learn_starts, split_conversation, split_pieces
from glmtune.data.rendering import render
from glmtune.data.signs import fill_in
from glmtune.messages import Message, as_messages, text_in
from glmtune.models.templates import find_surrounding_tokens
from glmtune.runtime import UserError

IGNORED = -100  # label of a token that is not learned


class Encoding(TypedDict):
    """One example: `input_ids` and `labels`, both (T,), unshifted; the shift is in the loss.

    `record` is its index in its data set, -1 outside of one.
    """

    input_ids: list[int]
    labels: list[int]
    record: int


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message], tools: Sequence[Any] = ()
) -> list[int]:
    """Return the token ids of a prompt, ready to be answered: template and special tokens included.

    Args:
        tokenizer: with a `chat_template`; without one the bare prompt gets the tokenizer's own special tokens.
        prompt: a text, which is one user message, or messages.
        tools: definitions of the tools that may be called, as OpenAI's API has them.

    Raises:
        UserError: a message is not in the one form, or the template has no form for something in it.
    """
    if tokenizer.chat_template is None:
        text = "\n".join(text_in(message["content"]) for message in fit_to_template(tokenizer, prompt, tools)[0])
        return cast(list[int], tokenizer(text, split_special_tokens=True)["input_ids"])
    signed, texts = sign_conversation(tokenizer, prompt, tools, for_answer=True)
    rendered = render(tokenizer, signed.messages, signed.tools, for_answer=True)
    ids, _ = encode_pieces(tokenizer, split_pieces(tokenizer, rendered.text, rendered.spans), texts)
    return ids


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    answer: str | Message,
    record: int = -1,
    train_on_all_turns: bool = False,
    train_on_bos: bool = False,
    tools: Sequence[Any] = (),
) -> Encoding:
    """Encode a prompt with its answer. Learned are the answer, what the template puts around it, and the end token.

    Args:
        tokenizer: with the template of the model.
        prompt: a text, which is one user message, or messages.
        answer: a text, or the assistant's message, which may call tools.
        record: index of the example in its data set.
        train_on_all_turns: the assistant's turns in the prompt are learned, too, as far as the template marks them.
        train_on_bos: the control token right before an answer is learned, too.
        tools: definitions of the tools that may be called, as OpenAI's API has them.

    Raises:
        UserError: a message is not in the one form, or the template has no form for something in it.
    """
    answer = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    if tokenizer.chat_template is None:
        [answer], _ = fit_to_template(tokenizer, [answer])
        prompt_ids = encode_prompt(tokenizer, prompt, tools)
        target_ids = [*plain_ids(tokenizer, text_in(answer["content"])), end_id(tokenizer)]
        ids, labels = prompt_ids + target_ids, [IGNORED] * len(prompt_ids) + target_ids
    else:
        signed, texts = sign_conversation(tokenizer, [*as_messages(prompt), answer], tools)
        pieces = split_conversation(tokenizer, signed, train_on_all_turns)
        pieces = learn_starts(pieces) if train_on_bos else pieces
        ids, learned = encode_pieces(tokenizer, pieces, texts)
        labels = [token if is_learned else IGNORED for token, is_learned in zip(ids, learned, strict=True)]
    return {"input_ids": ids, "labels": labels, "record": record}


def encode_pieces(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece], texts: Sequence[str]
) -> tuple[list[int], list[bool]]:
    """Return token ids, and whether each is learned. Signs in the pieces become the texts that they stand for."""
    ids: list[int] = []
    learned: list[bool] = []
    run: list[Piece] = []  # text since the last control token

    def flush() -> None:
        for piece, new in zip(run, encode_run(tokenizer, [fill_in(piece.text, texts) for piece in run]), strict=True):
            ids.extend(new)
            learned.extend([piece.learned] * len(new))
        run.clear()

    for piece in pieces:
        if piece.is_control:
            flush()
            ids.append(cast(int, tokenizer.convert_tokens_to_ids(piece.text)))
            learned.append(piece.learned)
        else:
            run.append(piece)
    flush()
    return ids, learned


def encode_run(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of adjacent texts: those of the whole, unless tokens would reach across the bounds."""
    parts: list[list[int]] = []
    so_far: list[int] = []
    whole = ""
    for text in texts:
        whole += text
        ids = plain_ids(tokenizer, whole)
        if ids[: len(so_far)] == so_far:
            parts.append(ids[len(so_far) :])
        else:
            parts.append(plain_ids(tokenizer, text))
        so_far = so_far + parts[-1]
    return parts


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the end token."""
    return cast(int, tokenizer.eos_token_id)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end an answer: of the end token, and of those that the template puts behind one."""
    endings = frozenset() if tokenizer.chat_template is None else find_endings(tokenizer)
    return sorted({end_id(tokenizer), *(cast(int, tokenizer.convert_tokens_to_ids(token)) for token in endings)})


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check whether a model can learn by its template: it must see what is asked, and where an answer begins and ends.

    Raises:
        UserError: something is left out.
    """
    if tokenizer.chat_template is None:
        return
    remedy = "Mend chat_template.jinja, or choose another data.template."
    try:
        asked = encode_prompt(tokenizer, "1+1=")
        learned, learned_other = (
            [label for label in encode_example(tokenizer, "1+1=", answer)["labels"] if label != IGNORED]
            for answer in ("7", "9")
        )
    except UserError as error:
        raise UserError(f"The chat template has no form for a question and its answer: {error}") from None
    _, after = find_surrounding_tokens(tokenizer)
    missing = [token for token in after if tokenizer.convert_tokens_to_ids(token) not in asked]
    if missing:
        controls = "".join(after)
        raise UserError(f"The chat template leaves out {controls}, which must stand before an answer. {remedy}")
    if learned == learned_other or learned[-1] not in stop_ids(tokenizer):
        tokens = tokenizer.convert_ids_to_tokens(learned)
        raise UserError(f"By the chat template, of the answer '7' is learned {tokens}: no answer and its end. {remedy}")
