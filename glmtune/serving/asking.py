"""The one internal form behind all dialects: what a client asks, and the events that it is answered with."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from glmtune.inference.completion import FinishReason, Likeliest
from glmtune.messages import Message, Prompt
from glmtune.runtime import UserError


class RefusedError(UserError):
    """What a client asked cannot be answered.

    Attributes:
        status: of HTTP.
        field: of the request's body that is at fault, such as `messages.0.content`; None where none is.
        code: a word for programs, such as `model_not_found`, `context_length_exceeded`; None where there is none.
        retry_after: seconds after which it may be tried again; None where that would change nothing.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        field: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.field, self.code, self.retry_after = status, field, code, retry_after


@dataclass(frozen=True)
class Format:
    """What an answer must be.

    Attributes:
        kind: a JSON object of any kind, JSON of a schema, a text that a regular expression matches, one of a grammar in
            Lark's notation (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md), or one of some texts.
        value: the schema, the expression, the grammar or the texts; None with `json_object`.
        field: of the request's body that asks for it, for errors.
    """

    kind: Literal["json_object", "json_schema", "regex", "grammar", "choice"]
    value: Any = None
    field: str = "response_format"


@dataclass(frozen=True)
class Asked:
    """What a client asks, in whatever dialect. What is None is as the model's run says.

    Attributes:
        model: its name; None: the first one.
        prompt: messages, a text that is a user's message, or what `is_raw` says.
        is_raw: the prompt is text that is gone on with, or token ids; no template is put around it.
        max_tokens: longest answer in tokens.
        temperature: 0 takes the likeliest token.
        top_p, top_k, repetition_penalty, presence_penalty, frequency_penalty: see `GenerationSettings`.
        n: how many answers.
        seed: of what is sampled; answer number `i` has `seed + i`.
        stop: texts that end the answer, of which they are no part.
        logprobs, top_logprobs: whether these are told, and of how many tokens beside the one that was taken.
        tools: definitions of the client's tools, which it runs itself; where it names none, the server's own are run.
        tool_choice: `auto`; `none`; `required`; or the name of the tool that must be called.
        format: what the answer must be; None: anything.
    """

    model: str | None
    prompt: Prompt | Sequence[int]
    is_raw: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    n: int = 1
    seed: int | None = None
    stop: Sequence[str] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    tools: Sequence[dict[str, Any]] = ()
    tool_choice: str = "auto"
    format: Format | None = None


@dataclass(frozen=True)
class Accepted:
    """The first event: all that is asked has been checked, and is in the queue.

    Attributes:
        model: the name that answers.
        prompt_tokens: how many tokens it is asked.
    """

    model: str
    prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """The next piece of an answer's text.

    Attributes:
        index: of the answer, from 0.
        text: may be empty, where tokens came whose meaning is open.
        token_ids, logprobs, top_logprobs: the tokens that came with it; see `Delta`.
        reasoning: the next piece of what the model thinks before it answers.
    """

    index: int
    text: str
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] | None = None
    top_logprobs: Sequence[Likeliest] | None = None
    reasoning: str = ""


@dataclass(frozen=True)
class Said:
    """A turn between question and answer: the model's calls of the server's own tools, or what one of them said.

    Attributes:
        index: of the answer.
        message: the assistant's, with `tool_calls`, whose text has been streamed; or a tool's.
    """

    index: int
    message: Message


@dataclass(frozen=True)
class Ended:
    """The last event of one answer.

    Attributes:
        index: of the answer.
        message: the assistant's; its `content` is all that its pieces held, its `tool_calls` are for the client to run,
            each with an `id`; `reasoning_content` where the template knows such.
        finish_reason: `stop`, `length` or `tool_calls`.
        completion_tokens: how many tokens the model wrote, in all its turns.
        prompt_tokens: how many it was asked in its last turn.
        refusal: why the task refuses the answer; None where it does not.
        stop: which of the texts that were to end the answer ended it; None where none did.
    """

    index: int
    message: Message
    finish_reason: FinishReason
    completion_tokens: int
    prompt_tokens: int
    refusal: str | None = None
    stop: str | None = None


Event = Accepted | Piece | Said | Ended


