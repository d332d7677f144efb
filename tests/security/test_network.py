"""What is asked of the network: nothing but what the user typed or said yes to, after a line that says so."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants, snapshot_download
from stand_in_hub import Hub

import glmtune
from glmtune import cli, network
from glmtune.evaluation.general import GENERAL as GENERAL_QUESTIONS
from glmtune.execution import Run
from glmtune.models.checkpoint import local_folder

NAME = "somebody/tiny"
RECORDS = [{"prompt": f"{number}+1=", "target": f"{number + 1}"} for number in range(12)]

Refused = Callable[..., str]


class Terminal(io.StringIO):
    """What the user types at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def serving(hub: Hub, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub has a small model and a few records; the working folder is empty."""
    hub.models[NAME] = tiny_checkpoint
    records = tmp_path / "served-records"
    records.mkdir()
    (records / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    hub.datasets["somebody/records"] = records
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return hub


@pytest.fixture
def called(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`called("chat", ...)`: (exit code, stdout, stderr) of a command line."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def adapter_on(base: str, run: Run, folder: Path, noted: bool = True) -> Path:
    """Return a stranger's adapter that names its base, in our note or in peft's configuration alone."""
    shutil.copytree(run.folder.adapter, folder)
    for file, key in (("adapter_config.json", "base_model_name_or_path"), ("base.json", "base")):
        values = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**values, key: base}))
    if not noted:
        (folder / "base.json").unlink()
    return folder


def test_the_hub_serves(hub: Hub, tiny_checkpoint: Path) -> None:
    folder = Path(snapshot_download(NAME))
    assert (folder / "config.json").read_bytes() == (tiny_checkpoint / "config.json").read_bytes()
    assert f"GET /api/models/{NAME}/revision/main" in hub.requests and "model.safetensors" in hub.fetched
    with pytest.raises(OSError, match="404"):
        snapshot_download("somebody/else")


# --------------------------------------------------------------------------- what the user types


def test_what_is_typed_is_fetched_after_a_line(hub: Hub, called: Any) -> None:
    code, _, err = called("chat", NAME, "-q", "1+1=", "generation.max_new_tokens=2")
    assert code == 0, err
    host = hub.endpoint.removeprefix("http://")
    assert f"Fetching small files of {NAME} from {host}, named by you." in err.splitlines()
    assert f"Fetching weights and small files of {NAME} from {host}, named by you." in err.splitlines()
    assert "model.safetensors" in hub.fetched


@pytest.mark.parametrize("typed", [[f"model.path={NAME}"], ["task.name=wording", f"model.path={NAME}"]])
def test_a_typed_setting_is_fetched(hub: Hub, called: Any, typed: list[str]) -> None:
    code, out, err = called("estimate", *typed)
    assert code == 0 and "named by you" in err and "parameters" in out
    assert hub.fetched and "model.safetensors" not in hub.fetched


def test_what_is_in_the_cache_is_not_asked_for(hub: Hub, called: Any, tiny_run: Run, tmp_path: Path) -> None:
    local_folder(NAME)
    hub.requests.clear()
    for target in (NAME, adapter_on(NAME, tiny_run, tmp_path / "adapter")):
        code, _, err = called("chat", target, "-q", "1+1=", "generation.max_new_tokens=2")
        assert (code, err) == (0, "")
    assert hub.requests == []


def test_python_names_by_its_arguments(hub: Hub, tiny_run: Run, tmp_path: Path, capsys: Any) -> None:
    adapter = adapter_on(NAME, tiny_run, tmp_path / "adapter")
    with pytest.raises(ValueError, match=rf"^{NAME} is named by .*base\.json and is not here"):
        glmtune.load(adapter)
    assert hub.requests == []
    glmtune.load(NAME, adapter=adapter)
    assert "named by you" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^somebody/else is named by recipe\.yaml and is not here"):
        glmtune.train(write("model: {path: somebody/else}"))


def write(text: str, name: str = "recipe.yaml") -> str:
    """Write a file of the working folder."""
    Path(name).write_text(text)
    return name


# --------------------------------------------------------------------------- what only a file names

GENERAL = "evaluation: {forgetting: true, general_file: somebody/records}"
RECIPES = {
    "model": f"model: {{path: {NAME}}}",
    "fresh model": f"model: {{path: {NAME}, random_init: true}}",
    "records": "task: {name: instructions, file: somebody/records}",
    "records of a split": "task: {name: instructions, file: 'somebody/records@default:train'}",
    "held-out records": "task: {name: instructions, file: own.jsonl, held_out_file: somebody/records}",
    "mixture": "data: {mixture: [{file: somebody/records, share: 0.2}]}",
    "general questions": GENERAL,
}


@pytest.mark.parametrize("verb", ["train", "doctor"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_what_a_recipe_names_is_not_fetched(hub: Hub, called: Any, recipe: str, verb: str) -> None:
    write("".join(json.dumps(record) + "\n" for record in RECORDS), "own.jsonl")
    code, out, err = called(verb, write(recipe))
    if verb == "train" or recipe != GENERAL:  # of which the doctor reads nothing
        name = "somebody/records" if "records" in recipe else NAME
        assert code == 2 and f"{name} is named by recipe.yaml and is not here" in out + err, out + err
        assert f"e.g. {'task.file' if 'records' in recipe else 'model.path'}={name}." in out + err
        assert "Traceback" not in err and "Fetching" not in err
    assert hub.requests == []


VERBS = {
    "chat": ["{}", "-q", "1"],
    "evaluate": ["{}"],
    "estimate": ["{}"],
    "doctor": ["{}"],
    "export": ["{}", "--output", "out"],
    "predict": ["{}", "--input", "own.jsonl", "--output", "answers.jsonl"],
    "inspect": ["own.jsonl", "--model", "{}"],
}


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "by peft"])
@pytest.mark.parametrize("verb", VERBS)
def test_what_an_adapter_names_is_not_fetched(
    hub: Hub, called: Any, tiny_run: Run, tmp_path: Path, verb: str, noted: bool
) -> None:
    write("".join(json.dumps(record) + "\n" for record in RECORDS), "own.jsonl")
    adapter = adapter_on(NAME, tiny_run, tmp_path / "adapter", noted)
    code, out, err = called(verb, *(word.format(adapter) for word in VERBS[verb]))
    file = adapter / ("base.json" if noted else "adapter_config.json")
    assert code == 2 and f"{NAME} is named by {file} and is not here" in out + err
    assert hub.requests == [] and "Fetching" not in err


def test_what_a_run_names_is_not_fetched(hub: Hub, called: Any, tiny_run: Run, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run.folder.path, tmp_path / "run"))
    lines = (run / "recipe.yaml").read_text().splitlines()
    lines = [f"  path: {NAME}" if line.startswith("  path:") else line for line in lines]
    (run / "recipe.yaml").write_text("\n".join(lines))
    code, _, err = called("chat", run, "-q", "1")
    assert code == 2 and f"{NAME} is named by {run / 'recipe.yaml'} and is not here" in err
    assert hub.requests == []


@pytest.mark.parametrize(
    ("answer", "fetched"), [("y\n", True), ("YES\n", True), ("\n", False), ("n\n", False), ("", False)]
)
def test_a_yes_at_the_terminal(
    hub: Hub, called: Any, monkeypatch: pytest.MonkeyPatch, answer: str, fetched: bool
) -> None:
    host = hub.endpoint.removeprefix("http://")
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    monkeypatch.setattr("sys.stderr", err := Terminal())
    code, _, _ = called("estimate", write(RECIPES["model"]))
    assert err.getvalue().startswith(f"Fetch {NAME} from {host}, named by recipe.yaml? [y/N] ")
    assert (code == 0) == bool(hub.requests) == fetched, err.getvalue()


def test_a_flag_says_yes(hub: Hub, called: Any) -> None:
    code, _, err = called("estimate", write(RECIPES["model"]), "--fetch")
    assert code == 0 and f"Fetching small files of {NAME} from " in err and ", named by recipe.yaml." in err
    assert hub.fetched


def test_a_recipe_cannot_say_yes(hub: Hub, called: Any) -> None:
    code, _, err = called("estimate", write(f"fetch: true\n{RECIPES['model']}"))
    assert code == 2 and "fetch: unknown setting" in err and hub.requests == []


# --------------------------------------------------------------------------- what looks like a path

PATHS = (
    *("./somebody/tiny", "../somebody/tiny", "/somebody/tiny", "~/tiny", "somebody/tiny/", "somebody/tiny/adapter"),
    *("somebody/tiny.yaml", "somebody/tiny.gguf", "runs/nope", "checkpoints/tiny"),
    *("run/sums-1", "Runs/sums-1", "folder/sums-2"),
)


@pytest.mark.parametrize("path", PATHS)
def test_what_looks_like_a_path_is_never_sent(hub: Hub, called: Any, path: str) -> None:
    for folder in ("runs/sums-1", "folder/sums-1"):
        Path(folder).mkdir(parents=True)
        Path(folder, "recipe.yaml").write_text("seed: 1\n")
    code, out, err = called("evaluate", path)
    assert code == 2 and hub.requests == [] and "Traceback" not in err
    if path in PATHS[-3:]:
        near = "folder/sums-1" if path.startswith("folder") else "runs/sums-1"
        assert f"Did you mean '{near}'?" in out + err


@pytest.mark.parametrize("file", ["data/poems", "somebody/poems.jsonl", "poem/all", "./somebody/records"])
def test_records_that_look_like_a_path_are_never_sent(hub: Hub, called: Any, file: str) -> None:
    Path("poems/all").mkdir(parents=True)
    code, _, err = called("inspect", file)
    assert code == 2 and f"{file}: no such file" in err and hub.requests == []


def test_a_wrong_run_is_answered_with_the_runs(called: Any) -> None:
    for name in ("arithmetic-lora-1", "arithmetic-lora-2"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "recipe.yaml").write_text("seed: 1\n")
    code, _, err = called("chat", "runs/arithmetic-lora-3", "-q", "1")
    assert code == 2 and err.startswith(
        "glmtune chat: no run, adapter, checkpoint or recipe at runs/arithmetic-lora-3."
    )
    assert "Did you mean 'runs/arithmetic-lora-" in err


# --------------------------------------------------------------------------- what libraries do by themselves


def test_nobody_is_told_how_we_are_used(hub: Hub, called: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in network.TELEMETRY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setenv("AI_AGENT", "somebody")
    code, _, err = called("estimate", f"model.path={NAME}")
    assert code == 0, err
    assert not [request for request in hub.requests if "agent" in request or "telemetry" in request]
    assert hub.agents and not [agent for agent in hub.agents if "torch" in agent or "agent/" in agent]


def test_the_password_of_a_mirror_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://me:secret@mirror.example:8443/hub")
    assert network.host() == "mirror.example:8443"


def test_what_the_user_says_of_telemetry_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in network.TELEMETRY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    network.withhold_telemetry()
    assert "DO_NOT_TRACK" not in os.environ


POISON: dict[str, dict[str, Any]] = {
    "tokenizer_config.json": {
        "name_or_path": "mistralai/Mistral-7B",
        "auto_map": {"AutoTokenizer": ["evil/x--tokenization.Evil", None]},
    },
    "config.json": {
        "_name_or_path": "evil/base",
        "auto_map": {"AutoModelForCausalLM": "evil/x--modeling.Evil", "AutoConfig": "evil/x--configuration.Evil"},
        "attn_implementation": "evil/kernels",
        "_attn_implementation": "evil/kernels",
    },
    "generation_config.json": {"custom_generate": "evil/generate", "eos_token_id": 2},
}


@pytest.mark.parametrize("file", POISON)
@pytest.mark.parametrize("verb", ["doctor", "chat"])
def test_what_a_checkpoint_names_is_not_looked_for(
    hub: Hub, called: Any, tiny_checkpoint: Path, tmp_path: Path, file: str, verb: str
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "poisoned"))
    values = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps({**values, **POISON[file]}))
    question = ["-q", "1+1=", "generation.max_new_tokens=2"] if verb == "chat" else []
    _, out, err = called(verb, folder, *question)
    assert hub.requests == [] and "Traceback" not in err, out


def test_adapters_of_an_adapter_are_not_looked_for(
    hub: Hub, called: Any, tiny_run: Run, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """X-LoRA names other adapters, which peft fetches by their names; it wants a base without a cache."""
    base = Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**values, "use_cache": False}))
    folder = adapter_on(str(base), tiny_run, tmp_path / "adapter", noted=False)
    xlora = {"peft_type": "XLORA", "task_type": "CAUSAL_LM", "hidden_size": 32, "adapters": {"0": NAME}}
    (folder / "adapter_config.json").write_text(json.dumps({**xlora, "base_model_name_or_path": str(base)}))
    code, _, err = called("chat", folder, "-q", "1")
    assert code == 2 and "Traceback" not in err and hub.requests == [], err


def test_kernels_are_not_fetched(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes takes code for the CPU from the hub while it is imported, where it finds the package `kernels`."""
    library = tmp_path / "site" / "bitsandbytes"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("from . import ops\n")
    (library / "ops.py").write_text(
        "from huggingface_hub import snapshot_download\n"
        "try:\n    GOT = snapshot_download('kernels-community/quantization-bitsandbytes')\n"
        "except Exception as error:\n    GOT = repr(error)\n"
    )
    for name in [name for name in sys.modules if name.partition(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(library.parent)
    with network.asked_by([]):
        module = importlib.import_module("bitsandbytes")
    for name in ("bitsandbytes", "bitsandbytes.ops"):
        monkeypatch.delitem(sys.modules, name)
    assert "LocalEntryNotFoundError" in module.ops.GOT and hub.requests == []
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("README.md", "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\nSee https://huggingface.co.\n"),
        ("README.md", "---\nconfigs: [{{config_name: a, data_files: [{{split: train, path: ['{}']}}]}}]\n---\n"),
        ("README.md", "\n---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"),
        ("README.md", "---\n---a: 1\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"),
        (".huggingface.yaml", "configs: [{{config_name: default, data_files: {{train: '{}'}}}}]\n"),
        ("README.md", "---\nconfigs: [{{config_name: a, data_dir: '{}'}}]\n--- \t\n"),
    ],
)
@pytest.mark.parametrize(
    "place",
    ["http://127.0.0.1:9/x.jsonl", "s3://bucket/x.jsonl", "file:///etc/passwd", "/etc/x.txt", "a/../../b/x.jsonl"],
)
def test_a_data_set_sends_nobody_elsewhere(
    hub: Hub, called: Any, monkeypatch: pytest.MonkeyPatch, file: str, text: str, place: str
) -> None:
    pytest.importorskip("datasets", reason="data sets of the hub need datasets")
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.endpoint)
    (hub.datasets["somebody/records"] / file).write_text(text.format(place))
    code, _, err = called("inspect", "somebody/records")
    assert code == 2 and f"somebody/records: {file} names a file of another place, {place}." in err
    assert "named by you" in err


