"""What a user names, resolved once: a run, an adapter, a checkpoint or a recipe as a model that can be loaded.

Nothing is read before it is asked for, and then it is read once. Importing this needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from glmtune import adapters, registry
from glmtune.config import ModelSettings, Recipe, at_home, findable, load_recipe, make_recipe, read_yaml
from glmtune.files import check_folder
from glmtune.methods import Method
from glmtune.models import loading
from glmtune.models.architecture import Architecture
from glmtune.models.checkpoint import fingerprint
from glmtune.models.endings import named_ends
from glmtune.models.sizes import read_config
from glmtune.models.templates import adopt, read_template
from glmtune.objectives import Objective
from glmtune.runtime import RunFolder, UserError
from glmtune.tasks import Task
from glmtune.trust import LOOKING, REMEMBERED, Trust, UntrustedError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from glmtune.methods import Model

Target: TypeAlias = "str | os.PathLike[str]"

RECIPE_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class ResolvedModel:
    """A model, with the recipe that says how it was or is to be trained, judged and asked.

    Attributes:
        recipe: of the run or the recipe's file; the default one for a model or an adapter by itself.
        target: what was named: a recipe, a run folder, an adapter, a checkpoint directory, a GGUF file, a hub name or
            `nano`; None is the default recipe.
        run: the run folder, where the target is one.
        adapter: the folder of the adapter, where the target is or has one, or is a recipe by which one is to learn on;
            it may be missing or damaged (`check`).
    """

    recipe: Recipe
    target: str | None = None
    run: RunFolder | None = None
    adapter: Path | None = None

    @property
    def is_recipe(self) -> bool:
        """Whether a recipe was named, whose `model.path` is what is to be trained."""
        return self.target is None or self.target.endswith(RECIPE_SUFFIXES)

    @property
    def has_recipe(self) -> bool:
        """Whether the recipe is the target's own, so that its task and method count."""
        return self.is_recipe or self.run is not None

    @property
    def has_task(self) -> bool:
        """Whether the target says what it was taught: by its recipe, or as a checkpoint that lies beside one."""
        return self.has_recipe or (self.target is not None and RunFolder(self.target).recipe.is_file())

    @property
    def base_is_named(self) -> bool:
        """Whether the recipe says which model an adapter is put on; else the adapter does."""
        return self.adapter is None or "path" in self.recipe.model.model_fields_set

    @cached_property
    def base(self) -> str:
        """The checkpoint that is loaded, as users name it.

        Raises:
            UserError: neither recipe nor adapter names one.
        """
        if self.adapter is not None and not self.base_is_named:
            return adapters.base_of(self.adapter)
        if self.run is not None and self.adapter is None:
            return str(self.run.model)
        return self.recipe.model.path if self.is_recipe or self.adapter is not None else str(self.target)

    @cached_property
    def place(self) -> str:
        """The base's folder, its GGUF file, or its name on the hub.

        Raises:
            UserError: there is no such model.
        """
        is_target = self.adapter is None and self.run is None and not self.is_recipe
        if is_target and not Path(self.base).exists() and not loading.is_name(self.base):
            raise UserError(f"no run, adapter, checkpoint or recipe at {self.base}.{loading.suggest(self.base)}")
        return loading.locate(self.base)

    @property
    def is_remote(self) -> bool:
        """Whether the base comes from the hub."""
        return self.base not in loading.EMBEDDED and not Path(self.base).exists()

    @cached_property
    def folder(self) -> Path:
        """The base's folder; of a hub name, the small files are fetched, of a GGUF file, made.

        Raises:
            UserError: there is no such model, or its folder holds a link out of it.
        """
        if loading.find_gguf(self.base):
            return Path(loading.fetch(self.place, weights=False))
        if Path(self.base).is_dir():
            check_folder(self.base)
            return Path(self.base)
        return Path(loading.fetch(self.place, weights=False))

    @property
    def holder(self) -> Path:
        """What holds the base's weights: its GGUF file, or its folder, into which none are fetched now."""
        return loading.find_gguf(self.base) or self.folder

    @cached_property
    def values(self) -> dict[str, Any]:
        """What the base's `config.json` holds."""
        return read_config(self.folder)

    @cached_property
    def architecture(self) -> Architecture:
        """The sizes of the base, from its `config.json` alone.

        Raises:
            UserError: they are not known.
        """
        return Architecture.from_config(self.values)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The base's configuration.

        Raises:
            UserError: it is damaged, or of no known family.
        """
        return loading.load_config(str(self.folder))

    @property
    def tokenizer_folder(self) -> Path:
        """The adapter's folder, where a tokenizer was saved with it; else the base's."""
        saved = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        return self.adapter if self.adapter is not None and saved else self.folder

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with the template that the model is asked with: a run's own, or that of the recipe.

        Raises:
            UserError: it is damaged, or a run is asked for another template than it learned with.
        """
        template = self.recipe.data.template
        tokenizer = loading.load_tokenizer(str(self.tokenizer_folder))
        if self.run is None:
            if template is not None:
                adopt(tokenizer, template)
        elif template != make_recipe({"data": read_yaml(self.run.recipe).get("data") or {}}).data.template:
            raise UserError(
                f"data.template={template}: {self.target} answers with the template that it learned with. Leave the "
                "setting out."
            )
        return tokenizer

    @cached_property
    def task(self) -> Task:
        """The recipe's task."""
        task: Task = registry.admitted("glmtune.tasks", self.recipe.task.name)(self.recipe.task, self.recipe.data)
        return task

    @cached_property
    def method(self) -> Method:
        """The recipe's method."""
        method: Method = registry.admitted("glmtune.methods", self.recipe.method.name)(self.recipe.method)
        return method

    @cached_property
    def objective(self) -> Objective:
        """What the recipe learns from an example."""
        settings = self.recipe.objective
        objective: Objective = registry.admitted("glmtune.objectives", settings.name)(settings)
        return objective

    @cached_property
    def limit(self) -> int | None:
        """Tokens that prompt and answer may have together; None where the model states no limit."""
        longest = loading.max_length(self.config)
        return None if longest is None else longest - self.method.num_prefix_positions(self.config.model_type)

    @cached_property
    def stops(self) -> list[int]:
        """Tokens that end an answer: those of the tokenizer and its template, and those that the checkpoint names."""
        from glmtune.data.encoding import stop_ids

        return sorted({*stop_ids(self.tokenizer), *named_ends(self.folder, self.config)})

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of the base's weights; of a hub name, these are fetched."""
        return fingerprint(loading.fetch_weights(self.place))

    @cached_property
    def storage(self) -> ModelSettings:
        """How the base is loaded, by a path that any folder finds: as the recipe says, else as the adapter noted."""
        noted = adapters.record_of(self.adapter) if self.adapter is not None else {}
        asked = self.recipe.model
        return ModelSettings(
            path=self.base if self.base in loading.EMBEDDED else findable(self.base),
            dtype=asked.dtype,
            attention=asked.attention,
            bits=asked.bits if "bits" in asked.model_fields_set else noted.get("bits", 16),
            quantize_embedding=asked.quantize_embedding
            if "quantize_embedding" in asked.model_fields_set
            else noted.get("quantize_embedding", False),
            random_init=asked.random_init and self.is_recipe,
        )

    def check(self) -> None:
        """See whether base and template are there, and an adapter is whole and of this base. No weights are loaded.

        Raises:
            UserError: something is missing or damaged, or they do not fit each other.
        """
        if self.run is None and self.recipe.data.template is not None:
            read_template(self.recipe.data.template)
        if self.adapter is None:
            _ = self.place
            return
        named = Path(str(self.recipe.model.adapter)) if self.is_recipe else self.adapter
        if self.is_recipe and self.recipe.model.random_init:
            raise UserError(f"model.random_init: {named} was not trained on fresh weights. Leave one of the two out.")
        if self.is_recipe and not named.exists():
            raise UserError(f"model.adapter={named}: there is no such folder. If it has moved, name where it is now.")
        adapters.adapter_folder(named if self.run is None else self.run.path)
        adapters.check_base(self.adapter, self.base)
        adapters.check_adapter(self.adapter, self.run or RunFolder(self.adapter))

    def load(self, device: torch.device | str | None = None, **storage: Any) -> tuple[Model, PreTrainedTokenizerBase]:
        """Load the model, in evaluation mode, with its adapter and its tokenizer.

        Args:
            device: default: the GPU where there is one.
            storage: settings of `model`, such as `dtype` and `bits`, in place of those of the recipe.

        Raises:
            UserError: weights are missing or damaged, or do not fit.
        """
        model: Model
        model, tokenizer = self.load_base(device, **storage)
        if self.adapter is not None:
            model = adapters.attach(model, self.adapter).eval()
        return model, tokenizer

    def load_base(
        self, device: torch.device | str | None = None, **storage: Any
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Do what `load` does, without the adapter."""
        import torch

        settings = ModelSettings(**{**self.storage.model_dump(), **storage})
        place = None if device is None else torch.device(device)
        divisible = self.recipe.training.sharding == "full"
        return loading.load_model(settings, place, self.config, self.tokenizer, divisible)


def resolve(
    target: Target | None = None,
    overrides: Iterable[str] = (),
    trust: Trust = REMEMBERED,
    recipe: Target | None = None,
) -> ResolvedModel:
    """Return the model that a target names, once it is known to be there.

    Args:
        target: a run folder, an adapter, a checkpoint directory, a GGUF file, a hub name, `nano`, or a recipe
            (`.yaml`); None is the default recipe.
        overrides: `section.setting=value` texts. `model.path=...` names the base that an adapter is put on.
        trust: what becomes of code that the target's recipe names.
        recipe: of a target that has none: a recipe (`.yaml`), or a run. What it says of its own model does not count.

    Raises:
        UserError: faults in the recipe, no such model, or an adapter that does not fit its base.
        UntrustedError: the recipe names code that may not run.
    """
    resolved = identify(target, overrides, trust) if recipe is None else lend(target, recipe, overrides, trust)
    resolved.check()
    return resolved


def identify(target: Target | None = None, overrides: Iterable[str] = (), trust: Trust = REMEMBERED) -> ResolvedModel:
    """Return what `resolve` does, before anything but the recipe was looked at.

    Raises:
        UserError: faults in the recipe, or a folder that holds a link out of it.
        UntrustedError: it names code that may not run.
    """
    name = None if target is None else os.fspath(target)
    if name is not None and Path(name).is_dir():
        check_folder(name)
    if name is None or name.endswith(RECIPE_SUFFIXES):
        return of_recipe(load_recipe(name, overrides, trust), name)
    own = RunFolder(name)
    recipe = load_recipe(own.recipe if own.recipe.is_file() else None, overrides, trust)
    if RunFolder.is_run(name):
        return ResolvedModel(at_home(recipe, own), name, own, None if own.model.is_dir() else own.adapter)
    with suppress(UserError):  # a file is damaged, of which `check` tells
        if adapters.is_adapter_folder(Path(name)):
            return ResolvedModel(recipe, name, adapter=Path(name))
    return ResolvedModel(recipe, name)


def of_recipe(recipe: Recipe, target: str | None = None) -> ResolvedModel:
    """Return what a recipe trains: a model, or one with an adapter that learns on.

    Args:
        recipe: as it was read.
        target: its file, if it has one.
    """
    named = recipe.model.adapter
    if named is None:
        return ResolvedModel(recipe, target)
    return ResolvedModel(recipe, target, adapter=RunFolder(named).adapter if RunFolder.is_run(named) else Path(named))


def lend(target: Target | None, recipe: Target, overrides: Iterable[str], trust: Trust) -> ResolvedModel:
    """Return what `identify` does of a target without a recipe, with that of a file or a run.

    Raises:
        UserError: the target has one, or there is no such recipe.
    """
    resolved, lender = identify(target), os.fspath(recipe)
    if resolved.has_recipe:
        raise UserError(f"{target} has a recipe of its own. Leave {lender} out.")
    if not lender.endswith(RECIPE_SUFFIXES) and not RunFolder.is_run(lender):
        raise UserError(
            f"{lender}: is no recipe (.yaml) and no run, by which {target} could be asked.{loading.suggest(lender)}"
        )
    file = lender if lender.endswith(RECIPE_SUFFIXES) else RunFolder(lender).recipe
    return replace(resolved, recipe=load_recipe(file, ["model={}", *overrides], trust))


def look(target: Target | None = None, overrides: Iterable[str] = ()) -> tuple[ResolvedModel, UntrustedError | None]:
    """Return what `identify` does, without a section of the recipe whose code only the file names: it is not run.

    Returns:
        The model, with the defaults in the place of such sections; and what they ask.

    Raises:
        UserError: faults in the recipe.
    """
    try:
        return identify(target, overrides, LOOKING), None
    except UntrustedError as refused:
        return identify(target, [*overrides, *(f"{section}={{}}" for section in refused.sections)], LOOKING), refused


def resolve_adapter(
    adapter: Target, base: Target, overrides: Iterable[str] = (), trust: Trust = REMEMBERED
) -> ResolvedModel:
    """Return an adapter, or that of a run, on a base of the caller's choice.

    Raises:
        UserError: there is none, or it does not fit the base.
    """
    if RunFolder.is_run(os.fspath(base)):
        raise UserError(f"{base} is a run folder, which has no adapter put on it: name the base model instead.")
    adapters.adapter_folder(Path(adapter))
    return resolve(adapter, [f"model.path={os.fspath(base)}", *overrides], trust)
