"""Checkpoints whose linear layers are stored in our packed form, by transformers' own machinery for such.

`from_pretrained` and `save_pretrained` know `quantization_config: {"quant_method": "glmtune", "bits": 4}` once this
package is imported: files of 16 bits are packed while they are read, packed ones are mapped into memory as they are.
Left as they are: the embedding, the head, norms, biases, and experts that are one parameter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from glmtune.models.architecture import OWN_FORMAT, packed_bits
from glmtune.models.packing import BLOCK, pack, pack_groups
from glmtune.models.quantization import PackedLinear
from glmtune.models.upcasting import RowLinear, UpcastLinear

PIECE = 2**18  # numbers that are packed at a time: what is made of them on the way stays in the processor's cache


@register_quantization_config(OWN_FORMAT)
class PackedConfig(QuantizationConfigMixin):
    """What config.json says of packed files.

    Attributes:
        bits: 8 or 4.
    """

    def __init__(self, bits: int = 4, **_: Any):
        if bits not in (8, 4):
            raise ValueError(f"quantization_config: packed checkpoints have 8 or 4 bits, not {bits!r}")
        self.quant_method: Any = OWN_FORMAT
        self.bits = bits


class Pack(ConversionOps):
    """A matrix of the files to what is stored of it, a few rows at a time."""

    def __init__(self, bits: int):
        self.bits = bits

    def convert(  # type: ignore[override]
        self, input_dict: dict[str, Any], *args: Any, full_layer_name: str | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Map the weight of a linear layer to its packed weight and its scales."""
        (weight,) = input_dict.values()
        packed, scale = pack_matrix(weight[0] if isinstance(weight, list) else weight, self.bits)
        return {str(full_layer_name): packed, f"{full_layer_name}_scale": scale}


@torch.no_grad()
def pack_matrix(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the packed numbers and the scales of a (rows, columns) matrix, as `PackedLinear` holds them."""
    rows, columns = weight.shape
    step = max(BLOCK, PIECE // columns // BLOCK * BLOCK)
    if packed_bits(rows, columns, bits) == 8:
        parts = [pack(some.float(), 8) for some in weight.split(step)]
        return torch.cat([packed for packed, _ in parts]), torch.cat([scale for _, scale in parts]).float()
    parts = [pack_groups(some) for some in weight.split(step)]
    return torch.cat([packed for packed, _ in parts]), torch.cat([scale for _, scale in parts], dim=1)


@register_quantizer(OWN_FORMAT)
class PackedQuantizer(HfQuantizer):
    """Tells transformers which layers are packed, and how."""

    requires_calibration = False
    quantization_config: PackedConfig

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        """Return whether a weight of the files is to be packed."""
        module, name = get_module_from_name(model, param_name)
        return not self.pre_quantized and isinstance(module, PackedLinear) and name == "weight"

    def get_quantize_ops(self) -> Pack:
        """Return what packs a weight."""
        return Pack(self.quantization_config.bits)

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        prepare_layers(model, self.quantization_config.bits)

    def is_serializable(self) -> bool:
        """Return whether such models can be saved: they can."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can learn beside such layers: they can."""
        return True


def plain_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Return the linear layers that are packed, by their names: all but the head."""
    kept = HfQuantizer.get_modules_to_not_convert(model, None, list(model._keep_in_fp32_modules or ()))
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, UpcastLinear, RowLinear) and should_convert_module(name, kept)
    }


def prepare_layers(model: PreTrainedModel, bits: int) -> None:
    """Put empty packed layers in the place of linear ones."""
    for name, layer in plain_layers(model).items():
        rows, columns, dtype = layer.out_features, layer.in_features, layer.weight.dtype
        stored = packed_bits(rows, columns, bits)
        with torch.device(layer.weight.device):
            small = PackedLinear(columns, rows, layer.bias is not None, stored, dtype, grouped=stored == 4)
        parent, own = get_module_from_name(model, name)
        parent._modules[own] = small


def pack_layers(model: PreTrainedModel, bits: int) -> None:
    """Pack a model's linear layers where they are, so that it is saved as a packed checkpoint."""
    weights = {name: (layer.weight, layer.bias) for name, layer in plain_layers(model).items()}
    with torch.device("meta"):
        prepare_layers(model, bits)
    for name in list(weights):
        weight, bias = weights.pop(name)
        small = model.get_submodule(name)
        packed, scale = pack_matrix(weight.detach(), bits)
        small.weight = nn.Parameter(packed, requires_grad=False)
        small.weight_scale = nn.Parameter(scale, requires_grad=False)
        small.bias = bias
    quantizer: Any = PackedQuantizer(PackedConfig(bits))
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)
