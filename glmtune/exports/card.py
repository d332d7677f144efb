"""The model card of an export: what it is, how it was made, how good it is, what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({place!r})
tokenizer = AutoTokenizer.from_pretrained({place!r})
messages = [{{"role": "user", "content": {prompt!r}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```"""
USE_GLMTUNE = """\
```python
import glmtune

model, tokenizer = glmtune.load({place!r})
inputs = tokenizer({prompt!r}, return_tensors="pt")  # which adds the control tokens itself
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```"""
USE_ORIGINAL = """\
The weights and the configuration have the names that the release of {release} has, for tools that read these. Or:

```python
import glmtune

model, tokenizer = glmtune.load({place!r})
```"""

USE_GGUF = """\
For llama.cpp and what is built on it; the chat template is in the file:

```sh
llama-cli -m {place} --jinja
```"""


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
    by_layout = {"original": USE_ORIGINAL, "gguf": USE_GGUF}
    known = family_of({"model_type": family})
    how = by_layout.get(layout, USE_GLMTUNE if known.own_classes else USE_MERGED)
    use = how.format(place=place, prompt=prompt, release=", ".join(known.releases))
    verified = (
        "Read back from its files, the model gave the same greedy answers as the one that was trained to "
        f"{checked['equal_answers']} of {checked['problems']} held-out problems; the logits differ by "
        f"{checked['logits_difference']:.1e} of their size (files in {checked['dtype']})."
    )
    if layout == "gguf":
        verified += " These became the GGUF file, which was read back and compared with them, number by number."
        if record["precision"] == "q8_0":
            verified += " Its numbers are rounded to q8_0; with these, too, all answers were the same."
    if checked.get("storage"):
        verified += f" {describe_storage(checked['storage'])}"
    parts = [f"{metadata(record['base'], layout)}\n\n# {title}", origin(record), f"## Use\n\n{use}"]
    if report is not None:
        parts.append(f"## Scores\n\n{scores(report)}")
    parts.append(f"## Verified\n\n{verified}")
    if recipe:
        parts.append(f"## Data\n\nTask `{task}`. {data} {DATA}")
    limits = LIMITS.get(task, OTHERWISE) if recipe else OTHERWISE
    parts.append(f"## Limits\n\n{limits} The licence of the base model applies.")
    if recipe:
        parts.append(f"## Recipe\n\nWhat differs from the defaults:\n\n```yaml\n{recipe.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def metadata(base: str, layout: str) -> str:
    """Return what the hub reads; a base on somebody's disk, which has no owner in its name, is nothing to it."""
    named = f"base_model: {base}\n" if "/" in base else ""
    library = "gguf" if layout == "gguf" else "transformers"
    return f"---\nlibrary_name: {library}\npipeline_tag: text-generation\n{named}tags:\n- glmtune\n---"


def origin(record: Mapping[str, Any]) -> str:
    """Return what it was made of."""
    made = f"Made by glmtune {record['versions']['glmtune']} from the base `{record['base']}`"
    made += f" (fingerprint `{record['base_fingerprint']}`)"
    if record["adapter_fingerprint"]:
        made += f" and an adapter trained with {record['method'] or 'peft'}"
        made += f" (fingerprint `{record['adapter_fingerprint']}`)"
    return f"{made}."


def scores(report: Mapping[str, Any]) -> str:
    """Return a table of the held-out figure before and after, of accuracy with its interval."""
    metric = report.get("metric", "accuracy")
    if metric != "accuracy":
        rows = [f"| held-out | examples | {metric.replace('_', ' ')} |", "| --- | --- | --- |"]
        for name in ("before", "after"):
            rows.append(f"| {name} training | {report[name].get('n', '')} | {report[name][metric]:.4f} |")
        return "\n".join(rows)
    rows = ["| held-out | problems | accuracy | 95 % interval |", "| --- | --- | --- | --- |"]
    for name in ("before", "after"):
        part = report[name]
        low, high = part["accuracy_ci95"]
        rows.append(f"| {name} training | {part['n']} | {percent(part['accuracy'], 1)} | {low:.1%} to {high:.1%} |")
    return "\n".join(rows)
