"""An answer that must be a call of a tool, in the form that the model's own template gives calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from glmtune.data.rendering import render_text
from glmtune.inference.completion import Matcher
from glmtune.inference.constraints.grammars import compile_grammar, put_behind, read_grammar
from glmtune.inference.constraints.matching import GrammarConstraint, GrammarMatcher
from glmtune.inference.constraints.vocabulary import Vocabulary
from glmtune.messages import Message, make_tool_call
from glmtune.runtime import UserError

SIGN = "arguments_stand_here"
_SIGN = re.compile(rf'\{{\s*"{SIGN}"\s*:\s*"{SIGN}"\s*\}}')
QUESTION: Message = {"role": "user", "content": "?"}


@dataclass(frozen=True)
class CallConstraint:
    """One call of one of some tools.

    Attributes:
        before, after: token ids around the arguments, by the tool's name.
        arguments: what they must be, by the tool's name.
        stops: tokens that end an answer.
    """

    before: Mapping[str, Sequence[int]]
    after: Mapping[str, Sequence[int]]
    arguments: Mapping[str, GrammarConstraint]
    stops: Sequence[int]

    def matcher(self) -> Matcher:
        """Return a matcher at the beginning of an answer."""
        return CallMatcher(self)


class CallMatcher:
    """How far an answer has come as a call: its tool, then the arguments, then the end."""

    def __init__(self, constraint: CallConstraint) -> None:
        self.constraint = constraint
        self.written: list[int] = []
        self.arguments: GrammarMatcher | None = None
        self.following: list[int] | None = None  # once the arguments are whole

    @property
    def fault(self) -> str | None:
        """Why the answer ends before it is a call; None where it does not."""
        return self.arguments.fault if self.arguments is not None else None

    def allowed(self) -> Tensor:
        """Return (V,) bool: which tokens may be next."""
        if self.following is not None:
            return self._only(self.following[:1] or self.constraint.stops)
        if self.arguments is not None:
            return self.arguments.allowed() & ~self._only(self.constraint.stops)
        place = len(self.written)
        return self._only([ids[place] for ids in self._open().values()])

    def advance(self, token_id: int) -> None:
        """Go on with the next token of the answer."""
        if self.following is not None:
            self.following = self.following[1:]
            return
        if self.arguments is not None:
            self.arguments.advance(token_id)
        else:
            self.written.append(token_id)
        self._look()

    def _look(self) -> None:
        """See whether the tool is known now, or its arguments are whole."""
        constraint = self.constraint
        name = next((name for name, ids in self._open().items() if list(ids) == self.written), None)
        if name is None:
            return
        if self.arguments is None:
            form = constraint.arguments[name]
            self.arguments = GrammarMatcher(form, form.start.deep_copy(), (), None)
        elif not (self.arguments.allowed() & ~self._only(constraint.stops)).any():
            self.following = list(constraint.after[name])

    def _open(self) -> Mapping[str, Sequence[int]]:
        """What stands before the arguments of the tools that it may still be."""
        count = len(self.written)
        return {name: ids for name, ids in self.constraint.before.items() if list(ids[:count]) == self.written}

    def _only(self, token_ids: Sequence[int]) -> Tensor:
        allowed = torch.zeros(next(iter(self.constraint.arguments.values())).size, dtype=torch.bool)
        allowed[list(token_ids)] = True
        return allowed


def make_call_constraint(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, stops: Sequence[int], tools: Sequence[dict[str, Any]]
) -> CallConstraint:
    """Return the constraint by which every finished answer calls one of some tools, with arguments of its schema.

    Args:
        tokenizer: of the model, with its template.
        vocab_size: number of the model's logits.
        stops: tokens that end an answer.
        tools: definitions of the tools; one, where it must be that one.

    Raises:
        UserError: the template has no form for it, or one in which arguments are no JSON; a schema cannot be kept.
    """
    vocabulary = Vocabulary.of(tokenizer)
    before, after, arguments = {}, {}, {}
    for tool in tools:
        function = tool.get("function", tool)
        name, schema = function["name"], function.get("parameters") or {"additionalProperties": False}  # it takes none
        head, tail = around_arguments(tokenizer, name, tools)
        before[name] = tokenizer(head, add_special_tokens=False)["input_ids"]
        ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
        after[name] = ids[: next((place for place, one in enumerate(ids) if one in stops), len(ids))]
        grammar = put_behind("", read_grammar("json_schema", {"type": "object", **schema}))
        state = compile_grammar(grammar, vocabulary.compiled)
        arguments[name] = GrammarConstraint(vocabulary, vocab_size, tuple(stops), state)
    return CallConstraint(before, after, arguments, stops)


def around_arguments(tokenizer: PreTrainedTokenizerBase, name: str, tools: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Return what a template writes before and after the arguments of a call that is all of an answer.

    Raises:
        UserError: it has no form for it, or one in which arguments are no JSON.
    """
    turn: Message = {"role": "assistant", "content": "", "tool_calls": [make_tool_call(name, {SIGN: SIGN})]}
    asked = render_text(tokenizer, [QUESTION], tools, for_answer=True)
    answered = render_text(tokenizer, [QUESTION, turn], tools)
    found = _SIGN.search(answered)
    if found is None or not answered.startswith(asked):
        raise UserError(
            f"the template of this model writes calls in a form that cannot be kept: {json.dumps(answered[-200:])}"
        )
    return answered[len(asked) : found.start()], answered[found.end() :]
