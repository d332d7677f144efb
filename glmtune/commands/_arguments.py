"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glmtune.cluster import Cluster
    from glmtune.trust import Trust

TARGET_HELP = "a run folder, an adapter, a checkpoint directory, a GGUF file, a hub name, or nano (the embedded model)"


def add_target(parser: argparse.ArgumentParser) -> None:
    """Declare the model that a verb works on."""
    parser.add_argument("target", metavar="RUN_OR_MODEL", help=TARGET_HELP)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Declare that code may run which only files name; `trust_of` reads it."""
    parser.add_argument(
        "--trust-code", action="store_true", help="run .py files that a run or recipe names, without a question"
    )


def trust_of(options: argparse.Namespace, remembers: bool = False) -> Trust:
    """Return what becomes of code that files name: where nothing else was said, whoever sits at a terminal is asked.

    Args:
        options: of the command line.
        remembers: what is typed in this command is run later without a question.
    """
    from glmtune.terminal import at_terminal
    from glmtune.trust import Trust

    return Trust(everything=options.trust_code, asks=at_terminal(), remembers=remembers)


def add_ray(parser: argparse.ArgumentParser, act: str = "answer") -> None:
    """Declare who acts on several machines; `cluster_of` reads it."""
    parser.add_argument(
        "--ray", action="store_true", help=f"let the workers of a Ray cluster {act}, or of this machine"
    )
    parser.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="of the cluster (default: RAY_ADDRESS, the one this machine is a node of, or one that is started here)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="how many hold the model (default: one a GPU, or else one a node)"
    )


def cluster_of(options: argparse.Namespace) -> Cluster | None:
    """Return whose workers act; None where this process does.

    Raises:
        UserError: a cluster is described that is not to be asked.
    """
    if options.ray:
        from glmtune.cluster import Cluster

        return Cluster(options.ray_address, options.workers)
    for flag, value in (("--ray-address", options.ray_address), ("--workers", options.workers)):
        if value is not None:
            from glmtune.runtime import UserError

            raise UserError(f"{flag} {value}: is said of a Ray cluster. Add --ray, or leave it out.")
    return None


def add_recipe(parser: argparse.ArgumentParser, text: str, example: str, metavar: str = "RECIPE.yaml") -> None:
    """Declare a recipe and settings that override it; `recipe_and_settings` reads them."""
    parser.add_argument("recipe", nargs="?", metavar=metavar, help=text)
    add_settings(parser, example)


def add_settings(parser: argparse.ArgumentParser, example: str = "generation.batch_size=8") -> None:
    """Declare the settings, which may stand anywhere among the other arguments."""
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=f"section.name=value, e.g. {example}")
    add_fetch(parser)


def add_fetch(parser: argparse.ArgumentParser) -> None:
    """Declare what may be asked of the network."""
    parser.add_argument(
        "--fetch",
        action="store_true",
        help="fetch from the hub what only a file names, such as the base of an adapter, without asking first",
    )


def recipe_and_settings(options: argparse.Namespace) -> tuple[str | None, list[str]]:
    """Return the recipe's file, if one was named, and the settings: the first of these may stand in its place."""
    if options.recipe is not None and "=" in options.recipe:
        return None, [options.recipe, *options.settings]
    return options.recipe, list(options.settings)
