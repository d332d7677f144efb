"""The loss of the target tokens alone, without fp32 logits of anything but a few rows at a time.

ChatGLM-6B has 130,528 tokens to choose from: fp32 logits of 4 x 1,024 tokens take 2 GB, their gradient as much again.
Prompts need none, so the head is asked for the columns that hold targets only, and what it gives is turned to fp32 and
back a few rows at a time, once for the loss and once for the gradient, which takes the place of the logits.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from glmtune.data.encoding import IGNORED
from glmtune.methods import Model
from glmtune.models.architecture import CHUNK


def takes_logits_to_keep(model: Model) -> bool:
    """Return whether a model can be asked for the logits of some columns alone."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def target_loss(logits: Tensor, labels: Tensor, logits_to_keep: Tensor) -> Tensor:
    """Return the sum of the cross-entropies of all targets, in fp32.

    Args:
        logits: (B, K, V) of `logits_to_keep`. Its storage holds the gradient after the backward pass.
        labels: (B, T), unshifted.
        logits_to_keep: (K,) as `glmtune.data.collation.target_columns` gives them.
    """
    return target_losses(logits, labels, logits_to_keep).sum()


def target_losses(logits: Tensor, labels: Tensor, logits_to_keep: Tensor) -> Tensor:
    """Return (B, K) the cross-entropy of each target, in fp32; 0 where none is. The arguments are `target_loss`'s."""
    labels = labels[:, logits_to_keep + 1]
    return TargetLosses.apply(logits.flatten(0, 1), labels.flatten()).view_as(labels)


class TargetLosses(torch.autograd.Function):
    """(N,) cross-entropies of logits (N, V) and labels (N,); 0 where a label is not learned."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        normalizer = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
        for rows in chunks(logits):
            normalizer[rows] = logits[rows].float().logsumexp(dim=-1)
        picked = logits.gather(1, labels.clamp(min=0)[:, None]).squeeze(1).float()
        ctx.save_for_backward(logits, labels, normalizer)
        return torch.where(labels == IGNORED, 0.0, normalizer - picked)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, labels, normalizer = ctx.saved_tensors
        # fp16 would lose small probabilities: they are multiplied by the incoming gradient, which holds the loss
        # scale, while they are fp32.
        factor = torch.where(labels == IGNORED, 0.0, gradient.float())[:, None]
        for rows in chunks(logits):
            slope = (logits[rows].float() - normalizer[rows, None]).exp_()
            slope.scatter_add_(1, labels[rows].clamp(min=0)[:, None], -torch.ones_like(factor[rows]))
            logits[rows] = slope.mul_(factor[rows]).to(logits.dtype)
        return logits, None


def chunks(logits: Tensor) -> list[slice]:
    """Return slices of rows of (N, V) logits."""
    step = max(1, CHUNK // logits.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]
