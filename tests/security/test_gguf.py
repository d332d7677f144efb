"""A GGUF file of a stranger: whatever its bytes say, it is read soon or told in a line, with nothing made by it."""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from glmtune import cli
from glmtune.models import loading
from glmtune.models.gguf.header import MOST_KEYS
from glmtune.resolution import resolve
from glmtune.runtime import UserError

pytest.importorskip("gguf", reason="needs the package gguf: pip install 'glmtune[gguf]'")

STRING, ARRAY, U32, F32 = 8, 9, 4, 6
SECONDS = 20  # generous: on a busy machine


@pytest.fixture(autouse=True)
def ends_soon() -> Iterator[None]:
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start < SECONDS


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, content: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + content


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + content


def tensor(name: str, shape: list[int], kind: int = 0, place: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, place)


def gguf_bytes(keys: list[bytes], tensors: list[bytes], version: int = 3, data: int = 64) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join((*keys, *tensors))
    return head + bytes(-len(head) % 32) + bytes(data)


ARCHITECTURE = key("general.architecture", STRING, text("llama"))
U64 = 2**64 - 1
HOSTILE = {
    "empty": b"",
    "short": b"GGUF\x03",
    "other": b"PK\x03\x04" + bytes(60),
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "older": struct.pack("<I", 0x67676A74) + bytes(60),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "version": gguf_bytes([ARCHITECTURE], [], version=99),
    "many keys": b"GGUF" + struct.pack("<IQQ", 3, 0, U64) + bytes(99),
    "more keys": b"GGUF" + struct.pack("<IQQ", 3, 0, MOST_KEYS) + bytes(99),
    "many tensors": b"GGUF" + struct.pack("<IQQ", 3, U64, 1) + bytes(99),
    "long text": gguf_bytes([struct.pack("<Q", U64) + b"a"], []),
    "no text": gguf_bytes([key("general.architecture", STRING, struct.pack("<Q", 2) + b"\xff\xfe")], []),
    "many numbers": gguf_bytes([ARCHITECTURE, key("a", ARRAY, array(U32, U64))], []),
    "many texts": gguf_bytes([ARCHITECTURE, key("a", ARRAY, array(STRING, 2**60))], []),
    "lists of lists": gguf_bytes([ARCHITECTURE, key("a", ARRAY, array(ARRAY, 2, array(ARRAY, 2) * 9))], []),
    "kind": gguf_bytes([ARCHITECTURE, key("a", 77, b"")], []),
    "alignment": gguf_bytes([ARCHITECTURE, key("general.alignment", U32, struct.pack("<I", 0))], []),
    "no architecture": gguf_bytes([], []),
    "architecture": gguf_bytes([key("general.architecture", U32, struct.pack("<I", 7))], []),
    "dimensions": gguf_bytes([ARCHITECTURE], [text("a") + struct.pack("<I", 2**31) + bytes(99)]),
    "huge tensor": gguf_bytes([ARCHITECTURE], [tensor("token_embd.weight", [2**63, 2**63])]),
    "far tensor": gguf_bytes([ARCHITECTURE], [tensor("token_embd.weight", [4, 4], place=2**63)]),
    "same tensors": gguf_bytes([ARCHITECTURE], [tensor("a", [4]), tensor("a", [4])]),
    "broken block": gguf_bytes([ARCHITECTURE], [tensor("a", [4, 5], kind=8)]),
    "no sizes": gguf_bytes([ARCHITECTURE], [tensor("token_embd.weight", [4, 4])]),
    "huge sizes": gguf_bytes(
        [
            ARCHITECTURE,
            *(
                key(f"llama.{name}", U32, struct.pack("<I", 2**32 - 1))
                for name in ("context_length", "embedding_length", "block_count", "feed_forward_length")
            ),
            key("llama.attention.head_count", U32, struct.pack("<I", 0)),
        ],
        [tensor("token_embd.weight", [4, 4])],
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_told_in_a_line(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(HOSTILE[name])
    with pytest.raises(UserError) as caught:
        resolve(file).values  # noqa: B018
    assert "\n" not in str(caught.value)
    assert "model.gguf" in str(caught.value)


def test_the_doctor_tells_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.gguf").write_bytes(HOSTILE["many keys"])
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", str(tmp_path / "model.gguf")])
    assert end.value.code == 2
    assert "FAILS    model: " in capsys.readouterr().out


def small(file: Path) -> bytes:
    """A file that is whole: four tokens, one block."""
    names = ("a", "b", "ab", "<e>")
    numbers = {"context_length": 16, "embedding_length": 8, "block_count": 1, "feed_forward_length": 8}
    keys = [
        ARCHITECTURE,
        *(key(f"llama.{name}", U32, struct.pack("<I", value)) for name, value in numbers.items()),
        key("llama.attention.head_count", U32, struct.pack("<I", 2)),
        key("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5)),
        key("tokenizer.ggml.model", STRING, text("gpt2")),
        key("tokenizer.ggml.pre", STRING, text("smollm")),
        key("tokenizer.ggml.tokens", ARRAY, array(STRING, 4, b"".join(map(text, names)))),
        key("tokenizer.ggml.token_type", ARRAY, array(U32, 4, struct.pack("<4I", 1, 1, 1, 3))),
        key("tokenizer.ggml.merges", ARRAY, array(STRING, 1, text("a b"))),
        key("tokenizer.ggml.eos_token_id", U32, struct.pack("<I", 3)),
    ]
    content = gguf_bytes(keys, [tensor("token_embd.weight", [4, 8])], data=128)
    file.write_bytes(content)
    return content


def test_a_file_that_was_cut_off_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    content = small(file)
    assert loading.load_tokenizer(loading.fetch(str(file), False))("ab")["input_ids"] == [2]
    for end in range(0, len(content), 5):
        file.write_bytes(content[:end])
        with pytest.raises(UserError):
            loading.locate(str(file))


def test_bytes_that_turned(tmp_path: Path) -> None:
    """It is read, or refused in a line: nothing else happens."""
    file, rng, read = tmp_path / "model.gguf", random.Random(0), 0
    content = small(file)
    for _ in range(200):
        turned = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            turned[rng.randrange(len(content) - 128)] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
        file.write_bytes(turned)
        os.utime(file, ns=(rng.randrange(2**60), rng.randrange(2**60)))
        try:
            resolve(file).values  # noqa: B018
            read += 1
        except UserError as error:
            assert "\n" not in str(error)
    assert read > 10


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "model.gguf"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="is a pipe, not a file"):
        resolve(pipe)


def test_a_link_in_a_folder_leads_nowhere(tmp_path: Path) -> None:
    small(tmp_path / "model.gguf")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.gguf").symlink_to(tmp_path / "model.gguf")
    with pytest.raises(UserError, match="is a link out of its folder"):
        resolve(tmp_path / "folder")
    assert resolve(tmp_path / "folder" / "model.gguf").values["hidden_size"] == 8  # a file that is named is followed
