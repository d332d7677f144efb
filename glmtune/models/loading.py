"""From what a user names to a model that is ready: where it is, its configuration, its tokenizer, its weights.

torch and transformers are imported by the functions that need them: to find a model, and to read its sizes, takes none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune import distributed, network, registry
from glmtune.config import Dtype, ModelSettings
from glmtune.models.architecture import is_wide, stored_bits
from glmtune.models.checkpoint import (
    WEIGHT_PATTERNS,
    check_checkpoint,
    lazy_weights,
    local_folder,
    reading,
    weight_files,
)
from glmtune.models.endings import ends_alone
from glmtune.models.families import FOLDER, all_families, family_of
from glmtune.models.gguf.files import SUFFIX, find_in, is_gguf, open_model
from glmtune.models.gguf.unpacking import unpack
from glmtune.models.head import join_rows
from glmtune.models.precision import on_cpu
from glmtune.models.releases import check_release
from glmtune.models.sizes import read_config
from glmtune.runtime import UserError, release_memory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = {"nano": FOLDER / "nano"}
# One of these files makes a folder something that can be loaded: a checkpoint, a run, an adapter.
LOADABLE = ("config.json", "recipe.yaml", "adapter_config.json")


def is_name(path: str) -> bool:
    """Return whether a text names a model that needs no folder here: an embedded one, or one of the hub."""
    return path in EMBEDDED or network.is_hub_name(path)


def find_gguf(path: str) -> Path | None:
    """Return the GGUF file that a path names, or that a folder holds instead of other weights; None where none is.

    Raises:
        UserError: a folder holds several.
    """
    if path in EMBEDDED:
        return None
    folder = Path(path)
    if is_gguf(path):
        return folder
    holds = folder.is_dir() and any(folder.glob(f"*{SUFFIX}")) and not weight_files(folder)
    return find_in(folder) if holds else None


def locate(path: str) -> str:
    """Return the folder of an embedded model or checkpoint, a GGUF file, or `path` itself if it can only be a hub name.

    Raises:
        UserError: no such folder or file, and no hub name either; or a checkpoint with files missing or damaged.
    """
    if path in EMBEDDED:
        return str(EMBEDDED[path])
    if gguf := find_gguf(path):
        if not gguf.exists() and (known := suggest(path)):
            raise UserError(f"model.path: no such file: {path}.{known}")
        return str(open_model(gguf).file)
    folder = Path(path)
    if folder.is_dir():
        check_checkpoint(folder)
        return path
    if network.is_hub_name(path):
        return path
    raise UserError(f"model.path: no such model directory: {path}.{suggest(path)}")


def suggest(path: str) -> str:
    """Return what an error message says of what is there instead of a path: models, runs and adapters beside it."""
    around = Path(path).parent if Path(path).parent.is_dir() else Path(".")
    beside = {str(entry) for entry in around.iterdir()} | set(network.near_paths(path))
    known = sorted(place for place in beside if any((Path(place) / name).is_file() for name in LOADABLE))
    return registry.suggest(path, [*EMBEDDED, *known])


def dtype_of(settings: ModelSettings, config: PreTrainedConfig, device: torch.device) -> torch.dtype:
    """Return the precision in which a model computes, as `choose_dtype` does."""
    packed = min(settings.bits, stored_bits(config)) < 16
    return choose_dtype(settings.dtype, device, is_wide(config.to_dict()), packed)


def choose_dtype(name: Dtype, device: torch.device, wide: bool, packed: bool = False) -> torch.dtype:
    """Return the torch dtype of a `model.dtype` setting on a device.

    Args:
        name: the setting.
        device: where the model is to be.
        wide: the files hold numbers of 32 bits, which auto does not round on CPUs.
        packed: linear layers are of 8 or 4 bits, which CPUs multiply in bfloat16.

    Raises:
        UserError: the device has no such precision.
    """
    import torch

    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"model.dtype=bfloat16: {torch.cuda.get_device_name(device)} has no bfloat16. Use model.dtype=float16, "
            "which trains with loss scaling, or auto, which chooses it."
        )
    if name == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        name = on_cpu(name, wide, packed)
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)


def fetch(place: str, weights: bool) -> str:
    """Return the directory of what `locate` gives; a hub repository is fetched first, a GGUF file's header unpacked.

    Raises:
        UserError: the hub does not give it, or a GGUF file is of a kind that is not read.
    """
    if is_gguf(place):
        return str(unpack(place))
    with reading("files", place):
        return str(local_folder(place, weights))


def fetch_weights(place: str) -> Path:
    """Return what holds the weights of what `locate` gives: a directory, fetched first from the hub, or a GGUF file.

    Raises:
        UserError: the hub does not give it.
    """
    return Path(place) if is_gguf(place) else Path(fetch(place, weights=True))


def load_model(
    settings: ModelSettings,
    device: torch.device | None = None,
    config: PreTrainedConfig | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    divisible: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint and its tokenizer, on the device, in evaluation mode.

    Args:
        settings: which one, and how it is stored.
        device: default: the GPU where there is one.
        config, tokenizer: of the checkpoint, where they have been read already.
        divisible: several processes are to divide the weights: at 8 and 4 bits, a GPU gets those that a CPU has, too.

    Raises:
        UserError: no such model, or its files are missing or damaged.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    from glmtune.models.upcasting import suit_products

    device = device or distributed.local_device()
    place = locate(settings.path)
    folder = fetch(place, weights=not settings.random_init)
    if not (settings.random_init or is_gguf(place) or weight_files(Path(folder))):
        raise UserError(
            f"model.path: {settings.path} holds no weights ({' or '.join(WEIGHT_PATTERNS)}). Where the hub has GGUF "
            "files under this name, download one, and name the file."
        )
    config, tokenizer = config or load_config(folder), tokenizer or load_tokenizer(folder)
    ends = ends_alone(Path(folder), config, tokenizer.pad_token_id)
    check_release(settings.path, tokenizer, config)
    dtype = dtype_of(settings, config, device)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise UserError(f"model.path: {settings.path} is a {config.model_type} model, no causal language model.")
    attention = settings.attention if kind._supports_sdpa else "eager"  # some models have but one
    options: dict[str, Any] = {"attn_implementation": attention, "dtype": dtype}
    check_bits(settings, config)
    if settings.random_init:
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
        model.generation_config = ends
    else:
        model = load_weights(
            settings,
            Path(place if is_gguf(place) else folder),
            torch.device("cpu") if divisible and settings.bits < stored_bits(config) else device,
            {**options, "config": config, "generation_config": ends},
        )
        model.name_or_path = model.config.name_or_path = place  # where peft looks for the base of an adapter
    join_rows(model)
    model = model.to(device)
    suit_products(model, model.dtype)
    return model.eval(), tokenizer


def load_weights(settings: ModelSettings, place: Path, device: torch.device, options: dict[str, Any]) -> Any:
    """Load the model of a folder or a GGUF file, stored as the settings say.

    Args:
        settings: of the recipe.
        place: what holds the weights.
        device: where it is to be.
        options: of `from_pretrained`: configuration, precision, attention, end tokens.

    Raises:
        UserError: the files are damaged, or do not fit the configuration.
    """
    from transformers import AutoModelForCausalLM

    from glmtune.models.library_layers import check_library_layers, mend_library_layers
    from glmtune.models.quantization import arrange, pack_embedding

    # Names and shapes are compared here: the library only logs what is missing, and fills in random weights.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if device.type == "cuda":  # straight there, without a copy in the machine's memory
        options["device_map"] = {"": device}
    loaded: Any
    with reading("weights", str(place)):
        if settings.bits != stored_bits(options["config"]) and settings.bits < 16:
            loaded = load_quantized(place, settings.bits, device, options)
        elif is_gguf(place):
            loaded = load_given(read_weights(place, options), options)
        else:
            loaded = AutoModelForCausalLM.from_pretrained(str(place), trust_remote_code=False, **options)
    model, info = loaded
    check_weights(settings.path, info)
    check_library_layers(model, settings.path)
    mend_library_layers(model)
    if device.type == "cpu":
        arrange(model)
    if settings.quantize_embedding:
        pack_embedding(model)
    if settings.bits < 16 and device.type == "cpu":
        release_memory()
    return model


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


def load_quantized(place: Path, bits: int, device: torch.device, options: dict[str, Any]) -> Any:
    """Load a checkpoint of 16 bits, quantizing each weight as soon as it is read.

    On a CPU the files are read piece by piece: mapped into memory, as the library does it, a whole checkpoint would
    end up there beside the quantized weights (16 instead of 6 GiB for ChatGLM-6B at 4 bits, benchmarks/results).
    """
    from transformers import AutoModelForCausalLM

    config: Any
    if device.type == "cpu":
        from glmtune.models.packed_checkpoints import PackedConfig

        config = PackedConfig(bits)
    else:
        from glmtune.models.library_layers import bits_config

        config = bits_config(bits, options["dtype"])
    options = {**options, "quantization_config": config, "device_map": {"": device}}
    if device.type != "cpu" and not is_gguf(place):
        return AutoModelForCausalLM.from_pretrained(str(place), trust_remote_code=False, **options)
    return load_given(read_weights(place, options), options)


def read_weights(place: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return name -> weight of a folder or a GGUF file; each is read, or made into floats, when it is needed."""
    if is_gguf(place):
        from glmtune.models.gguf.weights import weights_of

        return dict(weights_of(open_model(place), options["config"], options["dtype"]))
    return lazy_weights(place, mapped=False)


