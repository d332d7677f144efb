from __future__ import annotations

import copy

import pytest
import torch

from glmtune.training.muon import Muon


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(7, 8), torch.nn.Linear(8, 6), torch.nn.Linear(6, 5, bias=False))


def optimizer(of: torch.nn.Module, rate: float = 0.02) -> Muon:
    return Muon([{"params": list(of.parameters()), "lr": rate, "weight_decay": 0.0}], of, (0.9, 0.98), 1e-8)


def learn(of: torch.nn.Module, by: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        of(torch.randint(7, (4,))).square().sum().backward()
        by.step()
        by.zero_grad()


def test_matrices_alone_get_orthogonal_updates() -> None:
    one = model()
    by = optimizer(one)
    assert [[tuple(w.shape) for w in group["params"]] for group in by.param_groups] == [
        [(6, 8), (5, 6)],
        [(7, 8), (6,)],
    ]
    before = one[1].weight.detach().clone()
    learn(one, by, range(1))
    values = torch.linalg.svdvals(one[1].weight.detach() - before)
    assert values[3] > 0.5 * values[0]  # the four directions that four examples name are learned alike
    plain = copy.deepcopy(model())
    learn(plain, torch.optim.AdamW(plain.parameters(), lr=0.01, betas=(0.9, 0.98), weight_decay=0.0), range(1))
    torch.testing.assert_close(one[0].weight, plain[0].weight)


def test_schedules_reach_both_parts() -> None:
    one = model()
    by = optimizer(one)
    schedule = torch.optim.lr_scheduler.LambdaLR(by, lambda step: 0.0 if step else 1.0)
    learn(one, by, range(1))
    schedule.step()
    before = copy.deepcopy(one.state_dict())
    learn(one, by, range(1, 3))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_resumed_is_never_stopped() -> None:
    whole, first = model(), model()
    learn(whole, optimizer(whole), range(6))
    by = optimizer(first)
    learn(first, by, range(3))
    second = copy.deepcopy(first)
    again = optimizer(second, rate=0.5)
    again.load_state_dict(copy.deepcopy(by.state_dict()))
    learn(second, again, range(3, 6))
    for wanted, given in zip(whole.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(given, wanted)
    again.param_groups[0]["lr"] = 0.0
    assert again.parts[0].param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("part", [0, 1])
def test_one_kind_alone(part: int) -> None:
    one = model()
    chosen = [one[1].weight] if part == 0 else [one[1].bias]
    by = Muon([{"params": chosen, "lr": 0.1, "weight_decay": 0.0}], one, (0.9, 0.98), 1e-8)
    assert len(by.parts) == 1
    learn(one, by, range(2))
