"""LoRA: low-rank updates beside frozen linear layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685), by peft."""

from __future__ import annotations

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from glmtune import registry
from glmtune.config import NamedSettings
from glmtune.methods import Method, Model
from glmtune.runtime import UserError


class LoraSettings(NamedSettings):
    """Size and place of the low-rank updates."""

    rank: int = Field(16, ge=1, description="rank r of each update")
    alpha: int = Field(32, ge=1, description="updates are scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of each update")
    target_modules: str | list[str] = Field(
        "all-linear", description="linear layers to update: 'all-linear' (all but the head) or a list of names"
    )


class Lora(Method):
    """The base stays frozen; two small fp32 matrices beside each target layer learn."""

    Settings = LoraSettings
    settings: LoraSettings

    def apply(self, model: PreTrainedModel) -> Model:
        """Wrap the model with peft. The fresh update is zero, so the model first answers as its base.

        Raises:
            UserError: no layer has one of the names in `target_modules`.
        """
        from peft import LoraConfig, get_peft_model

        self.check_targets(model)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=self.settings.rank,
            lora_alpha=self.settings.alpha,
            lora_dropout=self.settings.dropout,
            target_modules=self.settings.target_modules,
        )
        try:
            return get_peft_model(model, config, autocast_adapter_dtype=True)
        except ValueError as error:  # a pattern that matches nothing, or a layer that cannot be updated
            raise UserError(f"method.target_modules: {self.settings.target_modules}: {error}") from error

    def check_targets(self, model: PreTrainedModel) -> None:
        """peft is content if one of several names exists; a misspelt one would silently learn nothing.

        Raises:
            UserError: no layer has one of the names.
        """
        targets = self.settings.target_modules
        layers = {name: module for name, module in model.named_modules() if name}
        known = sorted({name.rpartition(".")[2] for name, layer in layers.items() if isinstance(layer, nn.Linear)})
        for target in targets if isinstance(targets, list) else []:
            if not any(name == target or name.endswith(f".{target}") for name in layers):
                hint = registry.suggest(target, known)
                raise UserError(f"method.target_modules: no layer is named '{target}'.{hint}")
