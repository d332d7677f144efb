"""Verbs that still are to declare themselves in files of their own."""

from __future__ import annotations

import argparse
from types import SimpleNamespace

from glmtune.commands._arguments import TARGET_HELP
from glmtune.runtime import quiet_libraries

SETTINGS_HELP = "settings as section.name=value, e.g. generation.batch_size=8"


def evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="RUN_OR_MODEL", help=TARGET_HELP)
    parser.add_argument("--data", metavar="FILE", help="records of any known format: JSONL, CSV, Parquet, a folder")
    parser.add_argument("--output", metavar="OUT.json", help="write the report here")
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=SETTINGS_HELP)


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="RUN_OR_MODEL", help=TARGET_HELP)
    parser.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="records of any known format: JSONL, CSV, Parquet, a folder",
    )
    parser.add_argument(
        "--output", required=True, metavar="OUT", help="the records again, with completion: .jsonl, .csv or .parquet"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    parser.add_argument("--resume", action="store_true", help="go on with an output that was cut off")
    parser.add_argument(
        "--on-error",
        choices=("stop", "record"),
        default="stop",
        help="at a record that cannot be answered: stop before any is (default), or give it an `error`",
    )
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=SETTINGS_HELP)


def chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="RUN_OR_MODEL", help=TARGET_HELP)
    parser.add_argument("--question", "-q", help="answer this one question and exit")
    parser.add_argument(
        "--history",
        action=argparse.BooleanOptionalAction,
        help="send earlier turns along (default: not for runs, which learned single questions)",
    )
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=SETTINGS_HELP)


def evaluate(options: argparse.Namespace) -> None:
    """Evaluate and print the table."""
    quiet_libraries()
    from rich.console import Console

    from glmtune.commands.evaluate import run
    from glmtune.evaluation.report import comparison_table

    _, report = run(options.target, options.data, options.output, options.settings)
    console = Console()
    console.print(comparison_table(None, report))
    if options.output:
        console.print(f"Written: {options.output}")


def predict(options: argparse.Namespace) -> None:
    """Predict and say how many."""
    quiet_libraries()
    from glmtune.commands.predict import run

    count = run(
        options.target,
        options.input,
        options.output,
        options.settings,
        options.overwrite,
        options.resume,
        options.on_error,
    )
    print(f"{count} records written to {options.output}")


def chat(options: argparse.Namespace) -> None:
    """Talk."""
    quiet_libraries()
    from glmtune.commands.chat import run

    run(options.target, options.question, options.settings, options.history)


PENDING = {
    "evaluate": SimpleNamespace(
        __doc__="`glmtune evaluate`: score a model on held-out examples of its task, or on a file",
        add_arguments=evaluate_arguments,
        main=evaluate,
    ),
    "predict": SimpleNamespace(
        __doc__="`glmtune predict`: answer a file of prompts", add_arguments=predict_arguments, main=predict
    ),
    "chat": SimpleNamespace(
        __doc__="`glmtune chat`: talk to a model in the terminal", add_arguments=chat_arguments, main=chat
    ),
}
