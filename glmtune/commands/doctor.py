"""`glmtune doctor`: what would fail, and what to do about it, before anything is trained. No weights are read.

Each check is caught by itself, so that one failure hides no other; only what cannot be looked at because of it is left
out, and that is said. What may be missing or broken (torch, transformers) is imported by the check that needs it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import platform
import re
import shlex
import shutil
import textwrap
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from glmtune import methods, models, registry
from glmtune.commands.estimate import at_hand, estimate, lengths, readable, remedies
from glmtune.config import Recipe, RecipeError, load_recipe, make_recipe, with_overrides
from glmtune.methods import Method
from glmtune.models.architecture import Architecture
from glmtune.models.checkpoint import LFS_MARK, check_safetensors
from glmtune.runtime import RunFolder, UserError, memory_size, processor_name
from glmtune.tasks import Split, Task
from glmtune.tasks.instructions import read_examples
from glmtune.training.memory import LIBRARIES, Estimate

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Status = Literal["ok", "warning", "failure"]
Finding: TypeAlias = tuple[Status, str, str]  # what a check gives: status, what was found, remedy

REQUIRED = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "tokenizers",
    "sentencepiece",
    "huggingface-hub",
)
# Libraries that may be absent, and what they are for.
OPTIONAL = {
    "bitsandbytes": "model.bits=8 or 4 and optimizers with moments of 8 bits: pip install 'glmtune[quantization]'",
    "trl": "its own trainers, such as DPO and GRPO, on the models here",
    "datasets": "the data of trl's trainers",
}
# What no library declares: versions, and what is wrong with them.
CONFLICTS = {
    "bitsandbytes": ("<0.50", "has no 4-bit kernels for CPUs"),
    "torchao": ("<0.16", "keeps peft from making any LoRA layer; nothing here needs it"),
}
JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
# Size and sha256 of a file as it was released, with which vocab_size.
RELEASED = {
    "ice_text.model": (2_706_249, "5e974d9a69c242ce014c88c2b26089270f6198f3c0b700a887666cd3e816f17e", 130_528),
}
DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SPLITS: tuple[Split, ...] = ("train", "held_out")
CHECKED = 200  # examples of each split that are encoded and scored
COPY = "Copy or download it again."
RECIPE_REMEDY = "Mend it there; `glmtune train --help-settings` lists every setting."
TOKENIZER_REMEDY = "Copy or download the tokenizer's files again, from the release that the weights are of."
NUMBERS = "57.84+13.64=71.48"
RARE = "\U0001f9ec"  # a character that few tokenizers have a token for
SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[A-Z])")


@dataclass(frozen=True)
class Check:
    """What is told of one thing.

    Attributes:
        name: of the thing.
        status: `failure`: something would fail; `warning`: it works, but look at it.
        finding: what was found.
        remedy: what to do; empty where nothing is to be done.
    """

    name: str
    status: Status
    finding: str
    remedy: str = ""


@dataclass(frozen=True)
class Examination:
    """One thing to look at.

    Attributes:
        name: of the check.
        look: gives status, finding and remedy, or raises.
        remedy: where `look` raises something that names none.
        needs: names of the checks without which there is nothing to look at.
    """

    name: str
    look: Callable[..., Finding]
    remedy: str
    needs: tuple[str, ...] = ()

    def check(self, *about: Any) -> Check:
        """Look at it; whatever is raised becomes a failure."""
        try:
            return Check(self.name, *self.look(*about))
        except Exception as error:  # libraries document no classes of errors
            return failure(self.name, error, self.remedy)


def failure(name: str, error: Exception, remedy: str) -> Check:
    """An error as a check that failed.

    Args:
        name: of the check.
        error: whose own remedy counts, if it is one of ours.
        remedy: for a library's errors, which advise anything.
    """
    if isinstance(error, UserError) and error.__cause__ is None:
        finding, own = told(error)
        return Check(name, "failure", finding, own or remedy)
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return Check(name, "failure", textwrap.shorten(f"{kind}{error}", 400, placeholder=" ..."), remedy)


def told(error: UserError) -> tuple[str, str]:
    """What is wrong, and the remedy: the first sentence of our own messages, and the rest."""
    finding, *rest = SENTENCE_END.split(" ".join(str(error).split()), maxsplit=1)
    return finding, " ".join(rest)


def run(target: str | None = None, overrides: Sequence[str] = ()) -> list[Check]:
    """Examine this machine, and a target if one is named.

    Args:
        target: a recipe (`.yaml`), a run folder, an adapter, a checkpoint directory, a hub name, `nano`, or a file of
            records.
        overrides: `section.setting=value` texts.

    Returns:
        One check for each thing, failed or not. Nothing is raised.
    """
    checks = list(examine(machine_examinations()))
    if target is None and not overrides:
        return checks
    if target is not None and is_data(target) and not overrides:
        return checks + list(
            examine([Examination("data", partial(records, target), "See what `glmtune data inspect` says of it.")])
        )
    try:
        patient = admit(target, overrides)
    except RecipeError as error:
        faults = [UserError(fault) for fault in error.faults]
        return checks + [failure("recipe", fault, RECIPE_REMEDY) for fault in faults]
    except Exception as error:  # a task or method of the user's own, for instance
        return [*checks, failure("target", error, RECIPE_REMEDY)]
    return checks + list(examine(patient.examinations, patient))


def is_data(target: str) -> bool:
    """Whether a target is a file of records."""
    path = Path(target)
    return path.suffix in DATA_SUFFIXES or (path.is_file() and path.suffix not in (".yaml", ".yml"))


def examine(examinations: Sequence[Examination], *about: Any) -> Iterator[Check]:
    """The checks in order; those that need what failed are named together at the end."""
    unseen: list[str] = []
    failed: set[str] = set()
    for examination in examinations:
        if not failed.isdisjoint(examination.needs):
            unseen.append(examination.name)
            failed.add(examination.name)
            continue
        check = examination.check(*about)
        if check.status == "failure":
            failed.add(check.name)
        yield check
    if unseen:
        yield Check("not checked", "warning", ", ".join(unseen), "Mend what fails above, and ask the doctor again.")


# This machine


def machine_examinations() -> list[Examination]:
    """What is looked at without a target."""
    again = "Install it again: pip install glmtune"
    installed = [name for name in CONFLICTS if name not in OPTIONAL and version_of(name) is not None]
    return [
        Examination("python", python, again),
        *(Examination(name, partial(library, name), again) for name in (*REQUIRED, *OPTIONAL, *installed)),
        Examination("device", device, "Install torch again: https://pytorch.org/get-started/locally", ("torch",)),
        Examination("memory", memory, again),
        Examination("disk", disk, "Change to a folder that can be read."),
    ]


def version_of(name: str) -> str | None:
    """The version of an installed library."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def python() -> Finding:
    """Python itself."""
    found, wanted = platform.python_version(), metadata.metadata("glmtune")["Requires-Python"] or ""
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        return "failure", f"{found}, but glmtune needs {wanted}", f"Make an environment with Python {wanted}."
    return "ok", found, ""


