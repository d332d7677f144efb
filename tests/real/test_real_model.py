"""The real model is the one that it should be: it answers, and its tokenizer splits numbers into digits."""

from pathlib import Path

from glmtune.config import GenerationSettings, ModelSettings
from glmtune.inference.engine import Engine
from glmtune.models import loading


def test_it_answers(real_model: Path) -> None:
    model, tokenizer = loading.load_model(ModelSettings(path=str(real_model), dtype="bfloat16"))
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    (answer,) = Engine(model, tokenizer).answer([asked], GenerationSettings(max_new_tokens=16))
    assert "Paris" in answer.text


def test_numbers_are_digits(real_model: Path) -> None:
    tokenizer = loading.load_tokenizer(str(real_model))
    assert tokenizer.tokenize("25+137=") == ["2", "5", "+", "1", "3", "7", "="]
