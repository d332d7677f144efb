"""Answers that think first: what is thought and what is said, told apart while it is written."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from glmtune.data.parsing import find_response_template, parse_answer
from glmtune.inference.completion import Delta
from glmtune.inference.reading import HALF_CHARACTER, news
from glmtune.messages import Message

LAST = 32  # tokens of a prompt, among which a template may open the thoughts


class Parting:
    """Parts one turn of a model into its thoughts and its text.

    Attributes:
        thoughts, text: what was given out so far.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stop: Sequence[str], is_raw: bool = False
    ) -> None:
        """Begin.

        Args:
            tokenizer: whose response template says between which marks thoughts stand, if any.
            prompt: token ids.
            stop: texts that end the answer; where thoughts may hold them, all is given out at the end.
            is_raw: nothing is looked for.
        """
        template = {} if is_raw else find_response_template(tokenizer) or {}
        field = (template.get("fields") or {}).get("reasoning_content") or {}
        self.open, self.close = field.get("open", ""), field.get("close", "")
        self.tokenizer, self.prompt, self.stop = tokenizer, prompt, stop
        self.begun = ""
        if self.open:
            last = str(tokenizer.decode(list(prompt[-LAST:])))
            self.begun = self.open if last.rfind(self.open) > last.rfind(self.close) else ""
        self.token_ids: list[int] = []
        self.held = self.thoughts = self.text = ""

    def next(self, delta: Delta) -> tuple[str, str]:
        """Return the thoughts and the text that are new, once it is known which they are."""
        self.held += delta.text
        self.token_ids += delta.token_ids
        written = (self.begun + str(self.tokenizer.decode(self.token_ids))).lstrip() if self.open else ""
        if not self.open or (written and not self.open.startswith(written[: len(self.open)])):
            text, self.held, self.open = self.held, "", ""  # what did not begin with thoughts has none
            self.text += text
            return "", text
        if self.close not in written or self.stop:
            return "", ""
        found = parse_answer(self.tokenizer, self.prompt, self.token_ids)
        found["content"] = str(found["content"]).rstrip(HALF_CHARACTER)
        return self.rest(found) if "reasoning_content" in found else ("", "")

    def rest(self, message: Message) -> tuple[str, str]:
        """Return the thoughts and the text of a message that were not given out yet."""
        thoughts = news(self.thoughts, str(message.get("reasoning_content") or ""))
        text = news(self.text, str(message["content"] or ""))
        self.thoughts, self.text = self.thoughts + thoughts, self.text + text
        return thoughts, text
