"""The network: nobody is asked for anything but what the user typed or said yes to, and that is said first.

A name of the hub that stands in what the user typed is the user's wish. One that only a file names (a recipe, a run, an
adapter that names its base) is somebody else's: it is fetched after a yes at the terminal, or with `--fetch`. What
libraries read of a folder they read without the network. Importing this is cheap: `import glmtune` does.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from glmtune.libraries import import_within
from glmtune.terminal import at_terminal, confirm, say

P = ParamSpec("P")
R = TypeVar("R")

# Variables by which the user tells the libraries below to keep what they do to themselves.
TELEMETRY = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # OWNER/NAME
_BETWEEN_NAMES = re.compile(r"[^\w./-]+")
# Where this program writes and reads in the working folder, whether or not there is such a folder yet.
OWN_FOLDERS = ("runs", "recipes", "checkpoints", "data")
FILE_SUFFIXES = (
    *(".yaml", ".yml", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".md", ".html", ".jinja"),
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".model", ".py", ".zip", ".gz", ".tar"),
)


@dataclass
class Verb:
    """What is known of names while a verb is carried out.

    Attributes:
        typed: what the user typed: texts, nested as they may be.
        fetch: what files name is fetched, too.
        files: what files said, by their paths.
        agreed: names to which the user said yes.
    """

    typed: Any
    fetch: bool = False
    files: dict[str, Any] = field(default_factory=dict)
    agreed: set[str] = field(default_factory=set)


@dataclass
class _Closing:
    """Who is in a `closed` block: the setting of huggingface_hub is one for all threads."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    inside: int = 0
    before: bool = False


_closing = _Closing()
_verb: ContextVar[Verb | None] = ContextVar("verb", default=None)  # None: all names are those of the calling program


@contextmanager
def asked_by(typed: Any, fetch: bool = False) -> Iterator[None]:
    """Carry out a verb in the block.

    Args:
        typed: the words of the command line, or the arguments of a call.
        fetch: whether what files name may be fetched.
    """
    with within(Verb(typed, fetch)):
        yield


@contextmanager
def within(verb: Verb | None) -> Iterator[None]:
    """Carry out a verb in the block, or a part of it: another process gets what is `present` in the first one."""
    import_within("bitsandbytes", closed)  # it fetches kernels and runs them, where the package `kernels` is installed
    token = _verb.set(verb)
    try:
        yield
    finally:
        _verb.reset(token)


def present() -> Verb | None:
    """Return what is known of names while a verb is carried out; None: all names are those of the calling program."""
    return _verb.get()


def takes_names(function: Callable[P, R]) -> Callable[P, R]:
    """Let the texts among a function's arguments be what the user typed."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with asked_by([args, kwargs]):
            return function(*args, **kwargs)

    return call


def note_file(file: Path | str, values: Any) -> None:
    """Remember what a file says, so that it can be told which one names what is to be fetched."""
    if (verb := _verb.get()) is not None:
        verb.files.setdefault(str(file), values)


def mentions(values: Any, name: str) -> bool:
    """Return whether a name stands, as a word of its own, in a text, or in one of nested texts."""
    if isinstance(values, str | os.PathLike):
        return name in _BETWEEN_NAMES.split(os.fspath(values))
    inner = values.values() if isinstance(values, Mapping) else values if isinstance(values, list | tuple) else ()
    return any(mentions(value, name) for value in inner)


def is_hub_name(text: str) -> bool:
    """Return whether a text can be meant for the hub: OWNER/NAME, and nothing that looks like a path on this machine.

    What does is no file or folder (the caller has looked), but the folder it would be in is there or one of this
    program's own; or it ends as files do; or something here has nearly the same path.
    """
    owner = text.partition("/")[0]
    return (
        _NAME.fullmatch(text) is not None
        and not text.endswith(FILE_SUFFIXES)
        and owner not in OWN_FOLDERS
        and not Path(owner).is_dir()
        and not near_paths(text)
    )


def near_paths(text: str) -> list[str]:
    """Return what is there whose folder and name are nearly those of a path: of `run/sums`, `runs/sums`."""
    path = Path(text)
    parents = [path.parent]
    if len(path.parts) == 2 and not path.is_absolute() and not path.parent.is_dir():
        folders = {entry.name.casefold(): entry.name for entry in Path().iterdir() if entry.is_dir()}
        parents = [Path(folders[near]) for near in get_close_matches(path.parts[0].casefold(), folders, cutoff=0.7)]
    found = []
    for parent in parents:
        names = {entry.name.casefold(): entry.name for entry in parent.iterdir()} if parent.is_dir() else {}
        found += [str(parent / names[near]) for near in get_close_matches(path.name.casefold(), names, cutoff=0.7)]
    return found


def permit(name: str, what: str, setting: str) -> None:
    """Say that something is about to be fetched, and ask first where only a file names it.

    Args:
        name: OWNER/NAME.
        what: of it: `weights`.
        setting: by which a user would name it.

    Raises:
        UserError: a file names it, and nobody says yes.
    """
    from glmtune.runtime import UserError

    verb, by = _verb.get(), "you"
    if verb is not None and not mentions(verb.typed, name):
        by = next((file for file, values in verb.files.items() if mentions(values, name)), "a file")
        if not verb.fetch and name not in verb.agreed:
            if not (at_terminal() and confirm(f"Fetch {name} from {host()}, named by {by}?")):
                raise UserError(
                    f"{name} is named by {by} and is not here. What only a file names is fetched from {host()} after "
                    f"a yes: add --fetch, or name it yourself as a setting, e.g. {setting}={name}."
                )
            verb.agreed.add(name)
    withhold_telemetry()
    say(f"Fetching {what} of {name} from {host()}, named by {by}.", error=True)


def host() -> str:
    """Return the host of the hub, or of the mirror that the user has set, without the password that may stand there."""
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).netloc.rpartition("@")[2]


@contextmanager
def closed() -> Iterator[None]:
    """Let no library ask the hub while the block runs: what a stranger's file names is not looked for there.

    Where several threads are in such a block, the first one in closes the network and the last one out opens it again.
    """
    from huggingface_hub import constants

    with _closing.lock:
        if not _closing.inside:
            _closing.before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        _closing.inside += 1
    try:
        yield
    finally:
        with _closing.lock:
            _closing.inside -= 1
            if not _closing.inside:
                constants.HF_HUB_OFFLINE = _closing.before


def withhold_telemetry() -> None:
    """Have the libraries below tell nobody how they are used, unless the user's environment says anything of it."""
    if not any(name in os.environ for name in TELEMETRY):
        os.environ |= TELEMETRY
        # They are read when the libraries are imported, which may have been.
        if constants := sys.modules.get("huggingface_hub.constants"):
            vars(constants)["HF_HUB_DISABLE_TELEMETRY"] = True
        if config := sys.modules.get("datasets.config"):
            vars(config)["HF_UPDATE_DOWNLOAD_COUNTS"] = False
