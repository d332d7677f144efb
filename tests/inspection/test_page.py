"""The report of an inspection as a page: records are text, never markup."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from glmtune.commands.inspect import run


def test_page(write_records: Any, tmp_path: Path) -> None:
    records = [{"prompt": "<script>alert(1)</script>", "target": "a\nb & c"}, {"prompt": "<i>"}]
    run([str(write_records(*records, name="a.jsonl"))], page=str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "<script" not in page and "<i>" not in page and "&lt;" in page
    assert not re.search(r"https?:|src=|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page and 'class="learned control">&lt;eop&gt;' in page
    assert "line 2: &#39;target&#39; is missing" in page
