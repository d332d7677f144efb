"""Plain texts to tensors: every token is learned, and what is longer than the model takes is learned in windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from glmtune.data import EncodedDataset
from glmtune.data.control_tokens import plain_ids
from glmtune.data.encoding import IGNORED, Encoding, end_id
from glmtune.examples import Example, Source


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return what a model of this tokenizer expects before any text: `<s>`, `[gMASK] <sop>`, or nothing."""
    around = cast(list[int], tokenizer("")["input_ids"])
    return [token for token in around if token != end_id(tokenizer) or token == tokenizer.bos_token_id]


class EncodedTexts(EncodedDataset):
    """Windows of texts. Each text ends with the end token; each window begins as a text does.

    Where nothing stands before a text, its first token cannot be predicted, and each window begins with the last token
    of the one before, so that no other is left out.

    Args:
        examples: with `text`.
        tokenizer: of the model.
        max_length: of a window in tokens; None where there is no limit.
    """

    def __init__(self, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int | None):
        self.examples, self.max_length = examples, max_length
        self.begin, end = begin_ids(tokenizer), end_id(tokenizer)
        texts = [np.array([*plain_ids(tokenizer, str(example.text)), end], np.int32) for example in examples]
        self.windows = [(record, window) for record, ids in enumerate(texts) for window in self.split(ids)]

    def split(self, ids: np.ndarray) -> list[np.ndarray]:
        """Return the windows of a text of (N,) tokens; they share its memory."""
        room = len(ids) if self.max_length is None else max(2, self.max_length - len(self.begin))
        overlap = 0 if self.begin else 1
        return [ids[start : start + room] for start in range(0, max(1, len(ids) - overlap), room - overlap)]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Encoding:
        ids = self.windows[index][1].tolist()
        labels = [*[IGNORED] * len(self.begin), *ids] if self.begin else [IGNORED, *ids[1:]]
        return {"input_ids": [*self.begin, *ids], "labels": labels, "record": index}

    def length(self, index: int) -> int:
        """Return how many tokens a window has."""
        return len(self.begin) + len(self.windows[index][1])

    def source(self, index: int) -> Source | None:
        """Return where the text of a window stands."""
        return self.examples[self.windows[index][0]].source

    @cached_property
    def remarks(self) -> Sequence[str]:  # type: ignore[override]
        """How many texts are learned in parts."""
        windows = Counter(record for record, _ in self.windows)
        parted = sum(count > 1 for count in windows.values())
        if not parted:
            return []
        return [
            f"Of {len(self.examples):,} texts, {parted:,} are longer than {self.max_length} tokens: learned in "
            f"{len(self):,} windows in all."
        ]
