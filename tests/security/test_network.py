"""What is asked of the network: nothing but what the user typed or said yes to, after a line that says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import snapshot_download
from stand_in_hub import Hub


def test_the_hub_serves(hub: Hub, tiny_checkpoint: Path) -> None:
    hub.models["somebody/tiny"] = tiny_checkpoint
    folder = Path(snapshot_download("somebody/tiny"))
    assert (folder / "config.json").read_bytes() == (tiny_checkpoint / "config.json").read_bytes()
    assert "GET /api/models/somebody/tiny/revision/main" in hub.requests and "model.safetensors" in hub.fetched
    with pytest.raises(OSError, match="404"):
        snapshot_download("somebody/else")
