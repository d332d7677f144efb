"""What is looked at in a model: its files, and whether they fit each other. No weights are read."""

from __future__ import annotations

import hashlib
import shlex
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune import adapters
from glmtune.commands.estimate import readable
from glmtune.models import family_of, loading
from glmtune.models.architecture import Architecture
from glmtune.models.checkpoint import check_weight_file, is_pointer, read_json, reading, weight_files
from glmtune.models.releases import check_release
from glmtune.runtime import RunFolder, UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig
from glmtune.commands.doctor.checks import Examination, Finding, told
from glmtune.commands.doctor.patient import Patient

JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
COPY = "Copy or download it again."
TOKENIZER_REMEDY = "Copy or download the tokenizer's files again, from the release that the weights are of."
NUMBERS = "57.84+13.64=71.48"
RARE = "\U0001f9ec"  # a character that few tokenizers have a token for


def adapter(patient: Patient) -> Finding:
    """An adapter's files, and whether they agree with each other and with the recipe."""
    assert patient.place is not None, "asked of adapters only"
    folder = adapters.adapter_folder(patient.place)
    adapters.check_adapter(folder, RunFolder(patient.place))
    return "ok", f"{folder} is whole", ""


def base(patient: Patient) -> Finding:
    """Whether the model is the one that the adapter was trained on."""
    assert patient.adapter is not None, "asked of adapters only"
    adapters.check_base(patient.adapter, patient.base)
    if patient.is_remote or adapters.record_of(patient.adapter).get("fingerprint") is None:
        return "ok", f"{patient.base}; nothing was noted that it could be compared with", ""
    return "ok", f"{patient.base} has the weights that the adapter was trained on", ""


def model(patient: Patient) -> Finding:
    """Whether there is such a model."""
    return "ok", f"{patient.base} in {patient.folder}", ""


def files(patient: Patient) -> Finding:
    """The small files of a model: there, themselves and no Git-LFS pointers, readable, as released."""
    folder = patient.folder
    if not (folder / "config.json").is_file():
        return "failure", f"{folder} has no config.json, so it is no checkpoint directory", COPY
    small = [file for file in sorted(folder.iterdir()) if file.is_file() and not is_weights(file)]
    if pointers := [file.name for file in small if is_pointer(file)]:
        finding = f"{', '.join(pointers)} in {folder}: Git-LFS pointers, not the files themselves"
        return "failure", finding, f"Fetch them: cd {shlex.quote(str(folder))} && git lfs pull"
    for name in JSON_FILES:
        if (folder / name).is_file():
            read_json(folder / name)
    for released in family_of(patient.values).released_files:
        file = folder / released.name
        if not file.is_file() or patient.values.get("vocab_size") != released.vocab_size:
            continue
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != released.sha256:
            finding = f"{file} is not as released: {len(content):,} bytes instead of {released.size:,}, or other ones"
            remedy = f"If you did not change it yourself, download it again (sha256 {released.sha256})."
            return "warning", finding, remedy
        return "ok", f"{len(small)} small files in {folder}, {file.name} as released", ""
    return "ok", f"{len(small)} small files in {folder}", ""


def is_weights(file: Path) -> bool:
    """Whether a file holds weights, which may be large."""
    return file.suffix in (".safetensors", ".bin", ".pt", ".pth")


def weights(patient: Patient) -> Finding:
    """The weight files: all there, whole, and nothing but weights."""
    folder, found = patient.folder, weight_files(patient.folder)
    if patient.recipe.model.random_init:
        return "ok", "none needed: model.random_init starts from fresh ones", ""
    if patient.is_remote and not found:
        return download(patient)
    faults = [fault for file in found if (fault := fault_of(file))]
    index = folder / f"{'pytorch_model.bin' if found and found[0].suffix == '.bin' else 'model.safetensors'}.index.json"
    if index.is_file() and not patient.is_remote:
        shards = set(read_json(index).get("weight_map", {}).values())
        if missing := sorted(shard for shard in shards if not (folder / shard).is_file()):
            names = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
            faults.append((f"{folder} lacks {len(missing)} of {len(shards)} weight files: {names}", COPY))
    if faults:
        return "failure", "; ".join(fault for fault, _ in faults), " ".join(dict.fromkeys(way for _, way in faults))
    if not found:
        return "failure", f"{folder} holds no weights (*.safetensors or pytorch_model*.bin)", COPY
    size = sum(file.stat().st_size for file in found)
    return "ok", f"{len(found)} {'file' if len(found) == 1 else 'files'} of {readable(size)}, whole", ""


