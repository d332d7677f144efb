"""`chat`: one question, questions from a pipe, and what is remembered."""

import io
from pathlib import Path
from typing import Any

import pytest

from glmtune.commands import chat as verb
from glmtune.commands.chat import GREETING, Chat
from glmtune.config import load_recipe
from glmtune.execution import Run
from glmtune.inference.completion import Completion, Delta
from glmtune.inference.conversation import Conversation, Exchange
from glmtune.inference.engine import Engine
from glmtune.runtime import UserError
from glmtune.terminal import visible


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


class Heard(list[list[Any]]):
    """What a model is asked, each time the contents of all messages."""


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    """What the model is asked; it always answers `yes, of course`."""
    asked = Heard()

    def stream(conversation: Any, question: Any) -> Any:
        asked.append([message["content"] for message in question.prompt])
        yield from (Delta("yes, ", [1]), Delta("of course", [2]))
        said = {"role": "assistant", "content": "yes, of course"}
        return Exchange([said], Completion("yes, of course", [1, 2], 1, "stop"))

    monkeypatch.setattr(Conversation, "stream", stream)
    return asked


def test_one_question(run: str, expected: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb.run(run, "1+2=")
    out, err = capsys.readouterr()
    assert out == visible(expected("1+2=")) + "\n"
    assert GREETING not in err


def test_piped_questions(
    run: str, expected: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One a line, blank lines passed over, without greeting and prompt; one that is too long ends nothing."""
    monkeypatch.setattr("sys.stdin", io.StringIO(f"1+2=\n\n  5*5  \n{'1' * 200}\n3\nstop\n7\n"))
    verb.run(run)
    out, err = capsys.readouterr()
    assert out == "".join(visible(expected(prompt)) + "\n" for prompt in ("1+2=", "5*5", "3"))
    assert "203 tokens" in err and "Type 'clear' to start anew" in err
    assert ">" not in err and GREETING not in err


def test_bytes_that_are_no_text_end_nothing(
    run: str, heard: Heard, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one \xff\n\xed\xa0\xbd\ntwo\n"), encoding="utf-8"))
    verb.run(run)
    assert capsys.readouterr().err.count("half of a character") == 2
    assert heard == [["two"]]
    with pytest.raises(UserError, match="content: holds half of a character"):
        verb.run(run, "one \udcff")


def test_typed_questions(
    run: str, heard: Heard, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("is it?\n"))
    verb.run(run)
    out, err = capsys.readouterr()
    assert out == "yes, of course\n"
    assert err.endswith(f"{GREETING}\n> > ")
    assert heard == [["is it?"]]


@pytest.mark.parametrize("target", ["run", "model"])
@pytest.mark.parametrize("keep_history", [None, True, False])
def test_history(
    run: str, tiny_checkpoint: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch, target: str, keep_history: Any
) -> None:
    """Runs have learned single questions; models get what was said before, until it is cleared."""
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\nclear\nthree\n"))
    verb.run(run if target == "run" else str(tiny_checkpoint), keep_history=keep_history)
    remembers = keep_history or (keep_history is None and target == "model")
    second = ["one", "yes, of course", "two"] if remembers else ["two"]
    assert heard == [["one"], second, ["three"]]


def test_an_answer_that_was_cut_short_is_not_remembered(run: str, heard: Heard) -> None:
    chat = Chat(run, keep_history=True)
    next(chat.ask("one"))
    assert chat.messages == []
    assert "".join(chat.ask("two")) == "yes, of course"
    assert heard == [["one"], ["two"]]


def test_settings_reach_the_model(run: str) -> None:
    chat = Chat(run, ["generation.max_new_tokens=1", "model.dtype=bfloat16"])
    assert str(chat.model.dtype) == "torch.bfloat16"
    assert chat.settings.max_new_tokens == 1 and len("".join(chat.ask("1+2="))) <= 1


def test_a_question_too_long_is_told(run: str) -> None:
    with pytest.raises(UserError, match="203 tokens"):
        verb.run(run, "1" * 200)


def test_a_tool_answers_between_turns(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calculator's result is shown and asked about; what was said stays in the conversation."""
    asked: list[Any] = []

    def stream(engine: Any, request: Any) -> Any:
        asked.append(engine.tokenizer.decode(request.input_ids))
        text = "42" if asked[-1].count("42") else 'calculate("6*7")'
        ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
        yield from (Delta(text[:3], ids[:3]), Delta(text[3:], ids[3:]))
        return Completion(text, ids, len(request.input_ids), "stop")

    monkeypatch.setattr(Engine, "stream", stream)
    chat = Chat(run, ["task.style=tool"], keep_history=True)
    assert "".join(chat.ask("6*7=")) == 'calculate("6*7")\n42\n42'
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert 'calculate("6*7")' in asked[1] and len(asked) == 2
    assert "".join(chat.ask("again")) == "42" and len(chat.messages) == 6
    refusing = Chat(run, ["task.style=tool", "task.unfaithful=refuse"])
    assert "".join(refusing.ask("5*7=")).endswith("\nrefused: the call is not what was asked\n")


def test_an_empty_question_is_told(run: str) -> None:
    with pytest.raises(UserError, match="--question is empty"):
        verb.run(run, " ")
