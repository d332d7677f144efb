"""Tables and styles in the terminal, by rich."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import console
from rich.segment import Segment
from rich.text import Text

from glmtune.terminal import visible


class Console(console.Console):
    """rich's console for texts of any origin: none of them is markup or the name of an emoji, or moves the cursor.

    What is to have a style is a `Text`, or is printed with `style`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text to be laid out, its hidden characters shown."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: console.RenderableType, options: console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield what is written of anything, its hidden characters shown but for rich's own control codes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
