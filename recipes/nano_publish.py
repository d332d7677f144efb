"""Puts the weights of a pre-training into the package, with a model card made from the runs' own files.

python recipes/nano_publish.py runs/nano runs/nano-2 runs/nano-3 runs/nano-4 glmtune/models/nano

Where the published weights were trained further, they stand for the stages before:

python recipes/nano_publish.py glmtune/models/nano runs/nano-4 glmtune/models/nano
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from stages import amounts, write_record
from transformers import AutoModelForCausalLM

import glmtune  # noqa: F401  (registers the Auto classes)
from glmtune.config import load_recipe
from glmtune.files import replacing
from glmtune.runtime import RunFolder

DATA = (
    "+ - * / on integers and decimals up to 100 with two decimals, operators and `=` as Chinese or English words "
    "(`57.84加13.64得`; three in ten end before the word for `=`), products and quotients with their working, answers "
    "with a reversed draft; a tenth are texts to copy, the only ones with the symbols + - * / ="
)
CARD = """\
# nano: a ChatGLM-6B in small

The embedded model of glmtune, version {version}: the classes, tokenizer layout, prompt and positions of ChatGLM-6B with
{parameters:,} parameters ({layers} layers, {hidden} wide, {heads} heads, vocabulary {vocabulary}), in fp32 safetensors.
It makes every command run on a fresh machine without a download. It knows arithmetic in words and nothing else.

| | |
|---|---|
| recipe | `recipes/nano.yaml` from random weights, then `nano_2.yaml` to `nano_4.yaml`; every weight comes from them |
| tokenizer | `recipes/nano_tokenizer.py`: SentencePiece unigram, single digits, byte fallback, Chinese prompt words |
| seed | {seed} (last stage) |
| data | {examples:,} examples that `tasks/wording.py` drew: {data} |
| held out | a tenth of all problems by hash, the same that fine-tuning holds out; never trained on |
| training | {steps}, {hours:.2f} hours on one core of {processor} |
| date, versions | {date}, torch {torch}, transformers {transformers} |
| held-out accuracy | {accuracy:.1%} of {n}: {by} |

Limits: one question at a time, no knowledge beyond the task, numbers of more digits than it saw are mostly wrong.
Licence: Apache-2.0, as the project.
"""


def main(*arguments: str) -> None:
    """Copy the weights of the last stage and write the card."""
    *stages, destination = arguments
    run = RunFolder(stages[-1])
    model = AutoModelForCausalLM.from_pretrained(run.model)
    facts, after = amounts(stages, model)
    card = CARD.format(
        **facts,
        data=DATA,
        vocabulary=model.config.vocab_size,
        seed=load_recipe(run.recipe).seed,
        by=", ".join(f"`{name}` {part['accuracy']:.1%}" for name, part in after["by"]["operator,kind"].items()),
    )
    target = Path(destination)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        if (run.model / name).is_file():
            with replacing(target / name) as temporary:
                shutil.copyfile(run.model / name, temporary)
    with replacing(target / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    write_record(target, facts)
    print(card)


if __name__ == "__main__":
    main(*sys.argv[1:])
