"""What is examined: a model, with the recipe that it would be trained by."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune import adapters, registry
from glmtune.config import Recipe, load_recipe, make_recipe, with_overrides
from glmtune.examples import Split
from glmtune.methods import Method
from glmtune.models import loading
from glmtune.models.checkpoint import read_json
from glmtune.records.files import READERS
from glmtune.runtime import RunFolder, UserError
from glmtune.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


SPLITS: tuple[Split, ...] = ("train", "held_out")
CHECKED = 200  # examples of each split that are encoded and scored


@dataclass
class Patient:
    """A model that is examined, with the recipe that it would be trained by.

    Attributes:
        recipe: of the target, or the default one.
        place: the run folder or adapter, if the target is one.
        has_recipe: the target is a recipe, or has one: its task and method count, too.
    """

    recipe: Recipe
    place: Path | None = None
    has_recipe: bool = True

    @property
    def run(self) -> RunFolder | None:
        """The run folder, if the target is one."""
        return RunFolder(self.place) if self.place is not None and RunFolder.is_run(self.place) else None

    @property
    def adapter(self) -> Path | None:
        """The adapter's folder, where the target is or has one."""
        if self.run is None:
            return self.place
        return None if self.run.model.is_dir() else self.run.adapter

    @property
    def trains(self) -> bool:
        """Whether a training is what is to come: where it does not fit, something will fail."""
        done = self.run is not None and (self.run.model.is_dir() or self.run.adapter.is_dir())
        return self.has_recipe and not done

    @property
    def base_is_named(self) -> bool:
        """Whether it is the recipe that says which model it is, as in `evaluate`; else the adapter does."""
        return self.adapter is None or "path" in self.recipe.model.model_fields_set

    @cached_property
    def base(self) -> str:
        """The model, as users name it."""
        if self.adapter is None or self.base_is_named:
            return self.recipe.model.path
        return adapters.base_of(self.adapter)

    @property
    def is_remote(self) -> bool:
        """Whether it comes from the hub."""
        return self.base not in loading.EMBEDDED and not Path(self.base).is_dir()

    @cached_property
    def folder(self) -> Path:
        """The model's folder; of a hub name, its small files are fetched."""
        if Path(self.base).is_dir():  # whose files are looked at one by one
            return Path(self.base)
        return Path(loading.fetch(loading.locate(self.base), weights=False))

    @cached_property
    def values(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return read_json(self.folder / "config.json")

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        return loading.load_config(str(self.folder))

    @property
    def tokenizer_folder(self) -> Path:
        """The adapter's folder, where a tokenizer was saved with it; else the model's."""
        saved = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        return self.adapter if self.adapter is not None and saved else self.folder

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that would be used, with the recipe's template; a run's tokenizer has its own."""
        from glmtune.models.templates import adopt

        found = loading.load_tokenizer(str(self.tokenizer_folder))
        if self.recipe.data.template is not None and self.run is None:
            adopt(found, self.recipe.data.template)
        return found

    @cached_property
    def task(self) -> Task:
        """The recipe's task."""
        return registry.find("glmtune.tasks", self.recipe.task.name)(self.recipe.task, self.recipe.data)

    @cached_property
    def method(self) -> Method:
        """The recipe's method."""
        return registry.find("glmtune.methods", self.recipe.method.name)(self.recipe.method)

    @cached_property
    def lengths(self) -> tuple[int, int]:
        """Tokens of the longest example, and of the longest target, among the first examples of the task."""
        from glmtune.commands.train import longest_of
        from glmtune.data import DrawnExamples, examples_of
        from glmtune.data.encoding import Encoder
        from glmtune.data.mixture import encoded
        from glmtune.inference.selection import fit_max_new_tokens, select_held_out

        limit = loading.max_length(self.config)
        if limit is not None:
            limit -= self.method.num_prefix_positions(self.config.model_type)
        select_held_out(
            fit_max_new_tokens(self.recipe, self.task, self.tokenizer, limit), self.task, self.tokenizer, limit
        )
        train = examples_of(self.task, "train", CHECKED, self.recipe.seed)
        train = train if isinstance(train, DrawnExamples) else train[:CHECKED]
        data = self.recipe.data
        encoder = Encoder(self.tokenizer, data.max_length or limit, data.train_on_bos)
        return longest_of(encoded(train, encoder, data.model_copy(update={"cache": False}), "The examples"))


def admit(target: str | None, overrides: Sequence[str]) -> Patient:
    """The patient that a target is.

    Raises:
        RecipeError: faults in a recipe.
    """
    if target is None or target.endswith((".yaml", ".yml")):
        return Patient(load_recipe(target, overrides))
    if is_data(target):
        task = {"name": "instructions", "file": target}
        return Patient(make_recipe(with_overrides({"task": task}, overrides)))
    if RunFolder.is_run(target):
        run = RunFolder(target)
        recipe = load_recipe(run.recipe, overrides)
        if run.model.is_dir():
            recipe.model.path = str(run.model)
        return Patient(recipe, run.path)
    recipe = load_recipe(None, overrides)
    with suppress(UserError):  # a file is damaged, of which the checks tell
        if adapters.is_adapter(Path(target)):
            return Patient(recipe, Path(target), has_recipe=False)
    recipe.model.path = target
    return Patient(recipe, has_recipe=False)


def is_data(target: str) -> bool:
    """Whether a target is a file of records."""
    path = Path(target)
    return path.suffix in READERS or (path.is_file() and path.suffix not in (".yaml", ".yml"))
