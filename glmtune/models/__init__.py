"""What learns. A family is a file or folder here; `config.json` tells which one a checkpoint belongs to.

torch and transformers are imported by the functions that need them: transformers' auto modules import the families
from this package while they are themselves being imported (`glmtune.autoclasses`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune import distributed, registry
from glmtune.config import ModelSettings
from glmtune.models.architecture import storage
from glmtune.models.checkpoint import (
    WEIGHT_PATTERNS,
    check_checkpoint,
    check_files,
    check_weight_file,
    fingerprint,
    lazy_weights,
    local_folder,
    read_json,
    weight_files,
)
from glmtune.runtime import UserError, release_memory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "EMBEDDED",
    "check_bits",
    "check_checkpoint",
    "check_files",
    "check_release",
    "choose_dtype",
    "fingerprint",
    "load",
    "load_config",
    "load_tokenizer",
    "local",
    "locate",
    "max_length",
    "read_json",
    "reading",
    "stored_bits",
    "weight_files",
]

EMBEDDED = {"nano": Path(__file__).parent / "nano"}
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
        if Path(path).is_dir():
            for file in weight_files(Path(path)):
                check_weight_file(file)  # which one it is, and what is wrong with it
            raise UserError(f"{path}: its {what} cannot be read: {reason}") from error
        raise UserError(
            f"model.path: there is no folder {path} here, and the hub gives no {what} of that name: {reason}"
        ) from error


def local(place: str, weights: bool) -> str:
    """The directory of what `locate` gives; a hub repository is fetched first.

    Raises:
        UserError: the hub does not give it.
    """
    with reading("files", place):
        return str(local_folder(place, weights))


def load(
    settings: ModelSettings, device: torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint and its tokenizer, on the device, in evaluation mode.

    Raises:
        UserError: no such model, or its files are missing or damaged.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    from glmtune.models.quantization import mend_library_layers, pack_embedding

    device = device or distributed.local_device()
    place = locate(settings.path)
    folder = local(place, weights=not settings.random_init)
    if not settings.random_init and not weight_files(Path(folder)):
        raise UserError(f"model.path: {settings.path} holds no weights ({' or '.join(WEIGHT_PATTERNS)}).")
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    check_release(settings.path, tokenizer, config)
    dtype = choose_dtype(settings.dtype, device)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise UserError(f"model.path: {settings.path} is a {config.model_type} model, no causal language model.")
    attention = settings.attention if kind._supports_sdpa else "eager"  # CodeGen has but one
    options: dict[str, Any] = {"attn_implementation": attention, "dtype": dtype}
    check_bits(settings, config)
    if settings.random_init:
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options).to(device).eval(), tokenizer
    # Names and shapes are compared here: the library only logs what is missing, and fills in random weights.
    options |= {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if device.type == "cuda":  # straight there, without a copy in the machine's memory
        options["device_map"] = {"": device}
    with reading("weights", folder):
        if settings.bits != stored_bits(config) and settings.bits < 16:
            loaded = load_quantized(folder, settings.bits, device, options)
        else:
            loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)
    model, found = loaded
    check_weights(settings.path, found)
    model.name_or_path = model.config.name_or_path = place  # where peft looks for the base of an adapter
    mend_library_layers(model)
    if settings.quantize_embedding:
        pack_embedding(model)
    if settings.bits < 16 and device.type == "cpu":
        release_memory()
    return model.to(device).eval(), tokenizer


def check_release(path: str, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """See whether tokenizer and weights are of the same release.

    Raises:
        UserError: control tokens have other ids in one than in the other, or there are tokens that the model lacks.
    """
    from glmtune.models.chatglm.configuration_chatglm import ChatGLMConfig
    from glmtune.models.chatglm.tokenization_chatglm import ChatGLMTokenizer
    from glmtune.models.glm.configuration_glm import OriginalGlmConfig

    if isinstance(config, ChatGLMConfig) and isinstance(tokenizer, ChatGLMTokenizer):
        control = {
            tokenizer.gmask_token: config.gmask_token_id,
            tokenizer.bos_token: config.bos_token_id,
            tokenizer.eos_token: config.eos_token_id,
        }
        for token, expected in control.items():
            if (found := tokenizer.convert_tokens_to_ids(token)) != expected:
                raise UserError(
                    f"model.path: {path} mixes two releases: its tokenizer has {token} at {found}, its config.json at "
                    f"{expected}. Copy ice_text.model, tokenizer_config.json and config.json from the release that "
                    "the weights are of (v1.0 has 150528 tokens, v1.1 130528)."
                )
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    is_mixed = isinstance(config, ChatGLMConfig) and not isinstance(tokenizer, ChatGLMTokenizer)
    if is_mixed or (isinstance(config, OriginalGlmConfig) and tokenizer.eos_token_id not in ends):
        raise UserError(
            f"model.path: {path} mixes two releases: answers end with {ends} by its config.json, with "
            f"{tokenizer.eos_token_id} ({tokenizer.eos_token}) by its tokenizer. Copy the tokenizer's files from the "
            "release that the weights are of."
        )
    size = config.get_text_config().vocab_size
    if len(tokenizer) > size and (largest := max(tokenizer.get_vocab().values())) >= size:
        raise UserError(
            f"model.path: {path} mixes two releases: its tokenizer has ids up to {largest}, and its model has rows for "
            f"{size} tokens. Copy the tokenizer's files from the release that the weights are of."
        )


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
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, GenerationConfig

    from glmtune.models.glm.configuration_glm import OriginalGlmConfig
    from glmtune.models.quantization import bits_config

    options = {**options, "quantization_config": bits_config(bits, options["dtype"]), "device_map": {"": device}}
    config = options["config"]
    if device.type == "cpu" and not isinstance(config, OriginalGlmConfig):  # which does so in any case
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        loaded = kind.from_pretrained(None, state_dict=lazy_weights(Path(folder), mapped=False), **options)
        if (Path(folder) / "generation_config.json").is_file():  # which the library looks for beside weights only
            loaded[0].generation_config = GenerationConfig.from_pretrained(folder)
        return loaded
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **options)


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

    files = local(folder, weights=False)
    check_family(files)
    with reading("config.json", files):
        return AutoConfig.from_pretrained(files, trust_remote_code=False)


def check_family(folder: str) -> None:
    """See whether a `config.json` is of a family that can be loaded without running code from its repository.

    Raises:
        UserError: it is not, or does not say.
    """
    from transformers import CONFIG_MAPPING

    values = read_json(Path(folder) / "config.json")
    family = values.get("model_type")
    if not family:
        raise UserError(
            f"model.path: {folder}/config.json has no model_type, so that nobody can tell what it is. Take the file of "
            "the release again, or add its model_type, e.g. chatglm."
        )
    if family not in CONFIG_MAPPING:
        needs = "runs only with code from its repository" if "auto_map" in values else "is of an unknown family"
        raise UserError(
            f"model.path: {folder} (model_type '{family}') {needs}, which is never run here. What loads: ChatGLM-6B, "
            "ChatGLM2-6B, ChatGLM3-6B, GLM-4 and all causal language models of transformers."
            f"{registry.suggest(str(family), list(CONFIG_MAPPING)).partition(' Known')[0]}"
        )


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, with a token to pad with and a template: its own, or the plain one.

    Raises:
        UserError: there is none, or it has no end token.
    """
    from transformers import AutoTokenizer

    from glmtune.models.templates import adopt

    files = local(folder, weights=False)
    with reading("tokenizer", files):
        tokenizer = AutoTokenizer.from_pretrained(files, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.path: the tokenizer of {folder} has no eos_token, so that no answer could end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        adopt(tokenizer, "plain")
    return tokenizer


def max_length(config: PreTrainedConfig) -> int | None:
    """Longest sequence in tokens that a model's configuration states; None where it states none."""
    try:
        return int(config.max_position_embeddings)
    except AttributeError:  # models without positions to run out of
        return None
