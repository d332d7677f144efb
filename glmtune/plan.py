"""A recipe with everything decided. `train` executes a plan, `doctor` looks at the same plan piece by piece.

Each piece is worked out once, when it is first asked for; `prepare` asks for all of them. No weights are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

from glmtune import distributed
from glmtune.config import Recipe
from glmtune.examples import Example, Split
from glmtune.methods import Method
from glmtune.models.checkpoint import fingerprint
from glmtune.models.loading import dtype_of
from glmtune.models.releases import check_release
from glmtune.objectives import Objective
from glmtune.records import read_mixture
from glmtune.resolution import ResolvedModel
from glmtune.runtime import RunFolder, UserError
from glmtune.tasks import Task
from glmtune.training.placement import Placement, placement_of, readable
from glmtune.training.requirements import check_model, check_packages, count_trainable
from glmtune.training.resumption import (
    Change,
    Past,
    check_going_on,
    check_same,
    fingerprint_records,
    read_past,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from glmtune.data import EncodedDataset
    from glmtune.data.encoder import Encoder
    from glmtune.data.lengths import Lengths
    from glmtune.training.run_trainer import Judge


class Preparation(NamedTuple):
    """What is decided before the data set is made."""

    recipe: Recipe
    task: Task
    encoder: Encoder
    general: Sequence[Example]
    mixed: Sequence[Sequence[Example]]


@dataclass(frozen=True)
class Plan:
    """A training, decided.

    Attributes:
        model: what is trained, and by which recipe.
        folder: where the run goes.
    """

    model: ResolvedModel
    folder: RunFolder

    @property
    def task(self) -> Task:
        """What is learned."""
        return self.model.task

    @property
    def method(self) -> Method:
        """How it is learned."""
        return self.model.method

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the template that is learned."""
        return self.model.tokenizer

    @property
    def objective(self) -> Objective:
        """What is learned from an example."""
        return self.model.objective

    @cached_property
    def general(self) -> Sequence[Example]:
        """Questions by which forgetting is measured; none where it is not.

        Raises:
            UserError: the file of them cannot be read, or the template does not take one.
        """
        from glmtune.evaluation.general import read_general

        settings = self.model.recipe.evaluation
        questions = read_general(settings.general_file) if settings.forgetting else []
        if not questions:
            return []
        from glmtune.data.acceptance import accepted  # imports torch, which a faulty file does not need

        return accepted(questions, self.tokenizer, self.model.recipe.data)

    @cached_property
    def mixed(self) -> Sequence[Sequence[Example]]:
        """The records of each source of `data.mixture`.

        Raises:
            UserError: a file of them cannot be read.
        """
        return read_mixture(self.model.recipe.data)

    @cached_property
    def encoder(self) -> Encoder:
        """Examples to token ids, no longer than the model can take.

        Raises:
            UserError: the template has no form for a question and its answer.
        """
        from glmtune.data.encoder import Encoder
        from glmtune.data.encoding import check_template

        check_template(self.tokenizer)
        data = self.model.recipe.data
        return Encoder(self.tokenizer, data.max_length or self.model.limit, data.train_on_bos)

    @cached_property
    def preparation(self) -> Preparation:
        """What the objective reads to make the data set, and the judge."""
        return Preparation(self.asked, self.task, self.encoder, self.general, self.mixed)

    @cached_property
    def judge(self) -> Judge | None:
        """What scores the model where the objective does it; None where it is asked held-out examples.

        Raises:
            UserError: the task has not what the objective needs.
        """
        return None if self.objective.asks else self.objective.judge(self.preparation)

    @cached_property
    def asked(self) -> Recipe:
        """The recipe as the user means it from any folder, on any machine, with room for the held-out answers."""
        from glmtune.inference.selection import fit_max_new_tokens

        dtype = dtype_of(self.model.recipe.model, self.model.config, distributed.local_device())
        kept = self.model.storage.model_dump(include={"path", "bits", "quantize_embedding"})
        decided = {**kept, "dtype": str(dtype).removeprefix("torch.")}
        model = self.model.recipe.model.model_copy(update=decided)
        recipe = self.model.recipe.model_copy(update={"model": model})
        if not self.objective.asks:
            return recipe
        return fit_max_new_tokens(recipe, self.task, self.tokenizer, self.model.limit)

    @cached_property
    def held_out(self) -> Sequence[Example]:
        """What the model is asked before and after the training.

        Raises:
            UserError: one is too long.
        """
        return self._select(during=False)

    @cached_property
    def held_out_during(self) -> Sequence[Example]:
        """What the model is asked during the training.

        Raises:
            UserError: one is too long.
        """
        return self._select(during=True)

    def _select(self, during: bool) -> Sequence[Example]:
        from glmtune.inference.selection import select_held_out

        if not self.objective.asks:
            return ()
        return select_held_out(self.asked, self.task, self.tokenizer, self.model.limit, during)

    @cached_property
    def _learned(self) -> tuple[EncodedDataset, int]:
        return self.objective.dataset(self.preparation)

    @property
    def dataset(self) -> EncodedDataset:
        """What is learned; records are encoded.

        Raises:
            UserError: a file that cannot be read, or records that are too long.
        """
        return self._learned[0]

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self._learned[1]

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe with everything filled in; what the run folder keeps."""
        hidden_size = self.model.config.get_text_config().hidden_size
        asked = self.asked.training
        rate = asked.learning_rate or self.objective.learning_rate(self.method, hidden_size)
        own = {name: value for name, value in self.objective.training.items() if name not in asked.model_fields_set}
        training = asked.model_copy(update={**own, "steps": self.steps, "learning_rate": rate})
        return self.asked.model_copy(update={"training": training})

    @cached_property
    def past(self) -> Past | None:
        """What the run has been so far; None where it is new.

        Raises:
            UserError: its record or its recipe is damaged.
        """
        return read_past(self.folder)

    @property
    def start(self) -> int:
        """The last step that the run has made; 0 where it begins."""
        return self.past.step if self.past else 0

    @property
    def goes_on(self) -> bool:
        """Whether steps are left to make after those of the past, if any."""
        training = self.recipe.training
        return self.past is None or not self.past.has_ended_by(training)

    @cached_property
    def present(self) -> Past:
        """What the run is from here on; of a base on the hub, the weights are fetched."""
        base = None if self.recipe.model.random_init else self.model.fingerprint
        if base is not None and self.model.adapter is not None:
            base = f"{base} with {fingerprint(self.model.adapter)}"
        own = self.objective.learned(self.preparation)
        splits = [self.task.records(split) for split in get_args(Split)]
        return Past(self.recipe, base, fingerprint_records([*splits, *([own] if own else ())]))

    @cached_property
    def changes(self) -> Sequence[Change]:
        """Settings that are other from here on than so far.

        Raises:
            UserError: one would make another run of it.
        """
        return check_going_on(self.past, self.present, self.folder) if self.past and self.start else ()

    @cached_property
    def lengths(self) -> Lengths:
        """Tokens of the longest example and target; of a task that draws without end, among the first ones.

        Raises:
            UserError: one is too long.
        """
        from glmtune.data.lengths import longest_of

        return longest_of(self.dataset)

    @cached_property
    def placement(self) -> Placement:
        """The memory and disk that the training takes, on this machine.

        Raises:
            UserError: the sizes of the model, or what the method trains, are not known.
        """
        demand, sizes = self.objective.demand(self.asked), (self.model.architecture, *self.lengths)
        return placement_of(self.asked, *sizes, devices=distributed.world_size(), demand=demand)

    @cached_property
    def remarks(self) -> Sequence[str]:
        """What the user should know, though nothing fails."""
        from glmtune.data.encoder import no_bos
        from glmtune.evaluation.held_out import too_few

        return [
            *self.dataset.remarks,
            *(too_few(len(self.held_out), self.asked.evaluation.num_examples) if self.objective.asks else ()),
            *no_bos(self.encoder),
            *self._precision(),
            *self._too_much(),
        ]

    def _precision(self) -> Iterator[str]:
        asked, decided = self.model.recipe.model.dtype, self.asked.model.dtype
        if asked == "auto" and decided == "bfloat16" and distributed.local_device().type == "cpu":
            yield ("Computes in bfloat16, in which this CPU is faster; model.dtype=float32 is more exact.")

    def _too_much(self) -> Iterator[str]:
        try:
            yield from self.model.architecture.remarks(self.recipe.model.bits)
            yield from self.method.remarks(self.model.architecture)
            fits = self.placement.fits
        except UserError:  # nothing is known of the layers that are trained, or of their memory
            return
        if not fits:
            estimate, place = self.placement.estimate, self.placement.place
            yield (
                f"The training takes {readable(estimate.peak)}, too much for {place.name} with its "
                f"{readable(place.memory)}. See `glmtune estimate` with the same recipe, --length "
                f"{self.lengths.example} and --target-length {self.lengths.target} for settings with which it fits."
            )


def prepare(model: ResolvedModel, folder: RunFolder, may_change: bool = True) -> Plan:
    """Return a plan with every piece worked out, so that no fault of the recipe, the files or the data is left.

    Args:
        model: by a recipe.
        folder: where the run goes.
        may_change: a run that goes on may do so by other settings, as far as that makes sense.

    Raises:
        UserError: faults in the model's files, the data, or the checkpoint that the run goes on from.
    """
    plan = Plan(model, folder)
    model.check()
    _ = (plan.task.records("train"), plan.task.records("held_out"), plan.mixed, plan.general)

    from glmtune.training.checkpoints import check_resumable  # torch, which takes seconds

    check_resumable(folder.checkpoints)
    check_release(model.base, plan.tokenizer, model.config)
    check_packages(model.recipe, model.config)
    check_model(model.recipe, model.config, plan.method)
    if plan.past is not None and not may_change:
        check_same(plan.past, plan.recipe, folder)
    _ = plan.changes
    count_trainable(plan.method, model.config)
    _ = (plan.encoder, plan.held_out, plan.held_out_during, plan.recipe, plan.lengths, plan.remarks)
    _ = plan.judge
    return plan


def run_name(recipe: Recipe) -> str:
    """Return `arithmetic-lora`: the name of a run that the user did not name."""
    return f"{Path(recipe.task.name).stem}-{Path(recipe.method.name).stem}"
