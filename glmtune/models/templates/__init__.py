"""Prompt templates by name: each `.jinja` file here is a preset.

A template travels inside the tokenizer's files of every artefact; these are what it starts from. They are chat
templates as transformers knows them; what stands between `{% generation %}` and `{% endgeneration %}` is learned.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune import registry
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent
CONTROLS = re.compile(r"{#- control tokens: (.*) -#}")


def names() -> list[str]:
    """Names of the presets."""
    return sorted(file.stem for file in FOLDER.glob("*.jinja"))


@cache
def preset(name: str) -> str:
    """The text of a preset.

    Raises:
        UserError: there is none of that name.
    """
    if name not in names():
        raise UserError(f"unknown template '{name}'.{registry.suggest(name, names())}")
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8").strip()


def text_of(name: str) -> str:
    """A template by the name of a preset, or by the path of a `.jinja` file.

    Raises:
        UserError: no such preset, or no such file.
    """
    if not name.endswith(".jinja"):
        return preset(name)
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.template: {name} cannot be read: {error}") from error


def adopt(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give a tokenizer a template: from now on it is saved with it, and whoever uses the tokenizer uses the template.

    Control tokens that the tokenizer itself puts before a text, or after it, become part of a preset that has a place
    for them: a model expects them.

    Args:
        tokenizer: of the model.
        name: a preset, or a `.jinja` file.

    Raises:
        UserError: no such template, or it needs control tokens that the tokenizer lacks.
    """
    text = text_of(name)
    needed = " ".join(CONTROLS.findall(text)).split()
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in needed if token not in vocabulary]:
        raise UserError(
            f"data.template={name}: needs the control tokens {', '.join(missing)}, which the tokenizer of this model "
            "does not have, so that no answer would end. Use alpaca, vicuna or plain, or the model's own template."
        )
    before, after = ("".join(tokens) for tokens in around(tokenizer))
    text = text.replace("set first = ''", f"set first = {quoted(before)}")
    tokenizer.chat_template = text.replace("set before_answer = ''", f"set before_answer = {quoted(after)}")


def around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """The control tokens that a tokenizer puts before and after a text; its end token left out."""
    mark: Any = tokenizer("0", add_special_tokens=False)["input_ids"]
    whole: Any = tokenizer("0")["input_ids"]
    start = next(i for i in range(len(whole) + 1) if whole[i : i + len(mark)] == mark)
    before, after = whole[:start], [index for index in whole[start + len(mark) :] if index != tokenizer.eos_token_id]
    return list(tokenizer.convert_ids_to_tokens(before)), list(tokenizer.convert_ids_to_tokens(after))


def quoted(text: str) -> str:
    """A text as Jinja writes it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
