"""Registers the model families with transformers' Auto classes without importing transformers.

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


def install() -> None:
    """Register now with what is imported already, and with the rest when it is."""
    for name in COUNTERPARTS:
        after_import(name, partial(import_counterparts, name))
    after_import("transformers.modeling_utils", import_packed)
