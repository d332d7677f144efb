"""Hub names, against a small hub of our own: fetched from a mirror, gone on with, and used without a network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = "somebody/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOAD = f"""
import glmtune

model, tokenizer = glmtune.load({REPOSITORY!r}, device="cpu")
print(type(model).__name__, model.name_or_path, len(tokenizer))
"""


class Hub(ThreadingHTTPServer):
    """Serves one repository as the hub does.

    Attributes:
        folder: its files.
        fetched: what was asked for.
        broken: it fails before the weights are through.
    """

    folder: Path
    fetched: list[str]
    broken: bool = False


class Handler(BaseHTTPRequestHandler):
    """The two addresses that huggingface_hub needs."""

    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        if self.path.startswith(f"/api/models/{REPOSITORY}"):
            files = sorted(self.server.folder.iterdir())
            told: Any = {"id": REPOSITORY, "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files]}
            if "/tree/" in self.path:
                told = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": COMMIT} for file in files
                ]
            self.reply(json.dumps(told).encode(), body, {})
            return
        file = self.server.folder / self.path.partition("?")[0].rpartition("/")[2]
        if body:
            self.server.fetched.append(file.name)
        if not file.is_file():
            self.send_error(404)
        elif self.server.broken and body and file.suffix == ".safetensors":
            self.send_error(501)
        else:
            content = file.read_bytes()
            tag = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            self.reply(content, body, tag)

    def reply(self, content: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(tiny_checkpoint: Path) -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), Handler)
    server.folder, server.fetched = tiny_checkpoint, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def load(home: Path, endpoint: str = "http://127.0.0.1:1", **variables: str) -> subprocess.CompletedProcess[str]:
    """Load by the hub name in a Python of its own, whose hub, cache and mode are set by the library's variables."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        **variables,
    }
    return subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, cwd=home)


def test_a_mirror_then_no_network(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    first = load(tmp_path / "home", f"http://127.0.0.1:{hub.server_port}")
    assert first.stdout.split() == ["ChatGLMForCausalLM", REPOSITORY, "504"], first.stderr[-1500:]
    assert "model.safetensors" in hub.fetched and not [name for name in hub.fetched if name.endswith((".bin", ".py"))]
    offline = load(tmp_path / "home", HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout, offline.stderr
    (tmp_path / "empty").mkdir()
    nothing = load(tmp_path / "empty", HF_HUB_OFFLINE="1")
    assert f"there is no folder {REPOSITORY} here, and the hub gives no files of that name" in nothing.stderr


def test_a_download_goes_on_with_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    hub.broken = True
    assert "the hub gives no files of that name" in load(tmp_path, endpoint).stderr
    assert {"config.json", "ice_text.model"} <= set(hub.fetched)
    hub.broken = False
    hub.fetched.clear()
    done = load(tmp_path, endpoint)
    assert done.stdout.split()[0] == "ChatGLMForCausalLM", done.stderr
    assert "model.safetensors" in hub.fetched and not {"config.json", "ice_text.model"} & set(hub.fetched)