@dataclass(frozen=True)
class ServedModel:
    """A model that may be asked by its name.

    Attributes:
        name: its id.
        created: seconds since 1970.
        root: what the user named: a run, a checkpoint, a GGUF file.
        parent: name of the model that its adapter stands on; None for one that is whole.
        max_model_len: tokens that prompt and answer may have together; None where the model states no limit.
        task: name of its task; None where it is asked without one.
        is_ready: it has been seen to answer as its run's report says, or has none.
        remark: what that look found, for people.
    """

    name: str
    created: int
    root: str
    parent: str | None = None
    max_model_len: int | None = None
    task: str | None = None
    is_ready: bool = True
    remark: str = ""


@dataclass(frozen=True)
class Load:
    """How busy the server is.

    Attributes:
        running: requests that are being answered.
        waiting: requests that are in the queue.
        tokens: of prompts and answers in flight.
    """

    running: int
    waiting: int
    tokens: int


class Service(Protocol):
    """Whoever answers one event loop. What reads texts may take as long as they are, and be called from any thread."""

    def models(self) -> Sequence[ServedModel]:
        """Return the models that may be asked, the first of which answers who names none."""

    def answer(self, asked: Asked) -> AsyncGenerator[Event, None]:
        """Yield `Accepted`, then the events of all answers as they come, mixed; the last of each is `Ended`.

        Who closes the generator, or is cancelled, cancels the answers.

        Raises:
            RefusedError: what is asked cannot be answered, or the queue is full; before the first event. Behind it: the
                server ends, or the model has failed.
        """

    def encode(self, asked: Asked) -> list[int]:
        """Return the token ids of a prompt, with its tools.

        Raises:
            RefusedError: it cannot be asked.
        """

    def decode(self, model: str | None, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, with control tokens by their names.

        Raises:
            RefusedError: no such model, or no such tokens.
        """

    def token_texts(self, model: str | None, token_ids: Sequence[int]) -> list[str]:
        """Return the text of each token by itself; what is half a character has U+FFFD in its place."""

    async def load_adapter(self, name: str, path: str) -> None:
        """Let an adapter or a run be asked by a name.

        Raises:
            RefusedError: adapters may not be loaded, the name is taken, or it does not fit a base that is served.
        """

    async def unload_adapter(self, name: str) -> None:
        """Forget one.

        Raises:
            RefusedError: there is none of this name, or it was named at the start.
        """

    def score(self, model: str | None, prompt: Prompt, completion: str, calls: Sequence[Any] = ()) -> Mapping[str, Any]:
        """Return what the model's task can say of an answer without a target: `Task.mark`; empty where nothing can be.

        Raises:
            RefusedError: no such model.
        """

    def runs(self) -> Sequence[Mapping[str, Any]]:
        """Return the runs beside the server, the newest first: `name`, `task`, `base`, `accuracy`, `has_report`."""

    def report(self, run: str) -> bytes | None:
        """Return the `report.html` of a run of `runs`; None where there is none."""

    def load(self) -> Load:
        """Return how busy it is."""

    @property
    def fault(self) -> str | None:
        """Why nothing is answered any more; None while it is."""


@dataclass(frozen=True)
class Limits:
    """What the server takes of one client. Sizes in bytes, times in seconds.

    Attributes:
        body: of a request.
        messages: in one conversation.
        stop: texts that end an answer.
        n: answers to one question.
        connections: at once.
        header_seconds, body_seconds: in which a request must have come.
        answer_seconds: in which it must be answered.
        write_seconds: that a reader may leave a stream unread, after which it is closed.
    """

    body: int = 4 * 2**20
    messages: int = 1_000
    stop: int = 16
    n: int = 16
    connections: int = 1_000
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    answer_seconds: float = 600.0
    write_seconds: float = 30.0


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        keys: any one of which is asked for; none: everyone may ask.
        hosts: names by which the server may be asked; none: any. A page of another name that a browser is told to lie
            here (DNS rebinding) may not.
        origins: of pages that may ask from a browser (CORS); `*` for all.
        loads_adapters: whether adapters may be loaded and unloaded over HTTP.
        logs_prompts: whether prompts and answers stand in the log.
    """

    keys: Sequence[str] = field(default=(), repr=False)
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    loads_adapters: bool = False
    logs_prompts: bool = False
