"""What is wrong with a recipe, a line each: the setting, its value, the nearest right one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError

from glmtune import registry
from glmtune.config.tree import OPEN_SECTIONS, Recipe, Settings
from glmtune.config.upgrading import RENAMED
from glmtune.runtime import UserError

# What transformers, LLaMA-Factory, the official ChatGLM scripts and habit call settings, and what they are called here.
OTHER_NAMES = {
    other: name
    for name, others in {
        "data.columns": "prompt_column response_column history_column",
        "data.max_length": "cutoff_len max_len max_seq_len max_seq_length max_source_length block_size",
        "data.packing": "neat_packing",
        "generation.batch_size": "eval_batch_size per_device_eval_batch_size",
        "method.alpha": "lora_alpha",
        "method.dropout": "lora_dropout",
        "method.name": "finetuning_type peft_type",
        "method.num_virtual_tokens": "pre_seq_len prefix_length",
        "method.rank": "r lora_r lora_rank",
        "method.target_modules": "lora_target lora_target_modules",
        "model.attention": "attn_implementation flash_attn",
        "model.bits": "load_in_4bit load_in_8bit quantization_bit",
        "model.dtype": "torch_dtype bf16 fp16",
        "model.path": "base_model model_name model_name_or_path",
        "objective.name": "stage",
        "task.file": "data_files data_path dataset train_file",
        "task.held_out": "val_ratio val_size",
        "task.held_out_file": "eval_file test_file val_file validation_file",
        "training.adam_beta2": "beta2",
        "training.batch_size": "bs micro_batch_size per_device_train_batch_size train_batch_size",
        "training.epochs": "n_epochs num_epochs num_train_epochs",
        "training.gradient_accumulation_steps": "grad_accum gradient_accumulation",
        "training.learning_rate": "lr",
        "training.lr_scheduler_type": "lr_scheduler scheduler",
        "training.max_grad_norm": "clip_grad gradient_clipping",
        "training.optimizer": "optim",
        "training.output_dir": "out output save_dir",
        "training.steps": "max_steps num_steps",
        "training.trackers": "report_to",
        "training.warmup_ratio": "warmup warmup_steps",
        "training.weight_decay": "wd",
    }.items()
    for other in others.split()
}

SHOWN = 200  # characters of a value, or of a setting
MOST_TOLD = 20  # faults
_OTHER_TYPE = re.compile(r"_type$|^literal_error$")  # faults of a value that was meant for another type of a union


class RecipeError(UserError):
    """One or more faults in a recipe, all told at once.

    Attributes:
        faults: one line each.
    """

    def __init__(self, faults: Iterable[str]):
        self.faults = list(faults)
        told = self.faults[:MOST_TOLD]
        more = [f"... and {len(self.faults) - MOST_TOLD:,} more"] if len(self.faults) > MOST_TOLD else []
        super().__init__("The recipe has faults:\n" + "\n".join(f"  {fault}" for fault in [*told, *more]))


def explain(error: ValidationError, recipe: type[Recipe]) -> list[str]:
    """Return one line for each fault. Of a union of types, those of the type that the value was meant for."""
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
    """Return a place in the tree, cut behind the name of the setting: `task.operators`, `x`."""
    parts = tuple(str(part) for part in place if part != "[key]")
    for end in range(1, len(parts)):
        group = group_at(recipe, parts[:end])
        if group is group_at(recipe, parts[: end - 1]) and parts[end - 1] in group.model_fields:
            return parts[:end], parts[end:]
    return parts, ()


def is_union(setting: tuple[str, ...], recipe: type[Recipe]) -> bool:
    """Return whether a setting takes values of several types, such as a number or a dictionary, besides None."""
    field = group_at(recipe, setting[:-1]).model_fields.get(setting[-1])
    types = get_args(field.annotation) if field and get_origin(field.annotation) in (Union, UnionType) else ()
    return len([one for one in types if one is not NoneType]) > 1


def explain_one(where: str, fault: Any, recipe: type[Recipe]) -> str:
    """Return one line for one of pydantic's faults."""
    where = where if len(where) <= SHOWN else f"{where[:SHOWN]}..."
    *sections, setting = [str(part) for part in fault["loc"]]
    group = group_at(recipe, sections)
    if fault["type"] == "extra_forbidden" and where in RENAMED:
        return f"{where}: is called {RENAMED[where]} now."
    if fault["type"] == "extra_forbidden":
        groups = {section: group_at(recipe, [section]) for section in recipe.model_fields}
        elsewhere = [
            f"{section}.{setting}"
            for section, other in groups.items()
            if other is not recipe and [section] != sections[:1] and setting in other.model_fields
        ]
        known = [OTHER_NAMES[setting]] if setting in OTHER_NAMES else elsewhere
        hint = (
            f" It is {known[0]}." if known else of_another_name(sections, setting) or dotted(sections, setting, groups)
        )
        hint = hint or registry.suggest(setting, list(group.model_fields))
        return f"{where}: unknown setting.{hint}"
    field = group.model_fields.get(setting)
    if field is not None and (fault["type"] == "missing" or (fault["input"] is None and field.is_required())):
        return f"{where}: is needed: {field.description}"
    if field is not None and fault["input"] is None and fault["type"] != "value_error":
        return f"{where}: has no value. Leave it out for the default, {field.get_default(call_default_factory=True)}"
    given = repr(fault["input"])
    given = given if len(given) <= SHOWN else f"{given[:SHOWN]}..."
    if fault["type"] == "model_type":
        first = next(iter(group_at(recipe, [*sections, setting]).model_fields))
        return f"{where}: must be a group of settings such as {{{first}: ...}}, not {given}"
    told = f"{where}: {fault['msg'].removeprefix('Value error, ')} (got {given})"
    if fault["type"] == "literal_error":
        close = get_close_matches(str(fault["input"]), re.findall(r"'([^']*)'", fault["ctx"]["expected"]), n=1)
        told += f". Did you mean '{close[0]}'?" if close else ""
    return told


def of_another_name(sections: list[str], setting: str) -> str:
    """Say which other task, method or objective has a setting: ` It is a setting of task.name=instructions.`"""
    if len(sections) != 1 or sections[0] not in OPEN_SECTIONS:
        return ""
    package = OPEN_SECTIONS[sections[0]]
    having = [name for name in registry.names(package) if setting in registry.find(package, name).Settings.model_fields]
    return f" It is a setting of {sections[0]}.name={' or '.join(having)}." if having else ""


def dotted(sections: list[str], setting: str, groups: Mapping[str, type[Settings]]) -> str:
    """Say how a file has what the command line calls `training.steps`."""
    section, _, name = setting.partition(".")
    known = not sections and section in groups and name.partition(".")[0] in groups[section].model_fields
    return f" In a file it is written {section}: {{{name}: ...}}." if known else ""


def group_at(recipe: type[Recipe], sections: Iterable[str]) -> type[Settings]:
    """Return the group of settings at a place of the tree, of which a part may be the number of an entry in a list."""
    group: type[Settings] = recipe
    for section in sections:
        annotation = group.model_fields[section].annotation if section in group.model_fields else None
        for kind in (annotation, *get_args(annotation)):
            if get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, Settings):
                group = kind
    return group
