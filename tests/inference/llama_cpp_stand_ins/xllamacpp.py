"""Stands in for xllamacpp."""

from threading import Thread
from types import SimpleNamespace

from server import serve


class CommonParams(SimpleNamespace):
    def __init__(self):
        super().__init__(model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace())


class Server:
    def __init__(self, settings):
        self.served = serve(settings.model.path, settings.n_ctx, 0)
        self.listening_address = f"http://127.0.0.1:{self.served.server_port}"
        Thread(target=self.served.serve_forever, daemon=True).start()
