"""Every command and Python example of the README and the docs is run, in a scratch folder, with small stand-ins."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from glmtune import cli
from glmtune.execution import Run
from glmtune.models import loading
from glmtune.scoring import Score

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECORDS = [{"prompt": f"{number}+{number}=", "target": str(2 * number)} for number in range(40)]
# What a training of a second needs; a command's own settings stay but for its steps.
STEPS = "training.steps"
SMALL = {
    STEPS: "2",
    "training.batch_size": "2",
    "training.logging_steps": "1",
    "evaluation.num_examples": "4",
    "evaluation.num_examples_during": "2",
    "data.max_length": "160",
}
SLOW = {
    "--to gguf",
    ".gguf",
    "--to original",
    "ptuning_v2",
    "forgetting",
    "mixture",
    "bits=4",
    "--ray",
}  # parts of commands of many seconds


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(page, text) of each block of a language."""
    for page in PAGES:
        for text in re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL):
            yield page.name, text


def commands() -> list[Any]:
    """Each command once, with the page that it stands on first."""
    lines = {
        shlex.join(shlex.split(line, comments=True)): page
        for page, text in reversed([*blocks("bash")])
        for line in reversed(text.splitlines())
        if line.startswith("glmtune ")
    }
    return [
        pytest.param(line, id=f"{page}: {line}", marks=pytest.mark.slow if any(part in line for part in SLOW) else ())
        for line, page in reversed(lines.items())
    ]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ChatGLM-6B of some 30,000 weights that takes 512 tokens, in the place of the real one."""
    folder = tmp_path_factory.mktemp("models") / "chatglm-6b"
    sizes = {"hidden_size": 64, "num_layers": 2, "num_attention_heads": 2, "inner_hidden_size": 64}
    config = AutoConfig.from_pretrained(loading.EMBEDDED["nano"], **sizes, max_sequence_length=512)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(loading.EMBEDDED["nano"]).save_pretrained(folder)
    return folder


@pytest.fixture
def scratch(tmp_path: Path, tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs and files that the pages name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # for `chat` without a question
    for name in ("arithmetic-lora-1", "instructions-lora-1", "mine"):
        shutil.copytree(tiny_run.path, tmp_path / "runs" / name)
    for name in ("my", "test", "prompts", "problems", "general"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    pairs = [{"prompt": r["prompt"], "chosen": r["target"], "rejected": "0"} for r in RECORDS[1:]]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    Path("my.json").write_text(json.dumps(RECORDS))
    Path("new.csv").write_text("prompt\n1+1=\n")
    task = next(text for page, text in blocks("python") if "class Doubling" in text)
    Path("doubling.py").write_text(task)
    Path("checkpoints").symlink_to(ROOT / "checkpoints")
    values = yaml.safe_load(tiny_run.folder.recipe.read_text("utf-8"))
    values["training"] |= {"output_dir": None, "steps": 2}
    Path("RECIPE.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


@pytest.fixture
def llama(scratch: Path) -> None:
    """The folder `llama` is a Llama, which llama.cpp knows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the merge of a few letters, the merge"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained("llama")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=tokenizer.get_vocab_size(), bos_token_id=0, eos_token_id=1, **sizes)
    ).save_pretrained("llama")


@pytest.fixture
def llama_run(llama: None) -> None:
    """`runs/mine` is a run on it."""
    shutil.rmtree("runs/mine")
    settings = {**SMALL, "model.path": "llama", "training.output_dir": "runs/mine", "data.template": "plain"}
    run_command(["train", *(f"{name}={value}" for name, value in settings.items())])


@pytest.fixture
def gguf_file(llama: None) -> None:
    """The same in a file, in the place of a real one."""
    from glmtune.exports.gguf.file import write_gguf

    write_gguf(Path("llama"), Path("smollm2.Q4_1.gguf"))


def run_command(arguments: list[str]) -> int:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return int(end.value.code or 0)


def stand_in(command: str, model: Path) -> list[str]:
    """The arguments of a command, with a small model in the place of a real one and a training of two steps."""
    verb, *words = shlex.split(command)[1:]
    words = [word.replace("/models/chatglm-6b", str(model)).replace("/models/smollm2", "smollm2") for word in words]
    if verb == "train" and "--resume" not in words:
        given = {word.partition("=")[0] for word in words}
        names_its_model = "RECIPE.yaml" in words or "=" not in "".join(words[:1] or "=")
        defaults = SMALL if names_its_model else {**SMALL, "model.path": str(model)}
        if "objective.name=grpo" in words:  # a step of two answers; nothing of what so small a model says is right
            defaults = {**defaults, "objective.num_generations": "2", "objective.force": "true"}
        words += [f"{name}={value}" for name, value in defaults.items() if name == STEPS or name not in given]
    elif verb == "train":  # a run of twelve steps goes on
        words = [f"{STEPS}=14" if word.startswith(f"{STEPS}=") else word for word in words]
    return [verb, *words]


@pytest.mark.parametrize("command", commands())
def test_every_command_runs(command: str, scratch: Path, model: Path, request: pytest.FixtureRequest) -> None:
    if "--to gguf" in command:
        request.getfixturevalue("llama_run")
    if ".gguf" in command:
        request.getfixturevalue("gguf_file")
    if "--ray" in command:
        pytest.importorskip("ray")
    if "objective.name=rejection" in command:  # the stand-in answers nothing rightly
        request.getfixturevalue("monkeypatch").setattr("glmtune.objectives._rounds.Rounds.is_right", lambda *_: True)
    if command.startswith("glmtune serve"):  # it would go on for ever
        request.getfixturevalue("monkeypatch").setattr("glmtune.serving.serving.serve", lambda *_: 0)
    if command.startswith("glmtune pairs"):  # the small model is never right
        verdict = {True: Score("exact"), False: Score("wrong")}
        score = "glmtune.tasks.arithmetic.Arithmetic.score"
        request.getfixturevalue("monkeypatch").setattr(score, lambda task, one, text, calls=(): verdict[text < "5"])
    assert run_command(stand_in(command, model)) == 0


@pytest.mark.parametrize(("page", "text"), blocks("python"), ids=lambda value: str(value).splitlines()[0][:20])
def test_every_python_example_runs(page: str, text: str, scratch: Path, model: Path) -> None:
    text = text.replace("/models/chatglm-6b", str(scratch / "base")).replace(", bits=4", "")
    text = text.replace('"training.steps": 500', f"**{ {**SMALL, 'model.path': str(model)} }")
    recipe = yaml.safe_load((scratch / "runs/mine/recipe.yaml").read_text("utf-8"))
    (scratch / "base").symlink_to(recipe["model"]["path"])
    exec(compile(text, page, "exec"), {"__name__": "example"})


def test_every_verb_is_shown() -> None:
    for page in ("README.md", "README.zh.md"):
        shown = {
            text.split()[1]
            for name, block in blocks("bash")
            if name == page
            for text in block.splitlines()
            if text.startswith("glmtune ")
        }
        assert shown == set(cli.verbs())
