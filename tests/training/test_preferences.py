"""Losses of comparisons: the log-probabilities are those of the targets' loss, the formulas are trl's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from glmtune.config import ModelSettings
from glmtune.data.comparisons import ComparingCollator, Comparison, EncodedComparisons, bad, good
from glmtune.data.encoder import Encoder
from glmtune.examples import Example
from glmtune.models.loading import load_model
from glmtune.objectives.dpo import DpoSettings
from glmtune.training.preferences import LOSSES, Knobs, judge_of, measure

EXAMPLES = [
    Example("1+2=", "3", rejected="4"),
    Example("25.31+86.35=", "111.66", rejected="10"),
    Example("2*3=", "six, which is 2+2+2", rejected="5"),
]
COMPARISONS = [Comparison(good(example), bad(example)) for example in EXAMPLES]


def compared(path: Path | str, comparisons: list[Comparison] = COMPARISONS) -> tuple[Any, Any, EncodedComparisons]:
    from glmtune.config import DataSettings

    model, tokenizer = load_model(ModelSettings(path=str(path), dtype="float32"))
    return model.eval(), tokenizer, EncodedComparisons(comparisons, Encoder(tokenizer), DataSettings(), "these")


@pytest.mark.parametrize("family", ["nano", "GLM-4-9B", "Llama"])
def test_log_probabilities_are_those_of_each_token_alone(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    """Whatever stands beside an answer in its batch: the sum over its own tokens, the end token included."""
    model, tokenizer, dataset = compared("nano" if family == "nano" else checkpoint_of(family))
    batch = ComparingCollator(tokenizer.pad_token_id)([dataset[index] for index in range(3)])
    assert batch["attention_mask"].min() == 0, "some are padded"
    found, lengths = measure(model, batch)
    rows = [encoding for part in (0, 1) for index in range(3) for encoding in [dataset.encodings(index)[part]]]
    for row, log_prob, length in zip(rows, found, lengths, strict=True):
        ids, labels = (torch.tensor([row[part]]) for part in ("input_ids", "labels"))  # type: ignore[literal-required]
        with torch.no_grad():
            whole = model(input_ids=ids, labels=labels).loss.item()
            left = model(  # padded on the left
                input_ids=torch.cat([torch.full((1, 3), tokenizer.pad_token_id), ids], 1),
                attention_mask=torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.ones_like(ids)], 1),
            ).logits[:, 3:]
        targets = labels[0, 1:] != -100
        assert length == targets.sum() and labels[0, -1] != -100
        assert log_prob.item() == pytest.approx(-whole * length.item(), abs=1e-4, rel=1e-6)
        by_token = log_softmax(left[0, :-1].float(), -1)[torch.arange(len(targets)), ids[0, 1:]]
        assert log_prob.item() == pytest.approx(by_token[targets].sum().item(), abs=1e-4, rel=1e-6)


def test_every_loss_has_a_row_and_no_other() -> None:
    assert get_args(DpoSettings.model_fields["loss"].annotation) == tuple(LOSSES)


BETTER, WORSE = torch.tensor([-1.5, -0.2, -3.0]), torch.tensor([-2.5, -0.3, -1.0])


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if not loss.single])
def test_a_loss_falls_with_the_margin(name: str) -> None:
    """Its slope pushes the better answer up, but for apo_down, and the worse one down."""
    loss = LOSSES[name]
    better, worse = BETTER.clone().requires_grad_(), WORSE.clone().requires_grad_()
    loss.compute(better, worse, Knobs(loss.beta)).sum().backward()
    assert worse.grad is not None and better.grad is not None and bool((worse.grad >= 0).all())
    assert bool((better.grad <= 0).all()) or name in ("apo_down", "ipo", "sppo_hard")


def test_values_known_from_the_papers() -> None:
    """At the reference, DPO's loss is log 2; smoothing does not change that, nor does a margin of both."""
    zero = torch.zeros(1)
    for name in ("sigmoid", "robust"):
        assert LOSSES[name].compute(zero, zero, Knobs(0.1, 0.1)).item() == pytest.approx(math.log(2))
    assert LOSSES["ipo"].compute(zero, zero, Knobs(0.1)).item() == pytest.approx(25)
    assert LOSSES["ipo"].compute(zero + 5, zero, Knobs(0.1)).item() == 0
    assert LOSSES["hinge"].compute(zero, zero, Knobs(0.1)).item() == 1
    assert LOSSES["kto"].compute(zero, zero + 1, Knobs(0.1)).item() == 0.5
    odds = math.log(0.5 / 0.5) - math.log(0.2 / 0.8)
    found = LOSSES["orpo"].compute(torch.tensor([0.5]).log(), torch.tensor([0.2]).log(), Knobs(0.1)).item()
    assert found == pytest.approx(math.log(2) + 0.1 * math.log1p(math.exp(-odds)), rel=1e-5)