def test_a_day_without_the_network(hub: Hub, called: Any, tiny_settings: list[str]) -> None:
    """Every verb that works on what is here asks nobody."""
    write("".join(json.dumps(record) + "\n" for record in RECORDS), "own.jsonl")
    few = GENERAL_QUESTIONS.read_text(encoding="utf-8").splitlines(keepends=True)[::40]
    write("".join(few), "few.jsonl")
    run = "runs/own"
    forgetting = ["evaluation.forgetting=true", "evaluation.general_file=few.jsonl"]
    for words in (
        ["train", *tiny_settings, f"training.output_dir={run}", *forgetting],
        ["evaluate", run, "--data", "own.jsonl"],
        ["predict", run, "--input", "own.jsonl", "--output", "answers.jsonl"],
        ["chat", run, "-q", "1+1="],
        ["export", run],
        ["doctor", run],
        ["estimate", run],
        ["inspect", "own.jsonl"],
        ["data", "arithmetic", "--n", "3", "--output", "drawn.jsonl"],
        ["ls"],
        ["train", "--resume", run],
    ):
        code, out, err = called(*words)
        assert code == 0, out + err
        assert hub.requests == [], words


def test_the_network_stays_closed_until_the_last_thread_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    first, second = network.closed(), network.closed()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert constants.HF_HUB_OFFLINE
    second.__exit__(None, None, None)
    assert not constants.HF_HUB_OFFLINE
