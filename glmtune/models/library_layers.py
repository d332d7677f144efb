"""Linear layers that bitsandbytes stores at 8 or 4 bits, on GPUs, and in checkpoints that were saved so.

int8 (https://arxiv.org/abs/2208.07339); nf4 with double quantization (https://arxiv.org/abs/2305.14314).
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from glmtune.models.quantization import packed_linear
from glmtune.runtime import UserError


def bits_config(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return bitsandbytes' settings for 8 or 4 bits, computing in `dtype`.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.bits={bits} needs bitsandbytes, which is not installed: pip install 'glmtune[quantization]'. "
            "Or leave model.bits at 16."
        )
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def check_library_layers(model: nn.Module, path: str) -> None:
    """See whether bitsandbytes' layers hold what it packed; weights of another form it leaves as they are, silently.

    Raises:
        UserError: one holds a plain weight, which it cannot compute with.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith("bitsandbytes.") and type(module.weight) is nn.Parameter:
            raise UserError(
                f"model.path: the weights of {path} are not packed ({name}.weight is {module.weight.dtype}), but its "
                "config.json has a quantization_config. Delete that there, and set model.bits instead."
            )


def mend_library_layers(model: nn.Module) -> None:
    """Break two habits of bitsandbytes' layers that training suffers from.

    Those of 4 bits repack their weights for bf16 kernels of some CPUs at the first call in evaluation mode, and from
    then on no gradient passes through them, silently, also in training; and the model answers otherwise than it did
    while it learned. Those of 8 bits keep what they got for the backward pass, which does not need it, out of reach of
    gradient checkpointing, and round it to 8 bits on GPUs.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False
        kind = type(module)  # peft has a wrapper of the same name
        if kind.__name__ == "Linear8bitLt" and kind.__module__.startswith("bitsandbytes."):
            module.__class__ = int8_linear()


@cache
def int8_linear() -> type[nn.Linear]:
    """Return bitsandbytes' layer of 8 bits, computing as `PackedLinear` does: integers are scaled row by row, too."""
    from bitsandbytes.nn import Linear8bitLt

    class Int8Linear(Linear8bitLt):
        weight: Any

        def forward(self, x: Tensor) -> Tensor:
            largest = self.weight.SCB if self.state.SCB is None else self.state.SCB  # of each row
            return packed_linear(x, self.weight.data, largest.to(x.device) / 127, 8, self.bias)

    return Int8Linear
