"""The tokenizer of a GGUF file as transformers' files: `tokenizer.json` and `tokenizer_config.json`. No torch here.

The inverse of what `glmtune.exports.gguf.tokenizer` writes. What a file leaves to llama.cpp (how words are cut, whether
a word that is a token is merged, whether a `bos` is put in front) is as in its src/llama-vocab.cpp.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from glmtune import registry
from glmtune.models.gguf import pre_tokenizers
from glmtune.models.gguf.configuration import family_of_file
from glmtune.models.gguf.header import Header
from glmtune.runtime import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens, in SentencePiece's numbers
MATCHED = (UNKNOWN, CONTROL, USER_DEFINED)  # found in a text before it is cut
ROLES = ("bos", "eos", "unk", "pad")
NAMES = {"unk": "unknown", "pad": "padding"}  # what ggml calls them
ENDS = ("eos", "eot", "eom")  # where a file may name tokens that end an answer
BLANK = "▁"


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of its tokens.

    Attributes:
        header: of the file.
        tokens: by id.
        kinds: of each.
        ids: of the tokens by role: bos, eos, unk, pad.
    """

    header: Header
    tokens: list[str]
    kinds: list[int]
    ids: dict[str, int]

    @property
    def vocabulary(self) -> dict[str, int]:
        """Return token -> id, of all but what only fills rows of the embedding."""
        return {
            token: index
            for index, token in enumerate(self.tokens)
            if self.kinds[index] != UNUSED or token != f"[PAD{index}]"
        }

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Return a value of the file's tokenizer, if it is there."""
        return self.header.get(f"tokenizer.ggml.{key}", kind, default)

    def text(self, role: str) -> str | None:
        """Return the token of a role."""
        return self.tokens[self.ids[role]] if role in self.ids else None


def read_vocabulary(header: Header) -> Vocabulary:
    """Return the tokens of a file.

    Raises:
        UserError: they are incomplete.
    """
    tokens = listed(header, "tokens", str)
    if not tokens:
        raise incomplete(header, "it has no tokens")
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]  # as llama.cpp calls them
    places = {token: index for index, token in enumerate(tokens)}
    for index, token in enumerate(tokens):
        if places[token] != index:
            raise incomplete(header, f"its tokens number {index} and {places[token]} are both {token!r}")
    kinds = listed(header, "token_type", int) or [NORMAL] * len(tokens)
    if len(kinds) != len(tokens):
        raise incomplete(header, f"{len(tokens):,} tokens have {len(kinds):,} types")
    rows = header.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in header.tensors else len(tokens)
    if len(tokens) > rows:
        raise incomplete(header, f"it has {len(tokens):,} tokens, and the model has rows for {rows:,}")
    named = {role: header.get(f"tokenizer.ggml.{NAMES.get(role, role)}_token_id", int) for role in (*ROLES, *ENDS)}
    ids = {role: index for role, index in named.items() if index is not None}
    for role, index in ids.items():
        if not 0 <= index < len(tokens):
            raise incomplete(header, f"its {role} token is number {index} of {len(tokens):,}")
    if "eos" not in ids:
        raise incomplete(header, "it names no token that ends an answer (tokenizer.ggml.eos_token_id)")
    return Vocabulary(header, tokens, kinds, ids)


def listed(header: Header, name: str, kind: type) -> list[Any]:
    """Return a list of the tokenizer; nothing where there is none.

    Raises:
        UserError: what stands there is none.
    """
    found = header.get(f"tokenizer.ggml.{name}", list) or []
    if not all(type(one) is kind for one in found):
        raise incomplete(header, f"tokenizer.ggml.{name} is no list of {kind.__name__}")
    return found


def incomplete(header: Header, what: str) -> UserError:
    """Return the error that says what a tokenizer lacks."""
    return UserError(
        f"model.path: {header.file}: its tokenizer is incomplete: {what}. Take another file of the same model, or the "
        "release in transformers' format."
    )


def tokenizer_of(header: Header) -> dict[str, dict[str, Any]]:
    """Return name -> content of the files of a tokenizer.

    Raises:
        UserError: it is incomplete, or of a kind that is not read here.
    """
    known = read_vocabulary(header)
    kind = known.get("model", str)
    if kind not in BUILDERS:
        raise UserError(
            f"model.path: {header.file}: tokenizer.ggml.model={kind} is none that is read from GGUF, only "
            f"{' and '.join(BUILDERS)}. Take the release in transformers' format."
        )
    parts, adds_bos = BUILDERS[kind](known)
    special = [added(known, index) for index, one in enumerate(known.kinds) if one in MATCHED]
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": header.get("tokenizer.chat_template", str),
        **{f"{role}_token": known.text(role) for role in ROLES if role in known.ids},
    }
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            **parts,
            "post_processor": around(known, adds_bos),
        },
        "tokenizer_config.json": {name: value for name, value in settings.items() if value is not None},
        "generation_config.json": {"eos_token_id": list({known.ids[end]: None for end in ENDS if end in known.ids})},
    }


