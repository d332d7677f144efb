"""In which type each tensor of a GGUF file is stored, by what is asked for. The mixtures are llama.cpp's own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

GgufPrecision = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m"]
FALLBACKS = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # where rows are no multiple of a block; then F16
BLOCKS = {"Q8_0": 32, "Q4_0": 32, "Q5_0": 32, "Q4_K": 256, "Q6_K": 256}


@dataclass(frozen=True)
class Precision:
    """What is meant by the precision of a file.

    Attributes:
        file_type: a member of gguf.LlamaFileType.
        most: type of most matrices, a member of gguf.GGMLQuantizationType.
        finer: of the head, and of half of what errors are worst in: the values of attention and the way out of an MLP.
        mixes: whether there is such a half.
        bits: a number of most matrices takes, on the average.
    """

    file_type: str
    most: str
    finer: str
    mixes: bool
    bits: float


PRECISIONS: dict[GgufPrecision, Precision] = {
    "f32": Precision("ALL_F32", "F32", "F32", False, 32),
    "f16": Precision("MOSTLY_F16", "F16", "F16", False, 16),
    "bf16": Precision("MOSTLY_BF16", "BF16", "BF16", False, 16),
    "q8_0": Precision("MOSTLY_Q8_0", "Q8_0", "Q8_0", False, 8.5),
    "q4_0": Precision("MOSTLY_Q4_0", "Q4_0", "Q6_K", False, 4.5),
    "q4_k_m": Precision("MOSTLY_Q4_K_M", "Q4_K", "Q6_K", True, 4.9),
}


def kind_of(name: str, shape: tuple[int, ...], precision: GgufPrecision, layers: int, head: str) -> str:
    """Return the type of a tensor, as a member of gguf.GGMLQuantizationType.

    What is no matrix stays in fp32, for llama.cpp's kernels add it to numbers in fp32; so does what chooses experts.

    Args:
        name: ggml's.
        shape: rows first.
        precision: of the file.
        layers: of the model.
        head: name of the tensor that makes logits: that of the embedding where these are one.
    """
    wanted = PRECISIONS[precision]
    if len(shape) < 2 or "ffn_gate_inp" in name:
        return "F32"
    layer = re.match(r"blk\.(\d+)\.(?:attn_v|attn_qkv|ffn_down)", name)
    is_finer = name == head or (wanted.mixes and layer is not None and is_delicate(int(layer[1]), layers))
    kind = wanted.finer if is_finer else wanted.most
    while kind in BLOCKS and shape[-1] % BLOCKS[kind]:
        kind = FALLBACKS.get(kind, "F16")
    return kind


def is_delicate(layer: int, layers: int) -> bool:
    """Return whether a layer is of the half that gets more bits: the first and last eighth, and each third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def describe_fallbacks(kinds: Iterable[str], precision: GgufPrecision) -> str:
    """Return a line about matrices whose rows are no multiple of a block of their type; empty where there are none."""
    wanted = PRECISIONS[precision]
    others = Counter(kind for kind in kinds if kind not in ("F32", wanted.most, wanted.finer))
    if not others:
        return ""
    told = " and ".join(f"{count} as {kind.lower()}" for kind, count in others.most_common())
    return (
        f"{precision}: rows that are no multiple of {max(BLOCKS[wanted.most], BLOCKS[wanted.finer])} are stored in "
        f"blocks that fit, as llama.cpp does: {told}."
    )
