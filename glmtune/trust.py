"""Whose code runs: what the user typed in this command, and what he has said yes to, by its hash.

Recipes, runs, adapters and models travel. A path to code in one of them is a request, which stands here beside what is
asked for: the bytes that would run are read once, and it is their SHA-256 that is shown, remembered and compared.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from glmtune.files import is_own, private_folder, replacing
from glmtune.runtime import UserError
from glmtune.terminal import confirm

OTHERS_CAN_WRITE = 0o022


@dataclass(frozen=True)
class Request:
    """A file that names code.

    Attributes:
        asking: the file.
        setting: in it, such as `task.name`.
        path: of the code, absolute.
        sha256: of the bytes that would run.
    """

    asking: str
    setting: str
    path: Path
    sha256: str

    def __str__(self) -> str:
        return f"{self.asking}: {self.setting} asks to run {self.path} (SHA-256 {self.sha256})"


class UntrustedError(UserError):
    """Files ask to run code that nobody typed or allowed.

    Attributes:
        requests: what they ask.
    """

    def __init__(self, requests: Sequence[Request], may_allow: bool = True):
        self.requests = tuple(requests)
        allow = ", or add --trust-code (in Python trust_code=True)" if may_allow else ""
        super().__init__(
            f"{'; '.join(map(str, requests))}, which nobody typed or allowed here. Read it; if you want it to run, "
            f"type {self.typed}{allow}."
        )

    @property
    def typed(self) -> str:
        """What a user types who wants it to run."""
        return " ".join(shlex.quote(f"{request.setting}={request.path}") for request in self.requests)

    @property
    def sections(self) -> set[str]:
        """The sections of the recipe that ask."""
        return {request.setting.partition(".")[0] for request in self.requests}


@dataclass(frozen=True)
class Trust:
    """What a command does with code that a file names. By default it runs what was said yes to before, and asks nobody.

    Attributes:
        everything: run it all, as `--trust-code` says.
        asks: somebody sits at a terminal and can be asked.
        nothing: run none of it, whatever was said before: the command only looks.
        remembers: what was typed in this command is run later without a question, as what was said yes to.
    """

    everything: bool = False
    asks: bool = False
    nothing: bool = False
    remembers: bool = False

    def check(self, requests: Sequence[Request]) -> None:
        """See whether all that is asked for may run.

        Raises:
            UntrustedError: it may not.
        """
        if refused := [request for request in requests if not self.allows(request)]:
            raise UntrustedError(refused, may_allow=not self.nothing)

    def allows(self, request: Request) -> bool:
        """Return whether code may run, by what was said before or by the answer to a question."""
        if self.nothing:
            return False
        if self.everything or is_remembered(request.sha256):
            return True
        if self.asks and confirm(f"{request}. It could do whatever you can do. Run it?"):
            remember(request.path, request.sha256)
            return True
        return False

    def typed(self, path: Path, sha256: str) -> None:
        """Note that the user typed a path to code himself."""
        if self.remembers:
            remember(path, sha256)


REMEMBERED = Trust()
LOOKING = Trust(nothing=True)


def store() -> Path:
    """Return the file that remembers: a line for each hash, as `sha256sum` writes it. Delete one to be asked."""
    given = Path(os.environ.get("XDG_CONFIG_HOME", ""))  # a relative one does not count, by its specification
    return (given if given.is_absolute() else Path.home() / ".config") / "glmtune" / "trusted-code"


def is_remembered(sha256: str) -> bool:
    """Return whether somebody has said yes to code of this hash."""
    return any(line.partition("  ")[0] == sha256 for line in remembered())


def remembered() -> list[str]:
    """Return the lines of the store; none where it cannot be read, or where others can write it."""
    with suppress(OSError, RuntimeError, UnicodeDecodeError):  # there is no such file, or no home
        file = store()
        if is_own(file) and not (sys.platform != "win32" and file.stat().st_mode & OTHERS_CAN_WRITE):
            return file.read_text("utf-8").splitlines()
    return []


def remember(path: Path, sha256: str) -> None:
    """Note a yes, in a file that nobody else can read or write. Where that cannot be had, it is forgotten."""
    if is_remembered(sha256):
        return
    with suppress(OSError, RuntimeError, UserError):
        file = store()
        private_folder(file.parent)
        with replacing(file) as temporary:
            temporary.touch(0o600)
            temporary.write_text("".join(f"{line}\n" for line in [*remembered(), f"{sha256}  {path}"]), "utf-8")
