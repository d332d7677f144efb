"""Which llama.cpp there is to run a GGUF file: one that the user names, else the first that is found."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from urllib.parse import urlsplit

from glmtune import registry
from glmtune.runtime import UserError

SERVER = "llama-server"
# Module -> distribution, the latest llama.cpp first.
PACKAGES = {"xllamacpp": "xllamacpp", "llama_cpp": "llama-cpp-python", "gpt4all": "gpt4all"}
INSTALL = "Install one: pip install 'glmtune[llama-cpp]'"


@dataclass(frozen=True)
class Found:
    """A llama.cpp.

    Attributes:
        name: what users are told.
        package: its module, which runs in a process of its own; None for a server.
        address: of a server that is running.
        binary: of a server that is to be started.
    """

    name: str
    package: str | None = None
    address: str | None = None
    binary: str | None = None


def find_llama_cpp(wish: str | None = None) -> Found:
    """Return the llama.cpp that a user wishes for, or the first that there is: `llama-server`, then the packages.

    Args:
        wish: an address, the path of a `llama-server`, or a name: `llama-server`, `xllamacpp`, `llama-cpp-python`,
            `gpt4all`.

    Raises:
        UserError: it is not there, or there is none.
    """
    if wish is not None and "://" in wish:
        return at_address(wish)
    if wish is not None and ("/" in wish or Path(wish).is_file()):
        if shutil.which(wish) is None:
            raise UserError(f"--engine {wish}: is no program that can be run. Name a {SERVER} of llama.cpp.")
        return Found(f"{SERVER} ({wish})", binary=wish)
    known = [SERVER, *PACKAGES.values()]
    if wish is not None and wish not in known:
        raise UserError(
            f"--engine {wish}: no such engine.{registry.suggest(wish, known)} An address "
            "(http://localhost:8080) or the path of a llama-server can be named, too."
        )
    for name in known if wish is None else [wish]:
        if (found := find_one(name)) is not None:
            return found
    if wish is not None:
        raise UserError(f"--engine {wish}: is not installed. {remedy(wish)}")
    raise UserError(
        f"No llama.cpp is here to run a GGUF file. {INSTALL}, or name a {SERVER} that you have: --engine PATH, or "
        "--engine http://localhost:8080"
    )


def remedy(name: str) -> str:
    """Return how an engine is installed."""
    if name == SERVER:
        return "Put it on the PATH, or name its path: https://github.com/ggml-org/llama.cpp"
    return f"Install it: pip install {name}"


def at_address(wish: str) -> Found:
    """Return the server at an address that the user typed.

    Raises:
        UserError: it is no address of a server.
    """
    try:
        parts = urlsplit(wish)
        is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_server = False
    if not is_server:
        raise UserError(f"--engine {wish}: is no address of a server. Write it as http://localhost:8080")
    return Found(f"{SERVER} at {parts.hostname}:{parts.port or parts.scheme}", address=wish.rstrip("/"))


def find_one(name: str) -> Found | None:
    """Return the engine of a name, if it is installed; none of it is run."""
    if name == SERVER:
        binary = shutil.which(SERVER)
        return Found(f"{SERVER} ({binary})", binary=binary) if binary else None
    module = next(module for module, distribution in PACKAGES.items() if distribution == name)
    if util.find_spec(module) is None:
        return None
    try:
        version = f" {metadata.version(name)}"
    except metadata.PackageNotFoundError:  # a copy without its description
        version = ""
    return Found(f"{name}{version}", package=module)
