"""The sizes that a `config.json` states, before anything is made by them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glmtune.models.checkpoint import read_json
from glmtune.runtime import UserError

LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
WIDTHS = (
    *("hidden_size", "n_embd", "d_model", "intermediate_size", "inner_hidden_size", "ffn_hidden_size", "n_inner"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "multi_query_group_num", "head_dim", "kv_channels"),
    *("vocab_size", "padded_vocab_size"),
)
LENGTHS = ("max_position_embeddings", "max_sequence_length", "seq_length", "n_positions")
# The largest of each; those of today's models have 126 layers, widths of 53,248, 262,208 tokens and 10 million places.
LABELS = {"num_labels": 2**16}  # for each of which transformers makes a name; ImageNet has 21,841
MOST = LABELS | dict.fromkeys(LAYERS, 1000) | dict.fromkeys(WIDTHS, 2**24) | dict.fromkeys(LENGTHS, 2**31 - 1)
OF_EACH_LAYER = ("intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")  # in lists, of some
NESTED = ("text_config", "language_config", "llm_config")  # what models of images say of the language


def read_config(folder: Path) -> dict[str, Any]:
    """Return what the `config.json` of a checkpoint holds.

    Raises:
        UserError: it is damaged, or states a size that no model has; says which.
    """
    file = folder / "config.json"
    values = read_json(file)
    for name, part in ("", values), *values.items():
        if isinstance(part, dict):
            check_sizes(part, file, MOST if name in ("", *NESTED) else LABELS)
    return values


def check_sizes(values: dict[str, Any], file: Path, largest: Mapping[str, int]) -> None:
    """See whether the sizes in a configuration are numbers from 1 to the `largest` of their name. Null states none.

    Some have a list, in which a layer without such a part has 0 or null.

    Raises:
        UserError: one is not.
    """
    for name, most in largest.items():
        value = values.get(name)
        if isinstance(value, list) and name in OF_EACH_LAYER:
            fits = all(type(one) is int and 0 <= one <= most for one in value if one is not None)
        else:
            fits = value is None or (type(value) is int and 0 < value <= most)
        if not fits:
            raise UserError(
                f"{file}: {name} is {str(value)[:60]!r}, and must be a whole number from 1 to {most:,}. Take "
                f"{file.name} of the release again."
            )
