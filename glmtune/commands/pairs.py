"""`glmtune pairs`: write pairs of a model's own answers, right against wrong, to learn from with objective.name=dpo."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glmtune.commands._arguments import add_settings, add_target, add_trust, trust_of
from glmtune.terminal import counted, say, to_json
from glmtune.trust import REMEMBERED, Trust

if TYPE_CHECKING:
    from glmtune.examples import Example
    from glmtune.inference.pairs import Sampled
    from glmtune.resolution import ResolvedModel, Target

# As reinforcement learning samples; what the user says goes before.
SAMPLING = ("generation.do_sample=true", "generation.temperature=1.0", "generation.top_p=1.0")


class Found(NamedTuple):
    """What was written, and of what.

    Attributes:
        pairs: written.
        prompts: asked, each several times.
        right, wrong: prompts all of whose answers were so.
        unusable: answers that are no text as the model ends it.
    """

    pairs: int
    prompts: int
    right: int
    wrong: int
    unusable: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model, what it is asked, and where the pairs go."""
    add_target(parser)
    parser.add_argument("--task", metavar="TASK", help="whose problems are asked; default: that of the run")
    parser.add_argument("--n", type=int, default=1000, help="prompts that are asked (default: 1000)")
    parser.add_argument("--output", required=True, metavar="PAIRS.jsonl", help="file to write, or to replace")
    parser.add_argument("--num-samples", type=int, default=8, metavar="K", help="answers to each prompt (default: 8)")
    parser.add_argument("--pairs-per-prompt", type=int, default=1, metavar="M", help="at most (default: 1)")
    parser.add_argument(
        "--seed", type=int, help="of prompts and answers (default: that of the run and 1, so that the prompts are new)"
    )
    add_trust(parser)
    add_settings(parser, "task.operators=+ generation.temperature=1.2")


def main(options: argparse.Namespace) -> None:
    """Sample, write, and print how many pairs there are."""
    from glmtune.libraries import quiet_libraries

    quiet_libraries()
    task = [] if options.task is None else [f"task.name={to_json(options.task)}"]
    sampling = (options.num_samples, options.pairs_per_prompt, options.seed)
    settings = [*task, *options.settings]
    show(run(options.target, options.n, options.output, settings, *sampling, trust=trust_of(options)), options)


def run(
    target: Target,
    n: int,
    output: str,
    overrides: Iterable[str] = (),
    num_samples: int = 8,
    most: int = 1,
    seed: int | None = None,
    trust: Trust = REMEMBERED,
) -> Found:
    """Write records `{"prompt", "chosen", "rejected", "right", "samples"}`, hard prompts first.

    After Ctrl-C, what was found until then is written.

    Args:
        target: run folder, adapter, checkpoint directory, GGUF file, hub name or `nano`.
        n: prompts of the train split that are asked.
        output: JSONL file; replaced when all are asked.
        overrides: `section.setting=value` texts.
        num_samples: answers to each prompt.
        most: pairs of one prompt.
        seed: of prompts and answers; default: the recipe's and 1.
        trust: what becomes of code that the target's recipe names.

    Raises:
        UserError: no such model, numbers that make no pair, an output that cannot be written, or no pair was found.
        KeyboardInterrupt: after Ctrl-C, once what was found is written.
    """
    from glmtune.files import check_output, replacing
    from glmtune.records.writing import LINES
    from glmtune.resolution import resolve
    from glmtune.runtime import UserError

    for flag, value, least in (("--n", n, 1), ("--num-samples", num_samples, 2), ("--pairs-per-prompt", most, 1)):
        if value < least:
            raise UserError(f"{flag} {value}: must be at least {least}")
    if Path(output).suffix.lower() not in LINES:
        raise UserError(f"--output {output}: pairs are written as JSON lines. Name it {Path(output).stem}.jsonl.")
    check_output(output)
    overrides = [*overrides]
    said = {override.partition("=")[0] for override in overrides}
    usual = [setting for setting in SAMPLING if setting.partition("=")[0] not in said]
    resolved = resolve(target, [*usual, *overrides], trust)
    if not resolved.recipe.generation.do_sample:
        raise UserError("generation.do_sample=false: all answers to a prompt would be the same. Leave it out.")
    seed = resolved.recipe.seed + 1 if seed is None else seed
    examples = choose_prompts(resolved, n, seed)
    sampled: list[Sampled] = []
    stop: KeyboardInterrupt | None = None
    try:
        sample(resolved, examples, num_samples, most, seed, sampled)
    except KeyboardInterrupt as interrupt:
        stop = interrupt
    records = [pair for one in sorted(sampled, key=lambda one: one.right) for pair in one.pairs]
    if records:
        with replacing(output) as temporary:
            temporary.write_text("".join(to_json(record) + "\n" for record in records), encoding="utf-8")
    if stop is not None:
        written = f"{counted(len(records), 'pair')} of {counted(len(sampled), 'prompt')} written to {output}"
        say(f"\n{written if records else 'No pair was found yet.'}", error=True)
        raise stop
    verdicts = Counter(one.right for one in sampled)
    unusable = sum(one.unusable for one in sampled)
    found = Found(len(records), len(sampled), verdicts[num_samples], verdicts[0], unusable)
    if not records:
        raise UserError(f"No pair was found, and {output} is not written. {explain(found, num_samples)}")
    return found


