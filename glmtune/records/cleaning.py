"""What is wrong with records that can each be read: said twice, or cut off."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Literal

from glmtune.examples import Example
from glmtune.records.leaks import normal_text, plain_text
from glmtune.runtime import UserError

THRESHOLD = 0.7  # ROUGE-L F of two near duplicates, as in Self-Instruct (https://arxiv.org/abs/2212.10560), Alpaca
FEW = 1000  # texts that are compared each with each
MOST_CANDIDATES = 50  # that a text is compared with, where there are many
SHORTEST_CUT = 20  # characters or tokens; answers of a few always have the same length
FEWEST_CUT = 3

_WORD = re.compile(r"[a-z0-9]+|[^\W_]|[^\s\w]", re.IGNORECASE)
_CLAUSE = re.compile(r"[。！？；，]|[,.;!?]\s")
_OPEN_END = re.compile(r"[\w,，、；;:：(（\[【《“‘\-–—]\Z")


def repetitions(examples: Sequence[Example], deduplicate: Literal["none", "exact", "near"]) -> list[tuple[int, int]]:
    """Return (place, an earlier place) of examples that say the same, or nearly so."""
    if deduplicate == "none":
        return []
    if deduplicate == "exact":
        return duplicates((normal_text(example.question), normal_text(example.target)) for example in examples)
    return near_duplicates([f"{plain_text(example.question)}\n{example.target}" for example in examples])


def duplicates(keys: Iterable[Hashable]) -> list[tuple[int, int]]:
    """Return (place, place of the first) of all that were there before. Only digests of texts are kept."""
    seen: dict[Hashable, int] = {}
    found = []
    for place, key in enumerate(keys):
        digest = hashlib.blake2b(repr(key).encode("utf-8", "replace"), digest_size=16).digest()
        first = seen.setdefault(digest, place)
        if first != place:
            found.append((place, first))
    return found


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """Return ROUGE-L F (https://aclanthology.org/W04-1013) of two texts in words; Chinese counts by character."""
    from rapidfuzz.distance import Indel

    # Twice the longest common subsequence is what insertions and deletions leave of both.
    return Indel.similarity(first, second) / (len(first) + len(second)) if first and second else 0.0


def words_of(text: str) -> list[str]:
    """Return words and numbers; characters where there are no blanks between words."""
    return _WORD.findall(text.casefold())


def near_duplicates(texts: Sequence[str], threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Return (place, an earlier place) of texts that say nearly the same: ROUGE-L F of at least `threshold`.

    Few texts are compared each with each; of many, those that MinHash takes for similar.

    Raises:
        UserError: there are many, and the library that finds candidates is missing.
    """
    words = [words_of(text) for text in texts]
    candidates = pairs_in_common(words, threshold) if len(words) <= FEW else similar_pairs(words)
    found: dict[int, int] = {}
    for place, earlier in candidates:
        if place not in found and earlier not in found and rouge_l(words[place], words[earlier]) >= threshold:
            found[place] = earlier
    return sorted(found.items())


def pairs_in_common(words: Sequence[list[str]], threshold: float) -> Iterator[tuple[int, int]]:
    """Yield pairs that have enough words in common, in whatever order."""
    counts = [Counter(text) for text in words]
    for place, own in enumerate(words):
        for earlier in range(place):
            both = len(own) + len(words[earlier])
            if 2 * min(len(own), len(words[earlier])) < threshold * both:
                continue
            if 2 * (counts[place] & counts[earlier]).total() >= threshold * both:
                yield place, earlier


def similar_pairs(words: Sequence[list[str]]) -> Iterator[tuple[int, int]]:
    """Yield pairs that MinHash takes for similar: those with many neighbouring words in common."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        raise UserError(
            f"data.deduplicate=near: {len(words):,} records are compared by datasketch: pip install 'glmtune[data]'. "
            f"Up to {FEW} need no library; data.deduplicate=exact never does."
        ) from None
    index = MinHashLSH(threshold=0.4, num_perm=64)
    for place, text in enumerate(words):
        grams = {" ".join(text[start : start + 2]).encode() for start in range(max(1, len(text) - 1))}
        sketch = MinHash(num_perm=64, seed=1)
        sketch.update_batch(sorted(grams))
        for earlier in sorted(index.query(sketch))[:MOST_CANDIDATES]:
            yield place, int(earlier)
        index.insert(place, sketch)


def cut_ends(targets: Sequence[str], length: Callable[[int], int] | None = None) -> list[int]:
    """Return places of targets that a limit of length has cut off.

    Those are several of exactly the greatest length that do not end as a sentence does, while others do, or while they
    are made of clauses. A model that learns them never learns to stop.

    Args:
        targets: the answers.
        length: of the target at a place; default: characters.
    """
    lengths = [length(place) if length else len(target) for place, target in enumerate(targets)]
    longest = max(lengths, default=0)
    at_limit = [place for place, count in enumerate(lengths) if count == longest]
    cut = [place for place in at_limit if is_open(targets[place])]
    if longest < SHORTEST_CUT or len(cut) < FEWEST_CUT or len({targets[place] for place in cut}) < FEWEST_CUT:
        return []
    shorter = [target for target, count in zip(targets, lengths, strict=True) if count < longest]
    others_end = 2 * sum(not is_open(target) for target in shorter) > len(shorter)
    clauses = 2 * sum(_CLAUSE.search(targets[place]) is not None for place in cut) > len(cut)
    return cut if 2 * len(cut) > len(at_limit) and (others_end or clauses) else []


def is_open(target: str) -> bool:
    """Return whether a text ends as if it went on."""
    return _OPEN_END.search(target.rstrip()) is not None


def unclosed(target: str) -> bool:
    """Return whether a block of code begins and does not end."""
    return len(re.findall(r"^[^\S\n]*```", target, re.MULTILINE)) % 2 == 1
