"""The sizes of a model, from its `config.json` alone. No torch here: `glmtune estimate` answers at once.

Letters in comments: C width of the residual stream, F width inside the MLP, H heads, K key-value heads, D head size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from glmtune import registry
from glmtune.models.families import all_families, family_of
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Part = Literal["attention", "mlp"]

CHUNK = 2**24  # numbers that the loss, and packed matrices, turn into floats at a time: 64 MB in fp32
OWN_FORMAT = "glmtune"  # `quant_method` of a checkpoint whose linear layers are stored in our form (models/packing.py)


@dataclass(frozen=True)
class LinearLayer:
    """One linear layer of a block.

    Attributes:
        name: of its module, e.g. `query_key_value`; of experts, of their parameter.
        part: the half of the block that it belongs to.
        inputs, outputs: its sizes.
        bias: whether it has one.
        blocks: which blocks have it, from 0; None: all.
        experts: of how many experts it is, in one parameter (experts, outputs, inputs); 0: a matrix by itself.
        active: how many of these experts compute a token.
        owner: the module that it is in, where that is not the half of the block: `experts`.
    """

    name: str
    part: Part
    inputs: int
    outputs: int
    bias: bool
    blocks: tuple[int, ...] | None = None
    experts: int = 0
    active: int = 0
    owner: str = ""

    @property
    def names(self) -> set[str]:
        """By what a recipe may name it: alone, or with what it is in."""
        return {self.name, f"{self.owner or self.part}.{self.name}"}

    @property
    def copies(self) -> int:
        """How many matrices of this size a block holds."""
        return self.experts or 1

    @property
    def parameters(self) -> int:
        """Weights and biases, of all experts."""
        return (self.inputs + self.bias) * self.outputs * self.copies

    def is_in(self, block: int) -> bool:
        """Return whether a block has it."""
        return self.blocks is None or block in self.blocks


def group_size(columns: int) -> int:
    """Return how many numbers of a row share a scale and a zero at 4 bits; 0 where it cannot be parted so."""
    return 0 if columns % 32 else 32


def packed_bits(rows: int, columns: int, bits: int) -> int:
    """Return the bits at which our form stores a matrix: 8 in place of 4 where it cannot be parted into groups."""
    return bits if bits == 8 or (rows % 16 == 0 and group_size(columns)) else 8


def packed_bytes(rows: int, columns: int, bits: int) -> int:
    """Return the bytes of a matrix of 16 bits that our form stores at 8 or 4."""
    if packed_bits(rows, columns, bits) == 8:
        return rows * (columns + 4)
    return rows * (columns // 2 + 4 * (columns // group_size(columns)))


@dataclass(frozen=True)
class Architecture:
    """What parameter counts and memory follow from.

    Attributes:
        family: `model_type` of the configuration.
        num_layers: blocks.
        hidden_size: width of the residual stream.
        vocab_size: rows of the embedding.
        num_attention_heads, num_key_value_heads, head_dim: of one attention.
        linears: the linear layers of the blocks; the last of each part writes to the residual stream.
        norm_parameters: of one block.
        final_norm_parameters: of the norm before the head.
        tied: whether head and embedding are one matrix.
        normed_width: numbers that the norms of one block normalise for one token.
        rms_norm: norms are RMSNorm; else LayerNorm.
        gated: the MLP multiplies two halves (SwiGLU).
        router: what chooses the experts of a token. It keeps its precision, and no update stands beside it.
        other_parameters: outside of the blocks: learned positions, the bias of the head.
        max_length: longest sequence in tokens; None where the configuration states none.
        stored_bits: of the blocks' linear layers in the files: 16, or 8 or 4 where they are packed.
        packed: these are the original's packed matrices, one scale a row, not bitsandbytes'.
        grouped: these are packed in our form (`packed_bytes`).
        wide: the files hold numbers of 32 bits, or do not say.
        packed_embedding: the embedding and the head are stored so, too.
    """

    family: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    linears: tuple[LinearLayer, ...]
    norm_parameters: int
    final_norm_parameters: int
    tied: bool
    normed_width: int = 0
    rms_norm: bool = False
    gated: bool = False
    router: LinearLayer | None = None
    other_parameters: int = 0
    max_length: int | None = None
    stored_bits: int = 16
    packed: bool = False
    packed_embedding: bool = False
    grouped: bool = False
    wide: bool = True

    @property
    def has_own_form(self) -> bool:
        """Whether the linear layers are no other package's: floats, the original's, or packed by ours."""
        return self.stored_bits == 16 or self.packed or self.grouped

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Architecture:
        """Return the architecture that a `config.json` describes.

        Raises:
            UserError: of a family that is not known here, or without a size that it needs.
        """
        family = str(values.get("model_type"))
        sizes = family_of(values).sizes
        if sizes is None:
            known = sorted({name for other in all_families() if other.sizes for name in other.model_types})
            raise UserError(
                f"config.json: model_type '{family}' is none whose sizes are known here."
                f"{registry.suggest(family, known)}"
            )
        try:
            return cls(family=family, **sizes(values), **storage(values))
        except KeyError as error:
            raise UserError(
                f"config.json: {error.args[0]} is missing, which a model of the family '{family}' needs. "
                "Copy or download it again."
            ) from error
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise UserError(
                f"config.json: its sizes make no model of the family '{family}': {error}. Copy or download it again."
            ) from error

    @property
    def prefix_width(self) -> int:
        """Numbers that a learned prefix has for one token: a key and a value for each layer."""
        return 2 * self.num_layers * self.num_key_value_heads * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        """The embedding and the head; a tied matrix counts once."""
        return self.vocab_size * self.hidden_size * (1 if self.tied else 2)

    def times(self, layer: LinearLayer) -> int:
        """Return how many blocks have a layer."""
        return self.num_layers if layer.blocks is None else len(layer.blocks)

    @property
    def parameters(self) -> int:
        """All parameters of the model; a tied matrix counts once."""
        layers = (*self.linears, self.router) if self.router else self.linears
        blocks = sum(self.times(layer) * layer.parameters for layer in layers) + self.num_layers * self.norm_parameters
        return blocks + self.embedding_parameters + self.final_norm_parameters + self.other_parameters

    @property
    def active_parameters(self) -> int:
        """Those that compute a token: of a mixture of experts, all but the experts that it does not pass."""
        idle = ((layer, layer.experts - layer.active) for layer in self.linears if layer.experts)
        return self.parameters - sum(self.times(layer) * rest * layer.inputs * layer.outputs for layer, rest in idle)

    @property
    def matrices(self) -> list[tuple[LinearLayer, int]]:
        """Linear layers that can be stored at fewer bits, and how many there are of each: experts cannot."""
        return [(layer, self.times(layer)) for layer in self.linears if not layer.experts]

    @property
    def mlp_width(self) -> int:
        """Numbers inside of the MLP for a token, in the widest block; those of all experts that compute it."""
        widths: Counter[tuple[int, ...] | None] = Counter()
        for layer in self.linears:
            if (layer.part, layer.name) == ("mlp", self.linears[-1].name):
                widths[layer.blocks] += layer.inputs * (layer.active or 1)
        return max(widths.values())

    def remarks(self, bits: int) -> Iterator[str]:
        """Yield what is said of a model whose linear layers are to be stored at some bits: experts are not."""
        experts = sum(self.times(layer) * layer.parameters for layer in self.linears if layer.experts)
        if experts and bits < 16:
            yield (
                f"model.bits={bits}: the experts, {experts / self.parameters:.0%} of the parameters, stay as they are: "
                "those of a block are one parameter, and linear layers alone are stored at fewer bits."
            )


def storage(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the files hold the weights: as the original packed releases, as bitsandbytes, or as we do."""
    packed = int(values.get("quantization_bit") or 0)
    by_library = values.get("quantization_config") or {}
    grouped = by_library.get("quant_method") == OWN_FORMAT
    library = 4 if by_library.get("load_in_4bit") else 8 if by_library.get("load_in_8bit") else 16
    return {
        "stored_bits": packed or (int(by_library.get("bits", 4)) if grouped else library),
        "packed": packed > 0,
        "packed_embedding": packed > 0 and bool(values.get("quantization_embeddings")),
        "grouped": grouped,
        "wide": is_wide(values),
    }


