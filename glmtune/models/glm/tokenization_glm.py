"""Tokenizers of ChatGLM2-6B, ChatGLM3-6B and GLM-4-9B, from the `tokenizer.model` of their releases.

ChatGLM2-6B and ChatGLM3-6B have a SentencePiece BPE with control tokens numbered after its last piece, GLM-4-9B a
tiktoken file. Both become a `tokenizers` BPE that gives the original's ids: an artefact holds it as `tokenizer.json`,
which transformers reads without this package.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from glmtune.models.checkpoint import LFS_MARK, local_folder, parse_sentencepiece, read_json
from glmtune.models.glm.configuration_glm import OriginalGlmConfig
from glmtune.models.templates import read_pair

VOCAB_FILE = "tokenizer.model"
REMEDY = "Get the file of the release that the weights are of: `git lfs pull` in a git clone, or `hf download`."
# In the order of their ids, after the last piece. ChatGLM2-6B has the first five, and rows for the others as well. The
# original calls two of them `sop` and `eop`, which stand in words such as "people"; GLM-4 has these names.
CONTROL_TOKENS = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
ROLE_TOKENS = ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
GLM4_CONTROL_TOKENS = ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *ROLE_TOKENS]
# How GLM-4's text is cut before its bytes are merged (also that of tiktoken's cl100k_base).
GLM4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of SentencePiece's pieces
BPE_MODEL = 2  # SentencePiece's number for it
# What may be set where a tokenizer is loaded.
SETTINGS = ("padding_side", "truncation_side", "model_max_length", "chat_template", "split_special_tokens", "pad_token")
# Texts on which the ids are compared with SentencePiece's own: what conversions of tokenizers get wrong.
PROBES = (
    "1+1=2",
    " 57.84 + 13.64",
    "  a\n\n\tb ",
    "你好，世界！\n答：４２",
    "naïve 😀 ½ \u00a0x",
    "</s><unk>[gMASK]sop<sop>",
    "",
)


def load_original(folder: Path, **settings: Any) -> PreTrainedTokenizerFast:
    """Load the tokenizer of an original checkpoint, with the chat template of its release.

    That in `tokenizer_config.json` is not used: those of the releases are not what their code does, and name `sop`,
    which is no control token. A `chat_template.jinja`, which they do not have, somebody put there: it counts.

    Args:
        folder: holds `tokenizer.model`, and most often `tokenizer_config.json`.
        settings: of transformers' tokenizers, in place of what the release has.

    Raises:
        ValueError: the file is missing, an LFS pointer, damaged, or of another model.
    """
    content = read_file(folder / VOCAB_FILE)
    saved = folder / "tokenizer_config.json"
    declared = read_json(saved) if saved.is_file() else {}
    ranks = parse_tiktoken(content)
    if ranks is not None:
        named = {int(index): str(token["content"]) for index, token in declared.get("added_tokens_decoder", {}).items()}
        controls = named or dict(enumerate(GLM4_CONTROL_TOKENS, start=max(ranks.values()) + 1))
        core, template, end, unknown = from_tiktoken(ranks, controls), "glm4", GLM4_CONTROL_TOKENS[0], None
        return wrap_tokenizer(core, template, end, unknown, read_template(folder) | settings)
    tokenizer = from_sentencepiece(content, folder / VOCAB_FILE)
    template = "chatglm3" if has_roles(folder, declared) else "chatglm2"
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if template == "chatglm2" and (config.get("rope_ratio") or 1) != 1:
        raise ValueError(
            f"{folder}: rope_ratio={config['rope_ratio']}: ChatGLM2-6B-32K divides its positions by it, which is not "
            "known here. If this is ChatGLM3-6B-32K, copy its tokenizer_config.json and tokenization_chatglm.py here, "
            "by which it is told (they are read, not run)."
        )
    return wrap_tokenizer(tokenizer, template, "</s>", "<unk>", read_template(folder) | settings)


def wrap_tokenizer(
    tokenizer: Tokenizer, template: str, end: str, unknown: str | None = None, settings: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerFast:
    """Return a tokenizer as transformers knows them; it puts `[gMASK]<sop>` before a text, as the originals do.

    Args:
        tokenizer: turns texts into ids.
        template: preset.
        end: ends a text; pads where there is no `unknown`.
        unknown: stands for what has no token; pads.
        settings: in place of these.
    """
    given = dict(settings or {})
    first = ["[gMASK]", "<sop>"]
    ids = [(token, tokenizer.token_to_id(token)) for token in (*first, end)]
    start = " ".join(first)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A $B {end}", special_tokens=ids
    )
    known = {
        "eos_token": end,
        "pad_token": unknown or end,
        "unk_token": unknown,
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **({} if "chat_template" in given else read_pair(template, end)),
    }
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**known, **given})


def read_template(folder: Path) -> dict[str, Any]:
    """Return the template that lies in the folder as a file of its own, if one does."""
    file = folder / "chat_template.jinja"
    return {"chat_template": file.read_text(encoding="utf-8")} if file.is_file() else {}


def read_file(file: Path) -> bytes:
    """Return the bytes of a tokenizer file.

    Raises:
        ValueError: it is missing, or an LFS pointer.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"The tokenizer cannot read {file}: {error.strerror}. {REMEDY}") from error
    if content.startswith(LFS_MARK):
        raise ValueError(f"{file} is a Git LFS pointer, not the file itself. {REMEDY}")
    return content


