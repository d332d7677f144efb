"""What a model may call. A tool is a file here, or one of the user's; it knows no model and imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from glmtune import config, registry
from glmtune.messages import Message


class ToolError(Exception):
    """Why a tool has no result; its text is told to the model."""


class ToolArguments(BaseModel):
    """Base of what a tool is called with. The fields' types and descriptions are the tool's JSON schema."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Tool(ABC):
    """Base of all tools. One file in this folder, or one of the user's, defines one subclass.

    Attributes:
        name: by which models call it.
        description: tells a model what it does, and when to call it.
        Arguments: what it is called with.
        Settings: how it works, whoever calls it.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    Arguments: ClassVar[type[ToolArguments]] = ToolArguments
    Settings: ClassVar[type[config.Settings]] = config.Settings

    def __init__(self, settings: config.Settings | None = None) -> None:
        self.settings = self.Settings() if settings is None else settings

    @abstractmethod
    def run(self, arguments: Mapping[str, Any]) -> str:
        """Return the result for a model.

        Args:
            arguments: as `Arguments` has them.

        Raises:
            ToolError: there is none.
        """

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of the arguments."""
        schema = self.Arguments.model_json_schema()
        properties = {
            name: {key: value for key, value in field.items() if key != "title"}
            for name, field in schema["properties"].items()
        }
        return {"type": "object", "properties": properties, "required": schema.get("required", [])}

    def definition(self) -> dict[str, Any]:
        """Return the tool as OpenAI's API and chat templates describe one."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    def answer(self, arguments: Mapping[str, Any]) -> str:
        """Check the arguments and return the result; or, as `error: ...`, what is wrong, for the model to read."""
        try:
            return self.run(self.Arguments.model_validate(arguments).model_dump())
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
            return f"error: {'; '.join(faults)}"
        except ToolError as error:
            return f"error: {error}"


BASE = Tool


def answer_call(tools: Sequence[Tool], call: Mapping[str, Any]) -> Message:
    """Return the message in which a tool answers; where nobody offers the tool that is called, it says so.

    Args:
        tools: those that are offered.
        call: an entry of a message's `tool_calls`.
    """
    by_name = {tool.name: tool for tool in tools}
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if name in by_name:
        text = by_name[name].answer(arguments)
    else:
        text = f"error: there is no tool '{name}'.{registry.suggest(name, list(by_name))}"
    identity = {"tool_call_id": call["id"]} if "id" in call else {}
    return {"role": "tool", "name": name, **identity, "content": text}
