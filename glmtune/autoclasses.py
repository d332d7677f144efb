"""Registers the model families with transformers' Auto classes without importing transformers.

`import glmtune` must be fast, and `AutoModelForCausalLM.from_pretrained` must know `model_type: chatglm` afterwards.
So the registration waits until transformers' own auto modules are imported, and happens as part of that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


def register_configuration() -> None:
    """AutoConfig."""
    from transformers import AutoConfig

    from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig

    AutoConfig.register("chatglm", ChatGLMConfig, exist_ok=True)


def register_model() -> None:
    """AutoModelForCausalLM."""
    from transformers import AutoModelForCausalLM

    from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
    from glmtune.models.chatglm.modeling_chatglm import ChatGLMForCausalLM

    AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForCausalLM, exist_ok=True)


def register_tokenizer() -> None:
    """AutoTokenizer."""
    from transformers import AutoTokenizer

    from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
    from glmtune.models.chatglm.tokenization_chatglm import ChatGLMTokenizer

    AutoTokenizer.register(ChatGLMConfig, slow_tokenizer_class=ChatGLMTokenizer, exist_ok=True)


REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": register_configuration,
    "transformers.models.auto.modeling_auto": register_model,
    "transformers.models.auto.tokenization_auto": register_tokenizer,
}


class AfterImport(MetaPathFinder):
    """Finds transformers' auto modules as usual, and registers ours once such a module has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        register = REGISTRATIONS.get(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if register else None
        if register is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register now what is imported already, and the rest when it is."""
    for name, register in REGISTRATIONS.items():
        if name in sys.modules:
            register()
    sys.meta_path.insert(0, AfterImport())
