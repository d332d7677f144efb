"""The loop of everything that is learned from given tokens: transformers' Trainer with the loss of the targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState

from glmtune import distributed
from glmtune.config import Recipe
from glmtune.data import EncodedDataset, LengthGroupedSampler, StepBatches
from glmtune.data.collation import Collator
from glmtune.data.encoding import IGNORED
from glmtune.methods import Model
from glmtune.models.attention import precise_attention
from glmtune.models.low_rank import uncast_inputs
from glmtune.models.upcasting import upcast_while
from glmtune.runtime import RunFolder
from glmtune.training.arguments import make_arguments
from glmtune.training.loss import takes_logits_to_keep, target_loss
from glmtune.training.packing import check_packing
from glmtune.training.run_trainer import Judge, RunTrainer
from glmtune.training.sharding import device_of

# What of a batch a model is given.
PASSED = frozenset({"input_ids", "attention_mask", "position_ids", "logits_to_keep"})


class EpochCallback(TrainerCallback):
    """Tells the batches which epoch begins, also where a Trainer that skips some of them would not."""

    batches: StepBatches | None = None

    def on_epoch_begin(
        self, args: transformers.TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.batches is not None:
            self.batches.set_epoch(int(state.epoch or 0))


@contextmanager
def computing(model: Any, args: transformers.TrainingArguments) -> Iterator[None]:
    """Compute what the block computes in the precision of a training: autocast where the base has 16 bits."""
    if not (args.bf16 or args.fp16):
        yield
        return
    with uncast_inputs(model), upcast_while(model, torch.bfloat16 if args.bf16 else torch.float16), precise_attention():
        yield


class TargetTrainer(transformers.Trainer):
    """transformers' loop with batches of similar length, and logits of the targets alone.

    The loss is a mean over the target tokens of a whole optimizer step; micro-batches, padding, accumulation and the
    number of processes cannot change it.

    Args:
        examples_per_step: of all processes; default: what the arguments say for each.
        options: of the Trainer, by name.
    """

    def __init__(self, *, examples_per_step: int | None = None, **options: Any):
        super().__init__(**options)
        self.examples_per_step, self.epochs = examples_per_step, EpochCallback()
        self.add_callback(self.epochs)
        self.model_accepts_loss_kwargs = True  # the loss below is a mean over the step, whatever the model can do
        self.takes_logits_to_keep = takes_logits_to_keep(self.accelerator.unwrap_model(self.model))

    def get_train_dataloader(self) -> Any:
        """Return the micro-batches of this process; those of all make the steps of one process."""
        batches = self.make_batches()
        self.epochs.batches = batches
        loader: Any = DataLoader(
            batches.order.dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)

    def make_batches(self) -> StepBatches:
        """Return the micro-batches of all processes, of the first epoch."""
        dataset, collator = self.train_dataset, self.data_collator
        assert isinstance(dataset, EncodedDataset) and isinstance(collator, Collator)
        processes, batch_size = self.accelerator.num_processes, self.args.train_batch_size
        step = self.examples_per_step or batch_size * self.args.gradient_accumulation_steps * processes
        # What is packed has no padding; batches of all lengths are the better sample then.
        order = LengthGroupedSampler(dataset, step, self.args.data_seed or self.args.seed, not collator.packed)
        return StepBatches(order, step, batch_size, processes)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; every pass, those of the judge too, is autocast where the base has 16 bits."""
        with self.computing():
            return super().train(*args, **kwargs)

    def computing(self) -> AbstractContextManager[None]:
        """Compute what the block computes in the precision of the training."""
        return computing(self.accelerator.unwrap_model(self.model), self.args)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the part of a step's loss that a micro-batch makes."""
        loss = self.batch_loss(model, inputs, num_items_in_batch)
        return loss * self.accelerator.num_processes if self.args.average_tokens_across_devices else loss

    def batch_loss(self, model: Any, inputs: Any, count: Any) -> Tensor:
        """Return the cross-entropy of the target tokens, without logits of prompts.

        Args:
            model: as it is wrapped.
            inputs: a micro-batch.
            count: target tokens of the whole step; None: those of the micro-batch.
        """
        labels, kept = inputs["labels"], inputs["logits_to_keep"]
        count = labels.ne(IGNORED).sum() if count is None else count
        return target_loss(self.target_logits(model, inputs), labels, kept) / count

    def target_logits(self, model: Any, inputs: Any) -> Tensor:
        """Return (B, K, V) the logits of the columns of a batch that hold targets."""
        read = PASSED if self.takes_logits_to_keep else PASSED - {"logits_to_keep"}
        # accelerate's wrapper would turn all logits to fp32; autocast is all that is wanted of it.
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        with self.accelerator.autocast():
            passed = {name: tensor for name, tensor in inputs.items() if name in read}
            logits: Tensor = model(**passed, use_cache=False).logits
        return logits if self.takes_logits_to_keep else logits[:, inputs["logits_to_keep"]]


class Trainer(RunTrainer, TargetTrainer):
    """The loop of a run that learns targets."""

    data_collator: Collator

    def run(self) -> None:
        """Train, once it is certain that packing changes nothing.

        Raises:
            UserError: with this model and method it would.
        """
        if self.data_collator.packed:
            assert isinstance(self.train_dataset, EncodedDataset)
            check_packing(self, self.train_dataset)
        super().run()

    def describe_batch(self, inputs: Any) -> str:
        """Return where the records stand."""
        return cast(EncodedDataset, self.train_dataset).name(inputs["record"].tolist())


def make_trainer(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    dataset: EncodedDataset,
    recipe: Recipe,
    steps: int,
    judge: Judge,
    folder: RunFolder,
    groups: list[dict[str, Any]] | None = None,
    kind: Callable[..., Trainer] = Trainer,
    **arguments: Any,
) -> Trainer:
    """Return the loop, ready to `run`.

    Args:
        model: with a method applied.
        dataset: examples to learn.
        steps: optimizer steps in all, also when resuming.
        judge: scores the model on held-out examples.
        folder: of the run.
        groups: of parameters with learning rates of their own (`Method.parameter_groups`); default: all alike.
        kind: makes the loop.
        arguments: transformers' training arguments that differ from the recipe's.

    Raises:
        UserError: the device cannot train in the recipe's precision, or an optional package is missing.
    """
    idle = dataset[0] if distributed.world_size() > 1 else None
    return kind(
        judge=judge,
        folder=folder,
        settings=recipe.training,
        groups=groups,
        model=model,
        args=make_arguments(recipe, steps, folder.checkpoints, device_of(model), **arguments),
        train_dataset=dataset,
        data_collator=Collator(tokenizer.pad_token_id, recipe.data.packing, idle=idle),
        examples_per_step=recipe.training.examples_per_step,
        processing_class=tokenizer,
    )
