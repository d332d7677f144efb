"""`evaluate`: the figures agree with a count by hand, on held-out examples and on anybody's file."""

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gguf_tokenizers
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from glmtune.commands import evaluate
from glmtune.execution import Run
from glmtune.exports.gguf.file import write_gguf
from glmtune.intervals import wilson_interval
from glmtune.models import loading
from glmtune.resolution import resolve
from glmtune.runtime import UserError

SUMS = [(a, b) for a in range(6) for b in range(6)]


def test_held_out_examples_are_those_of_the_run(tiny_run: Run) -> None:
    evaluation, report = evaluate.run(str(tiny_run.folder.path))
    assert evaluation.examples == tiny_run.after.examples
    assert evaluation.completions == tiny_run.after.completions
    assert report["data"] == "held-out examples of task 'arithmetic'"
    assert report["model"] == str(tiny_run.folder.path)
    assert {**tiny_run.report["after"], **report} == report


@pytest.mark.parametrize(("settings", "expected"), [([], 4), (["model.bits=16"], 16)])
def test_a_bare_adapter_is_put_on_a_base_as_it_was_trained_on(
    train_tiny: Any, tmp_path: Path, settings: list[str], expected: int
) -> None:
    pytest.importorskip("bitsandbytes")
    adapter = train_tiny(tmp_path / "run", "model.bits=4").folder.adapter
    model, _ = resolve(adapter, settings).load()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert any(not layer.weight.is_floating_point() for layer in layers) == (expected == 4)


def test_overrides_count(tiny_run: Run) -> None:
    _, report = evaluate.run(str(tiny_run.folder.path), overrides=["evaluation.num_examples=3", "task.operators=-"])
    assert report["n"] == 3 and list(report["by"]["operator"]) == ["-"]


def test_it_agrees_with_a_count_by_hand(tiny_run: Run, write_records: Any, tmp_path: Path) -> None:
    """A foreign file with nothing but prompts and targets, half of which are what the model happens to say."""
    run = str(tiny_run.folder.path)
    questions = write_records(*({"prompt": f"{a}+{b}=", "target": str(a + b)} for a, b in SUMS), name="questions.jsonl")
    said = evaluate.run(run, str(questions))[0].completions
    assert any(text.strip() for text in said)
    records = [
        {"prompt": f"{a}+{b}=", "target": text if index % 2 and text.strip() else str(a + b)}
        for index, ((a, b), text) in enumerate(zip(SUMS, said, strict=True))
    ]
    file, output = write_records(*records), tmp_path / "deep/er/report.json"
    settings = ["task={name: instructions, file: unused}"]  # compares texts
    evaluation, report = evaluate.run(run, str(file), str(output), settings)
    right = [
        text.lower().split() == record["target"].lower().split() for text, record in zip(said, records, strict=True)
    ]
    assert 0 < sum(right) < len(right)
    assert [score.correct for score in evaluation.scores] == right
    assert (report["n"], report["accuracy"]) == (36, sum(right) / 36)
    assert report["accuracy_ci95"] == list(wilson_interval(sum(right), 36))
    assert report["verdicts"] == {
        name: Counter(score.verdict for score in evaluation.scores)[name] for name in report["verdicts"]
    }
    assert json.loads(output.read_text()) == report
    assert {"rouge-1", "rouge-2", "rouge-l", "bleu-4", "samples", "failures", "machine", "format"} <= report.keys()


def test_facts_are_found_in_foreign_records(tiny_run: Run, write_records: Any) -> None:
    file = write_records(
        {"prompt": "1.5＋2＝", "target": "3.5"},
        {"prompt": "12×3", "target": "36", "facts": {"source": "mine"}},
        {"instruction": "9-3=", "output": "6"},
    )
    _, report = evaluate.run(str(tiny_run.folder.path), str(file), overrides=["evaluation.text_metrics=false"])
    assert {name: part["n"] for name, part in report["by"]["operator"].items()} == {"+": 1, "-": 1, "*": 1}
    assert {name: part["n"] for name, part in report["by"]["kind"].items()} == {"integer": 2, "decimal": 1}
    assert report["by"]["source"]["mine"]["n"] == 1
    assert report["data"] == str(file)
    assert "rouge-1" not in report


def test_a_bare_checkpoint_is_judged_by_the_default_task(tiny_checkpoint: Path) -> None:
    _, report = evaluate.run(str(tiny_checkpoint), overrides=["evaluation.num_examples=4"])
    assert (report["n"], report["data"]) == (4, "held-out examples of task 'arithmetic'")


