"""`make`: a checkpoint of random weights, and the same as a GGUF file."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_tokenizers import SIZES, byte_level
from transformers import AutoModelForCausalLM, Glm4Config, GlmConfig, LlamaConfig

from glmtune.exports.gguf.file import write_gguf

CONFIGS = {"glm": GlmConfig, "glm4": Glm4Config, "llama": LlamaConfig}
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
Makes = Callable[..., tuple[Path, Path]]


@pytest.fixture
def make(tmp_path: Path) -> Makes:
    """`make("llama", sentencepiece, precision="q8_0")`: a checkpoint of random weights, and the same as a GGUF file."""

    def run(
        family: str = "llama", words: Any = byte_level, precision: Any = "f32", **settings: Any
    ) -> tuple[Path, Path]:
        folder, file = tmp_path / "checkpoint", tmp_path / "file" / "tiny.gguf"
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[family](**{**SIZES, **settings}))
        model.save_pretrained(folder)
        tokenizer = words(family)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_gguf(folder, file, precision)
        return folder, file

    return run
