"""A family is one folder: its facts, who finds them, and a new one that is added in a copy of the package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import glmtune
from glmtune.models.families import Family, all_families, family_of, own_modules

PACKAGE = Path(glmtune.__file__).parent
MODELS = PACKAGE / "models"

FAMILY = """
from glmtune.models.families import Family
from glmtune.models.architecture import gated_sizes

PAPRIKA = Family(model_types=("paprika",), sizes=gated_sizes, own_classes=True, prefix_takes_positions=False)
"""
CONFIGURATION = """
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig


@strict
class PaprikaConfig(PreTrainedConfig):
    model_type = "paprika"
    vocab_size: int = 64
    hidden_size: int = 16
    intermediate_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    max_position_embeddings: int = 64

    def __post_init__(self, **kwargs):
        from glmtune.models.paprika import modeling_paprika

        super().__post_init__(**kwargs)


AutoConfig.register("paprika", PaprikaConfig)
"""
MODELING = '''
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from glmtune.models.paprika.configuration_paprika import PaprikaConfig


class PaprikaForCausalLM(LlamaForCausalLM):
    """A llama by another name."""

    config_class = PaprikaConfig

    def __init__(self, config):
        super().__init__(LlamaConfig(**config.to_dict()))
        self.config = config


AutoModelForCausalLM.register(PaprikaConfig, PaprikaForCausalLM)
'''
USE = """
import sys
import glmtune
from glmtune.models.families import family_of
from glmtune.models.architecture import Architecture

folder, run = sys.argv[1:]
assert "torch" not in sys.modules
family = family_of({"model_type": "paprika"})
assert family.own_classes and not family.prefix_takes_positions

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

config = AutoConfig.for_model("paprika")
model = AutoModelForCausalLM.from_config(config)
assert type(model).__module__ == "glmtune.models.paprika.modeling_paprika", type(model)
model.save_pretrained(folder)
words = ["<unk>", "</s>", *"0123456789+-*/=. "]
core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
assert Architecture.from_config(model.config.to_dict()).parameters == model.num_parameters()

from glmtune.commands import train

settings = ["task.operators=+", "task.kinds=[integer]", "task.maximum=5", "task.style=direct", "task.echo=false"]
settings += ["training.steps=2", "training.batch_size=4", "evaluation.num_examples=2", "method.rank=2"]
settings += ["evaluation.num_examples_during=1", "generation.max_new_tokens=4", "task.held_out=0.3"]
train.run(overrides=[*settings, f"model.path={folder}", f"training.output_dir={run}"])
model, tokenizer = glmtune.load(run)
assert type(model.get_base_model()).__name__ == "PaprikaForCausalLM"
"""


def test_folders_are_the_registry() -> None:
    folders = {file.parent.name for file in MODELS.glob("*/family.py")}
    assert {"chatglm", "glm", "transformers"} <= folders
    assert all(isinstance(family, Family) for family in all_families())
    types = [(name, bool(family.keys)) for family in all_families() for name in family.model_types]
    assert len(types) == len(set(types))


def test_a_folder_has_the_fixed_files() -> None:
    for folder in {file.parent for file in MODELS.glob("*/family.py")}:
        others = {file.name for file in folder.glob("*.py")} - {"__init__.py", "family.py", "llama_cpp.py"}
        assert all(
            re.fullmatch(rf"(configuration|modeling|tokenization|layout)_{folder.name}\.py", name) for name in others
        )


@pytest.mark.parametrize(
    ("values", "releases"),
    [
        ({"model_type": "chatglm"}, "ChatGLM-6B"),
        ({"model_type": "chatglm", "multi_query_attention": True}, "ChatGLM2-6B, ChatGLM3-6B, GLM-4-9B"),
        ({"model_type": "glm"}, ""),
        ({"model_type": "some other"}, ""),
        ({}, ""),
    ],
)
def test_config_json_tells_the_family(values: dict[str, object], releases: str) -> None:
    assert ", ".join(family_of(values).releases) == releases


def test_who_registers() -> None:
    assert own_modules("configuration_*.py") == ["glmtune.models.chatglm.configuration_chatglm"]
    assert own_modules("tokenization_*.py") == ["glmtune.models.chatglm.tokenization_chatglm"]


def test_a_family_imports_no_other_but_chatglm_the_later_generations() -> None:
    """Which say `model_type: chatglm`, so that its classes are asked for theirs."""
    for folder in {file.parent for file in MODELS.glob("*/family.py")}:
        text = "".join(file.read_text("utf-8") for file in folder.glob("*.py"))
        found = set(re.findall(r"glmtune\.models\.(chatglm|glm|transformers)\b", text)) - {folder.name}
        assert found == ({"glm"} if folder.name == "chatglm" else set())


def test_facts_need_no_torch() -> None:
    code = "import sys\nfrom glmtune.models.families import all_families\nall_families()\n"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_no_family_is_named_elsewhere() -> None:
    """Names of families stand in their folders; elsewhere in texts for people alone."""
    names = {name for family in all_families() for name in family.model_types}
    places = [file for file in PACKAGE.rglob("*.py") if not (file.parent / "family.py").is_file()]
    # llama.cpp's names of tokenizers look alike
    tokenizers = {*PACKAGE.glob("*/gguf/*tokenizer*.py")}
    for file in set(places) - tokenizers:
        named = set(re.findall(r"""["'](\w+)["']""", file.read_text("utf-8"))) & names
        assert not named, f"{file}: {named}"


@pytest.mark.slow
def test_a_new_family_is_one_folder(tmp_path: Path) -> None:
    """Added to a copy of the package, it is known to the Auto classes, counted, trained and loaded again."""
    shutil.copytree(PACKAGE, tmp_path / "glmtune", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "glmtune/models/paprika"
    folder.mkdir()
    files = {"__init__": "", "family": FAMILY, "configuration_paprika": CONFIGURATION, "modeling_paprika": MODELING}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path / "checkpoint"), str(tmp_path / "run")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
