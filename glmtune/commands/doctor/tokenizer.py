"""What is looked at in a tokenizer: its ids, its template, its end token, and what becomes of numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from glmtune.commands.doctor.checks import Check, Finding
from glmtune.models.checkpoint import read_json
from glmtune.models.families import family_of
from glmtune.models.loading import find_gguf
from glmtune.models.releases import check_release
from glmtune.plan import Plan
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REMEDY = "Copy or download the tokenizer's files again, from the release that the weights are of."
NUMBERS = "57.84+13.64=71.48"
ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>", "<eos>", "<|endoftext|>", "<eop>")
SPARE = re.compile(r"[<\[]\W*(?:\w*pad|unused_?0|reserved_special_token_0|unk)\W*[>\]]", re.IGNORECASE)
RARE = "\U0001f9ec"  # a character that few tokenizers have a token for


def tokenizer(plan: Plan) -> Finding:
    """See whether the tokenizer can be loaded, without code from its repository."""
    from transformers import TOKENIZER_MAPPING
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    declared = plan.model.tokenizer_folder / "tokenizer_config.json"
    values = read_json(declared) if declared.is_file() else {}
    name = str(values.get("tokenizer_class", ""))
    if (
        "auto_map" in values
        and type(plan.model.config) not in TOKENIZER_MAPPING
        and not tokenizer_class_from_name(name)
    ):
        finding = f"{declared}: {name or 'its class'} runs only with code from its repository, which is never run here"
        return "failure", finding, "Take a checkpoint whose tokenizer transformers knows, most often a tokenizer.json."
    found, folder = plan.tokenizer, plan.model.tokenizer_folder
    place = (folder == plan.model.folder and find_gguf(plan.model.base)) or folder
    return "ok", f"{type(found).__name__}, {len(found):,} tokens, from {place}", ""


def release(plan: Plan) -> Finding:
    """See whether tokenizer and model speak of the same ids."""
    hint = family_of(plan.model.values).release_hint
    remedy = (
        f"Take config.json, weights and tokenizer of one release{f': {hint}' if hint else '.'} Delete older copies."
    )
    known, rows = plan.tokenizer, plan.model.config.get_text_config().vocab_size
    check_release(plan.model.base, known, plan.model.config)
    names = {name: token for name, token in known.special_tokens_map.items() if isinstance(token, str)}
    ids = {f"{name}_id": int(known.convert_tokens_to_ids(token)) for name, token in names.items()}  # type: ignore[arg-type]
    if known.pad_token == known.eos_token:  # where a tokenizer has no padding
        ids.pop("pad_token_id", None)
    said = {name: listed(plan.model.config.to_dict().get(name)) for name in ids}
    differ = [
        f"{name} is {' or '.join(map(str, said[name]))} in config.json, {number} by the tokenizer"
        for name, number in ids.items()
        if said[name] and number not in said[name]
    ]
    if differ:
        # Where there is such a token, masks and positions are found by these ids; others only say where to stop.
        return "failure" if "gmask_token_id" in ids else "warning", "; ".join(differ), remedy
    return "ok", f"{len(known):,} tokens in {rows:,} rows, and the same special tokens", ""


def listed(ids: int | list[int] | None) -> list[int]:
    """Return one id, several or none, as a list."""
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]


def example(known: PreTrainedTokenizerBase, *candidates: str) -> str:
    """Return `, e.g. TOKEN`: the first one that the tokenizer has, and that neither begins nor ends anything."""
    vocabulary, taken = known.get_vocab(), (known.bos_token, known.eos_token)
    return next((f", e.g. {token}" for token in candidates if token in vocabulary and token not in taken), "")


def end_token(plan: Plan) -> Finding:
    """See whether there is a real end token, which is learned."""
    from glmtune.data.control_tokens import plain_ids
    from glmtune.data.encoding import IGNORED, encode_example, encode_prompt, stop_ids

    known = plan.tokenizer
    end, number = str(known.eos_token or ""), known.eos_token_id
    remedy = f"Set eos_token in tokenizer_config.json to the token that ends an answer{example(known, *ENDS)}."
    if not end or known.get_vocab().get(end) != number:
        return "failure", f"the end token {end!r} is not in the vocabulary: no answer would end", remedy
    if number == known.unk_token_id and number in plain_ids(known, RARE):
        return "failure", f"the end token {end} also stands for unknown characters: answers would end there", remedy
    learned = [label for label in encode_example(known, "1+1=", "2")["labels"] if label != IGNORED]
    if len(learned) < 2 or learned[-1] not in stop_ids(known):
        tokens = known.convert_ids_to_tokens(learned)
        return "failure", f"of the answer 2 is learned {tokens}, which decoding does not stop at", remedy
    if encode_prompt(known, "1+1=")[-1] == number:
        remedy = "Set add_eos_token to false in tokenizer_config.json."
        return "warning", f"each prompt ends with {end}, so that the model starts where an answer is over", remedy
    return "ok", f"{known.convert_ids_to_tokens(learned[-1])} (id {learned[-1]}) ends each answer that is learned", ""


def padding(plan: Plan) -> Finding:
    """See whether padding looks like the end."""
    known = plan.tokenizer
    if known.pad_token_id != known.eos_token_id:
        return "ok", f"{known.pad_token} (id {known.pad_token_id}), which is not the end token", ""
    finding = (
        f"{known.eos_token} is padding and end in one. That is harmless here, where padding is known by its place, but "
        "tools that hide every padding token from the loss never teach this model to stop"
    )
    spare = sorted(token for token in known.get_vocab() if SPARE.fullmatch(token))
    named = example(known, *spare, str(known.unk_token))
    if not named:
        return "warning", finding, "The tokenizer has no token to spare: let other tools know padding by its place."
    return "warning", finding, f"For other tools, set pad_token in tokenizer_config.json to another token{named}."


def template(plan: Plan) -> Finding:
    """See whether the template says what is asked and answered, and ends what the assistant says."""
    from glmtune.data.encoding import check_template, encode_prompt, stop_ids

    known = plan.tokenizer
    if known.chat_template is None:
        return "ok", "none: prompts stand bare, with the tokenizer's own special tokens", ""
    check_template(known)
    roles = (("user", "1+1="), ("assistant", "2"), ("user", "3+3="))
    end = f"decoding stops at {', '.join(known.convert_ids_to_tokens(stop_ids(known)))}"
    try:
        encode_prompt(known, [{"role": role, "content": content} for role, content in roles])
    except UserError as error:
        return "ok", f"{end}; single questions only ({error})", ""
    return "ok", f"{end}; says what was asked and answered", ""


def numbers(plan: Plan) -> Finding:
    """See whether numbers survive the tokenizer, and how they are cut."""
    from glmtune.data.control_tokens import plain_ids

    known = plan.tokenizer
    ids = plain_ids(known, NUMBERS)
    back = str(known.decode(ids)).strip()
    if back != NUMBERS:
        remedy = "Train words on this model, not numbers, or take a tokenizer that has every digit."
        return "warning", f"{NUMBERS} comes back as {back!r}: no such answer could be exact", remedy
    grouped = len(ids) < len(NUMBERS)
    return "ok", f"{NUMBERS} comes back, digits {'in groups' if grouped else 'one by one'}", ""


TOKENIZER_CHECKS = [
    Check("tokenizer", tokenizer, REMEDY, ("adapter", "files", "config")),
    Check("release", release, REMEDY, ("tokenizer",)),
    Check("template", template, "Mend chat_template.jinja, or take that of the release.", ("tokenizer",)),
    Check("end token", end_token, REMEDY, ("tokenizer", "template")),
    Check("padding", padding, REMEDY, ("tokenizer",)),
    Check("numbers", numbers, REMEDY, ("tokenizer",)),
]
