"""Files whole or not at all, folders that nothing leads out of, folders of one's own."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from pathlib import Path

import pytest

from glmtune.files import check_folder, check_output, is_own, private_folder, replacing, unfollowed, write_json
from glmtune.runtime import UserError


def test_replacing_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    for text in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert temporary.parent.parent == path.parent  # on the same disk
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_replacing_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    for name in ("a", "b"):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
        assert [file.name for file in path.iterdir()] == [name]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_old_file_stays_on_failure(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_old_folder_stays_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "weights").write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "weights").write_text("half")
        raise RuntimeError
    assert (path / "weights").read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_disk_errors_are_told(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(UserError, match=r"file\.txt: cannot be written: No space left.* MB free"), replacing(path):
        raise OSError(28, "No space left on device")
    with pytest.raises(UserError, match="cannot be written"), replacing(path):
        pass  # nothing was written
    with pytest.raises(UserError, match="cannot be written"), replacing(path / "below"):
        pass
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    path.mkdir()
    (path / "weights").write_text("old")
    with pytest.raises(UserError, match="cannot be written"), replacing(path) as temporary:
        temporary.write_text("a file")
    assert (path / "weights").read_text() == "old"


def test_write_json(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"任务": [1, None]})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"任务": [1, None]} and "任务" in text and text.endswith("}\n")
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert path.read_text(encoding="utf-8") == text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file and a folder in it, and files beside it."""
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file.txt").write_text("within")
    (tmp_path / "beside.txt").write_text("beside")
    (tmp_path / "folder-2").mkdir()
    return folder


@pytest.mark.parametrize("target", ["deep/file.txt", "deep", ".", "./deep/../deep"])
def test_links_that_stay_within(folder: Path, target: str) -> None:
    (folder / "link").symlink_to(target)
    check_folder(folder)
    (folder.parent / "named").symlink_to(folder)
    check_folder(folder.parent / "named")


OUT = ["..", "../beside.txt", "../folder-2", "../nothing", "/", "/etc/hostname", "deep/../../beside.txt", "/dev/zero"]


@pytest.mark.parametrize("target", OUT)
@pytest.mark.parametrize("place", ["link", "deep/link", ".hidden"])
def test_links_that_lead_out(folder: Path, target: str, place: str) -> None:
    up = "../" if place == "deep/link" and not target.startswith("/") else ""
    (folder / place).symlink_to(f"{up}{target}")
    led = re.escape(os.path.realpath(folder / place))
    with pytest.raises(UserError, match=rf"{re.escape(place)}: is a link out of its folder, to {led}, "):
        check_folder(folder)


def test_a_link_by_way_of_another(folder: Path) -> None:
    (folder.parent / "way").symlink_to(folder / "deep")
    (folder / "link").symlink_to("../way/file.txt")  # ends where it began
    check_folder(folder)
    (folder / "first").symlink_to("second")
    (folder / "second").symlink_to("../beside.txt")
    with pytest.raises(UserError, match="first: is a link out of its folder"):
        check_folder(folder)


@pytest.mark.parametrize(("name", "target"), [("loop", "loop"), ("nothing", "deep/nothing")])
def test_links_to_nothing(folder: Path, name: str, target: str) -> None:
    (folder / name).symlink_to(target)
    with pytest.raises(UserError, match=f"{name}: is a link to nothing. Remove it"):
        check_folder(folder)


def test_pipes_and_sockets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "deep" / "recipe.yaml")
    with pytest.raises(UserError, match=r"recipe\.yaml: is a pipe, and only files are read"):
        check_folder(folder)
    (folder / "deep" / "recipe.yaml").unlink()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(UserError, match="socket: is a socket"):
            check_folder(folder)


def test_the_cache_of_the_hub(tmp_path: Path) -> None:
    """Links of a snapshot lead to the blobs of its repository, these to blobs that repositories share; no further."""
    cache = tmp_path / "hub"
    snapshot, shared = cache / "models--org--name" / "snapshots" / "abc", cache / "blobs" / "0f" / f"0f{'0' * 62}"
    blobs = cache / "models--org--name" / "blobs"
    for made in (snapshot / "deep", blobs, shared.parent, cache / "models--org--other"):
        made.mkdir(parents=True)
    (blobs / "123").write_text("{}")
    shared.write_text("weights")
    (blobs / "456").symlink_to(f"../../blobs/0f/{shared.name}")
    (snapshot / "config.json").symlink_to("../../blobs/123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/456")
    (snapshot / "deep" / "more.json").symlink_to("../../../blobs/123")
    check_folder(snapshot)
    check_folder(snapshot / "deep")
    for outside in ("../../../models--org--other", "../../../blobs/other", "../../../../secret", "../../.."):
        (snapshot / "out").symlink_to(outside)
        with pytest.raises(UserError, match="out: is a link out of its folder"):
            check_folder(snapshot)
        (snapshot / "out").unlink()
    (cache / "models--org--name").rename(cache / "another")
    with pytest.raises(UserError, match="is a link out of its folder"):
        check_folder(cache / "another" / "snapshots" / "abc")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "new" / "private"
    for _ in range(2):
        assert private_folder(place) == place and mode_of(place) == 0o700
    place.chmod(0o777)
    assert mode_of(private_folder(place)) == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(UserError, match="private: belongs to another user"):
        private_folder(place)


@pytest.mark.parametrize("what", ["link to a folder", "link to nothing", "file"])
def test_no_private_folder(tmp_path: Path, what: str) -> None:
    place, other = tmp_path / "private", tmp_path / "other"
    other.mkdir(mode=0o755)
    if what == "file":
        place.touch()
    else:
        place.symlink_to(other if what == "link to a folder" else tmp_path / "nothing")
    with pytest.raises(UserError, match=f"private: is {'no folder' if what == 'file' else 'a link'}, where"):
        private_folder(place)
    assert mode_of(other) == 0o755 and not (tmp_path / "nothing").exists()


def test_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert [is_own(tmp_path / name) for name in ("file", "link", "nothing", ".")] == [True, False, False, False]
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert not is_own(tmp_path / "file")


def test_links_are_not_written_through(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("precious")
    link.symlink_to(victim)
    for write in (check_output, lambda path: write_json(path, {})):
        with pytest.raises(UserError, match=rf"link: is a link to {victim}, .*Name that path itself"):
            write(link)
    with pytest.raises(OSError, match="symbolic links"), open(link, "w", opener=unfollowed):
        pass
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match="dangling: is a link to"):
        check_output(tmp_path / "dangling")
    assert victim.read_text() == "precious" and not (tmp_path / "nothing").exists()


def test_no_pipe_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for write in (check_output, lambda path: write_json(path, {})):
        with pytest.raises(UserError, match="pipe: is a pipe, which is not replaced"):
            write(tmp_path / "pipe")
    with pytest.raises(UserError, match="/dev/null: is a device, which is not replaced"):
        write_json("/dev/null", {})
    check_output("/dev/null")


def test_results_are_as_the_user_means_them(tmp_path: Path) -> None:
    """What others may read of a new file is for the umask to say, not for the private folder that it comes from."""
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "file", {})
        with replacing(tmp_path / "made") as temporary:
            assert mode_of(temporary.parent) == 0o700
            temporary.mkdir()
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "file") == 0o640 and mode_of(tmp_path / "made") == 0o750
