"""The formats that records come in, recognised by their fields. One reader each, from a row to what is to be learned.

Conversations are turned into GLM's own turns: `user`, `assistant`, `system`, and `observation` for what a tool gave;
an assistant's message with `metadata`, the tool's name, is a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, TypeAlias

from glmtune.config import FIELDS
from glmtune.messages import Message, Prompt

Row: TypeAlias = dict[str, Any]

MOST_CHARACTERS = 2_000_000  # of one record; the longest contexts of today hold about a million tokens
LOOKED_AT = 50  # rows by which a file's format is told

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function", "function_response", "tool_response"), "observation"),
    "function_call": "call",
}
# Which turn may follow which; None is the start.
_FOLLOWS = {
    None: ("user",),
    "user": ("assistant", "call"),
    "assistant": ("user", "call", "observation"),  # its text may be a call
    "call": ("observation", "call"),
    "observation": ("assistant", "call", "observation"),
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_EQUATION = re.compile(r"\s*x\s*=\s*\S", re.IGNORECASE)
_OPERATION = re.compile(r"(?<=[\w.)\]%])\s*(?:\*\*|[-+*/^])")
_TOOLS = "Answer the following questions as best as you can. You have access to the following tools:"  # ChatGLM3's


@dataclass(frozen=True)
class Record:
    """One thing to learn, as a file has it.

    Attributes:
        prompt: a text, or messages where there is more than one question.
        target: the answer.
        facts: what is known of it.
        notes: what was left out to make it usable.
        format: name of the format it was read by.
        file, line: where it stands; rows of tables without lines are counted from 1.
    """

    prompt: Prompt
    target: str
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    format: str = ""
    file: str = ""
    line: int = 0


class FieldError(ValueError):
    """A field of a row cannot be used.

    Attributes:
        field: its name.
    """

    def __init__(self, name: str, message: str):
        self.field = name
        super().__init__(message)


@dataclass(frozen=True)
class Format:
    """How a row becomes records.

    Attributes:
        name: of the format.
        needs: fields without which a row is not of this format.
        read: the records of a row; raises `FieldError`.
        fits: whether the values look like it, where the fields alone do not tell.
        sign: a field that marks the format even where others are missing.
    """

    name: str
    needs: tuple[str, ...]
    read: Callable[[Row], list[Record]]
    fits: Callable[[Row], bool] = lambda row: True
    sign: str = ""

    def claims(self, row: Row) -> bool:
        """Whether a row has all fields that the format needs."""
        return all(name in row for name in self.needs)


# Values


def sound(name: str, text: str) -> str:
    """The text, if it can be tokenized.

    Raises:
        FieldError: NUL, half a character, or more than any model can take.
    """
    if len(text) > MOST_CHARACTERS:
        raise FieldError(name, f"'{name}' has {len(text):,} characters, more than any model takes. Split it.")
    if "\0" in text:
        raise FieldError(name, f"'{name}' holds a NUL character. Delete it, or write the file again.")
    if _SURROGATE.search(text):
        raise FieldError(name, f"'{name}' holds half of a character (a lone \\ud800 escape). Write the file again.")
    return text


def text_of(row: Row, name: str) -> str:
    """A field that must be a text with something in it.

    Raises:
        FieldError: it is not; a field of nearly the same name is offered.
    """
    value = row.get(name)
    if isinstance(value, str) and value.strip():
        return sound(name, value)
    message = f"'{name}' is missing, empty or not a text"
    if value is not None and not isinstance(value, str):
        message += f" but {kind_of(value)}"
    return fail(row, name, message)


def fail(row: Row, name: str, message: str) -> str:
    """Raise a `FieldError` that tells what the row has, and what of it may have been meant."""
    message += f"; the record has {', '.join(map(str, row)) or 'nothing'}"
    close = [] if name in row else get_close_matches(name, [str(key) for key in row], n=1, cutoff=0.6)
    if close:
        message += f". Did you mean '{close[0]}'? Rename it to '{name}', or map it with data.columns"
    raise FieldError(name, message)


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    names = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def optional_text(row: Row, name: str) -> str:
    """A field that may be missing or empty.

    Raises:
        FieldError: it is something else than a text.
    """
    value = row.get(name)
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        raise FieldError(name, f"'{name}' is {kind_of(value)}, not a text")
    return sound(name, value)


def listed(row: Row, name: str) -> list[Any]:
    """A field that is a list, or JSON of one, as tables have it; nothing is an empty list.

    Raises:
        FieldError: it is neither.
    """
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            raise FieldError(name, f"'{name}' is a text and not JSON of a list") from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise FieldError(name, f"'{name}' is {kind_of(value)}, not a list")
    return value


def facts_of(row: Row, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The group of `facts` that a row has, and what its format tells."""
    own = row.get("facts")
    return {**(more or {}), **(own if isinstance(own, dict) else {})}


