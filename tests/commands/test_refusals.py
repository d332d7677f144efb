"""What is wrong with a recipe, a path or a file of records is told before torch is imported, within a second."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

# Runs each command line of stdin in one Python where torch and transformers cannot be imported.
RUN_ALL = """
import contextlib, io, json, sys

for name in ("torch", "transformers", "peft", "accelerate", "datasets"):
    sys.modules[name] = None

from glmtune import cli

answers = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(words)
    except SystemExit as end:
        answers.append([end.code, out.getvalue() + err.getvalue()])
    except BaseException as error:
        answers.append([None, repr(error)])
print(json.dumps(answers))
"""

REFUSED: dict[str, str] = {
    "train training.lr=1": "training.lr: unknown setting. It is training.learning_rate.",
    "train training.stpes=1": "training.stpes: unknown setting. Did you mean 'steps'?",
    "train misspelt.yaml": "training.lr: unknown setting",
    "train nowhere.yaml": "nowhere.yaml: no such file. Did you mean 'no.yaml'?",
    "train twice.yaml": "'seed' stands in line 1 and again in line 2",
    "train no.yaml": "not a readable YAML file",
    "train method.name=lroa": "unknown name 'lroa'. Did you mean 'lora'?",
    "train task.name=own.py": "no such file: own.py",
    "train training.optimizer=adam": "training.optimizer: no such name. Did you mean 'adamw'?",
    "train model.path=./nope": "model.path: no such model directory: ./nope",
    "train training.output_dir=taken": "training.output_dir: taken is not empty",
    "train --resume nope": "--resume nope: no run there",
    "train task.name=instructions task.file=nope.jsonl": "nope.jsonl: no such file",
    "train task.name=instructions task.file=faulty.jsonl": "faulty.jsonl, line 2: not JSON: ",
    "train task.name=instructions task.file=fine.jsonl task.held_out_file=nope.jsonl": "nope.jsonl: no such file",
    "train evaluation.forgetting=true evaluation.general_file=nope.jsonl": "nope.jsonl: no such file",
    "train data.template=chatlgm": "unknown template 'chatlgm'. Did you mean 'chatglm'?",
    "train data.template=nope.jinja": "data.template: nope.jinja",
    'train data.mixture=[{"file":"nope.jsonl","share":0.2}]': "nope.jsonl: no such file",
    'train data.mixture=[{"file":"faulty.jsonl","share":0.2}]': "faulty.jsonl, line 2: not JSON",
    "chat nano data.template=nope.jinja": "data.template: nope.jinja",
    "evaluate nano data.template=chatlgm": "unknown template 'chatlgm'. Did you mean 'chatglm'?",
    "chat runs/nope": "no run, adapter, checkpoint or recipe at runs/nope.",
    "chat runs/begun": "runs/begun holds no adapter",
    "chat empty": "empty has no config.json",
    "chat nano generation.top_q=1": "generation.top_q: unknown setting. Did you mean 'top_p'?",
    "evaluate runs/nope": "Did you mean 'runs/begun'?",
    "evaluate nano --data nope.jsonl": "nope.jsonl: no such file",
    "evaluate nano --data faulty.jsonl": "faulty.jsonl, line 2: not JSON",
    "evaluate nano --output empty": "--output empty: is a folder",
    "predict runs/nope --input fine.jsonl --output o.jsonl": "no run, adapter, checkpoint or recipe at runs/nope.",
    "predict nano --input nope.jsonl --output o.jsonl": "nope.jsonl: no such file",
    "predict nano --input faulty.jsonl --output o.jsonl": "faulty.jsonl, line 2: not JSON",
    "predict nano --input fine.jsonl --output fine.jsonl": "fine.jsonl: is the input, too",
    "export runs/nope": "no run, adapter, checkpoint or recipe at runs/nope.",
    "export nano": "--output: name a folder to write; nano is no run folder",
    "export nano --output taken": "--output taken: exists already",
    "estimate training.lr=1": "training.lr: unknown setting",
    "estimate runs/nope": "no run, adapter, checkpoint or recipe at runs/nope.",
    "inspect nope.jsonl": "nope.jsonl: no such file",
    "inspect fine.jsonl data.colums=1": "data.colums: unknown setting. Did you mean 'columns'?",
    "inspect fine.jsonl --output empty": "--output empty: is a folder",
    "data arithmetics --output o.jsonl": "unknown name 'arithmetics'. Did you mean 'arithmetic'?",
    "data arithmetic task.maximum=x --output o.jsonl": "task.maximum: Input should be a valid integer",
    "data arithmetic": "name the file to write with --output",
}
ANSWERED = {"train --help-settings": "training.batch_size = 32", "ls": "arithmetic", "schema": '"title": "A recipe of'}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each command line is answered: exit code, and what it prints."""
    folder = tmp_path_factory.mktemp("refusals")
    for name, text in {
        "misspelt.yaml": "training: {lr: 1}\n",
        "twice.yaml": "seed: 1\nseed: 2\n",
        "no.yaml": "task: [\n",
        "taken/notes.txt": "precious",
        "runs/begun/recipe.yaml": "seed: 1\n",
        "fine.jsonl": '{"prompt": "1", "target": "2"}\n',
        "faulty.jsonl": '{"prompt": "1", "target": "2"}\n{"prompt": 1\n',
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "empty").mkdir()
    asked = [*REFUSED, *ANSWERED]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        input=json.dumps([line.split() for line in asked]),
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
    )
    assert not (folder / "o.jsonl").exists() and not list((folder / "runs").glob("arithmetic*"))
    return dict(zip(asked, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("line", REFUSED)
def test_it_is_told_without_torch(answers: dict[str, Any], line: str) -> None:
    code, said = answers[line]
    assert code == 2 and REFUSED[line] in said, said


@pytest.mark.parametrize("line", ANSWERED)
def test_it_is_answered_without_torch(answers: dict[str, Any], line: str) -> None:
    code, said = answers[line]
    assert code == 0 and ANSWERED[line] in said, said
