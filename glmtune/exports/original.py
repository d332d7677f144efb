"""A model as its release has it: the original names of weights, all of them, and the original configuration.

For tools that read the release and nothing else. What the release computes is what this package computes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from glmtune.files import write_json
from glmtune.models.families import OriginalLayout, all_families, family_of
from glmtune.runtime import UserError

SHARD_BYTES = 2 * 10**9


def original_layout(config: PreTrainedConfig) -> OriginalLayout:
    """Return the layout of a model's release.

    Raises:
        UserError: it has none that can be written.
    """
    layout = family_of(config.to_dict()).original_layout
    if layout is None:
        known = [release for family in all_families() if family.original_layout for release in family.releases]
        raise UserError(
            f"--to original: the original layout is that of {', '.join(known)}, and this is a {config.model_type} "
            "model, which all tools read as transformers writes it: --to merged."
        )
    return layout


def save_original(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: torch.dtype) -> None:
    """Write a model and its tokenizer as their release has them.

    Raises:
        UserError: there is no such layout.
    """
    layout = original_layout(model.config)
    save_torch_state_dict(layout.weights(model, dtype), folder, max_shard_size=SHARD_BYTES)
    precision = {"torch_dtype": str(dtype).removeprefix("torch.")}
    write_json(folder / "config.json", layout.config(model.config) | precision)
    tokenizer.save_vocabulary(str(folder))
    response = {"response_template": tokenizer.response_template} if tokenizer.response_template else {}
    write_json(folder / "tokenizer_config.json", {**layout.tokenizer(tokenizer), **response})
