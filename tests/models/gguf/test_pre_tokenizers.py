"""The table of llama.cpp's pre-tokenizers: read and written, it says the same."""

import json

import pytest
from tokenizers import Tokenizer, models

from glmtune.models.gguf.pre_tokenizers import PRE_TOKENIZERS, find, name_of

TEXT = "Don't pay 12345.67€, said O'NEIL's CamelCase\n\n  你好 x^2+1"


def words(name: str, text: str) -> list[str]:
    """The words of a text, by the library that trains."""
    way = find(name)
    assert way is not None
    tokenizer = json.loads(Tokenizer(models.BPE()).to_str())
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(way.steps)}
    cutter = Tokenizer.from_str(json.dumps(tokenizer)).pre_tokenizer
    assert cutter is not None
    return [text[start:end] for _, (start, end) in cutter.pre_tokenize_str(text)]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_way_cuts_and_has_its_name(name: str) -> None:
    way = PRE_TOKENIZERS[name]
    assert "".join(words(name, TEXT)) == TEXT
    found = name_of(way.steps, way.ignore_merges)
    assert found is not None
    assert PRE_TOKENIZERS[found].steps == way.steps
    assert PRE_TOKENIZERS[found].ignore_merges == way.ignore_merges
    assert all(find(alias) is way for alias in way.aliases)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("smollm", ["1", "2", "3", "4", "5"]),
        ("gpt-2", ["12345"]),
        ("llama-bpe", ["123", "45"]),
        ("glm4", ["123", "45"]),
        ("qwen2", ["1", "2", "3", "4", "5"]),
        ("tekken", ["1", "2", "3", "4", "5"]),
        ("deepseek-v3", ["123", "45"]),
        ("default", ["123", "45"]),
    ],
)
def test_digits(name: str, expected: list[str]) -> None:
    assert words(name, "12345") == expected


def test_what_llama_cpp_has_no_name_for() -> None:
    assert find("a-new-one") is None
    assert name_of([{"type": "Whitespace"}]) is None
    assert name_of([{"type": "ByteLevel", "add_prefix_space": False}]) == "gpt-2"
