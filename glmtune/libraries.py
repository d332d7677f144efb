"""The libraries below: what is done when one is imported, without importing it now, and how much they say."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.machinery import ModuleSpec
from types import ModuleType

Block = Callable[[], AbstractContextManager[None]]


class _Finder:
    """Finds modules as usual, and does what is to be done while and after they run.

    Attributes:
        blocks, actions: by the name of a module: the block in which it runs, and what is done then.
    """

    def __init__(self) -> None:
        self.blocks: dict[str, Block] = {}
        self.actions: dict[str, list[Callable[[], None]]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.actions and fullname not in self.blocks:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)  # editable installs have one of their own
        spec = next((found for finder in others if (found := finder.find_spec(fullname, path, target))), None)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            with self.blocks.get(fullname, nullcontext)():
                execute(module)
            for action in self.actions.get(fullname, ()):
                action()

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


_finder = _Finder()


def after_import(name: str, action: Callable[[], None]) -> None:
    """Do something as soon as a module is imported; now, if it has been."""
    if name in sys.modules:
        action()
    _finder.actions.setdefault(name, []).append(action)
    _watch()


def import_within(name: str, block: Block) -> None:
    """Let a module, with all that it imports, run in a block whenever it is imported."""
    _finder.blocks[name] = block
    _watch()


def _watch() -> None:
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def quiet_libraries() -> None:
    """Keep progress bars, advice and announcements of the libraries below out of the way; other warnings stay."""
    after_import("transformers.utils.logging", _quiet_transformers)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # kernels that it would rather have
    warnings.simplefilter("ignore", FutureWarning)


def _quiet_transformers() -> None:
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
