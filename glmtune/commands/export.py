"""`glmtune export`: a run, an adapter or a checkpoint as an artefact for others, checked before it is there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from rich.console import Console

from glmtune import methods, models, registry
from glmtune.commands.evaluate import found, reader_of, recipe_of
from glmtune.config import Dtype, Recipe, differing
from glmtune.data.mixture import examples_per_step
from glmtune.export import gguf, merged, original
from glmtune.export.card import write_card
from glmtune.export.verification import Answers, ask, compare, compare_answers
from glmtune.inference.selection import select_held_out
from glmtune.messages import Prompt
from glmtune.methods.ptuning_v2 import PTuningV2
from glmtune.runtime import RunFolder, UserError, replacing, write_json
from glmtune.tasks import Task

Layout = Literal["merged", "original", "gguf"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "q8_0"]
RECORD = "glmtune.json"
CARD = "README.md"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES: dict[torch.dtype, Dtype] = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
GGUF_PRECISION: dict[torch.dtype, gguf.Precision] = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
}
# Files beside the weights, and what a disk should have left.
SPARE_BYTES = 50 * 2**20


@dataclass(frozen=True)
class Origin:
    """What is exported.

    Attributes:
        target: as the user named it.
        base: checkpoint directory, hub name or embedded model.
        adapter: folder of the adapter to put on it, if any.
        recipe: of the run; the default one for a bare model.
        trained: whether there is a run, with a recipe and a report.
    """

    target: str
    base: str
    adapter: Path | None
    recipe: Recipe
    trained: bool

    @cached_property
    def task(self) -> Task:
        """What was learned."""
        task: Task = registry.find("glmtune.tasks", self.recipe.task.name)(self.recipe.task, self.recipe.data)
        return task

    @property
    def problems(self) -> list[Prompt]:
        """Held-out problems of the task that the model can be asked."""
        tokenizer, limit = reader_of(self.target, self.recipe)
        evaluation = self.recipe.evaluation
        few = evaluation.model_copy(update={"num_examples": evaluation.num_examples_during})
        recipe = self.recipe.model_copy(update={"evaluation": few})
        return [example.prompt for example in select_held_out(recipe, self.task, tokenizer, limit, whole=False)]

    @property
    def data(self) -> str:
        """What was learned from, in a few sentences."""
        learned, held_out = self.task.records("train"), self.task.records("held_out")
        own, training = self.recipe.data, self.recipe.training
        mixed = sum(source.share for source in own.mixture)
        if learned is not None and held_out is not None:
            told = [f"{len(learned):,} records were there to learn from, {len(held_out):,} were held out."]
        else:
            seen = (training.steps or 0) * examples_per_step(training) * (1 - mixed)
            told = [f"Examples are drawn without end; it saw about {seen:,.0f} of them."]
        if own.too_long != "stop":
            told.append(f"Records that are too long were {'left out' if own.too_long == 'drop' else 'truncated'}.")
        if mixed:
            told.append(f"Of all that it saw, {mixed:.0%} are records of other files, {len(own.mixture)} of them.")
        return " ".join(told)


def run(
    target: str,
    to: Layout = "merged",
    output: str | None = None,
    overrides: list[str] | None = None,
    precision: Precision = "auto",
    overwrite: bool = False,
    push: str | None = None,
    console: Console | None = None,
) -> Path:
    """Export a model, and publish it only if it is the one that was trained.

    Args:
        target: run folder, adapter, checkpoint directory, hub name or `nano`.
        to: `merged`: transformers' layout; `original`: the release's, of ChatGLM-6B; `gguf`: a file for llama.cpp.
        output: folder or, of gguf, file to write; default: in the run folder, under the name of the layout.
        overrides: `section.setting=value` texts; `evaluation.num_examples_during` problems are asked.
        precision: of the files; auto: that of the base.
        overwrite: replace an output that is there already.
        push: hub repository to upload to; never without.
        console: where to print.

    Returns:
        Where it is.

    Raises:
        UserError: it cannot be had in this form, the disk is full, or the exported model answers otherwise; then
            nothing is written.
    """
    console = console or Console(stderr=True)
    origin = origin_of(target, overrides)
    config = models.load_config(models.locate(origin.base))
    refuse(origin, config, to, precision)
    place = destination(origin, to, output, overwrite)
    check_disk(place, origin, config, dtype_of(config, precision), copies=2 if to == "gguf" else 1)
    problems = origin.problems
    try:
        make(origin, config, to, place, precision, problems, console)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Nothing was exported.") from None
    if push is not None:
        upload(place, push)
    return place


def make(
    origin: Origin,
    config: Any,
    to: Layout,
    place: Path,
    precision: Precision,
    problems: Sequence[Prompt],
    console: Console,
) -> None:
    """Load, merge, write, read back and compare; the export takes its name at the end.

    Raises:
        UserError: it answers otherwise, or the disk is full.
    """
    dtype = dtype_of(config, precision)
    console.print(f"Loading {origin.base}{f' with {origin.adapter}' if origin.adapter else ''} ...")
    # Neither the base nor what is written is rounded on the way, whatever the recipe computed in.
    working = NAMES[torch.promote_types(dtype_of(config, "auto"), dtype)]
    model, tokenizer = methods.load(origin.base, origin.adapter, working, bits=16, quantize_embedding=False)
    console.print(f"It answers {len(problems)} held-out problems ...")
    before = ask(model, tokenizer, problems, origin.recipe.generation)
    whole = merged.whole(model, tokenizer, problems[0])
    del model
    with staged(place, to) as folder:
        (original.save if to == "original" else merged.save)(whole, tokenizer, folder, dtype)
        family = whole.config.model_type
        del whole
        console.print("The same problems, from the exported files ...")
        verification = verify(folder, origin, working, before, problems, dtype, rounded=precision == "q8_0")
        describe(folder, place.name, origin, to, family, precision, verification, problems[0])
        if to == "gguf":
            gguf.write(folder, place, "q8_0" if precision == "q8_0" else GGUF_PRECISION[dtype])
            shutil.copy(folder / RECORD, place.with_name(f"{place.name}.json"))
            shutil.copy(folder / CARD, place.with_name(f"{place.name}.md"))


def origin_of(target: str, overrides: list[str] | None) -> Origin:
    """What is to be exported.

    Raises:
        UserError: no such thing.
    """
    recipe = recipe_of(target, overrides)
    base, adapter = found(target, recipe)
    return Origin(target, base, adapter, recipe, RunFolder.is_run(target))


def refuse(origin: Origin, config: Any, to: Layout, precision: Precision) -> None:
    """Tell what cannot be had before anything is loaded.

    Raises:
        UserError: it cannot.
    """
    if origin.adapter is not None:
        by_peft = origin.adapter / methods.ADAPTER_CONFIG
        kind = models.read_json(by_peft).get("peft_type") if by_peft.is_file() else None
        if kind == "PREFIX_TUNING" or PTuningV2.holds(origin.adapter):
            raise UserError(
                f"{origin.adapter} is a prefix (P-Tuning v2): it is no change of weights, so that it cannot become "
                "part of a whole model, and llama.cpp and vLLM have no place for it. Use it beside its "
                "base with glmtune, or train with method.name=lora."
            )
    if (bits := models.stored_bits(config)) < 16 and config.model_type != "chatglm":
        raise UserError(
            f"{origin.base} is stored at {bits} bits; an update merged into it would be rounded away. Name the 16-bit "
            "release of the same model: model.path=..."
        )
    if precision == "q8_0" and to != "gguf":
        raise UserError(f"--dtype q8_0: is a form of numbers in GGUF files, not of --to {to}. Try bfloat16.")
    if to == "original":
        original.check(config)
    if to == "gguf":
        gguf.check(config.to_dict())
        gguf.library()


def destination(origin: Origin, to: Layout, output: str | None, overwrite: bool) -> Path:
    """Where the export goes.

    Raises:
        UserError: there is something already, above all what is exported, or no place was named.
    """
    target = origin.target
    if output is None and not RunFolder.is_run(target):
        raise UserError(f"--output: name a {'file' if to == 'gguf' else 'folder'} to write; {target} is no run folder.")
    name = f"{Path(target).resolve().name}.gguf" if to == "gguf" else to
    place = Path(output) if output is not None else Path(target) / name
    if place.exists() and not overwrite:
        raise UserError(f"--output {place}: exists already. Choose another place, or add --overwrite.")
    for source in (Path(target), origin.adapter, Path(models.locate(origin.base))):
        if source is not None and place.resolve() in (source.resolve(), *source.resolve().parents):
            raise UserError(f"--output {place}: is what is exported, or holds it. Choose another place.")
    is_export = place.suffix == ".gguf" and place.is_file() if to == "gguf" else (place / RECORD).is_file()
    if place.exists() and not is_export and not (place.is_dir() and not any(place.iterdir())):
        raise UserError(
            f"--output {place}: is no earlier export (of which {RECORD} tells), so that it is not replaced. Choose "
            "another place."
        )
    return place


def dtype_of(config: Any, precision: Precision) -> torch.dtype:
    """Precision of the exported weights: as asked for, or that of the base's files, from which q8_0 is made."""
    if precision in DTYPES:
        return DTYPES[precision]
    stored = config.dtype
    return stored if isinstance(stored, torch.dtype) else DTYPES.get(str(stored), torch.float32)


