"""Hub names, against a small hub of our own: fetched from a mirror, gone on with, and used without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stand_in_hub import Hub

REPOSITORY = "somebody/tiny"
LOAD = f"""
import glmtune

model, tokenizer = glmtune.load({REPOSITORY!r}, device="cpu")
print(type(model).__name__, model.name_or_path, len(tokenizer))
"""


@pytest.fixture
def hub(tiny_checkpoint: Path) -> Iterator[Hub]:
    with Hub({REPOSITORY: tiny_checkpoint}).serving() as server:
        yield server


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
    first = load(tmp_path / "home", hub.endpoint)
    assert first.stdout.split() == ["ChatGLMForCausalLM", REPOSITORY, "504"], first.stderr[-1500:]
    assert "model.safetensors" in hub.fetched and not [name for name in hub.fetched if name.endswith((".bin", ".py"))]
    offline = load(tmp_path / "home", HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout, offline.stderr
    (tmp_path / "empty").mkdir()
    nothing = load(tmp_path / "empty", HF_HUB_OFFLINE="1")
    assert f"there is no folder {REPOSITORY} here, and the hub gives no files of that name" in nothing.stderr


@pytest.mark.slow
def test_a_download_goes_on_with_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    endpoint = hub.endpoint
    hub.broken = True
    assert "the hub gives no files of that name" in load(tmp_path, endpoint).stderr
    assert {"config.json", "ice_text.model"} <= set(hub.fetched)
    hub.broken = False
    hub.fetched.clear()
    done = load(tmp_path, endpoint)
    assert done.stdout.split()[0] == "ChatGLMForCausalLM", done.stderr
    assert "model.safetensors" in hub.fetched and not {"config.json", "ice_text.model"} & set(hub.fetched)
