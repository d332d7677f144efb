"""A small subclass of transformers' Trainer and the run that it makes."""

from __future__ import annotations

import inspect
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, TrainerState, TrainingArguments
from transformers import Trainer as TransformersTrainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from glmtune.config import Recipe
from glmtune.data import EncodedDataset, LengthGroupedSampler
from glmtune.data.collation import Collator
from glmtune.data.encoding import IGNORED
from glmtune.methods import Model
from glmtune.models import choose_dtype
from glmtune.runtime import UserError
from glmtune.training import optimizers
from glmtune.training.callbacks import InterruptCallback, LogCallback, ProgressBar
from glmtune.training.loss import target_loss

METRIC = "accuracy"
PACKED_IN_CHECK = 4
PACKING_TOLERANCE = 2e-2  # of a loss computed in 16 bits; a hundredth of it in fp32
WEIGHTS = "trainable.safetensors"
Judge = Callable[[Model], dict[str, Any]]  # scores a model on held-out examples


class DivergenceError(UserError):
    """The loss or the weights are no longer numbers.

    Attributes:
        rescued: the model holds the best weights of the run again.
    """

    rescued = False


class Trainer(TransformersTrainer):
    """transformers' loop with batches of similar length, judged by what the model answers, not by its loss.

    The loss is a mean over the target tokens of a whole optimizer step; micro-batches, padding and accumulation cannot
    change it. A checkpoint holds the weights that are trained, whatever the method, and nothing of a frozen base.

    Args:
        judge: scores the model on held-out examples.
        groups: of trainable parameters, as `Method.parameter_groups` gives them.
        optimizer_name: a row of `glmtune.training.optimizers`.
    """

    def __init__(self, judge: Judge, groups: list[dict[str, Any]], optimizer_name: str = "adamw", **kwargs: Any):
        self.optimizer_name = optimizer_name
        super().__init__(**kwargs)
        self.judge = judge
        self.groups = groups
        self.model_accepts_loss_kwargs = True  # the loss below is a mean over the step, whatever the model can do
        base = self.accelerator.unwrap_model(self.model)
        forward = base.get_base_model().forward if isinstance(base, PeftModel) else base.forward
        self.can_choose_columns = "logits_to_keep" in inspect.signature(forward).parameters

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        dataset = train_dataset or self.train_dataset
        assert isinstance(dataset, EncodedDataset) and isinstance(self.data_collator, Collator)
        # What is packed has no padding; batches of all lengths are the better sample then.
        grouped = not self.data_collator.packed
        return LengthGroupedSampler(dataset, step, self.args.data_seed or self.args.seed, grouped)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The method's groups of parameters; biases and norms do not decay."""
        if self.optimizer is None:
            trained: Any = self.model
            decaying = set(self.get_decay_parameter_names(trained))
            decays = {id(weight): name in decaying for name, weight in trained.named_parameters()}
            groups = [
                {
                    "params": chosen,
                    "weight_decay": self.args.weight_decay if decayed else 0.0,
                    "lr": self.args.learning_rate * group.get("lr_scale", 1.0),
                }
                for group in self.groups
                for decayed in (True, False)
                if (chosen := [weight for weight in group["params"] if decays[id(weight)] == decayed])
            ]
            self.optimizer = optimizers.create_optimizer(self.optimizer_name, groups, trained, self.args)
        return self.optimizer

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy of the target tokens, without logits of prompts.

        Raises:
            DivergenceError: it is not finite; tells the step and the records.
        """
        inputs = dict(inputs)
        labels, records, columns = inputs.pop("labels"), inputs.pop("record"), inputs.pop("columns")
        # accelerate's wrapper would turn all logits to fp32; autocast is all that is wanted of it.
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        with self.accelerator.autocast():
            if self.can_choose_columns:
                logits = model(**inputs, use_cache=False, logits_to_keep=columns).logits
            else:
                logits = model(**inputs, use_cache=False).logits[:, columns]
        count = labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = target_loss(logits, labels, columns) / count
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        if not loss.isfinite():
            numbers = ", ".join(str(index + 1) for index in sorted(records.tolist()) if index >= 0)
            raise DivergenceError(
                f"The loss of step {self.state.global_step + 1} is {loss.item()} "
                f"({f'records {numbers}' if numbers else 'records of data.mixture'})."
            )
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the model on held-out examples by greedy decoding, in the precision that it is trained in.

        Raises:
            DivergenceError: its weights are no numbers.
        """
        self.check_weights()
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        start = time.perf_counter()
        model.eval()
        with self.accelerator.autocast():
            result = self.judge(model)
        model.train(was_training)
        metrics = {f"eval_{METRIC}": result[METRIC], "eval_duration": round(time.perf_counter() - start, 2)}
        low, high = result[f"{METRIC}_ci95"]
        self.log({**metrics, "eval_ci95_low": low, "eval_ci95_high": high, "eval_n": result["n"]})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if result[METRIC] == self.state.best_metric:  # of equals the last is kept: it has learned longest
            self.state.best_global_step = self.state.global_step
        return metrics

    def trained_weights(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that are trained, by name; a tied one once."""
        model = self.accelerator.unwrap_model(self.model)
        return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def check_weights(self) -> None:
        """Look for trained weights that are no numbers.

        Raises:
            DivergenceError: there are some.
        """
        broken = [name for name, weight in self.trained_weights().items() if not weight.isfinite().all()]
        if broken:
            raise DivergenceError(f"After step {self.state.global_step} the weights are not finite ({broken[0]} ...).")

    def take_best(self, state: TrainerState) -> None:
        """Load the best weights of a run that has ended already."""
        self.state = state
        state.best_model_checkpoint = str(Path(str(self.args.output_dir)) / f"checkpoint-{state.best_global_step}")
        self._load_best_model()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: weight.detach().contiguous() for name, weight in self.trained_weights().items()}, folder / WEIGHTS
        )

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Put the weights of a checkpoint into the model.

        Raises:
            UserError: it was made with other settings.
        """
        path, weights = Path(resume_from_checkpoint) / WEIGHTS, self.trained_weights()
        with safe_open(path, framework="pt") as file, torch.no_grad():
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()}
            wanted = {name: tuple(weight.shape) for name, weight in weights.items()}
            if found != wanted:
                name = min(name for name in found | wanted if found.get(name) != wanted.get(name))
                raise UserError(
                    f"{path} does not fit the recipe: {name} is {found.get(name)} there and {wanted.get(name)} by "
                    "recipe.yaml. Put recipe.yaml back as it was when the run began."
                )
            for name, weight in weights.items():
                weight.copy_(file.get_tensor(name))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the base class does, but without a half-written checkpoint where the disk is full, and never of weights
        that are no numbers.

        Raises:
            UserError: it cannot be written.
            DivergenceError: a weight is not finite.
        """
        self.check_weights()
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            folder = Path(str(self.args.output_dir))
            shutil.rmtree(folder / f"checkpoint-{self.state.global_step}", ignore_errors=True)
            free = shutil.disk_usage(folder).free // 2**20
            raise UserError(
                f"{folder}: the checkpoint of step {self.state.global_step} cannot be written ({free} MB free on this "
                f"disk): {error}. Make room, then go on with: glmtune train --resume {folder.parent}"
            ) from error


def check_precision(dtype: torch.dtype, device: torch.device) -> None:
    """fp16 needs its loss scaled, or small gradients are lost; only GPUs have that.

    Raises:
        UserError: this device cannot train in this precision.
    """
    if dtype == torch.float16 and device.type != "cuda":
        raise UserError(
            f"model.dtype=float16: on {device.type} there is no loss scaling, and small gradients would be lost. "
            "Use model.dtype=bfloat16 or float32."
        )


def training_arguments(recipe: Recipe, steps: int, folder: Path, model: Model) -> TrainingArguments:
    """transformers' form of the recipe's settings, for `steps` optimizer steps.

    What is trained is fp32; on a 16-bit base the computation is autocast to its precision.

    Raises:
        UserError: the device cannot train in the recipe's precision, or bitsandbytes is missing.
    """
    device = model.device
    dtype = choose_dtype(recipe.model.dtype, device)
    check_precision(dtype, device)
    settings = recipe.training
    assert settings.learning_rate is not None, "the command fills in the method's"
    if torch.distributed.is_torchelastic_launched():
        raise UserError("torchrun: several processes are not supported yet. Start glmtune without it.")
    optimizers.check_installed(settings.optimizer)
    eval_steps = settings.eval_steps or max(1, -(-steps // 10))
    recompute: dict[str, Any] = {}
    if settings.gradient_checkpointing:
        recompute = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        optim=optimizers.TABLE[settings.optimizer].optim,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=round(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm,
        **recompute,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=eval_steps,
        save_total_limit=settings.save_total_limit + 1,  # transformers counts the best one, too
        load_best_model_at_end=True,
        metric_for_best_model=METRIC,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
        use_cpu=device.type == "cpu",
    )
    if arguments.n_gpu > 1:  # transformers would scatter batches over all GPUs of the machine
        arguments._n_gpu = 1
    return arguments


def last_checkpoint(checkpoints: Path) -> Path | None:
    """The latest complete checkpoint in a folder, if any: the state is written last."""
    complete = [state.parent for state in checkpoints.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return max(complete, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def has_ended(state: TrainerState, steps: int, patience: int | None) -> bool:
    """Whether all steps were made, or early stopping has had enough."""
    callbacks: Any = state.stateful_callbacks
    stopper = callbacks.get(EarlyStoppingCallback.__name__, {"attributes": {}})
    worse = stopper["attributes"].get("early_stopping_patience_counter", 0)
    return state.global_step >= steps or (patience is not None and worse >= patience)


def fit(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    dataset: EncodedDataset,
    recipe: Recipe,
    steps: int,
    judge: Judge,
    log_path: Path,
    checkpoints: Path,
    resume: bool = False,
    groups: list[dict[str, Any]] | None = None,
) -> Trainer:
    """Train, keeping the best weights by held-out exact match; the model ends with them, in evaluation mode.

    Args:
        model: with a method applied.
        dataset: examples to learn.
        steps: optimizer steps in all, also when resuming.
        judge: scores the model on held-out examples.
        log_path: `log.jsonl`, appended to.
        checkpoints: folder of resumable checkpoints.
        resume: go on from the last checkpoint, or begin where there is none.
        groups: of parameters with learning rates of their own (`Method.parameter_groups`); default: all alike.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is written.
        DivergenceError: the loss is no longer a number; the model holds the best weights so far.
    """
    trainer = make_trainer(model, tokenizer, dataset, recipe, steps, judge, checkpoints, groups)
    patience = recipe.training.early_stopping_patience
    if patience is not None:
        trainer.add_callback(EarlyStoppingCallback(patience))
    interrupt, bar = InterruptCallback(), ProgressBar()
    for callback in (LogCallback(log_path), bar, interrupt):
        trainer.add_callback(callback)
    if recipe.data.packing:
        check_packing(trainer, dataset)
    start = last_checkpoint(checkpoints) if resume else None
    state = TrainerState.load_from_json(str(start / TRAINER_STATE_NAME)) if start else None
    model.config.use_cache = False
    try:
        if state is not None and has_ended(state, steps, patience):
            trainer.take_best(state)
        else:
            with interrupt.listening(), closing(bar):
                trainer.train(resume_from_checkpoint=str(start) if start else None)
    except DivergenceError as error:
        raise rescue(trainer, error) from error
    finally:
        model.config.use_cache = True
        model.eval()
    if interrupt.interrupted:
        raise KeyboardInterrupt
    return trainer


def make_trainer(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    dataset: EncodedDataset,
    recipe: Recipe,
    steps: int,
    judge: Judge,
    checkpoints: Path,
    groups: list[dict[str, Any]] | None = None,
) -> Trainer:
    """The loop, ready to start and silent; arguments as for `fit`."""
    trainer = Trainer(
        judge=judge,
        groups=groups or [{"params": [weight for weight in model.parameters() if weight.requires_grad]}],
        optimizer_name=recipe.training.optimizer,
        model=model,
        args=training_arguments(recipe, steps, checkpoints, model),
        train_dataset=dataset,
        eval_dataset=dataset,  # unused: `evaluate` asks the judge; the Trainer wants one all the same
        data_collator=Collator(tokenizer.pad_token_id, recipe.data.packing),
        processing_class=tokenizer,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    return trainer


@torch.no_grad()
def check_packing(trainer: Trainer, dataset: EncodedDataset) -> None:
    """See on the first examples that packing changes no loss: some models and methods let neighbours see each other.

    Raises:
        UserError: it does.
    """
    encodings = [dataset[index] for index in range(min(PACKED_IN_CHECK, len(dataset)))]
    model, collator = trainer.model, trainer.data_collator
    assert isinstance(model, torch.nn.Module) and isinstance(collator, Collator)
    alone_in_rows = Collator(collator.pad_token_id)
    in_one_row = Collator(collator.pad_token_id, packed=True, room=sum(len(one["input_ids"]) for one in encodings))
    model.eval()
    losses = []
    for collate in (alone_in_rows, in_one_row):
        batch = {name: tensor.to(trainer.args.device) for name, tensor in collate(encodings).items()}
        try:
            losses.append(trainer.compute_loss(model, batch).item())
        except (ValueError, TypeError):  # of position_ids, which it does not take in this way
            losses.append(float("nan"))
    model.train()
    alone, packed = losses
    tolerance = PACKING_TOLERANCE if trainer.args.bf16 or trainer.args.fp16 else PACKING_TOLERANCE / 100
    if not abs(packed - alone) <= tolerance * abs(alone):
        raise UserError(
            f"data.packing=true: with this model and method, packed examples see one another (loss {packed:.4f} "
            f"instead of {alone:.4f} on the first {len(encodings)}). Set data.packing=false; batches hold examples of "
            "similar length in any case."
        )


def rescue(trainer: Trainer, error: DivergenceError) -> DivergenceError:
    """Take the best weights of a run that went astray, if there are any; the error with what to do."""
    told = DivergenceError(
        f"{error} Start again with a lower training.learning_rate (it was {trainer.args.learning_rate:g}; try a "
        "third), a larger training.warmup_ratio or model.dtype=float32, and look at the records for something unusual."
    )
    if trainer.state.best_global_step is not None:
        trainer.take_best(trainer.state)
        told.rescued = True
    return told