def choose_prompts(resolved: ResolvedModel, n: int, seed: int) -> list[Example]:
    """Return examples of the train split, each prompt once.

    Raises:
        UserError: there are none.
    """
    import random

    from glmtune.data import DrawnExamples
    from glmtune.records.leaks import problem_of
    from glmtune.runtime import UserError

    examples = resolved.task.records("train")
    if examples is None:
        examples = DrawnExamples(resolved.task, n, seed, posed=True)
    else:  # what has no answer in text cannot be scored
        examples = [example for example in examples if example.text is None and example.question and example.target]
        examples = random.Random(seed).sample(examples, min(n, len(examples)))
    found = {problem_of(example.prompt): example for example in examples if not resolved.task.holds_out(example.prompt)}
    if not found:
        raise UserError(f"task.name={resolved.recipe.task.name}: there is nothing to ask.")
    return [*found.values()]


def sample(
    resolved: ResolvedModel, examples: Sequence[Example], num_samples: int, most: int, seed: int, found: list[Sampled]
) -> None:
    """Ask every prompt, and append what came of it to `found`, so that it is there after a stop, too."""
    from tqdm import tqdm

    from glmtune.inference.engine import Engine
    from glmtune.inference.pairs import sample_pairs
    from glmtune.inference.selection import fit_max_new_tokens

    recipe = fit_max_new_tokens(resolved.recipe, resolved.task, resolved.tokenizer, resolved.limit)
    engine, pairs = Engine(*resolved.load(), resolved.limit), 0
    how: Any = (recipe.generation, num_samples, most, seed)
    # They are answered many at a time; a bar that was told one by one would take the first for as long as all of these.
    with tqdm(total=len(examples), desc="sampling", unit="prompt", smoothing=0) as bar:
        for several in sample_pairs(engine, resolved.task, examples, *how):
            found += several
            pairs += sum(len(one.pairs) for one in several)
            bar.set_postfix_str(f"{pairs} pairs", refresh=False)
            bar.update(len(several))


def explain(found: Found, num_samples: int) -> str:
    """Return what became of the prompts, and what to do where they give few pairs."""
    neither = found.prompts - found.right - found.wrong
    told = (
        f"Of {counted(found.prompts, 'prompt')} with {num_samples} answers each, {neither:,} had right and wrong ones, "
        f"{found.right:,} right ones alone and {found.wrong:,} wrong ones alone."
    )
    if found.unusable:
        told += f" {counted(found.unusable, 'answer')} cut off, refused, or with calls or thoughts: left out."
    if found.pairs >= found.prompts / 10:
        return told
    if found.wrong > found.right:
        remedy = "The model knows too little of this: let it learn by objective.name=sft first, or ask easier problems"
    else:
        remedy = "The model knows nearly all of this: ask harder problems, or raise generation.temperature"
    return f"{told} {remedy}, or raise --num-samples."


def show(found: Found, options: argparse.Namespace) -> None:
    """Print how many pairs are where, what became of the other prompts, and how they are learned."""
    say(f"{counted(found.pairs, 'pair')} written to {options.output}, the hardest prompts first.")
    say(explain(found, options.num_samples))
    say(f"Learn from them: glmtune train {beginning(options)} objective.name=dpo objective.pairs={options.output}")


def beginning(options: argparse.Namespace) -> str:
    """Return how a training begins with the model that was asked, and with the same task."""
    from glmtune.runtime import RunFolder

    is_run = RunFolder.is_run(options.target)
    words = [str(options.target) if is_run else f"model.path={options.target}"]
    words += [f"task.name={options.task}"] if options.task is not None else []
    words += [setting for setting in options.settings if setting.startswith(("task=", "task."))]
    return shlex.join([*words, *(["training.output_dir=NEW"] if is_run else [])])
