"""A llama.cpp server in this process, for tests of what it makes of our files."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def served(file: Path) -> Callable[..., Any]:
    """Return a function that asks a llama.cpp server for what it makes of a file; without one, the test is skipped."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_gpu_layers, settings.warmup = str(file), 128, 0, False
    settings.cpuparams.n_threads = settings.n_parallel = 1
    server = xllamacpp.Server(settings)

    def ask(path: str, **body: Any) -> Any:
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), head)
        return json.load(urllib.request.urlopen(request, timeout=60))

    return ask
