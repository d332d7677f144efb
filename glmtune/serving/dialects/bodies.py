"""What all bodies of requests have in common: nothing in them is ignored."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from glmtune.messages import Message, MessageError, check_message, has_half_character
from glmtune.serving.asking import Limits, RefusedError

MOST_DEPTH = 64  # of values in values


@dataclass(frozen=True)
class Unsupported:
    """A field that others' servers have.

    Attributes:
        remedy: what to do instead, as a sentence.
        harmless: values besides null that ask for nothing; None: all of them.
    """

    remedy: str = "Leave it out."
    harmless: Sequence[Any] | None = ()


HARMLESS = Unsupported(harmless=None)


class Body(BaseModel):
    """A body, or an object in one. What it does not name is refused, but for what `unsupported` finds harmless."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    unsupported: ClassVar[Mapping[str, Unsupported]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        kept = {}
        for name, value in given.items():
            if name in known:
                kept[name] = value
                continue
            rule = cls.unsupported.get(name)
            if rule is None:
                raise RefusedError(f"there is no such field{_nearest(name, known)}", field=f"{name:.80}")
            if value is not None and rule.harmless is not None and value not in rule.harmless:
                raise RefusedError(f"{_shorten(value)} is not supported. {rule.remedy}", field=name)
        return kept


class RequestBody(Body):
    """The whole body of a request."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_no_json(cls, given: Any) -> Any:
        for path, fault in _faults(given if isinstance(given, dict) else {}):
            raise RefusedError(fault, field=".".join(path))
        return given


def _faults(body: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (path, fault) of halves of characters, of numbers that JSON has not, and of what is nested too deeply."""
    open_values: list[tuple[tuple[str, ...], Any]] = [((), body)]
    while open_values:
        path, value = open_values.pop()
        if len(path) > MOST_DEPTH:
            yield path[:4], f"nested deeper than {MOST_DEPTH} values"
            continue
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, dict | list):
                open_values.append(((*path, str(key)), inner))
            elif isinstance(inner, float) and not math.isfinite(inner):
                yield (*path, str(key)), f"{inner} is no number of JSON"
            elif isinstance(inner, str) and has_half_character(inner):
                yield (*path, str(key)), "holds half of a character, which is no text. Write it again"
            if isinstance(key, str) and has_half_character(key):
                yield path, "has a name with half of a character, which is no text. Write it again"


def _nearest(name: str, known: set[str]) -> str:
    close = get_close_matches(name, sorted(known), n=1)
    return f". Perhaps {close[0]!r} is meant" if close else ""


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def check_conversation(messages: Sequence[Mapping[str, Any]], limits: Limits, field: str = "messages") -> list[Message]:
    """Return messages in the one form.

    Raises:
        RefusedError: one of them is not, or there are too many; names it.
    """
    check_count(messages, limits.messages, field)
    checked = []
    for index, message in enumerate(messages):
        try:
            checked.append(check_message(message))
        except MessageError as error:
            raise RefusedError(error.fault, field=f"{field}.{index}.{error.field}") from None
    return checked


def check_count(values: Sequence[Any], most: int, field: str) -> None:
    """Refuse more than so many.

    Raises:
        RefusedError: there are more.
    """
    if len(values) > most:
        raise RefusedError(f"{len(values):,} of them; at most {most:,} are taken", field=field)


def as_json(value: Any) -> str:
    """Return a value as JSON, in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def as_event(data: Any, name: str | None = None) -> str:
    """Return an event of a stream (`text/event-stream`)."""
    return f"event: {name}\ndata: {as_json(data)}\n\n" if name else f"data: {as_json(data)}\n\n"


def new_id(kind: str) -> str:
    """Return an id that no other answer has."""
    return f"{kind}{secrets.token_hex(12)}"
