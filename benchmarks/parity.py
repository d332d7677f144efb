"""Largest differences from the original ChatGLM-6B code, on the golden data in `tests/golden/glm1`, in fp32.

Logits reach about 20; the original differs from itself (with and without cache) by 3e-5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording import record
from transformers import AutoModelForCausalLM

import glmtune  # noqa: F401  registers the Auto classes

GOLDEN = Path(__file__).parents[1] / "tests/golden/glm1"


def difference(ours: torch.Tensor, golden: np.ndarray[Any, Any]) -> float:
    """Largest absolute difference."""
    return float(np.abs(ours.detach().float().numpy() - golden).max())


def forward_rows(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Logits of single prompts, and of a left-padded batch where it is not padding."""
    data = np.load(GOLDEN / "forward.npz")
    rows = []
    for case in ("single_gmask", "single_mask", "prompt_only", "both_masks", "repeated_specials"):
        logits = model(torch.tensor(data[f"{case}.input_ids"])).logits
        rows.append({"case": f"logits, {case}", "max_difference": difference(logits, data[f"{case}.logits"])})
    valid = data["leftpad_batch.valid"]
    logits = model(torch.tensor(data["leftpad_batch.input_ids"]), attention_mask=torch.tensor(valid).long()).logits
    rows.append(
        {
            "case": "logits, left-padded batch",
            "max_difference": difference(logits[valid], data["leftpad_batch.logits"][valid]),
        }
    )
    return rows


def generate_rows(model: Any) -> list[dict[str, Any]]:
    """Step logits of greedy decoding; the tokens must be the same."""
    data = np.load(GOLDEN / "generate.npz")
    rows = []
    for case in ("greedy_gmask", "greedy_mask", "greedy_continue", "greedy_eos"):
        prompt, expected = torch.tensor(data[f"{case}.input_ids"]), data[f"{case}.sequences"]
        out = model.generate(
            prompt,
            max_new_tokens=expected.shape[1] - prompt.shape[1],
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert (out.sequences.numpy() == expected).all(), case
        steps = torch.stack(out.logits, dim=1)
        rows.append({"case": f"step logits, {case}", "max_difference": difference(steps, data[f"{case}.step_logits"])})
    return rows


def train_rows(model: Any) -> list[dict[str, Any]]:
    """Loss and gradients of a training batch."""
    data = np.load(GOLDEN / "train.npz")
    input_ids = torch.tensor(data["train.input_ids"])
    mask = (input_ids != model.config.pad_token_id).long()
    loss = model(input_ids, attention_mask=mask, labels=torch.tensor(data["train.labels"])).loss
    loss.backward()
    gradients = {
        f"train.grad.{name}": parameter.grad
        for name, parameter in model.named_parameters()
        if f"train.grad.{name}" in data
    }
    worst = max(difference(gradient, data[name]) for name, gradient in gradients.items())
    return [
        {"case": "training loss", "max_difference": difference(loss, data["train.loss"])},
        {"case": f"gradients of {len(gradients)} weights", "max_difference": worst},
    ]


def main() -> None:
    """Run all cases."""
    rows = []
    for attention in ("sdpa", "eager"):
        model = AutoModelForCausalLM.from_pretrained(GOLDEN, dtype=torch.float32, attn_implementation=attention).eval()
        with torch.no_grad():
            found = forward_rows(model) + generate_rows(model)
        rows += [{"attention": attention, **row} for row in found + train_rows(model)]
    record("parity", {"dtype": "float32"}, rows, worst=max(row["max_difference"] for row in rows))


if __name__ == "__main__":
    main()
