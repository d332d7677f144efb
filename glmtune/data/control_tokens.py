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


class Words:
    """Some words, found in a text at a cost that does not grow with how many there are.

    A pattern of thousands of alternatives would try all of them wherever one could begin.
    """

    def __init__(self, words: Iterable[str]):
        self.words = frozenset(filter(None, words))
        self.lengths: dict[str, list[int]] = {}  # of the words that begin with a character, the longest first
        for first, length in sorted({(word[0], len(word)) for word in self.words}, reverse=True):
            self.lengths.setdefault(first, []).append(length)
        self.first = re.compile(f"[{''.join(map(re.escape, self.lengths))}]" if self.lengths else "(?!)")

    def longest_at(self, text: str, place: int) -> str:
        """Return the longest of them that stands at a place of a text; an empty text where none does."""
        candidates = (text[place : place + length] for length in self.lengths.get(text[place : place + 1], ()))
        return next((word for word in candidates if word in self.words), "")

    def starts(self, text: str, start: int = 0) -> Iterator[int]:
        """Yield each place of a text where one of them begins, also where they overlap."""
        return (match.start() for match in self.first.finditer(text, start) if self.longest_at(text, match.start()))


@dataclass(frozen=True)
class ControlTokens:
    """What depends on a tokenizer alone, and is costly to collect where thousands of tokens were added.

    Attributes:
        tokens: every token that a template may use as a control token.
        words: the same, to be found.
        added: those that are added, but not special: `split_special_tokens` leaves them whole.
    """

    tokens: frozenset[str]
    words: Words
    added: Words

    def at(self, text: str, place: int) -> str:
        """Return the longest of them that stands at a place, unless a guard stands before it; else an empty text."""
        return "" if text.startswith(GUARD, max(place - 1, 0), place) else self.words.longest_at(text, place)

    def find(self, text: str, start: int = 0) -> Iterator[tuple[int, str]]:
        """Yield (place, token) of those that no guard stands before, in order, the longest first."""
        end = start
        for place in self.words.starts(text, start):
            if place >= end and (token := self.at(text, place)):
                yield place, token
                end = place + len(token)

    def cut(self, text: str) -> Iterator[tuple[int, str, bool]]:
        """Yield (place, text, whether it is a token) of these tokens and of what stands between, in order."""
        end = 0
        for place, token in self.find(text):
            if end < place:
                yield end, text[end:place], False
            yield place, token, True
            end = place + len(token)
        if end < len(text):
            yield end, text[end:], False


def once_per_tokenizer(function: Callable[[PreTrainedTokenizerBase], T]) -> Callable[[PreTrainedTokenizerBase], T]:
    """Call a function once for a tokenizer, and anew only after tokens came, or its names or template changed."""
    results: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, Any, T]] = WeakKeyDictionary()

    def state_of(tokenizer: PreTrainedTokenizerBase, following: int) -> Any:
        # To count the tokens takes as long as there are many; so it is seen whether there is a following one by now.
        grown = tokenizer.convert_ids_to_tokens(following) if tokenizer.is_fast else len(tokenizer)
        return grown, name_tokens(tokenizer), tokenizer.chat_template

    @wraps(function)
    def remembered(tokenizer: PreTrainedTokenizerBase) -> T:
        known = results.get(tokenizer)
        if known is None or known[1] != state_of(tokenizer, known[0]):
            following = max([len(tokenizer), *(index + 1 for index in tokenizer.added_tokens_decoder)])
            known = results[tokenizer] = following, state_of(tokenizer, following), function(tokenizer)
        return known[2]

    return remembered


@once_per_tokenizer
def collect_control_tokens(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """Return the control tokens of a tokenizer."""
    decoder = tokenizer.added_tokens_decoder.values()
    added = {str(token) for token in decoder if not token.special and str(token).strip() and len(str(token)) > 1}
    named = name_tokens(tokenizer).values()
    tokens = frozenset({*named, *tokenizer.all_special_tokens, *map(str, decoder)})
    return ControlTokens(tokens, Words(tokens), Words(added))


def name_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the special tokens that have names, such as `eos_token`; templates know them by these."""
    return {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}


def guard(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a text in which nothing counts as a control token; `unguard` gives the text back."""
    doubled = text.replace(GUARD, GUARD * 2)
    words = collect_control_tokens(tokenizer).words

    def guarded(first: re.Match[str]) -> str:
        return f"{GUARD}{first[0]}{GUARD}" if words.longest_at(doubled, first.start()) else first[0]

    return words.first.sub(guarded, doubled)


def unguard(text: str) -> str:
    """Return a text without guards; of those that it had itself, each is there twice."""
    return re.sub(f"{GUARD}({GUARD}?)", r"\1", text)


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text in which nothing is a control token.

    `split_special_tokens` covers the special ones. Checkpoints also mark control words, such as those around tool
    calls, as added but not special; these are cut after their first character.
    """
    cuts = [0, *(place + 1 for place in collect_control_tokens(tokenizer).added.starts(text)), None]
    pieces = [text[first:last] for first, last in pairwise(cuts)]
    encoded = [tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"] for piece in pieces]
    return [token_id for ids in encoded for token_id in ids]
