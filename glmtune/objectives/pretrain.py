"""Continued pre-training: every token of plain texts is learned, of long ones in windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glmtune.config import NamedSettings
from glmtune.objectives import Objective
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from glmtune.data import EncodedDataset
    from glmtune.examples import Example
    from glmtune.methods import Model
    from glmtune.plan import Plan, Preparation
    from glmtune.training.run_trainer import Judge, RunTrainer

METRIC = "bits_per_character"


class PretrainSettings(NamedSettings):
    """Pre-training has no settings of its own; `data.max_length` is the length of a window."""


class Pretrain(Objective):
    """Cross-entropy of all tokens, judged by the bits that a character of held-out texts costs."""

    Settings = PretrainSettings
    needs = frozenset({"text"})
    asks = False
    metric = METRIC

    def dataset(self, plan: Preparation) -> tuple[EncodedDataset, int]:
        """Return the windows of the task's texts, and the optimizer steps.

        Raises:
            UserError: the task has no texts, or other records are to be mixed in.
        """
        from glmtune.data.mixture import count_steps

        self.check(plan)
        if plan.recipe.data.mixture:
            raise UserError("data.mixture: objective.name=pretrain learns texts alone; put them all into task.file.")
        dataset = self.encode(plan, plan.task.records("train") or [])
        return dataset, plan.recipe.training.steps or count_steps(plan.recipe, len(dataset))

    def following(self, run: str, steps: int, draws: bool) -> list[str]:
        """Return how the run is judged, and taught to answer."""
        taught = "objective.name=sft task.name=instructions task.file=YOURS.jsonl training.output_dir=NEW"
        return [f"evaluate {run}", f"chat {run}", f"train {run} {taught}"]

    def trainer(self, plan: Plan, model: Model, judge: Judge) -> RunTrainer:
        """Return the loop with the loss of all tokens."""
        from glmtune.training.trainer import make_trainer

        return make_trainer(
            model,
            plan.tokenizer,
            plan.dataset,
            plan.recipe,
            plan.steps,
            judge,
            plan.folder,
            plan.method.parameter_groups(model),
            metric_for_best_model=METRIC,
            greater_is_better=False,
        )

    def judge(self, plan: Preparation, examples: Sequence[Example] | None = None) -> Judge:
        """Return what measures a model by texts: bits per character, whatever the tokenizer."""
        if examples is None:
            examples = (plan.task.records("held_out") or [])[: plan.recipe.evaluation.num_examples]
        dataset, batch_size = self.encode(plan, examples), plan.recipe.training.batch_size
        characters = sum(len(str(example.text)) for example in examples)

        def judge(model: Model) -> dict[str, Any]:
            loss = total_loss(model, dataset, plan.encoder.tokenizer.pad_token_id, batch_size)
            return {METRIC: loss / math.log(2) / characters, "n": len(examples)}

        return judge

    def judges(self, examples: Sequence[Example]) -> bool:
        """Return whether all are plain texts, which ask nothing."""
        return all(example.text is not None for example in examples)

    def encode(self, plan: Preparation, examples: Sequence[Example]) -> EncodedDataset:
        """Return the windows of texts."""
        from glmtune.data.texts import EncodedTexts

        return EncodedTexts(examples, plan.encoder.tokenizer, plan.encoder.max_length)


def total_loss(model: Model, dataset: EncodedDataset, pad_token_id: int, batch_size: int) -> float:
    """Return the sum of the cross-entropies of all that a data set teaches, divided among the processes."""
    import torch

    from glmtune.data.collation import Collator
    from glmtune.distributed import gather, share
    from glmtune.training.loss import target_loss

    collate, losses = Collator(pad_token_id), []
    with torch.no_grad():
        for start in share(range(0, len(dataset), batch_size)):
            indices = range(start, min(start + batch_size, len(dataset)))
            batch = collate([dataset[index] for index in indices])
            batch = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "record"}
            labels, kept = batch.pop("labels"), batch.pop("logits_to_keep")
            logits = model(**batch, use_cache=False).logits[:, kept]
            losses.append(target_loss(logits, labels, kept).item())
    return sum(gather(losses))
