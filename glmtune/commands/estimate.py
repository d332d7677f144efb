"""`glmtune estimate`: the memory and disk that a recipe needs, before anything is loaded. No torch here."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune import registry
from glmtune.config import Recipe, load_recipe, make_recipe, with_overrides
from glmtune.methods import Method
from glmtune.models import loading
from glmtune.models.architecture import Architecture
from glmtune.models.checkpoint import read_json, reading
from glmtune.runtime import UserError, memory_size
from glmtune.training.memory import CONTEXT, GIB, LIBRARIES, Device, Estimate

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
        """Bytes left over at the run's peak, with what the device itself takes; negative where they are missing."""
        return self.memory - CONTEXT[self.device] - estimate.peak


@dataclass(frozen=True)
class Answer:
    """What is told.

    Attributes:
        estimate: of the recipe.
        place: where it would run.
        remedy: settings with which it would fit, where it does not; None where none do.
        smallest: the least that settings can bring it to, where nothing makes it fit.
    """

    estimate: Estimate
    place: Place
    remedy: list[str] | None
    smallest: Estimate

    def as_dict(self) -> dict[str, Any]:
        """Bytes, counts, and whether it fits."""
        estimate = self.estimate
        parts = ("weights", "adapters", "gradients", "optimizer", "activations", "logits", "step", "judging", "peak")
        return {
            "model": estimate.recipe.model.path,
            "method": estimate.recipe.method.name,
            "device": self.place.name,
            "memory": self.place.memory,
            "batch_size": estimate.batch,
            "length": estimate.length,
            "target_length": estimate.target_length,
            "parameters": estimate.architecture.parameters,
            "trainable": estimate.trainable.parameters,
            **{part: getattr(estimate, part) for part in parts},
            "inference": estimate.inference(estimate.length),
            "disk": estimate.disk,
            "fits": self.place.spare(estimate) >= 0,
            "remedy": self.remedy,
        }


def run(
    recipe_path: str | None = None,
    overrides: Sequence[str] = (),
    memory: str | None = None,
    length: int | None = None,
    target_length: int | None = None,
) -> Answer:
    """Estimate what `glmtune train` would need with the same recipe and settings.

    Args:
        recipe_path: a YAML file, or a run folder.
        overrides: `section.setting=value` texts.
        memory: of a GPU, such as `8GB`. Default: what is at hand.
        length: tokens of the longest examples. Default: `data.max_length`, or 128.
        target_length: those of them that are learned. Default: half.

    Raises:
        UserError: faults in the recipe, a model whose sizes are not known, or a memory that is no size.
    """
    file = recipe_path
    if file is not None and Path(file).is_dir():
        file = str(Path(file) / "recipe.yaml")
    recipe = load_recipe(file, overrides)
    architecture = architecture_of(recipe)
    place = at_hand() if memory is None else Place("cuda", f"a GPU of {memory}", parse_memory(memory))
    length, target_length = lengths(recipe, architecture, length, target_length)

    def of(changed: Recipe) -> Estimate:
        return estimate(changed, architecture, place.device, length, target_length)

    found = of(recipe)
    remedy, smallest = ([], found) if place.spare(found) >= 0 else remedies(recipe, of, place)
    return Answer(found, place, remedy, smallest)


