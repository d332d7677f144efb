# ruff: noqa: E501
"""Verbs that still are to declare themselves in files of their own."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from contextlib import suppress
from dataclasses import asdict
from types import SimpleNamespace

from glmtune.commands._arguments import TARGET_HELP, recipe_and_settings
from glmtune.runtime import quiet_libraries

SETTINGS_HELP = "settings as section.name=value, e.g. generation.batch_size=8"


def print_settings(settings: list[str]) -> None:
    """Every setting with its default and meaning, from the settings tree itself; of the task that `settings` name."""
    from glmtune.config import describe_settings, open_sections, with_overrides

    recipe, _, _ = open_sections(with_overrides({}, settings))
    for name, default, meaning in describe_settings(recipe):
        print(f"{name} = {default}\n    {meaning}")
    print("\nThose of other tasks, methods and objectives: add task.name=instructions, method.name=ptuning_v2, ...")


def train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", metavar="RECIPE.yaml", help="settings that differ from the defaults")
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="e.g. training.steps=500 method.rank=8")
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run folder")
    parser.add_argument("--help-settings", action="store_true", help="list every setting and exit")


def estimate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", metavar="RECIPE.yaml", help="as for train, or a run folder")
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="e.g. model.bits=4 training.batch_size=1")
    parser.add_argument("--memory", metavar="SIZE", help="of a GPU, e.g. 8GB (default: the GPU or CPU at hand)")
    parser.add_argument(
        "--length", type=int, metavar="N", help="tokens of the longest examples (default: data.max_length, or 128)"
    )
    parser.add_argument("--target-length", type=int, metavar="N", help="those of them to be learned (default: half)")
    parser.add_argument("--json", action="store_true", help="print bytes as JSON")


def doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", nargs="?", metavar="TARGET", help=f"RECIPE.yaml, DATA.jsonl, {TARGET_HELP} (default: the machine)"
    )
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="e.g. model.bits=4 training.batch_size=1")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


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


def train(options: argparse.Namespace) -> None:
    """Train, then show what was learned and what to do next."""
    recipe, settings = recipe_and_settings(options)
    if options.help_settings:
        print_settings(settings)
        return
    quiet_libraries()
    from rich.console import Console

    from glmtune.commands.train import run
    from glmtune.evaluation.report import comparison_table, sample_table

    console = Console()
    done = run(recipe, settings, options.resume, console)
    before, after, folder = done.before, done.after, done.folder.path
    console.print(comparison_table(done.report["before"], done.report["after"]))
    right = [done.task.score(example, example.target).answer or example.target for example in after.examples]
    console.print(
        sample_table(
            after.examples,
            before.completions,
            after.completions,
            before.scores,
            after.scores,
            right,
            axes=done.task.axes,
        )
    )
    console.print(f"Run folder: [bold]{folder}[/]; report.html tells what was learned, as a page", soft_wrap=True)
    console.print("Next:")
    program = sys.argv[0]  # .venv/bin/glmtune where no venv is active
    if shutil.which("glmtune"):
        program = "glmtune"
    elif program.endswith(".py"):
        program = "python -m glmtune"
    quoted = shlex.quote(str(folder))
    for command in (
        f"evaluate {quoted}",
        f"chat {quoted}",
        "train task.name=instructions task.file=YOURS.jsonl",
    ):
        console.print(f"  {program} {command}", highlight=False, soft_wrap=True)


def estimate(options: argparse.Namespace) -> None:
    """Print the parts, and whether they fit."""
    from glmtune.commands.estimate import lines, run, verdict

    answer = run(*recipe_and_settings(options), options.memory, options.length, options.target_length)
    if options.json:
        print(json.dumps(answer.as_dict(), indent=2))
        return
    table = lines(answer)
    first, second = (max(len(line[column]) for line in table) for column in (0, 1))
    for part, amount, meaning in table:
        print(f"{part:<{first}}  {amount:>{second}}  {meaning}".rstrip())
    print(verdict(answer))


def doctor(options: argparse.Namespace) -> None:
    """Print the checks; exit code 2 if something would fail."""
    target, settings = recipe_and_settings(options)
    if target or settings:
        with suppress(ImportError):  # of which the doctor will tell
            quiet_libraries()
    from glmtune.commands.doctor import run

    checks = run(target, settings)
    failures = [check for check in checks if check.status == "failure"]
    if options.json:
        print(json.dumps({"checks": [asdict(check) for check in checks], "ok": not failures}, indent=2))
    else:
        words = {"ok": "ok", "warning": "warning", "failure": "FAILS"}
        for check in checks:
            print(f"{words[check.status]:<8} {check.name}: {check.finding}")
            if check.remedy:
                print(f"{'':<8} {check.remedy}")
        print(f"{len(failures)} of {len(checks)} checks fail." if failures else "Nothing here would fail.")
    sys.stdout.flush()
    if failures:
        sys.exit(2)


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
    "train": SimpleNamespace(
        __doc__="`glmtune train`: fine-tune a model; without arguments, the embedded model on arithmetic with LoRA",
        add_arguments=train_arguments,
        main=train,
    ),
    "estimate": SimpleNamespace(
        __doc__="`glmtune estimate`: what a recipe needs of memory and disk, and whether it fits; nothing is loaded",
        add_arguments=estimate_arguments,
        main=estimate,
    ),
    "doctor": SimpleNamespace(
        __doc__="`glmtune doctor`: find what would fail, with a remedy for each: this machine, a recipe, a model, a data file",
        add_arguments=doctor_arguments,
        main=doctor,
    ),
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
