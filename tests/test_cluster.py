"""`--ray`: as many answers as questions, in order, and those of plain `predict`, whoever dies on the way."""

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from glmtune import cluster, prediction
from glmtune.cluster import Asked, Assignment, Cluster, Crew, Worker, exchange_of, plan_crew
from glmtune.commands import evaluate, predict
from glmtune.config import GenerationSettings, to_yaml
from glmtune.execution import Run
from glmtune.inference.engine import Engine
from glmtune.resolution import resolve
from glmtune.runtime import UserError

PROMPTS = [f"{a}+{b}=" for a in range(8) for b in range(8)]


@pytest.fixture
def run(tiny_run: Run) -> str:
    return str(tiny_run.folder.path)


# Without Ray


@pytest.mark.parametrize(
    ("nodes", "wished", "crew"),
    [
        ([{"CPU": 8}], None, Crew(1, 7)),  # a CPU is left for Ray's own tasks
        ([{"CPU": 8}], 2, Crew(2, 3)),
        ([{"CPU": 8}], 7, Crew(7, 1)),
        ([{"CPU": 8}], 8, Crew(8, 0.5)),
        ([{"CPU": 2}], 2, Crew(2, 0.5)),
        ([{"CPU": 1}], None, Crew(1, 0.5)),
        ([{"CPU": 4}, {"CPU": 4}, {"CPU": 4}], None, Crew(3, 3)),
        ([{"CPU": 4}, {"CPU": 4}], 3, Crew(3, 2)),  # 3 would fit one of the nodes once, and the other once
        ([{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 4}], None, Crew(8, 1, 1)),
        ([{"CPU": 8, "GPU": 1}, {"CPU": 64}], None, Crew(1, 1, 1)),
        ([{"CPU": 2, "GPU": 2}], 2, Crew(2, 0.5, 1)),
    ],
)
def test_who_takes_what(nodes: list[dict[str, float]], wished: int | None, crew: Crew) -> None:
    found = plan_crew(nodes, wished)
    assert found == crew
    assert found.workers * found.cpus < sum(node["CPU"] for node in nodes)


@pytest.mark.parametrize(
    ("nodes", "wished", "message"),
    [
        ([{"CPU": 2}], 3, r"--workers 3: the cluster has 2 CPUs on 1 node\. Ask for 2 at most"),
        ([{"CPU": 8, "GPU": 1}, {"CPU": 8}], 2, r"--workers 2: the cluster has 1 GPU on 2 nodes\. Ask for 1 at most"),
        ([], None, "the cluster has 0 CPUs"),
    ],
)
def test_more_workers_than_there_is_room_for(nodes: Any, wished: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_crew(nodes, wished)


def test_without_ray(monkeypatch: pytest.MonkeyPatch, run: str, write_records: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"Ray is not installed\. pip install 'glmtune\[ray\]'"):
        predict.run(run, str(write_records({"prompt": "1"})), str(tmp_path / "out.jsonl"), cluster=Cluster())
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Cluster(workers=0), "--workers 0: at least 1"),
        (Cluster("ray://head:10001"), "--ray-address ray://head:10001: is no HOST:PORT"),
        (Cluster("head"), "is no HOST:PORT"),
        (Cluster("127.0.0.1:99999"), "127.0.0.1:99999: cannot be reached"),
        (Cluster("no-such-host.invalid:6379"), "cannot be reached: .*ray start --head"),
    ],
)
def test_a_cluster_that_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, asked: Cluster, message: str, run: str, write_records: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=message):
        predict.run(run, str(write_records({"prompt": "1"})), str(tmp_path / "out.jsonl"), cluster=asked)
    with pytest.raises(UserError, match=message):
        evaluate.run(run, cluster=asked)


def test_a_port_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: object())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=f"--ray-address 127.0.0.1:{port}: cannot be reached: .*refused"):
        Cluster(f"127.0.0.1:{port}").check()


