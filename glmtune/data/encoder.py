"""Examples to encodings, as a recipe says: with the template of the model, of a bounded length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from glmtune.data.encoding import Encoding, encode_example
from glmtune.examples import Example
from glmtune.messages import Message, as_messages, text_in


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
        """Encode the whole of an example, however long it is."""
        return encode_example(
            self.tokenizer,
            example.prompt,
            example.answer,
            record,
            example.train_on_all_turns,
            self.train_on_bos,
            example.tools,
        )

    def fits(self, encoding: Encoding) -> bool:
        """Return whether it has at most `max_length` tokens."""
        return self.max_length is None or len(encoding["input_ids"]) <= self.max_length

    def too_long(self, encoding: Encoding) -> str:
        """Return what is said of an encoding that does not fit."""
        return (
            f"has {len(encoding['input_ids']):,} tokens, more than data.max_length or the model's {self.max_length:,}"
        )

    def cut(self, example: Example, record: int = -1) -> Encoding | None:
        """Encode an example that is made to fit; None if it does not even with a single character of its question.

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
        text = str(first["input"]) if instruction else text_in(first["content"])

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


def no_bos(encoder: Encoder) -> Iterator[str]:
    """Yield what is said where `data.train_on_bos` changes nothing."""
    example = Example("1+1=", "2")
    if encoder.train_on_bos and encoder(example) == replace(encoder, train_on_bos=False)(example):
        yield "data.train_on_bos=true changes nothing: this template has no control token right before an answer."
