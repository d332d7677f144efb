"""The model card of an export: what it is, how it was made, how good it is, what it cannot do.

Names and texts of others stand in it as they are: none of them is markup, a link, an image or a line of the metadata.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from glmtune.exports.storage import describe_storage
from glmtune.models.families import family_of
from glmtune.reporting.numbers import percent

DATA = "The recipe says which examples. What it is judged by was kept out of training."
LIMITS = {
    "arithmetic": "It was trained on one kind of problem and says little of use about others. Numbers longer than "
    "those it was trained on, or operators that it did not see, get wrong answers that look like right ones.",
}
OTHERWISE = (
    "It was trained for one task. What the base model knew beyond it may be worse than before: compare both on what "
    "matters to you before you rely on it."
)
USE_MERGED = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({place!r})
tokenizer = AutoTokenizer.from_pretrained({place!r})
messages = [{{"role": "user", "content": {prompt!r}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))"""
USE_GLMTUNE = """\
import glmtune

model, tokenizer = glmtune.load({place!r})
inputs = tokenizer({prompt!r}, return_tensors="pt")  # which adds the control tokens itself
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))"""
USE_ORIGINAL = """\
The weights and the configuration have the names that the release of {release} has, for tools that read these. Or:

{code}"""
LOAD = """\
import glmtune

model, tokenizer = glmtune.load({place!r})"""
USE_GGUF = """\
For llama.cpp and what is built on it; the chat template is in the file:

{code}

For Ollama, by the `Modelfile` beside it:

{ollama}"""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MARKUP = re.compile(r"[\\`*_{}\[\]()#!|<>&~$@]|(?<=www)\.|:(?=/)", re.IGNORECASE)


def write_card(
    title: str,
    place: str,
    layout: str,
    family: str,
    record: Mapping[str, Any],
    recipe: str,
    task: str,
    data: str,
    prompt: str,
    report: Mapping[str, Any] | None,
) -> str:
    """Return Markdown with the metadata that the hub reads.

    Args:
        title: name of the run or model.
        place: name of the folder.
        layout: `merged`, `original` or `gguf`.
        family: `model_type`.
        record: what the export noted of its origin and its verification.
        recipe: what that of the run changes, as YAML; empty where there was none.
        task: what was learned, by the name of the task.
        data: what was learned from, a sentence.
        prompt: an example of a question.
        report: `report.json` of the run.
    """
    checked = record["verification"]
    known = family_of({"model_type": family})
    if layout == "gguf":
        name, modelfile = place.removesuffix(".gguf").lower(), f"{place}.Modelfile"
        ollama = block(f"ollama create {shlex.quote(name)} -f {shlex.quote(modelfile)}", "sh")
        use = USE_GGUF.format(code=block(f"llama-cli -m {shlex.quote(place)} --jinja", "sh"), ollama=ollama)
    elif layout == "original":
        use = USE_ORIGINAL.format(release=", ".join(known.releases), code=block(LOAD.format(place=place), "python"))
    else:
        way = USE_GLMTUNE if known.own_classes else USE_MERGED
        use = block(way.format(place=place, prompt=prompt), "python")
    verified = (
        "Read back from its files, the model gave the same greedy answers as the one that was trained to "
        f"{checked['equal_answers']} of {checked['problems']} held-out problems; the logits differ by "
        f"{checked['logits_difference']:.1e} of their size (files in {checked['dtype']})."
    )
    if layout == "gguf":
        verified += " These became the GGUF file, which was read back and compared with them, number by number."
        if "quantized" in checked:
            few = checked["quantized"]
            verified += (
                f" Stored in {record['precision']} it is another model: with these numbers {few['equal_answers']} of "
                f"{few['problems']} answers were the same. {few.get('statement', '')}"
            ).rstrip()
    if checked.get("storage"):
        verified += f" {describe_storage(checked['storage'])}"
    parts = [f"{metadata(record['base'], layout)}\n\n# {plain(title)}", origin(record), f"## Use\n\n{use}"]
    if report is not None:
        parts.append(f"## Scores\n\n{scores(report)}")
    parts.append(f"## Verified\n\n{verified}")
    if recipe:
        parts.append(f"## Data\n\nTask {span(task)}. {data} {DATA}")
    limits = LIMITS.get(task, OTHERWISE) if recipe else OTHERWISE
    parts.append(f"## Limits\n\n{limits} The licence of the base model applies.")
    if recipe:
        parts.append(f"## Recipe\n\nWhat differs from the defaults:\n\n{block(recipe.strip(), 'yaml')}")
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Return a text as one line of Markdown that shows it."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def span(text: str) -> str:
    """Return a text as code within a line of Markdown."""
    text, fence = " ".join(text.split()), fence_of(text, 1)
    blank = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def block(text: str, language: str) -> str:
    """Return a text as a block of code of Markdown, which ends where the text does."""
    lines = re.findall(r"^ {0,3}(`+)", text, re.MULTILINE)  # a block ends at nothing else
    fence = fence_of(" ".join(lines), 3)
    return f"{fence}{language}\n{text}\n{fence}"


def fence_of(text: str, least: int) -> str:
    """Return more backticks than stand side by side in a text."""
    return "`" * max(least, *(len(found) + 1 for found in re.findall("`+", text)), 0)


def metadata(base: str, layout: str) -> str:
    """Return what the hub reads; a base on somebody's disk, which has no owner in its name, is nothing to it."""
    values = {
        "library_name": "gguf" if layout == "gguf" else "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base} if _HUB_NAME.fullmatch(base) else {}),
        "tags": ["glmtune"],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def origin(record: Mapping[str, Any]) -> str:
    """Return what it was made of."""
    made = f"Made by glmtune {record['versions']['glmtune']} from the base {span(record['base'])}"
    made += f" (fingerprint `{record['base_fingerprint']}`)"
    if record["adapter_fingerprint"]:
        made += f" and an adapter trained with {plain(record['method'] or 'peft')}"
        made += f" (fingerprint `{record['adapter_fingerprint']}`)"
    return f"{made}."


def scores(report: Mapping[str, Any]) -> str:
    """Return a table of the held-out figure before and after, of accuracy with its interval.

    Raises:
        KeyError, TypeError, ValueError: the report is damaged.
    """
    metric = report.get("metric", "accuracy")
    if metric != "accuracy":
        rows = [f"| held-out | examples | {plain(metric.replace('_', ' '))} |", "| --- | --- | --- |"]
        for name in ("before", "after"):
            rows.append(f"| {name} training | {plain(str(report[name].get('n', '')))} | {report[name][metric]:.4f} |")
        return "\n".join(rows)
    rows = ["| held-out | problems | accuracy | 95 % interval |", "| --- | --- | --- | --- |"]
    for name in ("before", "after"):
        part = report[name]
        low, high = part["accuracy_ci95"]
        rows.append(f"| {name} training | {part['n']:d} | {percent(part['accuracy'], 1)} | {low:.1%} to {high:.1%} |")
    return "\n".join(rows)