def has_roles(folder: Path, declared: Mapping[str, Any]) -> bool:
    """Return whether a SentencePiece release is ChatGLM3-6B's, whose files name its roles. Code is read, never run."""
    code = folder / "tokenization_chatglm.py"
    texts = [str(declared), code.read_text(encoding="utf-8") if code.is_file() else ""]
    return any(ROLE_TOKENS[1] in text for text in texts)


def parse_tiktoken(content: bytes) -> dict[bytes, int] | None:
    """Return token -> rank of a tiktoken file: a token in base64 and its rank in each line. None for other files."""
    try:
        lines = [line.split() for line in content.splitlines() if line]
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in lines} or None
    except (ValueError, binascii.Error):
        return None


def from_tiktoken(ranks: Mapping[bytes, int], controls: Mapping[int, str]) -> Tokenizer:
    """Return a BPE over bytes that merges as tiktoken does: of pairs that make a token, that of the lowest rank first.

    Args:
        ranks: of every token; their ids.
        controls: id -> control token.
    """
    alphabet = bytes_to_unicode()
    written = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    by_rank = sorted(ranks, key=lambda token: ranks[token])
    merges = [(written[left], written[right]) for token in by_rank for left, right in split_token(token, ranks)]
    model = BPE({written[token]: rank for token, rank in ranks.items()}, merges, ignore_merges=True)
    tokenizer = Tokenizer(model)
    split = pre_tokenizers.Split(Regex(GLM4_PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    add_controls(tokenizer, [controls[index] for index in sorted(controls)])
    moved = {
        token: tokenizer.token_to_id(token)
        for index, token in controls.items()
        if tokenizer.token_to_id(token) != index
    }
    if moved:
        raise ValueError(f"tokenizer_config.json numbers its tokens otherwise than tokenizer.model: {moved}. {REMEDY}")
    return tokenizer


def from_sentencepiece(content: bytes, file: Path) -> Tokenizer:
    """Return a BPE that merges as SentencePiece does: of all pairs that make a piece, that of the highest score first.

    Raises:
        ValueError: the file is damaged, of another kind, or would be read otherwise than by SentencePiece.
    """
    try:
        proto = parse_sentencepiece(content)
    except ValueError as error:
        raise ValueError(f"{file} is damaged, or neither SentencePiece nor tiktoken. {REMEDY}") from error
    if proto.trainer_spec.model_type != BPE_MODEL:
        raise ValueError(f"{file} is no BPE: it is of another model than ChatGLM2-6B or ChatGLM3-6B. {REMEDY}")
    kinds = [piece.type for piece in proto.pieces]
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL}
    by_score = sorted(scores, key=lambda piece: -scores[piece])
    own = [piece.piece for piece in proto.pieces if piece.type == USER_DEFINED]
    tokenizer = Tokenizer(
        BPE(
            {piece.piece: index for index, piece in enumerate(proto.pieces)},
            [pair for piece in by_score for pair in split_token(piece, scores)],
            unk_token=proto.pieces[kinds.index(UNKNOWN)].piece,
            byte_fallback=BYTE in kinds,
            ignore_merges=bool(own),
        )
    )
    tokenizer.normalizer = make_normalizer(proto.normalizer_spec)
    if own:  # they are cut out before anything is merged, the longest first
        pattern = "|".join(escape(piece) for piece in sorted(own, key=len, reverse=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    # Line ends are bytes, too: in a run with the bytes of a character that was cut off they would be given up.
    ends = [decoders.Replace(f"<0x{ord(end):02X}>", end) for end in "\n\r\t"]
    steps = [decoders.Replace("▁", " "), *ends, decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    check_ids(tokenizer, content, file)
    add_controls(tokenizer, [piece.piece for piece in proto.pieces if piece.type in (UNKNOWN, CONTROL)])
    add_controls(tokenizer, [*CONTROL_TOKENS, *ROLE_TOKENS])
    return tokenizer


def split_token(token: Any, known: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    """Return every way to make a token of two others."""
    cuts = range(1, len(token))
    return [(token[:cut], token[cut:]) for cut in cuts if token[:cut] in known and token[cut:] in known]


def escape(text: str) -> str:
    """Return a text as a regular expression of `tokenizers`."""
    return "".join(character if character.isalnum() else f"\\x{{{ord(character):x}}}" for character in text)


def make_normalizer(spec: Any) -> normalizers.Normalizer:
    """Return what SentencePiece does with a text: characters, blanks, a blank in front, and a sign for each blank."""
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])


def add_controls(tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Make control tokens known; those without an id get the next ones."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])


def check_ids(tokenizer: Tokenizer, content: bytes, file: Path) -> None:
    """Compare ids with those of SentencePiece itself.

    Raises:
        ValueError: they differ.
    """
    from sentencepiece import SentencePieceProcessor

    original = SentencePieceProcessor(model_proto=content)
    for probe in PROBES:
        if tokenizer.encode(probe).ids != (ids := original.encode(probe)):
            raise ValueError(
                f"{file} uses something of SentencePiece that is not known here: {probe!r} should be {ids}, not "
                f"{tokenizer.encode(probe).ids}. {REMEDY}"
            )


class ChatGLM4Tokenizer(PreTrainedTokenizerFast):
    """The name by which the releases of GLM-4-9B ask for their tokenizer; what loading gives is a plain fast one."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> PreTrainedTokenizerFast:  # type: ignore[override]
        """Load the tokenizer of a checkpoint directory or hub name."""
        return load_named(str(pretrained_model_name_or_path), **kwargs)


def load_named(path: str, revision: str | None = None, **settings: Any) -> PreTrainedTokenizerFast:
    """Load the tokenizer of an original checkpoint by its directory or hub name; it remembers that.

    Args:
        path: directory or hub name.
        revision: of the hub repository.
        settings: of `from_pretrained`; what says how texts are encoded counts.
    """
    folder = local_folder(path, weights=False, revision=revision)
    tokenizer = load_original(folder, **{name: value for name, value in settings.items() if name in SETTINGS})
    tokenizer.name_or_path = path
    return tokenizer


AutoTokenizer.register(OriginalGlmConfig, fast_tokenizer_class=ChatGLM4Tokenizer, exist_ok=True)
