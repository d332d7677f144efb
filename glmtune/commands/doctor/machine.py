"""What is looked at on any machine: versions and their known conflicts, device, memory, disk."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from glmtune import distributed
from glmtune.commands.doctor.checks import Check, Finding, Status
from glmtune.runtime import memory_size, processor_name
from glmtune.training.memory import LIBRARIES
from glmtune.training.placement import at_hand, readable

REQUIRED = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "tokenizers",
    "sentencepiece",
    "huggingface-hub",
)
# Libraries that may be absent, and what they are for.
OPTIONAL = {
    "bitsandbytes": "model.bits=8 or 4 and optimizers with moments of 8 bits: pip install 'glmtune[quantization]'",
    "ray": "predict and evaluate on several machines (--ray): pip install 'glmtune[ray]'",
    "trl": "its own trainers, such as DPO and GRPO, on the models here",
    "datasets": "the data of trl's trainers",
}
# What no library declares: versions, and what is wrong with them.
CONFLICTS = {
    "bitsandbytes": ("<0.50", "has no 4-bit kernels for CPUs"),
    "torchao": ("<0.16", "keeps peft from making any LoRA layer; nothing here needs it"),
}

Declared = Callable[[str], list[Requirement]]


def machine_checks() -> list[Check]:
    """Return what is looked at without a target."""
    again = "Install it again: pip install glmtune"
    installed = [name for name in CONFLICTS if name not in OPTIONAL and version_of(name) is not None]
    declared = cache(requirements)  # each library is compared with all of them
    return [
        Check("python", python, again),
        *(Check(name, partial(library, name, declared), again) for name in (*REQUIRED, *OPTIONAL, *installed)),
        Check("device", device, "Install torch again: https://pytorch.org/get-started/locally", ("torch",)),
        Check("memory", memory, again),
        Check("disk", disk, "Change to a folder that can be read."),
    ]


def version_of(name: str) -> str | None:
    """Return the version of an installed library."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def python() -> Finding:
    """Look at Python itself."""
    found, wanted = platform.python_version(), metadata.metadata("glmtune")["Requires-Python"] or ""
    if not SpecifierSet(wanted).contains(found, prereleases=True):
        return "failure", f"{found}, but glmtune needs {wanted}", f"Make an environment with Python {wanted}."
    return "ok", found, ""


def library(name: str, declared: Declared) -> Finding:
    """Compare a library's version with what this package and the other libraries ask of it."""
    found = version_of(name)
    asked = list(demands(name, declared))
    wanted = SpecifierSet(",".join(str(part) for _, part in asked))
    remedy = f"pip install '{name}{wanted}'"
    if found is None:
        if name in OPTIONAL:
            return "ok", f"not installed; it is for {OPTIONAL[name]}", ""
        return "failure", "not installed", remedy
    bad, why = CONFLICTS.get(name, ("<0", ""))
    if SpecifierSet(bad).contains(found, prereleases=True):
        return "warning", f"{found} {why}", f"pip install '{name}>={bad.removeprefix('<')}', or uninstall it."
    for asking, part in asked:
        if not part.contains(found, prereleases=True):
            status: Status = "warning" if {name, asking} & OPTIONAL.keys() else "failure"
            return status, f"{found}, but {asking} {version_of(asking)} needs {name}{part}", remedy
    return "ok", found, ""


def requirements(asking: str) -> list[Requirement]:
    """Return what this package or a library beside it declares."""
    return [Requirement(text) for text in metadata.requires(asking) or []] if version_of(asking) else []


def demands(name: str, declared: Declared) -> Iterator[tuple[str, SpecifierSet]]:
    """Yield (who, which versions) of a library, by what this package and the libraries beside it declare."""
    for asking in ("glmtune", *REQUIRED, *OPTIONAL):
        for requirement in declared(asking):
            extra = {"extra": "quantization" if asking == "glmtune" else ""}
            applies = requirement.marker is None or requirement.marker.evaluate(extra)
            if applies and canonicalize_name(requirement.name) == name and requirement.specifier:
                yield asking, requirement.specifier


def device() -> Finding:
    """See where models would run."""
    import torch

    kind = distributed.local_device().type
    if kind == "cuda":
        free, size = torch.cuda.mem_get_info()
        precise = torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if precise else "no bfloat16, so that auto is float16"
        name = torch.cuda.get_device_name()
        return "ok", f"{name}, {readable(size)} of which {readable(free)} are free, {precision}", ""
    place = at_hand()
    if place.device == "cuda":
        cannot = f"{place.name} is there, but torch {torch.__version__} cannot use it, and takes the {kind}"
        return "warning", cannot, "Install torch for your CUDA: https://pytorch.org/get-started/locally"
    name = "Apple's GPU" if kind == "mps" else f"no GPU; {processor_name()}, {torch.get_num_threads()} threads"
    return "ok", f"{name}, float32 unless model.dtype says otherwise", ""


def memory() -> Finding:
    """Look at the free memory, of this container's share."""
    import psutil

    size = memory_size()
    free = min(size, int(psutil.virtual_memory().available))
    finding = f"{readable(free)} of {readable(size)} are free"
    if free < LIBRARIES["cpu"]:
        return "warning", f"{finding}; the libraries alone take {readable(LIBRARIES['cpu'])}", "End other programs."
    return "ok", finding, ""


def disk() -> Finding:
    """Look at the free disk of the working folder, where runs are written."""
    return "ok", f"{readable(shutil.disk_usage('.').free)} are free in {Path.cwd()}", ""
