"""What an answer must be, kept while it is written: JSON of a schema, a text of an expression or of a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from glmtune.inference.constraints.grammars import behind, compile_grammar, read_grammar
from glmtune.inference.constraints.matching import GrammarConstraint
from glmtune.inference.constraints.vocabulary import Vocabulary
from glmtune.runtime import UserError


def make_constraint(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, stops: Sequence[int], kind: str, value: Any = None
) -> GrammarConstraint:
    """Return the constraint by which every finished answer, as it is read, is what was asked for.

    Args:
        tokenizer: of the model, with its template.
        vocab_size: number of the model's logits.
        stops: tokens that end an answer.
        kind: `json_object`, `json_schema`, `regex`, `grammar` (in Lark's notation) or `choice`.
        value: the schema, the expression, the grammar, or the list of texts.

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
    bare, whole = (
        compile_grammar(behind(head, grammar), vocabulary.compiled) for head in ("", vocabulary.head.decode())
    )
    return GrammarConstraint(vocabulary, vocab_size, tuple(stops), whole, bare)
