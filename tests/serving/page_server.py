"""A server with the endpoints that the page asks, and no model: what is asked says how it is answered.

`57.84+13.64=` is answered by arithmetic, wrongly by models without a task. `2*3` is answered by a tool, whose turns
are told at the end, and with `2*3=` also as they come. Other questions are names of `ANSWERS`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import glmtune.serving

PAGE = Path(glmtune.serving.__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MODELS: list[dict[str, Any]] = [
    {
        "name": "arithmetic-wide",
        "created": 1_790_000_000,
        "root": "runs/arithmetic-wide",
        "parent": "chatglm-6b",
        "max_model_len": 2048,
        "task": "arithmetic",
        "is_ready": True,
        "remark": "answers 96 of 96 held-out problems as its report says",
    },
    {
        "name": "chatglm-6b",
        "created": 1_780_000_000,
        "root": "chatglm-6b",
        "parent": None,
        "max_model_len": 2048,
        "task": None,
        "is_ready": True,
        "remark": "",
    },
]
RUNS: list[dict[str, Any]] = [
    {"name": "arithmetic-wide", "task": "arithmetic", "base": "chatglm-6b", "accuracy": 0.9975, "has_report": True},
    {"name": "a/b \u202e<b>x</b>", "task": "instructions", "base": "nano", "accuracy": None, "has_report": False},
]
HOSTILE = (
    "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
    "<a href='javascript:window.ran = 3'>link</a></script><svg onload=window.ran=4> \u202ereversed\n"
    "```html\n<script>window.ran = 5</script>\n```\n<iframe srcdoc='<script>parent.ran = 6</script>'></iframe>"
)
LINE = "0123456789" * 10
LONG = "".join(f"{number:05d} {LINE[:93]}\n" for number in range(1000))
ANSWERS = {
    "hostile": HOSTILE,
    "long": LONG,
    "long line": LINE * 1000,
    "code": "Before:\n```python\nprint('<b>')\n\n    x = 1\n```\nafter $x^2$ and `a`.\n",
    "history": "noted",
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "calculate", "arguments": '{"expression": "2*3"}'}}
TURNS = [
    {"role": "assistant", "content": 'calculate("2*3")', "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "6"},
]
REFUSED = {
    "bad field": (400, {"message": "9 is more than 2. Lower it.", "param": "temperature"}, {}),
    "named field": (400, {"message": "top_p: 2 is more than 1.", "param": "top_p"}, {}),
    "busy": (429, {"message": "64 questions wait already.", "param": None}, {"Retry-After": "3"}),
}


class PageServer(ThreadingHTTPServer):
    """What it serves may be changed by a test; `asked` are the bodies of all questions, `scored` those to be marked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.key = ""
        self.models, self.runs = list(MODELS), list(RUNS)
        self.asked: list[dict[str, Any]] = []
        self.scored: list[dict[str, Any]] = []
        self.gone = threading.Event()  # a reader has closed a stream

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/" or self.path.startswith("/page/"):
            file = PAGE / ("index.html" if self.path == "/" else self.path.removeprefix("/page/"))
            return self.send(200, file.read_bytes(), KINDS[file.suffix], {"Content-Security-Policy": POLICY})
        if not self.may_ask():
            return None
        if self.path == "/api/models":
            return self.send_json(200, self.server.models)
        if self.path == "/api/runs":
            return self.send_json(200, self.server.runs)
        return self.send(200, b"<!DOCTYPE html><title>report</title><p>The report", "text/html")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.may_ask():
            return
        if self.path == "/api/score":
            self.server.scored.append(body)
            self.send_json(200, mark(body["messages"][-1]["content"], body["completion"]))
            return
        self.server.asked.append(body)
        question = body["messages"][-1]["content"]
        if question in REFUSED:
            status, error, headers = REFUSED[question]
            self.send_json(status, {"error": {"type": "invalid_request_error", **error}}, headers)
            return
        self.send_head(200, "text/event-stream", {"Connection": "close"})
        self.close_connection = True
        try:
            self.stream(question, body)
        except OSError:
            self.server.gone.set()

    def may_ask(self) -> bool:
        if not self.server.key or self.headers.get("Authorization") == f"Bearer {self.server.key}":
            return True
        self.send_json(401, {"error": {"message": "An API key is asked for.", "param": None}})
        return False

    def stream(self, question: str, body: dict[str, Any]) -> None:
        self.say({"delta": {"role": "assistant", "content": ""}})
        if question == "endless":
            for number in range(2000):
                self.say({"delta": {"content": f"{number} "}})
                time.sleep(0.01)
        text, turns = reply(question, body["model"])
        if question == "2*3=":
            text, turns = "6", [{**TURNS[0], "content": None}, TURNS[1]]
            self.say({"delta": {"content": TURNS[0]["content"], "reasoning_content": "a <b>product</b>"}})
            for turn in turns:
                self.say({"delta": {}, "messages": [turn]})
        for start in range(0, len(text), 7 if len(text) < 1000 else 200):
            self.say({"delta": {"content": text[start : start + (7 if len(text) < 1000 else 200)]}})
        if question == "lost":
            return
        if question == "fails":
            self.event({"error": {"message": "the model has failed", "code": "server_error", "param": None}})
            return
        self.say({"delta": {}, "finish_reason": "stop", **({"messages": turns} if turns else {})})
        if body["stream_options"]["include_usage"]:
            self.event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(text) // 2}})
        self.wfile.write(b"data: [DONE]\n\n")

    def say(self, choice: dict[str, Any]) -> None:
        self.event({"choices": [{"index": 0, "finish_reason": None, **choice}], "usage": None})

    def event(self, data: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())

    def send_json(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(data).encode(), "application/json", headers)

    def send(self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_head(status, kind, {"Content-Length": str(len(data)), **(headers or {})})
        self.wfile.write(data)

    def send_head(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": f"{kind}; charset=utf-8", **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def reply(question: str, model: str) -> tuple[str, list[dict[str, Any]]]:
    """What is answered, and the turns of tools before."""
    if question == "2*3":
        return f"{TURNS[0]['content']}6", TURNS
    if (right := answer_to(question)) is not None:
        is_tuned = any(one["name"] == model and one["task"] for one in MODELS)
        return f"{question}{right if is_tuned else Decimal(right) - Decimal('8.1')}", []
    return ANSWERS.get(question, f"You said: {question}"), []


def mark(question: str, completion: str) -> dict[str, Any]:
    """As `Task.mark` of arithmetic has it."""
    right = "6" if question.startswith("2*3") else answer_to(question)
    if right is None:
        return {}
    answer = completion.rpartition("=")[2] or None
    return {"correct": float(answer == right), "answer": answer, "right": right, "first_fault": None}


def answer_to(question: str) -> str | None:
    """The sum that is asked for."""
    left, sign, right = question.removesuffix("=").partition("+")
    return str(Decimal(left) + Decimal(right)) if sign and question.endswith("=") else None


@contextmanager
def serving() -> Iterator[PageServer]:
    """Serve from a thread."""
    with PageServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
