"""Full fine-tuning: every weight learns."""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedModel

from glmtune.config import NamedSettings
from glmtune.methods import Method, Model


class FullSettings(NamedSettings):
    """Full fine-tuning has no settings of its own."""


class Full(Method):
    """All weights are trained, in fp32; the run folder holds a whole checkpoint."""

    Settings = FullSettings
    saves_adapter: ClassVar[bool] = False

    def apply(self, model: PreTrainedModel) -> Model:
        """Every parameter in fp32 and trainable."""
        return model.float().requires_grad_(True)
