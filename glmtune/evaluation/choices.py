"""Which of several answers a question makes likelier, whatever a model would write of its own accord.

An option's score is the mean log-likelihood of its tokens, without the end of the answer: options may differ in length,
and a model that would go on after the word is not the less sure of it. Words are likely for many reasons; what counts
is what the question adds. So the mean of an option's scores over all questions that share the same options is taken off
(domain conditional PMI: A. Holtzman et al., 2021, "Surface form competition", https://arxiv.org/abs/2104.08315, with
the other questions in place of a neutral one). Where no other question shares its options, scores count as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from transformers import PreTrainedTokenizerBase

from glmtune.data.collation import padded
from glmtune.data.encoder import Encoder
from glmtune.data.encoding import IGNORED
from glmtune.examples import Example
from glmtune.methods import Model
from glmtune.models.loading import max_length
from glmtune.runtime import UserError
from glmtune.training.loss import takes_logits_to_keep

MOST_TOKENS = 2048  # of a batch, padding included
MOST_LOGITS = 2**25  # that are held at once: 128 MiB in fp32


@dataclass(frozen=True)
class Option:
    """An option's tokens as a model sees them.

    Attributes:
        question, number: whose option it is, and which.
        input_ids: the prompt and the option, but for its last token, from which nothing is predicted.
        targets: the option's tokens; the last of them is predicted from the last input.
    """

    question: int
    number: int
    input_ids: list[int]
    targets: list[int]

    @property
    def columns(self) -> range:
        """The columns from which the targets are predicted."""
        return range(len(self.input_ids) - len(self.targets), len(self.input_ids))


@dataclass(frozen=True)
class Row:
    """What is run once for all options of a question that it begins with."""

    input_ids: list[int]
    options: list[Option]


def choose(
    model: Model, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Example], limit: int | None = None
) -> Iterator[tuple[int, str]]:
    """Yield (index of a question, the option that it makes likeliest), once all that share its options are scored.

    Args:
        model: in evaluation mode.
        tokenizer: with its template.
        questions: with `options` among their facts; of options that are equally likely, the first is chosen.
        limit: longest sequence in tokens that the model takes, where that is less than its config.json says.

    Raises:
        UserError: a question is too long for the model; told before any is looked at.
    """
    encoder = Encoder(tokenizer, max_length(model.config) if limit is None else limit)
    rows = [row for number, question in enumerate(questions) for row in rows_of(encoder, question, number)]
    sets: dict[frozenset[str], list[int]] = {}
    for number, question in enumerate(questions):
        sets.setdefault(frozenset(question.facts["options"]), []).append(number)
    scores: dict[frozenset[str], dict[tuple[int, str], float]] = {}
    for batch in batches(rows, model):
        for option, score in score_rows(model, tokenizer, batch):
            options = questions[option.question].facts["options"]
            found = scores.setdefault(key := frozenset(options), {})
            found[option.question, options[option.number]] = score
            if len(found) == len(options) * len(sets[key]):
                yield from ((number, likeliest(questions[number], number, found)) for number in sets[key])


def likeliest(question: Example, number: int, scores: Mapping[tuple[int, str], float]) -> str:
    """Return the option that a question makes likeliest, of equal ones the first.

    Args:
        question: with its options.
        number: of the question.
        scores: (number of a question, option) to its score, of all questions that share these options.
    """
    usual = {
        option: fmean(score for (_, other), score in scores.items() if other == option)
        for option in question.facts["options"]
    }
    is_alone = len(scores) == len(usual)
    return max(usual, key=lambda option: scores[number, option] - (0.0 if is_alone else usual[option]))


def rows_of(encoder: Encoder, question: Example, number: int) -> list[Row]:
    """Return the rows of a question: the longest options first, and with each all those that it goes on from.

    Raises:
        UserError: it is too long for the model.
    """
    rows: list[Row] = []
    options = [option_of(encoder, question, number, place) for place in range(len(question.facts["options"]))]
    for option in sorted(options, key=lambda option: -len(option.input_ids)):
        length = len(option.input_ids)
        row = next((row for row in rows if row.input_ids[:length] == option.input_ids), None)
        if row is None:
            rows.append(Row(option.input_ids, [option]))
        else:
            row.options.append(option)
    return rows


def option_of(encoder: Encoder, question: Example, number: int, place: int) -> Option:
    """Return an option as an answer in the form of the model's template, without the end.

    Raises:
        UserError: it is too long for the model.
    """
    encoding = encoder(replace(question, target=question.facts["options"][place]))
    if not encoder.fits(encoding):
        named = question.source or f"question {number + 1}"
        raise UserError(f"evaluation.general_file: {named} {encoder.too_long(encoding)}. Shorten it.")
    targets = [label for label in encoding["labels"] if label != IGNORED][:-1]
    end = next(place for place in reversed(range(len(encoding["labels"]))) if encoding["labels"][place] != IGNORED)
    return Option(number, place, encoding["input_ids"][: end - 1], targets)


def batches(rows: Sequence[Row], model: Model) -> Iterator[list[Row]]:
    """Yield rows of similar length, as many as the bounds on tokens and on logits allow, and one at least."""
    batch: list[Row] = []
    vocabulary = model.config.get_text_config().vocab_size
    for row in sorted(rows, key=lambda row: -len(row.input_ids)):
        grown = [*batch, row]
        tokens, logits = len(grown) * len(grown[0].input_ids), len(grown) * len(columns_of(grown)) * vocabulary
        if batch and (tokens > MOST_TOKENS or logits > MOST_LOGITS):
            yield batch
            grown = [row]
        batch = grown
    if batch:
        yield batch


def columns_of(rows: Sequence[Row]) -> list[int]:
    """Return the columns of a batch from which something is predicted in some row."""
    return sorted({column for row in rows for option in row.options for column in option.columns})


@torch.inference_mode()
def score_rows(model: Model, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Row]) -> list[tuple[Option, float]]:
    """Return all options of some rows with the mean log-likelihood of their tokens, in nats."""
    input_ids = padded([row.input_ids for row in batch], tokenizer.pad_token_id).to(model.device)
    mask = padded([[1] * len(row.input_ids) for row in batch], 0).to(model.device)
    columns = columns_of(batch)
    kept = torch.tensor(columns, device=model.device)
    given = {"logits_to_keep": kept} if takes_logits_to_keep(model) else {}
    logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False, **given).logits  # (B, K, V)
    logits = logits if given else logits[:, kept]
    index, scores = {column: place for place, column in enumerate(columns)}, []
    for place, row in enumerate(batch):
        for option in row.options:
            chosen = logits[place, [index[column] for column in option.columns]].float().log_softmax(dim=-1)
            targets = torch.tensor(option.targets, device=model.device)
            scores.append((option, chosen.gather(1, targets[:, None]).mean().item()))
    return scores
