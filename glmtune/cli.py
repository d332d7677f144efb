"""The command line: verbs to commands, results to the terminal. Nothing heavy is imported before a verb is known."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import warnings
from contextlib import suppress
from dataclasses import asdict
from typing import NoReturn

DESCRIPTION = """\
Fine-tune GLM models on a task, prove what they learned, put it to use.

  glmtune train                              the embedded model learns arithmetic (a few minutes on two cores)
  glmtune evaluate runs/arithmetic-lora-1    how good it is, by operator and kind
  glmtune chat runs/arithmetic-lora-1        ask it
"""
TARGET_HELP = "a run folder, an adapter, a checkpoint directory, a hub name, or nano (the embedded model)"
SETTINGS_HELP = "settings as section.name=value, e.g. generation.batch_size=8"


def print_settings(settings: list[str]) -> None:
    """Every setting with its default and meaning, from the settings tree itself; of the task that `settings` name."""
    from glmtune.config import describe_settings, open_sections, with_overrides

    recipe, _, _ = open_sections(with_overrides({}, settings))
    for name, default, meaning in describe_settings(recipe):
        print(f"{name} = {default}\n    {meaning}")
    print("\nThose of other tasks, methods and objectives: add task.name=instructions, method.name=ptuning_v2, ...")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="glmtune", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs (glmtune VERB --help tells more)")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=text, description=text, parents=[common])

    train = verb("train", "fine-tune a model; without arguments, the embedded model on arithmetic with LoRA")
    train.add_argument("recipe", nargs="?", metavar="RECIPE.yaml", help="settings that differ from the defaults")
    train.add_argument("settings", nargs="*", metavar="SETTING", help="e.g. training.steps=500 method.rank=8")
    train.add_argument("--resume", metavar="RUN", help="go on with an interrupted run folder")
    train.add_argument("--help-settings", action="store_true", help="list every setting and exit")

    estimate = verb("estimate", "what a recipe needs of memory and disk, and whether it fits; nothing is loaded")
    estimate.add_argument("recipe", nargs="?", metavar="RECIPE.yaml", help="as for train, or a run folder")
    estimate.add_argument("settings", nargs="*", metavar="SETTING", help="e.g. model.bits=4 training.batch_size=1")
    estimate.add_argument("--memory", metavar="SIZE", help="of a GPU, e.g. 8GB (default: the GPU or CPU at hand)")
    estimate.add_argument(
        "--length", type=int, metavar="N", help="tokens of the longest examples (default: data.max_length, or 128)"
    )
    estimate.add_argument("--target-length", type=int, metavar="N", help="those of them to be learned (default: half)")
    estimate.add_argument("--json", action="store_true", help="print bytes as JSON")

    export = verb("export", "make a whole model of a run, checked against it, for others to use")
    export.add_argument("target", metavar="RUN_OR_MODEL", help=TARGET_HELP)
    export.add_argument(
        "--to",
        choices=("merged", "original", "gguf"),
        default="merged",
        help="transformers' layout (default); the names of ChatGLM-6B's release; or a file for llama.cpp",
    )
    export.add_argument("--output", metavar="PLACE", help="folder or file to write (default: in the run folder)")
    export.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16", "q8_0"),
        default="auto",
        help="precision of the files (default: that of the base); q8_0, of gguf alone: 8.5 bits a number",
    )
    export.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    export.add_argument("--push-to-hub", metavar="NAME/REPOSITORY", help="upload it; nothing is uploaded without this")
    export.add_argument("settings", nargs="*", metavar="SETTING", help=SETTINGS_HELP)

    doctor = verb(
        "doctor", "find what would fail, with a remedy for each: this machine, a recipe, a model, a data file"
    )
    doctor.add_argument(
        "recipe", nargs="?", metavar="TARGET", help=f"RECIPE.yaml, DATA.jsonl, {TARGET_HELP} (default: the machine)"
    )
    doctor.add_argument("settings", nargs="*", metavar="SETTING", help="e.g. model.bits=4 training.batch_size=1")
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON")

    evaluate = verb("evaluate", "score a model on held-out examples of its task, or on a file")
    evaluate.add_argument("target", metavar="RUN_OR_MODEL", help=TARGET_HELP)
    evaluate.add_argument("--data", metavar="FILE", help="records of any known format: JSONL, CSV, Parquet, a folder")
    evaluate.add_argument("--output", metavar="OUT.json", help="write the report here")
    evaluate.add_argument("settings", nargs="*", metavar="SETTING", help=SETTINGS_HELP)

    predict = verb("predict", "answer a file of prompts")
    predict.add_argument("target", metavar="RUN_OR_MODEL", help=TARGET_HELP)
    predict.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="records of any known format: JSONL, CSV, Parquet, a folder",
    )
    predict.add_argument(
        "--output", required=True, metavar="OUT", help="the records again, with completion: .jsonl, .csv or .parquet"
    )
    predict.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    predict.add_argument("--resume", action="store_true", help="go on with an output that was cut off")
    predict.add_argument(
        "--on-error",
        choices=("stop", "record"),
        default="stop",
        help="at a record that cannot be answered: stop before any is (default), or give it an `error`",
    )
    predict.add_argument("settings", nargs="*", metavar="SETTING", help=SETTINGS_HELP)

    chat = verb("chat", "talk to a model in the terminal")
    chat.add_argument("target", metavar="RUN_OR_MODEL", help=TARGET_HELP)
    chat.add_argument("--question", "-q", help="answer this one question and exit")
    chat.add_argument(
        "--history",
        action=argparse.BooleanOptionalAction,
        help="send earlier turns along (default: not for runs, which learned single questions)",
    )
    chat.add_argument("settings", nargs="*", metavar="SETTING", help=SETTINGS_HELP)

    data = verb("data", "write examples of a task to a JSONL file; or inspect files of records: data inspect FILE")
    data.add_argument(
        "task", metavar="TASK", help="a task that `glmtune ls` shows, a path to your own .py file, or `inspect`"
    )
    data.add_argument("--n", type=int, default=1000, help="number of examples (default: 1000)")
    data.add_argument("--output", metavar="OUT", help="file to write: JSONL; of inspect, the report as JSON")
    data.add_argument("--split", choices=("train", "held_out"), default="train", help="default: train")
    data.add_argument("--model", help="inspect: whose tokens and template count (default: nano)")
    data.add_argument("--html", metavar="PAGE.html", help="inspect: write the report as a page, too")
    data.add_argument(
        "settings",
        nargs="*",
        metavar="FILE_OR_SETTING",
        help="e.g. task.digits=5 seed=1; of inspect, files, folders or OWNER/NAME of the hub, and settings such as "
        "data.columns.prompt=FIELD task.held_out_file=FILE data.deduplicate=near data.max_length=512",
    )

    verb("ls", "list tasks, methods, models, recipes and runs")
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments; settings may stand anywhere, also after flags, where argparse itself does not look for them."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    inspects = options.verb == "data" and options.task == "inspect"
    settings = [text for text in rest if ("=" in text or inspects) and not text.startswith("-")]
    if len(settings) < len(rest) or (rest and "settings" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if settings:
        options.settings = [*options.settings, *settings]
    if options.verb == "data" and not inspects:
        if options.output is None:
            parser.error("the following arguments are required: --output")
        if options.model or options.html:
            parser.error("--model and --html belong to glmtune data inspect FILE")
    if options.verb is None and not options.version:
        parser.print_help()
    return options


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line. Exit codes: 0 done, 2 the user can mend it, 130 Ctrl-C."""
    options = parse(arguments)
    if options.version:
        from glmtune import __version__

        print(f"glmtune {__version__}")
    if options.verb is None:
        sys.exit(0)
    try:
        VERBS[options.verb](options)
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        print(f"\nInterrupted. {str(interrupt) or 'What is written stays.'}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has left, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        message = explain(error)
        if options.debug or message is None:
            raise
        print(f"glmtune {options.verb}: {message}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def explain(error: Exception) -> str | None:
    """What to tell the user instead of a traceback; None for what only a developer can mend."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):  # torch's, which may not be there
        return (
            "out of memory. Lower training.batch_size (and raise training.gradient_accumulation_steps as much), set "
            "training.gradient_checkpointing=true, or lower generation.batch_size; or choose a smaller model."
        )
    return str(error) if isinstance(error, ValueError | OSError) else None


def quiet_libraries() -> None:
    """Keep progress bars, advice and announcements of the libraries below out of the way; other warnings stay."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # kernels that it would rather have
    warnings.simplefilter("ignore", FutureWarning)


def recipe_and_settings(options: argparse.Namespace) -> tuple[str | None, list[str]]:
    """The recipe's file, if one was named, and the settings: the first of these may stand in its place."""
    if options.recipe is not None and "=" in options.recipe:
        return None, [options.recipe, *options.settings]
    return options.recipe, list(options.settings)


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
        sample_table(after.examples, before.completions, after.completions, before.scores, after.scores, right)
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


def export(options: argparse.Namespace) -> None:
    """Export and say where it is."""
    quiet_libraries()
    from rich.console import Console

    from glmtune.commands.export import run

    place = run(
        options.target,
        options.to,
        options.output,
        options.settings,
        options.dtype,
        options.overwrite,
        options.push_to_hub,
        Console(),
    )
    print(f"Verified and written: {place}")


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


def data(options: argparse.Namespace) -> None:
    """Write examples, or inspect files."""
    if options.task == "inspect":
        inspect(options)
        return
    from glmtune.commands.data import run

    count = run(options.task, options.n, options.output, options.split, options.settings)
    print(f"{count} examples written to {options.output}")


def inspect(options: argparse.Namespace) -> None:
    """Print what is in files of records; exit code 2 if something is wrong with them."""
    quiet_libraries()
    from rich.console import Console

    from glmtune.commands.inspect import run, show

    settings = [text for text in options.settings if "=" in text and not os.path.exists(text)]
    files = [text for text in options.settings if text not in settings]
    report = run(files, options.output, options.html, options.model, settings)
    console = Console()
    show(report, console)
    for place in filter(None, (options.output, options.html)):
        console.print(f"Written: {place}", highlight=False, soft_wrap=True)
    sys.stdout.flush()
    if report["faults"]:
        sys.exit(2)


def ls(options: argparse.Namespace) -> None:
    """List names."""
    from glmtune.commands.ls import run

    for title, entries in run().items():
        print(f"{title}:")
        width = max(map(len, entries), default=0)
        for name, text in entries.items():
            print(f"  {name:<{width}}  {text}")
        if not entries:
            print("  none yet")


VERBS = {
    "train": train,
    "estimate": estimate,
    "export": export,
    "doctor": doctor,
    "evaluate": evaluate,
    "predict": predict,
    "chat": chat,
    "data": data,
    "ls": ls,
}
