"""`doctor`: what is healthy passes, and each planted fault gives the one failing check, with its remedy."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from glmtune import cli, distributed
from glmtune.commands.doctor import machine, run
from glmtune.commands.doctor.checks import Diagnosis
from glmtune.commands.doctor.tokenizer import padding
from glmtune.execution import Run
from glmtune.models import loading
from glmtune.training.placement import Place

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<a>' if m.role == 'assistant' else '<s>' }}{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)

FEW = ["evaluation.num_examples=30", "evaluation.num_examples_during=5"]

Damage = Callable[[Path], Any]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths are those of a few examples."""
    monkeypatch.setattr("glmtune.data.lengths.CHECKED_DRAWS", 20)


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def run_copy(tiny_run: Run, tmp_path: Path) -> Path:
    """A run folder to damage."""
    return Path(shutil.copytree(tiny_run.folder.path, tmp_path / "run"))


def failures(checks: list[Diagnosis]) -> dict[str, Diagnosis]:
    return {check.name: check for check in checks if check.status == "failure"}


def the_failure(checks: list[Diagnosis]) -> Diagnosis:
    """The one failing check, which has a remedy."""
    [check] = failures(checks).values()
    assert check.finding and check.remedy
    return check


def named(checks: list[Diagnosis], name: str) -> Diagnosis:
    [check] = [check for check in checks if check.name == name]
    return check


def edit(file: str, **changes: Any) -> Damage:
    """Some keys of a JSON file changed; None takes one away."""

    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return change


# What is healthy


def test_this_machine() -> None:
    checks = run()
    assert not failures(checks)
    assert {"python", "torch", "transformers", "peft", "device", "memory", "disk"} <= {check.name for check in checks}
    assert len({check.name for check in checks}) == len(checks)


def test_the_machine_is_examined_without_transformers() -> None:
    """Which may be what is broken."""
    code = "import sys; from glmtune.commands.doctor import run; run(); assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("target", ["nano", "checkpoint", "run", "adapter"])
def test_what_is_healthy(
    tiny_checkpoint: Path, tiny_run: Run, target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_model", None)  # no weights are read
    run_folder = tiny_run.folder
    places = {"nano": "nano", "checkpoint": tiny_checkpoint, "run": run_folder.path, "adapter": run_folder.adapter}
    checks = run(str(places[target]))
    assert [check for check in checks if check.status != "ok"] == []
    assert all(check.finding and not check.remedy for check in checks)
    names = {check.name for check in checks}
    assert {"files", "weights", "config", "tokenizer", "release", "end token", "run memory", "run disk"} <= names
    assert ({"adapter", "base"} <= names) == (target in ("run", "adapter"))
    assert ({"data", "lengths", "method"} <= names) == (target == "run")
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_is_healthy(write_records: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    records = write_records(*({"prompt": f"{i}+1=", "target": str(i + 1)} for i in range(100)))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{path: {tiny_checkpoint}}}\ntask: {{name: instructions, file: {records}}}\n")
    checks = run(str(recipe))
    assert not failures(checks)
    assert "records to learn" in named(checks, "data").finding
    assert "of the 128 that the model takes" in named(checks, "lengths").finding
    assert "lora trains" in named(checks, "method").finding


def test_a_head_that_cannot_learn_is_told(tiny_checkpoint: Path) -> None:
    checks = run(None, ["method.target_modules=[lm_head]", f"model.path={tiny_checkpoint}", *FEW])
    assert "lm_head cannot learn by itself" in failures(checks)["method"].finding


def test_records_are_healthy(write_records: Any, tiny_checkpoint: Path) -> None:
    records = str(write_records(*({"prompt": f"{i}+1=", "target": str(i + 1)} for i in range(100))))
    assert named(run(records), "data").finding == f"{records}: 100 records"
    checks = run(records, [f"model.path={tiny_checkpoint}"])
    assert not failures(checks) and "tokens at most" in named(checks, "lengths").finding


def test_a_packed_checkpoint_is_healthy(tmp_path: Path, tiny_checkpoint: Path) -> None:
    golden = Path(__file__).parents[1] / "golden/glm1"
    weights = load_file(golden / "model.safetensors") | load_file(golden / "quant_int4.safetensors")
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "packed"))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((golden / "config.json").read_text()) | {"quantization_bit": 4}
    (folder / "config.json").write_text(json.dumps(config))
    checks = run(str(folder))
    assert named(checks, "fit").status == "ok"
    assert failures(checks).keys() == {"release"}  # that tokenizer is another model's