def added(known: Vocabulary, index: int) -> dict[str, Any]:
    """Return what `tokenizer.json` says of a token that is found in a text as it stands."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": known.tokens[index], **flags, "special": known.kinds[index] != USER_DEFINED}


def around(known: Vocabulary, adds_bos: bool) -> dict[str, Any] | None:
    """Return the step that puts control tokens around a text; none where there are none.

    Raises:
        UserError: a token is to be put there which is not named.
    """
    facts = family_of_file(known.header).gguf
    prefix = [token for token in (facts.prefix if facts else ()) if token in known.tokens]
    ids = {token: known.tokens.index(token) for token in prefix}
    first: list[str] = list(prefix)
    last: list[str] = []
    for flag, role, place in (("add_bos_token", "bos", first), ("add_eos_token", "eos", last)):
        if known.get(flag, bool, adds_bos and role == "bos" and "bos" in known.ids):
            if role not in known.ids:
                raise incomplete(known.header, f"it puts a {role} token around texts ({flag}), and names none")
            place.insert(0, str(known.text(role)))
            ids[str(known.text(role))] = known.ids[role]
    if not ids:
        return None

    def pieces(*sequences: tuple[str, int]) -> list[dict[str, Any]]:
        texts = [{"Sequence": {"id": name, "type_id": kind}} for name, kind in sequences]
        before, after = ([{"SpecialToken": {"id": one, "type_id": 0}} for one in part] for part in (first, last))
        return [*before, *texts, *after]

    return {
        "type": "TemplateProcessing",
        "single": pieces(("A", 0)),
        "pair": pieces(("A", 0), ("B", 1)),
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]} for token, index in ids.items()},
    }


def byte_level(known: Vocabulary) -> tuple[dict[str, Any], bool]:
    """Return the parts of a tokenizer that merges bytes, and whether a bos is put before a text by default.

    Raises:
        UserError: its merges are incomplete, or it cuts texts in a way that is not known here.
    """
    name = known.get("pre", str, "default")
    way = pre_tokenizers.find(name)
    if way is None:
        raise UserError(
            f"model.path: {known.header.file}: tokenizer.ggml.pre={name[:60]}: texts are cut into words in a way that "
            "is not known here, and would become other tokens than the model learned. Take the release in "
            f"transformers' format.{registry.suggest(name, list(pre_tokenizers.PRE_TOKENIZERS))}"
        )
    if name == "default":
        warnings.warn(
            f"{known.header.file} does not say how texts are cut into words (tokenizer.ggml.pre): they are cut as "
            "llama.cpp does then, which may not be what the model learned.",
            stacklevel=2,
        )
    vocabulary = known.vocabulary
    pairs = [
        (left, right) for left, _, right in (merge.partition(" ") for merge in listed(known.header, "merges", str))
    ]
    if not pairs:
        raise incomplete(known.header, "it has no merges (tokenizer.ggml.merges)")
    for left, right in pairs:
        if lost := [part for part in (left, right, left + right) if part not in vocabulary]:
            raise incomplete(known.header, f"its merge {left} {right} needs the token {lost[0]!r}, which it lacks")
    return {
        "normalizer": way.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(way.steps)},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model(vocabulary, pairs, ignore_merges=way.ignore_merges),
    }, way.adds_bos


def sentencepiece(known: Vocabulary) -> tuple[dict[str, Any], bool]:
    """Return the parts of a tokenizer that merges characters as SentencePiece does, and whether a bos is put in front.

    Raises:
        UserError: the file has no scores, by which pieces are made.
    """
    scores = listed(known.header, "scores", float)
    if len(scores) != len(known.tokens):
        raise incomplete(known.header, f"{len(known.tokens):,} tokens have {len(scores):,} scores")
    vocabulary = known.vocabulary
    normal = {token: scores[index] for token, index in vocabulary.items() if known.kinds[index] == NORMAL}
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    in_front = known.get("add_space_prefix", bool, True)
    decoders = [
        {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if in_front else []),
    ]
    steps = [{"type": "Prepend", "prepend": BLANK}, blank] if in_front else [blank]
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model(vocabulary, pairs_of(normal), unk_token=known.text("unk"), fuse_unk=True, byte_fallback=True),
    }, True


def pairs_of(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return the pairs of pieces that make pieces: those of the highest score first, as SentencePiece makes them."""
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def model(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], **settings: Any) -> dict[str, Any]:
    """Return the `model` of a `tokenizer.json`."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **settings,
        "vocab": vocabulary,
        "merges": [list(pair) for pair in merges],
    }


BUILDERS: dict[str, Callable[[Vocabulary], tuple[dict[str, Any], bool]]] = {"gpt2": byte_level, "llama": sentencepiece}
