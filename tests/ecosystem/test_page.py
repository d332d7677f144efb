"""docs/ecosystem.md shows what the tests beside this one expect."""

from __future__ import annotations

import pytest
from ecosystem_matrix import DOCS, TRL, with_tables


def test_the_page_has_the_tables_of_today() -> None:
    page = DOCS.read_text("utf-8")
    assert page == with_tables(page), "run: python tests/ecosystem_matrix.py"


def test_a_cell_that_changes_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    page = DOCS.read_text("utf-8")
    monkeypatch.setitem(TRL, "SFT, `text`", {"ChatGLM-6B": "told <so>", "ChatGLM3-6B": "works", "Llama": "works"})
    changed = with_tables(page)
    assert "| SFT, `text` | *told \\<so>* | works | works |" in changed and with_tables(changed) == changed
    assert len(changed.splitlines()) == len(page.splitlines())