# Conversations


def record_of(row: Row, turns: list[Message], name: str, odd: bool = False) -> Record:
    """A conversation as a record: everything up to its last answer is the prompt.

    Args:
        row: for its facts.
        turns: with roles of ours.
        name: the field they come from.
        odd: leave out an answer at the start and a question at the end instead of refusing them.

    Raises:
        FieldError: turns in a wrong order, or no answer.
    """
    system = [turn for turn in turns[:1] if turn["role"] == "system"]
    turns = turns[len(system) :]
    notes: list[str] = []
    if odd:
        first = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), 0)
        last = max((place for place, turn in enumerate(turns) if _kind(turn) == "assistant"), default=-1)
        if first:
            notes.append(f"began with {_some(first, turns[0]['role'])}, which is left out")
        if 0 <= last < len(turns) - 1:
            notes.append(f"ended with {_some(len(turns) - 1 - last, turns[-1]['role'])}, which is left out")
        turns = turns[first : last + 1] if last >= first else turns[first:]
    check_order(turns, name)
    if _kind(turns[-1]) != "assistant":
        raise FieldError(name, f"'{name}' ends with {_kind(turns[-1])}: it has no answer to learn")
    return Record(prompt_of([*system, *turns[:-1]]), turns[-1]["content"], facts_of(row), tuple(notes))


def prompt_of(turns: list[Message]) -> Prompt:
    """What stands before an answer; a single question is a text."""
    single = len(turns) == 1 and turns[0].keys() == {"role", "content"} and turns[0]["role"] == "user"
    return turns[0]["content"] if single else turns


def _some(count: int, role: str) -> str:
    return f"{count} turns" if count > 1 else f"a turn of the {role}"


def _kind(turn: Message) -> str:
    """The role of a turn; `call` for an assistant's that calls a tool."""
    return "call" if "metadata" in turn else str(turn["role"])


def check_order(turns: Sequence[Message], name: str) -> None:
    """Questions and answers take turns.

    Raises:
        FieldError: they do not; the turn is told.
    """
    if not turns:
        raise FieldError(name, f"'{name}' is missing or has no turns")
    before: str | None = None
    for number, turn in enumerate(turns, start=1):
        kind = _kind(turn)
        if kind not in _FOLLOWS[before]:
            place = f"follows {before}" if before else "comes first"
            expected = " or ".join(_FOLLOWS[before])
            raise FieldError(name, f"'{name}', turn {number}: wrong order of roles: {kind} {place}, not {expected}")
        before = kind