def download(patient: Patient) -> Finding:
    """Whether weights that the hub has yet to give fit the disk of its cache."""
    try:
        architecture = Architecture.from_config(patient.values)
    except UserError:  # of an unknown size
        return "ok", "not fetched yet", ""
    size, free = architecture.parameters * architecture.stored_bits // 8, shutil.disk_usage(patient.folder).free
    finding = f"not fetched yet: about {readable(size)}; {readable(free)} are free in {patient.folder}"
    if free >= size:
        return "ok", finding, ""
    return "failure", f"{finding}: too little", "Free some, or name another folder for the hub's cache with HF_HOME."


def fault_of(file: Path) -> tuple[str, str] | None:
    """What is wrong with a weight file, and the remedy."""
    try:
        check_weight_file(file)
    except UserError as error:
        return told(error)
    return None


def config(patient: Patient) -> Finding:
    """The configuration: of a family that can be loaded without code from its repository."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    found, family = patient.config, patient.config.model_type
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        remedy = "Take a causal language model: any that AutoModelForCausalLM loads."
        return "failure", f"model_type '{family}' is no causal language model", remedy
    code = ", without the code in its repository" if "auto_map" in patient.values else ""
    size = loading.max_length(found)
    return "ok", f"model_type '{family}'{code}, " + (f"{size} tokens" if size else "no longest sequence stated"), ""


def fit(patient: Patient) -> Finding:
    """Whether names and shapes of the weights are those that the configuration asks for."""
    if patient.recipe.model.random_init or not weight_files(patient.folder):
        return "ok", "no weights to compare", ""
    if patient.values.get("quantization_config"):
        return "ok", "not compared: stored by a quantization library", ""
    with reading("weights", str(patient.folder)):
        found = loaded_without_numbers(patient.config, patient.folder)
    loading.check_weights(patient.base, found)
    return "ok", "the weights have the names and shapes that config.json asks for", ""


def loaded_without_numbers(config: PreTrainedConfig, folder: Path) -> dict[str, Any]:
    """transformers' account of a loading in which names and shapes are all that is read."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    options: dict[str, Any] = {"device_map": "meta", "output_loading_info": True, "ignore_mismatched_sizes": True}
    return dict(kind.from_pretrained(None, config=config, state_dict=shapes(folder), **options)[1])


