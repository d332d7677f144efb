"""JSON schemas that answers must satisfy: what can be kept while an answer is written, and what is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from glmtune import registry
from glmtune.inference.constraints.repeats import length_written_out
from glmtune.runtime import UserError

MOST_CHARACTERS = 64 * 1024  # of a schema or a grammar
MOST_WRITTEN = 4_096  # characters of an expression
MOST_LEVELS = 50  # of a schema
MOST_PROPERTIES = 500  # of one object; also references of a schema
MOST_REPEATED = 20_000  # characters of an expression with its repeats written out
MOST_SECONDS = 1.0  # for finding where in a schema a fault is
MOST_MULTIPLE = 10_000  # of `multipleOf`, without its point

# Keywords whose values are schemas: one, a list of them, or several by name.
_ONE = ("items", "additionalProperties")
_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength")
_SIZES = ("minItems", "maxItems", "minProperties", "maxProperties")
_PLAIN = ("type", "enum", "const", "pattern", "format", "required", "$ref")
_ABOUT = ("$schema", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly")
_UNKEPT = (
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames"),
    *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties"),
    *("additionalItems", "$id", "$anchor", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$vocabulary"),
    *("contentEncoding", "contentMediaType", "contentSchema"),
)
KEYWORDS = (*_ONE, *_LISTED, *_NAMED, *_BOUNDS, *_SIZES, *_PLAIN, *_ABOUT)

Place = tuple[str, ...]


def check_schema(schema: Any) -> None:
    """Check that the keywords of a schema can be kept while an answer is written, and that it does not explode.

    Raises:
        UserError: a keyword is unknown or cannot be kept, or there is too much of something.
    """
    if not isinstance(schema, dict | bool):
        raise UserError(f"the schema must be an object, not of type {type(schema).__name__}")
    _check_levels(schema)
    try:
        size = len(json.dumps(schema, allow_nan=False, ensure_ascii=False).encode())
    except (ValueError, TypeError) as error:
        raise UserError(f"the schema is no JSON: {error}") from None
    if size > MOST_CHARACTERS:
        raise UserError(f"the schema has {size:,} bytes; at most {MOST_CHARACTERS:,} are taken")
    for place, part in _walk(schema):
        if isinstance(part, dict):
            _check_keywords(place, part)


def find_fault(schema: Any, fault_of: Callable[[Any], str]) -> str:
    """Return what is wrong with a schema and where: in the deepest part that has a fault by itself; empty if nothing.

    Args:
        schema: the whole.
        fault_of: returns what is wrong with a schema; empty if nothing.
    """
    fault = fault_of(schema)
    if not fault or not isinstance(schema, dict):
        return fault
    named = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    deepest: Place = ()
    latest = time.monotonic() + MOST_SECONDS
    for place, part in _walk(schema):
        if time.monotonic() > latest:
            break
        if isinstance(part, dict) and place[: len(deepest)] == deepest and (found := fault_of({**part, **named})):
            deepest, fault = place, found
    return f"{show_place(deepest)}: {fault}"


def show_place(place: Place) -> str:
    """Return a place in a schema as a JSON pointer."""
    return "/".join(["#", *(step.replace("~", "~0").replace("/", "~1") for step in place)])


def _check_levels(schema: Any) -> None:
    """Check how deep a schema is, without going deep."""
    layer = [schema]
    for _ in range(MOST_LEVELS):
        layer = [
            inner
            for value in layer
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if layer:
        raise UserError(f"the schema is nested more than {MOST_LEVELS} levels deep; name its parts in $defs")


def _walk(schema: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield (place, schema) of a schema and all within it, from the outside."""
    yield place, schema
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in _ONE:
            yield from _walk(value, (*place, key))
        elif (key in _LISTED and isinstance(value, list)) or (key in _NAMED and isinstance(value, dict)):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            for name, part in inner:
                yield from _walk(part, (*place, key, str(name)))


