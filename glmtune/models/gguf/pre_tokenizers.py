"""How llama.cpp cuts a text into words before their bytes are merged: its names, and the steps of `tokenizer.json`.

The one table for both directions. A GGUF file says no more than such a name, `tokenizer.ggml.pre`; what it stands for
was read in llama.cpp's src/llama-vocab.cpp, and is written here as the models' own releases write it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Step = Mapping[str, Any]

SPOKEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = r"[^\r\n\p{L}\p{N}]?" + UPPER + "*" + LOWER + "+%s|" + r"[^\r\n\p{L}\p{N}]?" + UPPER + "+" + LOWER + "*%s"
PATHS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def split(pattern: str) -> Step:
    """Return the step that makes words of what an expression finds, and of what is between."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex: bool = False) -> Step:
    """Return the step that writes a text as bytes; with `use_regex` it cuts as GPT-2 does, first."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


DIGITS: Step = {"type": "Digits", "individual_digits": True}


@dataclass(frozen=True)
class PreTokenizer:
    """One way to cut texts.

    Attributes:
        steps: of the `pre_tokenizer` of a `tokenizer.json`, in order.
        aliases: other names for it.
        ignore_merges: a word that is a token is taken as it is.
        adds_bos: a `bos` is put before a text where the file does not say.
        normalizer: what its models do to a text first, which llama.cpp does not.
    """

    steps: tuple[Step, ...]
    aliases: tuple[str, ...] = ()
    ignore_merges: bool = False
    adds_bos: bool = False
    normalizer: Step | None = None


PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(
        (byte_level(True),),
        (
            *("phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0", "mellum", "mpt"),
            *("olmo", "jais", "exaone4", "trillion", "granite-docling"),
        ),
    ),
    "smollm": PreTokenizer(
        (DIGITS, byte_level(True)), ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
    ),
    "llama-bpe": PreTokenizer(
        (split(SPOKEN + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST), byte_level()),
        ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        ignore_merges=True,
        adds_bos=True,
    ),
    "smaug-bpe": PreTokenizer(
        (split(SPOKEN + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST), byte_level()),
        ("dbrx", "glm4", "chatglm-bpe"),
    ),
    "qwen2": PreTokenizer(
        (split(SPOKEN + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST), byte_level()), normalizer={"type": "NFC"}
    ),
    "deepseek-r1-qwen": PreTokenizer(
        (split(SPOKEN + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST), byte_level()),
        ("stablelm2", "hunyuan", "megrez", "kormo", "f2llmv2", "grok-2"),
    ),
    "qwen35": PreTokenizer(
        (
            split(
                SPOKEN
                + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            byte_level(),
        ),
        normalizer={"type": "NFC"},
    ),
    "tekken": PreTokenizer(
        (split(CASED % ("", "") + r"|\p{N}" + PATHS), byte_level()), ignore_merges=True, adds_bos=True
    ),
    "gpt-4o": PreTokenizer(
        (split(CASED % (SPOKEN + "?", SPOKEN + "?") + r"|\p{N}{1,3}" + PATHS), byte_level()),
        ("llama4", "kanana2", "talkie", "minimax-m2"),
    ),
    "deepseek-v3": PreTokenizer(
        (
            split(r"\p{N}{1,3}"),
            split("[一-龥\u3040-\u309f\u30a0-\u30ff]+"),
            split(
                r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
                r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            byte_level(),
        ),
        ("hunyuan-dense",),
    ),
    "deepseek-coder": PreTokenizer(
        (
            *(split(pattern) for pattern in (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+")),
            DIGITS,
            byte_level(),
        )
    ),
    "bloom": PreTokenizer((split(r" ?[^(\s|.,!?…。，、।۔،)]+"), byte_level()), ("poro-chat", "gpt3-finnish")),
    "viking": PreTokenizer((split(r" ?[^(\s|.,!?…。，、।۔،)]+"), DIGITS, byte_level())),
    # What llama.cpp does where a file names no way: no model was trained so.
    "default": PreTokenizer(
        (split(r"[\p{P}\$\+<=>\^~\|]+"), split(GPT2), split(r"\p{N}+"), split("[0-9][0-9][0-9]"), byte_level())
    ),
}


def find(name: str) -> PreTokenizer | None:
    """Return the way to cut texts that llama.cpp calls by a name; None where it is not known here."""
    named = (way for key, way in PRE_TOKENIZERS.items() if name in (key, *way.aliases))
    return next(named, None)


def name_of(steps: Sequence[Step], ignore_merges: bool = False) -> str | None:
    """Return llama.cpp's name for the steps of a `pre_tokenizer`; None where it has none.

    Args:
        steps: of a `tokenizer.json`.
        ignore_merges: what its model says: of two names for the same steps, that is taken in which it is the same.
    """
    wanted = [meaning(step) for step in steps]
    names = [name for name, way in PRE_TOKENIZERS.items() if [meaning(step) for step in way.steps] == wanted]
    return min(names, key=lambda name: PRE_TOKENIZERS[name].ignore_merges != ignore_merges, default=None)


def meaning(step: Step) -> Step:
    """Return where a step cuts, with what is left to a default: not what it says of offsets and of a blank in front."""
    default = {"use_regex": True} if step["type"] == "ByteLevel" else {"invert": False}
    return {**default, **{key: value for key, value in step.items() if key not in ("trim_offsets", "add_prefix_space")}}
