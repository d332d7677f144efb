"""Text to token ids. The template travels with the tokenizer; what users write can never become a control token.

Only control tokens that stand in the template itself become ids, and everything between two of them is encoded as one
text, as the original models do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from glmtune.data.rendering import (
    Piece,
    as_rendered,
    conversation,
    endings,
    pieces_of,
    render,
    with_known_roles,
    with_stand_ins,
    with_starts,
    written,
)
from glmtune.examples import Example
from glmtune.messages import Message, as_messages
from glmtune.models.templates import around
from glmtune.runtime import UserError

IGNORED = -100  # label of a token that is not learned


class Encoding(TypedDict):
    """One example: `input_ids` and `labels`, both (T,), unshifted; the shift is in the loss.

    `record` is its index in its data set, -1 outside of one.
    """

    input_ids: list[int]
    labels: list[int]
    record: int


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message]) -> list[int]:
    """Token ids of a prompt, ready to be answered: template and special tokens included.

    Args:
        tokenizer: with a `chat_template`; without one the bare prompt gets the tokenizer's own special tokens.
        prompt: a text, which is one user message, or messages.
    """
    messages = with_known_roles(tokenizer, as_messages(prompt))
    if tokenizer.chat_template is None:
        text = "\n".join(message["content"] for message in messages)
        return cast(list[int], tokenizer(text, split_special_tokens=True)["input_ids"])
    stand_ins, texts = with_stand_ins(messages)
    rendered, spans = render(tokenizer, stand_ins, for_answer=True)
    texts = as_rendered(tokenizer, messages, stand_ins, texts)
    ids, _ = encode_pieces(tokenizer, pieces_of(tokenizer, rendered, spans, []), texts)
    return ids


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    target: str,
    record: int = -1,
    train_on_all_turns: bool = False,
    train_on_bos: bool = False,
) -> Encoding:
    """A prompt with its target. Learned are the target, with what the template puts around it, and the end token.

    Args:
        tokenizer: with the template of the model.
        prompt: a text, which is one user message, or messages.
        target: the answer.
        record: index of the example in its data set.
        train_on_all_turns: the assistant's turns in the prompt are learned, too, as far as the template marks them.
        train_on_bos: the control token right before an answer is learned, too.
    """
    messages = with_known_roles(tokenizer, as_messages(prompt))
    if tokenizer.chat_template is None:
        prompt_ids = encode_prompt(tokenizer, messages)
        target_ids = [*plain_ids(tokenizer, target), end_id(tokenizer)]
        ids, labels = prompt_ids + target_ids, [IGNORED] * len(prompt_ids) + target_ids
    else:
        stand_ins, texts = with_stand_ins([*messages, {"role": "assistant", "content": target}])
        before = texts[:-1] if target else texts
        texts = [*as_rendered(tokenizer, messages, stand_ins[:-1], before), *texts[len(before) :]]
        pieces = conversation(tokenizer, stand_ins, train_on_all_turns)
        pieces = with_starts(pieces) if train_on_bos else pieces
        ids, learned = encode_pieces(tokenizer, pieces, texts)
        labels = [token if is_learned else IGNORED for token, is_learned in zip(ids, learned, strict=True)]
    return {"input_ids": ids, "labels": labels, "record": record}


@dataclass(frozen=True)
class Encoder:
    """Examples to encodings, as a recipe says.

    Attributes:
        tokenizer: with the template of the model.
        max_length: of an encoding, in tokens; None where there is no limit.
        train_on_bos: see `encode_example`.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    train_on_bos: bool = False

    def __call__(self, example: Example, record: int = -1) -> Encoding:
        """The whole of an example, however long it is."""
        return encode_example(
            self.tokenizer, example.prompt, example.target, record, example.train_on_all_turns, self.train_on_bos
        )

    def fits(self, encoding: Encoding) -> bool:
        """Whether it has at most `max_length` tokens."""
        return self.max_length is None or len(encoding["input_ids"]) <= self.max_length

    def too_long(self, encoding: Encoding) -> str:
        """What is said of an encoding that does not fit."""
        return (
            f"has {len(encoding['input_ids']):,} tokens, more than data.max_length or the model's {self.max_length:,}"
        )

    def cut(self, example: Example, record: int = -1) -> Encoding | None:
        """An example that is made to fit; None if it does not even with a single character of its question.

        The oldest rounds go first, then the beginning of what the first question says, of an Alpaca one of its input.
        The answer stays whole, and so does what the template says.
        """
        messages = as_messages(example.prompt)
        system = [message for message in messages[:1] if message["role"] == "system"]
        turns = messages[len(system) :]
        questions = [place for place, message in enumerate(turns) if message["role"] == "user"]

        def encoded(rest: list[Message]) -> Encoding:
            return self(replace(example, prompt=[*system, *rest]), record)

        for place in questions:
            if self.fits(encoding := encoded(turns[place:])):
                return encoding
        first, *others = turns[questions[-1] :] if questions else turns
        instruction = f"{first['instruction']}\n" if first.get("input") else ""
        text = str(first["input"] if instruction else first["content"])

        def from_character(place: int) -> Encoding:
            parts = {"instruction": instruction[:-1], "input": text[place:]} if instruction else {}
            return encoded([{"role": first["role"], "content": instruction + text[place:], **parts}, *others])

        low, high = 0, len(text)  # too long from `low` on; from `high` on it fits, if it does at all
        if not text or not self.fits(shortest := from_character(high - 1)):
            return None
        high -= 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.fits(encoding := from_character(middle)):
                high, shortest = middle, encoding
            else:
                low = middle
        return shortest


