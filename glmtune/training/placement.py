"""Where a run takes place, whether it fits there, and what would make it fit. No torch here."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Literal

from glmtune import distributed, registry
from glmtune.config import Recipe, make_recipe, with_overrides
from glmtune.methods import Method
from glmtune.models.architecture import Architecture
from glmtune.runtime import UserError, memory_size
from glmtune.training.memory import CONTEXT, GIB, ORDINARY, Demand, Device, Estimate
from glmtune.training.sharding import check_sharding

ASSUMED_LENGTH = 128  # tokens of an example where nothing tells: 64 + 64 as in the official ChatGLM-6B fine-tuning
RESERVE = 0.05  # of the memory, for what an estimate cannot foresee
UNITS = {"": GIB, "G": GIB, "M": 2**20, "T": 2**40}


@dataclass(frozen=True)
class Place:
    """Where a run would take place.

    Attributes:
        device: a GPU, or the CPU.
        name: what to call it.
        memory: bytes that it has.
    """

    device: Device
    name: str
    memory: int

    def spare(self, estimate: Estimate) -> int:
        """Return the bytes left over at the peak, with what the device itself takes; negative if they are missing."""
        return self.memory - CONTEXT[self.device] - estimate.peak


@dataclass(frozen=True)
class Placement:
    """A recipe at a place.

    Attributes:
        recipe: as it was asked for.
        place: where it would run.
        estimate_of: the estimate of a recipe there, of the same examples.
    """

    recipe: Recipe
    place: Place
    estimate_of: Callable[[Recipe], Estimate]

    @cached_property
    def estimate(self) -> Estimate:
        """Memory and disk of the recipe."""
        return self.estimate_of(self.recipe)

    @property
    def spare(self) -> int:
        """Bytes left over at the peak; negative where they are missing."""
        return self.place.spare(self.estimate)

    @property
    def fits(self) -> bool:
        """Whether the memory is enough."""
        return self.spare >= 0

    @cached_property
    def remedy(self) -> tuple[list[str] | None, Estimate]:
        """Settings with which it would fit, none where it does, None where nothing helps; the estimate with them."""
        return ([], self.estimate) if self.fits else remedies(self.recipe, self.estimate_of, self.place)


def readable(count: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def estimate(
    recipe: Recipe,
    architecture: Architecture,
    device: Device,
    length: int,
    target_length: int,
    devices: int = 1,
    demand: Demand = ORDINARY,
    start: int = 0,
) -> Estimate:
    """Return the estimate of a recipe on a device, or on each of several.

    Args:
        recipe: as it stands in a file.
        architecture: of the recipe's model.
        device: a GPU, or the CPU.
        length: tokens of the longest examples.
        target_length: those of them that are learned.
        devices, demand, start: as `Estimate` has them.

    Raises:
        UserError: the method does not tell what it trains or cannot train this model, or weights cannot be divided.
    """
    method: Method = registry.admitted("glmtune.methods", recipe.method.name)(recipe.method)
    method.check_base(recipe.model, architecture.stored_bits)
    check_sharding(recipe, architecture.has_own_form)
    trainable = method.trainable_spec(architecture)
    return Estimate(recipe, architecture, trainable, device, length, target_length, devices, demand, start)


def placement_of(
    recipe: Recipe,
    architecture: Architecture,
    length: int,
    target_length: int,
    where: Place | None = None,
    devices: int = 1,
    demand: Demand = ORDINARY,
    start: int = 0,
) -> Placement:
    """Return what training by a recipe takes of a place.

    Args:
        recipe: its own settings, or a variant.
        architecture: of the model that is trained.
        length: tokens of the longest examples.
        target_length: those of them that are learned.
        where: each of the devices; default: this machine.
        devices, demand, start: as `Estimate` has them.
    """
    place = where or at_hand(distributed.local_device().type == "cuda")
    sizes = (architecture, place.device, length, target_length, devices, demand, start)
    return Placement(recipe, place, lambda variant: estimate(variant, *sizes))


def assume_lengths(
    recipe: Recipe, architecture: Architecture, length: int | None = None, target_length: int | None = None
) -> tuple[int, int]:
    """Return the tokens of an example and of its target: as given, or by `data.max_length`, or assumed.

    Raises:
        UserError: there are no such examples, or the model cannot take them.
    """
    longest, named = architecture.max_length, f"--length {length}"
    if length is None and recipe.data.max_length is not None:
        length, named = recipe.data.max_length, f"data.max_length={recipe.data.max_length}"
    if length is None:
        length = min(ASSUMED_LENGTH, longest or ASSUMED_LENGTH)
    if length < 2:
        raise UserError(f"{named}: an example has a prompt and a target. Set at least 2 tokens.")
    if longest is not None and length > longest:
        raise UserError(f"{named}: the model can take {longest} tokens. Set at most {longest}.")
    if target_length is None:
        target_length = length // 2
    if not 0 < target_length < length:
        raise UserError(f"--target-length {target_length}: must be from 1 to {length - 1}: a prompt comes first.")
    return length, target_length


def parse_memory(text: str) -> int:
    """Return the bytes of a memory as it is printed on a card: GB are 2**30 there.

    Raises:
        UserError: no number, or an unknown unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GMT]?)(?:i?B)?\s*", text, flags=re.I)
    if match is None or float(match[1]) == 0:
        raise UserError(f"--memory {text}: no size of a memory. Write it as 8GB, 24GB or 81920MB.")
    return int(float(match[1]) * UNITS[match[2].upper()])


