"""GGUF files are asked through every llama.cpp alike; what goes wrong in one is told in a line. None is needed here."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf_tokenizers
import pytest

from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.inference.completion import Request
from glmtune.inference.llama_cpp import connections
from glmtune.inference.llama_cpp.engine import LlamaCppEngine
from glmtune.inference.llama_cpp.found import PACKAGES, find_llama_cpp
from glmtune.models.templates import adopt
from glmtune.runtime import UserError

STAND_INS = Path(__file__).parents[1] / "llama_cpp_stand_ins"
SERVER = STAND_INS / "llama-server"
KINDS = ["llama-server", *PACKAGES.values()]
Opens = Callable[..., LlamaCppEngine]


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All of them are installed."""
    monkeypatch.syspath_prepend(str(STAND_INS))
    monkeypatch.setenv("PYTHONPATH", str(STAND_INS))
    monkeypatch.setenv("PATH", os.pathsep.join([str(STAND_INS), str(Path(sys.executable).parent), os.environ["PATH"]]))
    names = {"llama_cpp", "gpt4all", "xllamacpp"}
    before = names & sys.modules.keys()  # of tests that compare with them
    yield
    assert names & sys.modules.keys() == before  # they run in a process of their own


@pytest.fixture
def open_file(tmp_path: Path, stand_ins: None) -> Iterator[Opens]:
    """`open_file("gpt4all", "crashing")`: an engine with a file of that name."""
    opened = []
    tokenizer = gguf_tokenizers.byte_level("llama")
    adopt(tokenizer, "plain")
    tokenizer.save_pretrained(tmp_path)

    def run(wish: str, name: str = "fine", limit: int | None = 128) -> LlamaCppEngine:
        file = tmp_path / f"{name}.gguf"
        file.touch()
        stops = [tokenizer.eos_token_id]
        opened.append(LlamaCppEngine(find_llama_cpp(wish), file, tokenizer, stops, limit, threads=1))
        return opened[-1]

    yield run
    for engine in opened:
        engine.close()


def request(engine: LlamaCppEngine, text: str = "40+2=", **settings: Any) -> Request:
    """A prompt that begins with the token that files may put there, too."""
    ids = [engine.tokenizer.bos_token_id, *encode_prompt(engine.tokenizer, text)]
    return Request(ids, GenerationSettings(**{"max_new_tokens": 8, **settings}))


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_asked_alike(kind: str, open_file: Opens) -> None:
    engine = open_file(kind)
    whole, cut, cancelled = request(engine), request(engine, max_new_tokens=1), request(engine)
    cancelled.cancellation.set()
    answers = dict(engine.complete([whole, cut, cancelled]))
    digits = engine.tokenizer("42", add_special_tokens=False)["input_ids"]
    assert sorted(answers) == [0, 1] and engine.differing == 0
    assert answers[0].text == "42" and list(answers[0].token_ids) == [*digits, engine.tokenizer.eos_token_id]
    assert (answers[0].prompt_tokens, answers[0].finish_reason) == (len(whole.input_ids), "stop")
    assert answers[1].finish_reason == ("length" if len(digits) > 0 else "stop")


def test_it_streams_in_one_piece(open_file: Opens) -> None:
    engine = open_file("llama-server")
    assert [delta.text for delta in engine.stream(request(engine))] == ["42"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unknown", r"cannot open .*unknown.gguf: .*unknown model architecture: 'huh'.* Name another with --engine"),
        ("crashing", r"cannot open .*crashing.gguf: it ended with SIGSEGV"),
        ("dying", r"stopped answering from .*dying.gguf: it ended with SIGSEGV"),
    ],
)
def test_what_goes_wrong_is_told(kind: str, name: str, message: str, open_file: Opens) -> None:
    engine = open_file(kind, name)
    with pytest.raises(UserError, match=message):
        list(engine.complete([request(engine)]))


def test_no_answer_is_told(open_file: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_file("gpt4all", "sleeping")
    engine._open(8)
    monkeypatch.setattr(connections, "PATIENCE", 0.5)
    with pytest.raises(UserError, match=r"stopped answering from .*sleeping.gguf: no answer within 0.5 seconds"):
        list(engine.complete([request(engine)]))


def test_other_tokens_are_told_once(open_file: Opens) -> None:
    engine = open_file("gpt4all", "misreading")
    with pytest.warns(UserWarning, match=r"reads a prompt as .* tokens .* for \['\+'") as told:
        list(engine.complete([request(engine), request(engine)]))
    assert engine.differing == 2 and len(told) == 1


def test_what_is_too_long_or_sampled_is_refused(open_file: Opens) -> None:
    engine = open_file("gpt4all", limit=8)
    with pytest.raises(UserError, match="Prompt 1 has"):
        list(engine.complete([request(engine)]))
    engine = open_file("gpt4all")
    with pytest.raises(UserError, match=r"generation.do_sample=true: GGUF files are asked"):
        list(engine.complete([request(engine, do_sample=True)]))


def test_a_server_that_runs_is_asked(open_file: Opens, tmp_path: Path) -> None:
    first = open_file("llama-server")
    list(first.complete([request(first)]))
    address: str = first.connection.address  # type: ignore[union-attr]
    engine = open_file(address)
    assert engine.found.name.startswith("llama-server at 127.0.0.1:")
    assert [answer.text for _, answer in engine.complete([request(engine)])] == ["42"]
    with pytest.raises(UserError, match=r"has room for 128 tokens, and prompts with their answers need 30\d. Start it"):
        list(open_file(address, limit=512).complete([request(engine, max_new_tokens=300)]))
    with pytest.raises(UserError, match=r"serves \S+/fine.gguf, not \S+/other.gguf. Start it: llama-server -m"):
        list(open_file(address, "other").complete([request(engine)]))
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UserError, match=r"serves \S+/fine.gguf, not \S+/elsewhere/fine.gguf. Start it"):
        list(open_file(address, "elsewhere/fine").complete([request(engine)]))
    first.close()
    with pytest.raises(UserError, match=r"cannot be asked: .* Start it: llama-server -m"):
        list(open_file(address).complete([request(engine)]))


def test_the_one_that_is_wished_for_is_found(stand_ins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_llama_cpp().binary == str(SERVER) == find_llama_cpp(str(SERVER)).binary
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert [find_llama_cpp(name).package for name in (None, "gpt4all")] == ["xllamacpp", "gpt4all"]
    for wish, message in {
        "llama-server": r"is not installed. Put it on the PATH",
        "gpt-4all": r"no such engine. Did you mean 'gpt4all'",
        "./llama-server": r"is no program that can be run",
        "http://": r"is no address of a server. Write it as http://localhost:8080",
        "ftp://host": r"is no address of a server",
        "http://host:99999": r"is no address of a server",
    }.items():
        with pytest.raises(UserError, match=f"--engine {wish}: {message}"):
            find_llama_cpp(wish)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"No llama.cpp is here .* pip install 'glmtune\[llama-cpp\]', or name"):
        find_llama_cpp()
    with pytest.raises(UserError, match=r"--engine gpt4all: is not installed. Install it: pip install gpt4all"):
        find_llama_cpp("gpt4all")