def test_ports_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would try for minutes to talk to what is no head."""
    monkeypatch.setattr(cluster, "find_spec", lambda name: object())
    answers = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\x06\x04\0\0\0\0\0\0\3\0\0\0\x64"]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"

        def serve() -> None:
            for answer in answers:
                connection, _ = listening.accept()
                with connection:
                    assert connection.recv(100).startswith(b"PRI * HTTP/2.0")
                    connection.sendall(answer)

        serving = threading.Thread(target=serve)
        serving.start()
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=f"RAY_ADDRESS {address}: is no head of a cluster"):
            Cluster().check()
        Cluster(address).check()
        serving.join()


def test_flags_without_ray() -> None:
    from glmtune.cli import parse
    from glmtune.commands._arguments import cluster_of

    words = ["predict", "nano", "--input", "a", "--output", "b"]
    assert cluster_of(parse(words)) is None
    assert cluster_of(parse([*words, "--ray", "--workers", "3", "--ray-address", "a:1"])) == Cluster("a:1", 3)
    with pytest.raises(UserError, match=r"--workers 3: is said of a Ray cluster\. Add --ray"):
        cluster_of(parse([*words, "--workers", "3"]))


def test_a_worker_answers_as_this_process(run: str) -> None:
    """A window goes there and comes back as texts; whichever window a question is in, its answer is the same."""
    resolved = resolve(run, ["generation.do_sample=true"])
    asked = [Asked(number, prompt) for number, prompt in enumerate(PROMPTS[:9])]
    worker = Worker(Assignment.of(resolved, resolved.recipe.generation))
    told = worker({"questions": [json.dumps(asked[:5]), json.dumps(asked[5:])]})
    found = {number: exchange_of(values) for text in told["answers"] for number, values in json.loads(text)}
    here = dict(prediction.answer_here(resolved, Engine(*resolved.load()), asked, window=2))
    assert told["fault"] == ["", ""] and found == here
    assert len({exchange.text for exchange in found.values()}) > 1


def test_a_worker_has_the_same_model(run: str, tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text("from glmtune.tasks import arithmetic\n\n\nclass Mine(arithmetic.Arithmetic):\n    pass\n")
    resolved = resolve(run, [f"task.name={own}"])
    assignment = Assignment.of(resolved, resolved.recipe.generation)
    assert list(assignment.code) == ["task.name"]
    there = assignment.resolve()
    assert to_yaml(there.recipe) == to_yaml(resolved.recipe)
    assert (there.target, there.adapter, there.base_is_named) == (run, resolved.adapter, resolved.base_is_named)
    assert there.run is not None and there.run.path == Path(run) and there.base == resolved.base
    with pytest.raises(UserError, match=r"glmtune .* is there, and 0\.0 asks\. Install the same version"):
        replace(assignment, version="0.0").resolve()
    own.write_text(own.read_text() + "# another\n")
    with pytest.raises(UserError, match=r"mine\.py is another file there"):
        assignment.resolve()
    gone = Worker(replace(assignment, code={}, run="nowhere", target="nowhere", adapter="nowhere/adapter"))
    assert "nowhere" in gone({"questions": []})["fault"][0]


# With Ray: each job takes the time in which its workers import torch


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[Cluster]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield Cluster(workers=2)
    ray.shutdown()


def kill_a_worker(output: Path, killed: list[int], over: threading.Event) -> None:
    """End one as soon as something is written."""
    while not over.wait(0.02):
        children = psutil.Process().children(recursive=True)
        workers = [child for child in children if "(Worker)" in " ".join(child.cmdline())]
        if workers and output.exists() and output.stat().st_size:
            killed.append(workers[0].pid)
            os.kill(workers[0].pid, signal.SIGKILL)
            return


@pytest.mark.slow
def test_answers_are_those_of_plain_predict(
    two_cpus: Cluster, run: str, write_records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a worker has died, and after a stop."""
    monkeypatch.setattr(prediction, "BATCHES_PER_WINDOW", 1)
    records: list[Any] = [{"prompt": prompt, "id": number} for number, prompt in enumerate(PROMPTS * 4)]
    records[5] = {"prompt": ""}
    file, plain, spread = write_records(*records), tmp_path / "plain.jsonl", tmp_path / "ray.jsonl"
    settings = ["generation.batch_size=4", "generation.do_sample=true"]
    predict.run(run, str(file), str(plain), settings, on_error="record")
    killed: list[int] = []
    over = threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(spread, killed, over))
    killer.start()
    try:
        predict.run(run, str(file), str(spread), settings, on_error="record", cluster=two_cpus)
    finally:
        over.set()
        killer.join()
    assert killed
    assert spread.read_bytes() == plain.read_bytes()
    whole = spread.read_bytes()
    spread.write_bytes(whole[: len(whole) * 2 // 3])
    predict.run(run, str(file), str(spread), settings, on_error="record", resume=True, cluster=two_cpus)
    assert spread.read_bytes() == whole


@pytest.mark.slow
def test_evaluate_and_tables(two_cpus: Cluster, run: str, write_records: Any, tmp_path: Path) -> None:
    _, plain = evaluate.run(run)
    _, spread = evaluate.run(run, cluster=two_cpus)
    assert spread == plain
    table, answers = tmp_path / "in.parquet", [tmp_path / f"{name}.parquet" for name in ("plain", "ray")]
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"prompt": PROMPTS[:6]}), table)
    predict.run(run, str(table), str(answers[0]))
    predict.run(run, table.as_uri(), answers[1].as_uri(), cluster=two_cpus)
    first, second = (pyarrow.parquet.read_table(path) for path in answers)
    assert first.equals(second)


@pytest.mark.slow
def test_what_a_node_lacks_is_told(
    two_cpus: Cluster, run: str, write_records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered before stays."""
    file, output = write_records({"prompt": "1+2="}), tmp_path / "out.jsonl"
    output.write_text("precious\n")
    assignment = replace(Assignment.of(resolve(run), GenerationSettings()), version="0.0")
    monkeypatch.setattr(Assignment, "of", lambda *_: assignment)
    with pytest.raises(UserError, match=r"--ray: node .*: glmtune .* is there, and 0\.0 asks"):
        predict.run(run, str(file), str(output), overwrite=True, cluster=two_cpus)
    assert output.read_text() == "precious\n"
    with pytest.raises(UserError, match="--workers 3: the cluster has 2 CPUs"):
        predict.run(run, str(file), str(output), overwrite=True, cluster=Cluster(workers=3))
