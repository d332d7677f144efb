"""The tokenizer of a GGUF file: tokenizer.json in llama.cpp's words. What these cannot say is told by a warning."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from glmtune.exports.gguf.source import Source
from glmtune.models.gguf import pre_tokenizers
from glmtune.runtime import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens, in SentencePiece's numbers
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
GENERATION = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
TEMPLATE = "TemplateProcessing"  # the step of tokenizer.json that puts control tokens around a text


def vocabulary_of(source: Source) -> dict[str, Any]:
    """Return tokens, how texts become tokens, control tokens and chat template.

    Raises:
        UserError: a kind of tokenizer that llama.cpp does not have, or one that does not fit the embedding.
    """
    model, tokenizer = source.tokenizer["model"], source.tokenizer
    tokens, kinds = token_table(source)
    values: dict[str, Any] = {"tokens": tokens, "token_type": kinds, **control_tokens(source)}
    if model.get("type", "BPE") != "BPE" or not (is_byte_level(tokenizer) or model.get("byte_fallback")):
        raise UserError(f"tokenizer.json: llama.cpp has no {model.get('type')} without bytes. Use --to merged.")
    if is_byte_level(tokenizer):
        values |= {
            "model": "gpt2",
            "pre": pre_tokenizer_name(source),
            "merges": [" ".join(pair) for pair in merges_of(model)],
        }
    else:
        values |= {"model": "llama", "pre": "default", "scores": piece_scores(tokens, kinds, merges_of(model))}
        values |= {"add_space_prefix": adds_blank(tokenizer)}
        if values["add_space_prefix"] and (whole := whole_pieces(tokenizer)):
            warn(f"cuts {min(whole)!r} out of texts, after which llama.cpp puts a blank")
    named = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    template = chat_template(source)
    return {**named, "tokenizer.chat_template": template} if template else named


def steps_of(tokenizer: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """Return the steps of a part of tokenizer.json, which is one step, a sequence of them, or nothing."""
    found = tokenizer.get(part)
    inside = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors"}[part]
    return [] if found is None else found.get(inside) or [found]


def merges_of(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the pairs that a BPE merges, first things first; older files write a pair as one text."""
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in pairs]


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Return whether texts are taken as bytes from the start, as GPT-2 does."""
    return any(step["type"] == "ByteLevel" for step in steps_of(tokenizer, "pre_tokenizer"))


def token_table(source: Source) -> tuple[list[str], list[int]]:
    """Return text and type of every token, one for each row of the embedding.

    Raises:
        UserError: more tokens than rows, or two of the same text.
    """
    model, rows, names = source.tokenizer["model"], source.config.vocab_size, bracketed_words(source.tokenizer)
    whole = whole_pieces(source.tokenizer)
    texts = {index: piece.replace("▁", " ") if piece in whole else piece for piece, index in model["vocab"].items()}
    kinds = {index: piece_kind(piece, model, whole) for piece, index in model["vocab"].items()}
    for token in added_tokens(source.tokenizer):
        texts[token["id"]] = names.get(token["content"], token["content"])
        if kinds.get(token["id"]) != UNKNOWN:
            kinds[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if max(texts) >= rows:
        raise UserError(f"tokenizer.json has token {max(texts)}, config.json says vocab_size={rows}. Copy both again.")
    tokens = [texts.get(index, f"[PAD{index}]") for index in range(rows)]
    text, times = Counter(tokens).most_common(1)[0]
    if times > 1:
        raise UserError(f"tokenizer.json: {times} tokens are {text!r} in a GGUF file, which llama.cpp refuses.")
    return tokens, [kinds.get(index, UNUSED) for index in range(rows)]


def whole_pieces(tokenizer: Mapping[str, Any]) -> set[str]:
    """Return the pieces that a SentencePiece-like tokenizer finds before it merges anything: no merge makes them."""
    model = tokenizer["model"]
    if not (model.get("byte_fallback") and model.get("ignore_merges")):
        return set()
    merged = {left + right for left, right in merges_of(model)}
    others = merged | {token["content"] for token in added_tokens(tokenizer)}
    pieces = model["vocab"].keys() - others - {model.get("unk_token")}
    return {piece for piece in pieces if len(piece) > 1 and not BYTE_PIECE.fullmatch(piece)}


def piece_kind(piece: str, model: Mapping[str, Any], whole: Collection[str]) -> int:
    """Return the type of a piece that is no added token."""
    if not model.get("byte_fallback"):
        return NORMAL
    if piece == model.get("unk_token"):
        return UNKNOWN
    return BYTE if BYTE_PIECE.fullmatch(piece) else USER_DEFINED if piece in whole else NORMAL


def bracketed_words(tokenizer: Mapping[str, Any]) -> dict[str, str]:
    """Return control tokens that are plain words -> what the file calls them, in its tokens and its template.

    transformers finds ChatGLM2-6B's `eop` only where it stands alone. llama.cpp finds a control token anywhere in a
    prompt, and would cut every `people` into three.
    """
    words = [
        token["content"] for token in added_tokens(tokenizer) if token["single_word"] and token["content"].isalnum()
    ]
    return {word: f"<{word}>" for word in words if f"<{word}>" not in token_ids(tokenizer)}


def pre_tokenizer_name(source: Source) -> str:
    """Return llama.cpp's name for the way in which a byte-level tokenizer cuts a text into words.

    Raises:
        UserError: it has none.
    """
    tokenizer = source.tokenizer
    steps = steps_of(tokenizer, "pre_tokenizer")
    name = pre_tokenizers.name_of(steps, bool(tokenizer["model"].get("ignore_merges")))
    if name is None:
        raise UserError(
            f"tokenizer.json: llama.cpp has no name for its pre_tokenizer {shorten(steps)}, so that texts would become "
            "other tokens than in training. Use --to merged."
        )
    if steps[-1].get("add_prefix_space") or tokenizer.get("normalizer"):
        warn("prepares texts in a way that llama.cpp has no name for")
    return (source.facts.pre_tokenizers or {}).get(name, name)


def shorten(steps: list[dict[str, Any]]) -> str:
    """Return steps of a pre-tokenizer for a message: their types, and where the first expression begins."""
    names = " + ".join(str(step["type"]) for step in steps)
    patterns = [step["pattern"]["Regex"] for step in steps if "Regex" in step.get("pattern", {})]
    return f"{names} ({patterns[0][:60]!r})" if patterns else names


def adds_blank(tokenizer: Mapping[str, Any]) -> bool:
    """Return whether a SentencePiece-like tokenizer puts a blank before a text."""
    known = ({"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    normalizer = steps_of(tokenizer, "normalizer")
    if any(step not in known for step in normalizer):
        warn("changes characters of a text, which llama.cpp does not")
    metaspaces = [step for step in steps_of(tokenizer, "pre_tokenizer") if step["type"] == "Metaspace"]
    return known[0] in normalizer or any(step.get("prepend_scheme", "always") != "never" for step in metaspaces)


def piece_scores(tokens: list[str], kinds: list[int], pairs: list[tuple[str, str]]) -> list[float]:
    """Return how early llama.cpp is to make each piece.

    Of all neighbours that form pieces, those of the highest score go first. tokenizer.json ranks pairs
    instead. The order is the same if all pairs of a piece are there, one after the other.
    """
    ranks: dict[str, list[int]] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, []).append(rank)
    normal = {token for token, kind in zip(tokens, kinds, strict=True) if kind == NORMAL}
    last = [len(pairs)]  # of a piece that no pair makes
    values = {piece: -float(ranks.get(piece, last)[0]) if len(piece) > 1 else 0.0 for piece in normal}
    for piece in normal:
        cuts = sum(piece[:cut] in normal and piece[cut:] in normal for cut in range(1, len(piece)))
        made = ranks.get(piece, [])
        if len(made) != cuts or (made and made[-1] - made[0] >= cuts):
            warn(f"merges in an order ({piece!r}) that llama.cpp cannot follow")
            break
    return [values.get(token, 0.0) if kind == NORMAL else 0.0 for token, kind in zip(tokens, kinds, strict=True)]


def warn(what: str) -> None:
    """Warn that the file's tokenizer may give other tokens than the checkpoint's."""
    warnings.warn(
        f"tokenizer.json {what}: some texts may become other tokens. Compare them with llama.cpp's llama-tokenize.",
        stacklevel=2,
    )


def control_tokens(source: Source) -> dict[str, Any]:
    """Return the ids of the control tokens, and whether they are put around a text."""
    ids, settings = token_ids(source.tokenizer), source.settings
    bos, unknown, pad, eos = (text_of(settings.get(f"{name}_token")) for name in ("bos", "unk", "pad", "eos"))
    values: dict[str, Any] = {f"{place}_token_id": index for place, index in end_tokens(source, ids.get(eos)).items()}
    for name, text in (("bos", bos), ("unknown", unknown), ("padding", pad)):
        if text in ids:
            values[f"{name}_token_id"] = ids[text]
    around = [step["single"] for step in steps_of(source.tokenizer, "post_processor") if step["type"] == TEMPLATE]
    first, last = (around[0][index].get("SpecialToken", {}).get("id") for index in (0, -1)) if around else (None, None)
    adds_bos = first == bos if around else bool(settings.get("add_bos_token"))
    return {
        **values,
        "add_bos_token": bos in ids and adds_bos,
        "add_eos_token": eos in ids and last == eos,
    }


def end_tokens(source: Source, eos: int | None) -> dict[str, int]:
    """Return the tokens that end an answer, in the three places that llama.cpp has for them.

    Raises:
        UserError: there is none.
    """
    ids = token_ids(source.tokenizer)
    roles = [ids.get(role) for role in source.facts.end_tokens]
    found = dict.fromkeys(index for index in (eos, *source.ends, *roles) if index is not None)
    within = [index for index in found if index < source.config.vocab_size]
    if not within:
        raise UserError("tokenizer_config.json: no eos_token, so that no answer would end. Name the token there.")
    return dict(zip(("eos", "eot", "eom"), within, strict=False))


def added_tokens(tokenizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tokens of tokenizer.json that are found in a text before the model sees it."""
    tokens: list[dict[str, Any]] = tokenizer.get("added_tokens", [])
    return tokens


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str | None, int]:
    """Return text -> id of every token, by tokenizer.json."""
    return {**tokenizer["model"]["vocab"], **{token["content"]: token["id"] for token in added_tokens(tokenizer)}}


def text_of(token: Any) -> str | None:
    """Return a token of tokenizer_config.json, which is a text, or something that has one, or nothing."""
    return token.get("content") if isinstance(token, dict) else token


def chat_template(source: Source) -> str | None:
    """Return the chat template, of several the default one, without the marks that only training needs."""
    template = source.settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if template is None:
        return None
    for word, name in bracketed_words(source.tokenizer).items():
        template = re.sub(rf"(?<!\w){word}(?!\w)", name, template)
    return GENERATION.sub(r"{#\1 \2#}", template)  # a comment takes the same blanks away
