"""What models know before any training, and whether a loss that was planted is called one.

The base models are nano and SmolLM2-135M-Instruct: `--model`, or what `make demo-real` has installed. SmolLM2 learns
sums and differences with LoRA, once at the default rate and once at a rate ten times as high; before and after, it
answers the general questions in English, as it knows no Chinese. Runs that lie in `--folder` already are read instead
of trained.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from real_model import real_model
from recording import options, record

from glmtune.commands import train
from glmtune.config import GenerationSettings, ModelSettings, read_report
from glmtune.evaluation.decision import decide
from glmtune.evaluation.forgetting import probe
from glmtune.evaluation.general import GENERAL, read_general
from glmtune.methods.lora import Lora, LoraSettings
from glmtune.models import loading
from glmtune.runtime import RunFolder

SETTINGS = [
    *("model.dtype=float32", "task.operators=+-", "task.kinds=[integer]", "evaluation.forgetting=true"),
    *("evaluation.num_examples=16", "evaluation.num_examples_during=2", "generation.batch_size=20"),
]


def baseline(name: str, path: str) -> dict[str, Any]:
    """What a model knows before any training."""
    model, tokenizer = loading.load_model(ModelSettings(path=path, dtype="float32"))
    report = probe(model, tokenizer, read_general(), GenerationSettings(batch_size=20)).report()
    return {"model": name, **figures(report)}


def english(folder: Path) -> Path:
    """Write the built-in questions in English to a file of the folder."""
    file = folder / "english.jsonl"
    lines = GENERAL.read_text(encoding="utf-8").splitlines()
    chosen = [line for line in lines if json.loads(line)["facts"]["language"] == "English"]
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(chosen), encoding="utf-8")
    return file


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """Right answers of each part."""
    return {name: [round(part["accuracy"] * part["n"]), part["n"]] for name, part in report["parts"].items()}


def run(name: str, path: str, rate: float, steps: int, folder: Path) -> dict[str, Any]:
    """Train at a rate, and return what the report says; a run that is there is read."""
    place = folder / name
    if not (place / "report.json").is_file():
        length = [f"training.steps={steps}", f"training.eval_steps={steps}", "training.batch_size=8"]
        where = [f"model.path={path}", f"training.output_dir={place}", f"training.learning_rate={rate}"]
        train.run(None, [*where, *length, *SETTINGS, f"evaluation.general_file={english(folder)}"])
    report = read_report(RunFolder(place))
    which, words, rest = decide(report)
    forgetting = report["forgetting"]
    return {
        "run": name,
        "learning_rate": rate,
        "accuracy": [report["before"]["accuracy"], report["after"]["accuracy"]],
        "before": figures(forgetting["before"]),
        "after": figures(forgetting["after"]),
        "level": forgetting["level"],
        "decision": which,
        "headline": f"{words}: {rest}",
        "lost": forgetting["lost"],
    }


def main() -> None:
    """All of it."""
    chosen = options(__doc__, model="", folder="", steps=20, only="")
    model = chosen.model or str(real_model())
    rate = Lora(LoraSettings()).learning_rate(loading.load_config(model).hidden_size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(chosen.folder or temporary)
        asked = {"default rate": rate, "ten times that": 10 * rate}
        runs = [run(name, model, asked[name], chosen.steps, folder) for name in asked if chosen.only in ("", name)]
        if chosen.only:
            return
    baselines = [baseline("nano", "nano"), baseline("SmolLM2-135M-Instruct", model)]
    record("forgetting", {"steps": chosen.steps, "batch_size": 8, "settings": SETTINGS}, baselines, runs=runs)


if __name__ == "__main__":
    main()
