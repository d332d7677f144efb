"""The one settings tree. Recipes, command-line overrides, `--help` and the JSON schema all come from it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator

from glmtune import registry
from glmtune.runtime import UserError

# Sections whose fields belong to the file that their `name` points to.
OPEN_SECTIONS = {"task": "glmtune.tasks", "method": "glmtune.methods"}

_OTHER_TYPE = re.compile(r"_type$|^literal_error$")  # faults of a value that was meant for another type of a union

# Steps where a task draws without end and the recipe names none: the demo.
ENDLESS_STEPS = 2000
SHORT_ANSWER = 64  # tokens

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def findable(path: str) -> str:
    """A path as any folder finds it, for the recipe of a run; names of the hub, and of what is not there, stay."""
    return str(Path(path).resolve()) if Path(path).exists() else path


class Settings(BaseModel):
    """Base of every group of settings: unknown names are faults."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class NamedSettings(Settings):
    """Base of the settings of a task or a method."""

    name: str = Field("", description="a name that `glmtune ls` shows, or a path to your own .py file")


class ModelSettings(Settings):
    """Which model is tuned."""

    path: str = Field("nano", description="checkpoint directory, hub name, or 'nano', the embedded model")
    dtype: Dtype = Field(
        "auto", description="precision of the frozen weights; auto: bfloat16 where the GPU has it, float32 on the CPU"
    )
    bits: Literal[16, 8, 4] = Field(
        16,
        description="storage of the frozen linear layers: 16 leaves them in `dtype`; 8 (int8) and 4 (nf4, double "
        "quantization) need bitsandbytes",
    )
    quantize_embedding: bool = Field(
        False, description="also store the embedding and the head, at 8 bits (ChatGLM-6B: 0.5 GB less)"
    )
    attention: Literal["sdpa", "eager"] = Field("sdpa", description="attention implementation")
    random_init: bool = Field(False, description="start from fresh weights; `path` needs a config and a tokenizer only")


FIELDS = ("prompt", "target", "history", "system")  # of a record, as its file may call them otherwise


def _check_columns(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if name not in FIELDS:
            raise ValueError(f"no such name: '{name}'.{registry.suggest(name, list(FIELDS))} Write it as OURS: YOURS")
    return value


Columns = Annotated[dict[str, str], AfterValidator(_check_columns)]


class Source(Settings):
    """More records, mixed into what is learned."""

    file: str = Field(description="file, folder or data set of the hub, as `task.file` of instructions")
    share: float = Field(gt=0, lt=1, description="share of all examples that are learned")
    columns: Columns | None = Field(None, description="as `data.columns`")
    encoding: str = Field("utf-8", description="as `data.encoding`")

    @field_validator("file")
    @classmethod
    def _from_anywhere(cls, value: str) -> str:
        return findable(value)


class DataSettings(Settings):
    """How records are read, and how examples become batches."""

    columns: Columns | None = Field(
        None,
        description="what prompt, target, history and system are called in files of records; default: a known format",
    )
    encoding: str = Field("utf-8", description="of text files, e.g. gb18030 for GBK")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="at faulty records: stop and tell all of them, or skip them into FILE.skipped.jsonl"
    )
    deduplicate: Literal["none", "exact", "near"] = Field(
        "none",
        description="leave out records that were there before: exact (but for blanks and case), or near (ROUGE-L of "
        "prompt and target at least 0.7; more than 1000 records need datasketch)",
    )
    turns: Literal["all", "last", "each"] = Field(
        "all",
        description="of a conversation, learn all answers in one pass, as far as the template can (those of ChatGLM-6B "
        "and ChatGLM2-6B: the last alone); the last; or each, as an example of its own",
    )
    mixture: list[Source] = Field(
        [],
        description="more to learn, e.g. [{file: general.jsonl, share: 0.2}]: general data is the remedy for "
        "forgetting",
    )
    template: str | None = Field(
        None,
        description="chatglm, chatglm2, chatglm3, glm4, alpaca, vicuna, chatml, plain, or a path to a .jinja file; "
        "default: the template of the model's tokenizer. What a run learned with travels with it",
    )
    packing: bool = Field(
        False,
        description="put several examples in a row, without one seeing another: no padding where lengths differ, and "
        "the same loss",
    )
    max_length: int | None = Field(
        None, ge=8, description="longest example in tokens. Default: what the model can take"
    )
    too_long: Literal["stop", "drop", "cut"] = Field(
        "stop",
        description="at records longer than that: stop and tell all of them; drop them; or cut them: first the oldest "
        "rounds, then the beginning of the prompt, never the answer. With drop and cut, held-out ones are left out",
    )
    train_on_bos: bool = Field(
        False,
        description="the control token before an answer is learned, too, as in the official script of ChatGLM-6B "
        "(`<sop>`)",
    )
    cache: bool = Field(
        True,
        description="keep the tokens of 1000 records and more in HF_HOME/glmtune for the next run; needs pyarrow",
    )

    @field_validator("template")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        """The recipe of a run names a file so that it is found from any folder."""
        return findable(value) if value else value

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return codecs.lookup(value).name
        except LookupError:
            raise ValueError("no such encoding; try utf-8, gb18030, big5 or utf-16") from None

    @field_validator("mixture")
    @classmethod
    def _leaves_some(cls, value: list[Source]) -> list[Source]:
        if sum(source.share for source in value) >= 1:
            raise ValueError("the shares leave nothing of the task itself; their sum must be below 1")
        return value


