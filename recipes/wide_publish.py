"""Puts the weights of the last stage of `arithmetic_wide` where they can be scored, in bf16, with a model card.

python recipes/wide_publish.py runs/arithmetic-wide-{1,2,3,4} checkpoints/arithmetic-wide

Where the published weights were trained further, they stand for the stages before:

python recipes/wide_publish.py checkpoints/arithmetic-wide runs/arithmetic-wide-4 checkpoints/arithmetic-wide
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import yaml
from stages import amounts, write_record
from transformers import AutoModelForCausalLM, AutoTokenizer

import glmtune  # noqa: F401  (registers the Auto classes)
from glmtune.config import load_recipe
from glmtune.files import replacing
from glmtune.runtime import RunFolder

CARD = """\
# arithmetic-wide: expressions of several operations, worked out by {parameters:,} parameters

A model of ChatGLM-6B's architecture ({layers} layers, {hidden} wide, {heads} heads, nano's tokenizer), trained with
glmtune {version} from random weights for expressions as MathGLM's: two to ten operands, + - * /, round and square
brackets, signs, percents, decimals. It writes its working, one operation after the other, and ends with the answer,
rounded to two decimals. No calculator is used.

    glmtune predict checkpoints/arithmetic-wide --input problems.jsonl --output answers.jsonl
    glmtune evaluate checkpoints/arithmetic-wide

`problems.jsonl` has lines like `{{"prompt": "(766%/1874.0)/2277%-3125="}}`, without blanks and with `=` at the end;
what stands behind the last `|` of a `completion` is the answer.

| | |
|---|---|
| recipes | `arithmetic_wide.yaml`, then `arithmetic_wide_2.yaml` to `arithmetic_wide_4.yaml` in `recipes/`; every \
weight comes from them |
| data | {examples:,} problems that `tasks/arithmetic.py` drew{without} |
| training | {steps}, {hours:.1f} hours on one core of {processor}, as far as that got; no GPU |
| date, versions | {date}, torch {torch}, transformers {transformers} |
| held-out problems of its own kind | {accuracy:.1%} of {n} right ({low:.1%} to {high:.1%}) |

On 592 problems of MathGLM's public test set see `docs/results.md`; the held-out share above is of a few problems only.
Quotients and products are worked out to six decimals: about seven in a hundred problems of this kind need more.
Limits: numbers longer than those it saw, problems written in another way, powers, words. Weights are bf16, computation
is fp32. Licence: Apache-2.0.
"""


def main(*arguments: str) -> None:
    """Write the weights of the last stage, tokenizer, task and card."""
    *stages, destination = arguments
    run, target = RunFolder(stages[-1]), Path(destination)
    target.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.bfloat16)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(run.model).save_pretrained(target)
    kept = {name: yaml.safe_load(run.recipe.read_text())[name] for name in ("task", "data", "generation")}
    kept["task"].pop("exclude", None)
    kept["data"].pop("mixture", None)
    with replacing(target / "recipe.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True), encoding="utf-8")
    facts, after = amounts(stages, model)
    card = CARD.format(
        **facts,
        without=", in the last stage none of those it is scored by" if load_recipe(run.recipe).task.exclude else "",
        low=after["accuracy_ci95"][0],
        high=after["accuracy_ci95"][1],
    )
    with replacing(target / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    write_record(target, facts)
    print(card)


if __name__ == "__main__":
    main(*sys.argv[1:])
