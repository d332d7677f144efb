"""What is served is what is predicted, whoever else asks, and a row that goes leaves the others alone."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import glmtune
from glmtune.config import GenerationSettings
from glmtune.execution import Run
from glmtune.inference.batch import Batch
from glmtune.inference.completion import Request
from glmtune.inference.reading import AnswerReader
from glmtune.inference.rows import Row
from glmtune.messages import make_tool_call
from glmtune.resolution import resolve
from glmtune.serving.asking import Accepted, Asked, Ended, Format, Load, Piece, RefusedError, Said
from glmtune.serving.service import ModelService, Sizes
from glmtune.serving.worker import FailedError, Ticket, Worker
from glmtune.tools.calculator import Calculator

SUB = {"type": "function", "function": {"name": "sub", "parameters": {"type": "object", "properties": {}}}}
PROMPTS = ["1+2=", "12.5+7", "3", "99.25-1.75*3=", "100/7=", "5*5", "1+1+1", "2"]


@pytest.fixture(scope="module")
def base_and_run(tiny_run: Run, tiny_checkpoint: Path) -> Iterator[ModelService]:
    """A service of a base, by the name `base`, and a run on it, by the name `run`. No test may end it."""
    service = ModelService(Sizes(slots=3, max_queue=50))
    service.add("base", resolve(tiny_checkpoint))
    service.add("run", resolve(tiny_run.folder.path))
    service.start()
    yield service
    service.close()


async def events(service: ModelService, asked: Asked) -> list[Any]:
    return [event async for event in service.answer(asked)]


async def answer(service: ModelService, asked: Asked) -> str:
    """The whole of one answer, put together from its pieces."""
    first, *pieces, last = await events(service, asked)
    assert isinstance(first, Accepted) and isinstance(last, Ended)
    text = "".join(piece.text for piece in pieces)
    assert text == last.message["content"]
    return text


def predicted(target: Any, prompts: list[str]) -> list[str]:
    return [exchange.text for exchange in glmtune.predict(target, prompts, {"generation.max_new_tokens": 12})]


def test_served_is_predicted(base_and_run: ModelService, tiny_run: Run, tiny_checkpoint: Path) -> None:
    """Base and adapter in turns, in one queue."""
    asked = [Asked(name, prompt, max_tokens=12) for prompt in PROMPTS for name in ("base", "run")]

    async def ask() -> list[str]:
        return await asyncio.gather(*(answer(base_and_run, one) for one in asked))

    found = asyncio.run(ask())
    assert found[::2] == predicted(tiny_checkpoint, PROMPTS)
    assert found[1::2] == predicted(tiny_run.folder.path, PROMPTS)
    assert found[::2] != found[1::2]
    assert len(base_and_run.hosts) == 1


def test_answers_of_one_question_are_of_their_seeds(base_and_run: ModelService) -> None:
    many = Asked("run", "12.5+7", n=3, temperature=5.0, seed=7, max_tokens=8, logprobs=True, top_logprobs=2)

    async def ask() -> tuple[list[Any], list[list[Any]]]:
        alone = [await events(base_and_run, replace(many, n=1, seed=7 + number)) for number in range(3)]
        return await events(base_and_run, many), alone

    together, alone = asyncio.run(ask())
    ends = {event.index: event for event in together if isinstance(event, Ended)}
    assert [ends[number].message for number in range(3)] == [one[-1].message for one in alone]
    assert len({ends[number].message["content"] for number in range(3)}) > 1
    for number in range(3):
        pieces = [event for event in together if isinstance(event, Piece) and event.index == number]
        assert sum(len(piece.token_ids) for piece in pieces) == ends[number].completion_tokens
        assert all(len(best) == 2 for piece in pieces for best in piece.top_logprobs)


def test_who_stops_listening_frees_a_slot(base_and_run: ModelService) -> None:
    """Others are answered as if nothing had been."""

    async def ask() -> list[str]:
        listening = base_and_run.answer(Asked("base", "1", max_tokens=100))
        await anext(listening)
        await anext(listening)
        others = [asyncio.create_task(answer(base_and_run, Asked("base", one, max_tokens=12))) for one in PROMPTS]
        await asyncio.sleep(0)
        await listening.aclose()
        return await asyncio.gather(*others)

    alone = asyncio.run(ask())
    assert alone == asyncio.run(ask())
    assert base_and_run.load() == Load(0, 0, 0)


@pytest.mark.parametrize(
    ("asked", "status", "field", "message"),
    [
        (Asked("runn", "1"), 404, "model", "no model 'runn'; there are: base, run"),
        (Asked("run", "1" * 200), 400, "messages", "has 203 tokens; the model takes 128"),
        (Asked("run", "1", max_tokens=126), 400, "messages", "an answer of 126; the model takes 128"),
        (Asked("run", [3, 10**9], is_raw=True), 400, "prompt", "1000000000 is no token id"),
        (Asked("run", [3], is_raw=True, max_tokens=3), 400, "prompt", "needs .gMASK."),
        (Asked("run", "1", tool_choice="add", tools=[SUB]), 400, "tool_choice", "no tool 'add'; there are: sub"),
        (Asked("run", "1", tool_choice="required", tools=[SUB]), 400, "tool_choice", "nano knows no tool"),
        (Asked("run", "1", tools=[SUB]), 400, "tools", "glmtune serve --set data.template=NAME"),
    ],
)
def test_what_cannot_be_asked(base_and_run: ModelService, asked: Asked, status: int, field: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message) as refused:
        asyncio.run(events(base_and_run, asked))
    assert (refused.value.status, refused.value.field) == (status, field)


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("form", "is_so"),
    [
        (Format("json_schema", SCHEMA), lambda text: isinstance(json.loads(text)["n"], int)),
        (Format("regex", "[ab]{3,5}c"), lambda text: re.fullmatch("[ab]{3,5}c", text)),
    ],
)
def test_an_answer_of_a_form(base_and_run: ModelService, form: Format, is_so: Any) -> None:
    """Of a model that has never seen such; beside others, who say what they say."""

    async def ask() -> list[str]:
        plain = [answer(base_and_run, Asked("base", prompt, max_tokens=12)) for prompt in PROMPTS[:3]]
        return await asyncio.gather(answer(base_and_run, Asked("base", "1", format=form, max_tokens=100)), *plain)

    found, *others = asyncio.run(ask())
    assert is_so(found)
    assert others == [asyncio.run(answer(base_and_run, Asked("base", one, max_tokens=12))) for one in PROMPTS[:3]]


def test_an_answer_of_a_form_has_no_other_end(base_and_run: ModelService) -> None:
    with pytest.raises(RefusedError, match="Leave `stop` out"):
        asyncio.run(events(base_and_run, Asked("base", "1", format=Format("regex", "[ab]+c"), stop=["a"])))


@pytest.mark.parametrize("is_raw", [False, True])
def test_who_offers_no_tools_is_called_by_none(
    base_and_run: ModelService, monkeypatch: pytest.MonkeyPatch, is_raw: bool
) -> None:
    calls = [make_tool_call("calculate", {"expression": "1+1"})]
    parsed = {"role": "assistant", "content": "", "tool_calls": calls}
    monkeypatch.setattr("glmtune.inference.conversation.parse_answer", lambda *_: parsed)
    monkeypatch.setattr(AnswerReader, "ends_stopped", lambda _, ids, __: len(ids) == 3)
    prompt: Any = base_and_run.encode(Asked("base", "1")) if is_raw else "1"
    first, *pieces, last = asyncio.run(events(base_and_run, Asked("base", prompt, is_raw, max_tokens=9)))
    assert "tool_calls" not in last.message and last.finish_reason == "stop" and isinstance(first, Accepted)
    assert last.message["content"] == "".join(piece.text for piece in pieces) != ""


def test_tools_that_are_run_here(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turns between are told, and text is that of the last one; who calls for ever is cut off."""
    service = ModelService(Sizes(slots=2), [Calculator()])
    service.add("base", resolve(tiny_checkpoint))
    turns = iter([("", "1+1"), ("", "2+2"), ("", None)] + [("", "3")] * 9)

    def parse(*_: Any) -> Any:
        text, expression = next(turns)
        calls = {"tool_calls": [make_tool_call("calculate", {"expression": expression})]} if expression else {}
        return {"role": "assistant", "content": text, **calls}

    monkeypatch.setattr("glmtune.inference.conversation.parse_answer", parse)
    service.start()

    async def ask() -> tuple[list[Any], list[Any]]:
        asked = Asked("base", [{"role": "user", "content": "1"}], max_tokens=3)
        monkeypatch.setattr(AnswerReader, "ends_stopped", lambda *_: True)  # each turn is whole after a token
        return await events(service, asked), await events(service, asked)

    first, second = asyncio.run(ask())
    service.close()
    said = [event.message for event in first if isinstance(event, Said)]
    assert [one["content"] for one in said if one["role"] == "tool"] == ["2", "4"]
    assert "".join(event.text for event in first if isinstance(event, Piece)) == first[-1].message["content"] != ""
    assert (first[-1].finish_reason, second[-1].finish_reason) == ("stop", "length")