def lengths(
    recipe: Recipe, architecture: Architecture, length: int | None, target_length: int | None
) -> tuple[int, int]:
    """Tokens of an example and of its target: as given, or by `data.max_length`, or assumed.

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


def lines(answer: Answer) -> list[tuple[str, str, str]]:
    """(part, size, what it is) of an answer, for people."""
    e, place = answer.estimate, answer.place
    share = e.trainable.parameters / e.architecture.parameters
    moved = "; moves to the CPU when the GPU is full" if e.paged else ""
    recomputed = ", recomputed block by block" if e.recipe.training.gradient_checkpointing else ""
    return [
        ("parameters", f"{e.architecture.parameters:,}", e.architecture.family),
        ("trainable", f"{e.trainable.parameters:,}", f"{share:.2%}, {e.recipe.method.name}"),
        ("weights", readable(e.weights), storage_of(e)),
        ("adapters", readable(e.adapters), "fp32"),
        ("gradients", readable(e.gradients), "fp32"),
        ("optimizer", readable(e.optimizer), f"{e.recipe.training.optimizer}{moved}"),
        ("activations", readable(e.activations), f"{e.batch} x {e.length} tokens{recomputed}"),
        (
            "logits",
            readable(e.logits),
            f"{e.batch} x {e.target_length} targets, vocabulary of {e.architecture.vocab_size:,}",
        ),
        ("peak of a step", readable(e.step), f"with {readable(LIBRARIES[place.device])} of libraries"),
        ("peak of judging", readable(e.judging), f"{e.recipe.generation.batch_size} held-out problems at a time"),
        ("peak", readable(e.peak), f"and {readable(CONTEXT['cuda'])} of CUDA's own" if place.device == "cuda" else ""),
        ("inference", readable(e.inference(e.length)), f"batch 1, {e.length} tokens, with what was trained"),
        ("disk", readable(e.disk), "run folder: checkpoints and what is saved in the end"),
    ]


def storage_of(e: Estimate) -> str:
    """At how many bits which weights are."""
    width = 8 * e.compute
    parts = [f"linear layers at {e.bits if e.bits < 16 else width} bits"]
    if e.recipe.model.quantize_embedding or e.architecture.packed_embedding:
        parts.append(f"embedding at {e.architecture.stored_bits if e.architecture.packed_embedding else 8}")
    parts.append(f"the rest at {width}")
    return ", ".join(parts) + (", what learns at 32" if e.trainable.in_place and width < 32 else "")


def verdict(answer: Answer) -> str:
    """Whether it fits, and what would make it fit."""
    place = answer.place
    spare = place.spare(answer.estimate)
    where = f"{place.name} ({readable(place.memory)})"
    if spare >= 0:
        return f"It fits {where}: {readable(spare)} to spare."
    if answer.remedy is None:
        return (
            f"It does not fit {where}: {readable(-spare)} too much. With every setting that saves memory it would "
            f"still take {readable(answer.smallest.peak)}: choose a smaller model, or shorter examples (--length)."
        )
    return (
        f"It does not fit {where}: {readable(-spare)} too much. It would with\n  {shlex.join(answer.remedy)}\n"
        f"which takes {readable(answer.smallest.peak)}."
    )


def readable(count: int) -> str:
    """Bytes for people."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def estimate(recipe: Recipe, architecture: Architecture, device: Device, length: int, target_length: int) -> Estimate:
    """The estimate of a recipe on a device.

    Args:
        recipe: as it stands in a file.
        architecture: of the recipe's model.
        device: a GPU, or the CPU.
        length: tokens of the longest examples.
        target_length: those of them that are learned.

    Raises:
        UserError: the method does not tell what it trains, or cannot train this model.
    """
    method: Method = registry.find("glmtune.methods", recipe.method.name)(recipe.method)
    method.check_storage(recipe.model, architecture.stored_bits)
    return Estimate(recipe, architecture, method.trainable_spec(architecture), device, length, target_length)


def architecture_of(recipe: Recipe) -> Architecture:
    """The sizes of a recipe's model, from its config.json alone; of a hub name, this one file is fetched.

    Raises:
        UserError: no such model, or one whose sizes are not known.
    """
    location = loading.locate(recipe.model.path)
    file = Path(location) / "config.json"
    if not Path(location).is_dir():
        from huggingface_hub import hf_hub_download

        with reading("config.json", location):
            file = Path(hf_hub_download(location, "config.json"))
    return Architecture.from_config(read_json(file))


def parse_memory(text: str) -> int:
    """Bytes of a memory as it is printed on a card: GB are 2**30 there.

    Raises:
        UserError: no number, or an unknown unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GMT]?)(?:i?B)?\s*", text, flags=re.I)
    if match is None or float(match[1]) == 0:
        raise UserError(f"--memory {text}: no size of a memory. Write it as 8GB, 24GB or 81920MB.")
    return int(float(match[1]) * UNITS[match[2].upper()])


def at_hand(with_gpu: bool = True) -> Place:
    """The first GPU as its driver tells it, or else the memory of this machine.

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
    """Settings with which a recipe fits: as mild as possible, none that is not needed, and some memory to spare.

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
    """What saves memory, from what costs nothing to what changes the method; each with its levels, mildest first."""
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
    if training.optimizer == "adamw":
        yield [["training.optimizer=adamw_8bit"]]
    if now.device == "cuda" and not now.paged:
        yield [["training.optimizer=paged_adamw_8bit"]]
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
    """Half of a size, half of that, down to 1."""
    while size > 1:
        size //= 2
        yield size
