"""`glmtune chat`: talk to a model in the terminal."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from glmtune.commands._arguments import add_settings, add_target, add_trust, trust_of
from glmtune.terminal import say
from glmtune.trust import REMEMBERED, Trust

if TYPE_CHECKING:
    from glmtune.inference.conversation import Exchange
    from glmtune.messages import Message
    from glmtune.resolution import Target

GREETING = (
    "Type a question. '/retry' asks the last one again, '/system TEXT' says how to answer from now on, 'clear' forgets "
    "the conversation, 'stop' or Ctrl-D ends it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model and the question."""
    add_target(parser)
    parser.add_argument("--question", "-q", help="answer this one question and exit")
    parser.add_argument(
        "--history",
        action=argparse.BooleanOptionalAction,
        help="send earlier turns along (default: not for runs, which learned single questions)",
    )
    add_trust(parser)
    add_settings(parser)


def main(options: argparse.Namespace) -> None:
    """Talk."""
    from glmtune.libraries import quiet_libraries

    quiet_libraries()
    run(options.target, options.question, options.settings, options.history, trust_of(options))


class Chat:
    """A model and what has been said to it.

    Attributes:
        messages: the turns so far, without the system's.
        system: what the model is told before them; empty: nothing.
        latest: the last question, and the turns before it.
    """

    def __init__(
        self,
        target: Target,
        overrides: Iterable[str] = (),
        keep_history: bool | None = None,
        trust: Trust = REMEMBERED,
    ):
        """Load the model.

        Args:
            target: run folder, adapter, checkpoint directory, GGUF file, hub name or `nano`.
            overrides: `section.setting=value` texts.
            keep_history: send earlier turns along. Default: for models yes; for runs no, they learned single questions.
            trust: what becomes of code that the target's recipe names.
        """
        from glmtune.config import LONG_ANSWER
        from glmtune.resolution import resolve

        resolved = resolve(target, overrides, trust)  # before torch is imported

        from glmtune.inference.conversation import Conversation
        from glmtune.inference.engine import Engine

        limit, generation = resolved.limit, resolved.recipe.generation
        room = generation.max_new_tokens or (min(LONG_ANSWER, limit // 2) if limit else LONG_ANSWER)
        self.settings = generation.model_copy(update={"max_new_tokens": room})
        self.keep_history = not resolved.has_recipe if keep_history is None else keep_history
        self.model, tokenizer = resolved.load()
        self.conversation = Conversation.about(resolved.task, Engine(self.model, tokenizer, limit))
        self.messages: list[Message] = []
        self.system = ""
        self.latest: tuple[str, list[Message]] | None = None

    def retry(self) -> Iterator[str]:
        """Ask the last question again, for another answer in the place of the last one; see `ask`.

        Raises:
            UserError: nothing was asked yet.
        """
        from glmtune.runtime import UserError

        if self.latest is None:
            raise UserError("/retry: nothing was asked yet.")
        question, self.messages = self.latest
        return self.ask(question, again=True)

    def ask(self, question: str, again: bool = False) -> Iterator[str]:
        """Yield the answer piece by piece; where a tool is called, its result stands between the model's turns.

        Args:
            question: of the user.
            again: sample, as the likeliest answer is known already.

        Raises:
            UserError: the conversation has become too long for the model.
        """
        from glmtune.inference.completion import Delta

        self.latest = question, self.messages
        asked: list[Message] = [*self.messages, {"role": "user", "content": question}]
        told: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        settings = self.settings.model_copy(update={"do_sample": True}) if again else self.settings
        stream = self.conversation.stream(self.conversation.ask([*told, *asked], settings))
        while True:
            try:
                piece = next(stream)
            except StopIteration as end:
                exchange: Exchange | None = end.value
                break
            yield piece.text if isinstance(piece, Delta) else f"\n{piece['content']}\n"
        if exchange is None:
            return
        if exchange.refusal is not None:
            yield f"\nrefused: {exchange.refusal}\n"
        if self.keep_history:
            # What was thought before is dropped by the templates of models that think.
            said = [
                {name: value for name, value in turn.items() if name != "reasoning_content"}
                for turn in exchange.messages
            ]
            self.messages = [*asked, *said]


def run(
    target: Target,
    question: str | None = None,
    overrides: Iterable[str] = (),
    keep_history: bool | None = None,
    trust: Trust = REMEMBERED,
) -> None:
    """Answer one question, or all that are typed (or piped in, one a line).

    Raises:
        UserError: no such model.
    """
    from glmtune.runtime import UserError

    if question is not None and not question.strip():
        raise UserError("--question is empty. Write the question behind it, or leave it out to type questions.")
    chat = Chat(target, overrides, keep_history, trust)
    if question is not None:
        answer(chat.ask(question))
        return
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are no text are a question that is refused, not an end
        sys.stdin.reconfigure(errors="surrogateescape")
    typing = sys.stdin.isatty()
    if typing:
        say(GREETING, error=True)
    while True:
        if typing:
            say("> ", end="", error=True)
        line = sys.stdin.readline()
        if not line or line.strip() in ("stop", "/stop"):
            return
        if line.strip():
            try:
                obey(chat, line.strip())
            except UserError as error:
                say(f"{error} Type 'clear' to start anew.", error=True)


def obey(chat: Chat, line: str) -> None:
    """Do what a line says: a command, or a question."""
    word, _, rest = line.partition(" ")
    if line in ("clear", "/clear"):
        chat.messages, chat.latest = [], None
    elif word == "/system":
        chat.system = rest.strip()
    elif line == "/retry":
        answer(chat.retry())
    else:
        answer(chat.ask(line))


def answer(pieces: Iterable[str]) -> None:
    """Print an answer as it comes."""
    for piece in pieces:
        say(piece, end="")
    say()
