"""The loop of expert iteration: targets are the model's own right answers, sampled anew every few steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch.utils.data import DataLoader

from glmtune.data import DrawnExamples
from glmtune.data.encoding import Encoding
from glmtune.data.mixture import passes
from glmtune.distributed import is_main
from glmtune.examples import Example
from glmtune.files import remove_folder
from glmtune.inference.engine import Engine
from glmtune.inference.prompts import has_room
from glmtune.inference.rollouts import Rollout, pass_at_k, roll_out
from glmtune.inference.selection import encode_examples
from glmtune.messages import as_messages, text_in
from glmtune.methods import Model
from glmtune.runtime import UserError
from glmtune.terminal import say
from glmtune.training import sharding
from glmtune.training.checkpoints import REMEDY, Open
from glmtune.training.trainer import Trainer

if TYPE_CHECKING:
    from glmtune.objectives.rejection import RejectionSettings
    from glmtune.plan import Plan

FILE = "round.json"  # in a checkpoint


class Target(BaseModel):
    """A prompt with an answer to it: an `Encoding` as a checkpoint keeps it."""

    model_config = ConfigDict(strict=True)

    input_ids: list[int]
    labels: list[int]


class Round(BaseModel):
    """What is learned until the model is asked again.

    Attributes:
        number: of the round, from 0.
        targets: prompts with right answers to them.
        figures: what the log says of the answers.
        is_solved: all answers to all prompts were right.
    """

    model_config = ConfigDict(strict=True)

    number: int
    targets: list[Target]
    figures: dict[str, float]
    is_solved: bool = False


@dataclass(frozen=True)
class Rounds:
    """Samples rounds: what is asked depends on the recipe and the round alone, the answers on the weights as well."""

    plan: Plan
    settings: RejectionSettings

    def sample(self, model: Model, number: int) -> Round:
        """Ask the model, and keep what is right.

        Args:
            model: in evaluation mode.
            number: of the round, from 0.

        Raises:
            UserError: nothing is right, so that there is nothing to learn.
        """
        plan, settings = self.plan, self.settings
        sampled = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": None}
        generation = plan.recipe.generation.model_copy(update=sampled)
        examples = self.examples(number)
        seed = plan.recipe.seed + number * settings.prompts_per_round * settings.num_samples
        engine = Engine(model, plan.tokenizer, plan.model.limit)
        groups = roll_out(engine, plan.task, examples, generation, settings.num_samples, seed)
        kept = [self.keep(group) for group in groups]
        answers = [rollout for group in groups for rollout in group]
        figures = {
            "round": float(number + 1),
            "sampled_pass_at_1": pass_at_k(groups, 1),
            f"sampled_pass_at_{settings.num_samples}": pass_at_k(groups, settings.num_samples),
            "sampled_kept": sum(map(len, kept)) / len(answers),
            "sampled_unsolved": sum(not right for right in kept) / len(groups),
            "sampled_tokens": sum(len(rollout.exchange.completion.token_ids) for rollout in answers) / len(answers),
        }
        is_solved = figures["sampled_pass_at_1"] == 1
        if settings.skip_solved and not is_solved:
            open_ones = [right for group, right in zip(groups, kept, strict=True) if not all_right(group)]
            kept = open_ones if any(open_ones) else kept
        targets = [target for right in kept for rollout in right for target in self.encode(rollout)]
        if not targets:
            raise UserError(
                f"objective.name={settings.name}: round {number + 1}: of {len(answers):,} answers to {len(groups):,} "
                "prompts none could be kept, as none is right and ends by itself: there is nothing to learn from. "
                "Teach the model first (objective.name=sft, then `glmtune train RUN objective.name="
                f"{settings.name}`), ask something easier, or raise objective.num_samples."
            )
        return Round(number=number, targets=targets, figures=figures, is_solved=is_solved)

    def examples(self, number: int) -> Sequence[Example]:
        """Return what is asked in a round: draws that no other round has, or records in passes over all of them.

        Raises:
            UserError: no prompt leaves room for its answer.
        """
        plan, count = self.plan, self.settings.prompts_per_round
        records, first = plan.task.records("train"), number * count
        if records is None:  # by another seed than what is learned from targets
            first += plan.recipe.data.first_draw
            chosen: Sequence[Example] = DrawnExamples(plan.task, count, plan.recipe.seed + 1, first=first, posed=True)[
                :
            ]
        else:
            places = passes(len(records), f"{plan.recipe.seed} prompts", first)
            chosen = [records[place] for place in islice(places, count)]
        chosen = [askable for example in chosen if (askable := self.askable(example)) is not None]
        limit, room = plan.model.limit, plan.recipe.generation.longest
        encoded = encode_examples(plan.tokenizer, chosen)
        asked = [example for example, ids in zip(chosen, encoded, strict=True) if has_room(len(ids), limit, room)]
        if not asked:
            raise UserError(
                f"generation.max_new_tokens={room}: no prompt of round {number + 1} leaves room for so long an answer "
                f"in the {limit} tokens that the model takes. Lower it."
            )
        return asked

    def askable(self, example: Example) -> Example | None:
        """Return an example whose target is the final answer; None where that is not known.

        One that teaches a call of a tool has none: the task works it out, if it can.
        """
        if not example.tool_calls:
            return example
        right = self.plan.task.answer_to(example.prompt)
        return None if right is None else replace(example, target=right, tool_calls=())

    def keep(self, group: Sequence[Rollout]) -> list[Rollout]:
        """Return the first right answers to a prompt that differ."""
        found: dict[str, Rollout] = {}
        for rollout in group:
            if self.is_right(rollout):
                found.setdefault(repr(rollout.exchange.messages), rollout)
        return list(found.values())[: self.settings.max_kept_per_prompt]

    def is_right(self, rollout: Rollout) -> bool:
        """Return whether an answer is right, has ended, and nothing is wrong with how it was found."""
        score = rollout.score
        if not score.correct or rollout.exchange.completion.finish_reason != "stop":
            return False
        return not self.settings.check_working or (score.fault is None and score.metrics.get("faithful_calls", 1) >= 1)

    def encode(self, rollout: Rollout) -> Iterator[Target]:
        """Yield the model's turns as something to learn, each behind all that was said before; of tools nothing is."""
        example, messages, encoder = rollout.example, rollout.exchange.messages, self.plan.encoder
        for place, turn in enumerate(messages):
            if turn["role"] != "assistant":
                continue
            own = Example(
                [*as_messages(example.prompt), *messages[:place]] if place else example.prompt,
                text_in(turn["content"]),
                tool_calls=turn.get("tool_calls", ()),
                reasoning_content=turn.get("reasoning_content", ""),
                tools=rollout.question.tools,
            )
            encoding = encoder(own)
            if encoder.fits(encoding):
                yield Target(input_ids=encoding["input_ids"], labels=encoding["labels"])


