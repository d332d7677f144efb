"""What the tests of models and templates share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from glmtune.messages import Message, make_tool_call


@pytest.fixture(scope="session")
def in_the_one_form() -> Callable[[dict[str, Any]], Message]:
    """From a turn of ChatGLM3-6B's own form to a message."""
    return to_message


def to_message(turn: dict[str, Any]) -> Message:
    """A turn of ChatGLM3-6B's own form: a tool says an `observation`, and `metadata` names a tool that is called."""
    role = {"observation": "tool"}.get(turn["role"], turn["role"])
    if not turn.get("metadata"):
        return {"role": role, "content": turn["content"]}
    code = turn["content"].partition("tool_call(")[2].partition(")")[0]
    arguments = {key: value.strip("'") for key, value in (pair.split("=") for pair in code.split(", "))}
    return {"role": role, "content": None, "tool_calls": [make_tool_call(turn["metadata"], arguments)]}
