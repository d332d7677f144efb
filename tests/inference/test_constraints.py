"""Answers that must be something: what is read is that, whatever a model would say; and all of that can be said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import family_checkpoints
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from transformers import AutoTokenizer, PreTrainedTokenizerBase

pytest.importorskip("llguidance")

from glmtune.data.encoding import IGNORED, encode_example, stop_ids
from glmtune.inference.constraints import make_constraint
from glmtune.inference.constraints.grammars import _LITERAL
from glmtune.inference.constraints.matching import GrammarConstraint
from glmtune.inference.constraints.repeats import length_written_out
from glmtune.inference.reading import AnswerReader, lead_in_as_read
from glmtune.models import loading
from glmtune.runtime import UserError

PADDING = 9  # rows of the model's head beyond the vocabulary
INTEGER, WORD = {"type": "integer"}, {"type": "string", "maxLength": 3}
PERSON = {
    "type": "object",
    "properties": {
        "名": {"type": "string", "minLength": 1, "maxLength": 4},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["红", "b\n", "😀"]}, "minItems": 1, "maxItems": 3},
        "code": {"type": "string", "pattern": "^[A-Z]{2}\\d{1,2}$"},
        "at": {"$ref": "#/$defs/point"},
    },
    "required": ["名", "age", "tags", "code", "at"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": ["number", "null"]}, "next": {"anyOf": [{"$ref": "#/$defs/point"}]}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
VALID = {"名": "王😀", "age": 42, "tags": ["红", "b\n"], "code": "AB7", "at": {"x": -0.5, "next": {"x": None}}}
SUM = 'start: number (("+" | "-") number)*\nnumber: /[0-9]{1,3}/ | "(" start ")"'


def is_valid(schema: Any) -> Callable[[str], bool]:
    return lambda text: Draft202012Validator(schema).is_valid(json.loads(text))


def matches(expression: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(expression, text) is not None


def is_sum(text: str) -> bool:
    """Whether a text is a sum of numbers and of sums in brackets."""
    before = ""
    while text != before:
        before, text = text, re.sub(r"\(\d{1,3}([-+]\d{1,3})*\)", "1", text)
    return matches(r"\d{1,3}([-+]\d{1,3})*")(text)


# kind, value, whether a text is so, texts that are
CASES = [
    ("json_schema", PERSON, is_valid(PERSON), [json.dumps(VALID, ensure_ascii=False)]),
    (
        "json_object",
        None,
        lambda text: isinstance(json.loads(text), dict),
        ['{"a": [1.5e3, "x", {}, null, true]}', "{}"],
    ),
    ("regex", r"[一-龥😀]{2,5}", matches(r"[一-龥😀]{2,5}"), ["一加二", "你好😀"]),
    ("regex", r"[a-c<>n|]{1,9}", matches(r"[a-c<>n|]{1,9}"), ["a<bn>c"]),
    ("regex", r"\s?\d+", matches(r"\s?\d+"), ["\n12", "7"]),
    ("grammar", SUM, is_sum, ["1+(2-37)", "5"]),
    ("choice", ['"yes"', "no\n", "不"], lambda text: text in ('"yes"', "no\n", "不"), ['"yes"', "no\n", "不"]),
]
SAME = {"ChatGLM-6B-INT8", "ChatGLM-6B-INT4", "Qwen3-MoE", "Mixtral"}  # tokenizers as others
NAMES = [*(name for name in family_checkpoints.WRITERS if name not in SAME), "nano"]

Load = Callable[[str], PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def load(checkpoint_of: Callable[[str], Path]) -> Load:
    loaded: dict[str, PreTrainedTokenizerBase] = {}

    def find(name: str) -> PreTrainedTokenizerBase:
        if name not in loaded:
            folder = loading.EMBEDDED["nano"] if name == "nano" else checkpoint_of(name)
            loaded[name] = AutoTokenizer.from_pretrained(folder)
        return loaded[name]

    return find


def constrain(tokenizer: PreTrainedTokenizerBase, kind: str, value: Any = None, **more: Any) -> GrammarConstraint:
    return make_constraint(tokenizer, len(tokenizer) + PADDING, stop_ids(tokenizer), kind, value, **more)


def read(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return AnswerReader(tokenizer, stop_ids(tokenizer), lead_in_as_read(tokenizer)).read(ids)


def learned(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """An answer as the model learns it, with what the template puts around it."""
    return [token for token in encode_example(tokenizer, "1", text)["labels"] if token != IGNORED]


def wander(constraint: GrammarConstraint, seed: int, eager: float = 0.3, longest: int = 1500) -> list[int] | None:
    """An answer of random tokens; None if it has not ended by then."""
    generator = torch.Generator().manual_seed(seed)
    matcher, ids = constraint.matcher(), []
    for _ in range(longest):
        allowed = matcher.allowed()
        assert allowed.shape == (constraint.size,) and allowed.dtype == torch.bool and allowed.any()
        assert not allowed[-PADDING:].any()
        weights = allowed.double()
        weights[list(constraint.stops)] *= 1 + eager * allowed.sum()
        ids.append(int(torch.multinomial(weights, 1, generator=generator)))
        matcher.advance(ids[-1])
        if ids[-1] in constraint.stops:
            assert matcher.allowed().nonzero()[:, 0].tolist() == sorted(constraint.stops)
            return ids
    return None


def refused_at(constraint: GrammarConstraint, ids: Sequence[int]) -> int | None:
    """Place of the first token of an answer that is not allowed."""
    matcher = constraint.matcher()
    for place, token in enumerate(ids):
        if not matcher.allowed()[token]:
            return place
        matcher.advance(token)
    return None


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_is_what_was_asked_for(load: Load, name: str) -> None:
    tokenizer = load(name)
    for kind, value, is_so, _ in CASES:
        constraint = constrain(tokenizer, kind, value)
        ended = [ids for seed in range(2) if (ids := wander(constraint, seed)) is not None]
        assert ended
        for ids in ended:
            assert is_so(read(tokenizer, ids)), (kind, tokenizer.convert_ids_to_tokens(ids))


@pytest.mark.parametrize("name", NAMES)
def test_whatever_was_asked_for_can_be_said(load: Load, name: str) -> None:
    tokenizer, said = load(name), 0
    for kind, value, is_so, texts in CASES:
        constraint = constrain(tokenizer, kind, value)
        for text in texts:
            ids = learned(tokenizer, text)
            if read(tokenizer, ids) == text:  # some templates leave out blanks around an answer
                assert is_so(text)
                assert refused_at(constraint, ids) is None, (kind, text, tokenizer.convert_ids_to_tokens(ids))
                said += 1
    assert said >= (7 if name != "Mistral" else 0)


@pytest.mark.parametrize("name", NAMES)
def test_behind_a_marker_the_final_answer_is_what_was_asked_for(load: Load, name: str) -> None:
    tokenizer = load(name)
    for marker in ("|", "####/ "):
        constraint = constrain(tokenizer, "regex", "-?[0-9]{1,3}", after=marker)
        assert refused_at(constraint, learned(tokenizer, f"12+3=21+30:51;51{marker}15")) is None
        early = learned(tokenizer, "12+3=15")
        assert refused_at(constraint, early) == len(early) - 1
        if (ids := wander(constraint, 0, longest=500)) is not None:
            assert matches("-?[0-9]{1,3}")(read(tokenizer, ids).partition(marker)[2])


@settings(max_examples=30)
@given(st.integers(), st.text("123 \n", max_size=4))
def test_blanks_that_would_be_dropped_are_not_written(seed: int, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(loading.EMBEDDED["nano"])
    constraint = constrain(tokenizer, "regex", r"[ \n]{0,3}[123]?")
    ids = wander(constraint, seed % 2**32)
    assert ids is not None and matches(r"[ \n]{0,3}[123]?")(read(tokenizer, ids))
    ids = learned(tokenizer, text)
    if refused_at(constraint, ids) is None:
        assert matches(r"[ \n]{0,3}[123]?")(read(tokenizer, ids))


def test_words_that_are_read_as_white_space_are_never_spelled(load: Load) -> None:
    tokenizer = load("nano")
    constraint = constrain(tokenizer, "regex", r"[<|>nblaktab_2]+")
    for word in ("a<n>", "<|tab|>", "b<|blank_2|>"):
        pieces = ["▁", *(word if word[0] != "<" else ["<", *word[1:]])]
        ids = tokenizer.convert_tokens_to_ids(pieces)
        ids = [
            tokenizer.convert_tokens_to_ids(f"<0x{ord(p):02X}>") if i == tokenizer.unk_token_id else i
            for p, i in zip(pieces, ids, strict=True)
        ]
        assert refused_at(constraint, ids) == len(ids) - 1


def test_control_tokens_are_never_allowed_within(load: Load) -> None:
    for name in ("Qwen3", "GLM-4.5", "nano", "ChatGLM3-6B"):
        tokenizer = load(name)
        constraint = constrain(tokenizer, "regex", "(?s:.*)")
        matcher = constraint.matcher()
        for token in learned(tokenizer, "a")[:-1]:
            matcher.advance(token)
        special = {int(index) for index in tokenizer.added_tokens_decoder}
        assert special & set(matcher.allowed().nonzero()[:, 0].tolist()) <= set(constraint.stops)


def test_rows_go_on_by_themselves(load: Load) -> None:
    constraint = constrain(load("Qwen2.5"), "regex", "ab|cd")
    first, second = constraint.matcher(), constraint.matcher()
    ids = learned(load("Qwen2.5"), "ab")
    before = second.allowed()
    for token in ids:
        first.advance(token)
    assert torch.equal(second.allowed(), before) and not torch.equal(first.allowed(), before)


@pytest.mark.parametrize(
    ("kind", "value", "named"),
    [
        ("xml", None, "json_schema"),
        ("json_schema", [[]], "must be an object"),
        ("json_schema", {"type": "objekt"}, "objekt"),
        ("json_schema", {"type": "object", "properties": {"a": {"not": {}}}}, "#/properties/a/not"),
        ("json_schema", {"type": "string", "maxlength": 3}, "Did you mean 'maxLength'"),
        ("json_schema", {"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
        ("json_schema", {"type": "array", "items": {"enum": []}, "minItems": 1}, "#/items: Unsatisfiable"),
        ("json_schema", {"type": "object", "required": ["a"], "properties": {"a": False}}, "Unsatisfiable"),
        ("json_schema", False, "Unsatisfiable"),
        ("json_schema", {"$ref": "#/$defs/a"}, "/$defs/a"),
        ("json_schema", {"$ref": "https://example.com/a"}, "begin with '#'"),
        ("json_schema", {"$ref": "file:///etc/passwd"}, "begin with '#'"),
        ("json_schema", {"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "never end"),
        ("json_schema", {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "never end"),
        ("json_schema", {"type": "object", "minProperties": 2}, "minProperties"),
        ("json_schema", {"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ("json_schema", {"type": "string", "pattern": "(a{1,1000}){1,1000}"}, "#/pattern: has 1,000,000"),
        ("json_schema", {"type": "integer", "multipleOf": 1000003}, "#/multipleOf"),
        ("json_schema", {"const": float("nan")}, "no JSON"),
        ("json_schema", {"const": "\ud800"}, "surrogate"),
        ("json_schema", {"enum": ["x" * 100] * 1000}, "104,010 bytes"),
        ("json_schema", {"properties": {str(name): {} for name in range(1000)}}, "members"),
        ("regex", "(", "unclosed group"),
        ("regex", "a\\", "backslash"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"(a)\1", "backreference"),
        ("regex", r"[^\s\S]", "no text belongs to it"),
        ("regex", "(a{1,1000}){1,1000}", "1,000,000 characters"),
        ("regex", "a{99999999999999999999}", "characters"),
        ("regex", "(" * 2_000 + "a" + ")" * 2_000, "nest"),
        ("regex", None, "must be a text"),
        ("regex", "a" * 100_000, "100,000 characters"),
        ("grammar", "start: foo", "foo"),
        ("grammar", 'start: ("a"', "Expected"),
        ("grammar", 'start: start "a"', "no text belongs to it"),
        ("grammar", 'start: <|endoftext|> "a"', "<|endoftext|>"),
        ("grammar", "start: <[3]>", "<[3]>"),
        ("grammar", 'start: %json {"x-guidance": {"lenient": true}}', "%json"),
        ("grammar", "start: " + "(" * 10_000 + '"a"' + ")" * 10_000, "nested"),
        ("grammar", "start: /(a{1,1000}){1,1000}/", "1,000,000"),
        ("grammar", "", "no start rule"),
        ("choice", [], "list of texts"),
        ("choice", ["a", 3], "choice 2 must be a text"),
        ("choice", ["a", "\ud800"], "half a character"),
        ("regex", "\ud800", "half a character"),
        ("grammar", 'start: "\ud800"', "half a character"),
    ],
)
def test_what_cannot_be_kept_is_refused(load: Load, kind: str, value: Any, named: str) -> None:
    with pytest.raises(UserError) as refusal:
        constrain(load("Qwen2.5"), kind, value)
    assert named in str(refusal.value) and len(str(refusal.value)) < 2000


@pytest.mark.parametrize("levels", [100, 10_000])
def test_a_schema_of_many_levels_is_refused(load: Load, levels: int) -> None:
    schema: Any = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UserError, match="levels deep"):
        constrain(load("nano"), "json_schema", schema)


def test_a_text_that_must_begin_with_a_lost_blank_is_refused(load: Load) -> None:
    with pytest.raises(UserError, match="begins with a blank"):
        constrain(load("nano"), "regex", " [a-z]")
    assert wander(constrain(load("Qwen2.5"), "regex", " [a-z]"), 0) is not None


def repeated(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.lists(inner, min_size=1, max_size=3), st.integers(1, 4))


@given(st.recursive(st.sampled_from("ab"), repeated, max_leaves=6))
def test_repeats_are_written_out(tree: Any) -> None:
    def write(node: Any, out: bool) -> str:
        if isinstance(node, str):
            return node
        parts, times = node
        inner = "".join(write(part, out) for part in parts)
        return inner * times if out else f"(?:{inner}){{1,{times}}}"

    assert length_written_out(write(tree, False)) == len(write(tree, True))


def test_a_grammar_of_quotes_is_looked_at_once() -> None:
    assert len(_LITERAL.findall('\\"' * 32_000)) == 1
    assert [found[0] for found in _LITERAL.finditer('a: "b\\"" /c\\/d/ # "\n"e')] == ['"b\\""', "/c\\/d/", '# "', '"e']
