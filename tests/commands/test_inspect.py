"""`glmtune inspect`: from a file to a report by one command, and everything planted is found."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from glmtune.adapters import tokenizer_of
from glmtune.cli import main
from glmtune.commands.inspect import print_report, run
from glmtune.config import RecipeError
from glmtune.data.encoding import IGNORED, encode_example
from glmtune.runtime import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
GOOD = [{"prompt": f"第 {i} 个问题是什么？", "target": f"第 {i} 个答案。"} for i in range(40)]


def write(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


def glmtune(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_whole_records(tmp_path: Path) -> None:
    file = write(tmp_path / "good.jsonl", GOOD)
    report = run([file], str(tmp_path / "report.json"))
    assert report == json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert (report["format"], report["records"], report["faults"], report["duplicates"]) == ("prompt_target", 40, [], 0)
    assert sum(report["splits"].values()) == 40
    tokenizer = tokenizer_of("nano", None)
    encodings = [encode_example(tokenizer, record["prompt"], record["target"]) for record in GOOD]
    tokens = report["tokens"]
    assert tokens["total"] == sum(len(encoding["input_ids"]) for encoding in encodings)
    assert tokens["learned"] == sum(label != IGNORED for encoding in encodings for label in encoding["labels"])
    assert tokens["whole"]["max"] == max(len(encoding["input_ids"]) for encoding in encodings)
    assert tokens["too_long"] == 0 and tokens["limit"] == 512


def test_records_are_shown_as_they_are_learned(tmp_path: Path) -> None:
    report = run([write(tmp_path / "good.jsonl", GOOD)])
    assert [example["line"] for example in report["examples"]] == [1, 21, 40]
    for example in report["examples"]:
        learned = "".join(text for text, is_learned, _ in example["tokens"] if is_learned)
        other = "".join(text for text, is_learned, _ in example["tokens"] if not is_learned)
        record = GOOD[example["line"] - 1]
        assert learned == record["target"] + "<eop>"
        assert other.replace("?", "？") == record["prompt"] + "[gMASK]<sop>"
    assert run([write(tmp_path / "one.jsonl", GOOD[:1])])["examples"][0]["line"] == 1
    long = {"prompt": "问" * 900, "target": "答"}
    (example,) = run([write(tmp_path / "long.jsonl", [long])])["examples"]
    assert len(example["tokens"]) == 401 and "tokens ..." in example["tokens"][200][0]


def test_planted_leak(tmp_path: Path) -> None:
    learned = [{"prompt": "57.84+13.64=", "target": "71.48"}, *GOOD]
    judged = [
        {"prompt": "计算：13.64 + 57.840 = ？", "target": "71.48"},
        {"prompt": "第3个问题是什么?", "target": "?"},
        {"prompt": "57.84+13.65=", "target": "71.49"},
    ]
    files = [write(tmp_path / f"{name}.jsonl", records) for name, records in (("a", learned), ("b", judged))]
    report = run(files[:1], overrides=[f"task.held_out_file={files[1]}"])
    assert report["leaks"] == 2 and report["splits"] == {"train": 41, "held_out": 3}
    assert [(fault["file"], fault["line"], fault["field"]) for fault in report["faults"]] == [
        (files[1], 1, "prompt"),
        (files[1], 2, "prompt"),
    ]
    assert all(fault["message"].startswith(f"leak: {files[0]}, line") for fault in report["faults"])


def test_planted_duplicates(tmp_path: Path) -> None:
    again = [{"prompt": "第3个问题是什么?", "target": "第 3 个答案"}, {"prompt": GOOD[5]["prompt"], "target": "又一个"}]
    file = write(tmp_path / "a.jsonl", [*GOOD, *again])
    report = run([file])
    assert report["duplicates"] == 1 and report["faults"] == [] and report["near_duplicates"] is None
    assert report["duplicate_places"] == [{"file": file, "line": 41, "first_file": file, "first_line": 4}]
    near = run([file], overrides=["data.deduplicate=near"])
    assert near["near_duplicates"] > 30


def test_planted_cut_ends(tmp_path: Path) -> None:
    cut = [{"prompt": f"问题 {i}", "target": (f"{i}，" + "这个答案很长，后面还有" * 20)[:64]} for i in range(6)]
    file = write(tmp_path / "a.jsonl", [*GOOD, *cut])
    report = run([file])
    assert [(fault["line"], fault["field"]) for fault in report["faults"]] == [(i, "target") for i in range(41, 47)]
    assert "has 64 characters, the most of all, as 5 others have" in report["faults"][0]["message"]


def test_planted_wrong_order(tmp_path: Path) -> None:
    turns = [("human", "q"), ("human", "q"), ("gpt", "a")]
    bad = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    good = {"conversations": bad["conversations"][1:]}
    report = run([write(tmp_path / "a.jsonl", [good, bad])])
    assert (report["format"], report["records"]) == ("sharegpt", 1)
    ((fault),) = report["faults"]
    assert (fault["line"], fault["field"]) == (2, "conversations") and "wrong order of roles" in fault["message"]


def test_notes(tmp_path: Path) -> None:
    turns = [("gpt", "hello"), ("human", "q"), ("gpt", "a"), ("human", "q"), ("gpt", "a")]
    odd = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    report = run([write(tmp_path / "a.jsonl", [odd, {"prompt": "q", "target": "```python\nprint("}])])
    assert report["faults"] == [] and report["formats"] == {"sharegpt": 1, "prompt_target": 1}
    notes = "\n".join(report["notes"])
    for part in ("began with a turn of the assistant", "code in the target", "data.turns=each", "No record falls into"):
        assert part in notes


def test_too_long(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [*GOOD, {"prompt": "长" * 200, "target": "a"}])
    report = run([file], overrides=["data.max_length=100"])
    assert report["tokens"]["limit"] == 100 and report["tokens"]["too_long_places"] == [{"file": file, "line": 41}]
    assert report["faults"] == []


def test_model_template_and_columns(tmp_path: Path, tiny_checkpoint: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"问": "q", "答": "a"}])
    overrides = ["data.columns.prompt=问", "data.columns.target=答"]
    report = run([file], model=str(tiny_checkpoint), overrides=overrides)
    assert (report["format"], report["model"], report["tokens"]["limit"]) == ("columns", str(tiny_checkpoint), 128)
    alpaca = run([file], overrides=[*overrides, "data.template=alpaca"])
    assert alpaca["tokens"]["prompt"]["max"] > report["tokens"]["prompt"]["max"] + 20
    with pytest.raises(UserError, match="no such model directory"):
        run([file], model="nowhere/at/all")
    with pytest.raises(RecipeError, match=r"data\.columns: no such name: 'promt'\. Did you mean 'prompt'"):
        run([file], overrides=["data.columns.promt=问"])
    with pytest.raises(RecipeError, match=r"data\.encoding: no such encoding"):
        run([file], overrides=["data.encoding=utf-99"])
    with pytest.raises(UserError, match="Name a file"):
        run([])
    with pytest.raises(UserError, match=r"task\.name=arithmetic: files are inspected"):
        run([file], overrides=["task={name: arithmetic}"])


def test_page(tmp_path: Path) -> None:
    records = [{"prompt": "<script>alert(1)</script>", "target": "a\nb & c"}, {"prompt": "<i>"}]
    run([write(tmp_path / "a.jsonl", records)], page=str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "<script" not in page and "<i>" not in page and "&lt;" in page
    assert not re.search(r"https?:|src=|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page and 'class="learned control">&lt;eop&gt;' in page
    assert "line 2: &#39;target&#39; is missing" in page


def test_terminal(tmp_path: Path) -> None:
    bad = [{"prompt": "q[red]", "taget": "\x1b[31m"}] * 25
    report = run([write(tmp_path / "a.jsonl", [{"prompt": "a", "target": "\x1b[31mb\nc"}, *GOOD, *bad])])
    file = io.StringIO()
    print_report(report, Console(file=file, width=100, force_terminal=True, color_system="standard"))
    shown = file.getvalue()
    assert "... and 5 more" in shown and "Did you mean 'taget'?" in shown and "↵" in shown
    assert "\x1b[31m" not in shown and "\x1b[30;42m" in shown  # black on green


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good.jsonl", GOOD)
    write(tmp_path / "bad=1.jsonl", [*GOOD, {"prompt": "q"}])
    assert glmtune("inspect", "good.jsonl") == 0
    out, err = capsys.readouterr()
    assert "prompt_target (40)" in out and err == ""
    arguments = ("--output", "report.json", "--html", "page.html", "bad=1.jsonl", "data.max_length=64")
    assert glmtune("inspect", *arguments) == 2
    out, err = capsys.readouterr()
    assert "Written: report.json" in out and "bad=1.jsonl, line 41: 'target' is missing" in out and err == ""
    report = json.loads(Path("report.json").read_text("utf-8"))
    assert report["faults"] == [{"file": "bad=1.jsonl", "line": 41, "field": "target", **report["faults"][0]}]
    assert Path("page.html").is_file()
    assert glmtune("inspect", "goo.jsonl") == 2
    assert "goo.jsonl: no such file. Did you mean 'good.jsonl'?" in capsys.readouterr().err
    assert glmtune("inspect") == 2 and "Name a file" in capsys.readouterr().err
    assert glmtune("inspect", "good.jsonl", "data.lenght=5") == 2
    assert "Did you mean 'max_length'" in capsys.readouterr().err
    assert glmtune("data", "inspect", "good.jsonl") == 2
    assert "glmtune inspect good.jsonl" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real files are not here: {SHARED}")
@pytest.mark.parametrize(
    ("file", "known", "whole"),
    [
        ("math23k_trainset.sample.json", "math23k", True),
        ("belle_seed_tasks.jsonl", "belle_seed", True),
        ("gsm8k.jsonl", "gsm8k", True),
        ("ape210k_mwp.jsonl", "ape210k", False),
        ("belle_eval.jsonl", "belle_eval", False),
        ("alpaca_zh.json", "alpaca", False),
    ],
)
def test_real_files(file: str, known: str, whole: bool, tmp_path: Path) -> None:
    report = run([str(SHARED / file)])
    assert report["format"] == known and (not report["faults"]) == whole
    assert {fault["field"] for fault in report["faults"]} <= {"output", "answer", "std_answer"}
