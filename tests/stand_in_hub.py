"""A small hub of our own, which serves folders of this machine as huggingface.co does, and keeps what it was asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves repositories as the hub does.

    Attributes:
        models, datasets: the folder of each repository, by its name.
        requests: method and path of all that was asked.
        agents: the user agents of those who asked.
        fetched: the files that were asked for.
        broken: it fails before the weights are through.
    """

    def __init__(self, models: dict[str, Path] | None = None, datasets: dict[str, Path] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.datasets = models or {}, datasets or {}
        self.requests: list[str] = []
        self.agents: list[str] = []
        self.fetched: list[str] = []
        self.broken = False

    @property
    def endpoint(self) -> str:
        """Its address, as `HF_ENDPOINT` has it."""
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def serving(self) -> Iterator[Hub]:
        """Answer while the block runs."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        yield self
        self.shutdown()
        self.server_close()

    def folder_of(self, path: str) -> tuple[str, Path | None]:
        """Return name and folder of the repository that a path speaks of."""
        known = {**{f"datasets/{name}": folder for name, folder in self.datasets.items()}, **self.models}
        path = path.removeprefix("/").removeprefix("api/").removeprefix("models/")
        return next(((name, folder) for name, folder in known.items() if path.startswith(name)), ("", None))


class Handler(BaseHTTPRequestHandler):
    """The few addresses that huggingface_hub needs."""

    server: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        self.server.agents.append(str(self.headers.get("User-Agent")))
        name, folder = self.server.folder_of(self.path)
        if folder is None:
            self.reply(b"", body, {"X-Error-Code": "RepoNotFound"}, status=404)
        elif self.path.startswith("/api/"):
            self.reply(json.dumps(self.describe(name, folder)).encode(), body, {})
        else:
            self.send_file(folder / self.path.partition("?")[0].rpartition("/")[2], body)

    def describe(self, name: str, folder: Path) -> Any:
        files = sorted(folder.iterdir())
        if "/tree/" in self.path:
            return [{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": COMMIT} for file in files]
        siblings = [{"rfilename": file.name} for file in files]
        return {"id": name.removeprefix("datasets/"), "sha": COMMIT, "siblings": siblings}

    def send_file(self, file: Path, body: bool) -> None:
        if body:
            self.server.fetched.append(file.name)
        if not file.is_file():
            self.reply(b"", body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, status=404)
        elif self.server.broken and body and file.suffix == ".safetensors":
            self.send_error(501)
        else:
            content = file.read_bytes()
            tag = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            self.reply(content, body, tag)

    def reply(self, content: bytes, body: bool, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)
