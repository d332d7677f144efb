"""What learns. A family is a file or folder here; `config.json` tells which one a checkpoint belongs to.

torch and transformers are imported by the functions that need them: transformers' auto modules import the families
from this package while they are themselves being imported (`glmtune.autoclasses`).
"""

from __future__ import annotations

import hashlib
import json
import pickle
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune import registry
from glmtune.config import ModelSettings
from glmtune.models.architecture import storage
from glmtune.runtime import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = {"nano": Path(__file__).parent / "nano"}
LFS_MARK = b"version https://git-lfs"
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
# One of these files makes a folder something that can be loaded: a checkpoint, a run, an adapter.
LOADABLE = ("config.json", "recipe.yaml", "adapter_config.json")


def locate(path: str) -> str:
    """The folder of an embedded model or checkpoint, or `path` itself if it can only be a hub name.

    Raises:
        UserError: no such folder, and no hub name either; or a checkpoint with files missing or damaged.
    """
    if path in EMBEDDED:
        return str(EMBEDDED[path])
    folder = Path(path)
    if folder.is_dir():
        check_checkpoint(folder)
        return path
    parts = path.split("/")
    if len(parts) == 2 and all(parts) and not path.startswith((".", "~")) and not folder.parent.is_dir():
        return path
    around = folder.parent if folder.parent.is_dir() else Path(".")
    neighbours = sorted(entry.name for entry in around.iterdir() if any((entry / name).is_file() for name in LOADABLE))
    raise UserError(
        f"model.path: no such model directory: {path}.{registry.suggest(folder.name, [*EMBEDDED, *neighbours])}"
    )


def check_checkpoint(folder: Path) -> None:
    """Look for what makes loading fail later and less clearly.

    Raises:
        UserError: no `config.json`, or a file that is damaged or missing.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"model.path: {folder} has no config.json, so it is no checkpoint directory.")
    check_files(folder)


def check_files(folder: Path) -> None:
    """Check the files of a checkpoint or an adapter, without reading weights.

    Raises:
        UserError: a Git-LFS pointer, a truncated safetensors file, or a missing shard.
    """
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        with file.open("rb") as stream:
            head = stream.read(len(LFS_MARK))
        if head == LFS_MARK:
            raise UserError(f"{file} is a Git-LFS pointer, not the file itself. Fetch it: cd {folder} && git lfs pull")
        if file.suffix == ".safetensors":
            check_safetensors(file)
    for index in folder.glob("*.index.json"):
        shards = set(read_json(index).get("weight_map", {}).values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise UserError(
                f"{folder} lacks {len(missing)} of {len(shards)} weight files: {', '.join(missing[:3])} ... "
                "Copy or download them."
            )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint or an adapter.

    Raises:
        UserError: the file holds none.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}. Copy or download it again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} is damaged: not a JSON object. Copy or download it again.")
    return value


def check_safetensors(file: Path) -> None:
    """Compare the size of a safetensors file with what its header promises.

    Raises:
        UserError: the file is shorter or longer, or has no header.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_size = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(header_size)) if 0 < header_size < size else None
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise UserError(f"{file} is damaged: {size} bytes without a readable header. Copy or download it again.")
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + header_size + max(ends, default=0)
    if size != expected:
        raise UserError(f"{file} is truncated: {size} of {expected} bytes. Copy or download it again.")


def weight_files(folder: Path) -> list[Path]:
    """Weight files of a checkpoint."""
    return sorted(file for pattern in WEIGHT_PATTERNS for file in folder.glob(pattern))


def fingerprint(folder: Path | str) -> str:
    """A short hash of a checkpoint's weights: name, size, first and last megabyte of each file."""
    digest = hashlib.sha256()
    for file in weight_files(Path(folder)):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(2**20))
            stream.seek(max(0, size - 2**20))
            digest.update(stream.read(2**20))
    return digest.hexdigest()[:16]


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a `model.dtype` setting on a device.

    Raises:
        UserError: the device has no such precision.
    """
    import torch

    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"model.dtype=bfloat16: {torch.cuda.get_device_name(device)} has no bfloat16. Use model.dtype=float16, "
            "which trains with loss scaling, or auto, which chooses it."
        )
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32


@contextmanager
def reading(what: str, path: str) -> Iterator[None]:
    """Tell in a line, with the place, what a library cannot do with the files of a checkpoint or an adapter.

    Raises:
        UserError: in place of whatever the block raises; the libraries document no classes of errors.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = textwrap.shorten(str(error).partition("\n\n")[0], 300, placeholder=" ...") or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch advises to run whatever code the file holds
            reason = "a file is damaged, or holds more than weights. Copy or download it again, best as safetensors."
        if Path(path).is_dir():
            raise UserError(f"{path}: its {what} cannot be read: {reason}") from error
        raise UserError(
            f"model.path: there is no folder {path} here, and the hub gives no {what} of that name: {reason}"
        ) from error


