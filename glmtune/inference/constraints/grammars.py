"""Schemas, expressions and grammars as llguidance takes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from glmtune.inference.constraints.schemas import MOST_CHARACTERS, check_ends, check_repeats, check_schema, find_fault
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_CHOICES = 1_000
_FUEL = 200_000  # of llguidance, for expressions that are prepared: less than a second or so
_WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,40}"  # between the parts of JSON; without a bound a model may go on for ever
# What is not closed counts as well: llguidance refuses it, and else each quote would be tried to the end of the line.
_LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"?|/((?:\\.|[^/\\\n])+)/?|(?://|#)[^\n]*')
# What would let control tokens into an answer, or half characters, or is another way to say what `json_schema` does.
_REFUSED = re.compile(r"<[^>\s]*>?|@\w+|%json\b|%llguidance\b|\btemperature\b")


def read_grammar(kind: str, value: Any) -> str:
    """Return the grammar of what an answer must be.

    Args:
        kind: `json_object`, `json_schema`, `regex`, `grammar` or `choice`.
        value: the schema, the expression, the grammar in Lark's notation, or the texts.

    Raises:
        UserError: it is broken, or asks for something that cannot be kept.
    """
    if kind not in _READERS:
        raise UserError(f"'{kind}' is no kind of answer; there are {', '.join(_READERS)}")
    return _READERS[kind](value)


def compile_grammar(grammar: str, vocabulary: LLTokenizer) -> LLMatcher:
    """Return a grammar at its beginning.

    Raises:
        UserError: it is broken, too large, or no text belongs to it.
    """
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(initial_lexer_fuel=_FUEL, verbose_errors=False)
    state = LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
    if not state.is_error():
        state.compute_bitmask()
    if state.is_error():
        fault = state.get_error()
        raise UserError(
            "no text belongs to it: it contradicts itself, or never ends"
            if fault.startswith("NoExtension")
            else f"cannot be kept: {_first_lines(fault)}"
        )
    return state


def put_behind(head: str, grammar: str, after: str | None = None) -> str:
    """Return a grammar with something in front of it, in which no text must be cut into certain tokens.

    Args:
        head: text that comes first.
        grammar: of the answer.
        after: the grammar begins behind the first such text; what stands before that is free. None: nothing does.
    """
    [body] = json.loads(grammar)["grammars"]
    parts = [json.dumps(head, ensure_ascii=False)] if head else []
    # Else llguidance would want each text that is the only one possible as the tokens that it is encoded to.
    lines = [
        '%llguidance {"no_forcing": true}',
        f"start: {' '.join([*parts, *(['working'] if after else []), '@body'])}",
    ]
    if after:
        lines.append(f"working[lazy]: /(?s:.*){re.escape(after).replace('/', chr(92) + '/')}/")
    first = {"name": "head", "lark_grammar": "\n".join(lines)}
    return json.dumps({"grammars": [first, {**body, "name": "body"}]})


def _read_schema(schema: Any) -> str:
    check_schema(schema)
    if fault := find_fault(schema, _fault_of_schema):
        raise UserError(fault)
    check_ends(schema)
    return _grammar_of_schema(schema)


def _grammar_of_schema(schema: Any) -> str:
    from llguidance import LLMatcher

    options: Any = {"whitespace_pattern": _WHITE_SPACE}
    schema = {True: {}, False: {"enum": []}}[schema] if isinstance(schema, bool) else schema
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)


def _fault_of_schema(schema: Any) -> str:
    from llguidance import LLMatcher

    return _first_lines(LLMatcher.validate_grammar(_grammar_of_schema(schema)))


def _read_expression(expression: Any) -> str:
    from llguidance import regex_to_lark

    check_repeats(_text(expression, "the expression"), "the expression")
    if (len(expression) - len(expression.rstrip("\\"))) % 2:
        raise UserError("the expression ends with a backslash, behind which something must stand")
    return _as_grammars(f"start: /{regex_to_lark(expression, 'd')}/")


def _read_lark(grammar: Any) -> str:
    if len(_text(grammar, "the grammar")) > MOST_CHARACTERS:
        raise UserError(f"the grammar has {len(grammar):,} characters; at most {MOST_CHARACTERS:,} are taken")
    for literal in _LITERAL.finditer(grammar):
        check_repeats(literal[1] or "", f"the grammar, {_short(literal[0])}")
    if refused := _REFUSED.search(_LITERAL.sub('""', grammar)):
        raise UserError(
            f"the grammar: {refused[0]} is not taken; rules are of texts, expressions and other rules alone"
        )
    return _as_grammars(grammar)


def _read_choices(texts: Any) -> str:
    if not isinstance(texts, list | tuple) or not texts:
        raise UserError("the choices must be a list of texts")
    texts = [_text(text, f"choice {number}") for number, text in enumerate(texts, start=1)]
    if len(texts) > MOST_CHOICES or sum(map(len, texts)) > MOST_CHARACTERS:
        raise UserError(f"there may be {MOST_CHOICES:,} choices of {MOST_CHARACTERS:,} characters in all")
    return _as_grammars("start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts))


def _as_grammars(lark: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def _escape(text: str) -> str:
    """Return a text as an expression."""
    return "".join(character if character.isalnum() else f"\\x{{{ord(character):x}}}" for character in text)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{name} must be a text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} has half a character, {value[error.start]!r}, at {error.start}") from None
    return value


def _first_lines(fault: str) -> str:
    """Return what a library says is wrong, without the copy of what it was given."""
    lines = [line.strip() for line in fault.splitlines() if not re.match(r"\s*(\d+ \||\^|$)", line)]
    return " ".join(map(_short, lines[:4]))


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."


_READERS: dict[str, Callable[[Any], str]] = {
    "json_object": lambda _: _grammar_of_schema({"type": "object"}),
    "json_schema": _read_schema,
    "regex": _read_expression,
    "grammar": _read_lark,
    "choice": _read_choices,
}
