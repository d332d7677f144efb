"""The weights of a GGUF file under transformers' names, each made into floats when it is asked for, not before.

ggml's names come from the `gguf` package, and so does what its blocks mean; every type of block that it knows is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glmtune.models.architecture import CHUNK
from glmtune.models.families import GgufFacts
from glmtune.models.gguf.configuration import family_of_file
from glmtune.models.gguf.header import Header, TensorInfo, load_library
from glmtune.runtime import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

POSITIONS = ("rope_freqs.weight",)  # tensors that the configuration was made of
FUSED = "attn_qkv"  # queries, keys and values in one matrix, where transformers has three
SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True)
class LazyWeight:
    """One weight, which is read and made into floats when it is indexed.

    Attributes:
        info: the tensor that holds it.
        dtype: of the floats.
        rows: the first of it, and the first that is not, where the tensor holds more; else all.
        heads: of a projection whose rows llama.cpp has in another order; 0 where they are as transformers has them.
        less: what is taken off each number: 1 of norms that transformers keeps less one.
    """

    info: TensorInfo
    dtype: torch.dtype
    rows: tuple[int, int | None] = (0, None)
    heads: int = 0
    less: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return (len(range(self.info.shape[0])[slice(*self.rows)]), *self.info.shape[1:])

    def __getitem__(self, _: Any) -> torch.Tensor:
        """Return the numbers."""
        import numpy as np
        import torch

        gguf, info = load_library(), self.info
        kind = gguf.GGMLQuantizationType(info.kind)
        numbers, size = gguf.GGML_QUANT_SIZES[kind]
        content = np.memmap(info.file, np.uint8, "r", info.start, info.size)
        blocks = content.reshape(*info.shape[:-1], info.shape[-1] // numbers * size)[slice(*self.rows)]
        values = torch.empty(self.shape, dtype=self.dtype)
        step = max(1, CHUNK // max(1, math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            part = gguf.quants.dequantize(blocks[start : start + step], kind)
            values[start : start + step] = torch.from_numpy(np.array(part, dtype=np.float32)) - self.less
        if self.heads:  # pairs that turn together stand side by side there, half a head apart here
            values = values.view(self.heads, -1, 2, *self.shape[1:]).transpose(1, 2).reshape(self.shape)
        return values


def weights_of(header: Header, config: PreTrainedConfig, dtype: torch.dtype) -> dict[str, LazyWeight]:
    """Return name -> weight of all that a model needs. No number is read yet.

    Args:
        header: of the file.
        config: that was made of it.
        dtype: of the floats that are made.

    Raises:
        UserError: blocks that cannot be read, or tensors that the model has no place for.
    """
    facts = family_of_file(header).gguf
    assert facts is not None, "family_of_file has looked"
    check_kinds(header)
    found = dict(placed(header, facts, config, dtype))
    used = {weight.info for weight in found.values()}
    left = [name for name, info in header.tensors.items() if info not in used and name not in POSITIONS]
    if left:
        raise UserError(
            f"model.path: {header.file}: a {config.model_type} model has no place for {len(left)} of its "
            f"{len(header.tensors)} tensors: {left[0]} ... Take the release in transformers' format."
        )
    return found


def shapes_in(header: Header, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Return the weights of a file without their numbers, by transformers' names.

    Raises:
        UserError: as `weights_of`.
    """
    import torch

    weights = weights_of(header, config, torch.float32)
    return {name: torch.empty(weight.shape, device="meta") for name, weight in weights.items()}


def placed(
    header: Header, facts: GgufFacts, config: PreTrainedConfig, dtype: torch.dtype
) -> Iterator[tuple[str, LazyWeight]]:
    """Yield name and weight of all that a model needs and the file has."""
    kind = load_library().MODEL_ARCH[facts.architecture]
    names = load_library().get_tensor_name_map(kind, config.num_hidden_layers)
    heads, shared = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    for name, shape in shapes_of(config).items():
        theirs = names.get_name(name, try_suffixes=SUFFIXES)
        part = name.split(".")[-2]
        turned = {"q_proj": heads, "k_proj": shared}.get(part, 0) if facts.interleaves_rotary else 0
        less = int(facts.norms_add_one and name.endswith("norm.weight"))
        if theirs in header.tensors:
            yield name, LazyWeight(header.tensors[theirs], dtype, heads=turned, less=less)
        elif theirs and (fused := fused_name(theirs)) in header.tensors:
            info, groups = header.tensors[fused], {"q_proj": 0, "k_proj": heads, "v_proj": heads + shared}
            start = groups[part] * (info.shape[0] // (heads + 2 * shared))
            yield name, LazyWeight(info, dtype, (start, start + shape[0]), turned)


def fused_name(name: str) -> str:
    """Return the name of the tensor that queries, keys and values have in common."""
    block, _, part = name.rpartition(".attn_")
    letter, _, suffix = part.partition(".")
    return f"{block}.{FUSED}.{suffix}" if letter in ("q", "k", "v") else ""


def shapes_of(config: PreTrainedConfig) -> Mapping[str, tuple[int, ...]]:
    """Return name -> shape of the weights that a model has by its configuration; a tied head is left out."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight")
    return shapes


def check_kinds(header: Header) -> None:
    """See whether all types of blocks can be made into floats.

    Raises:
        UserError: of one they cannot.
    """
    import numpy as np

    gguf = load_library()
    for name, tensor in {tensor.kind: (name, tensor) for name, tensor in header.tensors.items()}.values():
        kind = gguf.GGMLQuantizationType(tensor.kind)
        block = np.zeros(gguf.GGML_QUANT_SIZES[kind][1], dtype=np.uint8)
        try:
            gguf.quants.dequantize(block, kind)
        except NotImplementedError:
            raise UserError(
                f"model.path: {header.file}: {name} is stored as {kind.name}, which cannot be made into floats here. "
                "Take a file of another quantization, such as Q8_0, Q4_K_M or F16."
            ) from None
