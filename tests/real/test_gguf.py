"""The real model straight from its GGUF file: trained, merged, and written as a file that llama.cpp opens."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch

import glmtune
from glmtune.commands import export, train
from glmtune.config import GenerationSettings, ModelSettings
from glmtune.inference.engine import Engine
from glmtune.models import loading
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


def answer(engine: Any, prompt: str) -> str:
    """What gpt4all's llama.cpp goes on with, greedily, after a prompt with control tokens."""
    parts: list[str] = []

    def keep(_: int, text: str) -> bool:
        parts.append(text)
        return True

    greedy = {"n_predict": 12, "temp": 0.0, "repeat_penalty": 1.0, "reset_context": True, "special": True}
    engine.model.prompt_model(prompt, "%1%2", keep, **greedy)
    return "".join(parts)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_from_a_file_through_training_to_llama_cpp(real_gguf: Path, tmp_path: Path) -> None:
    gpt4all = pytest.importorskip("gpt4all", reason="needs llama.cpp: pip install gpt4all")
    console = Console(file=io.StringIO())
    run = train.run(
        overrides=[*SETTINGS, f"model.path={real_gguf}", f"training.output_dir={tmp_path / 'run'}"], console=console
    )
    place = export.run(run.folder.path, "gguf", str(tmp_path / "tuned.gguf"), precision="float16", console=console)
    model, tokenizer = glmtune.load(run.folder.path, dtype="float32")
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    here = Engine(model, tokenizer).answer(asked, GenerationSettings(max_new_tokens=12))
    prompts = [tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) for talk in asked]
    engine = gpt4all.GPT4All(place.name, model_path=str(place.parent), allow_download=False, device="cpu", n_ctx=256)
    there = [answer(engine, str(prompt)) for prompt in prompts]
    engine.close()
    if not any(there):
        pytest.skip("this llama.cpp is older than the pre-tokenizer smollm, and opens no file that names it")
    same = sum(ours.text.strip() == theirs.strip() for ours, theirs in zip(here, there, strict=True))
    assert same >= len(QUESTIONS) - 1, [(ours.text, theirs) for ours, theirs in zip(here, there, strict=True)]