def place_of(device: Literal["gpu", "cpu"] | None, memory: str | None, devices: int = 1) -> Place:
    """Return where a run would take place: at hand, or on a device that is only told of; of several, one.

    Args:
        device: default: a GPU where torch would use one, or where `memory` is given.
        memory: as `parse_memory` reads it. Default: that of the device at hand.
        devices: how many there are; of the CPU at hand, each is a process that has its part of the memory.

    Raises:
        UserError: the memory is no size, or there is no GPU at hand.
    """
    if memory is not None:
        size = parse_memory(memory)
        at_gpu, at_cpu = Place("cuda", f"a GPU of {memory}", size), Place("cpu", f"a CPU with {memory}", size)
        return at_cpu if device == "cpu" else at_gpu
    place = at_hand(with_gpu=device != "cpu" and torch_takes_gpus())
    if device == "gpu" and place.device == "cpu":
        raise UserError("--device gpu: there is none here that torch would use. Say how large it is: --memory 24GB.")
    if place.device == "cpu" and devices > 1:
        return Place("cpu", f"{place.name}, a part in {devices}", place.memory // devices)
    return place


def torch_takes_gpus() -> bool:
    """Return whether the torch that is installed was built for GPUs; it is not imported for that."""
    with suppress(metadata.PackageNotFoundError):
        return not metadata.version("torch").endswith("+cpu")
    return True


def at_hand(with_gpu: bool = True) -> Place:
    """Return the first GPU as its driver tells it, or else the memory of this machine.

    Args:
        with_gpu: whether a GPU would be used where there is one.
    """
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError, IndexError, ValueError):  # no driver, or none that answers
        if with_gpu:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
            name, _, mebibytes = answer.splitlines()[0].rpartition(",")
            return Place("cuda", name.strip(), int(mebibytes) * 2**20)
    return Place("cpu", "the CPU of this machine", memory_size())


def remedies(
    recipe: Recipe, estimate_of: Callable[[Recipe], Estimate], place: Place
) -> tuple[list[str] | None, Estimate]:
    """Return settings with which a recipe fits: as mild as possible, none that is not needed, and some memory to spare.

    Returns:
        The settings as they are typed, None where none make it fit; and the estimate with them, or the smallest.
    """
    ladders = [[[], *levels] for levels in measures(recipe, estimate_of(recipe))]
    steps = [0] * len(ladders)

    def settings() -> list[str]:
        return [text for ladder, step in zip(ladders, steps, strict=True) for text in ladder[step]]

    def current() -> Estimate:
        return estimate_of(make_recipe(with_overrides(recipe.model_dump(mode="json"), settings())))

    def fits(estimate: Estimate) -> bool:
        return place.spare(estimate) >= place.memory * RESERVE

    for number, ladder in enumerate(ladders):
        steps[number] = len(ladder) - 1
        if fits(current()):
            break
    else:
        return None, current()
    for number in reversed(range(len(ladders))):  # what costs most is taken back first
        deepest = steps[number]
        for steps[number] in range(deepest + 1):
            with suppress(UserError):  # another setting needs this one
                if fits(current()):
                    break
    return settings(), current()


def measures(recipe: Recipe, now: Estimate) -> Iterator[list[list[str]]]:
    """Yield what saves memory, from what costs nothing to what changes the method, each with its levels."""
    training, generation = recipe.training, recipe.generation
    yield [[f"generation.batch_size={size}"] for size in halves(generation.batch_size)]
    if not training.gradient_checkpointing:
        yield [["training.gradient_checkpointing=true"]]
    total = training.batch_size * training.gradient_accumulation_steps
    yield [
        [f"training.batch_size={size}", f"training.gradient_accumulation_steps={-(-total // size)}"]
        for size in halves(training.batch_size)
    ]
    if now.compute == 4:
        yield [["model.dtype=bfloat16"]]
    if training.optimizer == "adamw" and not now.is_sharded:
        yield [["training.optimizer=adamw_8bit"]]
    if now.device == "cuda" and not now.paged and not now.is_sharded:
        yield [["training.optimizer=paged_adamw_8bit"]]
    if now.device == "cuda" and now.is_sharded and not now.is_offloaded:
        yield [["training.cpu_offload=true"]]
    if now.trainable.in_place:
        yield [["method={name: lora}"]]
    if recipe.model.random_init:  # fresh weights have to learn
        return
    if now.trainable.needs_weights:
        yield [["method.init=default"]]
    if now.bits == 16:
        eight = [] if now.trainable.dora and now.device == "cpu" else [["model.bits=8"]]  # peft cannot do both there
        yield [*eight, ["model.bits=4"]]
    if not (recipe.model.quantize_embedding or now.architecture.packed_embedding):
        yield [["model.quantize_embedding=true"]]


def halves(size: int) -> Iterator[int]:
    """Yield half of a size, half of that, down to 1."""
    while size > 1:
        size //= 2
        yield size
