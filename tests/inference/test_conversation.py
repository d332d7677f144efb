"""The one loop: the model's turns, and between them what tools say."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import pytest

from glmtune.config import GenerationSettings
from glmtune.inference import conversation as module
from glmtune.inference.completion import Completion, Delta, Request
from glmtune.inference.conversation import MOST_ROUNDS, Conversation, Exchange
from glmtune.inference.engine import Engine
from glmtune.messages import make_tool_call
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings
from glmtune.tools.calculator import Calculator

GREEDY = GenerationSettings(max_new_tokens=12, batch_size=3)
Says = Callable[[list[Any]], str]


class Scripted(Engine):
    """An engine that answers by a function of the messages; `call X` is a call of the calculator."""

    def __init__(self, says: Says, reason: str = "stop", limit: int = 99) -> None:
        self.says, self.reason, self.limit = says, reason, limit
        self.tokenizer = None  # type: ignore[assignment]
        self.prompts: list[list[Any]] = []
        self.calls = 0

    def encode(self, tokenizer: Any, prompt: Any, tools: Any, *others: Any) -> list[int]:
        self.prompts.append([prompt] if isinstance(prompt, str) else [message["content"] for message in prompt])
        return [len(self.prompts) - 1] * len(self.prompts[-1])

    def write(self, request: Request) -> Completion:
        text = self.says(self.prompts[request.input_ids[0]])
        return Completion(text, [1], len(request.input_ids), self.reason)  # type: ignore[arg-type]

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """The latest first; who asks on is answered in the same call."""
        self.calls += 1
        done: set[int] = set()
        while waiting := [index for index in range(len(requests)) if index not in done]:
            done.add(waiting[-1])
            if not requests[waiting[-1]].cancellation.is_set():
                yield waiting[-1], self.write(requests[waiting[-1]])

    def stream(self, request: Request) -> Generator[Delta, None, Completion | None]:
        if request.cancellation.is_set():
            return None
        completion = self.write(request)
        yield from (Delta(character, [1]) for character in completion.text)
        return completion


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scripted]:
    """`scripted(says)`: an engine whose words need no tokenizer."""

    def make(says: Says, **options: Any) -> Scripted:
        engine = Scripted(says, **options)
        parsed: dict[bool, Any] = {
            True: lambda text: {"tool_calls": [make_tool_call("calculate", {"expression": text[5:]})]},
            False: lambda text: {},
        }

        def parse(tokenizer: Any, prompt: Sequence[int], ids: Any, tools: Any) -> dict[str, Any]:
            text = engine.says(engine.prompts[prompt[0]])
            called = parsed[text.startswith("call ")](text)
            return {"role": "assistant", "content": "" if called else text, **called}

        monkeypatch.setattr(module, "encode_within", engine.encode)
        monkeypatch.setattr(module, "encode_prompt", engine.encode)
        monkeypatch.setattr(module, "parse_answer", parse)
        return engine

    return make


def counts_down(said: list[str]) -> str:
    """To `3`: three calls, each of the number of turns so far, and `done`."""
    turns = len(said) // 2
    return "done" if turns == int(said[0]) else f"call {turns}+1"


def heard(stream: Any) -> tuple[list[Any], Exchange | None]:
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


def test_tools_answer_until_the_model_does(scripted: Callable[..., Scripted]) -> None:
    """Each question goes on by itself; nobody calls for ever."""
    engine = scripted(counts_down)
    conversation = Conversation(engine, [Calculator()])
    questions = [conversation.ask(prompt, GREEDY) for prompt in ("1", "0", "9", "2")]
    found = dict(conversation.answer(questions))
    assert [found[index].text for index in range(4)] == ["done", "done", "", "done"]
    assert [found[index].completion.finish_reason for index in range(4)] == ["stop", "stop", "tool_calls", "stop"]
    assert [len(found[index].tool_calls) for index in range(4)] == [1, 0, MOST_ROUNDS, 2]
    assert engine.calls == 1
    # The model's turns in tokens: the first is what was asked, each later one saw two messages more.
    assert found[0].turns[0] == (questions[0].request.input_ids, [1])
    assert [[len(turn.input_ids) for turn in found[index].turns] for index in range(4)] == [
        *([1, 3], [1], [1, 3, 5, 7], [1, 3, 5])
    ]
    assert found[0].messages == [
        {"role": "assistant", "content": "", "tool_calls": [make_tool_call("calculate", {"expression": "0+1"})]},
        {"role": "tool", "name": "calculate", "content": "1"},
        {"role": "assistant", "content": "done"},
    ]


@pytest.mark.parametrize("prompt", ["0", "2", "9"])
def test_a_stream_goes_the_same_way(scripted: Callable[..., Scripted], prompt: str) -> None:
    conversation = Conversation(scripted(counts_down), [Calculator()])
    question = conversation.ask(prompt, GREEDY)
    [(_, expected)] = conversation.answer([question])
    pieces, found = heard(conversation.stream(question))
    assert found == expected
    assert [piece for piece in pieces if isinstance(piece, dict)] == [
        m for m in expected.messages if m["role"] == "tool"
    ]
    texts = "".join(piece.text if isinstance(piece, Delta) else f"({piece['content']})" for piece in pieces)
    assert texts.endswith(expected.completion.text if prompt != "9" else "call 3+1(4)")


def test_without_room_it_ends(scripted: Callable[..., Scripted]) -> None:
    conversation = Conversation(scripted(counts_down, limit=12 + 4), [Calculator()])
    [(_, found)] = conversation.answer([conversation.ask("9", GREEDY)])
    assert len(found.tool_calls) == 2 and found.text == "" and found.completion.finish_reason == "tool_calls"


def test_what_was_cut_off_calls_nothing(scripted: Callable[..., Scripted]) -> None:
    conversation = Conversation(scripted(counts_down, reason="length"), [Calculator()])
    [(_, found)] = conversation.answer([conversation.ask("9", GREEDY)])
    assert (found.text, found.completion.finish_reason, found.tool_calls) == ("call 0+1", "length", [])


def test_calls_of_tools_that_are_not_here_are_for_others(scripted: Callable[..., Scripted]) -> None:
    """Offered, they end the turn; not offered, they are text as well."""
    conversation = Conversation(scripted(counts_down))
    for tools, text, reason in (([Calculator().definition()], "", "tool_calls"), ([], "call 0+1", "stop")):
        [(_, found)] = conversation.answer([conversation.ask("9", GREEDY, tools)])
        assert (found.text, found.completion.finish_reason) == (text, reason)
        assert len(found.messages) == len(found.tool_calls) == 1


def test_a_refusal_ends_it(scripted: Callable[..., Scripted]) -> None:
    def refuses(prompt: Any, turn: Any) -> str | None:
        return "enough" if len(prompt) == 3 else None

    conversation = Conversation(scripted(counts_down), [Calculator()], refuses)
    for prompt, calls in (("9", 2), ("1", 1)):
        question = conversation.ask(prompt, GREEDY)
        [(_, found)] = conversation.answer([question])
        assert (found.refusal, found.text, len(found.messages), len(found.tool_calls)) == ("enough", "", 3, calls)
        assert heard(conversation.stream(question))[1] == found


def test_who_is_cancelled_gets_nothing(scripted: Callable[..., Scripted]) -> None:
    conversation = Conversation(scripted(counts_down), [Calculator()])
    questions = [conversation.ask(prompt, GREEDY) for prompt in ("2", "1", "0")]
    questions[1].request.cancellation.set()
    assert sorted(dict(conversation.answer(questions))) == [0, 2]
    assert heard(conversation.stream(questions[1])) == ([], None)


def test_prompts_that_are_encoded_already(tiny: tuple[Any, Any]) -> None:
    conversation = Conversation(Engine(*tiny))
    asked = conversation.ask("1+2=", GREEDY, seed=3, logprobs=True)
    assert conversation.ask("1+2=", GREEDY, input_ids=asked.request.input_ids, seed=3, logprobs=True) == asked
    [(_, found)] = conversation.answer([asked])
    assert found.completion.logprobs is not None
    assert found.text == Engine(*tiny).answer(["1+2="], GREEDY)[0].text


def test_a_model_calls_its_calculator(tiny: tuple[Any, Any], says: Callable[..., None]) -> None:
    """By its template's own form, from its tokens."""
    task = Arithmetic(ArithmeticSettings(name="arithmetic", style="tool"))
    conversation = Conversation.about(task, Engine(*tiny))
    call = tiny[1].tokenize('calculate("6*7")')
    for stream in (False, True):
        says(*call, "<eop>", "4", "2", "<eop>")
        question = conversation.ask("6*7=", GenerationSettings(max_new_tokens=40))
        found = heard(conversation.stream(question))[1] if stream else dict(conversation.answer([question]))[0]
        assert found is not None
        assert (found.text, found.completion.finish_reason, found.refusal) == ("42", "stop", None)
        assert found.tool_calls == [make_tool_call("calculate", {"expression": "6*7"})]
        assert [message["content"] for message in found.messages if message["role"] == "tool"] == ["42"]