class TrainingSettings(Settings):
    """How long and how fast to learn. A step is one update of the weights."""

    output_dir: str | None = Field(None, description="run folder; default: the next free runs/TASK-METHOD-N")
    steps: int | None = Field(
        None,
        ge=1,
        description=f"optimizer steps; default: from `epochs`, or {ENDLESS_STEPS} where a task draws without end",
    )
    epochs: float = Field(
        3, gt=0, description="passes over the records, where a task has records and `steps` is not set"
    )
    batch_size: int = Field(32, ge=1, description="examples per device and micro-batch")
    gradient_accumulation_steps: int = Field(1, ge=1, description="micro-batches per step")
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate of AdamW; default: the method's")
    optimizer: Literal["adamw", "muon", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = Field(
        "adamw",
        description="AdamW; Muon for the matrices, which learns faster from scratch, with AdamW at half the rate for "
        "the rest; AdamW with its two moments at 8 bits, or in pages that move to the CPU when the GPU is full (these "
        "need bitsandbytes)",
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        "cosine", description="course of the learning rate after the warm-up"
    )
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the rate rises")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    adam_beta2: float = Field(0.999, gt=0, lt=1, description="AdamW beta 2")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, a third more time")
    logging_steps: int = Field(20, ge=1, description="steps between two records of the loss")
    eval_steps: int | None = Field(None, ge=1, description="steps between two evaluations; default: a tenth of all")
    early_stopping_patience: int | None = Field(
        None, ge=1, description="stop after so many evaluations without a better one; default: never"
    )
    save_total_limit: int = Field(2, ge=1, description="checkpoints kept beside the best one")


class EvaluationSettings(Settings):
    """How the held-out examples are judged."""

    num_examples: int = Field(500, ge=1, description="held-out examples before and after training")
    num_examples_during: int = Field(200, ge=1, description="held-out examples at each evaluation during training")
    text_metrics: bool = Field(True, description="report rouge and BLEU-4 as the official ChatGLM evaluation does")
    forgetting: bool = Field(False, description="ask general questions before and after, too: what did it forget?")
    general_file: str | None = Field(
        None, description="general questions, a file as `task.file` of instructions; default: 60 built-in ones"
    )

    @field_validator("general_file")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        return findable(value) if value else value


class GenerationSettings(Settings):
    """How answers are decoded."""

    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description=f"longest answer in tokens; default: the longest held-out answer and a quarter more, at least "
        f"{SHORT_ANSWER}; {SHORT_ANSWER} where there are none",
    )
    batch_size: int = Field(64, ge=1, description="prompts decoded together")
    do_sample: bool = Field(False, description="sample instead of taking the likeliest token")
    temperature: float = Field(0.95, gt=0, description="sampling temperature")
    top_p: float = Field(0.7, gt=0, le=1, description="sample from the likeliest tokens of this total probability")

    @property
    def longest(self) -> int:
        """`max_new_tokens`, or what short answers need where nothing is known of them."""
        return self.max_new_tokens or SHORT_ANSWER


class Recipe(Settings):
    """Everything that determines a run."""

    format: Literal[1] = Field(1, description="version of this format")
    seed: int = Field(42, ge=0, description="seed of data, weights and dropout")
    model: ModelSettings = ModelSettings()
    task: NamedSettings = NamedSettings(name="arithmetic")
    method: NamedSettings = NamedSettings(name="lora")
    data: DataSettings = DataSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    generation: GenerationSettings = GenerationSettings()


