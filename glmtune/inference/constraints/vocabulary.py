"""What each token of a tokenizer writes, in bytes, as the reader of answers gives it back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from glmtune.data.control_tokens import collect_control_tokens, once_per_tokenizer, plain_ids
from glmtune.data.encoding import IGNORED, encode_example
from glmtune.inference.reading import HALF_CHARACTER, AnswerReader, lead_in_as_read
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from llguidance import LLTokenizer

BLANK = "▁"  # how SentencePiece writes one
END = b"\xff<end>"  # stands for whatever ends an answer; 0xff marks what is no text

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_CONTENT = "@"  # of an answer to try a template with
# Words that ChatGLM's tokenizer reads as white space, also where they are spelled letter by letter; all end with ">".
_WHITE_SPACE = re.compile(r"<n>|<\|tab\|>|<\|blank_\d\d?\|>")
LONGEST = 12  # bytes of the longest of them

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer as bytes.

    Attributes:
        tokens: what each writes within a text; empty for those that write nothing, and for control tokens.
        droppable: which begin with a blank that may be lost where an answer begins.
        opening: control tokens that a template puts before an answer that the model writes itself, and what stands
            before them.
        head: text that stands between these and the answer, with the blank that is dropped where a text begins.
        loses_blanks: whether such a blank is lost right behind the head.
        rewritten: words that are read as something else.
    """

    tokens: Sequence[bytes]
    droppable: Mask
    opening: Sequence[int]
    head: bytes
    loses_blanks: bool
    rewritten: Sequence[bytes]
    _begin: dict[bytes, Mask] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
        """Return the vocabulary of a tokenizer, which is read once."""
        return _read_vocabulary(tokenizer)

    @cached_property
    def writable(self) -> Mask:
        """Which tokens write text."""
        return np.array([bool(token) for token in self.tokens])

    @cached_property
    def compiled(self) -> LLTokenizer:
        """The same for llguidance, with one more token, which ends an answer."""
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(_Tokens([*self.tokens, END])), slices=None)

    def begin_with(self, start: bytes) -> Mask:
        """Return which tokens begin with some bytes."""
        if start not in self._begin:
            self._begin[start] = np.array([token.startswith(start) for token in self.tokens])
        return self._begin[start]

    def finish(self, written: bytes) -> list[int]:
        """Return the tokens that would finish a word that is read as something else."""
        rests = tuple(rest for length in range(1, LONGEST) for rest in self._begun.get(written[-length:], ()))
        return [index for index, token in self._closing if token.startswith(rests)] if rests else []

    @cached_property
    def _begun(self) -> dict[bytes, list[bytes]]:
        """Beginnings of these words, with what would finish them."""
        begun: dict[bytes, list[bytes]] = {}
        for word in self.rewritten:
            for length in range(1, len(word)):
                begun.setdefault(word[:length], []).append(word[length:])
        return begun

    @cached_property
    def _closing(self) -> list[tuple[int, bytes]]:
        """Tokens that may finish one of them."""
        return [(index, token) for index, token in enumerate(self.tokens) if b">" in token]


class _Tokens:
    """What llguidance wants to know of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        return []  # it is called once, and then only of grammars that force tokens


@once_per_tokenizer
def _read_vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    size = max([len(tokenizer), *(index + 1 for index in tokenizer.added_tokens_decoder)])
    pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(list(range(size)))]
    tokens = _write_all(tokenizer, pieces)
    white = [_WHITE_SPACE.fullmatch(piece) is not None for piece in pieces]
    droppable = np.array([token[:1] == b" " and not is_white for token, is_white in zip(tokens, white, strict=True)])
    rewritten = [
        piece.encode()
        for piece, token, is_white in zip(pieces, tokens, white, strict=True)
        if is_white and token.isspace()
    ]
    sign = pieces.index(_find_sign(pieces))
    reader = AnswerReader(tokenizer, (), lead_in_as_read(tokenizer))
    ids = _find_head(reader, tokens, sign)
    last = max((place + 1 for place, index in enumerate(ids) if not tokens[index]), default=0)
    head = b"".join(tokens[index] for index in ids[last:])
    blank = [pieces.index(BLANK)] if BLANK in pieces else []
    loses_blanks = bool(blank) and reader.read([*ids, *blank, sign]) != f" {pieces[sign]}"
    return Vocabulary(tokens, droppable, ids[:last], head, loses_blanks, rewritten)


def _write_all(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> list[bytes]:
    """Return what each piece writes within a text: behind another one, as a text may lose its first blank."""
    first = _find_sign(pieces)
    behind = len(tokenizer.convert_tokens_to_string([first]))
    controls = _control_words(tokenizer)
    alphabet = {character: byte for byte, character in bytes_to_unicode().items()}
    tokens = []
    for piece in pieces:
        text = "" if piece in controls or not piece else tokenizer.convert_tokens_to_string([first, piece])[behind:]
        token = text.encode()
        if found := _BYTE.fullmatch(piece):
            token = bytes([int(found[1], 16)])
        elif HALF_CHARACTER in text and set(piece) <= alphabet.keys():
            token = bytes(alphabet[character] for character in piece)
        # No tokenizer writes a blank as a byte, and it would not be dropped as others are. 0xff is in no text.
        is_text = not token.startswith(END[:1]) and not (token == b" " and found)
        tokens.append(token if is_text else b"")
    return tokens


def _find_sign(pieces: Sequence[str]) -> str:
    """Return a piece that is one letter or digit.

    Raises:
        UserError: there is none.
    """
    known = set(pieces)
    signs = [character for character in "0123456789abcdefghijklmnopqrstuvwxyz" if character in known]
    if not signs:
        raise UserError("response_format: the tokenizer of this model has no token of a single letter or digit")
    return signs[0]


def _control_words(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Return the control tokens that no text is encoded to: all but added white space and single characters."""
    control = collect_control_tokens(tokenizer)
    added = tokenizer.added_tokens_decoder.values()
    plain = {str(token) for token in added if not token.special and str(token) not in control.added.words}
    return {*control.tokens} - plain


def _find_head(reader: AnswerReader, tokens: Sequence[bytes], sign: int) -> list[int]:
    """Return the tokens before an answer that the model writes itself, as it learns them.

    Args:
        reader: of answers. Of what it would read as part of the answer, the beginning is left out.
        tokens: what each token writes.
        sign: a token that may be an answer.
    """
    try:
        encoding = encode_example(reader.tokenizer, _CONTENT, _CONTENT)
    except UserError:  # a template that asks otherwise than it answers
        ids = plain_ids(reader.tokenizer, _CONTENT)
    else:
        ids = [token for token in encoding["labels"] if token != IGNORED]
    content = _CONTENT.encode()
    head = ids[: next((place for place, index in enumerate(ids) if content in tokens[index]), 0)]
    heads = [head[place:] for place in range(len(head))]
    return next((head for head in heads if reader.read([*head, sign]) == reader.tokenizer.decode([sign])), [])
