"""The text metrics of the official ChatGLM evaluation.

rouge and BLEU-4 follow `compute_metrics` of https://github.com/THUDM/ChatGLM-6B/blob/main/ptuning/main.py, rounding
included, so that figures compare with published ones. They tell how alike two texts look, not whether an answer is
right: `1+2=4` scores high against `1+2=3`.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Sequence
from itertools import islice
from statistics import fmean

# What the library compares with is a table of all pairs of words, read by a function that calls itself for each.
MOST_WORDS = 400
LONGEST_WORD = 20  # characters, on average, of what is cut into words
ROUGE_NAMES = ("rouge-1", "rouge-2", "rouge-l")


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Return rouge-1, rouge-2 and rouge-l on jieba's words: F of each record, 0 to 100, averaged over the records.

    An empty text scores 0, where the official code ends with an error. A text of one word has no rouge-2, hence 0. Of
    long texts, the first `MOST_WORDS` words are compared.

    Args:
        predictions: what the model wrote.
        references: what was wanted; as many.

    Returns:
        `{"rouge-1": ..., "rouge-2": ..., "rouge-l": ...}`, all 0 without records.
    """
    from rouge_chinese import Rouge

    judge = Rouge()
    shares: dict[str, list[float]] = {name: [] for name in ROUGE_NAMES}
    for hypothesis, reference in zip(_words(predictions), _words(references), strict=True):
        compare = bool(hypothesis.strip() and reference.strip())  # rouge_chinese raises on empty texts
        found = judge.get_scores(hypothesis, reference)[0] if compare else {}
        for name, values in shares.items():
            values.append(round(found[name]["f"] * 100, 4) if compare else 0.0)
    return {name: fmean(values) if values else 0.0 for name, values in shares.items()}


def bleu4(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Return BLEU-4 on characters with smoothing method 3, sentence by sentence, 0 to 100, averaged over the records.

    An empty text scores 0. Texts of less than four characters have no 4-grams and stay below 100 even when equal, as in
    the official code. Source of the smoothing: Chen and Cherry (2014), https://aclanthology.org/W14-3346

    Args:
        predictions: what the model wrote.
        references: what was wanted; as many.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smoothing = SmoothingFunction().method3
    values = []
    for hypothesis, reference in zip(predictions, references, strict=True):
        value = 0.0
        if hypothesis and reference:
            value = sentence_bleu([list(reference)], list(hypothesis), smoothing_function=smoothing)
        values.append(round(value * 100, 4))
    return fmean(values) if values else 0.0


def _words(texts: Sequence[str]) -> list[str]:
    """Each text as its first jieba words joined by blanks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba's old string escapes and its use of pkg_resources
        import jieba

        jieba.setLogLevel(logging.CRITICAL)  # it reports its dictionary's loading
        # It would read whatever lies in /tmp under the name of its cache, by marshal. Without one it starts as fast.
        with tempfile.TemporaryDirectory() as folder:
            jieba.dt.tmp_dir = folder
            jieba.initialize()
    return [" ".join(islice(jieba.cut(text[: MOST_WORDS * LONGEST_WORD]), MOST_WORDS)) for text in texts]
