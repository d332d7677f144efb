"""The folder is the registry: a name is a module in a package, and a path is a user's own file.

A file is run for who vouches for it: a caller in Python, who names it to `load` or `find`, or the reader of recipes
(`glmtune.config.reading`), once it has been allowed. `admitted`, by which all names in recipes are found, runs nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.abc
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

CODE = ".py"
MOST_BYTES = 2**20  # of a file of code, which is read whole


@dataclass(frozen=True)
class Source(importlib.abc.InspectLoader):
    """A user's file as it was read, once: the same bytes are hashed, shown and run, whatever becomes of the file.

    Nothing is taken from `__pycache__`. What the file itself imports is not covered by its hash.

    Attributes:
        path: absolute, without links.
        content: of the file.
    """

    path: Path
    content: bytes

    @classmethod
    def read(cls, name: str) -> Source:
        """Read a file.

        Raises:
            ValueError: no such file, one with a name that a terminal would not show as it is, or a very long one.
        """
        path = Path(os.path.realpath(name)) if name.isprintable() else None
        if path is None or not str(path).isprintable():
            raise ValueError(f"no such file: {name!r}. The path of a file of code has printable characters alone.")
        if not path.is_file():
            raise ValueError(f"no such file: {name}")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"{name}: longer than {MOST_BYTES:,} bytes, which no file of code is.")
        return cls(path, content)

    @property
    def sha256(self) -> str:
        """The hash of what would run, as `sha256sum` prints it."""
        return hashlib.sha256(self.content).hexdigest()

    def run(self) -> ModuleType:
        """Return the module, run unless these very bytes were run before; Python's table of modules keeps it.

        Raises:
            ValueError: it is no Python; the line is told.
        """
        name = str(self.path)  # a path for a name, so that a file called random.py hides nothing
        if (before := loaded(self.path)) is not None and before.__loader__ == self:
            return before
        spec = importlib.util.spec_from_loader(name, self, origin=name)
        assert spec is not None, "a loader was given"
        module = importlib.util.module_from_spec(spec)
        module.__file__ = name
        sys.modules[name] = module  # where dataclasses look for it
        try:
            self.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, SyntaxError) and error.filename == name:
                raise ValueError(f"{name}, line {error.lineno}: {type(error).__name__}: {error.msg}") from error
            raise
        return module

    def get_code(self, fullname: str) -> CodeType:
        """Compile the bytes that were read."""
        return self.source_to_code(self.content, str(self.path))

    def get_source(self, fullname: str) -> str:
        """Return the text that was read."""
        return importlib.util.decode_source(self.content)


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


def is_code(name: str) -> bool:
    """Return whether a name is a path to code."""
    return name.endswith(CODE)


def loaded(path: Path) -> ModuleType | None:
    """Return the module that a user's file was run as, if it was."""
    module = sys.modules.get(str(path))
    return module if module is not None and isinstance(module.__loader__, Source) else None


def load(package: str, name: str) -> ModuleType:
    """Import `package.name`, or run the user's file if `name` is a path that ends in `.py`.

    Raises:
        ValueError: no such module, or no such file; the nearest right name is offered.
    """
    if is_code(name):
        return Source.read(name).run()
    known = names(package)
    if name not in known:
        raise ValueError(f"unknown name {name!r}.{suggest(name, known)} A path to your own .py file works as well.")
    return importlib.import_module(f"{package}.{name}")


def find(package: str, name: str) -> Any:
    """Return the class that `package.name`, or the user's file, defines: the one subclass of the package's `BASE`.

    Raises:
        ValueError: no such module, or it defines no such class, or several.
    """
    return defined(package, name, load(package, name))


def admitted(package: str, name: str) -> Any:
    """Return the class that a name in a recipe stands for; a file must have been allowed, and run, before.

    Raises:
        ValueError: as `find` does; or the file has not been run.
    """
    if not is_code(name):
        return find(package, name)
    module = loaded(Path(os.path.realpath(name))) if name.isprintable() else None
    if module is None:
        Source.read(name)  # says what is wrong with it
        raise ValueError(f"{name} was not run: nobody typed or allowed it.")
    return defined(package, name, module)


def defined(package: str, name: str, module: ModuleType) -> Any:
    """Return the one subclass of the package's `BASE` that a module defines.

    Raises:
        ValueError: there is none, or there are several.
    """
    base = importlib.import_module(package).BASE
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, base) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ValueError(f"'{name}' must define exactly one subclass of {base.__name__}; it has {len(found)}.")
    return found[0]
