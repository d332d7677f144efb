"""A process of its own for a Python package that holds llama.cpp: what crashes there crashes nobody else.

`python worker.py PACKAGE FILE CONTEXT THREADS` speaks JSON, a line each: first `{"address": ...}` of a server that it
runs, or null; then an answer to each line that it reads; `{"error": ...}` in their place where something is wrong. All
else that is printed, also by C, goes to the standard error stream. It ends with its standard input. It imports nothing
of glmtune, and is run as a file, so that nothing in the working folder is taken for one of the packages.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


class XLlamaCpp:
    """xllamacpp (https://github.com/xorbitsai/xllamacpp), which brings llama.cpp's own server."""

    def __init__(self, file: str, context: int, threads: int) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = file, context, 1, False
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        self.server = xllamacpp.Server(settings)
        self.address: str | None = self.server.listening_address


class LlamaCppPython:
    """llama-cpp-python (https://github.com/abetlen/llama-cpp-python)."""

    address: str | None = None

    def __init__(self, file: str, context: int, threads: int) -> None:
        from llama_cpp import Llama

        self.model = Llama(file, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)

    def complete(self, prompt: str, bos: str, most: int, stops: list[int]) -> dict[str, Any]:
        """Answer a prompt greedily; its control tokens are in it, `bos` too."""
        asked = self.model.tokenize(prompt.encode(), add_bos=False, special=True)
        ends, written = {*stops, self.model.token_eos()}, []
        for token in self.model.generate(asked, temp=0.0, repeat_penalty=1.0):
            written.append(token)
            if token in ends or len(written) == most:
                break
        return {"prompt": asked, "tokens": written, "ended": written[-1] in ends}


class Gpt4All:
    """gpt4all (https://github.com/nomic-ai/gpt4all): a llama.cpp of 2024, without its templates and its history."""

    address: str | None = None

    def __init__(self, file: str, context: int, threads: int) -> None:
        from gpt4all import _pyllmodel as library

        # As the package itself chooses for device="cpu": the one that runs without a GPU.
        self.model = library.LLModel(file, context, 0, "cpu" if sys.platform == "darwin" else "kompute")
        if not self.model.load_model():
            raise RuntimeError("the file could not be loaded")
        self.model.set_thread_count(threads)
        self.model._callback_decoder = lambda callback: callback  # it leaves tokens out that are half a character
        self.model._prompt_callback = self._note
        self.asked: list[int] = []
        self.written: list[int] = []

    def complete(self, prompt: str, bos: str, most: int, stops: list[int]) -> dict[str, Any]:
        """Answer a prompt greedily; its control tokens are in it, but `bos` where the file puts it there itself."""
        self._run(prompt, most, stops)
        if bos and prompt.startswith(bos) and self.asked[:1] == self.asked[1:2]:
            self._run(prompt.removeprefix(bos), most, stops)
        ended = len(self.written) < most or self.written[-1] in stops
        return {"prompt": self.asked, "tokens": self.written, "ended": ended}

    def _run(self, prompt: str, most: int, stops: list[int]) -> None:
        self.asked, self.written = [], []

        def write(token: int, _: bytes) -> bool:
            self.written.append(token)
            return token not in stops

        greedy = {"top_k": 1, "temp": 1.0, "top_p": 1.0, "repeat_penalty": 1.0, "repeat_last_n": 0}
        self.model.prompt_model(
            prompt, "%1", write, n_predict=most, n_batch=128, reset_context=True, special=True, **greedy
        )

    def _note(self, token: int) -> bool:
        if not self.written:  # what is put after the answer comes here, too
            self.asked.append(token)
        return True


PACKAGES: dict[str, Any] = {"xllamacpp": XLlamaCpp, "llama_cpp": LlamaCppPython, "gpt4all": Gpt4All}


def main() -> None:
    """Open the file, then answer line by line."""
    package, file, context, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(**values: Any) -> None:
        line = json.dumps(values)  # for a program, in ASCII: no terminal gets to see it
        answers.write(f"{line}\n")
        answers.flush()

    try:
        engine = PACKAGES[package](file, int(context), int(threads))
    except Exception as error:  # of a library, told by whoever started this
        say(error=str(error) or type(error).__name__)
        return
    say(address=engine.address)
    for line in sys.stdin:
        try:
            say(**engine.complete(**json.loads(line)))
        except Exception as error:
            say(error=str(error) or type(error).__name__)


if __name__ == "__main__":
    main()
