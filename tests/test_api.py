"""The verbs for Python: settings in, results out, each of them good for the next."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import glmtune
from glmtune.api import as_overrides
from glmtune.config import RecipeError, load_recipe
from glmtune.execution import Run
from glmtune.inference.conversation import Conversation
from glmtune.messages import make_tool_call
from glmtune.runtime import UserError


def test_a_notebook(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = glmtune.train(
        settings={
            "model.path": tiny_checkpoint,
            "task": {"operators": "+", "kinds": ["integer"], "maximum": 5, "style": "direct", "echo": False},
            "training": {"steps": 4, "batch_size": 4, "output_dir": tmp_path / "run"},
            "evaluation": {"num_examples": 6, "num_examples_during": 2},
            "generation.max_new_tokens": 6,
        },
        quiet=True,
    )
    assert run.path == tmp_path / "run" and (run.path / "report.html").is_file()
    assert 0 <= run.accuracy_before <= 1 and run.accuracy == run.report["after"]["accuracy"]
    evaluation = glmtune.evaluate(run)
    assert evaluation.completions == run.after.completions and evaluation.accuracy == run.accuracy
    answers = glmtune.predict(run, [example.prompt for example in run.after.examples])
    assert [answer.text for answer in answers] == run.after.completions
    assert {answer.completion.finish_reason for answer in answers} <= {"stop", "length"}
    model, _ = glmtune.load(run)
    assert not model.training
    place = glmtune.export(run, output=tmp_path / "whole", settings={"evaluation.num_examples_during": 2})
    assert place == tmp_path / "whole" and (place / "model.safetensors").is_file()
    assert glmtune.export(run, output=place, overwrite=True) == place  # the package exports does not hide it


def test_a_run_goes_on(tiny_run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_run.path, tmp_path / "run")
    longer = glmtune.train(resume=folder, settings={"training.steps": 13}, quiet=True)
    assert [change["after"] for change in longer.report["changes"]] == [13]
    with pytest.raises(UserError, match="has made 13 steps already"):
        glmtune.train(resume=longer, settings={"training.steps": 12})


def test_evaluate_takes_a_file(tiny_run: Run, write_records: Any) -> None:
    file = write_records({"prompt": "1+2=", "target": "3"}, {"prompt": "2+2=", "target": "4"})
    assert len(glmtune.evaluate(tiny_run, file, {"evaluation": {"text_metrics": False}}).scores) == 2


def test_one_text_is_no_list_of_prompts(tiny_run: Run) -> None:
    with pytest.raises(UserError, match=r"a list is needed, not one text: \['1\+2='\]"):
        glmtune.predict(tiny_run, "1+2=")


def test_tools_of_the_task_answer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = iter(
        [
            {"role": "assistant", "content": "", "tool_calls": [make_tool_call("calculate", {"expression": "6*7"})]},
            {"role": "assistant", "content": "42"},
        ]
    )
    monkeypatch.setattr(Conversation, "_read", lambda *_: next(turns))
    [exchange] = glmtune.predict("nano", ["6*7="], {"task.style": "tool", "generation.max_new_tokens": 4})
    assert [(message["role"], message["content"]) for message in exchange.messages][1:] == [
        ("tool", "42"),
        ("assistant", "42"),
    ]


def test_a_prompt_that_is_too_long_is_named(tiny_run: Run) -> None:
    with pytest.raises(UserError, match=r"Prompt 2 has \d+ tokens"):
        glmtune.predict(tiny_run, ["1+2=", "1" * 2000])


def test_faults_name_the_setting() -> None:
    with pytest.raises(RecipeError, match=r"training\.step: unknown setting.*'steps'"):
        glmtune.train(settings={"training": {"step": 5}})
    with pytest.raises(RecipeError, match=r"model\.bits.*got 3"):
        glmtune.load("nano", bits=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        (None, []),
        ({"seed": 7}, ["seed=7"]),
        ({"training.steps": 50}, ["training.steps=50"]),
        ({"training": {"steps": 50, "learning_rate": 0.001}}, ["training.steps=50", "training.learning_rate=0.001"]),
        ({"task": {"operators": {"+": 1, "-": 2}}}, ['task.operators={"+": 1, "-": 2}']),
        ({"model.path": Path("a b"), "data.template": None}, ['model.path="a b"', "data.template=null"]),
    ],
)
def test_settings(settings: Any, texts: list[str]) -> None:
    assert as_overrides(settings) == texts


def test_settings_mean_what_they_say() -> None:
    texts = as_overrides({"task": {"operators": "-"}, "training": {"learning_rate": 1e-5}})
    typed = load_recipe(None, ["task.operators=-", "training.learning_rate=1e-5"])
    assert load_recipe(None, texts).model_dump() == typed.model_dump()


def test_importing_it_imports_no_torch() -> None:
    code = (
        "import sys, glmtune; assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
