"""Options ranked by how likely a model finds them: as the whole sequences say, in bounded batches."""

import pytest
import torch

from glmtune.data.encoder import Encoder
from glmtune.data.encoding import IGNORED, encode_example
from glmtune.evaluation import choices
from glmtune.evaluation.choices import choose, likeliest, rows_of, score_rows
from glmtune.evaluation.general import read_general
from glmtune.examples import Example
from glmtune.runtime import UserError

WORDS = Example("Which?", "ab", {"options": ["a", "ab", "ac", "b"]})


@pytest.fixture(scope="module")
def questions():
    return [question for question in read_general() if question.facts.get("options")][::12]


def likelihood(model, tokenizer, question, option):
    """Mean log-likelihood of an option's tokens without the end, of one whole sequence."""
    encoding = encode_example(tokenizer, question.prompt, option)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([encoding["input_ids"]])).logits[0].double().log_softmax(-1)
    places = [place for place, label in enumerate(encoding["labels"]) if label != IGNORED][:-1]
    return sum(logits[place - 1, encoding["labels"][place]].item() for place in places) / len(places)


def test_scores_are_those_of_whole_sequences(tiny, questions):
    model, tokenizer = tiny
    rows = [row for number, one in enumerate(questions) for row in rows_of(Encoder(tokenizer), one, number)]
    scores = score_rows(model, tokenizer, rows)
    assert len(scores) == 4 * len(questions)
    for option, score in scores:
        question = questions[option.question]
        wanted = likelihood(model, tokenizer, question, question.facts["options"][option.number])
        assert score == pytest.approx(wanted, rel=1e-4)


def test_the_likeliest_is_chosen_however_the_batches_are(tiny, questions, monkeypatch):
    model, tokenizer = tiny
    chosen = dict(choose(model, tokenizer, questions))
    assert [*sorted(chosen)] == [*range(len(questions))]
    for index, question in enumerate(questions):  # none shares its options with another
        options = question.facts["options"]
        assert chosen[index] == max(options, key=lambda option: likelihood(model, tokenizer, question, option))
    for name in ("MOST_TOKENS", "MOST_LOGITS"):
        with monkeypatch.context() as bounded:
            bounded.setattr(choices, name, 1)
            assert dict(choose(model, tokenizer, questions)) == chosen


def test_what_counts_is_what_the_question_adds():
    question, other = (Example(prompt, "b", {"options": ["a", "b"]}) for prompt in "pq")
    scores = {(0, "a"): -1.0, (0, "b"): -4.0}  # "a" is the likelier word anywhere
    assert likeliest(question, 0, scores) == "a"
    scores |= {(1, "a"): -0.5, (1, "b"): -6.0}
    assert likeliest(question, 0, scores) == "b" and likeliest(other, 1, scores) == "a"


def test_questions_that_share_options_are_told_apart(tiny):
    model, tokenizer = tiny
    same = [question for question in read_general() if question.facts.get("options")][:8]
    scores = {
        (number, option): likelihood(model, tokenizer, question, option)
        for number, question in enumerate(same)
        for option in question.facts["options"]
    }
    chosen = dict(choose(model, tokenizer, same))
    for number, question in enumerate(same):
        known = {place: score for place, score in scores.items() if place[0] // 4 == number // 4}
        assert chosen[number] == likeliest(question, number, known)


def test_batches_are_bounded(tiny, questions, monkeypatch):
    model, tokenizer = tiny
    rows = [row for number, one in enumerate(questions) for row in rows_of(Encoder(tokenizer), one, number)]
    monkeypatch.setattr(choices, "MOST_TOKENS", 200)
    found = list(choices.batches(rows, model))
    assert sorted(map(id, rows)) == sorted(id(row) for batch in found for row in batch) and len(found) > 1
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(len(row.input_ids) for row in batch) <= 200


def test_options_that_begin_alike_are_run_once(tiny):
    _, tokenizer = tiny
    rows = rows_of(Encoder(tokenizer), WORDS, 0)
    assert sorted(option.number for row in rows for option in row.options) == [0, 1, 2, 3]
    assert len(rows) < 4
    for row in rows:
        for option in row.options:
            assert row.input_ids[: len(option.input_ids)] == option.input_ids


def test_a_question_that_is_too_long_is_named(tiny):
    model, tokenizer = tiny
    with pytest.raises(UserError, match=r"general_file: question 1 has \d+ tokens.*Shorten it"):
        list(choose(model, tokenizer, [WORDS], limit=3))
