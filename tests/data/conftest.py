"""Two tokenizers without downloads: a toy ChatGLM-6B one, and a fast byte-level one with a ChatML template."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from glmtune.models.chatglm.tokenization_chatglm import ChatGLMTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def chatglm() -> ChatGLMTokenizer:
    return ChatGLMTokenizer(GOLDEN / "tokenizer" / "toy.model")


@pytest.fixture
def chatml() -> PreTrainedTokenizerFast:
    """One token a byte (ids below 256), then the control tokens. It starts every bare text with `<bos>`."""
    core = Tokenizer(models.BPE({char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<bos>"])
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 256)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )
