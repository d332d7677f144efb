"""Registers the model families with transformers' Auto classes, and with peft, without importing either.

`import glmtune` must be fast, and `AutoModelForCausalLM.from_pretrained` must know `model_type: chatglm` afterwards.
The modules of a family that has classes of its own register them when they are imported; so whenever one of
transformers' own auto modules for configurations or tokenizers has been imported, its counterpart in each such family
is imported too. Model classes need much of transformers, which may be half imported then: a configuration imports them
when one is made.
"""

from __future__ import annotations

import importlib
from functools import partial

from glmtune.libraries import after_import

# An auto module of transformers -> the modules of a family that register with it.
COUNTERPARTS = {
    "transformers.models.auto.configuration_auto": "configuration_*.py",
    "transformers.models.auto.tokenization_auto": "tokenization_*.py",
}


def import_counterparts(name: str) -> None:
    """Import the modules that register with the auto module `name`, of every family with classes of its own."""
    from glmtune.models.families import own_modules  # half of the time that `import glmtune` would take

    for module in own_modules(COUNTERPARTS[name]):
        importlib.import_module(module)


def import_packed() -> None:
    """Import what registers our packed checkpoints with what loads models."""
    importlib.import_module("glmtune.models.packed_checkpoints")


def name_targets() -> None:
    """Put the families' layers into peft's tables of those that it takes unasked, where it has none of them itself."""
    from peft.utils import constants

    from glmtune.models.families import all_families

    start, end = "TRANSFORMERS_MODELS_TO_", "_MODULES_MAPPING"
    for family in all_families():
        for name, table in vars(constants).items():
            if not (name.startswith(start) and name.endswith(end)):
                continue
            known = family.peft_targets.get(name.removeprefix(start).removesuffix(end), table.get(family.peft_like))
            for model_type in family.model_types if known else ():
                table.setdefault(model_type, list(known))


def install() -> None:
    """Register now with what is imported already, and with the rest when it is."""
    for name in COUNTERPARTS:
        after_import(name, partial(import_counterparts, name))
    after_import("transformers.modeling_utils", import_packed)
    after_import("peft.utils.constants", name_targets)