def test_a_full_queue(tiny_checkpoint: Path) -> None:
    service = ModelService(Sizes(slots=1, max_queue=2))
    service.add("base", resolve(tiny_checkpoint))

    async def ask() -> list[Any]:
        tasks = [asyncio.create_task(answer(service, Asked("base", "1", max_tokens=2))) for _ in range(4)]
        await asyncio.sleep(0)
        service.start()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(ask())
    service.close()
    assert [isinstance(one, str) for one in found] == [True, True, False, False]
    assert (found[2].status, found[2].retry_after) == (429, 1)


def test_a_step_that_fails_touches_those_in_it_alone(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that the model chokes on fails by itself; a step of decoding fails for those who were in it."""
    service = ModelService(Sizes(slots=4, max_queue=50))
    service.add("base", resolve(tiny_checkpoint))
    expected = predicted(tiny_checkpoint, PROMPTS)
    join, decode, broken = Batch.join, Batch.decode, iter([True])

    def choke(batch: Batch, group: Any) -> None:
        if any(len(row.request.input_ids) == 40 for row in group):
            raise RuntimeError("bad prompt")
        join(batch, group)

    def fail(batch: Batch) -> None:
        if len(batch.running) == 3 and next(broken, False):
            raise RuntimeError("bad step")
        decode(batch)

    async def ask() -> tuple[list[Any], list[Any]]:
        first = [
            asyncio.create_task(answer(service, Asked("base", one, max_tokens=12))) for one in (*PROMPTS, "1" * 37)
        ]
        await asyncio.sleep(0)
        service.start()
        choked = await asyncio.gather(*first, return_exceptions=True)
        monkeypatch.setattr(Batch, "decode", fail)
        second = [asyncio.create_task(answer(service, Asked("base", one, max_tokens=12))) for one in PROMPTS[:3]]
        return choked, await asyncio.gather(*second, return_exceptions=True)

    monkeypatch.setattr(Batch, "join", choke)
    choked, failed = asyncio.run(ask())
    assert choked[:-1] == expected and isinstance(choked[-1], Exception)
    assert service.fault is None
    again = asyncio.run(answer(service, Asked("base", PROMPTS[0], max_tokens=12)))
    service.close()
    assert again == expected[0]
    assert all(isinstance(one, FailedError) for one in failed)


def test_the_end_is_told(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = ModelService(Sizes(slots=1))
    service.add("base", resolve(tiny_checkpoint))

    async def ask() -> list[Any]:
        tasks = [asyncio.create_task(answer(service, Asked("base", "1", max_tokens=100))) for _ in range(2)]
        await asyncio.sleep(0)
        service.start()
        await asyncio.to_thread(service.close)
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [one.status for one in asyncio.run(ask()) if isinstance(one, RefusedError)] == [503, 503]


def test_who_waits_and_leaves_is_forgotten(tiny_checkpoint: Path) -> None:
    """Behind one who waits for long, too: what nobody waits for takes no memory."""
    service = ModelService(Sizes(slots=1, max_queue=50))
    service.add("base", resolve(tiny_checkpoint))
    batch = service.worker.seats["base"].batch

    async def ask() -> tuple[int, Load]:
        asked = Asked("base", "1", max_tokens=100)
        going, waiting, *leaving = [service.answer(asked) for _ in range(20)]
        for answers in (going, waiting, *leaving):
            await anext(answers)
        for answers in leaving:
            await answers.aclose()
        service.start()
        for _ in range(2):
            await anext(going)
        found = len(batch.waiting), service.load()
        for answers in (going, waiting):
            await answers.aclose()
        return found

    waiting, load = asyncio.run(ask())
    service.close()
    assert waiting == load.waiting == 1


def test_a_turn_that_goes_on_is_not_refused(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However full the queue has become since the answer began."""
    service = ModelService(Sizes(slots=1), [Calculator()])
    service.add("base", resolve(tiny_checkpoint))
    turns = iter([[make_tool_call("calculate", {"expression": "1+1"})], None])

    def parse(*_: Any) -> Any:
        calls = next(turns)
        return {"role": "assistant", "content": "", **({"tool_calls": calls} if calls else {})}

    monkeypatch.setattr("glmtune.inference.conversation.parse_answer", parse)
    monkeypatch.setattr(AnswerReader, "ends_stopped", lambda *_: True)  # each turn is whole after a token
    service.start()

    async def ask() -> list[Any]:
        answers = service.answer(Asked("base", [{"role": "user", "content": "1"}], max_tokens=3))
        await anext(answers)
        service.worker.max_queue = 0
        return [event async for event in answers]

    found = asyncio.run(ask())
    service.close()
    assert isinstance(found[-1], Ended) and any(isinstance(event, Said) for event in found)


def test_nothing_is_done_where_the_worker_has_died(
    tiny_checkpoint: Path, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waited for it is told, and who asks later."""
    service = ModelService(Sizes(slots=1))
    service.add("base", resolve(tiny_checkpoint))

    def die(_: Worker) -> bool:
        raise MemoryError

    async def ask() -> list[Any]:
        monkeypatch.setattr(Worker, "take", die)
        pending = service.worker.do(lambda: None)
        service.start()
        loading = service.load_adapter("run", str(tiny_run.folder.path))
        return await asyncio.wait_for(asyncio.gather(pending, loading, return_exceptions=True), 20)

    found = asyncio.run(ask())
    assert [(type(one), one.status) for one in found] == [(RefusedError, 503)] * 2
    assert "MemoryError" in str(found[0])


def test_a_run_without_a_report_is_not_looked_at_and_says_so(tiny_run: Run, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_run.folder.path, tmp_path / "run"))
    (folder / "report.json").unlink()
    service = ModelService(Sizes())
    assert service.check(service.add("run", resolve(folder))) is None
    (info,) = service.models()
    assert info.is_ready and "no report" in info.remark


def test_adapters_come_and_go(tiny_run: Run, tiny_checkpoint: Path) -> None:
    service = ModelService(Sizes(slots=2))
    service.add("base", resolve(tiny_checkpoint))
    service.start()

    async def ask() -> list[str]:
        await service.load_adapter("run", str(tiny_run.folder.path))
        tuned = await answer(service, Asked("run", PROMPTS[0], max_tokens=12))
        with pytest.raises(RefusedError, match="asked already"):
            await service.load_adapter("run", str(tiny_run.folder.path))
        with pytest.raises(RefusedError, match="no adapter of a base"):
            await service.load_adapter("other", str(tiny_checkpoint))
        with pytest.raises(RefusedError, match="no such folder here"):
            await service.load_adapter("other", "someone/adapter")
        with pytest.raises(RefusedError, match="named when the server began"):
            await service.unload_adapter("base")
        first, second = await asyncio.gather(
            service.unload_adapter("run"), service.unload_adapter("run"), return_exceptions=True
        )
        assert first is None and isinstance(second, RefusedError) and second.status == 404
        with pytest.raises(RefusedError, match="no model 'run'"):
            await answer(service, Asked("run", PROMPTS[0]))
        base = await answer(service, Asked("base", PROMPTS[0], max_tokens=12))
        await service.load_adapter("again", str(tiny_run.folder.path))
        again = await answer(service, Asked("again", PROMPTS[0], max_tokens=12))
        return [tuned, base, again, await answer(service, Asked("base", PROMPTS[0], max_tokens=12))]

    found = asyncio.run(ask())
    service.close()
    assert found == [predicted(target, PROMPTS[:1])[0] for target in (tiny_run.folder.path, tiny_checkpoint)] * 2


def test_adapters_are_loaded_by_the_settings_of_the_server(tiny_run: Run, tiny_checkpoint: Path) -> None:
    settings = ["model.attention=eager"]
    service = ModelService(Sizes(slots=2), settings=settings)
    service.add("base", resolve(tiny_checkpoint, settings))
    service.start()
    asyncio.run(service.load_adapter("run", str(tiny_run.folder.path)))
    service.close()
    assert [(model.name, model.parent) for model in service.models()] == [("base", None), ("run", "base")]


def test_adapters_have_no_parent_where_no_base_is_asked(tiny_run: Run) -> None:
    service = ModelService(Sizes(slots=2))
    for name in ("one", "two"):
        service.add(name, resolve(tiny_run.folder.path))
    assert [model.parent for model in service.models()] == [None, None] and len(service.hosts) == 1


@pytest.mark.parametrize(("count", "pause"), [(1, 0.04), (16, 0.04), (64, 0.16)])
def test_how_often_answers_are_told(
    base_and_run: ModelService, monkeypatch: pytest.MonkeyPatch, count: int, pause: float
) -> None:
    """25 times a second each, and 400 times all together; the end at once."""
    told: list[int] = []

    class Loop:
        def call_soon_threadsafe(self, _: Any, news: list[Any]) -> None:
            told.append(len(news))

    now = [100.0]
    monkeypatch.setattr("glmtune.serving.worker.time.monotonic", lambda: now[0])
    worker, reader = Worker(count), base_and_run.served["base"].engine.reader
    rows = [Row(Request([1], GenerationSettings()), reader) for _ in range(count)]
    loop: Any = Loop()
    worker.tickets = {row: Ticket(row, "base", loop) for row in rows}
    for seconds in (0, pause - 0.001, pause + 0.001):
        now[0] = 100 + seconds
        worker.tell(rows)
    assert told == [count, count]
    rows[0].has_ended = True
    worker.tell(rows)
    assert told == [count, count, 1]