class RecipeError(UserError):
    """One or more faults in a recipe, all told at once.

    Attributes:
        faults: one line each.
    """

    def __init__(self, faults: Iterable[str]):
        self.faults = list(faults)
        super().__init__("The recipe has faults:\n" + "\n".join(f"  {fault}" for fault in self.faults))


def read_yaml(path: Path) -> dict[str, Any]:
    """A recipe file as nested dictionaries.

    Raises:
        RecipeError: no such file, not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = path.parent if path.parent.is_dir() else Path(".")
        hint = registry.suggest(path.name, [file.name for file in sorted(beside.glob("*.yaml"))])
        if path.suffix not in (".yaml", ".yml"):
            hint += " A setting is written section.setting=value."
        raise RecipeError([f"{path}: no such file.{hint}"]) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError([f"{path}: not a readable YAML file: {error}"]) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError([f"{path}: must hold `section: {{setting: value}}`, it holds a {type(values).__name__}"])
    # A section whose lines are all commented out is None.
    return {section: value for section, value in values.items() if value is not None}


def with_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Apply `section.setting=value` texts, values written as in YAML.

    Raises:
        RecipeError: an override without '=', or one that reaches into something that is no section.
    """
    faults = []
    for override in overrides:
        key, equals, text = override.partition("=")
        *sections, setting = key.split(".")
        if not equals and Path(override).suffix in (".yaml", ".yml"):
            faults.append(f"'{override}': a recipe's file stands first, before the settings")
            continue
        if not equals or not all(sections) or not setting:
            faults.append(f"'{override}': write it as section.setting=value, e.g. training.steps=100")
            continue
        node = values
        for section in sections:
            if node.get(section) is None:  # the recipe of a run says null where nothing was set
                node[section] = {}
            if not isinstance(node[section], dict):
                faults.append(f"'{override}': {section} is no section")
                break
            node = node[section]
        else:
            try:
                # YAML reads a lone '-' as a list of nothing; it is an operator.
                node[setting] = text if text == "-" else yaml.safe_load(text)
            except yaml.YAMLError:
                node[setting] = text
    if faults:
        raise RecipeError(faults)
    return values


def open_sections(values: dict[str, Any]) -> tuple[type[Recipe], dict[str, Any], list[str]]:
    """`Recipe` with the settings of the task and method that `values` name; the values with these names filled in.

    Returns:
        The class, the values, and faults in the names.
    """
    fields: dict[str, Any] = {}
    faults = []
    for section, package in OPEN_SECTIONS.items():
        given = values.get(section) or {}
        if not isinstance(given, dict):
            faults.append(f"{section}: must be a group of settings such as {{name: ...}}, not {given!r}")
            given = {}
        name = str(given.get("name") or Recipe.model_fields[section].default.name)
        name = str(Path(name).resolve()) if Path(name).is_file() else name  # a run is to be usable from anywhere
        try:
            settings = registry.find(package, name).Settings
            values = {**values, section: {**given, "name": name}}
        except ValueError as error:
            faults.append(f"{section}.name: {error}")
            settings, values = NamedSettings, {**values, section: {}}
        fields[section] = (settings, Field(default_factory=dict, validate_default=True))
    return cast(type[Recipe], create_model("Recipe", __base__=Recipe, **fields)), values, faults


def make_recipe(values: dict[str, Any]) -> Recipe:
    """Check nested values and fill in the defaults.

    Raises:
        RecipeError: with every fault: the setting, its value, what is wrong, the nearest right name.
    """
    recipe, values, faults = open_sections(values)
    try:
        made = recipe.model_validate(values)
    except ValidationError as error:
        faults += explain(error, recipe)
    if faults:
        raise RecipeError(faults)
    return made


def explain(error: ValidationError, recipe: type[Recipe]) -> list[str]:
    """One line for each fault. Of a union of types, those of the type that the value was meant for."""
    settings: dict[tuple[str, ...], list[Any]] = {}
    for fault in error.errors():
        setting, within = at_setting(fault["loc"], recipe)
        settings.setdefault(setting, []).append((within, fault))
    lines = []
    for setting, faults in settings.items():
        if is_union(setting, recipe):
            faults = [(within[1:], fault) for within, fault in faults]  # without the type's name
            faults = [one for one in faults if one[0] or not _OTHER_TYPE.search(one[1]["type"])] or faults
        lines += [explain_one(".".join([*setting, *within]), fault, recipe) for within, fault in faults]
    return lines


