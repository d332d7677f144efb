"""`glmtune schema`: print the JSON schema of recipes, by which editors complete and check them."""

from __future__ import annotations

import argparse
from typing import Any

from glmtune.terminal import say, to_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where the schema goes."""
    parser.add_argument("--output", metavar="OUT.json", help="write it here instead")


def main(options: argparse.Namespace) -> None:
    """Print or write the schema."""
    show(run(options.output), options)


def run(output: str | None = None) -> dict[str, Any]:
    """Return the schema, with the settings of all tasks, methods and objectives and their meanings.

    Args:
        output: JSON file to write.

    Raises:
        UserError: the file cannot be written.
    """
    from glmtune.config import recipe_schema
    from glmtune.files import write_json

    schema = recipe_schema()
    if output is not None:
        write_json(output, schema)
    return schema


def show(schema: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the schema, or where it is and how an editor finds it."""
    if options.output is None:
        say(to_json(schema, indent=2))
        return
    say(f"Written: {options.output}")
    say(f"Begin a recipe with: # yaml-language-server: $schema={options.output}")
