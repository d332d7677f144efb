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
    *("training.steps=40", "training.batch_size=8", "training.eval_steps=40"),
    *("evaluation.num_examples=40", "evaluation.num_examples_during=8", "generation.batch_size=20"),
]


@pytest.mark.parametrize(("times", "level", "choice"), [(1, "kept", "keep"), (10, "forgot", "discard")])
def test_the_verdict_is_true(real_model: Path, tmp_path: Path, times: int, level: str, choice: str) -> None:
    rate = times * Lora(LoraSettings()).learning_rate(loading.load_config(str(real_model)).hidden_size)
    where = [f"model.path={real_model}", f"training.output_dir={tmp_path / 'run'}", f"training.learning_rate={rate}"]
    report: dict[str, Any] = train.run(None, [*where, *SETTINGS]).report
    assert (report["forgetting"]["level"], decide(report)[0]) == (level, choice), decide(report)
    assert ("For instance: " in decide(report)[2]) == (level == "forgot")
