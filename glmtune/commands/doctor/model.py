"""What is looked at in a model: its files, and whether they fit each other. No weights are read."""

from __future__ import annotations

import hashlib
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune import adapters
from glmtune.commands.doctor.awaited import check_awaited
from glmtune.commands.doctor.checks import Check, Finding, split_message
from glmtune.models import loading
from glmtune.models.checkpoint import check_weight_file, is_pointer, read_json, reading, shards_of, weight_files
from glmtune.models.endings import named_ends
from glmtune.models.families import family_of
from glmtune.models.gguf.configuration import kinds_of
from glmtune.models.gguf.files import is_gguf, open_model
from glmtune.models.shapes import shapes
from glmtune.plan import Plan
from glmtune.resolution import ResolvedModel
from glmtune.runtime import RunFolder, UserError
from glmtune.succession import merges
from glmtune.training.placement import readable

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
COPY = "Copy or download it again."


def adapter(plan: Plan) -> Finding:
    """Look at an adapter's files, and whether they agree with each other and with the recipe."""
    model = plan.model
    assert model.adapter is not None, "asked of adapters only"
    named = Path(str(model.recipe.model.adapter)) if model.is_recipe else model.adapter
    folder = adapters.adapter_folder(named if model.run is None else model.run.path)
    adapters.check_adapter(folder, model.run or RunFolder(folder))
    return "ok", f"{folder} is whole", ""


def start(plan: Plan) -> Finding:
    """See what becomes of the adapter that training goes on from."""
    if merges(plan.model):
        return "ok", f"{plan.model.adapter} becomes part of the weights first, in the run folder", ""
    return "ok", f"{plan.model.adapter} learns on", ""


def base(plan: Plan) -> Finding:
    """See whether the model is the one that the adapter was trained on."""
    model = plan.model
    assert model.adapter is not None, "asked of adapters only"
    adapters.check_base(model.adapter, model.base)
    if model.is_remote or adapters.record_of(model.adapter).get("fingerprint") is None:
        return "ok", f"{model.base}; nothing was noted that it could be compared with", ""
    return "ok", f"{model.base} has the weights that the adapter was trained on", ""


def checkpoint(plan: Plan) -> Finding:
    """See whether there is such a model."""
    check_awaited(plan.model, plan.model.recipe.model.path)
    if loading.find_gguf(plan.model.base):
        return "ok", f"{plan.model.place}, a GGUF file", ""
    return "ok", f"{plan.model.base} in {plan.model.folder}", ""


def files(plan: Plan) -> Finding:
    """Look at the small files of a model: there, themselves and no Git-LFS pointers, readable, as released."""
    if loading.find_gguf(plan.model.base):
        return gguf_header(plan)
    folder = plan.model.folder
    if not (folder / "config.json").is_file():
        return "failure", f"{folder} has no config.json, so it is no checkpoint directory", COPY
    small = [file for file in sorted(folder.iterdir()) if file.is_file() and not is_weights(file)]
    if pointers := [file.name for file in small if is_pointer(file)]:
        finding = f"{', '.join(pointers)} in {folder}: Git-LFS pointers, not the files themselves"
        return "failure", finding, f"Fetch them: cd {shlex.quote(str(folder))} && git lfs pull"
    for name in JSON_FILES:
        if (folder / name).is_file():
            read_json(folder / name)
    for released in family_of(plan.model.values).released_files:
        file = folder / released.name
        if not file.is_file() or plan.model.values.get("vocab_size") != released.vocab_size:
            continue
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != released.sha256:
            finding = f"{file} is not as released: {len(content):,} bytes instead of {released.size:,}, or other ones"
            remedy = f"If you did not change it yourself, download it again (sha256 {released.sha256})."
            return "warning", finding, remedy
        return "ok", f"{len(small)} small files in {folder}, {file.name} as released", ""
    return "ok", f"{len(small)} small files in {folder}", ""


def gguf_header(plan: Plan) -> Finding:
    """Look at what a GGUF file says: configuration, tokenizer and template can be made of it."""
    header = open_model(plan.model.place)
    values = plan.model.values
    tokens, pre = len(header.values["tokenizer.ggml.tokens"]), header.values.get("tokenizer.ggml.pre", "no name")
    template = "a template" if "tokenizer.chat_template" in header.values else "no template"
    kinds = " and ".join(sorted(kinds_of(header)))
    finding = (
        f"architecture {header.architecture} as {values['model_type']}, {kinds}; {tokens:,} tokens ({pre}); {template}"
    )
    return "ok", finding, ""


