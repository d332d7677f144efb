"""A base in memory, with the adapters that stand on it: one of them answers at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import delete_adapter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glmtune import adapters, distributed
from glmtune.methods import Model
from glmtune.models import loading
from glmtune.models.adapter_config import ADAPTER_CONFIG, read_adapter
from glmtune.models.low_rank import unwrap
from glmtune.resolution import ResolvedModel

Key = tuple[Any, ...]


def key_of(resolved: ResolvedModel) -> Key:
    """Return what models have in common that can be answered by one base in memory."""
    storage, adapter = resolved.storage, resolved.adapter
    dtype = loading.dtype_of(storage, resolved.config, distributed.local_device())
    shares = adapter is None or is_mixed_in(adapter) or is_prefix(adapter)
    stored = (dtype, storage.bits, storage.quantize_embedding, storage.attention)
    return resolved.place, *stored, None if shares else str(adapter)


def peft_type(adapter: Path) -> str | None:
    """Return the kind of an adapter in peft's format; None where it has another."""
    return str(read_adapter(adapter).peft_type) if (adapter / ADAPTER_CONFIG).is_file() else None


def is_mixed_in(adapter: Path) -> bool:
    """Whether an adapter stands beside layers of the base, which it leaves as they are, and beside others of its kind.

    Some bring biases for the base's own, or take out of its weights what they start from.
    """
    if peft_type(adapter) != "LORA":
        return False
    config: Any = read_adapter(adapter)
    return config.bias == "none" and not str(config.init_lora_weights).startswith(("pissa", "olora"))


def is_prefix(adapter: Path) -> bool:
    """Whether an adapter stands before the base, which it leaves as it is."""
    return peft_type(adapter) in (None, "PREFIX_TUNING")


class Host:
    """A base and its adapters.

    Attributes:
        base: in evaluation mode.
        tokenizer: of the base.
        mixed: the base with adapters in its layers; None while it has none.
        active: the adapter that answers; None: the base as it is, behind a prefix or none.
    """

    def __init__(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Hold a base."""
        self.base, self.tokenizer = base, tokenizer
        self.mixed: PeftModel | None = None
        self.active: str | None = None
        self.count = 0

    def attach(self, folder: Path) -> tuple[Model, str | None]:
        """Put an adapter on the base; return the model that answers, and what to `activate` before it does.

        Raises:
            UserError: it does not fit the base.
        """
        if not is_mixed_in(folder):
            return adapters.attach(self.base, folder).eval(), None
        self.count += 1
        name = f"adapter_{self.count}"
        try:
            self.mixed = adapters.attach(self.mixed or self.base, folder, name).eval()
        except Exception:
            self.detach(name)  # peft wraps layers before it reads weights
            raise
        self.active = name
        self.activate(None)
        return self.mixed, name

    def detach(self, name: str | None) -> None:
        """Forget an adapter, by what it is activated by; with the last one, all that peft has put around layers."""
        if name is None:
            return
        left = [] if self.mixed is None else [one for one in self.mixed.peft_config if one != name]
        if self.mixed is None or not left:
            unwrap(self.base)
            self.mixed = self.active = None
            return
        self.mixed.set_adapter(left[0])  # peft asks the active one how a prompt begins
        self.active = left[0]
        tuner: Any = self.mixed.base_model
        delete_adapter(tuner.model, name, tuner.prefix, tuner.tuner_layer_cls)  # in layers, of which some may lack it
        self.mixed.peft_config.pop(name, None)
        self.activate(None)

    def activate(self, name: str | None) -> None:
        """Let an adapter answer, or the base as it is."""
        if self.mixed is None or name == self.active:
            return
        layers: Any = self.mixed.base_model
        if name is None:
            layers.disable_adapter_layers()
        else:
            layers.enable_adapter_layers()
            self.mixed.set_adapter(name)
        self.active = name