def library(name: str) -> Finding:
    """A library's version, and what this package and the other libraries ask of it."""
    found = version_of(name)
    asked = list(demands(name))
    wanted = SpecifierSet(",".join(str(part) for _, part in asked))
    remedy = f"pip install '{name}{wanted}'"
    if found is None:
        if name in OPTIONAL:
            return "ok", f"not installed; it is for {OPTIONAL[name]}", ""
        return "failure", "not installed", remedy
    bad, why = CONFLICTS.get(name, ("<0", ""))
    if SpecifierSet(bad).contains(found, prereleases=True):
        return "warning", f"{found} {why}", f"pip install '{name}>={bad.removeprefix('<')}', or uninstall it."
    for asking, part in asked:
        if not part.contains(found, prereleases=True):
            status: Status = "warning" if {name, asking} & OPTIONAL.keys() else "failure"
            return status, f"{found}, but {asking} {version_of(asking)} needs {name}{part}", remedy
    return "ok", found, ""


def demands(name: str) -> Iterator[tuple[str, SpecifierSet]]:
    """(who, which versions) of a library, by what this package and the libraries beside it declare."""
    for asking in ("glmtune", *REQUIRED, *OPTIONAL):
        for text in (metadata.requires(asking) or []) if version_of(asking) else []:
            requirement = Requirement(text)
            extra = {"extra": "quantization" if asking == "glmtune" else ""}
            applies = requirement.marker is None or requirement.marker.evaluate(extra)
            if applies and canonicalize_name(requirement.name) == name and requirement.specifier:
                yield asking, requirement.specifier


