"""`glmtune estimate`: tell what a recipe needs of memory and disk, and whether it fits; nothing is loaded."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from glmtune.commands._arguments import add_recipe, recipe_and_settings
from glmtune.terminal import say, to_json

if TYPE_CHECKING:
    from glmtune.config import Recipe
    from glmtune.resolution import Target
    from glmtune.training.memory import Estimate
    from glmtune.training.placement import Placement

PARTS = (
    *("weights", "reference", "adapters", "gradients", "optimizer", "host", "buckets", "gathered"),
    *("activations", "logits", "step", "judging", "peak"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the recipe, the memory, and how long the examples are."""
    add_recipe(parser, "as for train, or a run folder", "model.bits=4 training.batch_size=1")
    parser.add_argument("--memory", metavar="SIZE", help="of the device, e.g. 8GB (default: the GPU or CPU at hand)")
    parser.add_argument(
        "--device", choices=("gpu", "cpu"), help="where it would run (default: at hand; with --memory, a GPU)"
    )
    parser.add_argument(
        "--length", type=int, metavar="N", help="tokens of the longest examples (default: data.max_length, or 128)"
    )
    parser.add_argument("--target-length", type=int, metavar="N", help="those of them to be learned (default: half)")
    parser.add_argument(
        "--devices",
        type=int,
        metavar="N",
        help="how many work together; --memory is that of each (default: training.devices, all of them being 1)",
    )
    parser.add_argument(
        "--sharding",
        choices=("none", "full"),
        help="what they divide beside the examples: nothing, or all weights with what belongs to them (default: "
        "training.sharding)",
    )
    parser.add_argument("--json", action="store_true", help="print bytes as JSON")


def main(options: argparse.Namespace) -> None:
    """Estimate and print."""
    where = options.memory, options.length, options.target_length, options.device, options.devices, options.sharding
    show(run(*recipe_and_settings(options), *where), options.json)


def run(
    target: Target | None = None,
    overrides: Iterable[str] = (),
    memory: str | None = None,
    length: int | None = None,
    target_length: int | None = None,
    device: Literal["gpu", "cpu"] | None = None,
    devices: int | None = None,
    sharding: Literal["none", "full"] | None = None,
) -> Placement:
    """Estimate what `glmtune train` would need with the same recipe and settings.

    Args:
        target: a recipe, a run folder, or anything else that names a model. Of a run, settings of another task, method
            or objective tell what a training that goes on from it would need.
        overrides: `section.setting=value` texts.
        memory: of the device, such as `8GB`. Default: what is at hand.
        length: tokens of the longest examples. Default: `data.max_length`, or 128.
        target_length: those of them that are learned. Default: half.
        device: where it would run. Default: a GPU where there is one, or where `memory` is given.
        devices: how many divide the examples of a step. Default: `training.devices`; of `all`, one.
        sharding: `full`: they divide all weights, gradients and moments, too. Default: `training.sharding`.

    Raises:
        UserError: faults in the recipe, a method whose code only a file names, a model whose sizes are not known, a
            memory that is no size, a GPU at hand that is not there, or weights that are not divided.
    """
    from glmtune.runtime import UserError
    from glmtune.succession import kept_of, look_ahead
    from glmtune.training.placement import assume_lengths, place_of, placement_of

    if devices is not None and devices < 1:
        raise UserError(f"--devices {devices}: at least 1 has to work.")
    model, refused = look_ahead(target, overrides)
    if refused is not None:
        if "method" in refused.sections:
            raise refused
        say(f"{refused} It is not needed for the estimate.", error=True)
    recipe = model.recipe if sharding is None else with_sharding(model.recipe, sharding)
    if devices is None:
        devices = 1 if recipe.training.devices == "all" else recipe.training.devices
    if recipe.training.sharding == "full" and devices == 1 and not recipe.training.cpu_offload:
        raise UserError(
            "training.sharding=full: one device has nobody to share with. Add --devices 2, or more, or "
            "training.cpu_offload=true."
        )
    place = place_of(device, memory, devices)
    lengths = assume_lengths(recipe, model.architecture, length, target_length)
    demand = model.objective.demand(recipe)
    placement = placement_of(recipe, model.architecture, *lengths, place, devices, demand, kept_of(model))
    _ = placement.remedy  # so that what is wrong is told here
    return placement


def with_sharding(recipe: Recipe, sharding: Literal["none", "full"]) -> Recipe:
    """Return a recipe whose weights are divided, or not; where they are not, none are kept in the machine's memory."""
    training = recipe.training
    update = {"sharding": sharding, "cpu_offload": training.cpu_offload and sharding == "full"}
    return recipe.model_copy(update={"training": training.model_copy(update=update)})


def show(placement: Placement, as_json: bool = False) -> None:
    """Print the parts, and whether they fit."""
    if as_json:
        say(to_json(as_dict(placement), indent=2))
        return
    table = lines(placement)
    first, second = (max(len(line[column]) for line in table) for column in (0, 1))
    for part, amount, meaning in table:
        say(f"{part:<{first}}  {amount:>{second}}  {meaning}".rstrip())
    say(verdict(placement))


