"""The one table of optimizers: settings, trainer, estimate and doctor read it; one more is one more row.

torch and transformers are imported where an optimizer is made.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmtune.runtime import UserError

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

Groups = list[dict[str, Any]]  # of parameters, each with `params`, `lr` and `weight_decay`


@dataclass(frozen=True)
class Optimizer:
    """How weights are updated, and what that takes.

    Attributes:
        about: what it is, in a line.
        bytes_per_parameter: what it keeps of a weight from step to step.
        bytes_per_embedding: the same of embeddings, a bare prefix among them; default: as of other weights.
        head_is_embedding: the output head counts as an embedding, too.
        paged: what it keeps moves to the CPU when the GPU is full.
        requires: a package that must be installed.
        extra: of glmtune, which brings that package.
        optim: transformers' name for it; not read where there is `create`.
        create: makes it from groups of parameters, the model and the arguments, where transformers cannot.
    """

    about: str
    bytes_per_parameter: float
    bytes_per_embedding: float | None = None
    head_is_embedding: bool = False
    paged: bool = False
    requires: str | None = None
    extra: str | None = None
    optim: str = "adamw_torch_fused"
    create: Callable[[Groups, torch.nn.Module, TrainingArguments], torch.optim.Optimizer] | None = None

    @property
    def is_installed(self) -> bool:
        """Whether the package that it requires is there."""
        return self.requires is None or importlib.util.find_spec(self.requires) is not None


def create_muon(groups: Groups, model: torch.nn.Module, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """Return Muon for the matrices, with AdamW for the rest."""
    from glmtune.training.muon import Muon

    return Muon(groups, model, (arguments.adam_beta1, arguments.adam_beta2), arguments.adam_epsilon)


def create_8bit(groups: Groups, model: torch.nn.Module, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """Return bitsandbytes' AdamW whose moments are fp32 for embeddings and 8 bits for the rest."""
    optimizer = create_by_name(groups, model, arguments)
    keep_embeddings_precise(optimizer, model)
    return optimizer


def create_by_name(groups: Groups, model: torch.nn.Module, arguments: TrainingArguments) -> torch.optim.Optimizer:
    """Return transformers' optimizer of the name that `arguments.optim` holds."""
    from transformers import Trainer

    trained: Any = model
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, trained)
    return kind(groups, **options)


def keep_embeddings_precise(optimizer: Any, model: torch.nn.Module) -> None:
    """Keep the moments of embeddings, a bare prefix among them, in fp32, as bitsandbytes advises.

    bitsandbytes has one list of exceptions for all optimizers of a process, by number of the parameter. Each gets a
    list of its own here, so that a run is not told of the embeddings of another, and no model is kept alive.
    """
    import torch
    from bitsandbytes.optim import GlobalOptimManager

    optimizer.mng = GlobalOptimManager.__new__(GlobalOptimManager)
    optimizer.mng.initialize()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            optimizer.mng.register_module_override(module, "weight", {"optim_bits": 32})


EIGHT_BITS = 2 * (1 + 4 / 256)  # two moments of a byte, with a scale in fp32 for 256 of them
BITSANDBYTES: dict[str, Any] = {"requires": "bitsandbytes", "extra": "quantization"}

TABLE = {
    "adamw": Optimizer("AdamW (https://arxiv.org/abs/1711.05101)", bytes_per_parameter=8),
    "muon": Optimizer(
        "Muon for the matrices, which learns faster from scratch, with AdamW at half the rate for the rest",
        bytes_per_parameter=4,
        bytes_per_embedding=8,
        head_is_embedding=True,
        create=create_muon,
    ),
    "adamw_8bit": Optimizer(
        "AdamW with its two moments at 8 bits",
        bytes_per_parameter=EIGHT_BITS,
        bytes_per_embedding=8,
        optim="adamw_bnb_8bit",
        create=create_8bit,
        **BITSANDBYTES,
    ),
    "paged_adamw": Optimizer(
        "AdamW with its moments in pages that move to the CPU when the GPU is full",
        bytes_per_parameter=8,
        paged=True,
        optim="paged_adamw_32bit",
        **BITSANDBYTES,
    ),
    "paged_adamw_8bit": Optimizer(
        "AdamW with its moments at 8 bits, in pages that move to the CPU when the GPU is full",
        bytes_per_parameter=EIGHT_BITS,
        bytes_per_embedding=8,
        paged=True,
        optim="paged_adamw_8bit",
        create=create_8bit,
        **BITSANDBYTES,
    ),
}


def check_installed(name: str) -> None:
    """See whether an optimizer can be used here.

    Raises:
        UserError: the package that it requires is not installed.
    """
    row = TABLE[name]
    if not row.is_installed:
        package = f"'glmtune[{row.extra}]'" if row.extra else row.requires
        raise UserError(
            f"training.optimizer={name} needs {row.requires}, which is not installed: pip install {package}. "
            "Or use adamw."
        )


def create_optimizer(
    name: str, groups: Groups, model: torch.nn.Module, arguments: TrainingArguments
) -> torch.optim.Optimizer:
    """Return the optimizer of a row for groups of parameters."""
    return (TABLE[name].create or create_by_name)(groups, model, arguments)
