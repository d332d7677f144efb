"""Muon for matrices and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from typing import Any

import torch

OTHERS_SHARE = 0.5  # of the learning rate, for what AdamW updates


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are made orthogonal (https://kellerjordan.github.io/posts/muon): from scratch.

    Updates of a matrix are scaled to the size of AdamW's (https://arxiv.org/abs/2502.16982), so that learning rates are
    alike; embeddings, the head, biases and norms are left to AdamW at half the rate.

    Args:
        groups: of parameters, each with `lr` and `weight_decay`.
        model: tells embeddings from other matrices.
        betas, eps: of AdamW.
    """

    def __init__(
        self, groups: list[dict[str, Any]], model: torch.nn.Module, betas: tuple[float, float], eps: float
    ) -> None:
        embedded = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
        head = getattr(model, "get_output_embeddings", lambda: None)()
        embedded |= {id(head.weight)} if head is not None else set()

        def chosen(matrices: bool, scale: float) -> list[dict[str, Any]]:
            found = []
            for group in groups:
                kept = [w for w in group["params"] if (w.ndim == 2 and id(w) not in embedded) == matrices]
                found += [{**group, "params": kept, "lr": group["lr"] * scale}] if kept else []
            return found

        matrices, others = chosen(True, 1.0), chosen(False, OTHERS_SHARE)
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw"))
        if others:
            self.parts.append(torch.optim.AdamW(others, betas=betas, eps=eps))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """Let schedules, which change the groups here, change those of the parts."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Update all parameters; a closure computes the loss again before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the states of both parts."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
