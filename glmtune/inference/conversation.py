"""The one conversation loop: the model's turns, and between them what tools say to its calls."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.data.parsing import parse_answer
from glmtune.inference.completion import Answering, Completion, Delta, Request
from glmtune.inference.prompts import encode_within, has_room, with_room
from glmtune.inference.reading import before_stop
from glmtune.messages import Message, Prompt, as_messages
from glmtune.tasks import Task
from glmtune.tools import Tool, answer_call

MOST_ROUNDS = 4  # turns of the model to one prompt


@dataclass(frozen=True)
class Question:
    """A prompt, and the request that it is encoded to.

    Attributes:
        prompt: a text, or messages.
        request: holds the prompt's token ids, and the settings with room for the model's first turn.
        settings: how to decode, as they were asked for; they count for all turns of the model.
        tools: definitions of the tools that the prompt offers.
        is_raw: the prompt is a text to be gone on with; so is the answer, in which nothing is looked for.
    """

    prompt: Prompt
    request: Request
    settings: GenerationSettings
    tools: Sequence[dict[str, Any]] = ()
    is_raw: bool = False


class Turn(NamedTuple):
    """A turn of the model in tokens: what it was asked, all that came before it, and what it wrote."""

    input_ids: Sequence[int]
    token_ids: Sequence[int]


@dataclass(frozen=True)
class Exchange:
    """How a conversation went on.

    Attributes:
        messages: those that were added: the model's turns, and what tools said.
        completion: the model's last turn.
        refusal: why the task refuses that turn; None where it does not.
        turns: the model's turns in tokens; what tools said is in what the next one was asked. Empty where nobody noted.
    """

    messages: Sequence[Message]
    completion: Completion
    refusal: str | None = None
    turns: Sequence[Turn] = field(default=(), compare=False)

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """All calls that the model made, in order."""
        return [call for message in self.messages for call in message.get("tool_calls", ())]

    @property
    def num_tokens(self) -> int:
        """How many tokens the model wrote; in its last turn alone where nobody noted the others."""
        if not self.turns:
            return len(self.completion.token_ids)
        return sum(len(turn.token_ids) for turn in self.turns)

    @property
    def text(self) -> str:
        """The answer; empty where it was refused, or where the last turn calls tools."""
        is_answer = self.refusal is None and self.completion.finish_reason != "tool_calls"
        return self.completion.text if is_answer else ""


class Conversation:
    """A model that may call tools.

    It goes on until the model answers, is cut off or is refused, there is no room for another turn, or it has had
    `MOST_ROUNDS` of them. Without tools to run, calls are left to whoever asked.
    """

    def __init__(
        self,
        engine: Answering,
        tools: Sequence[Tool] = (),
        refuses: Callable[[Prompt, Message], str | None] | None = None,
    ) -> None:
        """Let a model converse.

        Args:
            engine: answers.
            tools: run when they are called.
            refuses: says why a turn of the model is refused, by the messages before it (`Task.refuses`).
        """
        self.engine, self.tools, self.refuses = engine, tools, refuses

    @classmethod
    def about(cls, task: Task, engine: Answering) -> Conversation:
        """Return a conversation with the tools and the rules of a task."""
        return cls(engine, task.tools, task.refuses)

    def ask(
        self,
        prompt: Prompt,
        settings: GenerationSettings,
        tools: Sequence[dict[str, Any]] = (),
        input_ids: Sequence[int] | None = None,
        label: str = "The prompt",
        is_raw: bool = False,
        **request: Any,
    ) -> Question:
        """Return a question that is ready to be answered.

        Args:
            prompt: a text, or messages.
            settings: how to decode; without `max_new_tokens`, an answer may be as long as `with_room` says.
            tools: definitions of the tools that the prompt offers; default: those of this conversation.
            input_ids: of the prompt with its tools, where it is encoded already.
            label: what an error calls the prompt.
            is_raw: see `Question`.
            request: the other fields of the `Request`.

        Raises:
            UserError: the template does not take the prompt, or the prompt is too long for the model.
        """
        tools = self.offered(tools)
        if input_ids is None:
            least = settings.max_new_tokens or 1
            input_ids = encode_within(self.engine.tokenizer, prompt, tools, self.engine.limit, least, label)
        room = with_room(settings, len(input_ids), self.engine.limit)
        return Question(prompt, Request(input_ids, room, **request), settings, tools, is_raw)

    def offered(self, tools: Sequence[dict[str, Any]] = ()) -> Sequence[dict[str, Any]]:
        """Return definitions of the tools that a prompt offers: its own, else those of this conversation."""
        return tools or [tool.definition() for tool in self.tools]

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Exchange]]:
        """Answer questions together; each goes on by itself.

        Yields:
            (index of the question, its exchange), in the order in which they end; none for those that are cancelled.

        Raises:
            UserError: a prompt is too long for the model; told before any is answered.
        """
        talks = [self.talk(question, []) for question in questions]
        requests, asking = [next(talk) for talk in talks], [*range(len(talks))]
        for place, completion in self.engine.complete(requests):
            index = asking[place]
            try:
                following = talks[index].send(completion)
            except StopIteration as end:
                yield index, end.value
            else:
                requests.append(following)
                asking.append(index)

    def stream(self, question: Question) -> Generator[Delta | Message, None, Exchange | None]:
        """Answer a question piece by piece. Who stops listening stops the model.

        Yields:
            The model's turns in pieces, and whole messages of tools between them.

        Returns:
            The exchange; None if the question was cancelled.

        Raises:
            UserError: the prompt is too long for the model.
        """
        added: list[Message] = []
        talk = self.talk(question, added)
        request = next(talk)
        while (completion := (yield from self.engine.stream(request))) is not None:
            turns = len(added) + 1
            try:
                request = talk.send(completion)
            except StopIteration as end:
                yield from added[turns:]
                return end.value  # type: ignore[no-any-return]
            yield from added[turns:]
        return None

    def talk(self, question: Question, added: list[Message]) -> Generator[Request, Completion, Exchange]:
        """Go through a conversation, for who asks the model himself.

        Args:
            question: what is asked.
            added: gets the messages that the conversation adds.

        Yields:
            What the model is to be asked next; its answer is sent in.

        Returns:
            The exchange.
        """
        asked, request = as_messages(question.prompt), question.request
        turns: list[Turn] = []
        for _ in range(MOST_ROUNDS):
            completion = yield request
            turns.append(Turn(request.input_ids, completion.token_ids))
            turn = self._read(question, request, completion)
            refusal = self.refuses([*asked, *added], turn) if self.refuses else None
            added.append(turn)
            calls = turn.get("tool_calls", [])
            if calls and question.tools:
                completion = replace(completion, finish_reason="tool_calls")
            if refusal or not calls or not self.tools:
                return Exchange(added, completion, refusal, turns)
            added += [answer_call(self.tools, call) for call in calls]
            input_ids = encode_prompt(self.engine.tokenizer, [*asked, *added], question.tools)
            room = with_room(question.settings, len(input_ids), self.engine.limit)
            if not has_room(len(input_ids), self.engine.limit, room.longest):
                break
            request = replace(request, input_ids=input_ids, settings=room)
        return Exchange(added, completion, None, turns)

    def _read(self, question: Question, request: Request, completion: Completion) -> Message:
        """The model's turn as a message; what was cut off calls nothing."""
        turn: Message = {"role": "assistant", "content": completion.text}
        if completion.finish_reason == "length" or question.is_raw:
            return turn
        parsed = parse_answer(self.engine.tokenizer, request.input_ids, completion.token_ids, question.tools)
        if parsed.keys() <= turn.keys():
            return turn
        return {**parsed, "content": before_stop(str(parsed["content"] or ""), request.stop)}
