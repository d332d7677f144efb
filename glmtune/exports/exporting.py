"""From a resolved model to an export: refused, placed, written, read back and compared."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glmtune import adapters
from glmtune.config import Dtype
from glmtune.examples import Example
from glmtune.exports.destination import CARD, MODELFILE, QUANTIZED, RECORD, Layout, Precision, besides
from glmtune.exports.gguf.file import kinds_in, read_numbers, write_gguf
from glmtune.exports.gguf.modelfile import modelfile_of
from glmtune.exports.gguf.precisions import GgufPrecision, describe_fallbacks
from glmtune.exports.gguf.source import check_config
from glmtune.exports.merged import save_merged, unpack_and_merge
from glmtune.exports.original import original_layout, save_original
from glmtune.exports.provenance import check_report, write_provenance
from glmtune.exports.reference import refer
from glmtune.exports.storage import compare_storage, describe_storage
from glmtune.exports.verification import (
    check_weights,
    compare,
    compare_quantized,
    describe_quantized,
    describe_rounding,
    digests,
)
from glmtune.files import remove_leftovers, replacing, working_folder
from glmtune.inference.selection import choose_held_out, select_held_out
from glmtune.models import loading
from glmtune.models.architecture import storage, stored_bits
from glmtune.models.checkpoint import weight_files
from glmtune.models.gguf.files import is_gguf, open_model
from glmtune.models.gguf.header import load_library
from glmtune.models.packed_checkpoints import pack_layers
from glmtune.resolution import ResolvedModel, resolve
from glmtune.runtime import UserError

if TYPE_CHECKING:
    from glmtune.terminal.console import Console

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES: dict[torch.dtype, Dtype] = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
GGUF_PRECISION: dict[str, GgufPrecision] = {
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    "q8_0": "q8_0",
    "q4_0": "q4_0",
    "q4_k_m": "q4_k_m",
}
WHOLE: dict[str, Any] = {"highlight": False, "soft_wrap": True}  # of a line that is printed as it is
BEGINNING = 40  # characters of a text, which a model goes on with
# Files beside the weights, and what a disk should have left.
SPARE_BYTES = 50 * 2**20


def export_checked(
    origin: ResolvedModel,
    to: Layout,
    place: Path,
    precision: Precision,
    examples: Sequence[Example],
    console: Console,
    bits: int = 16,
) -> None:
    """Load, merge, write, read back and compare; the export takes its name at the end.

    What is stored at fewer `bits` is another model: the files are compared with it, and its answers with those before.

    Raises:
        UserError: it answers otherwise, or the disk is full.
    """
    dtype, problem = dtype_of(origin.config, precision), examples[0].prompt
    console.print(f"Loading {origin.base}{f' with {origin.adapter}' if origin.adapter else ''} ...")
    # Neither the base nor what is written is rounded on the way, whatever the recipe computed in.
    working = NAMES[torch.promote_types(dtype_of(origin.config, "auto"), dtype)]
    model, tokenizer = origin.load(dtype=working, bits=16, quantize_embedding=False)
    console.print(f"It answers {len(examples)} held-out problems ...")
    reference = refer(model, tokenizer, examples, origin.recipe.generation, origin.task, dtype)
    whole = unpack_and_merge(model, tokenizer, problem)
    del model
    storage = compare_storage(origin, whole, tokenizer, examples)
    if storage is not None:
        console.print(describe_storage(storage), **WHOLE)
    if bits < 16:
        pack_layers(whole.to(dtype), bits)  # type: ignore[arg-type]
        at_16, reference = reference, refer(whole, tokenizer, examples, origin.recipe.generation, origin.task, dtype)
        pairs = zip(at_16.completions, reference.completions, strict=True)
        equal = sum(old.text == new.text for old, new in pairs)
        console.print(f"Stored at {bits} bits, it answers {equal} of {len(examples)} of them as at 16.")
    written = digests(whole, dtype)
    with staged(place, to) as folder:
        (save_original if to == "original" else save_merged)(whole, tokenizer, folder, dtype)
        family = whole.config.model_type
        del whole
        console.print("The same problems, from the exported files ...")
        model, tokenizer = resolve(folder).load(dtype=working)
        check_weights(model, written, dtype)
        asked = (examples, origin.recipe.generation, origin.task)
        verification = compare(reference, model, tokenizer, *asked, dtype)
        if verification["logits_difference"]:
            console.print(describe_rounding(verification), **WHOLE)
        if storage is not None:
            verification["storage"] = storage
        if bits < 16:
            verification["packed"] = {"bits": bits, "answers_as_at_16": equal}
        file = folder / place.name
        if to == "gguf":
            stored = GGUF_PRECISION[precision if precision in QUANTIZED else NAMES[dtype]]
            write_gguf(folder, file, stored)
            if told := describe_fallbacks(kinds_in(file), stored):
                console.print(told, **WHOLE)
        if precision in QUANTIZED and read_numbers(folder, file, model):
            console.print(f"The same problems, with the numbers of {precision} ...")
            verification["quantized"] = compare_quantized(reference, model, tokenizer, *asked)
            console.print(describe_quantized(verification["quantized"], precision, place), **WHOLE)
        write_provenance(folder, place.name, origin, to, family, precision, verification, problem)
        if to == "gguf":
            prompts = [example.prompt for example in examples]
            modelfile = modelfile_of(file, tokenizer, origin.recipe.generation, prompts)
            (folder / MODELFILE).write_text(modelfile, encoding="utf-8")
            made = (file, *(folder / name for name in (RECORD, CARD, MODELFILE)))
            for part, destination in zip(made, (place, *besides(place)), strict=True):
                with replacing(destination) as temporary:
                    part.replace(temporary)


def few_held_out(origin: ResolvedModel) -> Sequence[Example]:
    """Return held-out examples of the task that the model can be asked, as many as during a training.

    Of texts, which ask nothing, the beginnings are asked.
    """
    evaluation = origin.recipe.evaluation
    few = evaluation.model_copy(update={"num_examples": evaluation.num_examples_during})
    recipe = origin.recipe.model_copy(update={"evaluation": few})
    if not origin.objective.asks:
        texts = choose_held_out(recipe, origin.task, during=False)
        return [replace(example, prompt=example.prompt or str(example.text)[:BEGINNING]) for example in texts]
    return select_held_out(recipe, origin.task, origin.tokenizer, origin.limit, whole=False)


def refuse(origin: ResolvedModel, to: Layout, precision: Precision, bits: int = 16) -> None:
    """Tell what cannot be had before anything is loaded.

    Raises:
        UserError: it cannot.
    """
    if origin.adapter is not None and not adapters.is_mergeable(origin.adapter):
        raise UserError(
            f"{origin.adapter} is a prefix (P-Tuning v2): it is no change of weights, so that it cannot become part of "
            "a whole model, and llama.cpp and vLLM have no place for it. Use it beside its base with glmtune, or train "
            "with method.name=lora."
        )
    config = origin.config
    stored = storage(config.to_dict())
    if stored["stored_bits"] < 16 and not stored["packed"]:
        raise UserError(
            f"{origin.base} is stored at {stored['stored_bits']} bits; an update merged into it would be rounded away. "
            "Name the 16-bit release of the same model: model.path=..."
        )
    if bits < 16 and to != "merged":
        raise UserError(f"--bits {bits}: is a form of transformers' layout (--to merged), not of --to {to}.")
    if precision in QUANTIZED and to != "gguf":
        raise UserError(f"--dtype {precision}: is a form of numbers in GGUF files, not of --to {to}. Try bfloat16.")
    if origin.run is not None and origin.run.report.is_file():
        check_report(origin.run)
    if to == "original":
        original_layout(config)
    if to == "gguf":
        check_config(config.to_dict())
        load_library()


def dtype_of(config: Any, precision: Precision) -> torch.dtype:
    """Return the precision of the exported weights: as asked for, or the base's, from which few bits are made."""
    if precision in DTYPES:
        return DTYPES[precision]
    stored = config.dtype
    return stored if isinstance(stored, torch.dtype) else DTYPES.get(str(stored), torch.float32)


