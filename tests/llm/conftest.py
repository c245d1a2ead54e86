"""An HTTP server that gives the answers of a script, to test the server engine against faults."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

import pytest

from tests.fakes import tiny_subject


@pytest.fixture
def scripted(tmp_path):
    """A server of the tiny model, which gives the answers in `replies` in order, then those of `choose`.

    `requests` holds the bodies that were sent.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer(*{"/v1/models": server.models, "/metrics": server.metrics}.get(self.path, (404, {})))

        def do_POST(self):
            server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(*(server.replies.pop(0) if server.replies else server.choose(server.requests[-1])))

        def answer(self, status, body, headers=MappingProxyType({})):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            self.close_connection = "Content-Length" in headers

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    card = {"id": "tiny", "root": str(tiny_subject(tmp_path / "model")), "max_model_len": 4096}
    server.models, server.replies, server.requests = (200, {"data": [card]}), [], []
    server.metrics, server.choose = (
        (404, {}),
        lambda body: (400, {"error": {"message": "the script has ended"}}),
    )
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def impatient(monkeypatch):
    """No waiting between two tries."""
    monkeypatch.setattr("neuroexplain.llm.gate.FIRST_PAUSE", 0.01)
