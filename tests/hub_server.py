"""A Hugging Face Hub on loopback, as much of it as snapshot_download asks for.

Serves the folders below `root` as repositories (`root/org/name`), any revision but "missing".
`faults[path]` makes one file misbehave: "slow" (never answers in time), "broken" (half the bytes,
then the connection closes). `hits` counts file requests by path.
"""

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """`with HubServer(root) as hub:` — then set HF_ENDPOINT to `hub.url`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: dict[str, str] = {}
        self.hits: Counter[str] = Counter()
        self.token: str | None = None  # when set, requests without it get 401
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that gave up on a slow answer
            super().handle()

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._refuse(401, "RepoNotFound")
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            return self._info(path.removeprefix("api/models/"))
        repo, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        if revision == "missing":
            return self._refuse(404, "RevisionNotFound")
        self._file(self.hub.root / repo / name, f"{repo}/{name}", body)

    def _info(self, path: str) -> None:
        if "/tree/" in path:
            return self._tree(self.hub.root / path.partition("/tree/")[0])
        repo, _, revision = path.partition("/revision/")
        folder = self.hub.root / repo
        if not folder.is_dir():
            return self._refuse(404, "RepoNotFound")
        if revision == "missing":
            return self._refuse(404, "RevisionNotFound")
        files = [{"rfilename": item.name} for item in sorted(folder.iterdir())]
        self._send(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": files}).encode())

    def _tree(self, folder: Path) -> None:
        entries = [
            {
                "type": "file",
                "path": item.name,
                "size": item.stat().st_size,
                "oid": hashlib.sha1(item.read_bytes()).hexdigest(),
            }
            for item in sorted(folder.iterdir())
        ]
        self._send(200, json.dumps(entries).encode())

    def _file(self, file: Path, path: str, body: bool) -> None:
        self.hub.hits[path] += body
        fault = self.hub.faults.get(path)
        if fault == "slow" and body:
            time.sleep(2)
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        content = file.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        self.send_response(200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body and fault == "broken":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
