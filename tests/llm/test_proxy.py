"""Proxies of the environment: never before this machine, obeyed beyond it, and named when they answer."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from neuroexplain.errors import EngineError
from neuroexplain.llm.proxy import find_proxy, is_this_machine
from tests.fakes import tiny_subject
from tests.llm.scripted import completion, connect, generate

pytestmark = pytest.mark.usefixtures("impatient")
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def proxy():
    """A proxy that refuses whatever it is asked, and remembers what that was."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked_for.append(self.path)
            self.send_response(server.status)
            self.end_headers()
            self.wfile.write(b"<html>This page is blocked.</html>")

        do_CONNECT = do_GET  # noqa: N815  (http.server's name)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.asked_for = 200, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_is_not_asked_for_this_machine(scripted, proxy, monkeypatch, variable, host):
    monkeypatch.setenv(variable, proxy.url)
    scripted.url = scripted.url.replace("127.0.0.1", host)
    scripted.replies = [completion("geese")]
    assert generate(connect(scripted)).text == "geese"
    assert proxy.asked_for == []


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (200, "lists no models"),
        (403, "wants a key"),
        (407, "The proxy wants a password"),
        (502, "lists no models"),
    ],
)
def test_a_proxy_that_answers_is_named_without_its_password(scripted, proxy, monkeypatch, status, message):
    monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//ada:secret@"))
    proxy.status = status
    scripted.url = "http://gpu-box.example:8000"
    with pytest.raises(EngineError, match=message) as refused:
        connect(scripted)
    assert f"(through the proxy {proxy.url} of the environment)" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert proxy.asked_for[0] == "http://gpu-box.example:8000/v1/models"


def test_a_proxy_that_is_away_is_named(scripted, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    scripted.url = "http://gpu-box.example:8000"
    with pytest.raises(EngineError, match=r"no server at .*through the proxy http://127\.0\.0\.1:9"):
        connect(scripted)


def test_hosts_of_no_proxy_are_asked_directly(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    assert find_proxy("http://gpu-box.example/v1") == "http://proxy:3128"
    monkeypatch.setenv("NO_PROXY", ".example")
    assert find_proxy("http://gpu-box.example/v1") is None
    assert find_proxy("https://other.host/v1") is None  # another scheme


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://127.3.2.1", True),
        ("http://[::1]:8000", True),
        ("http://localhost", True),
        ("http://LOCALHOST.:80", True),
        ("http://vllm.localhost", True),
        ("http://10.0.0.1", False),
        ("http://localhost.evil.example", False),
        ("http://127.0.0.1.example", False),
    ],
)
def test_which_hosts_are_this_machine(url, expected):
    assert is_this_machine(url) == expected


def test_a_tokenizer_that_lies_elsewhere_is_named(scripted, tmp_path):
    scripted.models = 200, {"data": [{"id": "tiny", "root": "/nowhere", "max_model_len": 4096}]}
    scripted.replies = [completion("geese")]
    with pytest.raises(EngineError, match="--tokenizer NAME"):
        generate(connect(scripted))
    folder = str(tiny_subject(tmp_path / "elsewhere"))
    assert generate(connect(scripted, tokenizer=folder)).text == "geese"
