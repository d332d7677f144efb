import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmtune.evaluation.metrics import bleu4, rouge

TEXTS = st.text(st.sampled_from("今天天气很好计算等于。，0123456789+=. ab"), max_size=20)


@settings(max_examples=60)
@given(TEXTS, TEXTS)
def test_text_metrics_stay_in_range_and_never_fail(prediction, reference):
    scores = [*rouge([prediction], [reference]).values(), bleu4([prediction], [reference])]
    assert all(0 <= score <= 100 for score in scores)


def official(predictions, references):
    """compute_metrics of the official ptuning/main.py, written down once more."""
    import jieba
    import numpy as np
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    scores = {"rouge-1": [], "rouge-2": [], "rouge-l": [], "bleu-4": []}
    for prediction, label in zip(predictions, references, strict=True):
        words, wanted = list(jieba.cut(prediction)), list(jieba.cut(label))
        for key, value in Rouge().get_scores(" ".join(words), " ".join(wanted))[0].items():
            scores[key].append(round(value["f"] * 100, 4))
        bleu = sentence_bleu([list(label)], list(prediction), smoothing_function=SmoothingFunction().method3)
        scores["bleu-4"].append(round(bleu * 100, 4))
    return {key: float(np.mean(values)) for key, values in scores.items()}


def test_text_metrics_agree_with_the_official_code():
    predictions = ["57.84+13.64=71.48", "这件上衣的材质柔软，版型宽松。", "答案是42。", "无关的话", "19+23=24|41"]
    references = ["57.84+13.64=71.49", "这款上衣材质柔软舒适，宽松的版型显瘦。", "42", "上衣", "19+23=24|42"]
    wanted = official(predictions, references)
    assert {**rouge(predictions, references), "bleu-4": bleu4(predictions, references)} == pytest.approx(wanted)


def test_rouge_by_hand():
    # words 今天 / 天气 / 好 against 今天 / 天气 / 很 / 好: 3 of 3 and 3 of 4 words, 1 of 2 and 1 of 3 pairs
    scores = rouge(["今天 天气 好"], ["今天 天气 很 好"])
    assert scores["rouge-1"] == pytest.approx(100 * 2 * (1 * 0.75) / 1.75, abs=1e-3)
    assert scores["rouge-2"] == pytest.approx(100 * 2 * (1 / 2 * 1 / 3) / (1 / 2 + 1 / 3), abs=1e-3)
    assert scores["rouge-l"] == pytest.approx(100 * 2 * (1 * 0.75) / 1.75, abs=1e-3)


def test_bleu_by_hand():
    # characters abcd against abce: 3/4, 2/3, 1/2, and no 4-gram, which method 3 counts as 1/2 of one in one
    assert bleu4(["abcd"], ["abce"]) == pytest.approx(100 * math.prod([3 / 4, 2 / 3, 1 / 2, 1 / 2]) ** 0.25, abs=1e-3)


def test_a_perfect_answer_scores_100_and_an_empty_one_0():
    text = "这件上衣的材质很柔软。"
    assert rouge([text], [text]) == {"rouge-1": 100.0, "rouge-2": 100.0, "rouge-l": 100.0}
    assert bleu4([text], [text]) == 100.0
    for prediction, reference in (("", text), (" \n", text), (text, "")):
        assert set(rouge([prediction], [reference]).values()) == {0.0}
    assert bleu4([""], [text]) == bleu4([text], [""]) == 0.0
    assert bleu4(["", text], [text, text]) == 50.0
    assert rouge([], []) == {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0} and bleu4([], []) == 0.0


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError):
        rouge(["a"], [])
    with pytest.raises(ValueError):
        bleu4(["a"], [])


def test_importing_is_cheap_and_jieba_is_silent():
    code = (
        "import sys, glmtune.evaluation, glmtune.evaluation.metrics as m, glmtune.evaluation.report\n"
        "import glmtune.evaluation.plots\n"
        "assert not {'jieba', 'nltk', 'rouge_chinese', 'matplotlib'} & set(sys.modules)\n"
        "m.rouge(['今天'], ['今天'])"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "jieba" not in done.stderr.lower() and "dict" not in done.stderr.lower()
