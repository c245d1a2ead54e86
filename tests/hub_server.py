"""A stand-in of the Hugging Face hub's endpoint: what an upload asks of it, and what it keeps."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_right"


class Hub:
    """Knows the user `jane` by one token, her organization `lab`, and a data set of somebody else."""

    def __init__(self) -> None:
        self.data_sets: dict[str, dict[str, bytes]] = {"someone/theirs": {"data.csv": b"1"}}
        self.private: dict[str, bool] = {"someone/theirs": False}
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.n_commits = 0
        self.n_large = 0  # large files that were sent, however often
        self.breaks_after: int | None = None  # large files
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, folder: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Environment variables by which the library asks this server, with this token and no other.

        Xet, which the library prefers where it is installed, has servers of its own: large files go by LFS.
        """
        names = {"HF_ENDPOINT": self.url, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}
        return names | {"HF_HUB_OFFLINE": "0", "HF_TOKEN": token or ""}

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        """The status and the JSON of the answer to a request."""
        if method == "PUT":
            return self._keep(path.rsplit("/", 1)[-1], body)
        if token != TOKEN:
            return 401, {"error": "Invalid user token."}
        if path == "/api/whoami-v2":
            return 200, {"name": "jane", "orgs": [{"name": "lab"}], "auth": {}}
        if path == "/api/validate-yaml":
            return 200, {}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        name = "/".join(path.replace("/api/datasets/", "/datasets/").split("/")[2:4]).removesuffix(".git")
        if name not in self.data_sets:
            return 404, {"error": "Repository not found"}
        if method == "GET":
            files = [{"rfilename": file} for file in self.data_sets[name]]
            about = {"id": name, "private": self.private[name], "siblings": files, "tags": []}
            return 200, about | {"sha": "0" * 40, "downloads": 0, "likes": 0}
        if name.split("/")[0] not in ("jane", "lab"):
            return 403, {"error": "Forbidden: you must use a write token to upload to a repository."}
        if path.endswith("/objects/batch"):
            return 200, {
                "transfer": "basic",
                "objects": [self._to_send(o) for o in json.loads(body)["objects"]],
            }
        if "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {file: "lfs" if file.endswith(".parquet") else "regular" for file in files}
            answers = [{"path": f, "uploadMode": mode, "shouldIgnore": False} for f, mode in modes.items()]
            return 200, {"files": answers}
        assert "/commit/" in path, (method, path)
        return self._commit(name, body)

    def _create(self, request: dict[str, Any]) -> tuple[int, Any]:
        namespace = request["organization"] or "jane"
        name = f"{namespace}/{request['name']}"
        if namespace not in ("jane", "lab"):
            return 403, {"error": f'You don\'t have the rights to create a dataset under "{namespace}"'}
        if name in self.data_sets:
            return 409, {
                "error": "You already created this dataset repo",
                "url": f"{self.url}/datasets/{name}",
            }
        self.data_sets[name] = {".gitattributes": b""}
        self.private[name] = request["visibility"] == "private"
        return 200, {"url": f"{self.url}/datasets/{name}", "id": name, "name": name}

    def _to_send(self, wanted_object: dict[str, Any]) -> dict[str, Any]:
        oid = wanted_object["oid"]
        upload = {"actions": {"upload": {"href": f"{self.url}/large/{oid}"}}}
        return wanted_object | ({} if oid in self.large else upload)

    def _keep(self, sha256: str, body: bytes) -> tuple[int, Any]:
        if self.breaks_after is not None and self.n_large >= self.breaks_after:
            return 400, {"error": "broken"}
        assert hashlib.sha256(body).hexdigest() == sha256
        self.large[sha256] = body
        self.n_large += 1
        return 200, {}

    def _commit(self, name: str, body: bytes) -> tuple[int, Any]:
        files = self.data_sets[name]
        for operation in map(json.loads, body.splitlines()):
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        self.n_commits += 1
        url = f"{self.url}/datasets/{name}/commit/{'0' * 40}"
        return 200, {"success": True, "commitUrl": url, "commitOid": "0" * 40, "hookOutput": ""}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            path = self.path.split("?")[0]
            status, value = hub.answer(self.command, path, self.rfile.read(size), token)
            answer = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            if "error" in value:
                self.send_header("X-Error-Message", value["error"])
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_HEAD = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    return Handler