def is_wide(values: Mapping[str, Any]) -> bool:
    """Return whether the files of a checkpoint hold numbers of 32 bits, or do not say what they hold."""
    stored = str(values.get("dtype") or values.get("torch_dtype")).removeprefix("torch.")
    return stored not in ("bfloat16", "float16")


def has_own_form(config: PreTrainedConfig) -> bool:
    """Return the same as `Architecture.has_own_form`, of a configuration."""
    found = storage(config.to_dict())
    return bool(found["stored_bits"] == 16 or found["packed"] or found["grouped"])


def stored_bits(config: PreTrainedConfig) -> int:
    """Return the bits at which a checkpoint's linear layers are stored: 16, or 8 or 4 where its config.json says so."""
    return int(storage(config.to_dict())["stored_bits"])


def plain_sizes(
    values: Mapping[str, Any],
    width: int,
    layers: int,
    heads: int,
    linears: tuple[LinearLayer, ...],
    norms: int,
    max_length: int | None,
) -> dict[str, Any]:
    """Return the fields of a model with LayerNorm, an MLP of two layers and as many key-value heads as heads."""
    return {
        "num_layers": layers,
        "hidden_size": width,
        "vocab_size": values["vocab_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "linears": linears,
        "norm_parameters": norms * 2 * width,
        "final_norm_parameters": 2 * width,
        "tied": values.get("tie_word_embeddings", True),
        "normed_width": norms * width,
        "max_length": max_length,
    }


def gated_sizes(
    values: Mapping[str, Any],
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    fused_qkv: bool = False,
    fused_mlp: bool = False,
    head_norms: bool = False,
    norms: int = 2,
) -> dict[str, Any]:
    """Return the fields of a model with RMSNorm and SwiGLU, in the words of transformers' configurations."""
    width, inner, heads = values["hidden_size"], values["intermediate_size"], values["num_attention_heads"]
    kv_heads = values.get("num_key_value_heads") or heads
    head_dim = values.get("head_dim") or width // heads
    queries, keys = heads * head_dim, kv_heads * head_dim
    qkv = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    mlp = {"gate_proj": inner, "up_proj": inner}
    if fused_qkv:
        qkv = {"qkv_proj": queries + 2 * keys}
    if fused_mlp:
        mlp = {"gate_up_proj": 2 * inner}
    return {
        "num_layers": values["num_hidden_layers"],
        "hidden_size": width,
        "vocab_size": values["vocab_size"],
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "linears": (
            *(LinearLayer(name, "attention", width, outputs, qkv_bias) for name, outputs in qkv.items()),
            LinearLayer("o_proj", "attention", queries, width, output_bias),
            *(LinearLayer(name, "mlp", width, outputs, mlp_bias) for name, outputs in mlp.items()),
            LinearLayer("down_proj", "mlp", inner, width, mlp_bias),
        ),
        "norm_parameters": norms * width + (2 * head_dim if head_norms else 0),
        "final_norm_parameters": width,
        "tied": values.get("tie_word_embeddings", False),
        "normed_width": norms * width + (queries + keys if head_norms else 0),
        "rms_norm": True,
        "gated": True,
        "max_length": values.get("max_position_embeddings"),
    }
