"""`export`: an artefact that answers as the run does, or nothing at all."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import glmtune
from glmtune import adapters
from glmtune.commands import export
from glmtune.config import GenerationSettings
from glmtune.data.encoding import encode_prompt
from glmtune.execution import Run
from glmtune.exports import exporting, merged, verification
from glmtune.inference.engine import Engine
from glmtune.models import loading
from glmtune.models.checkpoint import fingerprint, read_json
from glmtune.models.quantization import pack
from glmtune.runtime import UserError

PROMPTS = ["1+2=", "4+4=", "0+5="]
FEW = ["evaluation.num_examples_during=2", "generation.max_new_tokens=4"]  # problems, where no recipe says so
SUMS = {
    "task.operators": "+",
    "task.kinds": ["integer"],
    "task.maximum": 5,
    "task.style": "direct",
    "task.echo": False,
    "task.held_out": 0.3,
    "generation.max_new_tokens": 6,
}  # the task of a tiny run
GOLDEN = Path(__file__).parents[1] / "golden"


def run(target: Path | str, *args: Any, **options: Any) -> Path:
    return export.run(str(target), *args, console=Console(file=io.StringIO()), **options)


def answers(loaded: tuple[Any, Any]) -> list[str]:
    return [one.text for one in Engine(*loaded).answer(PROMPTS, GenerationSettings(max_new_tokens=6))]


def logits(loaded: tuple[Any, Any]) -> torch.Tensor:
    ids = torch.tensor([encode_prompt(loaded[1], PROMPTS[0])])
    with torch.no_grad():
        return loaded[0](input_ids=ids).logits


def listing(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def a_run(tiny_run: Run, tmp_path: Path) -> Path:
    """The short LoRA run, to be written into."""
    return Path(shutil.copytree(tiny_run.folder.path, tmp_path / "run"))


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in such a test fails before a weight is read."""

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(loading, "load_model", refuse)


@contextmanager
def refused(message: str, folder: Path) -> Iterator[None]:
    """A user's error, and the folder as it was, without a trace."""
    before = listing(folder), sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=message):
        yield
    assert (listing(folder), sorted(folder.rglob("*"))) == before


# --------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("to", ["merged", "original"])
def test_an_export_answers_as_the_run_does(
    tiny_run: Run, tiny: tuple[Any, Any], tiny_checkpoint: Path, tmp_path: Path, to: str
) -> None:
    place = run(tiny_run.folder.path, to, str(tmp_path / "out"))
    assert place == tmp_path / "out" and [file.name for file in tmp_path.iterdir()] == ["out"]
    loaded = glmtune.load(place)
    assert not isinstance(loaded[0], PeftModel)
    assert answers(loaded) == answers(tiny)
    torch.testing.assert_close(logits(loaded), logits(tiny), rtol=1e-4, atol=1e-4)
    assert loaded[1].chat_template == tiny[1].chat_template
    base = glmtune.load(tiny_checkpoint)
    assert not torch.allclose(logits(base), logits(tiny), atol=1e-2)  # or it would say nothing of the adapter
    names = load_file(place / "model.safetensors").keys()
    assert ("lm_head.weight" in names) == any("inv_freq" in name for name in names) == (to == "original")


