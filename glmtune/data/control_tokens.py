"""Which words are control tokens of a tokenizer, and how the texts of people stay free of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

GUARD = "\U00100000"  # stands around the first character of what looks like a control token; for private use


@dataclass(frozen=True)
class ControlTokens:
    """What depends on a tokenizer alone, and is costly to collect where thousands of tokens were added.

    Attributes:
        tokens: every token that a template may use as a control token.
        pattern: matches one of them that no guard stands before, the longest first.
        starts: matches the first character of each of them, also where they overlap.
        added_starts: the same for those that are added, but not special: `split_special_tokens` leaves them whole.
    """

    tokens: frozenset[str]
    pattern: re.Pattern[str]
    starts: re.Pattern[str]
    added_starts: re.Pattern[str]


def once_per_tokenizer(function: Callable[[PreTrainedTokenizerBase], T]) -> Callable[[PreTrainedTokenizerBase], T]:
    """Call a function once for a tokenizer, and anew only after its tokens or its template changed."""
    results: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[Any, T]] = WeakKeyDictionary()

    @wraps(function)
    def remembered(tokenizer: PreTrainedTokenizerBase) -> T:
        special, named = tokenizer.all_special_tokens, name_tokens(tokenizer)
        state = (len(tokenizer), named, special, tokenizer.chat_template)
        if tokenizer not in results or results[tokenizer][0] != state:
            results[tokenizer] = state, function(tokenizer)
        return results[tokenizer][1]

    return remembered


@once_per_tokenizer
def collect_control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """Return the control tokens of a tokenizer."""
    decoder = tokenizer.added_tokens_decoder.values()
    added = {str(token) for token in decoder if not token.special and str(token).strip() and len(str(token)) > 1}
    named = name_tokens(tokenizer).values()
    tokens = frozenset({*named, *tokenizer.all_special_tokens, *map(str, decoder)})
    longest_first = "|".join(map(re.escape, sorted(tokens, key=lambda token: (-len(token), token))))
    pattern = re.compile(f"(?<!{GUARD})(?:{longest_first or '(?!)'})")
    return ControlTokens(tokens, pattern, _match_starts(tokens), _match_starts(added))


def name_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the special tokens that have names, such as `eos_token`; templates know them by these."""
    return {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}


def guard(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a text in which nothing counts as a control token; `unguard` gives the text back."""
    doubled = text.replace(GUARD, GUARD * 2)
    return collect_control_tokens(tokenizer).starts.sub(rf"{GUARD}\g<0>{GUARD}", doubled)


def unguard(text: str) -> str:
    """Return a text without guards; of those that it had itself, each is there twice."""
    return re.sub(f"{GUARD}({GUARD}?)", r"\1", text)


def cut_at(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, str, bool]]:
    """Yield (place, text, whether it matches) of what matches a pattern and of what stands between, in order."""
    place = 0
    for match in pattern.finditer(text):
        if place < match.start():
            yield place, text[place : match.start()], False
        yield match.start(), match[0], True
        place = match.end()
    if place < len(text):
        yield place, text[place:], False


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text in which nothing is a control token.

    `split_special_tokens` covers the special ones. Checkpoints also mark control words, such as those around tool
    calls, as added but not special; these are cut after their first character.
    """
    cuts = [0, *(match.end() for match in collect_control_tokens(tokenizer).added_starts.finditer(text)), None]
    pieces = [text[first:last] for first, last in pairwise(cuts)]
    encoded = [tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"] for piece in pieces]
    return [token_id for ids in encoded for token_id in ids]


def _match_starts(words: Iterable[str]) -> re.Pattern[str]:
    # A class of first characters rejects most places at once; alternatives of thousands of words are slow.
    known = sorted(word for word in words if word)
    first = "".join(map(re.escape, sorted({word[0] for word in known})))
    return re.compile(f"(?={'|'.join(map(re.escape, known))})[{first}]" if known else r"(?!)")
