"""A planted loss is called one: SmolLM2 on sums, at ten times the default rate, and for comparison at that."""

from pathlib import Path
from typing import Any

import pytest

from glmtune.commands import train
from glmtune.evaluation.decision import decide
from glmtune.evaluation.general import GENERAL
from glmtune.methods.lora import Lora, LoraSettings
from glmtune.models import loading

SETTINGS = [
    *("model.dtype=float32", "task.operators=+-", "task.kinds=[integer]", "evaluation.forgetting=true"),
    *("training.steps=20", "training.batch_size=8", "training.eval_steps=20"),
    *("evaluation.num_examples=16", "evaluation.num_examples_during=2", "generation.batch_size=20"),
]


@pytest.mark.parametrize(("times", "levels"), [(1, {"kept", "unknown"}), (10, {"forgot"})])
def test_the_verdict_is_true(real_model: Path, tmp_path: Path, times: int, levels: set[str]) -> None:
    rate = times * Lora(LoraSettings()).learning_rate(loading.load_config(str(real_model)).hidden_size)
    where = [f"model.path={real_model}", f"training.output_dir={tmp_path / 'run'}", f"training.learning_rate={rate}"]
    lines = GENERAL.read_text(encoding="utf-8").splitlines()
    english = tmp_path / "english.jsonl"  # it knows no Chinese
    english.write_text("\n".join(line for line in lines if '"English"' in line), encoding="utf-8")
    where.append(f"evaluation.general_file={english}")
    report: dict[str, Any] = train.run(None, [*where, *SETTINGS]).report
    which, _, said = decide(report)
    assert report["forgetting"]["level"] in levels, said
    assert (which == "discard") == ("For instance: " in said) == (levels == {"forgot"})
