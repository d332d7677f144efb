"""The real model straight from its GGUF file: trained, merged, and written as a file that llama.cpp opens."""

import io
from pathlib import Path

import pytest
import torch

import glmtune
from glmtune.commands import export, train
from glmtune.config import GenerationSettings, ModelSettings
from glmtune.data.encoding import encode_prompt
from glmtune.inference.completion import Request
from glmtune.inference.engine import Engine
from glmtune.inference.llama_cpp.engine import LlamaCppEngine
from glmtune.inference.llama_cpp.found import find_llama_cpp
from glmtune.models import loading
from glmtune.resolution import resolve
from glmtune.terminal.console import Console

QUESTIONS = ["What is the capital of France?", "What is 7 + 5?", "Name a fruit.", "What is 57 - 13?"]
SETTINGS = (
    *("task.operators=+-", "task.kinds=[integer]", "task.style=direct", "task.echo=false", "training.steps=2"),
    *("training.batch_size=2", "training.learning_rate=0.001", "generation.max_new_tokens=12"),
    *("evaluation.num_examples=2", "evaluation.num_examples_during=1"),
)


def test_the_file_is_the_converted_model(real_gguf: Path, real_model: Path) -> None:
    """The same ids, and the same numbers up to the rounding of the conversion to bfloat16."""
    ours, words = loading.load_model(ModelSettings(path=str(real_gguf), dtype="float32"))
    theirs, others = loading.load_model(ModelSettings(path=str(real_model), dtype="float32"))
    texts = ["57.84 + 13.64 = 71.48", "  What is 12345?\n\n", "<|im_start|>user\n2+2<|im_end|>\n", "你好 ½ 😀"]
    assert [words(text)["input_ids"] for text in texts] == [others(text)["input_ids"] for text in texts]
    assert words.chat_template == others.chat_template
    converted = theirs.state_dict()
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, converted[name], rtol=2**-8, atol=1e-6)


def test_from_a_file_through_training_to_llama_cpp(real_gguf: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install 'glmtune[llama-cpp]'")
    console = Console(file=io.StringIO())
    run = train.run(
        overrides=[*SETTINGS, f"model.path={real_gguf}", f"training.output_dir={tmp_path / 'run'}"], console=console
    )
    place = export.run(run.folder.path, "gguf", str(tmp_path / "tuned.gguf"), precision="float16", console=console)
    model, tokenizer = glmtune.load(run.folder.path, dtype="float32")
    settings = GenerationSettings(max_new_tokens=12)
    requests = [Request(encode_prompt(tokenizer, question), settings) for question in QUESTIONS]
    here = dict(Engine(model, tokenizer).complete(requests))
    stops = resolve(place, recipe=run.folder.path).stops
    with LlamaCppEngine(find_llama_cpp("xllamacpp"), place, tokenizer, stops) as engine:
        there = dict(engine.complete(requests))
        assert engine.differing == 0
    both = [(here[place].text, there[place].text) for place in here]
    assert sum(ours == theirs for ours, theirs in both) >= len(QUESTIONS) - 1, both
