"""`glmtune serve`: names, keys and tools are looked at before weights; what is served is what is predicted."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import glmtune
from glmtune.commands import serve
from glmtune.commands.serve import Options
from glmtune.execution import Run
from glmtune.runtime import UserError

PROMPTS = ["1+2=", "12.5+7", "3", "5*5"]


@contextmanager
def serving(*words: str, cwd: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own, and its address."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    verb = [sys.executable, "-m", "glmtune", "serve", *words, "--port", str(port)]
    process = subprocess.Popen(verb, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for _ in range(600):
            try:
                get(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def get(address: str, body: Any = None, key: str = "") -> Any:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(address, json.dumps(body).encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_served_is_predicted(tiny_run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """With a key, two models on one base, the run looked at first; at the end it goes in peace."""
    keys = tmp_path / "keys"
    keys.write_text("one\n\ntwo\n")
    targets = {"base": str(tiny_checkpoint), "run": str(tiny_run.folder.path)}
    named = [f"{name}={target}" for name, target in targets.items()]
    with serving(*named, "--api-key-file", str(keys), "--max-queue", "9", cwd=tmp_path) as (address, process):
        assert get(f"{address}/ready")["models"]["run"]["is_ready"] is True
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(f"{address}/v1/models")
        assert [model["id"] for model in get(f"{address}/v1/models", key="two")["data"]] == ["base", "run"]
        for name, target in targets.items():
            expected = glmtune.predict(target, PROMPTS, {"generation.max_new_tokens": 12})
            for prompt, exchange in zip(PROMPTS, expected, strict=True):
                body = {"model": name, "messages": [{"role": "user", "content": prompt}], "max_tokens": 12}
                choice = get(f"{address}/v1/chat/completions", body, "one")["choices"][0]
                assert choice["message"]["content"] == exchange.text
                assert choice["finish_reason"] == exchange.completion.finish_reason
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[0]
    assert process.returncode == 0
    shown = len(tiny_run.report["after"]["samples"])
    assert f"run: {shown} of {shown} held-out problems are answered as the report says." in said
    assert f"{address}/v1/chat/completions" in said and "one" not in said.split() and "Traceback" not in said


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (["nano", "nano"], Options(), "nano: nano is the name of nano already. Choose another: NAME=nano"),
        (["a=nano", "a=other"], Options(), "a=other: a is the name of nano already"),
        (["nanno"], Options(), "no run, adapter, checkpoint or recipe at nanno"),
        (["nano"], Options(tools=["calculater"]), "--tools: .*calculator"),
        (["nano"], Options(api_key_file=Path("nowhere")), "--api-key-file nowhere: cannot be read"),
        (["nano"], Options(slots=0), "--slots 0: give 1 or more"),
        (["nano"], Options(slots=-3), "--slots -3: give 1 or more"),
        (["nano"], Options(max_queue=0), "--max-queue 0: give 1 or more"),
        (["nano"], Options(max_model_len=0), "--max-model-len 0: give 2 or more"),
        (["nano"], Options(max_tokens_in_flight=0), "--max-tokens-in-flight 0: give 1 or more"),
        (["nano"], Options(port=99999), "--port 99999: give 0 to 65535"),
        (["nano"], Options(shutdown_timeout=-1), "--shutdown-timeout -1: give 0 to 86400"),
        (["nano"], Options(shutdown_timeout=float("nan")), "--shutdown-timeout nan: give 0 to 86400"),
    ],
)
def test_what_is_refused_before_weights(targets: list[str], options: Options, message: str, no_weights: None) -> None:
    with pytest.raises(UserError, match=message):
        serve.run(targets, options)


def test_an_empty_file_of_keys(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n \n")
    with pytest.raises(UserError, match="holds no key"):
        serve.read_keys(tmp_path / "keys")


def test_names() -> None:
    named = serve.name_models(["nano", "runs/arithmetic-lora-1/", "tuned=runs/a", "./b=c/d", "files/model.Q8_0.gguf"])
    assert named == {
        "nano": "nano",
        "arithmetic-lora-1": "runs/arithmetic-lora-1/",
        "tuned": "runs/a",
        "d": "./b=c/d",
        "model.Q8_0": "files/model.Q8_0.gguf",
    }


def test_a_port_that_is_taken_is_told_before_models_are_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--host 127.0.0.1 --port {port}: .*\. Choose another one"):
            serve.run(["/no/such/model"], Options(port=port))
