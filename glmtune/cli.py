"""The command line: verbs to commands, errors to messages. Nothing heavy is imported before a verb is known."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from glmtune import __version__, distributed, network, registry
from glmtune.runtime import Terminated
from glmtune.terminal import complain, say, secure, visible

TRY_AGAIN = 75  # EX_TEMPFAIL of <sysexits.h>

DESCRIPTION = """\
Fine-tune GLM models on a task, prove what they learned, put it to use.

  glmtune train                              the embedded model learns arithmetic (a few minutes on two cores)
  glmtune evaluate runs/arithmetic-lora-1    how good it is, by operator and kind
  glmtune chat runs/arithmetic-lora-1        ask it
"""


class Parser(argparse.ArgumentParser):
    """Tells what is wrong with a command line without obeying what is in it."""

    def error(self, message: str) -> NoReturn:
        """End with what is wrong, and exit code 2."""
        super().error(visible(message))


def verbs() -> dict[str, Any]:
    """Return the module of every verb, by name."""
    return {name: importlib.import_module(f"glmtune.commands.{name}") for name in registry.names("glmtune.commands")}


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of the command line, and the parser of each verb, by name."""
    parser = Parser(prog="glmtune", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"glmtune {__version__}")
    group = parser.add_subparsers(metavar="VERB", title="verbs (glmtune VERB --help tells more)")
    parsers: dict[str, Parser] = {}
    for name, module in verbs().items():
        text = summary(module)
        parsers[name] = group.add_parser(name, help=text, description=text)
        parsers[name].add_argument("--debug", action="store_true", help="show the traceback of an error")
        parsers[name].set_defaults(verb=name, main=module.main, parser=parser, fetch=False)
        module.add_arguments(parsers[name])
    return parser, parsers


def summary(module: Any) -> str:
    """Return what a verb does, in a line: the first one of its module, without its name."""
    return (module.__doc__ or "").partition("\n")[0].partition(": ")[2].rstrip(".")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of a command line. Positional arguments may stand before and after flags.

    Raises:
        SystemExit: as argparse does, with a message; after `--help` and `--version`, too.
    """
    parser, parsers = build_parser()
    if not arguments:
        parser.parse_args(["--help"])
    if arguments[0] in parsers:
        return parsers[arguments[0]].parse_intermixed_args(arguments[1:])
    if not arguments[0].startswith("-"):
        parser.error(f"no such verb: {arguments[0]}.{registry.suggest(arguments[0], list(parsers))}")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line.

    Exit codes: 0 done, 2 the user can mend it, 130 Ctrl-C, 143 SIGTERM, 75 SIGTERM to what goes on when it is started
    again, as a training does.
    """
    secure()
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    network.withhold_telemetry()
    code = 0
    try:
        with network.asked_by(arguments, options.fetch), ending_at(signal.SIGTERM):
            code = options.main(options) or 0
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        if distributed.is_first_to_say("interrupted"):
            say(f"\nInterrupted. {str(interrupt) or 'What is written stays.'}", error=True)
        code = (TRY_AGAIN if str(interrupt) else 143) if isinstance(interrupt, Terminated) else 130
    except BrokenPipeError:  # whoever read the output has left, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit:
        raise
    except BaseException as error:  # a library in Rust that gives up raises no Exception
        message = explain(error)
        if options.debug or message is None:
            raise
        if distributed.is_first_to_say(message):
            complain(f"glmtune {options.verb}", message)
        code = 2
    sys.exit(code)


@contextmanager
def ending_at(number: signal.Signals) -> Iterator[None]:
    """End by an exception at a signal while the block runs, so that no halves are left; a training has its own way."""

    def act(_: int, frame: Any) -> None:
        raise Terminated

    try:
        before = signal.signal(number, act)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, before)


def explain(error: BaseException) -> str | None:
    """Return what to tell the user instead of a traceback; None for what only a developer can mend."""
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):  # torch's, which may not be there
        return (
            "out of memory. Lower training.batch_size (and raise training.gradient_accumulation_steps as much), set "
            "training.gradient_checkpointing=true, or lower generation.batch_size; or choose a smaller model."
        )
    if type(error).__name__ == "PanicException":  # whose class cannot be imported
        return (
            f"a library gave up: {error}. A pattern of the tokenizer may be damaged, or made to stop whoever reads "
            "with it. Take the tokenizer's files of the release."
        )
    if distributed.is_loss(error):
        return (
            "another process has ended, or does not answer; why, it said itself, if it could. Go on from the last "
            "checkpoint with: glmtune train --resume RUN"
        )
    return str(error) if isinstance(error, ValueError | OSError) else None
