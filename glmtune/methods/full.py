"""Full fine-tuning: every weight learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from glmtune.config import NamedSettings
from glmtune.methods import Method, Model, TrainableSpec
from glmtune.models.architecture import Architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FullSettings(NamedSettings):
    """Full fine-tuning has no settings of its own."""


class Full(Method):
    """All weights are trained, in fp32; the run folder holds a whole checkpoint."""

    Settings = FullSettings
    saves_adapter: ClassVar[bool] = False
    trains_base: ClassVar[bool] = True

    def apply(self, model: PreTrainedModel) -> Model:
        """Make every parameter fp32 and trainable."""
        self.storage = model.dtype
        return model.float().requires_grad_(True)

    def finish(self, model: Model) -> Model:
        """Bring the model back to the precision of the checkpoint: what is saved is what was judged."""
        whole: Any = model  # transformers' wrapper hides the signature of `to`
        return whole.to(self.storage)

    def trainable_spec(self, architecture: Architecture) -> TrainableSpec:
        """Return all parameters."""
        count = architecture.num_layers
        return TrainableSpec(
            architecture.parameters, count, architecture.linears, count, True, norms=True, embedding=True
        )
