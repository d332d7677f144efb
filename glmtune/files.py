"""Files that are written whole or not at all, folders that nothing leads out of, and folders of one's own.

A file from a stranger may be a link, a pipe or a device. What a user names may be a link, which is followed once; what
lies in a folder may be one only where it stays in there.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from glmtune.runtime import UserError
from glmtune.terminal import to_json

HUB_CACHE = ("models--", "datasets--", "spaces--")  # how the hub's cache names the folder of a repository
SHARED_BLOB = re.compile("blobs/[0-9a-f]{2}/[0-9a-f]{64}")  # what repositories of that cache may have in common
WORKED_IN = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")  # folders of `replacing`
OLD = ".old"  # ends what is about to be replaced there
NO_FOLLOW = 0 if sys.platform == "win32" else os.O_NOFOLLOW


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it takes the place of `path` when the block ends well.

    Whoever reads `path`, also after a kill or a power cut at any moment, finds all of the old or all of the new: what
    was written is on the disk before it gets its name. The temporary path is in a new folder of a random name, which
    nobody else can write into. What killed processes left on their way to the same path is taken away.

    Raises:
        UserError: a link or a device is there, the disk is full, or the folder cannot be written; what stood at `path`
            is still there.
    """
    path = Path(path)
    check_replaceable(path)
    try:
        make_folders(path.parent)
        remove_leftovers(path.parent, path.name)
        with working_folder(path) as folder:
            temporary = folder / path.name
            yield temporary
            flush(temporary)
            move_into_place(temporary, path)
            flush_names(path.parent)
    except OSError as error:
        free = shutil.disk_usage(path.parent if path.parent.is_dir() else ".").free // 2**20
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error} ({free} MB free on this disk)"
        ) from error


