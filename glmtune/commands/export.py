"""`glmtune export`: make a whole model of a run, checked against it, for others to use."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from glmtune.commands._arguments import add_settings, add_target, add_trust, trust_of
from glmtune.terminal import say
from glmtune.trust import REMEMBERED, Trust

if TYPE_CHECKING:
    from glmtune.exports.destination import Layout, Precision
    from glmtune.resolution import Target
    from glmtune.terminal.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, the layout and precision of the export, and where it goes."""
    add_target(parser)
    parser.add_argument(
        "--to",
        choices=("merged", "original", "gguf"),
        default="merged",
        help="transformers' layout (default); the names of ChatGLM-6B's release; or a file for llama.cpp",
    )
    parser.add_argument("--output", metavar="PLACE", help="folder or file to write (default: in the run folder)")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16", "q8_0", "q4_0", "q4_k_m"),
        default="auto",
        help="precision of the files (default: that of the base); of gguf alone: q8_0, q4_0, q4_k_m, of 8.5, 4.5 and "
        "about 4.9 bits a number",
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=(16, 8, 4),
        default=16,
        help="store the linear layers of --to merged at 8 or 4 bits: small files, which are loaded as they are",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    parser.add_argument("--push-to-hub", metavar="NAME/REPOSITORY", help="upload it; nothing is uploaded without this")
    add_trust(parser)
    add_settings(parser)


def main(options: argparse.Namespace) -> None:
    """Export and say where it is."""
    from glmtune.libraries import quiet_libraries
    from glmtune.terminal.console import Console

    quiet_libraries()
    place = run(
        options.target,
        options.to,
        options.output,
        options.settings,
        options.dtype,
        options.overwrite,
        options.push_to_hub,
        Console(),
        trust_of(options),
        options.bits,
    )
    show(place)


def run(
    target: Target,
    to: Layout = "merged",
    output: str | None = None,
    overrides: Iterable[str] = (),
    precision: Precision = "auto",
    overwrite: bool = False,
    push: str | None = None,
    console: Console | None = None,
    trust: Trust = REMEMBERED,
    bits: int = 16,
) -> Path:
    """Export a model, and publish it only if it is the one that was trained.

    Args:
        target: run folder, adapter, checkpoint directory, GGUF file, hub name or `nano`.
        to: `merged`: transformers' layout; `original`: the release's, of ChatGLM-6B; `gguf`: a file for llama.cpp.
        output: folder or, of gguf, file to write; default: in the run folder, under the name of the layout.
        overrides: `section.setting=value` texts; `evaluation.num_examples_during` problems are asked.
        precision: of the files; auto: that of the base.
        overwrite: replace an output that is there already.
        push: hub repository to upload to; never without.
        console: where to print.
        trust: what becomes of code that the target's recipe names.
        bits: at which linear layers are stored; below 16 of `merged` alone.

    Returns:
        Where it is.

    Raises:
        UserError: it cannot be had in this form, the disk is full, or the exported model answers otherwise; then
            nothing is written.
    """
    from glmtune.exports.destination import choose_destination
    from glmtune.resolution import resolve
    from glmtune.terminal.console import Console

    console = console or Console(stderr=True)
    origin = resolve(target, overrides, trust)
    place = choose_destination(origin, to, output, overwrite, precision)

    # They import torch, which is not needed to find out what is there.
    from glmtune.exports.exporting import check_disk, export_checked, few_held_out, refuse
    from glmtune.exports.upload import upload

    refuse(origin, to, precision, bits)
    check_disk(place, origin, precision, copies=2 if to == "gguf" else 1)
    examples = few_held_out(origin)
    try:
        export_checked(origin, to, place, precision, examples, console, bits)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Nothing was exported.") from None
    if push is not None:
        upload(place, push)
    return place


def show(place: Path) -> None:
    """Print where the export is, and how others serve it."""
    from glmtune.models.checkpoint import read_json
    from glmtune.models.families import family_of

    say(f"Verified and written: {place}")
    config = read_json(place / "config.json") if (place / "config.json").is_file() else {}
    if config and not family_of(config).own_classes and "quantization_config" not in config:
        say(f"By vLLM: vllm serve {shlex.quote(str(place))} --served-model-name {shlex.quote(place.name)}")
    if config:
        say(f"Here: glmtune serve {shlex.quote(str(place))}")
