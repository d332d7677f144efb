from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from glmtune import distributed
from glmtune.config import GenerationSettings, load_recipe
from glmtune.data import examples_of
from glmtune.distributed import gather, is_main, on_main, share, world_size
from glmtune.evaluation.evaluator import evaluate
from glmtune.resolution import ResolvedModel


def judged() -> list[Any]:
    """Seven examples, answered and scored."""
    model = ResolvedModel(load_recipe(None, ["task.operators=+", "task.maximum=99"]))
    loaded, tokenizer = model.load()
    examples = examples_of(model.task, "held_out", 7, 3)
    result = evaluate(loaded, tokenizer, model.task, examples, GenerationSettings(max_new_tokens=24), progress=False)
    return [result.completions, result.report(text_metrics=False)]


def work(rank: int, folder: Path) -> None:
    """Write what a process finds that works together with another one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, Any] = {"main": is_main(), "rank": distributed.rank(), "size": world_size(), "judged": judged()}
    for count in (0, 1, 5, 6):
        items = list(range(count))
        found[f"mine of {count}"] = mine = list(share(items))
        found[f"all of {count}"] = gather([item * 10 for item in mine])
    found["on main"] = on_main(lambda: f"said by {rank}")
    try:
        on_main(lambda: 1 / 0)
    except ZeroDivisionError:
        found["error"] = True
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found; they are forks, which have the libraries already."""
    folder, processes = tmp_path_factory.mktemp("two"), multiprocessing.get_context("fork")
    workers = [processes.Process(target=work, args=(rank, folder)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=240)
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_one_process_alone() -> None:
    assert distributed.rank() == 0 and distributed.world_size() == 1 and distributed.is_main()
    assert distributed.share("abc") == "abc" and distributed.gather("abc") == ["a", "b", "c"]
    assert distributed.on_main(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        distributed.on_main(lambda: 1 / 0)


def test_one_process_alone_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from glmtune import distributed\n"
        "assert distributed.gather([1]) == [1] and distributed.is_main() and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_two_processes(found: list[dict[str, Any]]) -> None:
    first, second = found
    assert (first["main"], second["main"]) == (True, False)
    assert (first["rank"], second["rank"], first["size"], second["size"]) == (0, 1, 2, 2)
    assert first["mine of 5"] == [0, 2, 4] and second["mine of 5"] == [1, 3]
    for one in found:
        for count in (0, 1, 5, 6):
            assert one[f"all of {count}"] == [item * 10 for item in range(count)]
        assert one["on main"] == "said by 0" and one["error"]


@pytest.mark.parametrize(
    ("cuda", "mps", "device"), [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_local_device(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    assert REAL_LOCAL_DEVICE() == torch.device(device)


REAL_LOCAL_DEVICE = distributed.local_device  # the tests put another in its place


def test_judged_examples_are_divided(found: list[dict[str, Any]]) -> None:
    """Two processes answer four and three of seven, and both know all answers, in order."""
    alone = json.loads(json.dumps(judged()))
    assert [one["judged"] for one in found] == [alone, alone] and len(set(alone[0])) > 3
