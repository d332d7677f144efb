"""The models of a server: what clients ask becomes requests, and what the model writes becomes events."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.config import GenerationSettings, read_yaml
from glmtune.data.encoding import encode_prompt
from glmtune.inference.completion import Completion, Delta, Request
from glmtune.inference.conversation import Conversation, Exchange, Question
from glmtune.inference.engine import Engine
from glmtune.inference.prompts import has_room
from glmtune.messages import Message, Prompt, ToolCall
from glmtune.resolution import ResolvedModel, resolve
from glmtune.runtime import RunFolder, UserError
from glmtune.serving.asking import Accepted, Asked, Ended, Event, Load, Piece, RefusedError, Said, ServedModel
from glmtune.serving.hosting import Host, Key, key_of
from glmtune.serving.worker import Seat, Ticket, Worker
from glmtune.tools import Tool

MOST_PROBLEMS = 20  # of a run's report that are asked again before it is served


@dataclass(frozen=True)
class Sizes:
    """How much a server takes in at once.

    Attributes:
        slots: answers at a time, of one model.
        max_queue: requests that may wait for a slot.
        max_model_len: tokens that prompt and answer may have together; None: what the model states.
        max_tokens: of prompts and answers in flight, of one model; None: as many as they like.
    """

    slots: int = 16
    max_queue: int = 256
    max_model_len: int | None = None
    max_tokens: int | None = None


@dataclass(eq=False)
class Served:
    """A model with a name.

    Attributes:
        info: what clients are told of it.
        resolved: what it was made of.
        engine: encodes, and reads answers; the worker decodes.
        conversation: with the tools that are run here.
        host: its base.
        adapter: what the base's host activates it by.
        is_fixed: named when the server began.
    """

    info: ServedModel
    resolved: ResolvedModel
    engine: Engine
    conversation: Conversation
    host: Host
    adapter: str | None
    is_fixed: bool = True


class ModelService:
    """What `Service` promises, on models in this process."""

    def __init__(self, sizes: Sizes, tools: Sequence[Tool] = (), runs: Path = Path("runs")) -> None:
        """A service without models; `start` it when it has some.

        Args:
            sizes: how much it takes in.
            tools: run here when models call them, beside those of their tasks.
            runs: folder of run folders, for the page.
        """
        self.sizes, self.tools, self.folder = sizes, tools, runs
        self.hosts: dict[Key, Host] = {}
        self.served: dict[str, Served] = {}
        self.worker = Worker(sizes.max_queue)

    @property
    def fault(self) -> str | None:
        """Why nothing is answered any more; None while it is."""
        return self.worker.fault

    def add(self, name: str, resolved: ResolvedModel, is_fixed: bool = True) -> Served:
        """Load a model, or an adapter on a base that is loaded already, and let it be asked by a name.

        Raises:
            UserError: weights are missing or damaged, or do not fit.
        """
        key = key_of(resolved)
        if key not in self.hosts:
            self.hosts[key] = Host(*resolved.load_base())
        host, adapter = self.hosts[key], None
        model: Any = host.base
        if resolved.adapter is not None:
            model, adapter = host.attach(resolved.adapter)
        limit = min((one for one in (resolved.limit, self.sizes.max_model_len) if one is not None), default=None)
        engine = Engine(model, resolved.tokenizer, limit)
        task = resolved.task if resolved.has_recipe else None
        rules = (task.tools, task.refuses) if task is not None else ((), None)
        offered = {tool.name: tool for tool in (*rules[0], *self.tools)}
        parent = next((one.info.name for one in self.served.values() if one.host is host), None)
        info = ServedModel(
            name,
            int(time.time()),
            str(resolved.target),
            parent if adapter is not None else None,
            limit,
            resolved.recipe.task.name if task is not None else None,
        )
        conversation = Conversation(engine, [*offered.values()], rules[1])
        served = Served(info, resolved, engine, conversation, host, adapter, is_fixed)
        batch = engine.open(self.sizes.slots, self.sizes.max_tokens)
        self.worker.seats[name] = Seat(batch, lambda: host.activate(adapter))
        self.served[name] = served
        return served

    def start(self) -> None:
        """Begin to answer."""
        self.worker.start()

    def close(self) -> None:
        """End all answers."""
        self.worker.close()

    def models(self) -> Sequence[ServedModel]:
        """Return the models that may be asked, the first of which answers who names none."""
        return [served.info for served in self.served.values()]

    def find(self, name: str | None) -> Served:
        """Return a model by its name.

        Raises:
            RefusedError: there is none.
        """
        if name is None:
            return next(iter(self.served.values()))
        if name not in self.served:
            known = ", ".join(self.served)
            raise RefusedError(f"There is no model {name!r}; there are: {known}.", 404, "model", "model_not_found")
        return self.served[name]

    def load(self) -> Load:
        """Return how busy it is."""
        return self.worker.load()

    async def answer(self, asked: Asked) -> AsyncGenerator[Event, None]:
        """Yield what becomes of what is asked; see `Service.answer`."""
        served = self.find(asked.model)
        conversation, questions = self.prepare(served, asked)
        talks = [Talk(self.worker, served, conversation, question, index) for index, question in enumerate(questions)]
        try:
            for talk in talks:
                talk.begin()
            yield Accepted(served.info.name, len(questions[0].request.input_ids))
            async with aclosing(merged([talk.events() for talk in talks])) as events:
                async for event in events:
                    yield event
        finally:
            for talk in talks:
                talk.cancel()

    def prepare(self, served: Served, asked: Asked) -> tuple[Conversation, list[Question]]:
        """Return what is asked as questions, one for each answer, and the conversation that they are put in.

        Raises:
            RefusedError: it cannot be asked.
        """
        conversation = conversation_of(served, asked)
        input_ids = self.encode(asked)
        settings = settings_of(asked, served.resolved.recipe.generation)
        limit = served.engine.limit
        if not has_room(len(input_ids), limit, settings.max_new_tokens or 1):
            if asked.max_tokens is not None or not has_room(len(input_ids), limit, 1):
                wanted = f" and an answer of {asked.max_tokens}" if asked.max_tokens else ""
                raise RefusedError(
                    f"The prompt has {len(input_ids)} tokens{wanted}; the model takes {limit} together. Shorten the "
                    "prompt, or ask for fewer tokens.",
                    field="prompt" if asked.is_raw else "messages",
                    code="context_length_exceeded",
                )
            settings = settings.model_copy(update={"max_new_tokens": None})
        constraint = constraint_of(served, asked)
        seed = secrets.randbits(31) if asked.seed is None and settings.do_sample else asked.seed
        prompt: Prompt = "" if asked.is_raw else asked.prompt  # type: ignore[assignment]
        questions = [
            conversation.ask(
                prompt,
                settings,
                asked.tools if asked.tool_choice != "none" else (),
                input_ids,
                seed=None if seed is None else seed + index,
                stop=asked.stop,
                logprobs=asked.logprobs,
                top_logprobs=asked.top_logprobs,
                constraint=constraint,
            )
            for index in range(asked.n)
        ]
        return conversation, questions

    def encode(self, asked: Asked) -> list[int]:
        """Return the token ids of a prompt, with its tools; see `Service.encode`."""
        served = self.find(asked.model)
        tokenizer = served.engine.tokenizer
        if asked.is_raw and not isinstance(asked.prompt, str):
            known = served.engine.model.config.get_text_config().vocab_size
            if wrong := [one for one in asked.prompt if not (isinstance(one, int) and 0 <= one < known)]:
                raise RefusedError(f"{wrong[0]!r} is no token id: there are 0 to {known - 1}.", field="prompt")
            return list(asked.prompt)  # type: ignore[arg-type]
        if asked.is_raw:
            return list(tokenizer(str(asked.prompt))["input_ids"])
        tools = conversation_of(served, asked).offered(asked.tools if asked.tool_choice != "none" else ())
        try:
            return encode_prompt(tokenizer, asked.prompt, tools)  # type: ignore[arg-type]
        except UserError as error:
            raise RefusedError(str(error), field="messages") from error

    def decode(self, model: str | None, token_ids: Sequence[int]) -> str:
        """Return the text of token ids; see `Service.decode`."""
        tokenizer = self.find(model).engine.tokenizer
        if wrong := [one for one in token_ids if not 0 <= one < len(tokenizer)]:
            raise RefusedError(f"{wrong[0]} is no token id: there are 0 to {len(tokenizer) - 1}.", field="tokens")
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def token_texts(self, model: str | None, token_ids: Sequence[int]) -> list[str]:
        """Return the text of each token by itself; see `Service.token_texts`."""
        tokenizer = self.find(model).engine.tokenizer
        return [str(tokenizer.decode([one])) for one in token_ids]

    async def load_adapter(self, name: str, path: str) -> None:
        """Let an adapter or a run be asked by a name; see `Service.load_adapter`."""
        if name in self.served:
            raise RefusedError(f"{name!r} is asked already. Unload it first, or choose another name.", field="lora_name")
        try:
            resolved = resolve(path)
            if resolved.adapter is None or key_of(resolved) not in self.hosts:
                raise UserError(f"{path}: is no adapter of a base that is served.")
            await self.worker.do(lambda: self.add(name, resolved, is_fixed=False))
        except UserError as error:
            raise RefusedError(str(error), field="lora_path") from error

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; see `Service.unload_adapter`."""
        served = self.served.get(name)
        if served is None or served.is_fixed:
            reason = "was named when the server began" if served else "is not loaded"
            raise RefusedError(f"{name!r} {reason}.", 400 if served else 404, "lora_name")

        def unload() -> None:
            del self.served[name]
            seat = self.worker.seats.pop(name)
            for row in [*seat.batch.drop(), *seat.batch.waiting]:
                row.error = RefusedError("The model has been unloaded.", status=404, code="model_not_found")
            self.worker.tell(list(self.worker.tickets))
            served.host.detach(served.adapter)

        await self.worker.do(unload)

    def score(
        self, model: str | None, prompt: Prompt, completion: str, calls: Sequence[ToolCall] = ()
    ) -> Mapping[str, Any]:
        """Return what the model's task can say of an answer; see `Service.score`."""
        served = self.find(model)
        return served.resolved.task.mark(prompt, completion, calls) if served.resolved.has_recipe else {}

    def runs(self) -> Sequence[Mapping[str, Any]]:
        """Return the runs in the folder, the newest first."""
        found = [RunFolder(path) for path in self.folder.glob("*") if RunFolder.is_run(path)]
        return [describe(run) for run in sorted(found, key=lambda run: -run.recipe.stat().st_mtime)]

    def report(self, run: str) -> bytes | None:
        """Return the page of a run of `runs`."""
        page = self.folder / run / "report.html"
        known = any(path.name == run for path in self.folder.glob("*"))
        return page.read_bytes() if known and page.is_file() else None