def check_disk(place: Path, origin: Origin, config: Any, dtype: torch.dtype, copies: int) -> None:
    """See whether the export fits on its disk.

    Raises:
        UserError: it does not.
    """
    folder = Path(models.local(models.locate(origin.base), weights=True))
    stored = sum(file.stat().st_size for file in models.weight_files(folder))
    stored = stored * 16 // models.stored_bits(config)  # a packed release is unpacked
    needed = copies * stored * dtype.itemsize // dtype_of(config, "auto").itemsize + SPARE_BYTES
    parent = next(parent for parent in (place.parent, *place.parent.resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise UserError(
            f"--output {place}: the export takes about {needed / 1e9:.1f} GB, and this disk has {free / 1e9:.1f} GB "
            "free. Free some, or name a place on another disk."
        )


@contextmanager
def staged(place: Path, to: Layout) -> Iterator[Path]:
    """A folder to write a checkpoint to; it becomes the export when the block ends well, or was a step towards it.

    Raises:
        UserError: it cannot be written.
    """
    if to == "gguf":
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as folder:
            yield Path(folder)
        return
    with replacing(place) as folder_path:
        folder_path.mkdir()
        yield folder_path


def verify(
    folder: Path,
    origin: Origin,
    working: Dtype,
    before: Answers,
    problems: Sequence[Prompt],
    dtype: torch.dtype,
    rounded: bool,
) -> dict[str, Any]:
    """Read the exported files as anyone would, and compare what they answer; also with numbers rounded to q8_0.

    Raises:
        UserError: something else.
    """
    model, tokenizer = methods.load(folder, None, working)
    found = compare(before, ask(model, tokenizer, problems, origin.recipe.generation), problems, dtype)
    if rounded:
        gguf.round_numbers(model)
        remedy = " q8_0 is too coarse for it: --dtype float16."
        compare_answers(before, ask(model, tokenizer, problems, origin.recipe.generation), problems, remedy)
    return found


def describe(
    folder: Path,
    name: str,
    origin: Origin,
    to: Layout,
    family: str,
    precision: Precision,
    verification: dict[str, Any],
    prompt: Prompt,
) -> None:
    """Write down where an export comes from, and its model card."""
    base = Path(models.local(models.locate(origin.base), weights=True))
    run_folder = RunFolder(origin.target)
    record = {
        "format": 1,
        "layout": to,
        "precision": verification["dtype"] if precision == "auto" else precision,
        "base": name_of(origin.base),
        "base_fingerprint": models.fingerprint(base),
        "adapter_fingerprint": adapter_fingerprint(origin.adapter),
        "method": origin.recipe.method.name if origin.trained else None,
        "verification": verification,
        "versions": {package: metadata.version(package) for package in ("glmtune", "torch", "transformers", "peft")},
    }
    write_json(folder / RECORD, record)
    report = models.read_json(run_folder.report) if origin.trained and run_folder.report.is_file() else None
    recipe = short_recipe(origin.recipe) if origin.trained else ""
    asked = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    card = write_card(
        Path(origin.target).resolve().name,
        name,
        to,
        family,
        record,
        recipe,
        Path(origin.recipe.task.name).stem,
        origin.data if origin.trained else "",
        asked,
        report,
    )
    (folder / CARD).write_text(card, encoding="utf-8")


def name_of(place: str) -> str:
    """What others may know a model or a file by: the paths of this machine are nothing to them."""
    return Path(place).name if Path(place).is_absolute() or Path(place).exists() else place


def short_recipe(recipe: Recipe) -> str:
    """What a recipe changes, as YAML, without the places of the run and of what it was made from."""
    values = differing(recipe)
    values.get("training", {}).pop("output_dir", None)
    return yaml.safe_dump(without_places(values), sort_keys=False, allow_unicode=True)


def without_places(value: Any) -> Any:
    """A value of a recipe in which files have their names alone."""
    if isinstance(value, dict):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_places(inner) for inner in value]
    return name_of(value) if isinstance(value, str) else value


def adapter_fingerprint(folder: Path | None) -> str | None:
    """A short hash of an adapter's weights."""
    return models.fingerprint(folder) if folder is not None else None


def upload(place: Path, repository: str) -> None:
    """Upload an export to the hub, as a private repository if there is none of that name.

    Raises:
        UserError: the hub refuses.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        if place.is_dir():
            hub.upload_folder(repo_id=repository, folder_path=str(place))
        else:
            for file, name in (
                (place, place.name),
                (place.with_name(f"{place.name}.json"), RECORD),
                (place.with_name(f"{place.name}.md"), CARD),
            ):
                hub.upload_file(repo_id=repository, path_or_fileobj=str(file), path_in_repo=name)
    except Exception as error:  # of the hub, of the network, of the disk
        raise UserError(
            f"--push-to-hub {repository}: the hub refuses: {error}. The export itself is in {place}; log in with "
            "`hf auth login`, or upload it later with `hf upload`."
        ) from error
