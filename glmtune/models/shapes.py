"""The shapes of a checkpoint's or an adapter's weights, for which no number is read."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def shapes(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Return the weights of some files without their numbers, by name."""
    import torch
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt") as reader:
                sizes = {name: reader.get_slice(name).get_shape() for name in reader.keys()}  # noqa: SIM118
            found |= {name: torch.empty(size, device="meta") for name, size in sizes.items()}
        else:
            found |= torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
    return found
