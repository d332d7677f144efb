"""glmtune: fine-tune GLM models on a task, prove what they learned, put it to use.

    import glmtune
    run = glmtune.train(settings={"task.operators": "+"})
    model, tokenizer = glmtune.load(run)

Importing the package is cheap: torch and transformers are imported when a function below is first called. It registers
the model families with transformers' Auto classes, which know `model_type: chatglm` from then on.
"""

from __future__ import annotations

from glmtune.api import evaluate, export, load, predict, train
from glmtune.models import autoclasses

__version__ = "0.1.0"
__all__ = ["evaluate", "export", "load", "predict", "train"]

autoclasses.install()
