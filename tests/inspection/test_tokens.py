"""Records as the model reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glmtune.commands.inspect import run

GOOD = [{"prompt": f"第 {i} 个问题是什么？", "target": f"第 {i} 个答案。"} for i in range(40)]


def test_records_are_shown_as_they_are_learned(write_records: Any, tmp_path: Path) -> None:
    report = run([str(write_records(*GOOD, name="good.jsonl"))])
    assert [example["line"] for example in report["examples"]] == [1, 21, 40]
    for example in report["examples"]:
        learned = "".join(text for text, is_learned, _ in example["tokens"] if is_learned)
        other = "".join(text for text, is_learned, _ in example["tokens"] if not is_learned)
        record = GOOD[example["line"] - 1]
        assert learned == record["target"] + "<eop>"
        assert other.replace("?", "？") == record["prompt"] + "[gMASK]<sop>"
    assert run([str(write_records(*GOOD[:1], name="one.jsonl"))])["examples"][0]["line"] == 1
    long = {"prompt": "问" * 900, "target": "答"}
    (example,) = run([str(write_records(*[long], name="long.jsonl"))])["examples"]
    assert len(example["tokens"]) == 401 and " tokens, " in example["tokens"][200][0]
