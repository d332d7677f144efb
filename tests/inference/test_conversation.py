"""Tools reply between the model's turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from glmtune.config import GenerationSettings
from glmtune.inference import conversation
from glmtune.inference.completion import Completion, Request
from glmtune.inference.conversation import MOST_ROUNDS, converse
from glmtune.tasks import Reply
from glmtune.tasks.arithmetic import question_in

GREEDY = GenerationSettings(max_new_tokens=12, batch_size=3)


class ByHand:
    """An engine that says `call 0`, `call 1` ... to prompts of one id, up to the number that is asked."""

    tokenizer, limit = None, 99

    def __init__(self) -> None:
        self.asked: list[list[Any]] = []

    def encode(self, tokenizer: Any, prompts: Sequence[Any], *others: Any) -> list[list[int]]:
        self.asked.append(list(prompts))
        return [[place] for place in range(len(prompts))]

    def complete(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        for index in reversed(range(len(requests))):
            prompt = self.asked[-1][requests[index].input_ids[0]]
            rounds = 0 if isinstance(prompt, str) else len(prompt) // 2
            text = "done" if rounds == int(question_in(prompt)) else f"call {rounds}"
            yield index, Completion(text, [1], 1, "stop")


def test_tools_reply_until_there_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt goes on by itself; what was said and replied is asked again, and nobody calls for ever."""

    def reply(prompt: Any, text: str) -> Reply | None:
        if text == "done":
            return None
        return Reply("no", ends=True) if question_in(prompt) == "2" and text == "call 1" else Reply(f"result of {text}")

    engine = ByHand()
    monkeypatch.setattr(conversation, "encode_prompts", engine.encode)
    monkeypatch.setattr(conversation, "encode_prompt", lambda tokenizer, messages: [0] * len(messages))
    monkeypatch.setattr(conversation, "has_room", lambda tokens, limit, longest: tokens < 9)
    found = dict(converse(engine, ["1", "0", "9", "2"], GREEDY, reply))  # type: ignore[arg-type]
    assert found == {0: "call 0\ndone", 1: "done", 2: "call 0\ncall 1\ncall 2\ncall 3", 3: "call 0\ncall 1\nno"}
    assert [len(prompts) for prompts in engine.asked] == [4, 3, 1, 1] and len(engine.asked) == MOST_ROUNDS
    assert engine.asked[1][0] == [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "call 0"},
        {"role": "tool", "content": "result of call 0"},
    ]
