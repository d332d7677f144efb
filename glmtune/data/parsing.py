"""What a model wrote, read as a message: the inverse of the chat template."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_parsing.response_templates import ResponseTemplate, load_response_template

from glmtune.data.control_tokens import collect_control_tokens, guard, unguard
from glmtune.data.encoding import stop_ids
from glmtune.data.pieces import lead_in, without_lead_in
from glmtune.messages import Message, check_message
from glmtune.models.templates import FOLDER

MOST_SECONDS = 1.0  # that all searches of a response template take in one answer
# Chat templates of others that come without a response template, and a word by which they are known.
_KNOWN = {"<tool_call>\\n<function=": "qwen3.5", '<tool_call>\\n{"name"': "qwen", "<arg_key>": "glm4.5"}


def parse_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int] | str,
    completion: Sequence[int] | str,
    tools: Sequence[Any] = (),
) -> Message:
    """Return what a model wrote as the assistant's message. What cannot be parsed is its content.

    Args:
        tokenizer: with a `response_template`, or a chat template that is known; else the content is the text.
        prompt: what the model was asked, as ids or as text; some templates begin the answer there.
        completion: the ids that the model wrote, by which control tokens are told from text that looks like them; or
            the text alone.
        tools: definitions of the tools that may be called; arguments become what their schemas say.
    """
    template = find_response_template(tokenizer)
    if template is not None:
        text = _write_answer(tokenizer, prompt, completion)
        try:
            bounded: Any = _within_time(template)  # transformers takes it, and says that it takes mappings
            parsed = tokenizer.parse_response(text, bounded, prefix=_write(tokenizer, prompt), tools=list(tools))
            message = check_message(_unguard(parsed))
        except TimeoutError:
            warnings.warn(
                f"A pattern of the tokenizer's response template searched an answer for {MOST_SECONDS:g} s: it is "
                "taken as a text without calls.",
                stacklevel=2,
            )
        except (ValueError, TypeError, LookupError, RecursionError):  # whatever a model writes is an answer
            pass
        else:
            if message["content"] or message.get("tool_calls"):
                return message
    return {"role": "assistant", "content": _read_text(tokenizer, completion)}


def find_response_template(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """Return the response template of a tokenizer; that of a known chat template where it has none of its own."""
    if tokenizer.response_template is not None:
        own = dict(tokenizer.response_template)
        if foreign := set(_tag_patterns(own)) - _tag_patterns_here():
            warnings.warn(
                f"The tokenizer's response template is not used, and answers are texts without calls: the tag_pattern "
                f"{min(foreign)[:80]!r} is none of those that are known to end in time.",
                stacklevel=2,
            )
            return None
        return own
    template = str(tokenizer.chat_template)
    return next((_read_known(name) for word, name in _KNOWN.items() if word in template), None)


@cache
def _read_known(name: str) -> dict[str, Any]:
    template: dict[str, Any] = json.loads((FOLDER / f"{name}.response.json").read_text(encoding="utf-8"))
    return template


def _tag_patterns(template: Any) -> Iterator[str]:
    """Yield the patterns of a response template that transformers searches itself, without a limit of time."""
    if isinstance(template, dict):
        for name, value in template.items():
            if name == "tag_pattern":
                yield str(value)
            else:
                yield from _tag_patterns(value)


@cache
def _tag_patterns_here() -> frozenset[str]:
    files = FOLDER.glob("*.response.json")
    return frozenset(pattern for file in files for pattern in _tag_patterns(json.loads(file.read_text("utf-8"))))


class _Timed:
    """A pattern whose searches raise a TimeoutError when a moment is over. A stranger's may need longer than a life."""

    def __init__(self, pattern: Any, end: float):
        self.pattern, self.end = pattern, end

    def search(self, *arguments: Any, **options: Any) -> Any:
        return self.pattern.search(*arguments, timeout=self.left(), **options)

    def finditer(self, *arguments: Any, **options: Any) -> Any:
        return self.pattern.finditer(*arguments, timeout=self.left(), **options)

    def left(self) -> float:
        if (left := self.end - time.monotonic()) <= 0:
            raise TimeoutError("regex timed out")
        return left


def _within_time(template: dict[str, Any]) -> ResponseTemplate:
    """Return a response template whose patterns are searched for `MOST_SECONDS` from now, all together."""
    end = time.monotonic() + MOST_SECONDS

    def timed(pattern: Any) -> _Timed | None:
        return None if pattern is None else _Timed(pattern, end)

    loaded = load_response_template(template)
    fields = {
        name: replace(field, open_re=timed(field.open_re), close_re=timed(field.close_re))
        for name, field in loaded.fields.items()
    }
    return replace(loaded, fields=fields, start_anchor_re=timed(loaded.start_anchor_re))


def _write(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | str) -> str:
    """Return the text of ids with control tokens by their names, and guards before text that looks like them."""
    if isinstance(ids, str):
        return ids
    controls = collect_control_tokens(tokenizer).tokens
    text = ""
    run: list[int] = []
    for index, name in zip([*ids, None], [*tokenizer.convert_ids_to_tokens(list(ids)), None], strict=True):
        if index is not None and name not in controls:
            run.append(index)
            continue
        text += guard(tokenizer, str(tokenizer.decode(run))) if run else ""
        text += name or ""
        run = []
    return text


def _write_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int] | str, completion: Sequence[int] | str
) -> str:
    """Return the text of an answer, up to the token that ends it, as it stands behind its prompt.

    SentencePiece drops a blank where a text begins, so that an answer is decoded with the text right before it.
    """
    if isinstance(completion, str):
        return completion
    stops = set(stop_ids(tokenizer))
    end = next((place + 1 for place, token in enumerate(completion) if token in stops), len(completion))
    answer = list(completion[:end])
    if isinstance(prompt, str):
        return _write(tokenizer, answer)
    controls = collect_control_tokens(tokenizer).tokens
    names = tokenizer.convert_ids_to_tokens(list(prompt))
    start = next((place + 1 for place in reversed(range(len(names))) if names[place] in controls), 0)
    before, whole = (_write(tokenizer, [*prompt[start:], *ids]) for ids in ([], answer))
    return whole[len(before) :] if whole.startswith(before) else _write(tokenizer, answer)


def _read_text(tokenizer: PreTrainedTokenizerBase, completion: Sequence[int] | str) -> str:
    if isinstance(completion, str):
        return completion
    stops = set(stop_ids(tokenizer))
    end = next((place for place, token in enumerate(completion) if token in stops), len(completion))
    text = str(tokenizer.decode(list(completion[:end]), skip_special_tokens=True))
    return without_lead_in(text, lead_in(tokenizer))


def _unguard(value: Any) -> Any:
    if isinstance(value, dict):
        return {_unguard(key): _unguard(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unguard(inner) for inner in value]
    return unguard(value) if isinstance(value, str) else value
