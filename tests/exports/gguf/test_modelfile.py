"""Ollama's Modelfile: its template says what the chat template says, or nothing; and a GGUF export as a whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from glmtune.commands import export
from glmtune.config import GenerationSettings
from glmtune.exports.gguf.modelfile import conversations, modelfile_of, rendered, turns_of
from glmtune.models.checkpoint import read_json
from glmtune.models.templates import read_preset
from glmtune.runtime import UserError

pytest.importorskip("gguf", reason="needs the package gguf: pip install 'glmtune[gguf]'")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "<s>{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('none') }}{% elif m.role == 'user' %}"
    "[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
ROUNDS = (
    "{% for m in messages %}{% if m.role == 'user' %}[Round {{ loop.index }}]{% endif %}{{ m.content }}{% endfor %}"
)


def tokenizer_of(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, like SmolLM2's: digits stand alone."""
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({**alphabet, "an": len(alphabet)}, [("a", "n")]))
    cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<s>", "</s>"])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = template
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bf16 that llama.cpp has an architecture for."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=272, max_position_embeddings=256, initializer_range=0.2, **sizes)
    config.bos_token_id, config.eos_token_id = None, 258
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer_of().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("template", [CHATML, NO_SYSTEM, read_preset("alpaca"), read_preset("plain")])
def test_templates_that_can_be_said(template: str) -> None:
    tokenizer = tokenizer_of(template)
    turns = turns_of(lambda messages: rendered(tokenizer, template, messages))
    assert turns is not None and (turns.system is None) == (template == NO_SYSTEM)
    for messages in conversations(turns):
        assert turns.render(messages) == rendered(tokenizer, template, messages)


def test_the_template_in_go() -> None:
    turns = turns_of(lambda messages: rendered(tokenizer_of(), CHATML, messages))
    assert turns is not None
    assert turns.in_go() == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ range .Messages }}"
        '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n'
        '{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
    )


@pytest.mark.parametrize(
    "template", [ROUNDS, "{{ messages[0].content.upper() }}", CHATML.replace("<|", '"""{{ "{{" }}')]
)
def test_templates_that_cannot_be_said(template: str) -> None:
    assert turns_of(lambda messages: rendered(tokenizer_of(), template, messages)) is None


@pytest.mark.parametrize("precision", ["auto", "q4_k_m"])
def test_a_gguf_export_as_a_whole(checkpoint: Path, tmp_path: Path, precision: Any) -> None:
    """The file, its record, its card and a Modelfile; of few bits it is said what to do next."""
    told, file = io.StringIO(), tmp_path / f"Tiny-{precision}.gguf"
    few = ["evaluation.num_examples_during=2", "generation.max_new_tokens=4"]
    export.run(checkpoint, "gguf", str(file), few, precision, console=Console(file=told, width=1000))
    names = {entry.name.removeprefix(file.name) for entry in tmp_path.iterdir()}
    assert names == {"", ".json", ".md", ".Modelfile"}
    lines = file.with_name(f"{file.name}.Modelfile").read_text().splitlines()
    assert lines[:2] == [f"# ollama create tiny-{precision} -f {file.name}.Modelfile", f"FROM ./{file.name}"]
    assert lines[2].startswith('TEMPLATE """{{ if .System }}<|im_start|>system')
    assert [line.removeprefix("PARAMETER ") for line in lines[-5:]] == [
        'stop "<|im_end|>"',
        "num_ctx 256",
        "num_predict 4",
        "repeat_penalty 1",
        "temperature 0",
    ]
    checked = read_json(file.with_name(f"{file.name}.json"))["verification"]
    fallbacks = "q4_k_m: rows that are no multiple of 256 are stored in blocks that fit, as llama.cpp does:"
    assert (fallbacks in told.getvalue()) == (precision != "auto")
    assert ("quantized" in checked) == (precision != "auto") == (f"glmtune evaluate {file}" in told.getvalue())
    assert f"ollama create tiny-{precision} -f {file.name}.Modelfile" in file.with_name(f"{file.name}.md").read_text()


def test_what_decoding_and_examples_add(checkpoint: Path, tmp_path: Path) -> None:
    """A system message that all examples share is the model's; one that only some have is not."""
    file = tmp_path / "tiny.gguf"
    export.run(checkpoint, "gguf", str(file), ["evaluation.num_examples_during=1", "generation.max_new_tokens=2"])
    sampling = GenerationSettings(do_sample=True, temperature=0.5, top_p=0.9)
    with_system = [{"role": "system", "content": "Count."}, {"role": "user", "content": "1+1="}]
    made = modelfile_of(file, tokenizer_of(), sampling, [with_system, with_system])
    assert 'SYSTEM """Count."""\n' in made and made.endswith(
        "PARAMETER temperature 0.5\nPARAMETER top_p 0.9\nPARAMETER top_k 0\nPARAMETER min_p 0\n"
    )
    assert "num_predict" not in made
    assert "SYSTEM" not in modelfile_of(file, tokenizer_of(), sampling, [with_system, "1+1="])


def test_of_few_bits_are_only_gguf_files(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dtype q4_k_m: is a form of numbers in GGUF files, not of --to merged"):
        export.run(checkpoint, "merged", str(tmp_path / "out"), (), "q4_k_m")
