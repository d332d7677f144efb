"""One form of message: that of OpenAI's API and of transformers' chat templates.

`{"role": "user", "content": "1+1="}`. Roles are `system`, `user`, `assistant` and `tool`. `content` is a text, a list
of parts (`{"type": "text", "text": ...}`, `{"type": "image", ...}`), or None beside calls. An assistant's message may
have `tool_calls`; a `tool` message answers one of them. How calls are written as text belongs to the chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]
Prompt: TypeAlias = str | list[Message]  # a text is one user message


def as_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """Return messages; a text becomes one user message."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def text_in(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Return the text of a message's content: of parts, those of type `text`, joined."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(str(part["text"]) for part in content if part.get("type") == "text")


def make_tool_call(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of `tool_calls`; `arguments` are a mapping, not JSON, as transformers' templates take them."""
    return {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}