def make_folders(folder: Path) -> None:
    """Make a folder and those above it, each with its name on the disk.

    Raises:
        OSError: it cannot be.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        flush_names(place.parent)


@contextmanager
def working_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside `path`, held as long as this process works in it, and taken away in the end."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        descriptor = lock(folder)
        if descriptor is None or folder.exists():  # else one who cleared up came before the lock
            break
        os.close(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def remove_leftovers(folder: Path, of: str | None = None) -> None:
    """Take away the folders in which killed processes worked, on their way to a name or to any; others hold theirs."""
    for left in sorted(folder.iterdir()) if folder.is_dir() else ():
        found = WORKED_IN.fullmatch(left.name)
        if found is None or of not in (None, found[1]) or left.is_symlink():
            continue
        with suppress(BlockingIOError):
            descriptor = lock(left, wait=False)
            if descriptor is not None:
                path, whole, old = folder / found[1], left / found[1], left / f"{found[1]}{OLD}"
                if old.is_dir() and not path.exists():  # killed between the two steps of `move_into_place`
                    os.replace(whole if whole.is_dir() else old, path)
                shutil.rmtree(left, ignore_errors=True)
                os.close(descriptor)


def remove_folder(path: Path) -> None:
    """Take a folder away: its name at once, so that no half of it is found by it, and then what is in it.

    Raises:
        OSError: it cannot be.
    """
    with working_folder(path) as folder:
        os.replace(path, folder / path.name)


def lock(folder: Path | str, wait: bool = True) -> int | None:
    """Return a descriptor by which a folder is held until it is closed or this process ends, however it does.

    Returns:
        None where the system has no such locks (Windows, some network disks), or the folder is gone.

    Raises:
        BlockingIOError: another process holds it, and this one does not wait.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def flush(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk.

    Raises:
        OSError: the disk is full, or broken, as it turns out now.
    """
    if path.is_dir():
        for inner in path.iterdir():
            flush(inner)
        flush_names(path)
    else:
        descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can tell."""
    with suppress(OSError):  # Windows opens no folders, some network disks know no such wish
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def move_into_place(temporary: Path, path: Path) -> None:
    """Give what was written its name, in one step where the system can: only Linux swaps folders.

    Raises:
        OSError: it cannot be.
    """
    if temporary.is_dir() and path.is_dir():
        if swap(temporary, path):
            return
        os.replace(path, temporary.with_name(f"{path.name}{OLD}"))
    os.replace(temporary, path)


def swap(one: Path, other: Path) -> bool:
    """Exchange what two paths name; return whether the system did."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # another libc
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of <linux/fs.h>
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def check_replaceable(path: Path) -> None:
    """See whether what stands at a path, if anything, is a file or a folder that can be replaced.

    Raises:
        UserError: it is a link, of which is told where it leads, or a pipe, a device, a socket.
    """
    if path.is_symlink():
        raise UserError(
            f"{path}: is a link to {os.path.realpath(path)}, and links are not written through. Name that path itself, "
            "or remove the link."
        )
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: is {kind_of(path.stat().st_mode)}, which is not replaced. Choose another place.")


def check_output(output: Path | str, option: str = "--output") -> None:
    """Find out before the work whether its result can be written to a file; its folder is made.

    Args:
        output: the file.
        option: by which it was named.

    Raises:
        UserError: it cannot.
    """
    path = Path(output)
    if path.is_dir():
        raise UserError(f"{option} {output}: is a folder. Name a file.")
    try:
        if not path.is_char_device():  # such as /dev/null: to be written to, never to be replaced
            check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", opener=unfollowed) if path.exists() else tempfile.TemporaryFile(dir=path.parent):
            pass
    except UserError as error:
        raise UserError(f"{option} {error}") from None
    except OSError as error:
        raise UserError(f"{option} {output}: cannot be written: {error.strerror}. Choose another place.") from error


def check_named(path: Path, setting: str = "") -> None:
    """See whether what a user or a setting names can be read to its end: a file, or a folder, of which readers tell.

    Raises:
        UserError: it is a pipe, a device or a socket.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(
            f"{setting and f'{setting}='}{path}: is {kind_of(path.stat().st_mode)}, not a file. Name a file."
        )


def unfollowed(path: str, flags: int) -> int:
    """Open a file, but not through a link: the `opener` of `open`."""
    return os.open(path, flags | NO_FOLLOW, 0o666)


def write_text(path: Path | str, text: str) -> None:
    """Write a text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, to_json(value, indent=2) + "\n")


def check_folder(folder: Path | str, hidden: bool = True) -> None:
    """Check that nothing in a folder leads out of it, and that it holds files and folders alone.

    The folder itself may be a link. Those of a snapshot in the hub's cache may lead to the blobs there. Hard links look
    like any other file.

    Args:
        folder: to look through.
        hidden: look at what begins with a dot, too; of records, such files are not read.

    Raises:
        UserError: an entry is a link out of it or to nothing, a pipe, a device or a socket.
    """
    folder = Path(folder)
    own = Path(os.path.realpath(folder))
    for parent, folders, files in os.walk(folder):
        if not hidden:
            folders[:] = [name for name in folders if not name.startswith(".")]
            files = [name for name in files if not name.startswith(".")]
        for path in (Path(parent, name) for name in sorted((*folders, *files))):
            is_link = path.is_symlink()
            if is_link and not stays(Path(target := os.path.realpath(path)), own):
                raise UserError(
                    f"{path}: is a link out of its folder, to {target}, and nothing of the folder is touched. Name "
                    f"{target} itself where it is meant, or put a copy in the link's place."
                )
            try:
                mode = path.stat().st_mode
            except OSError as error:
                if is_link:
                    raise UserError(f"{path}: is a link to nothing. Remove it.") from None
                if isinstance(error, FileNotFoundError):  # a process that works there has taken it away
                    continue
                raise UserError(f"{path}: cannot be looked at: {error.strerror}.") from None
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UserError(f"{path}: is {kind_of(mode)}, and only files are read. Remove it.")


def stays(target: Path, folder: Path) -> bool:
    """Return whether a link in a folder may lead to a target: in there, or among the blobs of the hub's cache."""
    if target.is_relative_to(folder):
        return True
    snapshots = (parent for parent in folder.parents if parent.name == "snapshots")
    repository = next((parent.parent for parent in snapshots if parent.parent.name.startswith(HUB_CACHE)), None)
    if repository is None or not target.is_relative_to(repository.parent):
        return False
    shared = SHARED_BLOB.fullmatch(target.relative_to(repository.parent).as_posix())
    return target.is_relative_to(repository) or shared is not None


def kind_of(mode: int) -> str:
    """Return what a file is that is none."""
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a folder"))
    return next((name for is_kind, name in kinds if is_kind(mode)), "a device")


def private_folder(path: Path | str) -> Path:
    """Make a folder that nobody else can read or write (mode 0700), or make the one that is there such a folder.

    What others put there before is theirs still: see `is_own`.

    Raises:
        UserError: what is there is a link or a file, or another user's.
        OSError: it cannot be made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        what = "a link" if stat.S_ISLNK(found.st_mode) else "no folder"
        raise UserError(f"{path}: is {what}, where a folder of your own is to be. Remove it.")
    if sys.platform != "win32":
        if found.st_uid != os.geteuid():
            raise UserError(f"{path}: belongs to another user (number {found.st_uid}). Choose another place for it.")
        if stat.S_IMODE(found.st_mode) != 0o700:
            path.chmod(0o700)
    return path


def unfinished(path: Path) -> Path:
    """Return where lines are kept of which a file is written in the end: in a private folder beside it."""
    return path.with_name(f".{path.name}.unfinished") / "lines.jsonl"


def check_unfinished(file: Path) -> None:
    """See whether lines can be kept in a file: its folder, if it is there, and itself are this user's, and no links.

    Raises:
        UserError: they are not.
    """
    if os.path.lexists(file.parent):
        private_folder(file.parent)
    if os.path.lexists(file) and not is_own(file):
        raise UserError(f"{file}: is a link, or another user's. Remove it, or choose another place.")


def open_unfinished(file: Path, resume: bool) -> TextIO:
    """Open a file of lines to write on, or anew, in its private folder.

    Raises:
        UserError: the folder is a link, or another user's.
        OSError: it cannot be written.
    """
    private_folder(file.parent)
    if not resume:
        file.unlink(missing_ok=True)
    return open(file, "a" if resume else "x", encoding="utf-8", opener=unfollowed)


def remove_unfinished(file: Path) -> None:
    """Take a file of lines away, and its folder, if nothing else is in it."""
    file.unlink()
    with suppress(OSError):
        file.parent.rmdir()


def is_own(path: Path) -> bool:
    """Return whether a path is a file, no link, of this user."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and (sys.platform == "win32" or found.st_uid == os.geteuid())