def as_dict(placement: Placement) -> dict[str, Any]:
    """Return bytes, counts, and whether it fits."""
    e = placement.estimate
    return {
        "model": e.recipe.model.path,
        "method": e.recipe.method.name,
        "device": placement.place.name,
        "memory": placement.place.memory,
        "devices": e.devices,
        "sharding": e.recipe.training.sharding,
        "batch_size": e.batch,
        "length": e.length,
        "target_length": e.target_length,
        "parameters": e.architecture.parameters,
        "active_parameters": e.architecture.active_parameters,
        "trainable": e.trainable.parameters,
        **{part: getattr(e, part) for part in PARTS},
        "inference": e.inference(e.length),
        "disk": e.disk,
        "fits": placement.fits,
        "remedy": placement.remedy[0],
    }


def lines(placement: Placement) -> list[tuple[str, str, str]]:
    """Return (part, size, what it is) for people."""
    from glmtune.training.memory import CONTEXT, LIBRARIES
    from glmtune.training.placement import readable

    e, device = placement.estimate, placement.place.device
    share = e.trainable.parameters / e.architecture.parameters
    moved = "; moves to the CPU when the GPU is full" if e.paged else ""
    recomputed = ", recomputed block by block" if e.recipe.training.gradient_checkpointing else ""
    targets = f"{e.batch} x {e.learned} targets, vocabulary of {e.architecture.vocab_size:,}"
    together = [
        ("host", readable(e.host), "the shares of all these, in the memory of the machine, for each process"),
        ("buckets", readable(e.buckets), "in which the devices exchange gradients"),
        ("gathered", readable(e.gathered), "whole during a step: what is in no block, a block and the next one"),
    ]

    answered = "held-out problems, or prompts that are learned from," if e.demand.rolls_out else "held-out problems"

    def of(whole: int) -> str:
        return f", a share of {readable(whole)}" if e.is_sharded else ""

    begun = "where it begins, " if e.start else ""
    active, family = e.architecture.active_parameters, e.architecture.family
    counted = family if active == e.architecture.parameters else f"{family}; {active:,} of them active for a token"
    return [
        ("parameters", f"{e.architecture.parameters:,}", counted),
        ("trainable", f"{e.trainable.parameters:,}", f"{share:.2%}, {e.recipe.method.name}"),
        ("weights", readable(e.weights), storage_of(e) + of(e.base)),
        *([("reference", readable(e.reference), "a second copy of the base")] if e.reference else []),
        ("adapters", readable(e.adapters), f"fp32{of(e.beside)}"),
        ("gradients", readable(e.gradients), f"fp32{of(4 * e.trainable.parameters)}"),
        ("optimizer", readable(e.optimizer), f"{e.recipe.training.optimizer}{of(e.moments)}{moved}"),
        *(part for part in together if getattr(e, part[0])),
        ("activations", readable(e.activations), f"{e.batch} x {e.longest} tokens{recomputed}"),
        ("logits", readable(e.logits), targets),
        ("peak of a step", readable(e.step), f"with {readable(LIBRARIES[device])} of libraries"),
        ("peak of judging", readable(e.judging), f"{e.recipe.generation.batch_size} {answered} at a time"),
        ("peak", readable(e.peak), f"and {readable(CONTEXT[device])} of its driver's own" if CONTEXT[device] else ""),
        ("inference", readable(e.inference(e.length)), f"batch 1, {e.length} tokens, with what was trained"),
        ("disk", readable(e.disk), f"run folder: {begun}checkpoints and what is saved in the end"),
    ]


def storage_of(e: Estimate) -> str:
    """Return at how many bits which weights are."""
    width = 8 * e.compute
    parts = [f"linear layers at {e.bits if e.bits < 16 else width} bits"]
    if e.recipe.model.quantize_embedding or e.architecture.packed_embedding:
        parts.append(f"embedding at {e.architecture.stored_bits if e.architecture.packed_embedding else 8}")
    experts = any(layer.experts for layer in e.architecture.linears)
    parts.append(f"the rest{', with the experts,' if experts and e.bits < 16 else ''} at {width}")
    return ", ".join(parts) + (", what learns at 32" if e.trainable.in_place and width < 32 else "")


def verdict(placement: Placement) -> str:
    """Return whether it fits, and what would make it fit."""
    from glmtune.training.placement import readable

    place, spare = placement.place, placement.spare
    devices = placement.estimate.devices
    where = f"{f'each of {devices}: ' if devices > 1 else ''}{place.name} ({readable(place.memory)})"
    if placement.fits:
        return f"It fits {where}: {readable(spare)} to spare."
    remedy, smallest = placement.remedy
    if remedy is None:
        return (
            f"It does not fit {where}: {readable(-spare)} too much. With every setting that saves memory it would "
            f"still take {readable(smallest.peak)}: choose a smaller model, or shorter examples (--length)."
        )
    return (
        f"It does not fit {where}: {readable(-spare)} too much. It would with\n  {shlex.join(remedy)}\n"
        f"which takes {readable(smallest.peak)}."
    )