def describe(run: RunFolder) -> dict[str, Any]:
    """Return what is told of a run; of one that has not ended, or is damaged, less."""
    try:
        recipe = read_yaml(run.recipe)
        named = {"task": recipe["task"]["name"], "base": recipe["model"]["path"]}
        accuracy = json.loads(run.report.read_bytes())["after"].get("accuracy") if run.report.is_file() else None
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        named, accuracy = {"task": None, "base": None}, None
    return {
        "name": run.path.name,
        **named,
        "accuracy": accuracy,
        "has_report": (run.path / "report.html").is_file(),
    }


def conversation_of(served: Served, asked: Asked) -> Conversation:
    """Return who converses: with the tools that are run here, unless the client brings its own, or wants none."""
    if asked.is_raw or asked.tools or asked.tool_choice == "none":
        return Conversation(served.engine)
    return served.conversation


def settings_of(asked: Asked, own: GenerationSettings) -> GenerationSettings:
    """Return how to decode: as is asked, else as the run says. Who gives a temperature over 0, top_p or top_k samples."""
    given = {
        "max_new_tokens": asked.max_tokens,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "repetition_penalty": asked.repetition_penalty,
        "presence_penalty": asked.presence_penalty,
        "frequency_penalty": asked.frequency_penalty,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if asked.temperature == 0:
        changes |= {"do_sample": False}
    elif asked.temperature is not None or not own.do_sample and (asked.top_p is not None or asked.top_k is not None):
        changes |= {"do_sample": True, "temperature": asked.temperature or 1.0, "top_p": asked.top_p or 1.0}
    return own.model_copy(update=changes)


def constraint_of(served: Served, asked: Asked) -> Any:
    """Return what the answer must be; None where it may be anything.

    Raises:
        RefusedError: that cannot be kept.
    """
    if asked.tool_choice not in ("auto", "none"):
        raise RefusedError(
            f"tool_choice {asked.tool_choice!r}: no call can be promised. Use 'auto' or 'none'.", field="tool_choice"
        )
    if asked.format is None:
        return None
    if asked.tools:
        raise RefusedError("An answer of a form calls no tools. Leave one of the two out.", field=asked.format.field)
    raise RefusedError("Not yet.", field=asked.format.field)


class Talk:
    """One answer on its way, with the calls of tools between.

    Attributes:
        index: of the answer.
        added: messages that the conversation has added.
    """

    def __init__(
        self, worker: Worker, served: Served, conversation: Conversation, question: Question, index: int
    ) -> None:
        self.worker, self.served, self.question, self.index = worker, served, question, index
        self.added: list[Message] = []
        self.turns = conversation.talk(question, self.added)
        self.written = 0
        self.ticket: Ticket | None = None

    def begin(self) -> None:
        """Put the question in the queue.

        Raises:
            RefusedError: it is full.
        """
        self.hand_in(next(self.turns))

    def hand_in(self, request: Request) -> None:
        self.ticket = self.worker.hand_in(self.served.info.name, self.served.engine.reader, request)

    def cancel(self) -> None:
        """End the answer, if it has not ended."""
        if self.ticket is not None:
            self.ticket.row.is_abandoned.set()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield what comes of it, and last that it has ended.

        Text of a turn that may call tools comes when it is known what it is.
        """
        while True:
            completion: Completion | None = None
            assert self.ticket is not None
            prompt_tokens = len(self.ticket.row.request.input_ids)
            async with aclosing(self.worker.follow(self.ticket)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Completion):
                        completion = piece
                    else:
                        yield self.piece(piece)
            if completion is None:
                raise RefusedError("The answer was cancelled.", status=503, code="unavailable")
            self.written += len(completion.token_ids)
            before = len(self.added)
            exchange = self.go_on(completion)
            turn, *said = self.added[before:]
            if self.question.tools and turn["content"]:
                yield Piece(self.index, str(turn["content"]))
            if exchange is not None and exchange.messages[-1] is turn:
                yield self.ended(exchange, prompt_tokens)
                return
            for message in (turn, *said):
                yield Said(self.index, message)
            if exchange is not None:
                raise RefusedError("The conversation has no room for another turn.", code="context_length_exceeded")

    def go_on(self, completion: Completion) -> Exchange | None:
        """Let the conversation go on; return it where it has ended."""
        try:
            self.hand_in(self.turns.send(completion))
        except StopIteration as end:
            exchange: Exchange = end.value
            return exchange
        return None

    def piece(self, delta: Delta) -> Piece:
        """Return a piece for the client, whose text waits where it may be a call."""
        text = "" if self.question.tools else delta.text
        return Piece(self.index, text, delta.token_ids, delta.logprobs, delta.top_logprobs)

    def ended(self, exchange: Exchange, prompt_tokens: int) -> Ended:
        """Return the end of the answer."""
        message = dict(exchange.messages[-1])
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [{**call, "id": call.get("id") or f"call_{secrets.token_hex(12)}"} for call in calls]
        completion, stop = exchange.completion, self.question.request.stop
        ended_by = None
        if completion.finish_reason == "stop" and stop and completion.token_ids[-1] not in self.served.engine.reader.stops:
            ended_by = next((one for one in stop if one in self.whole(completion)), None)
        return Ended(
            self.index, message, completion.finish_reason, self.written, prompt_tokens, exchange.refusal, ended_by
        )

    def whole(self, completion: Completion) -> str:
        """Return an answer with the text that ended it."""
        return self.served.engine.reader.read(completion.token_ids)


async def merged(sources: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
    """Yield the events of several answers as they come. Who closes this closes all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as source:
            async for event in source:
                yield event
        return
    arriving: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()

    async def listen(source: AsyncGenerator[Event, None]) -> None:
        try:
            async with aclosing(source):
                async for event in source:
                    arriving.put_nowait(event)
            arriving.put_nowait(None)
        except Exception as error:
            arriving.put_nowait(error)

    listeners = [asyncio.create_task(listen(source)) for source in sources]
    try:
        left = len(sources)
        while left:
            event = await arriving.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                left -= 1
            else:
                yield event
    finally:
        for listener in listeners:
            listener.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)