def device() -> Finding:
    """Where models would run."""
    import torch

    kind = models.default_device().type
    if kind == "cuda":
        free, size = torch.cuda.mem_get_info()
        precise = torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if precise else "no bfloat16, so that auto is float16"
        name = torch.cuda.get_device_name()
        return "ok", f"{name}, {readable(size)} of which {readable(free)} are free, {precision}", ""
    place = at_hand()
    if place.device == "cuda":
        cannot = f"{place.name} is there, but torch {torch.__version__} cannot use it, and takes the {kind}"
        return "warning", cannot, "Install torch for your CUDA: https://pytorch.org/get-started/locally"
    name = "Apple's GPU" if kind == "mps" else f"no GPU; {processor_name()}, {torch.get_num_threads()} threads"
    return "ok", f"{name}, float32 unless model.dtype says otherwise", ""


def memory() -> Finding:
    """Free memory, of this container's share."""
    import psutil

    size = memory_size()
    free = min(size, int(psutil.virtual_memory().available))
    finding = f"{readable(free)} of {readable(size)} are free"
    if free < LIBRARIES["cpu"]:
        return "warning", f"{finding}; the libraries alone take {readable(LIBRARIES['cpu'])}", "End other programs."
    return "ok", finding, ""


def disk() -> Finding:
    """Free disk of the working folder, where runs are written."""
    return "ok", f"{readable(shutil.disk_usage('.').free)} are free in {Path.cwd()}", ""


