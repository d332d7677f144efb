"""What is thought and what is said, while it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families_of_today import qwen
from transformers import AutoTokenizer

from glmtune.data.encoding import encode_prompt
from glmtune.data.parsing import parse_answer
from glmtune.inference.completion import Delta
from glmtune.inference.reading import AnswerReader, lead_in_as_read
from glmtune.serving.thinking import Parting


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("qwen3")
    qwen("Qwen3")(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("answer", "thoughts", "text"),
    [
        ("<think>\nhm, so\n</think>\n\n42 it is", "hm, so", "42 it is"),
        ("<think>\n你好 < so\n</think>\n\n< 42", "你好 < so", "< 42"),
        ("42 it <is>\n", "", "42 it <is>\n"),
        (" 4", "", " 4"),
    ],
)
def test_pieces_are_the_whole(tokenizer: Any, answer: str, thoughts: str, text: str, size: int) -> None:
    """And thoughts come before the text, in however large pieces tokens come."""
    prompt = encode_prompt(tokenizer, "1+1=")
    reader = AnswerReader(tokenizer, [tokenizer.eos_token_id], lead_in_as_read(tokenizer))
    token_ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    parting, told, pieces = Parting(tokenizer, prompt, ()), "", []
    for start in range(0, len(token_ids), size):
        until = start + size
        begun = reader.read(token_ids) if until >= len(token_ids) else reader.read_begun(token_ids[:until])
        pieces.append(parting.next(Delta(begun[len(told) :], token_ids[start:until])))
        told = begun
    whole = parse_answer(tokenizer, prompt, token_ids)
    last = whole if thoughts else {"role": "assistant", "content": reader.read(token_ids)}
    pieces.append(parting.rest(last))
    assert ("".join(one for one, _ in pieces), "".join(one for _, one in pieces)) == (thoughts, text)
    began = next((place for place, (_, said) in enumerate(pieces) if said), len(pieces))
    assert not any(thought for thought, _ in pieces[began + 1 :])
    if size == 1 and thoughts:
        assert sum(bool(said) for _, said in pieces) > 1  # said as it is written, once the thoughts are over


def test_a_template_may_begin_the_thoughts(tokenizer: Any) -> None:
    prompt = [*encode_prompt(tokenizer, "1+1="), *tokenizer("<think>\n", add_special_tokens=False)["input_ids"]]
    parting = Parting(tokenizer, prompt, ())
    assert parting.next(Delta("hm", tokenizer("hm", add_special_tokens=False)["input_ids"])) == ("", "")
