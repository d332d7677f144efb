"""The models of a server: what clients ask becomes requests, and what the model writes becomes events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glmtune.config import read_yaml
from glmtune.inference.conversation import Conversation
from glmtune.inference.engine import Engine
from glmtune.messages import Prompt, ToolCall
from glmtune.resolution import ResolvedModel, resolve
from glmtune.runtime import RunFolder, UserError
from glmtune.serving.asking import Accepted, Asked, Event, Load, RefusedError, ServedModel
from glmtune.serving.checking import Check, check_answers
from glmtune.serving.hosting import Host, Key, key_of
from glmtune.serving.questions import Served, encode, prepare
from glmtune.serving.talks import Talk, merged
from glmtune.serving.worker import Seat, Worker
from glmtune.tools import Tool
from glmtune.trust import REMEMBERED

UNCHECKED = "the run has no report, by which its answers could be looked at"
LONG = 20_000  # characters of a prompt that are read in a moment


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


class ModelService:
    """What `Service` promises, on models in this process."""

    def __init__(
        self,
        sizes: Sizes,
        tools: Sequence[Tool] = (),
        runs: Path = Path("runs"),
        settings: Sequence[str] = (),
    ) -> None:
        """A service without models; `start` it when it has some.

        Args:
            sizes: how much it takes in.
            tools: run here when models call them, beside those of their tasks.
            runs: folder of run folders, for the page.
            settings: in place of those of adapters that clients load, as in place of those of the models.
        """
        self.sizes, self.tools, self.folder = sizes, tools, runs
        self.settings = settings
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
        key, tokenizer = key_of(resolved), resolved.tokenizer
        limit = min((one for one in (resolved.limit, self.sizes.max_model_len) if one is not None), default=None)
        task = resolved.task if resolved.has_task else None
        rules = (task.tools, task.refuses) if task is not None else ((), None)
        offered = {tool.name: tool for tool in (*rules[0], *self.tools)}
        if key not in self.hosts:
            self.hosts[key] = Host(*resolved.load_base())
        host, adapter = self.hosts[key], None
        model: Any = host.base
        if resolved.adapter is not None:  # last, as all else that may fail has not
            model, adapter = host.attach(resolved.adapter)
        engine = Engine(model, tokenizer, limit)
        bases = (one for one in self.served.values() if one.host is host and one.resolved.adapter is None)
        parent = next((one.info.name for one in bases), None)
        info = ServedModel(
            name,
            int(time.time()),
            str(resolved.target),
            parent if resolved.adapter is not None else None,
            limit,
            resolved.recipe.task.name if task is not None else None,
        )
        conversation = Conversation(engine, [*offered.values()], rules[1])
        served = Served(info, resolved, engine, conversation, host, adapter, is_fixed)
        batch = engine.open(self.sizes.slots, self.sizes.max_tokens)
        self.worker.seats[name] = Seat(batch, lambda: host.activate(adapter))
        self.served[name] = served
        return served

    def check(self, served: Served) -> Check | None:
        """See whether a run answers as its report says, before the service starts; `models` tell it from then on."""
        found = check_answers(served)
        if found is not None:
            served.info = replace(served.info, is_ready=found.holds, remark=str(found))
        elif served.resolved.run is not None:
            served.info = replace(served.info, remark=UNCHECKED)
        return found

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
        if asked.format is None and asked.tool_choice in ("auto", "none") and size_of(asked) <= LONG:
            conversation, questions = prepare(served, asked)
        else:  # forms and long prompts may take a second to be read
            conversation, questions = await asyncio.to_thread(prepare, served, asked)
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

    def encode(self, asked: Asked) -> list[int]:
        """Return the token ids of a prompt, with its tools; see `Service.encode`."""
        return encode(self.find(asked.model), asked)

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

        def read() -> ResolvedModel:
            if not Path(path).is_dir():  # a client has nothing fetched from the hub
                raise UserError(f"{path}: no such folder here.")
            resolved = resolve(path, self.settings, REMEMBERED)  # a client has no code run
            if resolved.adapter is None or key_of(resolved) not in self.hosts:
                raise UserError(f"{path}: is no adapter of a base that is served, which leaves it as it is.")
            return resolved

        def load() -> None:
            if name in self.served:
                raise RefusedError(
                    f"{name!r} is asked already. Unload it first, or choose another name.", field="lora_name"
                )
            self.add(name, resolved, is_fixed=False)

        try:
            resolved = await asyncio.to_thread(read)
            await self.worker.do(load)
        except RefusedError:
            raise
        except UserError as error:
            raise RefusedError(str(error), field="lora_path") from error

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; see `Service.unload_adapter`."""

        def unload() -> None:
            served = self.served.get(name)
            if served is None or served.is_fixed:
                reason = "was named when the server began" if served else "is not loaded"
                raise RefusedError(f"{name!r} {reason}.", 400 if served else 404, "lora_name")
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
        return served.resolved.task.mark(prompt, completion, calls) if served.resolved.has_task else {}

    def runs(self) -> Sequence[Mapping[str, Any]]:
        """Return the runs in the folder, the newest first."""
        found = [RunFolder(path) for path in self.folder.glob("*") if RunFolder.is_run(path)]
        return [describe(run) for run in sorted(found, key=lambda run: -run.recipe.stat().st_mtime)]

    def report(self, run: str) -> bytes | None:
        """Return the page of a run of `runs`."""
        page = self.folder / run / "report.html"
        known = any(path.name == run for path in self.folder.glob("*"))
        return page.read_bytes() if known and page.is_file() else None


def size_of(asked: Asked) -> int:
    """Return about how many characters, or tokens, are to be read."""
    texts = asked.prompt if isinstance(asked.prompt, str) else [str(part) for part in asked.prompt]
    return sum(map(len, texts)) + sum(len(str(tool)) for tool in asked.tools)


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
