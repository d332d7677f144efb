"""The folder is the registry: a name is a module in a package, and a path is a user's own file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any


def names(package: str) -> list[str]:
    """Return the names of a package's modules but for `_name`: `names("glmtune.tasks") -> ["arithmetic", ...]`."""
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(module.name for module in modules if not module.name.startswith("_"))


def table(module: str) -> Mapping[str, Any]:
    """Return the rows of a module that is one table, its `TABLE`, by name."""
    return importlib.import_module(module).TABLE


def suggest(wrong: str, known: list[str]) -> str:
    """Return ` Did you mean 'x'? Known: x, y.` for error messages."""
    if not known:
        return ""
    close = get_close_matches(wrong, known, n=1, cutoff=0.4)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{hint} Known: {', '.join(known)}."


def load(package: str, name: str) -> ModuleType:
    """Import `package.name`, or the user's file if `name` is a path that ends in `.py`.

    Raises:
        ValueError: no such module, or no such file; the nearest right name is offered.
    """
    if name.endswith(".py"):
        path = Path(name).resolve()
        # The path is the module's name, so that a file called random.py hides nothing.
        spec = importlib.util.spec_from_file_location(str(path), path) if path.is_file() else None
        if spec is None or spec.loader is None:
            raise ValueError(f"no such file: {name}")
        module = sys.modules[str(path)] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
        spec.loader.exec_module(module)
        return module
    known = names(package)
    if name not in known:
        raise ValueError(f"unknown name '{name}'.{suggest(name, known)} A path to your own .py file works as well.")
    return importlib.import_module(f"{package}.{name}")


def find(package: str, name: str) -> Any:
    """Return the class that `package.name`, or the user's file, defines: the one subclass of the package's `BASE`.

    Raises:
        ValueError: no such module, or it defines no such class, or several.
    """
    base = importlib.import_module(package).BASE
    module = load(package, name)
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, base) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ValueError(f"'{name}' must define exactly one subclass of {base.__name__}; it has {len(found)}.")
    return found[0]