def load_given(weights: dict[str, Any], options: dict[str, Any]) -> Any:
    """Load a model of given weights."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(options["config"])]
    return kind.from_pretrained(None, state_dict=weights, **options)


def check_weights(path: str, info: dict[str, Any]) -> None:
    """Compare the weights of the files with those that the configuration asks for.

    Args:
        path: the checkpoint.
        info: transformers' account of the loading.

    Raises:
        UserError: weights are missing, have other shapes, or are packed though the configuration does not say so.
    """
    if mismatched := sorted(info["mismatched_keys"]):
        name, in_files, wanted = mismatched[0]
        raise UserError(
            f"model.path: the weights of {path} do not fit its config.json: {name} is {list(in_files)} in the files, "
            f"{list(wanted)} by config.json ({len(mismatched)} such weights). Copy or download both again."
        )
    if scales := sorted(name for name in info["unexpected_keys"] if name.endswith(".weight_scale")):
        raise UserError(
            f"model.path: {path} holds packed weights ({scales[0]} ...), but its config.json has no quantization_bit. "
            "Copy or download config.json again, or add quantization_bit: 8 or 4."
        )
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"model.path: {path} lacks {len(missing)} weights that its config.json asks for: "
            f"{', '.join(missing[:3])} ... Copy or download it again."
        )


def load_config(folder: str) -> PreTrainedConfig:
    """Load the configuration of a checkpoint.

    Raises:
        UserError: it is damaged, or of no known family.
    """
    from transformers import AutoConfig, PreTrainedConfig

    files = fetch(folder, weights=False)
    check_model_type(files)
    with reading("config.json", files):
        config = AutoConfig.from_pretrained(files, trust_remote_code=False)
        if not isinstance(config.get_text_config(), PreTrainedConfig):
            raise UserError(
                f"{files}/config.json: what stands there for a model of texts (text_config, decoder) is none. Take "
                "config.json of the release again."
            )
        return config


def check_model_type(folder: str) -> None:
    """Check that a `config.json` is of a family that can be loaded without running code from its repository.

    Raises:
        UserError: it is not, or does not say.
    """
    from transformers import CONFIG_MAPPING

    values = read_config(Path(folder))
    model_type = values.get("model_type")
    if not model_type:
        raise UserError(
            f"model.path: {folder}/config.json has no model_type, so that nobody can tell what it is. Take the file of "
            "the release again, or add its model_type."
        )
    if model_type not in CONFIG_MAPPING:
        needs = "runs only with code from its repository" if "auto_map" in values else "is of an unknown family"
        own = ", ".join(release for family in all_families() for release in family.releases)
        raise UserError(
            f"model.path: {folder} (model_type '{model_type}') {needs}, which is never run here. What loads: {own} and "
            "all causal language models of transformers."
            f"{registry.suggest(str(model_type), list(CONFIG_MAPPING)).partition(' Known')[0]}"
        )


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint, with a token to pad with and a template: its own, or that of its family.

    Raises:
        UserError: there is none, or it has no end token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    from glmtune.models.templates import adopt, renew

    files = fetch(folder, weights=False)
    config = Path(files) / "config.json"
    values = read_config(Path(files)) if config.is_file() else {}
    with reading("tokenizer", files):
        tokenizer = AutoTokenizer.from_pretrained(files, trust_remote_code=False)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):  # the class that is named holds several, as RAG's does
        raise UserError(
            f"model.path: the tokenizer of {folder} is a {type(tokenizer).__name__}, which is no single one."
        )
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.path: the tokenizer of {folder} has no eos_token, so that no answer could end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        adopt(tokenizer, family_of(values).template)
    renew(tokenizer)
    return tokenizer


def max_length(config: PreTrainedConfig) -> int | None:
    """Return the longest sequence in tokens that a model's configuration states; None where it states none."""
    try:
        return int(config.max_position_embeddings)
    except AttributeError:  # models without positions to run out of
        return None