def shapes(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint without their numbers."""
    import torch
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt") as reader:
                sizes = {name: reader.get_slice(name).get_shape() for name in reader.keys()}  # noqa: SIM118
            found |= {name: torch.empty(size, device="meta") for name, size in sizes.items()}
        else:
            found |= torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
    return found


def tokenizer(patient: Patient) -> Finding:
    """Whether the tokenizer can be loaded, without code from its repository."""
    from transformers import TOKENIZER_MAPPING
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    declared = patient.tokenizer_folder / "tokenizer_config.json"
    values = read_json(declared) if declared.is_file() else {}
    name = str(values.get("tokenizer_class", ""))
    if "auto_map" in values and type(patient.config) not in TOKENIZER_MAPPING and not tokenizer_class_from_name(name):
        finding = f"{declared}: {name or 'its class'} runs only with code from its repository, which is never run here"
        return "failure", finding, "Take a checkpoint whose tokenizer transformers knows, most often a tokenizer.json."
    found = patient.tokenizer
    return "ok", f"{type(found).__name__}, {len(found):,} tokens, from {patient.tokenizer_folder}", ""


def release(patient: Patient) -> Finding:
    """Whether tokenizer and model speak of the same ids."""
    hint = family_of(patient.values).release_hint
    remedy = (
        f"Take config.json, weights and tokenizer of one release{f': {hint}' if hint else '.'} Delete older copies."
    )
    known, rows = patient.tokenizer, patient.config.get_text_config().vocab_size
    check_release(patient.base, known, patient.config)
    names = {name: token for name, token in known.special_tokens_map.items() if isinstance(token, str)}
    ids = {f"{name}_id": int(known.convert_tokens_to_ids(token)) for name, token in names.items()}  # type: ignore[arg-type]
    if known.pad_token == known.eos_token:  # where a tokenizer has no padding
        ids.pop("pad_token_id", None)
    said = {name: listed(patient.config.to_dict().get(name)) for name in ids}
    differ = [
        f"{name} is {' or '.join(map(str, said[name]))} in config.json, {number} by the tokenizer"
        for name, number in ids.items()
        if said[name] and number not in said[name]
    ]
    if differ:
        # Where there is such a token, masks and positions are found by these ids; others only say where to stop.
        return "failure" if "gmask_token_id" in ids else "warning", "; ".join(differ), remedy
    return "ok", f"{len(known):,} tokens in {rows:,} rows, and the same special tokens", ""


def listed(ids: int | list[int] | None) -> list[int]:
    """One id, several or none, as a list."""
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]


def end_token(patient: Patient) -> Finding:
    """A real end token, which is learned."""
    from glmtune.data.encoding import IGNORED, encode_example, encode_prompt, plain_ids, stop_ids

    known = patient.tokenizer
    end, number = str(known.eos_token or ""), known.eos_token_id
    remedy = "Set eos_token in tokenizer_config.json to the token that ends an answer, e.g. </s>."
    if not end or known.get_vocab().get(end) != number:
        return "failure", f"the end token {end!r} is not in the vocabulary: no answer would end", remedy
    if number == known.unk_token_id and number in plain_ids(known, RARE):
        return "failure", f"the end token {end} also stands for unknown characters: answers would end there", remedy
    learned = [label for label in encode_example(known, "1+1=", "2")["labels"] if label != IGNORED]
    if len(learned) < 2 or learned[-1] not in stop_ids(known):
        tokens = known.convert_ids_to_tokens(learned)
        return "failure", f"of the answer 2 is learned {tokens}, which decoding does not stop at", remedy
    if encode_prompt(known, "1+1=")[-1] == number:
        remedy = "Set add_eos_token to false in tokenizer_config.json."
        return "warning", f"each prompt ends with {end}, so that the model starts where an answer is over", remedy
    return "ok", f"{known.convert_ids_to_tokens(learned[-1])} (id {learned[-1]}) ends each answer that is learned", ""


def padding(patient: Patient) -> Finding:
    """Whether padding looks like the end."""
    known = patient.tokenizer
    if known.pad_token_id != known.eos_token_id:
        return "ok", f"{known.pad_token} (id {known.pad_token_id}), which is not the end token", ""
    finding = (
        f"{known.eos_token} is padding and end in one. That is harmless here, where padding is known by its place, but "
        "tools that hide every padding token from the loss never teach this model to stop"
    )
    return "warning", finding, "For other tools, set pad_token in tokenizer_config.json to another token, e.g. <unk>."


def template(patient: Patient) -> Finding:
    """Whether the template says what is asked and answered, and ends what the assistant says."""
    from jinja2 import TemplateError

    from glmtune.data.encoding import check_template, encode_prompt, stop_ids

    known = patient.tokenizer
    if known.chat_template is None:
        return "ok", "none: prompts stand bare, with the tokenizer's own special tokens", ""
    check_template(known)
    remedy = "Mend chat_template.jinja, or take that of the model's release."

    def chat(asked: str, answered: str) -> list[int]:
        roles = (("user", asked), ("assistant", answered), ("user", "3+3="))
        return encode_prompt(known, [{"role": role, "content": content} for role, content in roles])

    end = f"decoding stops at {', '.join(known.convert_ids_to_tokens(stop_ids(known)))}"
    try:
        if chat("1+1=", "2") in (chat("1+1=", "7"), chat("2*3=", "2")):
            return "warning", f"{end}; the template leaves out earlier turns, so that a chat has no memory", remedy
    except TemplateError as error:
        return "ok", f"{end}; single questions only ({error})", ""
    return "ok", f"{end}; says what was asked and answered", ""


def numbers(patient: Patient) -> Finding:
    """Whether numbers survive the tokenizer, and how they are cut."""
    from glmtune.data.encoding import plain_ids

    known = patient.tokenizer
    ids = plain_ids(known, NUMBERS)
    back = str(known.decode(ids)).strip()
    if back != NUMBERS:
        remedy = "Train words on this model, not numbers, or take a tokenizer that has every digit."
        return "warning", f"{NUMBERS} comes back as {back!r}: no such answer could be exact", remedy
    grouped = len(ids) < len(NUMBERS)
    return "ok", f"{NUMBERS} comes back, digits {'in groups' if grouped else 'one by one'}", ""


MODEL_EXAMINATIONS = [
    Examination("files", files, COPY, ("model",)),
    Examination("weights", weights, COPY, ("model",)),
    Examination("config", config, "Take config.json of the release again.", ("files",)),
    Examination("fit", fit, "Take config.json and the weights of one release.", ("config", "weights")),
    Examination("tokenizer", tokenizer, TOKENIZER_REMEDY, ("adapter", "files", "config")),
    Examination("release", release, TOKENIZER_REMEDY, ("tokenizer",)),
    Examination("template", template, "Mend chat_template.jinja, or take that of the release.", ("tokenizer",)),
    Examination("end token", end_token, TOKENIZER_REMEDY, ("tokenizer", "template")),
    Examination("padding", padding, TOKENIZER_REMEDY, ("tokenizer",)),
    Examination("numbers", numbers, TOKENIZER_REMEDY, ("tokenizer",)),
]
