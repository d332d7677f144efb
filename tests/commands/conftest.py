"""What the tests of commands share."""

from typing import Any

import pytest

from glmtune.models import loading


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may read weights."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "load_model", refuse)
