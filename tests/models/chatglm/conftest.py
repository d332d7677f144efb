"""What the ChatGLM-6B tests share: a tiny checkpoint, and what the original code computed with it."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from glmtune.models.chatglm.modeling_chatglm import ChatGLMForCausalLM

GOLDEN = Path(__file__).parents[2] / "golden"

Cases = dict[str, dict[str, Tensor]]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The models are too small to gain from more."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def glm1_dir() -> Path:
    """A tiny ChatGLM-6B checkpoint, and `.npz` files of the original code's results (fp32, eval mode)."""
    return GOLDEN / "glm1"


@pytest.fixture(scope="session")
def glm1(glm1_dir: Path) -> dict[str, Cases]:
    """Original results: `glm1[file][case][array]`."""
    files = {}
    for path in sorted(glm1_dir.glob("*.npz")):
        cases: Cases = defaultdict(dict)
        with np.load(path) as arrays:
            for name in arrays:
                case, _, key = name.partition(".")
                cases[case][key] = torch.from_numpy(np.asarray(arrays[name]))
        files[path.stem] = cases
    return files


@pytest.fixture(scope="session")
def load_glm1(glm1_dir: Path) -> Callable[..., ChatGLMForCausalLM]:
    """Load the tiny checkpoint, or the one in `path`; keywords as for `from_pretrained`."""

    def load(path: Path = glm1_dir, **kwargs: Any) -> ChatGLMForCausalLM:
        return AutoModelForCausalLM.from_pretrained(path, **{"dtype": torch.float32, **kwargs})

    return load


@pytest.fixture
def attention() -> str:
    """The attention implementation, where `@pytest.mark.parametrize("attention", ...)` does not say."""
    return "sdpa"


@pytest.fixture(scope="session")
def loaded_models(load_glm1: Callable[..., ChatGLMForCausalLM]) -> dict[str, ChatGLMForCausalLM]:
    return {name: load_glm1(attn_implementation=name) for name in ("sdpa", "eager")}


@pytest.fixture
def model(loaded_models: dict[str, ChatGLMForCausalLM], attention: str) -> ChatGLMForCausalLM:
    """The tiny checkpoint in eval mode, without gradients. No test may change it."""
    loaded_models[attention].zero_grad()
    return loaded_models[attention]


@pytest.fixture
def batch(glm1: dict[str, Cases]) -> dict[str, Tensor]:
    """Three prompts with answers, of 18, 8 and 14 tokens, padded on the left; the last one has `[MASK]`."""
    case = glm1["forward"]["leftpad_batch"]
    return {"input_ids": case["input_ids"], "attention_mask": case["valid"].long()}


@pytest.fixture
def prefixed(load_glm1: Callable[..., ChatGLMForCausalLM], attention: str) -> Any:
    """The tiny checkpoint under a random peft prefix of 5 columns, in eval mode."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    return peft.get_peft_model(load_glm1(attn_implementation=attention), config).eval()


@pytest.fixture
def library_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """`caplog` that also hears transformers."""
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()