def test_the_record_and_the_card(tiny_run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder, base = tiny_run.folder, str(tiny_checkpoint)
    place = run(folder.path, output=str(tmp_path / "out"))
    record = read_json(place / "glmtune.json")
    assert record["base"] == tiny_checkpoint.name and record["base_fingerprint"] == fingerprint(base)
    assert record["adapter_fingerprint"] == fingerprint(folder.adapter) != record["base_fingerprint"]
    assert (record["format"], record["layout"], record["method"]) == (1, "merged", "lora")
    checked = record["verification"]
    assert checked["problems"] == checked["equal_answers"] == 2  # num_examples_during
    assert 0 <= checked["logits_difference"] < 1e-4 and checked["dtype"] == "float32"
    assert record["versions"]["glmtune"] == glmtune.__version__
    card = (place / "README.md").read_text(encoding="utf-8")
    assert record["base_fingerprint"] in card and record["adapter_fingerprint"] in card
    after = tiny_run.report["after"]
    assert f"| after training | {after['n']} | {after['accuracy']:.1%} |" in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe["method"]["rank"] == 4 and "output_dir" not in recipe["training"]
    assert "base_model:" not in card and str(tmp_path) not in card  # a folder of this machine


def test_it_stops_without_glmtunes_help(tiny_run: Run, tmp_path: Path) -> None:
    """What ends an answer stands in `generation_config.json`."""
    place = run(tiny_run.folder.path, output=str(tmp_path / "out"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("to", ["merged", "original"])
def test_by_default_it_goes_into_the_run(a_run: Path, to: str) -> None:
    before = listing(a_run)
    assert run(a_run, to) == a_run / to
    after = listing(a_run)
    assert after.items() >= before.items() and {name.partition("/")[0] for name in after.keys() - before.keys()} == {to}
    assert glmtune.load(a_run)[0] is not None  # it is still a run


@pytest.mark.parametrize("method", ["{name: full}", "{name: freeze, num_layers: 1}"])
def test_methods_that_change_the_base_itself(train_tiny: Any, tmp_path: Path, method: str) -> None:
    done = train_tiny(tmp_path / "run", f"method={method}", "training.steps=2")
    for to in ("merged", "original"):
        record = read_json(run(done.folder.path, to) / "glmtune.json")
        trained = done.folder.model if "full" in method else done.folder.adapter
        of_what_was_trained = record["base_fingerprint" if "full" in method else "adapter_fingerprint"]
        assert of_what_was_trained == fingerprint(trained) and record["method"] in method
        assert (record["adapter_fingerprint"] is None) == ("full" in method)
        torch.testing.assert_close(logits(glmtune.load(done.folder.path / to)), logits(glmtune.load(done.folder.path)))


def test_an_adapter_or_a_checkpoint_alone(
    tiny_run: Run, tiny: tuple[Any, Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """No run is needed; then there is nothing to tell of one."""
    adapter = run(tiny_run.folder.adapter, "merged", str(tmp_path / "adapter"), FEW)
    torch.testing.assert_close(logits(glmtune.load(adapter)), logits(tiny), rtol=1e-4, atol=1e-4)
    checkpoint = run(tiny_checkpoint, "original", str(tmp_path / "checkpoint"), FEW)
    assert torch.equal(logits(glmtune.load(checkpoint)), logits(glmtune.load(tiny_checkpoint)))
    for place in (adapter, checkpoint):
        assert read_json(place / "glmtune.json")["method"] is None
        assert "## Recipe" not in (place / "README.md").read_text(encoding="utf-8")


def test_an_export_can_be_exported_again(tiny_run: Run, tmp_path: Path) -> None:
    first = run(tiny_run.folder.path, "original", str(tmp_path / "first"))
    second = run(run(first, "merged", str(tmp_path / "merged"), FEW), "original", str(tmp_path / "second"), FEW)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_precision_of_the_files(tiny_run: Run, tmp_path: Path, precision: str) -> None:
    """As asked for, if the answers stay; if they do not, nothing, and a remedy."""
    try:
        place = run(tiny_run.folder.path, output=str(tmp_path / "out"), precision=precision)
    except UserError as error:
        assert "--dtype float32" in str(error) and not list(tmp_path.iterdir())
        return
    assert {str(weight.dtype) for weight in load_file(place / "model.safetensors").values()} == {f"torch.{precision}"}
    assert read_json(place / "glmtune.json")["verification"]["dtype"] == precision


def test_a_packed_release_is_unpacked(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """`chatglm-6b-int8` becomes floats of the same values."""
    packed = tmp_path / "packed"
    shutil.copytree(tiny_checkpoint, packed)
    weights = load_file(packed / "model.safetensors")
    for name, weight in list(weights.items()):
        if weight.ndim == 2 and ".layers." in name:
            weights[name], weights[f"{name}_scale"] = pack(weight.half(), 8)
    (packed / "model.safetensors").unlink()
    torch.save(weights, packed / "pytorch_model.bin")
    config = read_json(packed / "config.json") | {"quantization_bit": 8}
    (packed / "config.json").write_text(json.dumps(config))
    for to in ("merged", "original"):
        place = run(packed, to, str(tmp_path / to), FEW)
        assert not read_json(place / "config.json").get("quantization_bit")
        torch.testing.assert_close(logits(glmtune.load(place)), logits(glmtune.load(packed)), rtol=1e-4, atol=1e-4)


def test_the_command_line(a_run: Path) -> None:
    """In a Python of its own, in which nothing else has been imported before."""
    arguments = [str(a_run), "--to", "original", "evaluation.num_examples_during=1"]
    command = [sys.executable, "-m", "glmtune", "export", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=a_run.parent)
    assert done.returncode == 0, done.stderr
    assert f"Verified and written: {a_run / 'original'}" in done.stdout
    assert read_json(a_run / "original/glmtune.json")["verification"]["problems"] == 1


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"model_type": "llama"}, ["vllm serve", "glmtune serve"]),
        ({"model_type": "glm"}, ["vllm serve", "glmtune serve"]),
        ({"model_type": "llama", "quantization_config": {}}, ["glmtune serve"]),
        ({"model_type": "chatglm"}, ["glmtune serve"]),
        (None, []),
    ],
)
def test_who_serves_it(
    config: dict[str, Any] | None, shown: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "a model"
    place.mkdir()
    if config is not None:
        (place / "config.json").write_text(json.dumps(config))
    export.show(place)
    said = capsys.readouterr().out
    assert [verb for verb in ("vllm serve", "glmtune serve") if f"{verb} '{place}'" in said] == shown


# --------------------------------------------------------------------------- what does not come out


def tampered(how: Callable[[Any], Any]) -> Callable[..., None]:
    def save(model: Any, *args: Any) -> None:
        with torch.no_grad():
            how(model)
        merged_save(model, *args)

    return save


merged_save = merged.save_merged


def add_noise(model: Any) -> None:
    torch.manual_seed(0)
    for weight in model.parameters():
        weight += 0.01 * torch.randn_like(weight)


def spoil(model: Any) -> None:
    next(model.parameters())[:] = float("nan")


@pytest.mark.parametrize("how", [add_noise, spoil])
def test_another_model_is_not_published(
    a_run: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[Any], Any]
) -> None:
    """Nothing at its place, nothing beside it; nothing uploaded."""
    monkeypatch.setattr("glmtune.exports.exporting.save_merged", tampered(how))
    monkeypatch.setattr("huggingface_hub.HfApi", None)
    with refused("The exported model is not the one that was trained.*Nothing was published", a_run.parent):
        run(a_run, push="me/model")


def test_another_answer_is_not_published(a_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that no near tie explains."""
    real = verification.ask

    def ask(*args: Any) -> Any:
        *others, last = real(*args)
        return [*others, replace(last, text="another", token_ids=[5, *last.token_ids])]

    monkeypatch.setattr(verification, "ask", ask)
    with refused("is not the one that was trained: .* gets 'another' instead of .* is what rounding", a_run.parent):
        run(a_run)


def test_what_stood_there_stays_if_the_new_one_fails(a_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(a_run)
    monkeypatch.setattr("glmtune.exports.exporting.save_merged", tampered(add_noise))
    with refused("is not the one that was trained", a_run.parent):
        run(a_run, overwrite=True)


def test_what_exists_is_replaced_only_if_asked(a_run: Path) -> None:
    place = run(a_run)
    (place / "mine.txt").write_text("by hand")
    with refused("merged: exists already. Choose another place, or add --overwrite", a_run.parent):
        run(a_run)
    expected = {name for name in listing(place) if name != "mine.txt"}
    assert run(a_run, overwrite=True) == place
    assert listing(place).keys() == expected  # the whole folder is the export
    assert sorted(path.name for path in a_run.parent.iterdir()) == ["run"]


@pytest.mark.parametrize("part", [".", ".."])
def test_it_never_replaces_what_it_is_made_of(a_run: Path, nothing_is_loaded: None, part: str) -> None:
    with refused("is what is exported, or holds it", a_run.parent):
        run(a_run, output=str(a_run / part), overwrite=True)


@pytest.mark.parametrize("part", ["adapter", "base"])
def test_nor_the_adapter_or_the_base(
    a_run: Path, tiny_checkpoint: Path, tmp_path: Path, nothing_is_loaded: None, part: str
) -> None:
    """With the base, every other adapter that was trained on it would be lost, too."""
    base = Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))
    place = a_run / "adapter" if part == "adapter" else base
    with pytest.raises(UserError, match="is what is exported"):
        run(a_run, "merged", str(place), [f"model.path={base}"], overwrite=True)


def test_a_place_must_be_named_for_what_is_no_run(tiny_checkpoint: Path, nothing_is_loaded: None) -> None:
    for to, what in (("merged", "folder"), ("original", "folder")):
        with refused(f"--output: name a {what} to write; .* is no run folder", tiny_checkpoint):
            run(tiny_checkpoint, to)


def test_a_full_disk_is_told_before_anything_is_loaded(
    a_run: Path, tiny_checkpoint: Path, nothing_is_loaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte: what the base's files take, at the precision that is asked for, and some space to spare."""
    size, usage = (tiny_checkpoint / "model.safetensors").stat().st_size, shutil.disk_usage("/")
    asked: list[Path] = []

    def leave(free: int) -> None:
        def disk_usage(place: Any) -> Any:
            asked.append(Path(place))
            return type(usage)(2 * free, free, free)

        monkeypatch.setattr(shutil, "disk_usage", disk_usage)

    for precision, needed in (("float32", size), ("float16", size // 2)):
        leave(needed + exporting.SPARE_BYTES - 1)
        with refused(r"merged: the export takes about 0\.1 GB, and this disk has 0\.1 GB free", a_run.parent):
            run(a_run, precision=precision)
        leave(needed + exporting.SPARE_BYTES)
        with pytest.raises(AssertionError, match="loaded"):
            run(a_run, precision=precision)
    assert set(asked) == {a_run}


def test_gguf_is_refused_for_chatglm(a_run: Path, nothing_is_loaded: None) -> None:
    with refused(r"ChatGLM-6B, and llama\.cpp has no such architecture.*--to merged or --to original", a_run.parent):
        run(a_run, "gguf")


def test_original_is_refused_for_others(tmp_path: Path, nothing_is_loaded: None) -> None:
    LlamaConfig(hidden_size=32, num_attention_heads=4).save_pretrained(tmp_path / "llama")
    with refused("--to original: .* is a llama model", tmp_path):
        run(tmp_path / "llama", "original", str(tmp_path / "out"))


@pytest.mark.parametrize("bits", [{"load_in_4bit": True}, {"load_in_8bit": True}])
def test_packed_bases_are_refused(tmp_path: Path, nothing_is_loaded: None, bits: dict[str, bool]) -> None:
    quantization = {"quant_method": "bitsandbytes", **bits}
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, quantization_config=quantization)
    config.save_pretrained(tmp_path / "llama")
    number = 4 if "load_in_4bit" in bits else 8
    with refused(f"is stored at {number} bits; an update merged into it would be rounded away", tmp_path):
        run(tmp_path / "llama", "merged", str(tmp_path / "out"))


def test_prefixes_are_refused(train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = "method={name: ptuning_v2, num_virtual_tokens: 4, dropout: 0}"
    done = train_tiny(tmp_path / "run", settings, "training.steps=1")
    monkeypatch.setattr(loading, "load_model", None)
    for to in ("merged", "original"):
        with refused(r"is a prefix \(P-Tuning v2\): it is no change of weights.*method\.name=lora", tmp_path):
            run(done.folder.path, to)


def test_prefixes_of_the_original_scripts_are_refused_as_early(tmp_path: Path, nothing_is_loaded: None) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name in ("glm1/config.json", "glm1/model.safetensors", "tokenizer/tokenizer_config.json"):
        shutil.copy(GOLDEN / name, base)
    shutil.copy(GOLDEN / "tokenizer/toy.model", base / "ice_text.model")
    prefix = tmp_path / "prefix"
    prefix.mkdir()
    shutil.copy(GOLDEN / "glm1/ptuning_noproj.safetensors", prefix / "model.safetensors")
    config = json.loads((GOLDEN / "glm1/config.json").read_text()) | {"pre_seq_len": 8, "prefix_projection": False}
    (prefix / "config.json").write_text(json.dumps(config))
    assert adapters.is_adapter_folder(prefix)
    with refused("is a prefix", tmp_path):
        run(prefix, "merged", str(tmp_path / "out"), [f"model.path={base}"])


def test_another_base_is_refused(a_run: Path, tiny_checkpoint: Path, tmp_path: Path, nothing_is_loaded: None) -> None:
    other = Path(shutil.copytree(tiny_checkpoint, tmp_path / "other"))
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(other)).save_pretrained(other)
    for target in (a_run, a_run / "adapter"):
        with refused("was trained on other weights than .*other holds", tmp_path):
            run(target, "merged", str(tmp_path / "out"), [f"model.path={other}"])


def test_the_same_base_at_another_place(a_run: Path, tiny_checkpoint: Path, tmp_path: Path, tiny: Any) -> None:
    moved = Path(shutil.copytree(tiny_checkpoint, tmp_path / "moved"))
    place = run(a_run, overrides=[f"model.path={moved}"])
    assert read_json(place / "glmtune.json")["base"] == "moved"
    torch.testing.assert_close(logits(glmtune.load(place)), logits(tiny), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", ["nowhere/at/all", "./runs/none"])
def test_no_such_thing(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_is_loaded: None) -> None:
    monkeypatch.chdir(tmp_path)
    with refused("no run, adapter, checkpoint or recipe at", tmp_path):
        run(target, "merged", str(tmp_path / "out"))


# --------------------------------------------------------------------------- the hub


class Hub:
    """In place of `HfApi`: remembers what it is asked, or refuses."""

    calls: list[tuple[str, dict[str, Any]]] = []
    error: Exception | None = None

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create", {"repo_id": repo_id, **options}))
        if self.error is not None:
            raise self.error

    def upload_folder(self, **options: Any) -> None:
        files = sorted(file.name for file in Path(options["folder_path"]).iterdir())
        self.calls.append(("upload", {**options, "files": files}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    return Hub


def test_nothing_is_uploaded_unasked(a_run: Path, hub: type[Hub]) -> None:
    run(a_run)
    assert hub.calls == []


def test_uploaded_is_the_verified_export(a_run: Path, hub: type[Hub]) -> None:
    """To a private repository where there is none."""
    place = run(a_run, push="me/model")
    [(_, created), (_, uploaded)] = hub.calls
    assert created == {"repo_id": "me/model", "private": True, "exist_ok": True}
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/model", str(place))
    assert {"README.md", "glmtune.json", "model.safetensors"} <= set(uploaded["files"])


def test_a_hub_that_refuses_is_told(a_run: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "error", OSError("401: who are you?"))
    with pytest.raises(
        UserError, match=r"--push-to-hub me/model: the hub refuses: 401.*The export itself is in .*merged"
    ):
        run(a_run, push="me/model")
    assert glmtune.load(a_run / "merged")[0] is not None


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        (["model.bits=4"], "at 4 bits"),
        (["model.quantize_embedding=true"], "with the embedding at 8 bits"),
        (["model.bits=4", "model.quantize_embedding=true"], "at 4 bits and with the embedding at 8 bits"),
    ],
)
def test_an_adapter_of_few_bits_is_another_model_when_merged(
    train_tiny: Any, tmp_path: Path, settings: list[str], stored: str
) -> None:
    """Which is said with the score of the run, as trained and merged; of an adapter alone, without one."""
    done = train_tiny(tmp_path / "run", *settings)
    told = io.StringIO()
    place = export.run(done.path, console=Console(file=told, width=1000))
    noted = read_json(place / "glmtune.json")["verification"]["storage"]
    assert noted["as_trained"] == {"n": 6, "accuracy": done.accuracy}
    again = glmtune.evaluate(place, settings={**SUMS, "evaluation.num_examples": 2})
    assert noted["merged"] == {"n": 2, "accuracy": again.accuracy}
    assert f"trained on its base {stored}, and merged" in told.getvalue()
    assert f"trained on its base {stored}, and merged" in (place / "README.md").read_text(encoding="utf-8")
    run(done.folder.adapter, output=str(tmp_path / "alone"), overrides=FEW)
    assert "merged" not in read_json(tmp_path / "alone/glmtune.json")["verification"]["storage"]
    assert "evaluate it" in (tmp_path / "alone/README.md").read_text(encoding="utf-8")


def test_of_a_base_as_it_was_nothing_is_said(a_run: Path) -> None:
    place = run(a_run)
    assert "storage" not in read_json(place / "glmtune.json")["verification"]


@pytest.mark.parametrize("stage", ["refer", "compare", "write_provenance"])
def test_ctrl_c_at_any_time_leaves_nothing_and_takes_nothing(
    a_run: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """An earlier export is still there."""
    run(a_run)
    before = listing(a_run)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, stage, interrupt)
    with pytest.raises(KeyboardInterrupt, match="Nothing was exported"):
        run(a_run, overwrite=True)
    assert listing(a_run) == before


@pytest.mark.parametrize("bits", [8, 4])
def test_stored_at_few_bits(tiny_run: Run, tmp_path: Path, bits: int) -> None:
    """The files are smaller, say what they are, and are loaded as they are."""
    place = run(tiny_run.folder.path, "merged", str(tmp_path / "packed"), FEW, bits=bits)
    assert read_json(place / "config.json")["quantization_config"] == {"quant_method": "glmtune", "bits": bits}
    assert read_json(place / "glmtune.json")["verification"]["packed"]["bits"] == bits
    whole = run(tiny_run.folder.path, "merged", str(tmp_path / "whole"), FEW)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (place, whole)]
    assert sizes[0] < sizes[1]
    with pytest.raises(UserError, match=rf"stored at {bits} bits; an update merged into it"):
        run(place, "merged", str(tmp_path / "again"), FEW)
    with pytest.raises(UserError, match=rf"--bits {bits}: is a form of transformers' layout"):
        run(tiny_run.folder.path, "gguf", str(tmp_path / "file.gguf"), FEW, bits=bits)
