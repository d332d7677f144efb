"""PiSSA's decomposition: exact where a matrix is small, near enough where it is large."""

from __future__ import annotations

import pytest
import torch

from glmtune.models import low_rank
from glmtune.models.low_rank import principal_part


def test_large_matrices_are_decomposed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, 40)).Q for size in (60, 40))
    matrix = left * torch.linspace(4, 0.1, 40) @ right.T
    exact = principal_part(matrix, 8)
    monkeypatch.setattr(low_rank, "EXACT_UP_TO", 0)
    fast = principal_part(matrix, 8)
    assert [part.shape for part in exact] == [part.shape for part in fast] == [(60, 8), (8,), (8, 40)]
    torch.testing.assert_close(*((u * s @ v) for u, s, v in (exact, fast)), rtol=0, atol=1e-3)
    assert principal_part(matrix, 40)[0].shape == (60, 40)
