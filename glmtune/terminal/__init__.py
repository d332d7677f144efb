"""What reaches a terminal: the one way to it, on which nothing in a text can be a command to the terminal.

What a model writes, and names in files of strangers, may hold control sequences that move the cursor, hide text or fill
the clipboard, and characters that turn the direction of a line around. Whatever is printed goes through `visible`, by
`say` or by the tables of `glmtune.terminal.console`; what the libraries below and Python itself print, by `secure`.
This imports nothing of glmtune.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import traceback
import warnings
from types import TracebackType
from typing import Any

# Control characters but for line breaks and tabs, what turns the direction of text, what takes no room, halves of
# characters. Joiners (U+200C, U+200D) stay: Persian and emoji are written with them.
_HIDDEN = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff"
    "\\ufff9-\\ufffb\\U0001d173-\\U0001d17a\\U000e0000-\\U000e007f\\ud800-\\udfff]"
)
_AT_THE_MARGIN = re.compile(r"\n(?=\S)")


def visible(text: str) -> str:
    r"""Return a text with its hidden characters as Python writes them, ESC as `\x1b`; line breaks and tabs stay."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def to_json(value: Any, indent: int | None = None, default: Any = None) -> str:
    """Return JSON for people and programs: characters as they are, the hidden ones escaped, so that the value is equal.

    Args:
        value: anything that JSON has a form for.
        indent: blanks of a level; None: all on one line.
        default: makes something else of what JSON has no form for.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=default)
    return _HIDDEN.sub(lambda found: json.dumps(found[0])[1:-1], text)


def counted(number: int, noun: str) -> str:
    """Return a number with what it counts: `1 record`, `2,000 records`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def say(text: str = "", end: str = "\n", error: bool = False) -> None:
    """Print a text, or a piece of one, at once.

    Args:
        text: whatever it holds, it is shown and not obeyed.
        end: what follows it.
        error: print it to stderr.
    """
    print(visible(text), end=end, file=sys.stderr if error else sys.stdout, flush=True)


def relay(text: str, error: bool = False) -> None:
    """Print what another process printed for this one, at once: shown and not obeyed, but for bars that move on.

    Args:
        text: of that process.
        error: print it to stderr.
    """
    shown = "\r".join(map(visible, text.split("\r")))
    print(shown, end="", file=sys.stderr if error else sys.stdout, flush=True)


def at_terminal() -> bool:
    """Return whether there is somebody to ask."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def confirm(question: str) -> bool:
    """Ask a question at the terminal; nothing but yes is yes."""
    say(f"{question} [y/N] ", end="", error=True)
    return sys.stdin.readline().strip().casefold() in ("y", "yes")


def complain(who: str, message: str) -> None:
    """Print what is wrong to stderr; no line of it but the first begins at the margin, where another program's would.

    Args:
        who: says it.
        message: a line, or several.
    """
    say(f"{who}: {_AT_THE_MARGIN.sub(chr(10) + '  ', message)}", error=True)


def secure() -> None:
    """Show hidden characters in what others print, too: warnings, records of logs, tracebacks.

    What the terminal's encoding lacks is escaped instead of ending the program.
    """
    logging.setLogRecordFactory(_VisibleRecord)
    warnings.formatwarning = _format_warning
    sys.excepthook = _print_traceback
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _VisibleRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return visible(super().getMessage())


_format_plainly = warnings.formatwarning


def _format_warning(*arguments: Any, **options: Any) -> str:
    return visible(_format_plainly(*arguments, **options))


def _print_traceback(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    say("".join(traceback.format_exception(kind, error, where)), end="", error=True)