@pytest.mark.parametrize("name", ["sigmoid", "robust", "hinge", "ipo", "apo_zero", "apo_down", "sppo_hard"])
def test_losses_and_log_probabilities_are_trls(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batch through trl's own trainer gives the same loss, of a model that has left its reference."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **_: None)
    model, tokenizer, dataset = compared("nano")
    batch = ComparingCollator(tokenizer.pad_token_id)([dataset[index] for index in range(3)])
    then, _ = measure(model, batch)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.01 * weight.std())
    now, lengths = measure(model, batch)
    loss, knobs = LOSSES[name], Knobs(0.3, 0.1 if name == "robust" else 0.0)
    gain = (now - then) / lengths if loss.per_token else now - then
    ours = loss.compute(*gain.chunk(2), knobs).mean()
    assert gain.abs().max() > 1e-3

    rows = []
    for index in range(3):
        chosen, rejected = dataset.encodings(index)
        start = next(place for place, label in enumerate(chosen["labels"]) if label != -100)
        assert rejected["input_ids"][:start] == chosen["input_ids"][:start]
        parts = {"prompt_ids": chosen["input_ids"][:start], "chosen_ids": chosen["input_ids"][start:]}
        rows.append({**parts, "rejected_ids": rejected["input_ids"][start:]})
    options = {"per_device_train_batch_size": 3, "use_cpu": True, "report_to": "none", "bf16": False}
    arguments = trl.DPOConfig(
        str(tmp_path),
        loss_type=name,
        beta=0.3,
        label_smoothing=knobs.label_smoothing,
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        **options,
    )
    texts = [{"prompt": e.prompt, "chosen": e.target, "rejected": e.rejected} for e in EXAMPLES]  # it wants some
    trainer = trl.DPOTrainer(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_list(texts), processing_class=tokenizer
    )
    known = [
        dict(row, ref_chosen_logps=then[i].item(), ref_rejected_logps=then[i + 3].item()) for i, row in enumerate(rows)
    ]
    theirs = trainer._compute_loss(model, trainer.data_collator(known), False)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-4)


class Fixed(torch.nn.Module):
    """A model whose next token is likelier the larger its id is."""

    device = torch.device("cpu")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        logits = torch.arange(200_00, dtype=torch.float32) / 1000
        return type("Output", (), {"logits": logits.expand(*input_ids.shape, -1)})


def test_preference_accuracy_counts_ties_by_half() -> None:
    _, tokenizer, _ = compared("nano")
    pairs = [
        Comparison(good(e), bad(e)) for e in (Example("1+1=", "2", rejected="9"), Example("1+1=", "9", rejected="2"))
    ]
    same = Comparison(good(Example("1+1=", "2")), good(Example("1+1=", "2")))
    for comparisons, share in ((pairs, 0.5), ([pairs[0]], None), ([same], 0.5)):
        _, _, dataset = compared("nano", comparisons)
        found = judge_of(dataset, tokenizer.pad_token_id, 2, LOSSES["sigmoid"])(Fixed())  # type: ignore[arg-type]
        assert found["n"] == len(comparisons)
        assert found["preference_accuracy"] == (
            share if share is not None else pytest.approx(round(found["preference_accuracy"]))
        )


def test_single_answers_are_judged_over_all_couples() -> None:
    """The chance that a good answer is likelier by token than a bad one, whatever their prompts."""
    singles = [Comparison(good(Example(f"{a}+1=", str(a))), good(Example("1", "1")), a > 3) for a in range(2, 6)]
    model, tokenizer, dataset = compared("nano", singles)
    scores = []
    for index in range(4):
        batch = ComparingCollator(tokenizer.pad_token_id)([dataset[index]])
        log_probs, lengths = measure(model, batch)
        scores.append((log_probs / lengths)[0].item())
    expected = sum(scores[one] > scores[other] for one in (2, 3) for other in (0, 1)) / 4
    found = judge_of(dataset, tokenizer.pad_token_id, 3, LOSSES["kto"])(model)
    assert found == {"preference_accuracy": expected, "n": 4}
