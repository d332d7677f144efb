"""What a run needs of memory and disk, from the sizes of the model and the recipe alone. No torch here.

Counted is what this package keeps: the base in its storage, what learns in fp32, the optimizer's moments, what each
block saves for its backward pass, the logits of the targets (`glmtune.training.loss`), and the cache of the answers
that are decoded between the steps. A peak on a GPU is torch's `max_memory_allocated`; the context of CUDA comes on
top of it. A peak on a CPU is resident memory, the libraries included. All sizes are bytes; 1 GiB is 2**30.

Several devices divide the examples of a step. Where they share nothing (DDP), each has all the rest, and buckets in
which gradients are exchanged. With full sharding (FSDP2) each has its share of all weights, gradients and moments, on a
GPU or in the memory of its machine; what is in no block is whole during a step, a block and the next one while they
compute, and everything while held-out problems are answered. What NCCL takes for itself is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from glmtune.config import Recipe
from glmtune.methods import TrainableSpec
from glmtune.models.architecture import CHUNK, Architecture, LinearLayer, Part, packed_bytes
from glmtune.models.precision import on_cpu
from glmtune.training.optimizers import TABLE

Device = Literal["cuda", "cpu"]

GIB = 2**30
# Resident memory of torch, transformers, peft and what they import, with the buffers of their matrix products (0.47 and
# 0.15 GiB measured); on a GPU, the workspace of cuBLAS.
LIBRARIES = {"cpu": int(0.62 * GIB), "cuda": 32 * 2**20}
# What CUDA itself takes of a GPU, which torch does not see.
CONTEXT = {"cpu": 0, "cuda": int(0.5 * GIB)}
# nf4 with double quantization (https://arxiv.org/abs/2305.14314): 4 bits a weight, 8 for the scale of 64, 32 for 256
# of these scales.
NF4 = 4 / 8 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Demand:
    """What an objective takes beside the passes of an example: `Objective.demand` says it.

    Attributes:
        sequences: rows of a batch for each example: 2 of pairs.
        rolls_out: the model answers prompts between the steps, and learns from these answers, however long they are.
        reference: a second copy of the base lies beside the model.
    """

    sequences: int = 1
    rolls_out: bool = False
    reference: bool = False


ORDINARY = Demand()


@dataclass(frozen=True)
class Estimate:
    """Memory of a recipe's run on each device, and its disk; each part in bytes.

    Attributes:
        recipe, architecture, trainable: what runs.
        device: where: the first GPU, or the CPU.
        length, target_length: tokens of an example, and those of them that are learned.
        devices: how many divide the examples of a step and, by `training.sharding`, the weights.
        demand: of the objective. Where the model learns from its own answers, these are as long as they may be.
        start: bytes of what the run folder keeps of where training goes on from.
    """

    recipe: Recipe
    architecture: Architecture
    trainable: TrainableSpec
    device: Device
    length: int
    target_length: int
    devices: int = 1
    demand: Demand = ORDINARY
    start: int = 0

    @property
    def batch(self) -> int:
        """Rows of a micro-batch, at most, on each device."""
        training = self.recipe.training
        return self.demand.sequences * min(training.batch_size, -(-training.examples_per_step // self.devices))

    @property
    def prompt(self) -> int:
        """Tokens of the longest prompt."""
        return self.length - self.target_length

    @property
    def learned(self) -> int:
        """Tokens of the longest answer that is learned."""
        return max(self.target_length, self.recipe.generation.longest) if self.demand.rolls_out else self.target_length

    @property
    def longest(self) -> int:
        """Tokens of the longest row of a micro-batch."""
        limit = self.architecture.max_length
        return min(self.prompt + self.learned, limit) if limit else self.prompt + self.learned

    @property
    def reference(self) -> int:
        """A second copy of the base beside the model, where the objective compares with one."""
        return self.share(self.base) if self.demand.reference else 0

    @property
    def compute(self) -> int:
        """Bytes of a number in computations: of the base's precision, to which they are autocast."""
        dtype = self.recipe.model.dtype
        if self.device == "cpu":
            dtype = on_cpu(dtype, self.architecture.wide, self.bits < 16)
        return 4 if dtype == "float32" else 2

    @property
    def residual(self) -> int:
        """Bytes of a number in the residual stream: autocast LayerNorms on GPUs give fp32, RMSNorm what it gets."""
        if self.compute == 4 or self.trainable.embedding:
            return 4
        return 2 if self.architecture.rms_norm or self.device == "cpu" else 4

    @property
    def bits(self) -> int:
        """Storage of the blocks' linear layers."""
        return min(self.recipe.model.bits, self.architecture.stored_bits)

    @property
    def nf4(self) -> bool:
        """Whether these are bitsandbytes' layers of 4 bits, which become floats whole; ours do a few rows at a time."""
        a = self.architecture
        if self.bits != 4 or a.packed or a.grouped or self.recipe.training.sharding == "full":
            return False
        return self.device == "cuda" or a.stored_bits == 4

    # What is there all the time

    @property
    def is_sharded(self) -> bool:
        """Whether each device has its share of the weights alone."""
        training = self.recipe.training
        return training.sharding == "full" and (self.devices > 1 or training.cpu_offload)

    @property
    def is_offloaded(self) -> bool:
        """Whether these shares are in the memory of the machine, and not on its GPU."""
        return self.is_sharded and self.recipe.training.cpu_offload and self.device == "cuda"

    def share(self, size: int) -> int:
        """Return what each device has of what belongs to weights: all, as much as the one with the most, or nothing."""
        if self.is_offloaded:
            return 0
        return -(-size // self.devices) if self.is_sharded else size

    @property
    def host(self) -> int:
        """What each process keeps in the memory of its machine instead: its share of all that."""
        kept = self.base + self.beside + self.moments + 4 * self.trainable.parameters
        return -(-kept // self.devices) if self.is_offloaded else 0

    @property
    def weights(self) -> int:
        """The base, on each device."""
        return self.share(self.base)

    @cached_property
    def base(self) -> int:
        """The base, whole."""
        a, width = self.architecture, self.compute
        embedding = a.embedding_parameters * width
        if a.packed_embedding or self.recipe.model.quantize_embedding:
            bits = a.stored_bits if a.packed_embedding else 8
            embedding = a.embedding_parameters * bits // 8 + a.embedding_parameters // a.hidden_size * 4
        rest = a.parameters - a.embedding_parameters - self.matrix_numbers
        learned = self.trainable.parameters * (4 - width) if self.trainable.in_place else 0
        return int(self.linears + embedding + rest * width + learned)

    @property
    def matrix_numbers(self) -> int:
        """Numbers in the blocks' linear layers."""
        return sum(count * layer.inputs * layer.outputs for layer, count in self.architecture.matrices)

    @cached_property
    def linears(self) -> float:
        """The blocks' linear layers, as they are stored."""
        a, matrices = self.architecture, self.matrix_numbers
        rows = sum(count * layer.outputs for layer, count in a.matrices)
        if self.bits == 16:
            return matrices * self.compute
        if self.bits == 4 and not a.packed:
            ours = (count * packed_bytes(layer.outputs, layer.inputs, self.bits) for layer, count in a.matrices)
            return matrices * NF4 if self.nf4 else sum(ours)
        return matrices * self.bits / 8 + rows * 4

    @property
    def adapters(self) -> int:
        """What learns beside the base, in fp32, on each device."""
        return self.share(self.beside)

    @property
    def beside(self) -> int:
        """What learns beside the base, whole."""
        return 0 if self.trainable.in_place else 4 * self.trainable.parameters

    @property
    def optimizer(self) -> int:
        """Its moments, on each device."""
        return self.share(self.moments)

    @property
    def moments(self) -> int:
        """The optimizer's moments, of all that learns."""
        row, a, trainable = TABLE[self.recipe.training.optimizer], self.architecture, self.trainable
        embeddings = 0
        if trainable.embedding:
            embeddings = a.embedding_parameters if row.head_is_embedding else a.vocab_size * a.hidden_size
        if trainable.prefix and not trainable.cast:  # a bare prefix is an embedding
            embeddings = trainable.parameters
        each = row.bytes_per_embedding or row.bytes_per_parameter
        return int(each * embeddings + row.bytes_per_parameter * (trainable.parameters - embeddings))

    @property
    def paged(self) -> bool:
        """Whether the moments move to the CPU when the GPU is full; torch does not count them."""
        return self.device == "cuda" and TABLE[self.recipe.training.optimizer].paged

    @property
    def gradients(self) -> int:
        """Of what learns, in fp32, on each device."""
        return self.share(4 * self.trainable.parameters)

    # What several devices need to work together

    @property
    def buckets(self) -> int:
        """What DDP exchanges gradients in: a copy of all of them, which is there all the time."""
        return 4 * self.trainable.parameters if self.devices > 1 and not self.is_sharded else 0

    @cached_property
    def largest_block(self) -> int:
        """Parameters of the largest block."""
        a = self.architecture
        layers = (*a.linears, a.router) if a.router else a.linears
        sizes = (sum(layer.parameters for layer in layers if layer.is_in(block)) for block in range(a.num_layers))
        return max(sizes) + a.norm_parameters

    @property
    def outside(self) -> int:
        """Parameters of the base that are in no block."""
        a = self.architecture
        return a.embedding_parameters + a.final_norm_parameters + a.other_parameters

    @property
    def of_a_block(self) -> int:
        """Parameters that learn beside one block; a prefix is beside all of them at once."""
        if self.trainable.in_place:
            return 0
        return self.trainable.parameters // (self.trainable.blocks or 1)

    @property
    def gathered(self) -> int:
        """What is whole during a step: what is in no block, the block that computes, and the next one."""
        if not self.is_sharded:
            return 0
        width = 4 if self.trainable.in_place else self.compute
        return (self.outside + 2 * self.largest_block) * width + 2 * 4 * self.of_a_block

    @property
    def parted(self) -> int:
        """Gradients that are gathered at once before each device keeps its share: as they come, and laid out anew."""
        if not self.is_sharded:
            return 0
        largest = max(self.largest_block, self.outside) if self.trainable.in_place else self.of_a_block
        return 2 * 4 * min(largest, self.trainable.parameters)

    # What a micro-batch takes

    @property
    def copies(self) -> int:
        """Autocast copies of the matrices that learn, kept from the forward to the backward pass."""
        return 2 * self.trainable.parameters if self.compute == 2 and self.trainable.cast else 0

    def saved_by_attention(self, length: int) -> int:
        """Return what the attention of one block saves for the backward pass of one example, whatever learns in it.

        Queries, keys, values, the output, the mask, and the logarithm of a sum for each head and token. Grouped keys
        and values are copied for every head.
        """
        a, size, prefix = self.architecture, self.compute, self.trainable.prefix
        seen, queries, keys = length + prefix, a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
        values = seen * queries
        fused = sum(layer.part == "attention" for layer in a.linears) == 2
        if fused and queries == keys and not prefix:  # a view, which keeps keys and queries before rotation
            values *= 3
        saved = size * (2 * length * queries + seen * queries + values + length * seen)
        saved += 4 * length * a.num_attention_heads
        if self.recipe.model.attention == "eager":
            saved += a.num_attention_heads * length * seen * (4 + (2 if size == 2 else 0))
        if prefix and self.trainable.dropout:
            saved += 2 * prefix * keys * self.dropped
        return saved + length * self.saved_by_norms // 2

    def saved_by_mlp(self, length: int) -> int:
        """Return the same of its MLP: what the activation function gets, and where it is gated, the two factors."""
        inner = self.architecture.mlp_width * (3 if self.architecture.gated else 1)
        size = max(self.compute, self.residual) if self.nf4 else self.compute  # which give what they get
        return length * (size * inner + self.saved_by_norms // 2)

    @property
    def saved_by_norms(self) -> int:
        """What the norms of a block save for a token: what they get, RMSNorm in fp32; the result where they learn."""
        a, rms = self.architecture, self.architecture.rms_norm
        learned = self.residual if self.trainable.norms and rms else 0
        return a.normed_width * ((4 if rms else self.residual) + learned)

    @property
    def dropped(self) -> int:
        """Bytes of a number in a dropout mask."""
        return 1 if self.device == "cuda" else 4

    def saved_by_trained_layers(self, length: int) -> int:
        """Return what one block saves in addition if its linear layers learn: their inputs.

        Layers that read the same save it together, unless each draws its own dropout of it or casts it by itself: where
        the norms give fp32, as those that learn and autocast LayerNorms on GPUs do, and for DoRA, to fp32 and back.
        bitsandbytes' layers leave DoRA's cast out.
        """
        a, trainable, dropout = self.architecture, self.trainable, self.trainable.dropout
        twice = trainable.dora and (self.bits == 16 or a.packed)
        each = dropout or (self.compute == 2 and (trainable.in_place or self.residual == 4 or twice))
        last = {layer.part: layer for layer in a.linears}
        inputs: dict[LinearLayer | Part, int] = {}
        for layer in self.trainable.linears:
            inputs[layer if each or layer is last[layer.part] else layer.part] = layer.inputs * (layer.active or 1)
        numbers = sum(inputs.values())
        if self.trainable.dora:  # two factors of the learned length of each row
            numbers += sum(2 * layer.outputs for layer in self.trainable.linears)
        mask = min(self.dropped, 4 if trainable.dora else self.compute)  # as wide as what is dropped, on a CPU
        return length * (numbers * self.compute + (sum(inputs.values()) * mask if dropout else 0))

    @cached_property
    def block(self) -> int:
        """What one block saves of a micro-batch, where its linear layers learn or have updates beside them."""
        trainable, length = self.trainable, self.longest
        learned = self.saved_by_trained_layers(length) if trainable.linears else 0
        # DoRA makes its update by multiplying an identity matrix.
        identities = self.compute * sum(layer.inputs**2 for layer in trainable.linears) if trainable.dora else 0
        # An update beside the experts, which are one parameter, is added to all of them before any computes.
        updated = 0 if trainable.in_place else sum(layer.parameters for layer in trainable.linears if layer.experts)
        saved = self.saved_by_attention(length) + self.saved_by_mlp(length) + learned
        return self.batch * saved + identities + self.compute * updated

    @cached_property
    def activations(self) -> int:
        """What the blocks save from the forward to the backward pass; with gradient checkpointing, what enters each."""
        trainable, length = self.trainable, self.longest
        stream = self.batch * length * self.architecture.hidden_size * self.residual
        if self.recipe.training.gradient_checkpointing:
            return (trainable.depth + 2) * stream
        plain = self.batch * (self.saved_by_attention(length) + self.saved_by_mlp(length))
        # No gradient passes through the lowest attention if only MLPs learn.
        skipped = trainable.in_place and all(layer.part == "mlp" for layer in trainable.linears)
        saved = trainable.blocks * self.block + (trainable.depth - trainable.blocks) * plain + 2 * stream
        return saved - (self.batch * self.saved_by_attention(length) if skipped else 0)

    @property
    def logits(self) -> int:
        """Of the targets; their gradient takes their place, and a few rows at a time are fp32."""
        numbers = self.batch * self.learned * self.architecture.vocab_size
        return numbers * self.compute + min(numbers, CHUNK) * 4 * (2 if self.compute == 2 else 1)

    @property
    def workspace(self) -> int:
        """What quantized matrices take while they are floats: the largest one of nf4, some rows of the others."""
        largest = max(layer.inputs * layer.outputs for layer, _ in self.architecture.matrices)
        if self.bits == 16:
            return 0
        return largest * self.compute if self.nf4 else min(largest, CHUNK) * (2 + self.compute)

    def answers(self, batch: int, length: int, read: int) -> int:
        """Return what decoding takes: the cache, and what reading the prompts needs on top.

        Args:
            batch: prompts that are answered together, each to its greatest length.
            length: tokens of the longest, its answer included.
            read: those of them that are read at once.
        """
        a, prefix = self.architecture, self.trainable.prefix
        # Room for an eighth more is made at once (`glmtune.models.growing_cache`).
        cache = batch * (length + prefix) * 9 // 8 * a.prefix_width * self.compute
        inner = a.mlp_width * (3 if a.gated else 2)
        attention = 4 * a.num_attention_heads * a.head_dim + 2 * a.num_key_value_heads * a.head_dim
        reading = batch * read * (max(inner, attention) + 2 * a.hidden_size) * self.compute
        return cache + reading + batch * a.vocab_size * (4 + self.compute) + self.workspace

    # What it comes to

    @property
    def resident(self) -> int:
        """What is there all the time."""
        moments = 0 if self.paged else self.optimizer
        return LIBRARIES[self.device] + self.weights + self.reference + self.adapters + moments + self.buckets

    @property
    def step(self) -> int:
        """Peak of a step: at the end of the forward pass, or of the backward pass."""
        accumulated = self.gradients if self.recipe.training.gradient_accumulation_steps > self.devices else 0
        recomputed = self.block if self.recipe.training.gradient_checkpointing else 0
        forward = self.activations + self.copies + accumulated + max(self.logits, recomputed + self.workspace)
        backward = self.gradients + self.parted + self.block + self.workspace
        return self.resident + self.gathered + max(forward, backward)

    @property
    def judging(self) -> int:
        """Peak of answering between the steps: held-out problems, and what is rolled out."""
        generation = self.recipe.generation
        answers = self.answers(generation.batch_size, self.prompt + generation.longest, self.prompt)
        whole = self.base + self.beside if self.is_sharded else 0  # shares stay beside it
        return self.resident + whole + answers

    @property
    def peak(self) -> int:
        """Of the whole run."""
        return max(self.step, self.judging)

    def inference(self, length: int, batch: int = 1) -> int:
        """Return the peak of answering, on one device, prompts of nearly `length` tokens with what was trained."""
        learned = self.trainable.parameters * (4 - self.compute)
        trained = -learned if self.trainable.in_place else self.saved
        return LIBRARIES[self.device] + self.base + trained + self.answers(batch, length, length)

    @property
    def disk(self) -> int:
        """The run folder: where it begins, checkpoints and one more while it is written, what is saved in the end."""
        kept = self.recipe.training.checkpoints_kept + 2
        learned = 4 * self.trainable.parameters
        return self.start + kept * (learned + self.moments) + self.saved

    @property
    def saved(self) -> int:
        """What is saved in the end: adapters in fp32, weights of the base in its precision."""
        parameters = self.trainable.parameters if self.trainable.saved is None else self.trainable.saved
        return parameters * (self.compute if self.trainable.in_place else 4)
