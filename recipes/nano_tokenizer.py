"""Makes the tokenizer and the configuration of the embedded model `nano`; `recipes/nano.yaml` trains its weights.

    python recipes/nano_tokenizer.py glmtune/models/nano
    python recipes/nano_tokenizer.py runs/arithmetic-wide-base 4096  # the same for longer texts

The tokenizer is a SentencePiece model laid out like ChatGLM-6B's: control pieces for `[MASK] [gMASK] <sop> <eop>`,
pieces for newline, tab and runs of blanks, single digits, bytes for everything else. Its text is drawn from the
project's own tasks, so nothing has to be fetched.
"""

from __future__ import annotations

import random
import string
import sys
import tempfile
from pathlib import Path

import sentencepiece

from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
from glmtune.models.chatglm.tokenization_chatglm import ChatGLMTokenizer
from glmtune.tasks.arithmetic import PROMPT_WORDS, Arithmetic, ArithmeticSettings
from glmtune.tasks.wording import COPY_WORDS, EQUALS_WORDS, OPERATOR_WORDS, Wording

SEED = 1
CONTROL = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
BLANKS = ["<n>", "<|tab|>", *(f"<|blank_{count}|>" for count in range(2, 81))]


def text_lines() -> list[str]:
    """What the pieces are learned from: the words of the tasks, and drawn problems."""
    words = [word for group in (*OPERATOR_WORDS.values(), EQUALS_WORDS, COPY_WORDS, *PROMPT_WORDS) for word in group]
    rng = random.Random(SEED)
    plain = ArithmeticSettings(style="direct")
    tasks = [Wording(plain), Arithmetic(plain.model_copy(update={"prompt_words": True}))]
    drawn = [task.sample(rng) for task in tasks for _ in range(3000)]
    texts = [f"{e.prompt}{e.target}" for e in drawn if "=-" not in e.target]  # signs in a row would become a piece
    return [word.strip() for word in words for _ in range(300)] + texts


def main(folder: str, max_sequence_length: str = "512") -> None:
    """Write `ice_text.model`, `tokenizer_config.json` and `config.json` into the folder."""
    with tempfile.TemporaryDirectory() as work:
        corpus = Path(work, "corpus.txt")
        corpus.write_text("\n".join(text_lines()), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus),
            model_prefix=str(Path(work, "ice_text")),
            model_type="unigram",
            vocab_size=512,
            hard_vocab_limit=False,
            character_coverage=1.0,
            required_chars=string.digits + string.punctuation + string.ascii_letters,
            byte_fallback=True,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            control_symbols=CONTROL,
            user_defined_symbols=BLANKS,
            num_threads=1,
            minloglevel=1,
        )
        tokenizer = ChatGLMTokenizer(str(Path(work, "ice_text.model")))
    tokenizer.save_pretrained(folder)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokenizer.special_tokens_map.items()}
    ChatGLMConfig(
        architectures=["ChatGLMForCausalLM"],
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=128,
        num_layers=4,
        num_attention_heads=4,
        inner_hidden_size=512,
        max_sequence_length=int(max_sequence_length),
        # 1 / sqrt(hidden_size): with a residual scaled by sqrt(56), smaller weights are hardly heard at first.
        initializer_range=0.08,
        mask_token_id=ids["mask_token"],
        gmask_token_id=ids["gmask_token"],
        bos_token_id=ids["bos_token"],
        eos_token_id=ids["eos_token"],
        pad_token_id=ids["pad_token"],
    ).save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:3])