def turn_of(turn: Any, name: str, number: int) -> list[Message]:
    """One entry of `conversations` or `messages` as turns of ours: a message, or a message and its calls.

    Raises:
        FieldError: no known role, or no text.
    """
    where = f"'{name}', turn {number}"
    if not isinstance(turn, dict):
        raise FieldError(name, f"{where}: {kind_of(turn)}, not a message")
    said = turn.get("from", turn.get("role"))
    role = _ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        close = get_close_matches(str(said), list(_ROLES), n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise FieldError(name, f"{where}: unknown role {said!r}.{hint} Known: {', '.join(_ROLES)}.")
    text = content_of(turn, name, where)
    if role == "call":
        return [_call(text)]
    calls = [
        _called(call, name, where) for call in [*(turn.get("tool_calls") or []), turn.get("function_call")] if call
    ]
    if not text.strip() and not calls and role in ("user", "assistant"):
        raise FieldError(name, f"{where}: the {role}'s text is empty")
    return [*([{"role": role, "content": text}] if text or not calls else []), *calls]


def content_of(turn: Message, name: str, where: str) -> str:
    """What a turn says.

    Raises:
        FieldError: no text, or more than text.
    """
    content = turn.get("value", turn.get("content"))
    if content is None and (turn.get("tool_calls") or turn.get("function_call")):
        return ""
    if isinstance(content, list):  # parts
        if any(not isinstance(part, dict) or not isinstance(part.get("text"), str) for part in content):
            raise FieldError(name, f"{where}: has parts that are no text (images are not learned)")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise FieldError(name, f"{where}: its content is {kind_of(content) if content is not None else 'missing'}")
    return sound(name, content)


def _called(call: Any, name: str, where: str) -> Message:
    """A call as OpenAI writes it: `{"function": {"name", "arguments"}}`, or the inner object alone."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise FieldError(name, f"{where}: a call of a tool without the tool's name")
    given = inner.get("arguments", "")
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return {"role": "assistant", "metadata": inner["name"], "content": sound(name, text)}


def _call(text: str) -> Message:
    """A call as ShareGPT writes it: JSON with `name` and `arguments`."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and isinstance(found.get("name"), str):
        return _called(found, "", "")
    return {"role": "assistant", "metadata": "", "content": text}


def conversation(name: str, odd: bool) -> Callable[[Row], list[Record]]:
    """A reader of rows whose field `name` is a list of turns."""

    def read(row: Row) -> list[Record]:
        turns = [
            message for number, turn in enumerate(listed(row, name), start=1) for message in turn_of(turn, name, number)
        ]
        system, tools = optional_text(row, "system"), listed(row, "tools")
        if (system or tools) and not (turns and turns[0]["role"] == "system"):
            turns = [{"role": "system", "content": system or _TOOLS}, *turns]
        if tools:
            turns[0] = {**turns[0], "tools": tools}
        return [record_of(row, turns, name, odd)]

    return read


def with_history(
    row: Row,
    prompt: str,
    target: str,
    history: str = "history",
    system: str = "system",
    parts: Mapping[str, str] | None = None,
) -> Record:
    """A question with the rounds before it: `[[question, answer], ...]`, or messages.

    Args:
        row, prompt, target: what is learned.
        history, system: names of the fields.
        parts: of the prompt, for templates that write them by themselves.

    Raises:
        FieldError: rounds that are neither.
    """
    said = optional_text(row, system)
    turns: list[Message] = [{"role": "system", "content": said}] if said else []
    for number, entry in enumerate(listed(row, history), start=1):
        if isinstance(entry, dict):
            turns += turn_of(entry, history, number)
        elif isinstance(entry, list) and len(entry) == 2 and all(isinstance(t, str) and t.strip() for t in entry):
            pair = zip(("user", "assistant"), entry, strict=True)
            turns += [{"role": role, "content": sound(history, text)} for role, text in pair]
        else:
            raise FieldError(history, f"'{history}', round {number}: must be [question, answer], two texts")
    turns += [{"role": "user", "content": prompt, **(parts or {})}, {"role": "assistant", "content": target}]
    return record_of(row, turns, history)


# One reader a format


def pair(asked: str, answered: str) -> Callable[[Row], list[Record]]:
    """A reader of rows with a question and an answer, and perhaps rounds before them."""

    def read(row: Row) -> list[Record]:
        return [with_history(row, text_of(row, asked), text_of(row, answered))]

    return read


def prompt_target(row: Row) -> list[Record]:
    """Our own: `glmtune data` writes it. The prompt may be a list of messages."""
    prompt = row.get("prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(turn, dict) for turn in prompt):
        turns = [*prompt, {"role": "assistant", "content": text_of(row, "target")}]
        for number, turn in enumerate(turns, start=1):
            turn_of({**turn, "tool_calls": None}, "prompt", number)
        return [record_of(row, turns, "prompt")]
    return [with_history(row, text_of(row, "prompt"), text_of(row, "target"))]


def alpaca(row: Row) -> list[Record]:
    """Alpaca, BELLE, school_math: the input follows the instruction on a line of its own.

    The message has both by themselves, too, for Alpaca's own template.
    """
    instruction, given = text_of(row, "instruction"), optional_text(row, "input")
    parts = {"instruction": instruction, "input": given} if given else {}
    prompt = f"{instruction}\n{given}" if given else instruction
    return [with_history(row, prompt, text_of(row, "output"), parts=parts)]


def belle_seed(row: Row) -> list[Record]:
    """BELLE's seed tasks: an instruction with several inputs and outputs."""
    instances = listed(row, "instances")
    if not instances:
        raise FieldError("instances", "'instances' is missing or has no entries")
    records = []
    for number, instance in enumerate(instances, start=1):
        if not isinstance(instance, dict):
            raise FieldError("instances", f"'instances', entry {number}: {kind_of(instance)}, not an object")
        records += alpaca({"instruction": row.get("instruction"), "facts": row.get("facts"), **instance})
    return records


def belle_eval(row: Row) -> list[Record]:
    """BELLE's evaluation set: open questions have no answer in it."""
    kind = optional_text(row, "class")
    facts = facts_of(row, {"class": kind} if kind else {})
    return [Record(text_of(row, "question"), text_of(row, "std_answer"), facts)]


def gsm8k(row: Row) -> list[Record]:
    """GSM8K: a reasoning that ends with `#### ANSWER`."""
    question, answer = text_of(row, "question"), text_of(row, "answer")
    if not answer.rpartition("####")[1] or not answer.rpartition("####")[2].strip():
        raise FieldError("answer", "'answer' has no '#### RESULT' at its end, as the others of this file have")
    return [Record(question, answer, facts_of(row, {"steps": answer.count("<<")}))]


def ape210k(row: Row) -> list[Record]:
    """Ape210K as `question` and an `answer` that is an equation: `x=5/5=1`."""
    return [Record(text_of(row, "question"), *_equation(row, "answer"))]


def math23k(row: Row) -> list[Record]:
    """Math23K and Ape210K as released: the target is the equation with its answer, `x=5/5=1`."""
    target, facts = _equation(row, "equation")
    answer = row.get("ans")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise FieldError("ans", "'ans' is empty or not a text")
    return [Record(text_of(row, "original_text"), target + (f"={answer}" if answer else ""), facts)]


def _equation(row: Row, name: str) -> tuple[str, dict[str, Any]]:
    """An equation and how many operations it has."""
    text = text_of(row, name)
    if not _EQUATION.match(text):
        raise FieldError(name, f"'{name}' must begin with x=, as the others of this file do; it is {text[:40]!r}")
    return text, facts_of(row, {"operations": len(_OPERATION.findall(text.split("=")[1]))})


def mapped(columns: Mapping[str, str]) -> Format:
    """A format by the names that the user gives: ours to the file's.

    Args:
        columns: of `prompt`, `target`, `history` and `system`; those that are not named are called so in the file, too.
    """
    names = {name: columns.get(name, name) for name in FIELDS}

    def read(row: Row) -> list[Record]:
        for name, column in columns.items():
            if column not in row:
                close = get_close_matches(column, [str(key) for key in row], n=1, cutoff=0.4)
                hint = f" Did you mean '{close[0]}'?" if close else ""
                fields = ", ".join(map(str, row)) or "nothing"
                raise FieldError(column, f"data.columns.{name}: no field '{column}'; the record has {fields}.{hint}")
        prompt, target = text_of(row, names["prompt"]), text_of(row, names["target"])
        return [with_history(row, prompt, target, names["history"], names["system"])]

    return Format("columns", (), read)


def _says(name: str, pattern: re.Pattern[str]) -> Callable[[Row], bool]:
    return lambda row: isinstance(row[name], str) and pattern.search(row[name]) is not None


# What is told by more fields stands before what is told by fewer.
FORMATS = [
    Format("messages", ("messages",), conversation("messages", odd=False), sign="messages"),
    Format("sharegpt", ("conversations",), conversation("conversations", odd=True), sign="conversations"),
    Format("belle_seed", ("instruction", "instances"), belle_seed, sign="instances"),
    Format("alpaca", ("instruction", "output"), alpaca, sign="instruction"),
    Format("math23k", ("original_text", "equation"), math23k, sign="original_text"),
    Format("prompt_target", ("prompt", "target"), prompt_target),
    Format("chatglm_history", ("prompt", "response", "history"), pair("prompt", "response")),
    Format("prompt_response", ("prompt", "response"), pair("prompt", "response")),
    Format("prompt_completion", ("prompt", "completion"), pair("prompt", "completion")),
    Format("adgen", ("content", "summary"), pair("content", "summary"), sign="summary"),
    Format("gsm8k", ("question", "answer"), gsm8k, _says("answer", re.compile("####"))),
    Format("ape210k", ("question", "answer"), ape210k, _says("answer", re.compile(r"^\s*x\s*=", re.IGNORECASE))),
    Format("question_answer", ("question", "answer"), pair("question", "answer")),
    Format("belle_eval", ("question", "std_answer"), belle_eval, sign="std_answer"),
    Format("query_response", ("query", "response"), pair("query", "response"), sign="query"),
    Format("context_target", ("context", "target"), pair("context", "target"), sign="context"),
    Format("input_output", ("input", "output"), pair("input", "output")),
]
# What answers are called in these.
_ANSWERS = {
    **dict.fromkeys(("output", "target", "response", "completion", "summary", "answer", "std_answer"), "."),
    "equation": "x=1",
}
_PLAIN = next(known for known in FORMATS if known.name == "prompt_target")


def matching(row: Row) -> Format | None:
    """The first format that a row has all fields of, and the looks."""
    return next((known for known in FORMATS if known.claims(row) and known.fits(row)), None)


def recognise(rows: Iterable[Row]) -> Format | None:
    """The format that most of some rows have."""
    found = [known for known in map(matching, rows) if known is not None]
    return max(FORMATS, key=found.count) if found else None


def format_of(row: Row, own: Format | None = None) -> Format:
    """The format to read a row by: the file's own if it has the fields, else the one that it has the fields of.

    Args:
        row: of the file.
        own: what the first rows of the file have.
    """
    if own is not None and own.claims(row):
        return own
    marked = (known for known in FORMATS if known.sign and known.sign in row)
    partly = own if own is not None and any(name in row for name in own.needs) else next(marked, None)
    return matching(row) or partly or own or _PLAIN


def records_of(row: Row, own: Format | None = None) -> list[Record]:
    """The records of a row.

    Raises:
        FieldError: a field cannot be used.
    """
    known = format_of(row, own)
    try:
        found = known.read(row)
    except FieldError as error:
        if known is _PLAIN and own is None and not any(name in row for name in _PLAIN.needs):
            remedy = "No known format has these fields. Map yours: data.columns.prompt=FIELD data.columns.target=FIELD"
            raise FieldError(error.field, f"{error}. {remedy}") from None
        raise
    return [replace(record, format=known.name) for record in found]


def question_of(row: Row, columns: Mapping[str, str] | None = None) -> Prompt:
    """What a row asks, with or without an answer: the prompt that a training would read from it.

    Args:
        row: of a file of questions; a `prompt` that is a list of messages is taken as it is.
        columns: as in `mapped`; default: told by the fields.

    Raises:
        FieldError: no question in it, or several.
    """
    prompt = row.get("prompt")

    def is_answer(value: Any) -> bool:
        return isinstance(value, str) and bool(value.strip())

    if columns:
        target = columns.get("target", "target")
        return single(records_of(row if is_answer(row.get(target)) else {**row, target: "."}, mapped(columns)))
    if isinstance(prompt, list) and prompt:
        for number, turn in enumerate(prompt, start=1):
            texts = [turn.get("role"), turn.get("content")] if isinstance(turn, dict) else [None]
            if not all(isinstance(text, str) for text in texts):
                raise FieldError("prompt", f"'prompt', turn {number}: must be {{role, content}}, both texts")
            sound("prompt", turn["content"])
        return prompt
    asked = with_answer({name: value for name, value in row.items() if name not in _ANSWERS or is_answer(value)})
    found: dict[str, Prompt] = {}
    fault: FieldError | None = None
    for candidate in [asked] if matching(asked) else [{**asked, name: text} for name, text in _ANSWERS.items()]:
        try:
            prompt = single(records_of(candidate)) if matching(candidate) else None
        except FieldError as error:
            fault = fault or error
        else:
            found |= {repr(prompt): prompt} if prompt is not None else {}
    has = f"the record has {', '.join(map(str, row)) or 'nothing'}"
    if len(found) > 1:
        raise FieldError("prompt", f"several fields may be the question; {has}. Name it: data.columns.prompt=FIELD")
    if not found:
        reason = str(fault).partition("; the record has ")[0] if fault else None
        if reason is None:
            has += ". Name the question: data.columns.prompt=FIELD"
        unknown = "'prompt' is missing, empty or not a text, and no known format is here"
        raise FieldError(fault.field if fault else "prompt", f"{reason or unknown}; {has}")
    return next(iter(found.values()))


def single(records: Sequence[Record]) -> Prompt:
    """The prompt of the one record that a row has."""
    if len(records) != 1:
        raise FieldError("instances", f"{len(records)} questions in one record; write one in each")
    return records[0].prompt


def with_answer(row: Row) -> Row:
    """A conversation that ends with a question, with an answer to it."""
    for field_name in ("messages", "conversations"):
        turns = listed(row, field_name) if field_name in row else []
        said = turns[-1].get("from", turns[-1].get("role")) if turns and isinstance(turns[-1], dict) else None
        if _ROLES.get(str(said).lower()) in ("user", "observation"):
            row = {**row, field_name: [*turns, {"role": "assistant", "content": "."}]}
    return row


def each_answer(record: Record) -> list[Record]:
    """A conversation as one record for each of its answers, each with what stands before it."""
    turns = record.prompt
    if isinstance(turns, str):
        return [record]
    answers = [place for place, turn in enumerate(turns) if _kind(turn) == "assistant"]
    earlier = [replace(record, prompt=prompt_of(turns[:place]), target=turns[place]["content"]) for place in answers]
    return [*earlier, record]
