"""The embedded model: small, whole, made as its card says, and with something left to learn."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from pathlib import Path

import pytest
from safetensors import safe_open

import glmtune
from glmtune.config import GenerationSettings, load_recipe
from glmtune.data import DrawnExamples
from glmtune.evaluation.evaluator import evaluate
from glmtune.models.loading import EMBEDDED
from glmtune.tasks.arithmetic import Arithmetic, ArithmeticSettings
from glmtune.tasks.wording import Wording

NANO = EMBEDDED["nano"]
SETTINGS = GenerationSettings(max_new_tokens=40)


def test_at_most_12_megabytes() -> None:
    assert sum(file.stat().st_size for file in NANO.iterdir() if file.is_file()) <= 12_000_000


def test_it_is_a_chatglm_in_safetensors_with_original_names() -> None:
    assert json.loads((NANO / "config.json").read_text())["model_type"] == "chatglm"
    with safe_open(NANO / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
    assert {"transformer.word_embeddings.weight", "transformer.layers.0.attention.query_key_value.weight"} <= names


def test_the_card_names_recipe_seed_and_time() -> None:
    card = (NANO / "README.md").read_text(encoding="utf-8")
    recipe = load_recipe(Path(__file__).parents[2] / "recipes/nano_4.yaml")
    assert "recipes/nano.yaml" in card and "nano_4.yaml" in card and "hours on one core" in card
    assert f"| seed | {recipe.seed} (last stage) |" in card
    assert f"{recipe.training.steps:,} steps of {recipe.training.batch_size} (muon)" in card


def test_digits_are_single_tokens_and_prompt_words_are_known() -> None:
    tokenizer = glmtune.load("nano")[1]
    assert tokenizer.tokenize("57.84+13.64=") == ["▁", *"57.84+13.64="]
    for word in ("问", "答", "计算", "口算", "数学题"):
        assert not any(token.startswith("<0x") for token in tokenizer.tokenize(word))


def test_it_knows_sums_in_words_and_no_symbols() -> None:
    """What it was taught it can do on held-out problems; the task's own form much less, before fine-tuning."""
    model, tokenizer = glmtune.load("nano")
    sums = ArithmeticSettings(name="", operators={"+": 1, "-": 1}, kinds=["integer"])
    said = evaluate(model, tokenizer, Wording(sums), DrawnExamples(Wording(sums), 60, 0, "held_out"), SETTINGS, False)
    share = sum(score.correct for score in said.scores) / 60
    assert share > 0.95
    asked = DrawnExamples(Arithmetic(sums), 60, 0, "held_out")
    written = evaluate(model, tokenizer, Arithmetic(sums), asked, SETTINGS, False)
    assert sum(score.correct for score in written.scores) / 60 < 0.7


@pytest.mark.slow
def test_the_demo_learns_sums_and_differences(tmp_path: Path) -> None:
    """What `make demo` trains, then problems that the project did not make."""
    run = glmtune.train(str(Path(__file__).parents[2] / "recipes/demo.yaml"), [f"training.output_dir={tmp_path}/run"])
    before, after = run.report["before"]["by"]["operator"], run.report["after"]["by"]["operator"]
    for operator in "+-":
        assert before[operator]["accuracy"] < 0.1
        assert after[operator]["accuracy"] >= 0.9
    rng, file = random.Random(3), tmp_path / "foreign.jsonl"
    with file.open("w") as stream:
        for _ in range(300):
            left, right = (Decimal(rng.randint(0, 10_000)).scaleb(-2) for _ in range(2))
            stream.write(json.dumps({"prompt": f"{left}+{right}=", "target": str(left + right)}) + "\n")
    _, report = glmtune.evaluate(str(run.folder.path), data=str(file))
    assert report["accuracy"] >= 0.85
