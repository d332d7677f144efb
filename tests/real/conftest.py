"""The real model, where its package is installed: `make test-real`."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """All tests of this folder are slow ones on the real model."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def provider() -> Any:
    """The module that finds and converts the model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("real_model")
        del sys.modules["real_model"]


@pytest.fixture(scope="session")
def real_gguf(provider: Any) -> Path:
    """SmolLM2-135M-Instruct as a GGUF file. No test may change it."""
    try:
        return provider.gguf_file()  # type: ignore[no-any-return]
    except provider.NotInstalled as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_model(provider: Any, real_gguf: Path) -> Path:
    """The same as a checkpoint of 16 bits. No test may change it."""
    return provider.real_model()  # type: ignore[no-any-return]