RECIPES = sorted(Path(__file__).parents[2].glob("recipes/*.yaml"))


@pytest.fixture
def minimal_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make demo` installs."""
    absent = ("bitsandbytes", "gguf", "pyarrow", "datasketch", "trl")
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    versions(monkeypatch, **dict.fromkeys(absent))
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.mark.usefixtures("minimal_install")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_nothing_is_wrong_with_a_shipped_recipe(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier recipe makes is awaited; with another model in its place, all the rest can be looked at."""
    awaits = [check.finding for check in run(str(recipe), FEW) if check.status == "awaited"]
    starts = {"demo", "demo_real", "nano"}
    assert bool(awaits) == (recipe.stem not in starts) and all("is not there yet" in finding for finding in awaits)
    monkeypatch.setattr("glmtune.models.precision.has_bf16_units", lambda: False)  # of which a run is told
    base = "checkpoints/arithmetic-wide" if "wide" in recipe.stem else "nano"
    few = [*FEW, "data.mixture=[]"]
    few += ["data.template=null"] * (recipe.stem == "demo_real")  # which is of its model's control tokens
    checks = run(str(recipe), [f"model.path={base}", *few])
    assert [check for check in checks if check.status != "ok"] == []


def test_what_an_earlier_recipe_makes_is_awaited(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    runs = tmp_path / "runs"
    first.write_text(f"training: {{output_dir: {runs}/one}}\n")
    second.write_text(f"model: {{path: {runs}/one/model}}\ntraining: {{output_dir: {runs}/two}}\n")
    checks = run(str(second))
    assert not failures(checks)
    check = named(checks, "model")
    assert check.status == "awaited" and check.remedy == f"First: glmtune train {first}"
    assert "fit" in named(checks, "not checked").finding
    second.write_text(f"model: {{path: {tmp_path}/gone}}\ntraining: {{output_dir: {runs}/two}}\n")
    assert the_failure(run(str(second))).name == "model"


# Several processes

HERE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture
def port() -> str:
    """One that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Diagnosis]]:
    """`launched(RANK=..., ...)`: what is said in a process that was started so."""

    def look(*arguments: Any, **told: str) -> list[Diagnosis]:
        for name in distributed.VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        return run(*arguments)

    return look


def test_one_process_alone(launched: Any) -> None:
    names = [check.name for check in launched()]
    assert "devices" in names and not {"processes", "master", "versions of all"} & {*names}


def test_processes_that_can_meet(launched: Any, port: str) -> None:
    first = launched(**HERE, MASTER_PORT=port)
    assert not failures(first) and named(first, "processes").finding.startswith("rank 0 of 2")
    assert named(first, "master").finding.endswith("is free")
    with socket.socket() as master:
        master.bind(("127.0.0.1", int(port)))
        master.listen()
        second = launched(**HERE | {"RANK": "1", "LOCAL_RANK": "1"}, MASTER_PORT=port)
        torchrun = launched(**HERE, MASTER_PORT=port, TORCHELASTIC_USE_AGENT_STORE="True")
        taken = launched(**HERE, MASTER_PORT=port)
    assert not failures(second) and named(second, "master").finding.endswith("answers")
    assert not failures(torchrun) and named(torchrun, "master").finding.endswith("answers")
    assert named(first, "versions of all") == named(second, "versions of all")
    assert "cannot be opened here" in the_failure(taken).finding


def test_marks_of_recipes(launched: Any, port: str) -> None:
    """The same for the same, another for another."""
    one, other = ([*FEW, f"training.steps={steps}"] for steps in (2, 3))
    told = {**HERE, "MASTER_PORT": port}
    first, second, third = (named(launched(None, recipe, **told), "recipe of all") for recipe in (one, one, other))
    assert first == second != third


@pytest.mark.parametrize(
    ("changes", "name", "finding"),
    [
        ({"WORLD_SIZE": ""}, "processes", "WORLD_SIZE=: not a whole number"),
        ({"RANK": "2"}, "processes", "RANK=2 of WORLD_SIZE=2: ranks are from 0 to 1"),
        ({"MASTER_ADDR": "no-such-host.invalid"}, "master", "no such address"),
        ({"RANK": "1"}, "master", "nobody answers"),
        ({"MASTER_PORT": "99999"}, "processes", "MASTER_PORT=99999: ports are from 1 to 65535"),
    ],
)
def test_processes_that_cannot_meet(launched: Any, port: str, changes: dict[str, str], name: str, finding: str) -> None:
    check = the_failure(launched(**{**HERE, "MASTER_PORT": port, **changes}))
    assert check.name == name and re.search(finding, check.finding)


def test_half_of_what_a_launcher_tells(launched: Any) -> None:
    check = the_failure(launched(RANK="0", WORLD_SIZE="2"))
    assert check.finding == "the environment has RANK=0, WORLD_SIZE=2, but no MASTER_ADDR, MASTER_PORT"
    assert "torchrun" in check.remedy


def test_more_processes_than_gpus(launched: Any, port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H100")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    check = the_failure(launched(**{**HERE, "RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": port}))
    assert check.finding == "LOCAL_RANK=1: a process more than there are GPUs here, 1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    check = the_failure(launched())
    assert check.name == "devices" and check.finding == "4 x H100; torch has no NCCL, by which GPUs talk"


# Planted faults in a model


class Code:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def pickled(change: Callable[[dict[str, Any], Path], Any]) -> Damage:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        change(weights, folder / "pytorch_model.bin")

    return damage


def save_truncated(weights: dict[str, Any], file: Path) -> None:
    torch.save(weights, file)
    file.write_bytes(file.read_bytes()[:-100])


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.layers.1.mlp.dense_h_to_4h.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_tokenizer(folder: Path) -> None:
    for file in ("ice_text.model", "tokenizer_config.json"):
        (folder / file).unlink()


FAULTS: dict[str, tuple[Damage, str, str, str]] = {
    "tokenizer is a pointer": (
        lambda folder: (folder / "ice_text.model").write_text(LFS_POINTER),
        *("files", "ice_text.model", "git lfs pull"),
    ),
    "weights are a pointer": (
        lambda folder: (folder / "model.safetensors").write_text(LFS_POINTER),
        *("weights", "model.safetensors is a Git-LFS pointer", "git lfs pull"),
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "files", "has no config.json", "Copy"),
    "config is damaged": (lambda folder: (folder / "config.json").write_text("{"), "files", "is damaged", "Copy"),
    "weights are truncated": (truncate, "weights", "model.safetensors is truncated", "Copy or download it again"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "weights", "holds no weights", "Copy"),
    "pickle with code": (
        pickled(lambda weights, file: torch.save({**weights, "x": Code()}, file)),
        *("weights", "carries code besides weights (posix.mkdir)", "as safetensors"),
    ),
    "old pickle with code": (
        pickled(lambda weights, file: torch.save({"x": Code()}, file, _use_new_zipfile_serialization=False)),
        *("weights", "carries code besides weights (posix.mkdir)", "as safetensors"),
    ),
    "pickle is truncated": (pickled(save_truncated), "weights", "pytorch_model.bin is truncated or damaged", "Copy"),
    "pickle is a web page": (
        pickled(lambda weights, file: file.write_bytes(b"<html>404</html>")),
        *("weights", "no file of weights, or damaged", "Copy"),
    ),
    "a weight is missing": (drop_a_weight, "fit", "lacks 1 weights that its config.json asks for", "download it again"),
    "weights of another release": (edit("config.json", vocab_size=520), "fit", "do not fit its config.json", "again"),
    "no model_type": (edit("config.json", model_type=None), "config", "has no model_type", "add its model_type"),
    "remote code only": (
        edit("config.json", model_type="baichuan", auto_map={"AutoConfig": "configuration_baichuan.BaichuanConfig"}),
        *("config", "runs only with code from its repository, which is never run here", "ChatGLM-6B"),
    ),
    "no causal model": (
        edit("config.json", model_type="t5"),
        "config",
        "'t5' is no causal language model",
        "AutoModelForCausalLM",
    ),
    "no tokenizer": (without_tokenizer, "tokenizer", "tokenizer", "download the tokenizer's files again"),
    "tokenizer of v1.0": (
        edit("tokenizer_config.json", num_image_tokens=20_000, added_tokens_decoder={}),
        *("release", "its tokenizer has [gMASK] at 20005, its config.json at 5", "weights are of"),
    ),
    "config of v1.0": (
        edit("config.json", gmask_token_id=45, bos_token_id=48),
        *("release", "its tokenizer has [gMASK] at 5, its config.json at 45", "weights are of"),
    ),
    "nothing asked": (
        lambda folder: (folder / "chat_template.jinja").write_text("[gMASK]<sop>"),
        *("template", "leaves out content of a message of role 'user'", "chat_template.jinja"),
    ),
    "template is damaged": (
        lambda folder: (folder / "chat_template.jinja").write_text("{% for %}"),
        *("template", "TemplateSyntaxError", "chat_template.jinja"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_model(checkpoint: Path, fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    damage, name, finding, remedy = FAULTS[fault]
    damage(checkpoint)
    check = the_failure(run(str(checkpoint)))
    assert check.name == name and finding in check.finding and remedy in check.remedy, check
    assert "\n" not in check.finding + check.remedy
    assert not Path("ran").exists(), "code of the file was run"


def test_a_missing_shard(checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="50KB")
    assert not failures(run(str(checkpoint)))
    shard = sorted(checkpoint.glob("model-*.safetensors"))[1]
    shard.unlink()
    check = the_failure(run(str(checkpoint)))
    assert check.name == "weights" and f"weight files: {shard.name}" in check.finding


def test_one_failure_hides_no_other(checkpoint: Path) -> None:
    """What cannot be looked at because of it is named."""
    truncate(checkpoint)
    edit("config.json", gmask_token_id=45)(checkpoint)
    checks = run(str(checkpoint))
    assert failures(checks).keys() == {"weights", "release"}
    left_out = named(checks, "not checked")
    assert (left_out.status, left_out.finding) == ("warning", "fit") and left_out.remedy


def test_pickled_weights_are_healthy(checkpoint: Path) -> None:
    pickled(torch.save)(checkpoint)
    checks = run(str(checkpoint))
    assert not failures(checks) and "1 file of" in named(checks, "weights").finding


def test_a_released_file_that_was_changed_is_only_warned_of(checkpoint: Path) -> None:
    edit("config.json", vocab_size=130_528)(checkpoint)
    check = named(run(str(checkpoint)), "files")
    assert check.status == "warning" and "ice_text.model is not as released" in check.finding
    assert "5e974d9a69c242ce" in check.remedy


def llama(folder: Path, chat_template: str | None = CHAT_TEMPLATE, **tokens: Any) -> Path:
    """A tiny Llama whose tokens are characters."""
    vocabulary = ["<unk>", "<s>", "</s>", "<a>", "<pad>", *"0123456789+-*/=. "]
    backend = Tokenizer(token_models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | tokens
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=["<a>"], **named)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(vocabulary), bos_token_id=1, eos_token_id=2, pad_token_id=4, **sizes)
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None], ids=["template", "no template"])
def test_any_causal_model_is_healthy(tmp_path: Path, template: str | None) -> None:
    checks = run(str(llama(tmp_path / "llama", template)))
    assert [check for check in checks if check.status != "ok"] == []


@pytest.mark.parametrize("pad", ["</s>", None])
def test_padding_that_is_the_end_is_warned_of(tmp_path: Path, pad: str | None) -> None:
    checks = run(str(llama(tmp_path / "llama", pad_token=pad)))
    check = named(checks, "padding")
    assert not failures(checks) and check.status == "warning"
    assert "padding and end in one" in check.finding and "set pad_token" in check.remedy
    assert check.remedy.endswith("another token, e.g. <pad>.")


@pytest.mark.parametrize(
    ("tokens", "advised"),
    [
        (["<|endoftext|>", "<|pad|>"], ", e.g. <|pad|>."),
        (["<|endoftext|>", "<unused0>", "<unused1>"], ", e.g. <unused0>."),
        (["<|endoftext|>", "<|reserved_special_token_0|>"], ", e.g. <|reserved_special_token_0|>."),
        (["<|endoftext|>", "[UNK]", "<s>"], ", e.g. [UNK]."),
        (["<|endoftext|>", "keypad>", "1"], "let other tools know padding by its place."),
    ],
)
def test_only_a_token_that_the_tokenizer_has_is_advised(tokens: list[str], advised: str) -> None:
    known = SimpleNamespace(
        get_vocab=lambda: {token: index for index, token in enumerate(tokens)},
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>"),
        **dict.fromkeys(("eos_token_id", "pad_token_id"), 0),
        unk_token=None,
    )
    _, _, remedy = padding(SimpleNamespace(tokenizer=known))  # type: ignore[arg-type]
    assert remedy.endswith(advised) and "<unk>" not in remedy


@pytest.mark.parametrize(
    ("eos", "finding"), [(None, "has no eos_token"), ("<unk>", "also stands for unknown characters")]
)
def test_an_end_token_that_is_none(tmp_path: Path, eos: str | None, finding: str) -> None:
    check = the_failure(run(str(llama(tmp_path / "llama", None, eos_token=eos))))
    assert check.name == ("end token" if eos else "tokenizer") and finding in check.finding


def test_other_special_ids_are_warned_of_where_the_model_does_not_read_them(tmp_path: Path) -> None:
    folder = llama(tmp_path / "llama")
    edit("config.json", eos_token_id=3)(folder)
    checks = run(str(folder))
    assert not failures(checks) and named(checks, "release").status == "warning"


def test_a_template_without_memory_is_for_single_questions(tmp_path: Path) -> None:
    alone = "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}"
    checks = run(str(llama(tmp_path / "llama", alone + CHAT_TEMPLATE)))
    assert not failures(checks) and "single questions only" in named(checks, "template").finding


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("<s>{{ messages[-1].content }}{% if add_generation_prompt %}<a>{% endif %}", "leaves out content"),
        (CHAT_TEMPLATE.replace("'<a>'", "'<s>'"), "asks for an answer with '<a>', but goes on with '<s>"),
    ],
)
def test_a_template_that_asks_otherwise_than_it_answers(tmp_path: Path, template: str, told: str) -> None:
    check = the_failure(run(str(llama(tmp_path / "llama", template))))
    assert check.name == "template" and told in check.finding


def test_records_that_the_template_refuses_are_named(write_records: Any) -> None:
    """The first of them."""
    good = {"prompt": "1", "target": "1"}
    file = str(write_records(good, *[{**good, "tools": [{"name": "f"}]}] * 5))
    check = the_failure(run(file))
    assert check.name == "data" and "of the first 6, 5 are refused by nano" in check.finding
    assert [f"line {line}" in check.finding for line in (2, 3, 4, 5)] == [True, True, True, False]
    assert "and 2 more" in check.finding and "model.path=NAME" in check.remedy


def test_a_tokenizer_that_needs_code(tmp_path: Path) -> None:
    folder = llama(tmp_path / "llama")
    edit("tokenizer_config.json", tokenizer_class="Foreign", auto_map={"AutoTokenizer": ["code.Foreign", None]})(folder)
    check = the_failure(run(str(folder)))
    assert check.name == "tokenizer" and "Foreign runs only with code from its repository" in check.finding


@pytest.mark.parametrize(
    ("target", "finding"),
    [("/no/such/model", "no run, adapter, checkpoint or recipe at"), ("./nanoo", "no run, adapter, checkpoint or")],
)
def test_no_such_model(target: str, finding: str) -> None:
    check = the_failure(run(target))
    assert check.name == "model" and finding in check.finding and "nano" in check.remedy


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_answer(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect. Set this. And that.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_answer)
    check = the_failure(run("some/model"))
    assert check.name == "model" and "couldn't connect" in check.finding and "hub can be reached" in check.remedy


@pytest.mark.parametrize(("free", "name"), [(2**40, None), (2**10, "weights")])
def test_a_model_of_the_hub(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, name: str | None
) -> None:
    """Its small files are fetched; its weights must fit the disk."""
    (checkpoint / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(checkpoint))
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    checks = run("some/model")
    assert "not fetched yet: about" in named(checks, "weights").finding
    assert list(failures(checks)) == ([name] if name else [])


ORIGINAL_GLM = {
    "model_type": "chatglm",
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "ffn_hidden_size": 48,
    "hidden_size": 32,
    "kv_channels": 8,
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_layers": 1,
    "original_rope": True,
    "padded_vocab_size": 64,
    "rmsnorm": True,
    "seq_length": 128,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ORIGINAL_SHAPES = {
    "transformer.embedding.word_embeddings.weight": (64, 32),
    "transformer.output_layer.weight": (64, 32),
    "transformer.encoder.final_layernorm.weight": (32,),
    "transformer.encoder.layers.0.input_layernorm.weight": (32,),
    "transformer.encoder.layers.0.post_attention_layernorm.weight": (32,),
    "transformer.encoder.layers.0.self_attention.query_key_value.weight": (64, 32),
    "transformer.encoder.layers.0.self_attention.query_key_value.bias": (64,),
    "transformer.encoder.layers.0.self_attention.dense.weight": (32, 32),
    "transformer.encoder.layers.0.mlp.dense_h_to_4h.weight": (96, 32),
    "transformer.encoder.layers.0.mlp.dense_4h_to_h.weight": (32, 48),
}


@pytest.mark.parametrize("legacy", [False, True])
def test_original_weights_of_later_generations_are_compared_without_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    monkeypatch.setattr("glmtune.models.glm.modeling_glm.lazy_weights", None)
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL_GLM))
    weights = {name: torch.zeros(shape) for name, shape in ORIGINAL_SHAPES.items()}

    def save() -> None:
        if legacy:
            torch.save(weights, tmp_path / "pytorch_model.bin")
        else:
            save_file(weights, tmp_path / "model.safetensors")

    save()
    assert named(run(str(tmp_path)), "fit").status == "ok"
    del weights["transformer.encoder.final_layernorm.weight"]
    save()
    assert "lacks 1 weights" in named(run(str(tmp_path)), "fit").finding


# Adapters


ADAPTER_FAULTS: dict[str, tuple[Damage, str, str]] = {
    "not there": (lambda run: shutil.rmtree(run / "adapter"), "adapter", "holds no adapter"),
    "truncated": (
        lambda run: (run / "adapter/adapter_model.safetensors").write_bytes(b"0" * 50),
        *("adapter", "adapter_model.safetensors is damaged"),
    ),
    "tokenizer is a pointer": (
        lambda run: (run / "adapter/ice_text.model").write_text(LFS_POINTER),
        *("adapter", "ice_text.model is a Git-LFS pointer"),
    ),
    "another base": (edit("adapter/base.json", fingerprint="0" * 16), "base", "trained on other weights"),
}


@pytest.mark.parametrize("fault", ADAPTER_FAULTS)
def test_a_fault_of_an_adapter(run_copy: Path, fault: str) -> None:
    damage, name, finding = ADAPTER_FAULTS[fault]
    damage(run_copy)
    check = the_failure(run(str(run_copy)))
    assert check.name == name and finding in check.finding


def test_an_adapter_on_another_base(run_copy: Path, checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    weights["transformer.final_layernorm.bias"] += 1
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    for target in (run_copy, run_copy / "adapter"):
        check = the_failure(run(str(target), [f"model.path={checkpoint}"]))
        assert check.name == "base" and str(checkpoint) in check.finding and "model.path" in check.remedy


@pytest.mark.parametrize("base", ["/gone/away", None])
def test_an_adapter_without_its_base(run_copy: Path, base: str | None, tiny_checkpoint: Path) -> None:
    adapter = run_copy / "adapter"
    edit("base.json", base=base)(adapter)
    edit("adapter_config.json", base_model_name_or_path=base)(adapter)
    check = the_failure(run(str(adapter)))
    assert check.name == "model" and ("no such model" if base else "names no base model") in check.finding
    assert not failures(run(str(adapter), [f"model.path={tiny_checkpoint}"]))


# Recipes, data and the machine


def test_the_faults_of_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {step: 5}\nmethod: {rank: 0}\n")
    faults = [check for check in run(str(recipe)) if check.status == "failure"]
    assert {check.name for check in faults} == {"recipe"} and len(faults) == 2
    assert all(check.remedy for check in faults)
    assert "no such file" in the_failure(run(str(tmp_path / "none.yaml"))).finding
    assert "write it as section.setting=value" in the_failure(run("nano", ["seed"])).finding


@pytest.mark.parametrize(
    ("settings", "name", "finding"),
    [
        (["task={name: instructions, file: nowhere.jsonl}"], "data", "nowhere.jsonl: no such file"),
        (["data.max_length=8"], "lengths", "more than data.max_length"),
        (["method.target_modules=[q_proj]"], "method", "no layer is named 'q_proj'"),
        (["data.template=chatml"], "tokenizer", "needs the control tokens"),
        (["model.dtype=float16"], "precision", "there is no loss scaling"),
        (["method={name: full}", "model.bits=4"], "precision", "changes the weights of the model itself"),
    ],
)
def test_a_run_that_would_fail(
    settings: list[str], name: str, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check = the_failure(run(None, [*FEW, *settings]))
    assert check.name == name and finding in check.finding


def test_a_task_that_calls_its_own_targets_wrong(tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text(
        "from glmtune.tasks import Example, Score, Task\n"
        "class Mine(Task):\n"
        "    def sample(self, rng, split='train'): return Example('1+1=', '2')\n"
        "    def score(self, example, completion, calls=()): return Score('wrong')\n"
    )
    check = the_failure(run(None, [f"task.name={own}"]))
    assert check.name == "data" and "calls its own target '2' wrong" in check.finding
    own.write_text("1 +")
    assert "SyntaxError" in the_failure(run(None, [f"task.name={own}"])).finding


@pytest.mark.parametrize(
    ("name", "lines", "finding"),
    [
        ("bad.jsonl", ['{"prompt": "1", "target": "1"}', '{"prompt": 1'], "line 2: not JSON"),
        ("empty.jsonl", [], "no records"),
        ("lacking.jsonl", ['{"question": "1"}'], "line 1: 'prompt' is missing"),
        ("table.csv", ["question,x", "1,2"], "'prompt' is missing"),
    ],
)
def test_data_that_cannot_be_read(write_records: Any, name: str, lines: list[str], finding: str) -> None:
    check = the_failure(run(str(write_records(*lines, name=name))))
    assert check.name == "data" and finding in check.finding and name in check.finding


def test_a_table_is_read_as_in_training(write_records: Any) -> None:
    file = str(write_records("prompt,target", "1+1=,2", name="table.csv"))
    assert named(run(file), "data").finding == f"{file}: 1 record"


def test_data_that_is_not_there(tmp_path: Path) -> None:
    assert "no such file" in the_failure(run(str(tmp_path / "none.jsonl"))).finding


@pytest.mark.parametrize(("trains", "status"), [(True, "failure"), (False, "warning")])
def test_too_little_memory(monkeypatch: pytest.MonkeyPatch, trains: bool, status: str) -> None:
    monkeypatch.setattr("glmtune.training.placement.at_hand", lambda *_: Place("cpu", "the CPU", int(0.7 * 2**30)))
    checks = run(None if trains else "nano", ["training.batch_size=512", *FEW])
    check = named(checks, "run memory")
    assert check.status == status and "too little" in check.finding and "training.batch_size" in check.remedy
    assert bool(failures(checks)) == trains


def test_a_finished_run_need_not_fit_once_more(monkeypatch: pytest.MonkeyPatch, tiny_run: Run) -> None:
    monkeypatch.setattr("glmtune.training.placement.at_hand", lambda *_: Place("cpu", "the CPU", int(0.7 * 2**30)))
    checks = run(str(tiny_run.folder.path), ["training.batch_size=4096"])
    assert not failures(checks) and named(checks, "run memory").status == "warning"


def test_too_little_memory_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glmtune.training.placement.at_hand", lambda *_: Place("cpu", "the CPU", 2**20))
    check = the_failure(run("nano"))
    assert check.name == "run memory" and "Choose a smaller model" in check.remedy


def test_too_little_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=2**20))
    check = the_failure(run(None, ["seed=1", *FEW]))
    assert check.name == "run disk" and "1.0 MiB are free" in check.finding and "output_dir" in check.remedy


def test_sizes_that_are_not_known(checkpoint: Path) -> None:
    folder = llama(checkpoint.parent / "llama")
    edit("config.json", model_type="granite")(folder)
    check = named(run(str(folder)), "run memory")
    assert check.status == "ok" and "not estimated" in check.finding


def versions(monkeypatch: pytest.MonkeyPatch, **other: str | None) -> None:
    """Other versions of some libraries; None: not installed."""
    actual = metadata.version

    def version(name: str) -> str:
        found = other[name.replace("-", "_")] if name.replace("-", "_") in other else actual(name)
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
    ("other", "name", "status", "finding", "remedy"),
    [
        ({"torch": "2.5.1"}, "torch", "failure", "2.5.1, but glmtune", "pip install 'torch"),
        ({"transformers": "4.57.0"}, "transformers", "failure", "4.57.0, but glmtune", ">=5.16.1"),
        ({"huggingface_hub": "3.1"}, "huggingface-hub", "failure", "3.1, but transformers 5", "<3.0"),
        ({"safetensors": None}, "safetensors", "failure", "not installed", "pip install 'safetensors>="),
        ({"bitsandbytes": "0.45.0"}, "bitsandbytes", "warning", "no 4-bit kernels for CPUs", "bitsandbytes>=0.50"),
        ({"bitsandbytes": None}, "bitsandbytes", "ok", "not installed; it is for model.bits=8 or 4", ""),
        ({"torchao": "0.15"}, "torchao", "warning", "keeps peft from making any LoRA layer", "torchao>=0.16"),
        ({"datasets": "4.0"}, "datasets", "warning", "4.0, but trl", "pip install 'datasets>="),
    ],
)
def test_versions(
    monkeypatch: pytest.MonkeyPatch, other: dict[str, Any], name: str, status: str, finding: str, remedy: str
) -> None:
    versions(monkeypatch, **other)
    check = named(run(), name)
    assert check.status == status and finding in check.finding and remedy in check.remedy, check


def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "at_hand", lambda *_: Place("cuda", "NVIDIA T4", 2**34))
    check = named(run(), "device")
    assert check.status == "warning" and "NVIDIA T4 is there, but torch" in check.finding


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "local_device", lambda: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (2**33, 2**34))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: "NVIDIA T4")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    finding = named(run(), "device").finding
    assert finding == "NVIDIA T4, 16.00 GiB of which 8.00 GiB are free, no bfloat16, so that auto is float16"


# The command line


@pytest.mark.parametrize(("damaged", "code"), [(False, 0), (True, 2)])
def test_the_command(checkpoint: Path, capsys: pytest.CaptureFixture[str], damaged: bool, code: int) -> None:
    if damaged:
        truncate(checkpoint)
    told = {}
    for flags in ([], ["--json"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["doctor", str(checkpoint), *flags])
        told[bool(flags)], err = capsys.readouterr()
        assert (end.value.code, err) == (code, "")
    answer, lines = json.loads(told[True]), told[False].splitlines()
    assert answer["ok"] == (not damaged)
    assert {key for check in answer["checks"] for key in check} == {"name", "status", "finding", "remedy"}
    words = {"ok": "ok      ", "warning": "warning ", "failure": "FAILS   "}
    for check in answer["checks"]:
        place = next(
            i for i, line in enumerate(lines) if line.startswith(f"{words[check['status']]} {check['name']}: ")
        )
        assert not check["remedy"] or lines[place + 1] == f"         {check['remedy']}"
    assert lines[-1] == (f"1 of {len(answer['checks'])} checks fail." if damaged else "Nothing here would fail.")


def test_settings_in_place_of_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "training.step=1"])
    assert end.value.code == 2 and "FAILS    recipe: training.step: unknown setting." in capsys.readouterr().out
