"""What an answer must be, kept while it is written: JSON of a schema, a text of an expression or of a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from glmtune.inference.constraints.calls import make_call_constraint
from glmtune.inference.constraints.grammars import compile_grammar, put_behind, read_grammar
from glmtune.inference.constraints.matching import GrammarConstraint, GrammarMatcher
from glmtune.inference.constraints.vocabulary import Vocabulary
from glmtune.runtime import UserError

__all__ = ["GrammarConstraint", "make_call_constraint", "make_constraint"]


def make_constraint(
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    stops: Sequence[int],
    kind: str,
    value: Any = None,
    after: str | None = None,
) -> GrammarConstraint:
    """Return the constraint by which every finished answer, as it is read, is what was asked for.

    Args:
        tokenizer: of the model, with its template.
        vocab_size: number of the model's logits.
        stops: tokens that end an answer.
        kind: `json_object`, `json_schema`, `regex`, `grammar` (in Lark's notation) or `choice`.
        value: the schema, the expression, the grammar, or the list of texts.
        after: what is asked for is only what follows the first such text (`Task.final_marker`); the model may write
            anything before it, and does not end before it. None: the whole answer.

    Raises:
        UserError: it is broken, contradicts itself, is too large, or asks for what cannot be kept; llguidance is not
            installed.
    """
    try:
        import llguidance  # noqa: F401
    except ImportError:
        raise UserError("Answers of a form are written by llguidance: pip install 'glmtune[serve]'") from None
    grammar = read_grammar(kind, value)
    vocabulary = Vocabulary.of(tokenizer)
    head = vocabulary.head.decode()
    state = compile_grammar(put_behind(head, grammar, after), vocabulary.compiled)
    constraint = GrammarConstraint(vocabulary, vocab_size, tuple(stops), state)
    if vocabulary.loses_blanks and after is None:
        bare = GrammarMatcher(constraint, compile_grammar(put_behind("", grammar), vocabulary.compiled), (), b"")
        bare.allowed()
        if bare.fault:
            raise UserError("it begins with a blank, which this model's tokenizer drops at the beginning of an answer")
    return constraint