def _check_keywords(place: Place, schema: Mapping[str, Any]) -> None:
    for key, value in schema.items():
        here = show_place((*place, key))
        if key == "$id" and not place:
            continue
        if key in _UNKEPT:
            raise UserError(f"{here}: '{key}' cannot be kept while an answer is written; leave it out")
        if key not in KEYWORDS:
            raise UserError(f"{here}: '{key}' is no keyword that is known.{registry.suggest(key, list(KEYWORDS))}")
        if key in _BOUNDS and isinstance(value, bool):
            raise UserError(f"{here}: must be a number, not {_shown(value)}")
        if key in _ONE and not isinstance(value, dict | bool):
            raise UserError(f"{here}: must be a schema, not {_shown(value)}; a list of schemas is 'prefixItems'")
        if key in _NAMED and isinstance(value, dict) and len(value) > MOST_PROPERTIES:
            raise UserError(f"{here}: has {len(value):,} members; at most {MOST_PROPERTIES} are taken")
        if key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
            raise UserError(f"{here}: {_shown(value)} is not within the schema; such references begin with '#'")
        expressions = list(value) if key == "patternProperties" else [value] if key == "pattern" else []
        for expression in expressions:
            check_repeats(str(expression), here)
        if key == "multipleOf" and _digits_as_number(value) > MOST_MULTIPLE:
            raise UserError(f"{here}: {value} has too many digits; at most {MOST_MULTIPLE:,} without its point")
    _check_least(place, schema)


def _check_least(place: Place, schema: Mapping[str, Any]) -> None:
    """Refuse `minProperties` where a property that is written twice would count as two."""
    least = schema.get("minProperties", 0)
    is_closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if isinstance(least, int) and least > len(schema.get("required", ())) and not is_closed:
        raise UserError(
            f"{show_place((*place, 'minProperties'))}: can be kept only with 'additionalProperties': false, or for "
            "properties that are 'required'"
        )


def check_repeats(expression: str, place: str) -> None:
    """Check how long an expression is with its repeats written out.

    Raises:
        UserError: too long.
    """
    if len(expression) > MOST_WRITTEN:
        raise UserError(f"{place}: has {len(expression):,} characters; at most {MOST_WRITTEN:,} are taken")
    if (length := length_written_out(expression)) > MOST_REPEATED:
        raise UserError(
            f"{place}: has {length:,} characters with its repeats written out; at most {MOST_REPEATED:,} are taken. "
            "Repeat less often, or without a bound: '*'"
        )


def _digits_as_number(value: Any) -> int:
    digits = "".join(filter(str.isdigit, str(value).partition("e")[0])).rstrip("0")
    return int(digits) if 0 < len(digits) < 10 else 0 if not digits else MOST_MULTIPLE + 1


def check_ends(schema: Any) -> None:
    """Refuse references that never come to an end, such as a list whose elements must hold such lists.

    Raises:
        UserError: no answer would ever be complete.
    """
    references = {
        part["$ref"]: show_place((*place, "$ref"))
        for place, part in _walk(schema)
        if isinstance(part, dict) and "$ref" in part
    }
    if len(references) > MOST_PROPERTIES:
        raise UserError(f"the schema has {len(references):,} references; at most {MOST_PROPERTIES} are taken")
    targets = {reference: _resolve(schema, reference, place) for reference, place in references.items()}
    ending: set[str] = set()
    while more := {one for one, target in targets.items() if one not in ending and _ends(target, ending)}:
        ending |= more
    if not _ends(schema, ending):
        endless = next((one for one in references if one not in ending), "#")
        place = references.get(endless, "#")
        raise UserError(f"{place}: what {endless} asks for would never end; make a property optional, or allow null")


def _resolve(schema: Any, reference: str, place: str) -> Any:
    target = schema
    for step in unquote(reference).removeprefix("#").split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        try:
            target = target[int(step)] if isinstance(target, list) else target[step]
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(f"{place}: there is no {reference} in the schema") from None
    return target


def _ends(schema: Any, ending: set[str]) -> bool:
    """Whether something finite satisfies a schema, as far as the references allow that are known to."""
    if not isinstance(schema, dict):
        return schema is not False
    if "$ref" in schema and schema["$ref"] not in ending:
        return False
    if not all(_ends(part, ending) for part in schema.get("allOf", ())):
        return False
    for key in ("anyOf", "oneOf"):
        if key in schema and not any(_ends(part, ending) for part in schema[key]):
            return False
    kinds = schema.get("type", "any")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "const" in schema or "enum" in schema or not {*kinds} <= {"object", "array"}:
        return True
    return ("object" in kinds and _object_ends(schema, ending)) or ("array" in kinds and _array_ends(schema, ending))


def _object_ends(schema: Mapping[str, Any], ending: set[str]) -> bool:
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    others = others or bool(schema.get("patternProperties"))
    return all(_ends(properties.get(name, others), ending) for name in schema.get("required", ()))


def _array_ends(schema: Mapping[str, Any], ending: set[str]) -> bool:
    least, first = schema.get("minItems", 0), schema.get("prefixItems", [])
    if not all(_ends(part, ending) for part in first[:least]):
        return False
    return least <= len(first) or _ends(schema.get("items", True), ending)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
