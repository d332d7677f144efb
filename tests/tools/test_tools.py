"""A tool is one file: found by its name, described by its arguments, and never a reason to fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from glmtune import registry
from glmtune.messages import make_tool_call
from glmtune.tools import Tool, answer_call
from glmtune.tools.calculator import Calculator

OWN = """
from pydantic import Field

from glmtune.config import Settings
from glmtune.tools import Tool, ToolArguments, ToolError


class RollArguments(ToolArguments):
    sides: int = Field(ge=2, description="sides of the die")
    times: int = 1


class RollSettings(Settings):
    lucky: bool = False


class Roll(Tool):
    name = "roll"
    description = "Roll a die."
    Arguments = RollArguments
    Settings = RollSettings

    def run(self, arguments):
        if arguments["sides"] == 13:
            raise ToolError("that brings bad luck")
        return str((arguments["sides"] if self.settings.lucky else 1) * arguments["times"])
"""


@pytest.fixture
def own(tmp_path: Path) -> type[Tool]:
    """A tool in a file of the user's."""
    file = tmp_path / "roll.py"
    file.write_text(OWN)
    found: type[Tool] = registry.find("glmtune.tools", str(file))
    return found


def test_a_file_is_a_tool(own: type[Tool]) -> None:
    assert registry.find("glmtune.tools", "calculator") is Calculator
    assert own().run({"sides": 6, "times": 2}) == "2"
    assert own(own.Settings(lucky=True)).run({"sides": 6, "times": 2}) == "12"  # type: ignore[call-arg]


def test_its_arguments_describe_it(own: type[Tool]) -> None:
    assert own().definition() == {
        "type": "function",
        "function": {
            "name": "roll",
            "description": "Roll a die.",
            "parameters": {
                "type": "object",
                "properties": {
                    "sides": {"type": "integer", "minimum": 2, "description": "sides of the die"},
                    "times": {"type": "integer", "default": 1},
                },
                "required": ["sides"],
            },
        },
    }


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"sides": 6}, "1"),
        ({"sides": 6, "times": 3}, "3"),
        ({"sides": 13}, "error: that brings bad luck"),
        ({}, "error: sides: Field required"),
        ({"sides": "6"}, "error: sides: Input should be a valid integer"),
        ({"sides": 1, "more": 2}, "error: sides: Input should be greater than or equal to 2; more: Extra inputs .*"),
    ],
)
def test_arguments_are_checked(own: type[Tool], arguments: dict[str, object], answer: str) -> None:
    """What is wrong is said to the model."""
    assert re.fullmatch(answer, own().answer(arguments))


def test_calls_find_their_tool(own: type[Tool]) -> None:
    tools = [Calculator(), own()]
    assert answer_call(tools, make_tool_call("roll", {"sides": 6}))["content"] == "1"
    call = {"id": "c1", **make_tool_call("calculate", {"expression": "6*7"})}
    assert answer_call(tools, call) == {"role": "tool", "name": "calculate", "tool_call_id": "c1", "content": "42"}
    other = answer_call(tools, make_tool_call("calculator", {"expression": "6*7"}))
    assert other["content"] == "error: there is no tool 'calculator'. Did you mean 'calculate'? Known: calculate, roll."
