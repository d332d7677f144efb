"""The table of experiment trackers. transformers drives them; what is here keeps them in the run folder and offline.

These libraries are told where and how to work by variables of the environment. Each row fills in what the user has not
set: `WANDB_MODE=online` or `MLFLOW_TRACKING_URI=https://...` asks for the network, nothing here does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from glmtune.runtime import UserError


@dataclass(frozen=True)
class Tracker:
    """A library that shows the course of runs.

    Attributes:
        about: what it is, in a line.
        environment: variables that keep it offline, and in the `{folder}` of the run.
    """

    about: str
    environment: Mapping[str, str] = field(default_factory=dict)


TABLE = {
    "tensorboard": Tracker(
        "curves in a browser: tensorboard --logdir RUN", {"TENSORBOARD_LOGGING_DIR": "{folder}/tensorboard"}
    ),
    "wandb": Tracker(
        "Weights & Biases, offline until `wandb sync`",
        {"WANDB_MODE": "offline", "WANDB_DIR": "{folder}", "WANDB_PROJECT": "glmtune"},
    ),
    "mlflow": Tracker(
        "MLflow, in a database of the run folder",
        {"MLFLOW_TRACKING_URI": "sqlite:///{folder}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"},
    ),
    "swanlab": Tracker(
        "SwanLab, offline until `swanlab sync`",
        {"SWANLAB_MODE": "offline", "SWANLAB_LOG_DIR": "{folder}/swanlog", "SWANLAB_PROJECT": "glmtune"},
    ),
    "trackio": Tracker("trackio, in a database of the run folder", {"TRACKIO_DIR": "{folder}/trackio"}),
}


def check_installed(names: Sequence[str]) -> None:
    """See whether trackers can be used here.

    Raises:
        UserError: one is not installed.
    """
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations

    missing = [name for name in names if name not in get_available_reporting_integrations()]
    if missing:
        raise UserError(
            f"training.trackers: {' and '.join(missing)} not installed: pip install {' '.join(missing)}. Or leave "
            "it out; log.jsonl and the plots are written in any case."
        )


@contextmanager
def environment(names: Sequence[str], folder: Path) -> Iterator[None]:
    """Fill in the variables of some trackers while the block runs."""
    added = []
    for name in names:
        for variable, value in TABLE[name].environment.items():
            if variable not in os.environ:
                os.environ[variable] = value.format(folder=folder.resolve())
                added.append(variable)
    try:
        yield
    finally:
        for variable in added:
            os.environ.pop(variable, None)