def encode_pieces(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece], texts: Sequence[str]
) -> tuple[list[int], list[bool]]:
    """Token ids, and whether each is learned. Signs in the pieces become the texts that they stand for."""
    ids: list[int] = []
    learned: list[bool] = []
    run: list[Piece] = []  # text since the last control token

    def flush() -> None:
        for piece, new in zip(run, encode_run(tokenizer, [written(piece.text, texts) for piece in run]), strict=True):
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
    """Ids of texts that stand side by side: those of the whole, unless tokens would reach across the bounds."""
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


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text in which nothing is a control token.

    `split_special_tokens` covers the special ones. Checkpoints also mark control words, such as those around tool
    calls, as added but not special; these are cut after their first character.
    """
    added = [
        str(token) for token in tokenizer.added_tokens_decoder.values() if not token.special and str(token).strip()
    ]
    cuts = "|".join(f"(?<={re.escape(token[0])})(?={re.escape(token[1:])})" for token in added if len(token) > 1)
    pieces = re.split(cuts, text) if cuts else [text]
    encoded = [tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"] for piece in pieces]
    return [token_id for ids in encoded for token_id in ids]


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The end token."""
    return cast(int, tokenizer.eos_token_id)


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the end token, and those that the template puts behind one, last or between turns."""
    found = set() if tokenizer.chat_template is None else endings(tokenizer)
    return sorted({end_id(tokenizer), *(cast(int, tokenizer.convert_tokens_to_ids(token)) for token in found)})


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """See whether a model can learn by its template: it must see what is asked, and where an answer begins and ends.

    Raises:
        UserError: something is left out.
    """
    if tokenizer.chat_template is None:
        return
    remedy = "Mend chat_template.jinja, or choose another data.template."
    try:
        asked, other = (encode_prompt(tokenizer, prompt) for prompt in ("1+1=", "2*3="))
        learned, learned_other = (
            [label for label in encode_example(tokenizer, "1+1=", answer)["labels"] if label != IGNORED]
            for answer in ("7", "9")
        )
    except TemplateError as error:
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise UserError(f"The chat template has no form for a question and its answer: {reason}. {remedy}") from None
    if asked == other:
        raise UserError(f"The chat template leaves out what is asked. {remedy}")
    _, after = around(tokenizer)
    missing = [token for token in after if tokenizer.convert_tokens_to_ids(token) not in asked]
    if missing:
        controls = "".join(after)
        raise UserError(f"The chat template leaves out {controls}, which must stand before an answer. {remedy}")
    if learned == learned_other or learned[-1] not in stop_ids(tokenizer):
        tokens = tokenizer.convert_ids_to_tokens(learned)
        raise UserError(f"By the chat template, of the answer '7' is learned {tokens}: no answer and its end. {remedy}")
