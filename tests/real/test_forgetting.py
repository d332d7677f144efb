"""A planted loss is called one, and a harmless run is not: SmolLM2 on sums, at the default rate and at ten times it."""

from pathlib import Path
from typing import Any

import pytest

from glmtune.commands import train
from glmtune.evaluation.decision import decide
from glmtune.methods.lora import Lora, LoraSettings
from glmtune.models import loading

SETTINGS = [
    *("model.dtype=float32", "task.operators=+-", "task.kinds=[integer]", "evaluation.forgetting=true"),
    *("training.steps=30", "training.batch_size=8", "training.eval_steps=30"),
    *("evaluation.num_examples=32", "evaluation.num_examples_during=4", "generation.batch_size=20"),
]


@pytest.mark.parametrize(("times", "level"), [(1, "kept"), (10, "forgot")])
def test_the_verdict_is_true(real_model: Path, tmp_path: Path, times: int, level: str) -> None:
    rate = times * Lora(LoraSettings()).learning_rate(loading.load_config(str(real_model)).hidden_size)
    where = [f"model.path={real_model}", f"training.output_dir={tmp_path / 'run'}", f"training.learning_rate={rate}"]
    report: dict[str, Any] = train.run(None, [*where, *SETTINGS]).report
    which, _, said = decide(report)
    assert report["forgetting"]["level"] == level, said
    assert (which == "discard") == ("For instance: " in said) == (level == "forgot")