def is_weights(file: Path) -> bool:
    """Return whether a file holds weights, which may be large."""
    return file.suffix in (".safetensors", ".bin", ".pt", ".pth")


def weights(plan: Plan) -> Finding:
    """Look at the weight files: all there, whole, and nothing but weights."""
    folder, found = plan.model.folder, weight_files(plan.model.holder)
    if plan.model.recipe.model.random_init:
        return "ok", "none needed: model.random_init starts from fresh ones", ""
    if plan.model.is_remote and not found:
        return download(plan.model)
    faults = [fault for file in found if (fault := fault_of(file))]
    index = folder / f"{'pytorch_model.bin' if found and found[0].suffix == '.bin' else 'model.safetensors'}.index.json"
    if index.is_file() and not plan.model.is_remote:
        shards = shards_of(index)
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            names = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
            faults.append((f"{folder} lacks {len(missing)} of {len(shards)} weight files: {names}", COPY))
    if faults:
        return "failure", "; ".join(fault for fault, _ in faults), " ".join(dict.fromkeys(way for _, way in faults))
    if not found:
        return "failure", f"{folder} holds no weights (*.safetensors or pytorch_model*.bin)", COPY
    size = sum(file.stat().st_size for file in found)
    return "ok", f"{len(found)} {'file' if len(found) == 1 else 'files'} of {readable(size)}, whole", ""


def download(model: ResolvedModel) -> Finding:
    """See whether weights that the hub has yet to give fit the disk of its cache."""
    try:
        architecture = model.architecture
    except UserError:  # of an unknown size
        return "ok", "not fetched yet", ""
    size, free = architecture.parameters * architecture.stored_bits // 8, shutil.disk_usage(model.folder).free
    finding = f"not fetched yet: about {readable(size)}; {readable(free)} are free in {model.folder}"
    if free >= size:
        return "ok", finding, ""
    return "failure", f"{finding}: too little", "Free some, or name another folder for the hub's cache with HF_HOME."


def fault_of(file: Path) -> tuple[str, str] | None:
    """Return what is wrong with a weight file, and the remedy."""
    try:
        check_weight_file(file)
    except UserError as error:
        return split_message(error)
    return None


def config(plan: Plan) -> Finding:
    """Look at the configuration: of a family that can be loaded without code from its repository."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found, family = plan.model.config, plan.model.config.model_type
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        remedy = "Take a causal language model: any that AutoModelForCausalLM loads."
        return "failure", f"model_type '{family}' is no causal language model", remedy
    named_ends(plan.model.folder, found)
    code = ", without the code in its repository" if "auto_map" in plan.model.values else ""
    size = loading.max_length(found)
    return "ok", f"model_type '{family}'{code}, " + (f"{size} tokens" if size else "no longest sequence stated"), ""


def fit(plan: Plan) -> Finding:
    """See whether names and shapes of the weights are those that the configuration asks for."""
    if plan.model.recipe.model.random_init or not weight_files(plan.model.holder):
        return "ok", "no weights to compare", ""
    if plan.model.values.get("quantization_config"):
        return "ok", "not compared: stored by a quantization library", ""
    with reading("weights", str(plan.model.folder)):
        found = loaded_without_numbers(plan.model.config, plan.model.holder)
    loading.check_weights(plan.model.base, found)
    return "ok", "the weights have the names and shapes that config.json asks for", ""


def loaded_without_numbers(config: PreTrainedConfig, holder: Path) -> dict[str, Any]:
    """Return transformers' account of a loading in which names and shapes are all that is read."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    from glmtune.models.gguf.weights import shapes_in

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    options: dict[str, Any] = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    weights = shapes_in(open_model(holder), config) if is_gguf(holder) else shapes(weight_files(holder))
    return dict(kind.from_pretrained(None, config=config, state_dict=weights, **options)[1])


def model_checks(model: ResolvedModel) -> list[Check]:
    """Return what is looked at in a model's files, in order."""
    remedy = "Check the name, and whether the hub can be reached; or name a folder."
    with_adapter = model.adapter is not None
    return [
        *([Check("adapter", adapter, COPY)] if with_adapter else []),
        Check("model", checkpoint, remedy, () if model.base_is_named else ("adapter",)),
        Check("files", files, COPY, ("model",)),
        Check("weights", weights, COPY, ("model",)),
        Check("config", config, "Take config.json of the release again.", ("files",)),
        Check("fit", fit, "Take config.json and the weights of one release.", ("config", "weights")),
        *([Check("base", base, COPY, ("adapter", "files", "weights"))] if with_adapter else []),
        *([Check("start", start, "", ("adapter", "config", "code"))] if with_adapter and model.is_recipe else []),
    ]
