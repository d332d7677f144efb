"""An adapter that was trained on a base of few bits, merged into that base at 16: another model, by its score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from glmtune import adapters
from glmtune.config import read_report
from glmtune.evaluation.evaluator import evaluate
from glmtune.examples import Example
from glmtune.models.architecture import stored_bits
from glmtune.reporting.numbers import percent
from glmtune.resolution import ResolvedModel


def compare_storage(
    origin: ResolvedModel, merged: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> dict[str, Any] | None:
    """Return how the base was stored in training, and the run's score then and merged; None where it was not other.

    Args:
        origin: base and adapter.
        merged: the two as one, at the precision of the checkpoint.
        tokenizer: with the template.
        examples: held-out ones that the merged model is asked.

    Returns:
        `bits`, `quantize_embedding`; of a run that asks, `as_trained` and `merged`, each `n` and `accuracy`.
    """
    noted = adapters.record_of(origin.adapter) if origin.adapter is not None else {}
    bits, embedding = noted.get("bits", 16), bool(noted.get("quantize_embedding", False))
    if stored_bits(origin.config) < 16 or (bits == 16 and not embedding):  # a packed release is unpacked to the same
        return None
    found: dict[str, Any] = {"bits": bits, "quantize_embedding": embedding}
    run = origin.run
    after = read_report(run).get("after") if run is not None and run.report.is_file() else None
    if not (origin.objective.asks and isinstance(after, dict) and {"n", "accuracy"} <= after.keys()):
        return found
    settings, seed = origin.recipe.generation, origin.recipe.seed
    asked = evaluate(merged, tokenizer, origin.task, examples, settings, limit=origin.limit, seed=seed)
    return {
        **found,
        "as_trained": {"n": after["n"], "accuracy": after["accuracy"]},
        "merged": {"n": len(examples), "accuracy": asked.accuracy},
    }


def describe_storage(found: Mapping[str, Any]) -> str:
    """Return what is said of it."""
    parts = [f"at {found['bits']} bits"] if found["bits"] < 16 else []
    parts += ["with the embedding at 8 bits"] if found["quantize_embedding"] else []
    told = f"The adapter was trained on its base {' and '.join(parts)}, and merged into the base as its files have it"
    if "merged" not in found:
        return f"{told}, which is another model: evaluate it."
    shares = (f"{percent(found[key]['accuracy'], 1)} of {found[key]['n']:,}" for key in ("as_trained", "merged"))
    return "{}: of held-out examples {} right as trained, {} merged.".format(told, *shares)
