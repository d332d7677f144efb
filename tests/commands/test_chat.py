"""`chat`: one question, questions from a pipe, and what is remembered."""

import io
from pathlib import Path
from typing import Any

import pytest

from glmtune.commands import chat
from glmtune.commands.chat import GREETING, Conversation
from glmtune.config import load_recipe
from glmtune.execution import Run
from glmtune.inference.completion import Delta
from glmtune.inference.engine import Engine
from glmtune.runtime import UserError


class Terminal(io.StringIO):
    """Somebody types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(tiny_run: Run) -> str:
    return str(tiny_run.folder.path)


@pytest.fixture
def expected(tiny: tuple[Any, Any], tiny_run: Run) -> Any:
    """What the run answers to a prompt."""
    generation = load_recipe(tiny_run.folder.recipe).generation
    return lambda prompt: Engine(*tiny).answer([prompt], generation)[0].text


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the model is asked; it always answers `yes, of course`."""
    asked: list[Any] = []

    def encode(tokenizer: Any, prompts: Any, *others: Any) -> Any:
        asked.append([message["content"] for message in prompts[0]])
        return [[1]]

    def stream(engine: Any, request: Any) -> Any:
        yield from (Delta("yes, ", [1]), Delta("of course", [2]))

    monkeypatch.setattr("glmtune.inference.prompts.encode_prompts", encode)
    monkeypatch.setattr(Engine, "stream", stream)
    return asked


def test_one_question(run: str, expected: Any, capsys: pytest.CaptureFixture[str]) -> None:
    chat.run(run, "1+2=")
    out, err = capsys.readouterr()
    assert out == expected("1+2=") + "\n"
    assert GREETING not in err


def test_piped_questions(
    run: str, expected: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One a line, blank lines passed over, without greeting and prompt; one that is too long ends nothing."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"1+2=\n\n  5*5  \n{'1' * 200}\n3\nstop\n7\n"))
    chat.run(run)
    out, err = capsys.readouterr()
    assert out == "".join(expected(prompt) + "\n" for prompt in ("1+2=", "5*5", "3"))
    assert "203 tokens" in err and "Type 'clear' to start anew" in err
    assert ">" not in err and GREETING not in err


def test_typed_questions(
    run: str, heard: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("is it?\n"))
    chat.run(run)
    out, err = capsys.readouterr()
    assert out == "yes, of course\n"
    assert err.endswith(f"{GREETING}\n> > ")
    assert heard == [["is it?"]]


@pytest.mark.parametrize("target", ["run", "model"])
@pytest.mark.parametrize("keep_history", [None, True, False])
def test_history(
    run: str, tiny_checkpoint: Path, heard: list[Any], monkeypatch: pytest.MonkeyPatch, target: str, keep_history: Any
) -> None:
    """Runs have learned single questions; models get what was said before, until it is cleared."""
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\nclear\nthree\n"))
    chat.run(run if target == "run" else str(tiny_checkpoint), keep_history=keep_history)
    remembers = keep_history or (keep_history is None and target == "model")
    second = ["one", "yes, of course", "two"] if remembers else ["two"]
    assert heard == [["one"], second, ["three"]]


def test_an_answer_that_was_cut_short_is_not_remembered(run: str, heard: list[Any]) -> None:
    conversation = Conversation(run, keep_history=True)
    next(conversation.ask("one"))
    assert conversation.messages == []
    assert "".join(conversation.ask("two")) == "yes, of course"
    assert heard == [["one"], ["two"]]


def test_settings_reach_the_model(run: str) -> None:
    conversation = Conversation(run, ["generation.max_new_tokens=1", "model.dtype=bfloat16"])
    assert str(conversation.model.dtype) == "torch.bfloat16"
    assert conversation.settings.max_new_tokens == 1 and len("".join(conversation.ask("1+2="))) <= 1


def test_a_question_too_long_is_told(run: str) -> None:
    with pytest.raises(UserError, match="203 tokens"):
        chat.run(run, "1" * 200)


def test_a_tool_replies_between_turns(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calculator's result is shown and asked about; what was said stays in the conversation."""
    asked: list[list[str]] = []

    def encode(tokenizer: Any, prompts: Any, *others: Any) -> Any:
        asked.append([message["content"] for message in prompts[0]])
        return [[1]]

    def stream(engine: Any, request: Any) -> Any:
        texts = ("cal", 'culate("6*7")') if len(asked[-1]) % 4 == 1 else (asked[-1][-1],)
        yield from (Delta(text, [1]) for text in texts)

    monkeypatch.setattr("glmtune.inference.prompts.encode_prompts", encode)
    monkeypatch.setattr(Engine, "stream", stream)
    conversation = Conversation(run, ["task.style=tool"], keep_history=True)
    assert "".join(conversation.ask("6*7=")) == 'calculate("6*7")\n42\n42'
    assert asked == [["6*7="], ["6*7=", 'calculate("6*7")', "42"]]
    assert "".join(conversation.ask("6×7")).endswith("42")
    assert [message["role"] for message in conversation.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ] * 2
    refusing = Conversation(run, ["task.style=tool", "task.unfaithful=refuse"])
    assert "".join(refusing.ask("5*7=")).endswith("refused: the call is not what was asked\n")


def test_an_empty_question_is_told(run: str) -> None:
    with pytest.raises(UserError, match="--question is empty"):
        chat.run(run, " ")
