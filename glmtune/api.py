"""The verbs for Python, as short as on the command line: train, evaluate, predict, export, and load.

    import glmtune

    run = glmtune.train(settings={"task.operators": "+", "training.steps": 50})
    print(run.accuracy_before, "->", run.accuracy)
    [answer] = glmtune.predict(run, ["1+2="])
    print(answer.text)

What takes a target takes a `Run`, a run folder, an adapter, a checkpoint directory, a GGUF file, a hub name or `nano`.
Settings are those of a recipe: `{"training.steps": 50}` or `{"training": {"steps": 50}}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from glmtune.network import takes_names

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from glmtune.config import Dtype
    from glmtune.evaluation.evaluator import Evaluation
    from glmtune.execution import Run
    from glmtune.exports.destination import Layout, Precision
    from glmtune.inference.conversation import Exchange
    from glmtune.messages import Prompt
    from glmtune.methods import Model
    from glmtune.resolution import Target

Settings: TypeAlias = "Mapping[str, Any]"


@takes_names
def train(
    recipe: Target | None = None,
    settings: Settings | None = None,
    *,
    resume: Target | None = None,
    quiet: bool = False,
    trust_code: bool = False,
) -> Run:
    """Train by a recipe, or by the defaults: the embedded model learns arithmetic with LoRA.

    Args:
        recipe: a YAML file; or a run, from which a new one goes on, by its recipe.
        settings: in place of those of the recipe.
        resume: a run folder to go on with instead.
        quiet: print nothing but progress bars.
        trust_code: run .py files that only the recipe names. What `settings` name is run.

    Returns:
        The run: its `path`, its `report`, its accuracy before and after. It can be evaluated, asked and exported.

    Raises:
        UserError: faults in the recipe, the model's files or the data, told before anything is trained.

    Example:
        >>> run = glmtune.train(settings={"task.operators": "+", "training.steps": 50})
        >>> further = glmtune.train(run, settings={"task.operators": "+-"})
    """
    from glmtune.commands.train import run
    from glmtune.terminal.console import Console
    from glmtune.trust import Trust

    trust = Trust(everything=trust_code, remembers=True)
    return run(recipe, as_overrides(settings), resume, Console(stderr=True, quiet=quiet), trust)


@takes_names
def evaluate(
    target: Target,
    data: str | Path | None = None,
    settings: Settings | None = None,
    *,
    recipe: Target | None = None,
    engine: str | None = None,
    trust_code: bool = False,
) -> Evaluation:
    """Score a model on held-out examples of its task, or on the records of a file.

    Args:
        target: who is asked.
        data: records of any known format with answers; default: held-out examples.
        settings: in place of those of the run.
        recipe: of a target that has none, such as a GGUF file: a recipe (`.yaml`), or a run.
        engine: which llama.cpp runs a GGUF file: `xllamacpp`, ...; or `torch`. Default: the first that is found.
        trust_code: run .py files that only the target's recipe names. What `settings` name is run.

    Raises:
        UserError: no such model or file, a malformed record, or a run that is judged by texts.

    Example:
        >>> glmtune.evaluate("runs/arithmetic-lora-1", settings={"task.digits": 5}).accuracy
    """
    from glmtune.commands.evaluate import run
    from glmtune.runtime import UserError
    from glmtune.trust import Trust

    trust = Trust(everything=trust_code)
    file, values = None if data is None else str(data), as_overrides(settings)
    evaluation, report = run(target, file, None, values, trust, recipe=recipe, engine=engine)
    if evaluation is None:
        metric = report["metric"]
        raise UserError(
            f"{target} is judged by texts and not asked, so that there are no answers: {metric.replace('_', ' ')} "
            f"{report[metric]:.4f}. Name questions with their answers: data=FILE."
        )
    return evaluation


@takes_names
def predict(
    target: Target, prompts: Sequence[Prompt], settings: Settings | None = None, *, trust_code: bool = False
) -> list[Exchange]:
    """Answer prompts, in their order; tools of the task are run when they are called.

    Args:
        target: who is asked.
        prompts: texts, or lists of messages `{"role": ..., "content": ...}`.
        settings: in place of those of the run, e.g. `{"generation.max_new_tokens": 200}`.
        trust_code: run .py files that only the target's recipe names. What `settings` name is run.

    Returns:
        An exchange for each: its `text`, its `messages`, among them what tools said, and its last `completion`, with
        `token_ids` and `finish_reason`.

    Raises:
        UserError: no such model, or a prompt that is too long for it.

    Example:
        >>> [answer.text for answer in glmtune.predict("nano", ["1+2=", "3*4="])]
    """
    from glmtune.inference.conversation import Conversation
    from glmtune.inference.engine import Engine
    from glmtune.resolution import resolve
    from glmtune.runtime import UserError
    from glmtune.trust import Trust

    if isinstance(prompts, str):
        raise UserError(f"prompts: a list is needed, not one text: [{prompts[:40]!r}]")
    resolved = resolve(target, as_overrides(settings), Trust(everything=trust_code))
    conversation = Conversation.about(resolved.task, Engine(*resolved.load(), resolved.limit))
    seed, generation = resolved.recipe.seed, resolved.recipe.generation
    questions = [
        conversation.ask(prompt, generation, label=f"Prompt {number + 1}", seed=seed + number)
        for number, prompt in enumerate(prompts)
    ]
    answers = dict(conversation.answer(questions))
    return [answers[number] for number in range(len(questions))]


@takes_names
def export(
    target: Target,
    to: Layout = "merged",
    output: str | Path | None = None,
    settings: Settings | None = None,
    *,
    dtype: Precision = "auto",
    bits: int = 16,
    overwrite: bool = False,
    push_to_hub: str | None = None,
    trust_code: bool = False,
) -> Path:
    """Make a whole model of a run, checked against it, for others to use; return where it is.

    Args:
        target: what is exported.
        to: `merged`: transformers' layout; `original`: the release's; `gguf`: a file for llama.cpp.
        output: folder or, of gguf, file to write; default: in the run folder.
        settings: in place of those of the run.
        dtype: precision of the files; auto: that of the base.
        bits: 8 or 4: store the linear layers of `merged` so; such a folder is loaded as it is, also to train on it.
        overwrite: replace an output that is there already.
        push_to_hub: repository to upload to; never without.
        trust_code: run .py files that only the target's recipe names. What `settings` name is run.

    Raises:
        UserError: it cannot be had in this form, or answers otherwise; then nothing is written.

    Example:
        >>> glmtune.export("runs/arithmetic-lora-1", to="gguf")
    """
    from glmtune.commands.export import run
    from glmtune.trust import Trust

    place, trust = None if output is None else str(output), Trust(everything=trust_code)
    return run(target, to, place, as_overrides(settings), dtype, overwrite, push_to_hub, trust=trust, bits=bits)


@takes_names
def load(
    target: Target,
    adapter: Target | None = None,
    dtype: Dtype | None = None,
    device: torch.device | str | None = None,
    attention: Literal["sdpa", "eager"] | None = None,
    bits: Literal[16, 8, 4] | None = None,
    quantize_embedding: bool | None = None,
    *,
    trust_code: bool = False,
) -> tuple[Model, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, ready for use.

    Args:
        target: what is loaded.
        adapter: a run folder, an adapter in peft's format, or a directory with the prefix weights of the original
            P-Tuning v2 scripts (`transformer.prefix_encoder.*` beside a `config.json` with `pre_seq_len`), to put on
            the base that `target` names.
        dtype: default: as the run says, else `auto`.
        device: default: the GPU where there is one.
        attention: attention implementation; default: as the run says, else sdpa.
        bits: storage of the base's linear layers; default: as it was trained, or as the checkpoint is stored.
        quantize_embedding: store the embedding and the head at 8 bits, too; default: as it was trained.
        trust_code: run .py files that only the recipe of a run names.

    Returns:
        (model, tokenizer), the model in evaluation mode.

    Raises:
        UserError: nothing usable there, or the adapter was trained on other weights.

    Example:
        >>> model, tokenizer = glmtune.load("runs/arithmetic-lora-1")
    """
    from glmtune.resolution import resolve, resolve_adapter
    from glmtune.trust import Trust

    storage = {"dtype": dtype, "attention": attention, "bits": bits, "quantize_embedding": quantize_embedding}
    overrides = as_overrides({"model": {name: value for name, value in storage.items() if value is not None}})
    trust = Trust(everything=trust_code)
    if adapter is None:
        return resolve(target, overrides, trust).load(device)
    return resolve_adapter(adapter, target, overrides, trust).load(device)


def as_overrides(settings: Settings | None) -> list[str]:
    """Return settings, nested by section or not, as `section.setting=value` texts."""
    flat: dict[str, Any] = {}
    for name, value in (settings or {}).items():
        if isinstance(value, Mapping) and "." not in name:
            flat |= {f"{name}.{inner}": setting for inner, setting in value.items()}
        else:
            flat[name] = value
    # JSON is YAML, in which overrides are written.
    import json

    return [f"{name}={json.dumps(value, ensure_ascii=False, default=str)}" for name, value in flat.items()]
