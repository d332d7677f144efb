"""Figures about answers: the interval of a share, and the text metrics of the official ChatGLM evaluation.

rouge and BLEU-4 follow `compute_metrics` of https://github.com/THUDM/ChatGLM-6B/blob/main/ptuning/main.py, rounding
included, so that figures compare with published ones. They tell how alike two texts look, not whether an answer is
right: `1+2=4` scores high against `1+2=3`.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from statistics import NormalDist, fmean

ROUGE_NAMES = ("rouge-1", "rouge-2", "rouge-l")


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share. Unlike `p +- 1.96 s` it stays within 0..1 and holds at p = 0 and p = 1.

    Source: E. B. Wilson (1927), "Probable inference, the law of succession, and statistical inference",
    https://doi.org/10.1080/01621459.1927.10502953

    Args:
        successes: how many of `n` succeeded.
        n: trials; with none, nothing is known and the interval is (0, 1).
        confidence: 0 to 1, both excluded.

    Returns:
        (low, high), each 0 to 1; `successes / n` lies between.

    Raises:
        ValueError: more successes than trials, a negative number, or an impossible confidence.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be 0 to n, but are {successes} of {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, but is {confidence}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At 0 and at n one bound is the share itself; rounding must not push it past.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """rouge-1, rouge-2 and rouge-l on jieba's words: F of each record, 0 to 100, averaged over the records.

    An empty text scores 0, where the official code ends with an error. A text of one word has no rouge-2, hence 0.

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
    """BLEU-4 on characters with smoothing method 3, sentence by sentence, 0 to 100, averaged over the records.

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
    """Each text as its jieba words joined by blanks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba's old string escapes and its use of pkg_resources
        import jieba

        # It reports its dictionary's loading and, where another user owns its cache file, a harmless traceback.
        jieba.setLogLevel(logging.CRITICAL)
    return [" ".join(jieba.cut(text)) for text in texts]