def at_setting(place: tuple[int | str, ...], recipe: type[Recipe]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A place in the tree, cut behind the name of the setting: `task.operators`, `x`."""
    parts = tuple(str(part) for part in place if part != "[key]")
    for end in range(1, len(parts)):
        group = group_at(recipe, parts[:end])
        if group is group_at(recipe, parts[: end - 1]) and parts[end - 1] in group.model_fields:
            return parts[:end], parts[end:]
    return parts, ()


def is_union(setting: tuple[str, ...], recipe: type[Recipe]) -> bool:
    """Whether a setting takes values of several types, such as a number or a dictionary, besides None."""
    field = group_at(recipe, setting[:-1]).model_fields.get(setting[-1])
    types = get_args(field.annotation) if field and get_origin(field.annotation) in (Union, UnionType) else ()
    return len([one for one in types if one is not NoneType]) > 1


def explain_one(where: str, fault: Any, recipe: type[Recipe]) -> str:
    """One line for one of pydantic's faults."""
    *sections, setting = [str(part) for part in fault["loc"]]
    group = group_at(recipe, sections)
    if fault["type"] == "extra_forbidden":
        groups = {section: group_at(recipe, [section]) for section in recipe.model_fields}
        elsewhere = [
            f"{section}.{setting}"
            for section, other in groups.items()
            if other is not recipe and [section] != sections[:1] and setting in other.model_fields
        ]
        hint = f" It is {elsewhere[0]}." if elsewhere else registry.suggest(setting, list(group.model_fields))
        return f"{where}: unknown setting.{hint}"
    if fault["type"] == "missing" and setting in group.model_fields:
        return f"{where}: is needed: {group.model_fields[setting].description}"
    told = f"{where}: {fault['msg'].removeprefix('Value error, ')} (got {fault['input']!r})"
    if fault["type"] == "literal_error":
        close = get_close_matches(str(fault["input"]), re.findall(r"'([^']*)'", fault["ctx"]["expected"]), n=1)
        told += f". Did you mean '{close[0]}'?" if close else ""
    return told


def group_at(recipe: type[Recipe], sections: Iterable[str]) -> type[Settings]:
    """The group of settings at a place of the tree, of which a part may be the number of an entry in a list."""
    group: type[Settings] = recipe
    for section in sections:
        annotation = group.model_fields[section].annotation if section in group.model_fields else None
        for kind in (annotation, *get_args(annotation)):
            if get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, Settings):
                group = kind
    return group


def load_recipe(path: Path | str | None = None, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of a file, or the default one, with `section.setting=value` overrides.

    Raises:
        RecipeError: with every fault found.
    """
    return make_recipe(with_overrides(read_yaml(Path(path)) if path else {}, overrides))


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe as YAML; `load_recipe` reads it back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differing(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says that the defaults of its task and method do not."""
    values = recipe.model_dump(mode="json")
    plain = make_recipe({section: without_defaults(values, section) for section in OPEN_SECTIONS}).model_dump(
        mode="json"
    )
    changed = {
        section: {key: value for key, value in group.items() if key == "name" or value != plain[section][key]}
        for section, group in values.items()
        if isinstance(group, dict)
    }
    return {"seed": recipe.seed, **{section: group for section, group in changed.items() if group}}


def without_defaults(values: dict[str, Any], section: str) -> dict[str, Any]:
    """The fields of a task or method that have no default, of which there is nothing to differ from, and its name."""
    settings = registry.find(OPEN_SECTIONS[section], values[section]["name"]).Settings
    needed = [name for name, info in settings.model_fields.items() if info.is_required()]
    return {key: values[section][key] for key in ["name", *needed]}


def describe_settings(group: type[Settings], prefix: str = "") -> list[tuple[str, str, str]]:
    """(name, default, meaning) of every setting of a group, for `--help` and the documentation."""
    rows = []
    for name, info in group.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            rows += describe_settings(inner, f"{prefix}{name}.")
        elif name != "format":
            default = "required" if info.is_required() else str(info.get_default(call_default_factory=True))
            rows.append((prefix + name, default, info.description or ""))
    return rows
