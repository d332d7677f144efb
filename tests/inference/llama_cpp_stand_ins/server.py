"""What of llama.cpp's server is asked."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from stand_in import StandIn


def serve(file: str, context: int, port: int) -> ThreadingHTTPServer:
    model = StandIn(file)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.say({"model_path": file, "default_generation_settings": {"n_ctx": context}})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                assert asked["parse_special"] and not asked["add_special"]
                self.say({"tokens": model.encode(asked["content"])})
                return
            assert asked["temperature"] == 0 and not asked["cache_prompt"]
            written = model.answer(asked["n_predict"])
            ended = written[-1] == model.end
            self.say({"tokens": written[:-1] if ended else written, "stop_type": "eos" if ended else "limit"})

        def say(self, values):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(values).encode())

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)
