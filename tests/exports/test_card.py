"""The model card: what the hub reads, what is true of the export and nothing else, code that runs."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import yaml

from glmtune.exports.card import LIMITS, OTHERWISE, write_card

RECORD = {
    "base": "THUDM/chatglm2-6b",
    "base_fingerprint": "0123456789abcdef",
    "adapter_fingerprint": "fedcba9876543210",
    "method": "lora",
    "precision": "float16",
    "verification": {"problems": 20, "equal_answers": 20, "logits_difference": 3.21e-06, "dtype": "float16"},
    "versions": {"glmtune": "9.8.7"},
}
REPORT = {
    "before": {"n": 500, "accuracy": 0.125, "accuracy_ci95": [0.1, 0.15]},
    "after": {"n": 500, "accuracy": 0.986, "accuracy_ci95": [0.97, 0.995]},
}
RECIPE = "method:\n  name: lora\n  rank: 4\n"


def card(record: dict[str, Any] | None = None, **changes: Any) -> str:
    arguments = {
        "title": "run-1",
        "place": "merged",
        "layout": "merged",
        "family": "glm",
        "recipe": RECIPE,
        "task": "arithmetic",
        "data": "Drawn without end.",
        "prompt": "1+1=",
        "report": REPORT,
    }
    return write_card(record=RECORD | (record or {}), **(arguments | changes))


def head(text: str) -> dict[str, Any]:
    """The metadata that the hub reads."""
    return yaml.safe_load(text.split("---\n")[1])


def sections(text: str) -> list[str]:
    return re.findall(r"^## (.+)$", text, re.MULTILINE)


def code(text: str) -> str:
    return text.split("```python\n")[1].split("```")[0]


def test_metadata() -> None:
    assert head(card()) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "THUDM/chatglm2-6b",
        "tags": ["glmtune"],
    }
    assert "base_model" not in head(card({"base": "chatglm3"}))  # on somebody's disk
    assert head(card(layout="gguf"))["library_name"] == "gguf"
    assert "base_model" not in head(card({"base": "nano"}))


def test_what_it_says() -> None:
    text = card()
    assert text.startswith("---\n") and "\n# run-1\n" in text and text.endswith("```\n")
    assert sections(text) == ["Use", "Scores", "Verified", "Data", "Limits", "Recipe"]
    assert "glmtune 9.8.7 from the base `THUDM/chatglm2-6b` (fingerprint `0123456789abcdef`)" in text
    assert "an adapter trained with lora (fingerprint `fedcba9876543210`)" in text
    assert "| before training | 500 | 12.5% | 10.0% to 15.0% |" in text
    assert "| after training | 500 | 98.6% | 97.0% to 99.5% |" in text
    assert "to 20 of 20 held-out problems; the logits differ by 3.2e-06 of their size (files in float16)" in text
    assert "Task `arithmetic`" in text and LIMITS["arithmetic"] in text
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == yaml.safe_load(RECIPE)


def test_the_figure_of_texts() -> None:
    """An objective that asks nothing has a figure of its own, without an interval."""
    figures = {time: {"bits_per_character": bits, "n": 8} for time, bits in (("before", 2.5), ("after", 1.25))}
    text = card(report={"metric": "bits_per_character", **figures})
    assert "| held-out | examples | bits per character |" in text
    assert "| before training | 8 | 2.5000 |" in text and "| after training | 8 | 1.2500 |" in text


def test_what_is_not_known_is_not_said() -> None:
    """A checkpoint without a run has no scores, no data, no recipe; a whole model no adapter."""
    text = card({"adapter_fingerprint": None, "method": None}, recipe="", report=None)
    assert sections(text) == ["Use", "Verified", "Limits"]
    assert "adapter" not in text and "None" not in text
    assert OTHERWISE in text and LIMITS["arithmetic"] not in text
    assert "trained with peft" in card({"method": None})
    assert OTHERWISE in card(task="instructions") and LIMITS["arithmetic"] not in card(task="instructions")


@pytest.mark.parametrize("prompt", ["1+1=", 'say "hi"', "it's\n{x} {{y}}", "\\n ``` 你好"])
@pytest.mark.parametrize(("layout", "family"), [("merged", "glm"), ("merged", "chatglm"), ("original", "chatglm")])
def test_its_code_is_python(layout: str, family: str, prompt: str) -> None:
    """With the prompt as it was written, and glmtune only where transformers alone does not know the family."""
    text = card(layout=layout, family=family, prompt=prompt, place="it's")
    tree = ast.parse(code(text) if "```" not in prompt else text.split("```python\n")[1].rsplit("```\n\n## Scores")[0])
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert "it's" in constants and (prompt in constants) == (layout == "merged")
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == ({"glmtune"} if family == "chatglm" else set())
