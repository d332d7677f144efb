"""Figures about answers: the interval of a share, verdicts by name, and the official ChatGLM evaluation's text metrics.

rouge and BLEU-4 follow `compute_metrics` of https://github.com/THUDM/ChatGLM-6B/blob/main/ptuning/main.py, rounding
included, so that figures compare with published ones. They tell how alike two texts look, not whether an answer is
right: `1+2=4` scores high against `1+2=3`.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from statistics import NormalDist, fmean

from glmtune.arithmetic import reading
from glmtune.scoring import Score

ROUGE_NAMES = ("rouge-1", "rouge-2", "rouge-l")
ALIKE = 70.0  # ROUGE-L from which Self-Instruct (https://arxiv.org/abs/2212.10560) takes two texts for one


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


def exact(target: str, completion: str) -> Score:
    """The same text, or the same but for runs of blanks."""
    return Score(*reading.exact(target, completion))


def numeric(target: str, completion: str) -> Score:
    """The same final number, as an exact value: `#### 18` and `She makes $18.00.`"""
    return Score(*reading.numeric(target, completion))


def equation(target: str, completion: str) -> Score:
    """Equations `x=...` of the same value, as exact fractions: `x=(18*6)/3-18=18` and `x=18*6/3-18`."""
    return Score(*reading.equation(target, completion))


def rouge_alike(target: str, completion: str) -> Score:
    """`equal` from a ROUGE-L of `ALIKE`: alike in words, whether right or not."""
    return _alike(target, completion, rouge([completion], [target])["rouge-l"])


def bleu_alike(target: str, completion: str) -> Score:
    """`equal` from a BLEU-4 of `ALIKE`: alike in characters, whether right or not."""
    return _alike(target, completion, bleu4([completion], [target]))


Metric = Callable[[str, str], Score]  # target, completion -> what to think of it
METRICS: dict[str, Metric] = {
    "exact": exact,
    "numeric": numeric,
    "equation": equation,
    "rouge": rouge_alike,
    "bleu": bleu_alike,
}


def _alike(target: str, completion: str, likeness: float) -> Score:
    score = exact(target, completion)
    return Score("equal", score.answer) if score.verdict == "wrong" and likeness >= ALIKE else score


def _words(texts: Sequence[str]) -> list[str]:
    """Each text as its jieba words joined by blanks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba's old string escapes and its use of pkg_resources
        import jieba

        # It reports its dictionary's loading and, where another user owns its cache file, a harmless traceback.
        jieba.setLogLevel(logging.CRITICAL)
    return [" ".join(jieba.cut(text)) for text in texts]
