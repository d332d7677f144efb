"""Tokens in the terminal: the learned ones in colour, or in brackets where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

    from glmtune.terminal.console import Console

LEARNED, CONTROL = "black on green", "dim"  # how tokens look
OPEN, CLOSE = "\u27e6", "\u27e7"  # around what is learned, where there are no colours


def has_colours(console: Console) -> bool:
    """Return whether a console shows colours: not in pipes and files, nor where NO_COLOR is set."""
    return console.is_terminal and console.color_system is not None and not console.no_color


def explain_marks(console: Console) -> str:
    """Return how learned tokens are told from the others."""
    return "learned is what is coloured" if has_colours(console) else f"learned is what stands in {OPEN} {CLOSE}"


def mark_tokens(tokens: Iterable[Sequence[Any]], console: Console) -> Text:
    """Return tokens as a text with the learned ones marked.

    Args:
        tokens: (text, learned, control) of each.
        console: where they are shown.
    """
    from rich.text import Text

    from glmtune.inspection.summary import mark_breaks

    text, colours = Text(), has_colours(console)
    for learned, group in groupby(tokens, key=lambda token: bool(token[1])):
        text.append(OPEN if learned and not colours else "")
        for piece, _, control in group:
            text.append(mark_breaks(piece), (LEARNED if learned else CONTROL if control else "") if colours else "")
        text.append(CLOSE if learned and not colours else "")
    return text
