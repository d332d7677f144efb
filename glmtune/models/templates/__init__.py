"""Prompt templates by name: a preset is a `.jinja` file here, and beside it the `.response.json` that inverts it.

Both travel inside the tokenizer's files of every artefact; these are what they start from. The first is a chat template
as transformers knows it, of which is learned what stands between `{% generation %}` and `{% endgeneration %}`. The
second is a response template (`transformers.utils.chat_parsing`), by which `tokenizer.parse_response` reads an answer.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune import registry
from glmtune.files import check_named
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent
CONTROLS = re.compile(r"{#- control tokens: (.*) -#}")
FORMER = "{#- ChatGLM-6B: a question without history stands bare"  # how that edition began
END = "{{ eos_token }}"  # in response templates: the end token of the tokenizer that adopts one


def list_presets() -> list[str]:
    """Return the names of the presets."""
    return sorted(file.stem for file in FOLDER.glob("*.jinja"))


@cache
def read_preset(name: str) -> str:
    """Return the chat template of a preset.

    Raises:
        UserError: there is none of that name.
    """
    if name not in list_presets():
        raise UserError(f"unknown template '{name}'.{registry.suggest(name, list_presets())}")
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8").strip()


def read_pair(name: str, end: str) -> dict[str, Any]:
    """Return `chat_template` and `response_template` of a preset, as tokenizers take them.

    Args:
        name: of the preset.
        end: the tokenizer's end token.
    """
    response = json.loads((FOLDER / f"{name}.response.json").read_text(encoding="utf-8"))
    return {"chat_template": read_preset(name), "response_template": name_end(response, end)}


def read_template(name: str) -> tuple[str, dict[str, Any] | None]:
    """Read a chat template and its response template, if it has one.

    Args:
        name: of a preset, or the path of a `.jinja` file; its response template is the `.response.json` beside it.

    Raises:
        UserError: no such preset or file, or what is in it is no text or no JSON.
    """
    is_file = name.endswith(".jinja")
    beside = (Path(name) if is_file else FOLDER / name).with_suffix(".response.json")
    if is_file:
        check_named(Path(name), "data.template")
    try:
        text = Path(name).read_text(encoding="utf-8") if is_file else read_preset(name)
        response = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"data.template: {beside} is no JSON: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.template: {name} cannot be read: {error}") from error
    return text, response


def adopt(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give a tokenizer a chat template and its response template; from now on they are saved with it.

    Control tokens that the tokenizer itself puts before a text, or after it, become part of a preset that has a place
    for them: a model expects them.

    Args:
        tokenizer: of the model.
        name: a preset, or a `.jinja` file.

    Raises:
        UserError: no such template, or it needs control tokens that the tokenizer lacks.
    """
    text, response = read_template(name)
    needed = " ".join(CONTROLS.findall(text)).split()
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in needed if token not in vocabulary]:
        raise UserError(
            f"data.template={name}: needs the control tokens {', '.join(missing)}, which the tokenizer of this model "
            "does not have, so that no answer would end. Use alpaca, vicuna or plain, or the model's own template."
        )
    before, after = ("".join(tokens) for tokens in find_surrounding_tokens(tokenizer))
    text = text.replace("set first = ''", f"set first = {quote(before)}")
    tokenizer.chat_template = text.replace("set before_answer = ''", f"set before_answer = {quote(after)}")
    tokenizer.response_template = None if response is None else name_end(response, str(tokenizer.eos_token))


def renew(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer that was saved before calls of tools had a form the present edition of its template.

    Such tokenizers wrote nano's calls as contents; in everything else the editions agree.
    """
    if tokenizer.response_template is None and str(tokenizer.chat_template).startswith(FORMER):
        adopt(tokenizer, "nano")


def name_end(response: Any, end: str, pattern: bool = False) -> Any:
    """Return a response template, or a part of it, with the end token in place of `{{ eos_token }}`."""
    if isinstance(response, dict):
        return {key: name_end(value, end, key.endswith("_pattern")) for key, value in response.items()}
    if isinstance(response, list):
        return [name_end(value, end) for value in response]
    return response.replace(END, re.escape(end) if pattern else end) if isinstance(response, str) else response


def find_surrounding_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], list[str]]:
    """Return the control tokens that a tokenizer puts before and after a text, without its end token."""
    mark: Any = tokenizer("0", add_special_tokens=False)["input_ids"]
    whole: Any = tokenizer("0")["input_ids"]
    start = next(i for i in range(len(whole) + 1) if whole[i : i + len(mark)] == mark)
    before, after = whole[:start], [index for index in whole[start + len(mark) :] if index != tokenizer.eos_token_id]
    return list(tokenizer.convert_ids_to_tokens(before)), list(tokenizer.convert_ids_to_tokens(after))


def quote(text: str) -> str:
    """Return a text as Jinja writes it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
