from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glmtune import distributed

WORKER = """
import json, sys
from pathlib import Path
import torch
from glmtune import distributed
from glmtune.distributed import gather, is_main, on_main, share, world_size

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
)
found = {"main": is_main(), "rank": distributed.rank(), "size": world_size()}
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
"""


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


def test_two_processes(tmp_path: Path) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (first["main"], second["main"]) == (True, False)
    assert (first["rank"], second["rank"], first["size"], second["size"]) == (0, 1, 2, 2)
    assert first["mine of 5"] == [0, 2, 4] and second["mine of 5"] == [1, 3]
    for found in (first, second):
        for count in (0, 1, 5, 6):
            assert found[f"all of {count}"] == [item * 10 for item in range(count)]
        assert found["on main"] == "said by 0" and found["error"]


@pytest.mark.parametrize(
    ("cuda", "mps", "device"), [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_local_device(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    assert REAL_LOCAL_DEVICE() == torch.device(device)


REAL_LOCAL_DEVICE = distributed.local_device  # the tests put another in its place


EVALUATION = """
import json, sys
from pathlib import Path
import torch
from glmtune import distributed
torch.set_num_threads(1)
distributed.local_device = lambda: torch.device("cpu")
from glmtune.config import GenerationSettings, load_recipe
from glmtune.data import examples_of
from glmtune.evaluation.evaluator import evaluate
from glmtune.models.loading import load_model
from glmtune.resolution import ResolvedModel

rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
if size > 1:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/place", rank=rank, world_size=size)
model = ResolvedModel(load_recipe(None, ["task.operators=+", "task.maximum=99"]))
loaded, tokenizer = model.load()
examples = examples_of(model.task, "held_out", 7, 3)
result = evaluate(loaded, tokenizer, model.task, examples, GenerationSettings(max_new_tokens=24), progress=False)
(folder / f"{rank} of {size}.json").write_text(json.dumps([result.completions, result.report(text_metrics=False)]))
if size > 1:
    torch.distributed.destroy_process_group()
"""


def test_judged_examples_are_divided(tmp_path: Path) -> None:
    """Two processes answer four and three of seven, and both know all answers, in order."""
    for size in (1, 2):
        workers = [
            subprocess.Popen([sys.executable, "-c", EVALUATION, str(rank), str(size), str(tmp_path)])
            for rank in range(size)
        ]
        assert [worker.wait(timeout=240) for worker in workers] == [0] * size
    alone, first, second = ((tmp_path / f"{name}.json").read_text() for name in ("0 of 1", "0 of 2", "1 of 2"))
    assert alone == first == second and len(set(json.loads(alone)[0])) > 3
