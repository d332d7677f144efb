"""What OpenAI's two dialects have in common, with what vLLM adds to them: sampling, and what an answer must be."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from glmtune.serving.asking import Format, Limits, RefusedError
from glmtune.serving.dialects.bodies import Body, RequestBody, check_count
from glmtune.serving.dialects.unsupported import STREAM_OPTIONS, STRUCTURED

MOST_TOKENS = 2**31 - 1
Text = Annotated[str, StringConstraints(min_length=1)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Positive = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Share = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class StreamOptions(Body):
    """What a stream tells beside the answers."""

    unsupported = STREAM_OPTIONS
    include_usage: bool | None = None


class StructuredOutputs(Body):
    """What an answer must be, as vLLM names it; one of them. A grammar is in Lark's notation."""

    unsupported = STRUCTURED
    schema_: dict[str, Any] | str | bool | None = Field(None, alias="json")
    regex: Text | None = None
    grammar: Text | None = None
    choice: list[Text] | None = Field(None, min_length=1)
    json_object: bool | None = None

    def formats(self, prefix: str) -> list[Format]:
        """Return what is asked for.

        Args:
            prefix: of the fields' names.
        """
        found: dict[str, tuple[Any, Any] | None] = {
            "json": None if self.schema_ is None else ("json_schema", _schema(self.schema_, f"{prefix}json")),
            "regex": ("regex", self.regex) if self.regex else None,
            "grammar": ("grammar", self.grammar) if self.grammar else None,
            "choice": ("choice", self.choice) if self.choice else None,
            "json_object": ("json_object", None) if self.json_object else None,
        }
        return [Format(what[0], what[1], prefix + name) for name, what in found.items() if what]


def _schema(given: Any, field: str) -> Any:
    try:
        return json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        raise RefusedError("must be a JSON schema, or the text of one", field=field) from None


class SamplingBody(RequestBody):
    """What both of OpenAI's dialects take."""

    model: str | None = None
    max_tokens: Positive | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Positive | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Seed | None = None
    stop: StopText | list[StopText] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: Text | None = None
    guided_grammar: Text | None = None
    guided_choice: list[Text] | None = Field(None, min_length=1)

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with how many tokens there were."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, limits: Limits) -> dict[str, Any]:
        """Return the fields of `Asked` that both dialects have.

        Raises:
            RefusedError: some are beyond the limits, or do not go together.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        check_count(stop, limits.stop, "stop")
        if self.n is not None and self.n > limits.n:
            raise RefusedError(f"{self.n:,} answers; at most {limits.n} are given", field="n")
        if self.stream_options is not None and not self.stream:
            raise RefusedError("is for streams. Set `stream` to true, or leave it out", field="stream_options")
        names = ("model", "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty")
        same = {name: getattr(self, name) for name in (*names, "frequency_penalty", "seed", "max_tokens")}
        return {**same, "n": self.n or 1, "stop": tuple(stop)}

    def formats(self) -> list[Format]:
        """Return what an answer must be, by each field that says so."""
        structured = self.structured_outputs.formats("structured_outputs.") if self.structured_outputs else []
        older = StructuredOutputs(
            json=self.guided_json, regex=self.guided_regex, grammar=self.guided_grammar, choice=self.guided_choice
        )
        return [*structured, *older.formats("guided_")]


def only_one(formats: list[Format]) -> Format | None:
    """Return the one thing that an answer must be.

    Raises:
        RefusedError: there are several.
    """
    if len(formats) > 1:
        raise RefusedError(f"does not go together with `{formats[0].field}`: leave one out", field=formats[1].field)
    return formats[0] if formats else None
