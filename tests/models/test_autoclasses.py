"""What `import glmtune` does, seen from fresh interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import glmtune

TOKENIZER = Path(__file__).parents[1] / "golden" / "tokenizer" / "toy.model"

KNOWS_CHATGLM = f"""
import pathlib, shutil, tempfile
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

config = AutoConfig.for_model("chatglm", hidden_size=16, num_layers=1, num_attention_heads=2, vocab_size=512,
    inner_hidden_size=32, bos_token_id=172, eos_token_id=173, mask_token_id=168, gmask_token_id=169, pad_token_id=3)
with tempfile.TemporaryDirectory() as folder:
    config.save_pretrained(folder)
    shutil.copy({str(TOKENIZER)!r}, pathlib.Path(folder, "ice_text.model"))
    found = [
        AutoConfig.from_pretrained(folder),
        AutoModelForCausalLM.from_config(config),
        AutoTokenizer.from_pretrained(folder),
    ]
classes = [type(one) for one in found]
assert [one.__name__ for one in classes] == ["ChatGLMConfig", "ChatGLMForCausalLM", "ChatGLMTokenizer"], classes
assert all(one.__module__.startswith("glmtune.models.chatglm.") for one in classes), classes
"""

CHEAP = """
import sys
import glmtune
import glmtune.cli

heavy = {"torch", "transformers", "peft", "accelerate", "numpy", "pydantic", "yaml", "rich", "matplotlib"}
assert glmtune.__version__ and not hasattr(glmtune, "nonsense")
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""

# One interpreter that has the libraries, and a fork of it for each module, which is the first one to be imported there.
ALONE = """
import importlib, os, sys
import peft
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TextIteratorStreamer, Trainer

for name in {names}:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(f"{{name}}: {{error!r}}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    failed = os.waitpid(child, 0)[1]
    assert not failed, name
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)


def modules() -> list[str]:
    root = Path(glmtune.__file__).parents[1]
    files = (path.relative_to(root).with_suffix("") for path in sorted(root.glob("glmtune/**/*.py")))
    return [".".join(file.parts).removesuffix(".__init__") for file in files if file.name != "__main__"]


def test_import_is_cheap() -> None:
    done = python(CHEAP)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "imports",
    ["import glmtune", "from transformers import AutoModelForCausalLM, AutoTokenizer\nimport glmtune"],
    ids=["glmtune first", "transformers first"],
)
def test_auto_classes_know_chatglm(imports: str) -> None:
    done = python(f"{imports}\n{KNOWS_CHATGLM}")
    assert done.returncode == 0, done.stderr


def test_every_module_imports() -> None:
    """Last first, so that none waits for what another has done: there are no circles (tests/test_floors.py)."""
    assert len(modules()) > 30
    done = python(f"import importlib\nfor name in {modules()[::-1]}:\n    importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_module_imports_alone() -> None:
    assert len(modules()) > 30
    done = python(ALONE.format(names=modules()))
    assert done.returncode == 0, done.stderr


def test_public_names() -> None:
    for name in glmtune.__all__:
        assert callable(getattr(glmtune, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        glmtune.nonsense  # noqa: B018