def all_right(group: Sequence[Rollout]) -> bool:
    """Return whether all answers to a prompt are right."""
    return all(rollout.score.correct for rollout in group)


class RoundTrainer(Trainer):
    """The loop of a run that learns its own answers: each round begins with new ones.

    A checkpoint has the round that it stands in, so that a run that goes on learns what it would have learned.

    Args:
        rounds: samples them.
        options: of the loop, by name.
    """

    def __init__(self, *, rounds: Rounds, **options: Any):
        super().__init__(**options)
        self.rounds, self.round = rounds, Round(number=-1, targets=[], figures={})
        self.untold: dict[str, float] = {}  # of a round that has just begun

    def get_train_dataloader(self) -> Any:
        """Return numbers in the place of micro-batches, which are made when it is their turn."""
        steps = self.args.max_steps * self.args.gradient_accumulation_steps
        return self.accelerator.prepare(DataLoader(range(steps), batch_size=1))  # type: ignore[arg-type]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Return the micro-batches of a step; the first of a round are sampled now, from the weights as they are."""
        count = sum(1 for _ in islice(epoch_iterator, num_batches))
        return super().get_batch_samples(iter(self.micro_batches(count)), count, device)

    def micro_batches(self, count: int) -> list[dict[str, Any]]:
        """Return the step at hand as so many micro-batches; neighbours have similar lengths."""
        number, place = divmod(self.state.global_step, self.rounds.settings.steps_per_round)
        if place == 0:
            self.begin_round(number)
        elif self.round.number != number:
            self.round = read_round(self.checkpoint_at(self.state.global_step), number)
            self.bar.show(round=self.place_of(number))
        each, targets = self.rounds.plan.recipe.training.examples_per_step, self.round.targets
        order = passes(len(targets), f"{self.args.seed} {number}", place * each)
        chosen = [
            Encoding(input_ids=targets[index].input_ids, labels=targets[index].labels, record=index)
            for index in islice(order, each)
        ]
        chosen.sort(key=lambda encoding: len(encoding["input_ids"]))
        size = -(-each // count)
        return [
            {
                name: tensor.to(self.args.device)
                for name, tensor in self.data_collator(chosen[start : start + size]).items()
            }
            for start in range(0, each, size)
        ]

    def begin_round(self, number: int) -> None:
        """Ask the model, as it is judged: in evaluation mode, and in the precision that it is trained in.

        Raises:
            UserError: nothing is right.
        """
        model = self.unwrapped
        was_training = model.training
        model.eval()
        may, place = self.state.global_step > 0, self.place_of(number)
        self.bar.show(round=f"{place} (asking)")
        with self.accelerator.autocast(), sharding.put_together(model), self.interrupt.giving_up(may):
            try:
                self.round = self.rounds.sample(model, number)
            except UserError:
                if self.state.global_step == 0:  # nothing was learned: no run is left
                    remove_folder(self.folder.checkpoints)
                raise
        model.train(was_training)
        self.untold = self.round.figures
        self.bar.show(round=place, kept=f"{self.round.figures['sampled_kept']:.0%}")

    def place_of(self, number: int) -> str:
        """Return `3/20` of the third round of twenty."""
        return f"{number + 1}/{-(-self.args.max_steps // self.rounds.settings.steps_per_round)}"

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Tell of a round with its first step, and end where nothing is left to learn."""
        if self.untold:
            is_due = self.control.should_log
            self.log(dict(self.untold))
            self.control.should_log = is_due
        is_first, self.untold = bool(self.untold), {}
        if self.round.is_solved:
            self.control.should_log = self.control.should_evaluate = self.control.should_save = True
            self.control.should_training_stop = True
            if is_main() and is_first:
                say(
                    f"\nAll answers of round {self.round.number + 1} were right: nothing is left to learn from these "
                    f"prompts. It ends after step {self.state.global_step}.",
                    error=True,
                )
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def write_rest(self, checkpoint: Path, left: Open) -> None:
        """Write the round beside the state."""
        if is_main():
            (checkpoint / FILE).write_text(self.round.model_dump_json() + "\n", encoding="utf-8")
        super().write_rest(checkpoint, left)

    def describe_batch(self, inputs: Any) -> str:
        """Return which answers these are."""
        return f"answers of the model's own, round {self.round.number + 1}"


def read_round(checkpoint: Path, number: int) -> Round:
    """Return the round that a checkpoint stands in.

    Raises:
        UserError: it is missing or damaged, or another one.
    """
    try:
        found = Round.model_validate_json((checkpoint / FILE).read_text(encoding="utf-8"))
        if found.number != number or not found.targets:
            raise ValueError(f"it is of round {found.number + 1}, not {number + 1}")
        return found
    except (OSError, UnicodeDecodeError, ValidationError, ValueError) as error:
        raise UserError(f"{checkpoint / FILE} is damaged: {str(error).splitlines()[0]}. {REMEDY}") from None
