"""How a llama.cpp is asked: a server over HTTP, or a package in a process of its own over a pipe; and how it dies."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from glmtune.inference.llama_cpp.found import Found
from glmtune.runtime import UserError

PATIENCE = 600  # seconds for one answer
START = 300  # seconds in which a server has opened a file
ANOTHER = "Name another with --engine, or install a later version of it."


@dataclass(frozen=True)
class Reply:
    """What llama.cpp made of a prompt.

    Attributes:
        prompt_ids: the tokens that it read.
        token_ids: those that it wrote, with the one that ended them or without.
        has_ended: the answer ended by itself.
    """

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    has_ended: bool


class Connection(Protocol):
    """A llama.cpp with an open file."""

    def ask(self, prompt: str, bos: str, most: int, stops: Sequence[int]) -> Reply:
        """Answer greedily.

        Args:
            prompt: with its control tokens.
            bos: the token that llama.cpp may put before it, and that is there already.
            most: tokens of the answer.
            stops: tokens that end it, beside those that the file names.

        Raises:
            UserError: it gives no answer, or has died.
        """

    def close(self) -> None:
        """End what was started for it."""


def connect(found: Found, file: Path, context: int, threads: int) -> Connection:
    """Open a file.

    Args:
        found: the llama.cpp.
        file: a GGUF file.
        context: tokens that prompt and answer need together.
        threads: of the processor; a server that is running has its own.

    Raises:
        UserError: it cannot open the file, or has no room for so many tokens.
    """
    if found.address is not None:
        return Server(found, found.address).serving(file, context)
    port = free_port()
    if found.binary is not None:
        options = ["--host", "127.0.0.1", "--port", port, "-c", context, "-t", threads, "-np", 1]
        words = [found.binary, "-m", file, *options]
    else:
        worker = Path(__file__).with_name("worker.py")
        words = [sys.executable, worker, found.package, file, context, threads]
    process = Process(found, file, words)
    try:
        if found.binary is not None:
            return Server(found, f"http://127.0.0.1:{port}", process).wait()
        address = process.ask(None).get("address")
        return Server(found, address, process) if address else Pipe(process)
    except BaseException:
        process.close()
        raise


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


class Process:
    """A process that holds the file, and what it says on its way."""

    def __init__(self, found: Found, file: Path, words: Sequence[Any]) -> None:
        self.found, self.file, self.is_open, self.is_late = found, file, False, False
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115, as long as it runs
        pipe = subprocess.PIPE
        self.running = subprocess.Popen(
            [*map(str, words)], stdin=pipe, stdout=pipe if found.package else self.log, stderr=self.log, text=True
        )

    def ask(self, question: dict[str, Any] | None) -> dict[str, Any]:
        """Write a line, and return what is answered; None: read the first line, by which the file is open.

        Raises:
            UserError: the process has ended, says what is wrong, or takes longer than `PATIENCE`.
        """
        assert self.running.stdin is not None and self.running.stdout is not None
        deadline = threading.Timer(PATIENCE, self.give_up)
        deadline.daemon = True
        deadline.start()
        try:
            if question is not None:
                asked = json.dumps(question)  # for a program, in ASCII: no terminal gets to see it
                self.running.stdin.write(f"{asked}\n")
                self.running.stdin.flush()
            line = self.running.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            deadline.cancel()
        if not line:
            raise self.death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self.fault(answer["error"])
        self.is_open = True
        return answer

    def give_up(self) -> None:
        """End it, as it gives no answer: who waits for one then reads that there is none."""
        self.is_late = True
        self.running.kill()

    def has_ended(self) -> bool:
        """Whether it has ended, or does so within a second: a connection ends before its process."""
        with suppress(subprocess.TimeoutExpired):
            self.running.wait(1)
        return self.running.poll() is not None

    def death(self) -> UserError:
        """Return how the process has ended, for the user."""
        code = self.running.wait()
        if self.is_late:
            return self.fault(f"no answer within {PATIENCE} seconds")
        ending = f"it ended with {signal.Signals(-code).name}" if code < 0 else f"it ended with code {code}"
        return self.fault(ending)

    def fault(self, what: str) -> UserError:
        """Return what is wrong, with what the log says of it."""
        self.log.seek(0)
        lines = [line.strip() for line in self.log if line.strip()]
        told = [line for line in lines if "error" in line.lower() or "unknown" in line.lower()]
        reason = (told or lines or [""])[0].rpartition("error loading model: ")[2]
        did = "stopped answering from" if self.is_open else "cannot open"
        return UserError(f"{self.found.name} {did} {self.file}: {what}{reason and f' ({reason})'}. {ANOTHER}")

    def close(self) -> None:
        """End it."""
        self.running.kill()
        self.running.wait()
        self.log.close()


class Pipe:
    """A package that answers line by line."""

    def __init__(self, process: Process) -> None:
        self.process = process

    def ask(self, prompt: str, bos: str, most: int, stops: Sequence[int]) -> Reply:
        """Answer greedily; see `Connection`."""
        found = self.process.ask({"prompt": prompt, "bos": bos, "most": most, "stops": [*stops]})
        return Reply(found["prompt"], found["tokens"], found["ended"])

    def close(self) -> None:
        """End the process."""
        self.process.close()


class Server:
    """llama.cpp's own server (https://github.com/ggml-org/llama.cpp/tree/master/tools/server).

    It encodes the prompt as it stands: what it would put before it is there already.
    """

    def __init__(self, found: Found, address: str, process: Process | None = None) -> None:
        self.found, self.address, self.process = found, address, process
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def wait(self) -> Server:
        """Wait until it has opened its file.

        Raises:
            UserError: it has ended, or takes too long.
        """
        assert self.process is not None
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            if self.process.running.poll() is not None:
                raise self.process.death()
            try:
                self.call("/health")
                self.process.is_open = True
                return self
            except OSError:
                time.sleep(0.1)
        raise self.process.fault(f"not within {START} seconds")

    def serving(self, file: Path, context: int) -> Server:
        """See whether it serves a file, with room for so many tokens.

        Raises:
            UserError: it does not, or cannot be reached.
        """
        try:
            props = self.call("/props")
            named, room = str(props.get("model_path") or ""), props["default_generation_settings"]["n_ctx"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.found.name} cannot be asked: {error}. Start it: llama-server -m {file} -c {context}"
            ) from error
        is_other = Path(named).is_file() and not file.samefile(named)  # of another machine, the name is all there is
        if named and (Path(named).name != file.name or is_other):
            raise UserError(
                f"{self.found.name} serves {named}, not {file}. Start it: llama-server -m {file} -c {context}"
            )
        if room < context:
            raise UserError(
                f"{self.found.name} has room for {room} tokens, and prompts with their answers need {context}. Start "
                f"it: llama-server -m {file} -c {context}"
            )
        return self

    def ask(self, prompt: str, bos: str, most: int, stops: Sequence[int]) -> Reply:
        """Answer greedily; see `Connection`."""
        greedy = {"temperature": 0.0, "repeat_penalty": 1.0, "cache_prompt": False, "return_tokens": True}
        try:
            ids = self.call("/tokenize", content=prompt, add_special=False, parse_special=True)["tokens"]
            found = self.call("/completion", prompt=ids, n_predict=most, **greedy)
            return Reply(ids, found["tokens"], found["stop_type"] in ("eos", "word"))
        except urllib.error.HTTPError as error:
            raise UserError(f"{self.found.name} refuses: {error.read(500).decode(errors='replace')}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            if self.process is not None and self.process.has_ended():
                raise self.process.death() from error
            raise UserError(f"{self.found.name} gives no answer: {error}. Start it again.") from error

    def call(self, path: str, **body: Any) -> Any:
        """Return what it answers: to a question in JSON, or to none.

        Raises:
            OSError, ValueError: it cannot be reached, or answers no JSON.
        """
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with self.opener.open(request, timeout=PATIENCE) as response:
            return json.load(response)

    def close(self) -> None:
        """End it, if it was started for this."""
        if self.process is not None:
            self.process.close()
