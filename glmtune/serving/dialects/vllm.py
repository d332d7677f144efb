"""vLLM's bodies beside OpenAI's: tokens of texts, and adapters."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from glmtune.serving.asking import Asked, Limits, RefusedError, ServedModel
from glmtune.serving.dialects.bodies import RequestBody, check_conversation
from glmtune.serving.dialects.completions import TokenId
from glmtune.serving.dialects.openai import ChatMessage, FunctionTool
from glmtune.serving.dialects.sampling import Text
from glmtune.serving.dialects.unsupported import ADAPTER, TOKENIZE


class TokenizeBody(RequestBody):
    """The body of `/tokenize`: a text, or messages that the template is put around."""

    unsupported = TOKENIZE
    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    tools: list[FunctionTool] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    def asked(self, limits: Limits) -> Asked:
        """Return what would be asked.

        Raises:
            RefusedError: there is neither text nor messages, or both.
        """
        if (self.prompt is None) == (self.messages is None):
            raise RefusedError("give either `prompt` or `messages`", field="prompt")
        is_raw = self.messages is None
        if self.add_special_tokens not in (None, is_raw):
            others = "as the tokenizer puts them" if is_raw else "those of the template alone"
            raise RefusedError(f"there are {others}. Leave it out", field="add_special_tokens")
        if is_raw and self.tools:
            raise RefusedError("goes with `messages`", field="tools")
        prompt: Any = self.prompt
        if self.messages is not None:
            prompt = check_conversation([message.plain() for message in self.messages], limits)
        tools = [tool.definition() for tool in self.tools or ()]
        return Asked(self.model, prompt, is_raw, tools=tools)


class DetokenizeBody(RequestBody):
    """The body of `/detokenize`."""

    model: str | None = None
    tokens: list[TokenId]


class LoadAdapterBody(RequestBody):
    """The body of `/v1/load_lora_adapter`."""

    unsupported = ADAPTER
    lora_name: Text
    lora_path: Text


class UnloadAdapterBody(RequestBody):
    """The body of `/v1/unload_lora_adapter`."""

    unsupported = ADAPTER
    lora_name: Text


def model_entry(model: ServedModel) -> dict[str, Any]:
    """Return a model as `/v1/models` lists it."""
    same = {name: getattr(model, name) for name in ("created", "root", "parent", "max_model_len")}
    return {"id": model.name, "object": "model", "owned_by": "glmtune", **same}