def load(
    settings: ModelSettings, device: torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint and its tokenizer, on the device, in evaluation mode.

    Raises:
        UserError: no such model, or its files are missing or damaged.
    """
    from transformers import AutoModelForCausalLM

    from glmtune.models.quantization import mend_library_layers, pack_embedding

    device = device or default_device()
    folder = locate(settings.path)
    if not settings.random_init and Path(folder).is_dir() and not weight_files(Path(folder)):
        raise UserError(f"model.path: {settings.path} holds no weights ({' or '.join(WEIGHT_PATTERNS)}).")
    tokenizer, config = load_tokenizer(folder), load_config(folder)
    dtype = choose_dtype(settings.dtype, device)
    options: dict[str, Any] = {"attn_implementation": settings.attention, "dtype": dtype}
    check_bits(settings, config)
    if settings.random_init:
        return AutoModelForCausalLM.from_config(config, **options).to(device).eval(), tokenizer
    # Names and shapes are compared here: the library only logs what is missing, and fills in random weights.
    options |= {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if device.type == "cuda":  # straight there, without a copy in the machine's memory
        options["device_map"] = {"": device}
    with reading("weights", folder):
        if settings.bits != stored_bits(config) and settings.bits < 16:
            loaded = load_quantized(folder, settings.bits, device, options)
        else:
            loaded = AutoModelForCausalLM.from_pretrained(folder, **options)
    model, found = loaded
    check_weights(settings.path, found)
    model.name_or_path = model.config.name_or_path = folder  # where peft looks for the base of an adapter
    mend_library_layers(model)
    if settings.quantize_embedding:
        pack_embedding(model)
    return model.to(device).eval(), tokenizer


def check_bits(settings: ModelSettings, config: PreTrainedConfig) -> None:
    """Compare the bits that are asked for with those that the checkpoint is stored at.

    Raises:
        UserError: they cannot be had.
    """
    stored = stored_bits(config)
    if settings.bits not in (16, stored) and stored != 16:
        raise UserError(
            f"model.bits={settings.bits}: the weights of {settings.path} are stored at {stored} bits already. "
            "Leave model.bits out."
        )
    if settings.random_init and (settings.bits != 16 or settings.quantize_embedding or stored != 16):
        raise UserError("model.random_init: fresh weights must learn, and weights of 8 or 4 bits cannot. Use 16 bits.")


def load_quantized(folder: str, bits: int, device: torch.device, options: dict[str, Any]) -> Any:
    """Read a checkpoint of 16 bits, quantizing each weight as soon as it is read.

    On a CPU the files are read piece by piece: mapped into memory, as the library does it, a whole checkpoint would
    end up there beside the quantized weights (16 instead of 6 GiB for ChatGLM-6B at 4 bits, benchmarks/results).
    """
    from safetensors import safe_open
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    from glmtune.models.quantization import bits_config

    options = {**options, "quantization_config": bits_config(bits, options["dtype"]), "device_map": {"": device}}
    files = sorted(Path(folder).glob("*.safetensors"))
    if device.type == "cpu" and files:
        readers = [safe_open(str(file), framework="pt", backend="pread") for file in files]
        weights = {name: reader.get_slice(name) for reader in readers for name in reader.offset_keys()}
        config = options["config"]
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        return kind.from_pretrained(None, state_dict=weights, **options)
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def stored_bits(config: PreTrainedConfig) -> int:
    """Bits at which a checkpoint's linear layers are stored: 16, or 8 or 4 where its config.json says so."""
    return int(storage(config.to_dict())["stored_bits"])


def check_weights(path: str, found: dict[str, Any]) -> None:
    """Compare the weights of the files with those that the configuration asks for.

    Args:
        path: the checkpoint.
        found: transformers' account of the loading.

    Raises:
        UserError: weights are missing, have other shapes, or are packed though the configuration does not say so.
    """
    if mismatched := sorted(found["mismatched_keys"]):
        name, in_files, wanted = mismatched[0]
        raise UserError(
            f"model.path: the weights of {path} do not fit its config.json: {name} is {list(in_files)} in the files, "
            f"{list(wanted)} by config.json ({len(mismatched)} such weights). Copy or download both again."
        )
    if scales := sorted(name for name in found["unexpected_keys"] if name.endswith(".weight_scale")):
        raise UserError(
            f"model.path: {path} holds packed weights ({scales[0]} ...), but its config.json has no quantization_bit. "
            "Copy or download config.json again, or add quantization_bit: 8 or 4."
        )
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"model.path: {path} lacks {len(missing)} weights that its config.json asks for: "
            f"{', '.join(missing[:3])} ... Copy or download it again."
        )


def load_config(folder: str) -> PreTrainedConfig:
    """The configuration of a checkpoint.

    Raises:
        UserError: it is damaged, or of no known family.
    """
    from transformers import AutoConfig

    with reading("config.json", folder):
        return AutoConfig.from_pretrained(folder)


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with a token to pad with.

    Raises:
        UserError: there is none, or it has no end token.
    """
    from transformers import AutoTokenizer

    with reading("tokenizer", folder):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.path: the tokenizer of {folder} has no eos_token, so that no answer could end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def max_length(config: PreTrainedConfig) -> int | None:
    """Longest sequence in tokens that a model's configuration states; None where it states none."""
    try:
        return int(config.max_position_embeddings)
    except AttributeError:  # models without positions to run out of
        return None