# A target


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
        return methods.base_of(self.adapter)

    @property
    def is_remote(self) -> bool:
        """Whether it comes from the hub."""
        return self.base not in models.EMBEDDED and not Path(self.base).is_dir()

    @cached_property
    def folder(self) -> Path:
        """The model's folder; of a hub name, its small files are fetched."""
        if Path(self.base).is_dir():  # whose files are looked at one by one
            return Path(self.base)
        return Path(models.local(models.locate(self.base), weights=False))

    @cached_property
    def values(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return models.read_json(self.folder / "config.json")

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The model's configuration."""
        return models.load_config(str(self.folder))

    @property
    def tokenizer_folder(self) -> Path:
        """The adapter's folder, where a tokenizer was saved with it; else the model's."""
        saved = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        return self.adapter if self.adapter is not None and saved else self.folder

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that would be used, with the recipe's template; a run's tokenizer has its own."""
        from glmtune.models.templates import adopt

        found = models.load_tokenizer(str(self.tokenizer_folder))
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
        from glmtune.commands.train import askable, longest_of
        from glmtune.data import examples_of
        from glmtune.data.encoding import Encoder
        from glmtune.data.mixture import encoded

        limit = models.max_length(self.config)
        if limit is not None:
            limit -= self.method.places(self.config.model_type)
        train, held_out = (examples_of(self.task, split, CHECKED, self.recipe.seed)[:CHECKED] for split in SPLITS)
        askable(self.recipe, self.tokenizer, limit, held_out)
        data = self.recipe.data
        encoder = Encoder(self.tokenizer, data.max_length or limit, data.learn_start)
        return longest_of(encoded(train, encoder, data.model_copy(update={"cache": False}), "The examples"))

    @property
    def examinations(self) -> list[Examination]:
        """What is looked at, in order."""
        remedy = "Check the name, and whether the hub can be reached; or name a folder."
        return [
            *([Examination("adapter", adapter, COPY)] if self.adapter else []),
            Examination("model", model, remedy, () if self.base_is_named else ("adapter",)),
            *MODEL_EXAMINATIONS,
            *([Examination("base", base, COPY, ("adapter", "files", "weights"))] if self.adapter else []),
            *(RECIPE_EXAMINATIONS if self.has_recipe else []),
            *RUN_EXAMINATIONS,
        ]


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
        if methods.is_adapter(Path(target)):
            return Patient(recipe, Path(target), has_recipe=False)
    recipe.model.path = target
    return Patient(recipe, has_recipe=False)


# What is looked at in a model


def adapter(patient: Patient) -> Finding:
    """An adapter's files, and whether they agree with each other and with the recipe."""
    assert patient.place is not None, "asked of adapters only"
    folder = methods.adapter_folder(patient.place)
    methods.check_adapter(folder, RunFolder(patient.place))
    return "ok", f"{folder} is whole", ""


def base(patient: Patient) -> Finding:
    """Whether the model is the one that the adapter was trained on."""
    assert patient.adapter is not None, "asked of adapters only"
    methods.check_base(patient.adapter, patient.base)
    if patient.is_remote or methods.record_of(patient.adapter).get("fingerprint") is None:
        return "ok", f"{patient.base}; nothing was noted that it could be compared with", ""
    return "ok", f"{patient.base} has the weights that the adapter was trained on", ""


def model(patient: Patient) -> Finding:
    """Whether there is such a model."""
    return "ok", f"{patient.base} in {patient.folder}", ""


def files(patient: Patient) -> Finding:
    """The small files of a model: there, themselves and no Git-LFS pointers, readable, as released."""
    folder = patient.folder
    if not (folder / "config.json").is_file():
        return "failure", f"{folder} has no config.json, so it is no checkpoint directory", COPY
    small = [file for file in sorted(folder.iterdir()) if file.is_file() and not is_weights(file)]
    if pointers := [file.name for file in small if is_pointer(file)]:
        finding = f"{', '.join(pointers)} in {folder}: Git-LFS pointers, not the files themselves"
        return "failure", finding, pull(folder)
    for name in JSON_FILES:
        if (folder / name).is_file():
            models.read_json(folder / name)
    for name, (size, expected, vocabulary) in RELEASED.items():
        if not (folder / name).is_file() or patient.values.get("vocab_size") != vocabulary:
            continue
        content = (folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            finding = f"{folder / name} is not as released: {len(content):,} bytes instead of {size:,}, or other ones"
            return "warning", finding, f"If you did not change it yourself, download it again (sha256 {expected})."
        return "ok", f"{len(small)} small files in {folder}, {name} as released", ""
    return "ok", f"{len(small)} small files in {folder}", ""


def is_pointer(file: Path) -> bool:
    """Whether Git LFS has left a pointer in a file's place."""
    with file.open("rb") as stream:
        return stream.read(len(LFS_MARK)) == LFS_MARK


def pull(folder: Path) -> str:
    """How to get the files that Git LFS has left out."""
    return f"Fetch them: cd {shlex.quote(str(folder))} && git lfs pull"


def is_weights(file: Path) -> bool:
    """Whether a file holds weights, which may be large."""
    return file.suffix in (".safetensors", ".bin", ".pt", ".pth")


def weights(patient: Patient) -> Finding:
    """The weight files: all there, whole, and nothing but weights."""
    folder, found = patient.folder, models.weight_files(patient.folder)
    if patient.recipe.model.random_init:
        return "ok", "none needed: model.random_init starts from fresh ones", ""
    if patient.is_remote and not found:
        return download(patient)
    faults = [fault for file in found if (fault := fault_of(file))]
    index = folder / f"{'pytorch_model.bin' if found and found[0].suffix == '.bin' else 'model.safetensors'}.index.json"
    if index.is_file() and not patient.is_remote:
        shards = set(models.read_json(index).get("weight_map", {}).values())
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            names = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
            faults.append((f"{folder} lacks {len(missing)} of {len(shards)} weight files: {names}", COPY))
    if faults:
        return "failure", "; ".join(fault for fault, _ in faults), " ".join(dict.fromkeys(way for _, way in faults))
    if not found:
        return "failure", f"{folder} holds no weights (*.safetensors or pytorch_model*.bin)", COPY
    size = sum(file.stat().st_size for file in found)
    return "ok", f"{len(found)} {'file' if len(found) == 1 else 'files'} of {readable(size)}, whole", ""


def download(patient: Patient) -> Finding:
    """Whether weights that the hub has yet to give fit the disk of its cache."""
    try:
        architecture = Architecture.from_config(patient.values)
    except UserError:  # of an unknown size
        return "ok", "not fetched yet", ""
    size, free = architecture.parameters * architecture.stored_bits // 8, shutil.disk_usage(patient.folder).free
    finding = f"not fetched yet: about {readable(size)}; {readable(free)} are free in {patient.folder}"
    if free >= size:
        return "ok", finding, ""
    return "failure", f"{finding}: too little", "Free some, or name another folder for the hub's cache with HF_HOME."


def fault_of(file: Path) -> tuple[str, str] | None:
    """What is wrong with a weight file, and the remedy."""
    if is_pointer(file):
        return f"{file} is a Git-LFS pointer, not the file itself", pull(file.parent)
    if file.suffix != ".safetensors":
        return fault_of_pickle(file)
    try:
        check_safetensors(file)
    except UserError as error:
        return told(error)
    return None


def fault_of_pickle(file: Path) -> tuple[str, str] | None:
    """The same of a pickled one, which can hold code. That is read, never run; the weights stay in the file."""
    import torch

    try:
        torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            refused = f"{file} carries code besides weights ({code[1]}), and is refused"
            return refused, "Do not load it anywhere. Take the weights as safetensors, from a source that you trust."
        return f"{file} is no file of weights, or damaged", COPY
    except Exception as error:
        return f"{file} is truncated or damaged: {error or type(error).__name__}", COPY
    return None


def config(patient: Patient) -> Finding:
    """The configuration: of a family that can be loaded without code from its repository."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found, family = patient.config, patient.config.model_type
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        remedy = "Take a causal language model, such as ChatGLM-6B or any that AutoModelForCausalLM loads."
        return "failure", f"model_type '{family}' is no causal language model", remedy
    code = ", without the code in its repository" if "auto_map" in patient.values else ""
    size = models.max_length(found)
    return "ok", f"model_type '{family}'{code}, " + (f"{size} tokens" if size else "no longest sequence stated"), ""


def fit(patient: Patient) -> Finding:
    """Whether names and shapes of the weights are those that the configuration asks for."""
    if patient.recipe.model.random_init or not models.weight_files(patient.folder):
        return "ok", "no weights to compare", ""
    if patient.values.get("quantization_config"):
        return "ok", "not compared: stored by a quantization library", ""
    with models.reading("weights", str(patient.folder)):
        found = loaded_without_numbers(patient.config, patient.folder)
    models.check_weights(patient.base, found)
    return "ok", "the weights have the names and shapes that config.json asks for", ""


def loaded_without_numbers(config: PreTrainedConfig, folder: Path) -> dict[str, Any]:
    """transformers' account of a loading in which names and shapes are all that is read."""
    from transformers import AutoModelForCausalLM, GlmForCausalLM

    from glmtune.models.glm.configuration_glm import OriginalGlmConfig
    from glmtune.models.glm.modeling_glm import plain, translated

    options: dict[str, Any] = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    loaded: Any
    if isinstance(config, OriginalGlmConfig):  # whose own loading reads the weights to translate them
        weights = translated(shapes(folder), config)
        loaded = GlmForCausalLM.from_pretrained(None, config=plain(config), state_dict=weights, **options)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(str(folder), config=config, **options)
    return dict(loaded[1])


def shapes(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint without their numbers."""
    import torch
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for file in models.weight_files(folder):
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt") as reader:
                sizes = {name: reader.get_slice(name).get_shape() for name in reader.keys()}  # noqa: SIM118
            found |= {name: torch.empty(size, device="meta") for name, size in sizes.items()}
        else:
            found |= torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
    return found


def tokenizer(patient: Patient) -> Finding:
    """Whether the tokenizer can be loaded, without code from its repository."""
    from transformers import TOKENIZER_MAPPING
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    declared = patient.tokenizer_folder / "tokenizer_config.json"
    values = models.read_json(declared) if declared.is_file() else {}
    name = str(values.get("tokenizer_class", ""))
    if "auto_map" in values and type(patient.config) not in TOKENIZER_MAPPING and not tokenizer_class_from_name(name):
        finding = f"{declared}: {name or 'its class'} runs only with code from its repository, which is never run here"
        return "failure", finding, "Take a checkpoint whose tokenizer transformers knows, most often a tokenizer.json."
    found = patient.tokenizer
    return "ok", f"{type(found).__name__}, {len(found):,} tokens, from {patient.tokenizer_folder}", ""


def release(patient: Patient) -> Finding:
    """Whether tokenizer and model speak of the same ids."""
    remedy = (
        "Take config.json, weights and tokenizer of one release: ChatGLM-6B v1.0 numbers its special tokens 20,000 "
        "higher than v1.1. Delete older copies of these files."
    )
    known, rows = patient.tokenizer, patient.config.get_text_config().vocab_size
    models.check_release(patient.base, known, patient.config)
    names = {name: token for name, token in known.special_tokens_map.items() if isinstance(token, str)}
    ids = {f"{name}_id": int(known.convert_tokens_to_ids(token)) for name, token in names.items()}  # type: ignore[arg-type]
    if known.pad_token == known.eos_token:  # where a tokenizer has no padding
        ids.pop("pad_token_id", None)
    said = {name: listed(patient.config.to_dict().get(name)) for name in ids}
    differ = [
        f"{name} is {' or '.join(map(str, said[name]))} in config.json, {number} by the tokenizer"
        for name, number in ids.items()
        if said[name] and number not in said[name]
    ]
    if differ:
        # ChatGLM-6B finds its masks and positions by these ids; other models are only told where to stop.
        return "failure" if "gmask_token_id" in ids else "warning", "; ".join(differ), remedy
    return "ok", f"{len(known):,} tokens in {rows:,} rows, and the same special tokens", ""


def listed(ids: int | list[int] | None) -> list[int]:
    """One id, several or none, as a list."""
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]


def end_token(patient: Patient) -> Finding:
    """A real end token, which is learned."""
    from glmtune.data.encoding import IGNORED, encode_example, encode_prompt, plain_ids, stop_ids

    known = patient.tokenizer
    end, number = str(known.eos_token or ""), known.eos_token_id
    remedy = "Set eos_token in tokenizer_config.json to the token that ends an answer, e.g. </s>."
    if not end or known.get_vocab().get(end) != number:
        return "failure", f"the end token {end!r} is not in the vocabulary: no answer would end", remedy
    if number == known.unk_token_id and number in plain_ids(known, RARE):
        return "failure", f"the end token {end} also stands for unknown characters: answers would end there", remedy
    learned = [label for label in encode_example(known, "1+1=", "2")["labels"] if label != IGNORED]
    if len(learned) < 2 or learned[-1] not in stop_ids(known):
        tokens = known.convert_ids_to_tokens(learned)
        return "failure", f"of the answer 2 is learned {tokens}, which decoding does not stop at", remedy
    if encode_prompt(known, "1+1=")[-1] == number:
        remedy = "Set add_eos_token to false in tokenizer_config.json."
        return "warning", f"each prompt ends with {end}, so that the model starts where an answer is over", remedy
    return "ok", f"{known.convert_ids_to_tokens(learned[-1])} (id {learned[-1]}) ends each answer that is learned", ""


def padding(patient: Patient) -> Finding:
    """Whether padding looks like the end."""
    known = patient.tokenizer
    if known.pad_token_id != known.eos_token_id:
        return "ok", f"{known.pad_token} (id {known.pad_token_id}), which is not the end token", ""
    finding = (
        f"{known.eos_token} is padding and end in one. That is harmless here, where padding is known by its place, but "
        "tools that hide every padding token from the loss never teach this model to stop"
    )
    return "warning", finding, "For other tools, set pad_token in tokenizer_config.json to another token, e.g. <unk>."


def template(patient: Patient) -> Finding:
    """Whether the template says what is asked and answered, and ends what the assistant says."""
    from jinja2 import TemplateError

    from glmtune.data.encoding import check_template, encode_prompt, stop_ids

    known = patient.tokenizer
    if known.chat_template is None:
        return "ok", "none: prompts stand bare, with the tokenizer's own special tokens", ""
    check_template(known)
    remedy = "Mend chat_template.jinja, or take that of the model's release."

    def chat(asked: str, answered: str) -> list[int]:
        roles = (("user", asked), ("assistant", answered), ("user", "3+3="))
        return encode_prompt(known, [{"role": role, "content": content} for role, content in roles])

    end = f"decoding stops at {', '.join(known.convert_ids_to_tokens(stop_ids(known)))}"
    try:
        if chat("1+1=", "2") in (chat("1+1=", "7"), chat("2*3=", "2")):
            return "warning", f"{end}; the template leaves out earlier turns, so that a chat has no memory", remedy
    except TemplateError as error:
        return "ok", f"{end}; single questions only ({error})", ""
    return "ok", f"{end}; says what was asked and answered", ""


def numbers(patient: Patient) -> Finding:
    """Whether numbers survive the tokenizer, and how they are cut."""
    from glmtune.data.encoding import plain_ids

    known = patient.tokenizer
    ids = plain_ids(known, NUMBERS)
    back = str(known.decode(ids)).strip()
    if back != NUMBERS:
        remedy = "Train words on this model, not numbers, or take a tokenizer that has every digit."
        return "warning", f"{NUMBERS} comes back as {back!r}: no such answer could be exact", remedy
    grouped = len(ids) < len(NUMBERS)
    return "ok", f"{NUMBERS} comes back, digits {'in groups' if grouped else 'one by one'}", ""


# What is looked at before a run


def records(file: str) -> Finding:
    """A file of records."""
    return "ok", f"{file}: {len(read_examples(file)):,} records", ""


def data(patient: Patient) -> Finding:
    """Whether the task's examples can be had, and its own targets are right in its own eyes."""
    from glmtune.data import examples_of

    task, seed = patient.task, patient.recipe.seed
    train, held_out = (examples_of(task, split, CHECKED, seed) for split in SPLITS)
    for example in (*train[:CHECKED], *held_out[:CHECKED]):
        if (verdict := task.score(example, example.target).verdict) != "exact":
            finding = f"task {task.settings.name} calls its own target {example.target[:60]!r} {verdict}"
            return "failure", f"{finding}, to {str(example.prompt)[:60]!r}", "Mend Task.score, or the target."
    if task.records("train") is None:
        return "ok", f"drawn without end, e.g. {train[0].prompt!r} -> {train[0].target!r}", ""
    return "ok", f"{len(train):,} records to learn, {len(held_out):,} held out", ""


def example_lengths(patient: Patient) -> Finding:
    """Whether the model can take the examples."""
    length, target = patient.lengths
    limit = models.max_length(patient.config)
    of = f" of the {limit} that the model takes" if limit is not None else ""
    return "ok", f"{length} tokens at most{of}, {target} of them learned, among the first {CHECKED} examples", ""


def method(patient: Patient) -> Finding:
    """Whether the method finds what it trains in such a model, which is made without its numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(patient.config)
    name = patient.recipe.method.name
    try:
        tuned = patient.method.apply(model)
    except UserError:
        raise
    except Exception as error:  # what starts from the numbers themselves
        return "ok", f"{name} cannot be tried without weights ({type(error).__name__})", ""
    count = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    return "ok", f"{name} trains {count:,} parameters", ""


def precision(patient: Patient) -> Finding:
    """Whether the device computes in the recipe's precision, and stores and trains what the recipe says."""
    from glmtune.training.trainer import check_precision

    settings, where = patient.recipe.model, models.default_device()
    dtype = models.choose_dtype(settings.dtype, where)
    if patient.trains:
        check_precision(dtype, where)
        patient.method.check_storage(settings, models.stored_bits(patient.config))
    models.check_bits(settings, patient.config)
    optimizer = patient.recipe.training.optimizer
    wanted = [f"model.bits={settings.bits}"] if settings.bits < models.stored_bits(patient.config) else []
    wanted += [f"training.optimizer={optimizer}"] if optimizer != "adamw" else []
    if wanted and importlib.util.find_spec("bitsandbytes") is None:
        remedy = "pip install 'glmtune[quantization]', or leave it out."
        return "failure", f"{' and '.join(wanted)}: bitsandbytes is not installed", remedy
    names = [str(name).removeprefix("torch.") for name in (dtype, patient.config.dtype or dtype)]
    wider = f"; the files hold {names[1]}" if names[0] != names[1] else ""
    return "ok", f"{names[0]} on the {where.type}{wider}", ""


def expected(patient: Patient) -> Callable[[Recipe], Estimate]:
    """The estimate of a recipe with this model, on this machine, of examples as long as the recipe's.

    Raises:
        UserError: the sizes of the model, or what the method trains, are not known.
    """
    architecture = Architecture.from_config(patient.values)
    place = at_hand(models.default_device().type == "cuda")
    length, target = patient.lengths if patient.has_recipe else lengths(patient.recipe, architecture, None, None)
    return lambda recipe: estimate(recipe, architecture, place.device, length, target)


def run_memory(patient: Patient) -> Finding:
    """Whether a run fits the memory, and whether answering does where no recipe was asked about."""
    place = at_hand(models.default_device().type == "cuda")
    try:
        estimate_of = expected(patient)
        found = estimate_of(patient.recipe)
    except UserError as error:
        return "ok", f"not estimated: {error}", ""
    has = f"{place.name} has {readable(place.memory)}"
    answering = found.inference(found.length)
    finding = f"training takes {readable(found.peak)}, answering {readable(answering)}; {has}"
    if place.spare(found) >= 0:
        return "ok", finding, ""
    settings, _ = remedies(patient.recipe, estimate_of, place)
    remedy = "Choose a smaller model, or shorter examples." if settings is None else f"Set {shlex.join(settings)}"
    fails = patient.trains or place.spare(found) + found.peak < answering
    return "failure" if fails else "warning", f"{finding}: too little", remedy


def run_disk(patient: Patient) -> Finding:
    """Whether a run folder fits the disk."""
    try:
        needed = expected(patient)(patient.recipe).disk
    except UserError as error:
        return "ok", f"not estimated: {error}", ""
    folder = Path(patient.recipe.training.output_dir or "runs").resolve()
    place = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    finding = f"a run folder takes up to {readable(needed)}; {readable(free)} are free in {place}"
    if free >= needed:
        return "ok", finding, ""
    remedy = "Free some, set training.output_dir to a folder on another disk, or training.save_total_limit=1."
    return "failure" if patient.trains else "warning", f"{finding}: too little", remedy


MODEL_EXAMINATIONS = [
    Examination("files", files, COPY, ("model",)),
    Examination("weights", weights, COPY, ("model",)),
    Examination("config", config, "Take config.json of the release again.", ("files",)),
    Examination("fit", fit, "Take config.json and the weights of one release.", ("config", "weights")),
    Examination("tokenizer", tokenizer, TOKENIZER_REMEDY, ("adapter", "files", "config")),
    Examination("release", release, TOKENIZER_REMEDY, ("tokenizer",)),
    Examination("template", template, "Mend chat_template.jinja, or take that of the release.", ("tokenizer",)),
    Examination("end token", end_token, TOKENIZER_REMEDY, ("tokenizer", "template")),
    Examination("padding", padding, TOKENIZER_REMEDY, ("tokenizer",)),
    Examination("numbers", numbers, TOKENIZER_REMEDY, ("tokenizer",)),
]
RECIPE_EXAMINATIONS = [
    Examination("data", data, "Mend the task, or the records."),
    Examination("lengths", example_lengths, "Shorten the examples.", ("data", "template")),
    Examination("method", method, "Choose another method.name or other settings of it.", ("config",)),
]
RUN_EXAMINATIONS = [
    Examination("precision", precision, "Set model.dtype=auto and model.bits=16.", ("config",)),
    Examination("run memory", run_memory, "Ask `glmtune estimate`.", ("config", "lengths")),
    Examination("run disk", run_disk, "Ask `glmtune estimate`.", ("config", "lengths")),
]
