"""glmtune: fine-tune GLM models on a task, prove what they learned, put it to use.

    import glmtune
    model, tokenizer = glmtune.load("runs/arithmetic-lora-1")

Importing the package is cheap: torch and transformers are imported when a name below is first used. It registers the
model families with transformers' Auto classes, which know `model_type: chatglm` from then on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from glmtune.models import autoclasses

if TYPE_CHECKING:
    from glmtune.adapters import load
    from glmtune.commands.evaluate import run as evaluate
    from glmtune.commands.predict import run as predict
    from glmtune.commands.train import run as train

__version__ = "0.1.0"
__all__ = ["evaluate", "load", "predict", "train"]

_HOMES = {
    "load": ("glmtune.adapters", "load"),
    "train": ("glmtune.commands.train", "run"),
    "evaluate": ("glmtune.commands.evaluate", "run"),
    "predict": ("glmtune.commands.predict", "run"),
}


autoclasses.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'glmtune' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
