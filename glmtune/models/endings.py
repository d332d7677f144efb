"""The tokens by which a checkpoint says that answers end: all that is taken of its `generation_config.json`.

What else such a file may say (beams, penalties, suppressed tokens, a cache) would change answers silently, or break
them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.models.checkpoint import read_json
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig

FILE = "generation_config.json"
SHOWN = 60  # characters of a value


def named_ends(folder: Path, config: PreTrainedConfig) -> list[int]:
    """Return the ids of the tokens that end an answer by `generation_config.json`; without it, by `config.json`.

    Raises:
        UserError: what is named there is no token of the model.
    """
    file = folder / FILE
    named: Any = read_json(file).get("eos_token_id") if file.is_file() else config.eos_token_id
    ends = named if isinstance(named, list) else [] if named is None else [named]
    size = config.get_text_config().vocab_size
    if not all(type(end) is int and 0 <= end < size for end in ends):
        place = file if file.is_file() else folder / "config.json"
        raise UserError(
            f"{place}: eos_token_id is {str(named)[:SHOWN]!r}, and tokens of this model are numbers from 0 to "
            f"{size - 1}. Name one, or several in a list, or take the file of the release again."
        )
    return ends


def ends_alone(folder: Path, config: PreTrainedConfig, pad_token_id: int) -> GenerationConfig:
    """Return what `generate` is to know of a checkpoint: which tokens end an answer.

    Raises:
        UserError: what it names is no token of the model.
    """
    from transformers import GenerationConfig

    ends = named_ends(folder, config)
    return GenerationConfig(eos_token_id=ends if len(ends) > 1 else next(iter(ends), None), pad_token_id=pad_token_id)