def check_disk(place: Path, origin: ResolvedModel, precision: Precision, copies: int, named: str = "--output") -> None:
    """See whether the export fits on its disk.

    Args:
        place: of the export.
        origin: what is exported.
        precision: of its numbers.
        copies: of the model, at most at a time.
        named: by what the place was named.

    Raises:
        UserError: it does not.
    """
    config, dtype = origin.config, dtype_of(origin.config, precision)
    size = dtype_of(config, "auto").itemsize
    if is_gguf(origin.place):
        stored = size * open_model(origin.place).parameters
    else:
        files = weight_files(Path(loading.fetch(origin.place, weights=True)))
        stored = sum(file.stat().st_size for file in files) * 16 // stored_bits(config)  # a packed release is unpacked
    needed = copies * stored * dtype.itemsize // size + SPARE_BYTES
    parent = next(parent for parent in (place.parent, *place.parent.resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(
            f"{named} {place}: the export takes about {needed / 1e9:.1f} GB, and this disk has {free / 1e9:.1f} GB "
            "free. Free some, or name a place on another disk."
        )


@contextmanager
def staged(place: Path, to: Layout) -> Iterator[Path]:
    """Give a folder to write a checkpoint to; it becomes the export when the block ends well, or was a step towards it.

    Raises:
        UserError: it cannot be written.
    """
    if to == "gguf":
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(place.parent, place.name)
        with working_folder(place) as folder:
            yield folder
        return
    with replacing(place) as folder_path:
        folder_path.mkdir()
        yield folder_path