def test_general_questions_are_asked_on_request(
    tiny_run: Run, write_records: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = [
        {"prompt": "Which?", "target": "a", "facts": {"options": ["a", "b"], "group": "letters"}},
        {"prompt": "Who?", "target": "we", "facts": {"group": "words"}},
    ]
    file = write_records(*questions, name="general.jsonl")
    overrides = ["evaluation.num_examples=2", "evaluation.forgetting=true", f"evaluation.general_file={file}"]
    _, report = evaluate.run(str(tiny_run.folder.path), overrides=overrides)
    assert report["n"] == 2 and {name: part["n"] for name, part in report["general"]["parts"].items()} == {
        "choices": 1,
        "short answers": 1,
    }
    evaluate.show(report, argparse.Namespace(output=None))
    shown = capsys.readouterr().out
    assert "General questions" in shown and "50.0%" in shown
    file.write_text('{"prompt": "Which?", "target": "c", "facts": {"options": ["a", "b"]}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"general\.jsonl, line 1: facts.options: the target 'c' is not among"):
        evaluate.run(str(tiny_run.folder.path), overrides=overrides)


def test_sampling_follows_the_seed(tiny_run: Run) -> None:
    sampled = ["generation.do_sample=true", "generation.temperature=5", "generation.top_p=1"]

    def completions(*settings: str) -> list[str]:
        return evaluate.run(str(tiny_run.folder.path), overrides=[*sampled, *settings])[0].completions

    assert completions() == completions()
    assert completions() != completions("generation.temperature=1.5")


def test_a_base_that_has_moved(tiny_run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(tiny_checkpoint, tmp_path / "moved"))
    run = Path(shutil.copytree(tiny_run.folder.path, tmp_path / "run"))
    (run / "adapter/base.json").write_text(
        (run / "adapter/base.json").read_text().replace(str(tiny_checkpoint), "/gone/away")
    )
    (run / "recipe.yaml").write_text((run / "recipe.yaml").read_text().replace(str(tiny_checkpoint), "/gone/away"))
    with pytest.raises(UserError, match=r"no such model directory: /gone/away.*model\.path=\.\.\."):
        evaluate.run(str(run))
    for target in (run, run / "adapter"):
        settings = [f"model.path={moved}", "evaluation.num_examples=1"]
        assert evaluate.run(str(target), overrides=settings)[1]["n"] == 1


@pytest.mark.parametrize("place", ["folder", "/proc/none/out.json"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(loading, "load_model", None)
    with pytest.raises(UserError, match=r"--output .*(is a folder|cannot be written)"):
        evaluate.run(str(tiny_run.folder.path), output=str(tmp_path / place))


def test_a_prompt_too_long_is_told_with_its_line(
    tiny_run: Run, write_records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_records({"prompt": "1", "target": "1"}, {"prompt": "1" * 200, "target": "1"})
    monkeypatch.setattr(loading, "load_model", None)
    with pytest.raises(UserError, match=rf"line 2 of {file} has 203 tokens.*128"):
        evaluate.run(str(tiny_run.folder.path), str(file))


@pytest.fixture
def gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny Llama as a GGUF file, and a `llama-server` that always says 42."""
    stand_ins = Path(__file__).parents[1] / "inference/llama_cpp_stand_ins"
    monkeypatch.setenv("PATH", os.pathsep.join([str(stand_ins), str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(stand_ins))
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=gguf_tokenizers.VOCAB_SIZE)).save_pretrained(tmp_path / "llama")
    gguf_tokenizers.byte_level("llama").save_pretrained(tmp_path / "llama")
    write_gguf(tmp_path / "llama", tmp_path / "llama/fine.gguf", "f16")
    return tmp_path / "llama/fine.gguf"


def test_a_gguf_file_is_asked_in_llama_cpp(gguf_file: Path, tiny_run: Run, write_records: Any) -> None:
    """By the task of a run, or of a recipe."""
    records = write_records({"prompt": "40+2=", "target": "42"}, {"prompt": "40+3=", "target": "43"})
    settings = ["data.template=plain"]
    evaluation, report = evaluate.run(gguf_file, str(records), overrides=settings, recipe=tiny_run.folder.path)
    assert evaluation is not None and evaluation.completions == ["42", "42"] and report["accuracy"] == 0.5
    assert report["engine"].startswith("llama-server (") and report["finish_reasons"]["stop"] == 2
    _, report = evaluate.run(gguf_file, overrides=settings, recipe=tiny_run.folder.path)
    assert report["n"] == tiny_run.report["after"]["n"]
    evaluation, report = evaluate.run(gguf_file, str(records), overrides=settings, engine="torch")
    assert evaluation is not None and evaluation.completions != ["42", "42"] and "engine" not in report


def test_what_does_not_fit_a_gguf_file_is_told(gguf_file: Path, tiny_run: Run, tmp_path: Path) -> None:
    run = str(tiny_run.folder.path)
    with pytest.raises(UserError, match=r"is no recipe \(.yaml\) and no run"):
        evaluate.run(gguf_file, recipe=tmp_path)
    with pytest.raises(UserError, match=rf"{run} has a recipe of its own. Leave .*demo.yaml out"):
        evaluate.run(run, recipe="demo.yaml")
    with pytest.raises(UserError, match=rf"--engine gpt4all: {run} is no GGUF file"):
        evaluate.run(run, engine="gpt4all")
