"""Every method on the same task with the same budget: nano learns + - * / from the same examples in the same order.

The learning rates are the methods' own defaults, the optimizer is AdamW but in one row. "All right" is held-out exact
match before and after; "adapter" is what a run leaves of weights (for `full`, the model).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from recording import options, record

from glmtune.commands import train
from glmtune.config import load_recipe
from glmtune.libraries import quiet_libraries
from glmtune.registry import find
from glmtune.resolution import ResolvedModel

METHODS = {
    "lora, rank 16": ["method={name: lora}"],
    "lora, rank 16, Muon": ["method={name: lora}", "training.optimizer=muon"],
    "lora, rank 4": ["method={name: lora, rank: 4, alpha: 8}"],
    "lora, query_key_value only": ["method={name: lora, target_modules: [query_key_value]}"],
    "lora, rsLoRA, rank 64": ["method={name: lora, rank: 64, use_rslora: true, alpha: 16}"],
    "lora, DoRA": ["method={name: lora, use_dora: true}"],
    "lora, PiSSA": ["method={name: lora, init: pissa}"],
    "lora, LoRA+": ["method={name: lora, lora_plus_ratio: 4}"],
    "lora, base at 8 bits": ["method={name: lora}", "model.bits=8"],
    "lora, base at 4 bits": ["method={name: lora}", "model.bits=4"],
    "ptuning_v2, 16 tokens": ["method={name: ptuning_v2, num_virtual_tokens: 16}"],
    "ptuning_v2, 128 tokens": ["method={name: ptuning_v2}"],
    "ptuning_v2, 128 tokens, projection": ["method={name: ptuning_v2, prefix_projection: true}"],
    "ptuning_v2, 128 tokens, base at 4 bits": ["method={name: ptuning_v2}", "model.bits=4"],
    "freeze, last 2 layers": ["method={name: freeze, num_layers: 2}"],
    "freeze, MLPs of all layers": ["method={name: freeze, num_layers: 4, part: mlp}"],
    "full": ["method={name: full}"],
}


def measure(label: str, settings: list[str], common: list[str]) -> dict[str, Any]:
    """One run, as a row of the table."""
    with tempfile.TemporaryDirectory() as work:
        run = train.run(overrides=[*common, *settings, f"training.output_dir={work}/run"])
        saved = run.folder.adapter if run.folder.adapter.is_dir() else run.folder.model
        weights = sum(file.stat().st_size for file in Path(saved).glob("*.safetensors"))
    recipe = load_recipe(None, [*common, *settings])
    method = find("glmtune.methods", recipe.method.name)(recipe.method)
    architecture = ResolvedModel(recipe).architecture
    trainable = method.trainable_spec(architecture).parameters
    before, after = run.report["before"], run.report["after"]
    by = after["by"]["operator"]
    return {
        "method": label,
        "before": before["accuracy"],
        "after": after["accuracy"],
        "ci95": [round(bound, 4) for bound in after["accuracy_ci95"]],
        **{operator: by[operator]["accuracy"] for operator in "+-*/"},
        "trainable": trainable,
        "share": trainable / architecture.parameters,
        "seconds": run.report["training_seconds"],
        "adapter_kib": weights / 1024,
    }


def main() -> None:
    """Train with every method."""
    chosen = options(__doc__, steps=200, held_out=400)
    quiet_libraries()
    common = [
        "task.operators='+-*/'",
        "evaluation.num_examples_during=50",
        f"training.steps={chosen.steps}",
        f"evaluation.num_examples={chosen.held_out}",
        "evaluation.text_metrics=false",
    ]
    rows = [measure(label, settings, common) for label, settings in METHODS.items()]
    record("methods", vars(chosen), rows)


if __name__ == "__main__":
    main()
