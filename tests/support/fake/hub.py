"""A Hugging Face Hub on loopback, as much of it as downloads ask for, with faults at will.

Serves the folders below `root` as repositories (`root/org/name`). Any revision but "missing" and a
commit is the branch that follows the folder: changing its files makes a new commit, and the old
one stays available. `faults[path]` makes one path misbehave, a file (`org/name/file`) or the
repository's description (`api/models/org/name`):

    "slow"       silent for `silence` before the answer       "trickle"    a few bytes every 0.1 s
    "broken"     half of what was asked for, then the connection closes
    "reset"      half of what was asked for, then the connection is reset
    "oversized"  more bytes than the HEAD said          "endless"    no length, bytes for ever
    "damaged"    the right length, wrong bytes          "gated"      403 as for a gated repository
    "404" …      this status                            "html"       200 and a page of some proxy

`hits` counts file requests and `sent` their bytes, by path; `asked` counts all requests.
"""

import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

_CODES = {401: "RepoNotFound", 404: "EntryNotFound"}
_PAGE = b"<!doctype html><title>Please log in</title>"


class HubServer:
    """`with HubServer(root) as hub:` — then set HF_ENDPOINT to `hub.url`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: dict[str, str] = {}
        self.times: dict[str, int] = {}
        self.hits: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.asked = 0
        self.silence = 2.0  # seconds
        self.ranges = True  # whether "Range" is understood
        self.sizes = True  # whether a HEAD says how long a file is
        self.token: str | None = None  # when set, requests without it get 401
        self.cdn = False  # whether files come from another host, as large ones of the Hub do
        self.leaked = 0  # requests that showed the token to that host
        self._commits: dict[str, Mapping[str, bytes]] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def fail(self, path: str, fault: str, times: int) -> None:
        """`faults[path]` for the next `times` requests only."""
        self.faults[path], self.times[path] = fault, times

    def next_fault(self, path: str) -> str:
        fault = self.faults.get(path, "")
        if fault and path in self.times:
            self.times[path] -= 1
            if not self.times[path]:
                del self.faults[path], self.times[path]
        return fault

    def files(self, repo: str, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        """(commit, name → content), None for a repository that is not there."""
        folder = self.root / repo
        if revision in self._commits:
            return revision, self._commits[revision]
        if not folder.is_dir():
            return None
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        digests = [f"{repo}/{name} {_sha256(content)}" for name, content in files.items()]
        commit = hashlib.sha1("\n".join(digests).encode()).hexdigest()
        self._commits[commit] = files
        return commit, files


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # a client that gave up on a slow answer
            super().handle()

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.hub.asked += 1
        if self.path.startswith("/cdn/"):
            return self._from_cdn(body)
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._refuse(401, "RepoNotFound")
        path = unquote(self.path.split("?")[0]).strip("/")
        if path.startswith("api/models/"):
            return self._info(path)
        repo, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        if revision == "missing":
            return self._refuse(404, "RevisionNotFound")
        found = self.hub.files(repo, revision)
        if found is None:
            return self._refuse(404, "RepoNotFound")
        self._file(f"{repo}/{name}", *found, body)

    def _info(self, path: str) -> None:
        repo, _, revision = path.removeprefix("api/models/").partition("/revision/")
        repo, _, tree_revision = repo.partition("/tree/")
        found = self.hub.files(repo, revision or tree_revision)
        fault = self.hub.next_fault(f"api/models/{repo}")
        if fault == "slow":
            time.sleep(self.hub.silence)
        elif fault == "html":
            return self._send(200, _PAGE)
        elif fault:
            return self._refuse(int(fault), "")
        if found is None:
            return self._refuse(404, "RepoNotFound")
        if "missing" in (revision, tree_revision):
            return self._refuse(404, "RevisionNotFound")
        commit, files = found
        if tree_revision:
            tree = [_tree_entry(name, content) for name, content in files.items()]
            return self._send(200, json.dumps(tree).encode())
        siblings = [{"rfilename": name} for name in files]
        about = {"id": repo, "sha": commit, "siblings": siblings}
        self._send(200, json.dumps(about).encode())

    def _from_cdn(self, body: bool) -> None:
        self.hub.leaked += "Authorization" in self.headers
        _, _, commit, *path = unquote(self.path).split("/")
        found = self.hub.files("", commit)
        assert found, "a file of a commit that was never listed"
        self._file("/".join(path), *found, body)

    def _to_cdn(self, path: str, commit: str, content: bytes) -> None:
        self.send_response(302)
        other_host = self.hub.url.replace("127.0.0.1", "localhost")
        self.send_header("Location", f"{other_host}/cdn/{commit}/{path}")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Linked-ETag", f'"{_sha256(content)}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, path: str, commit: str, files: Mapping[str, bytes], body: bool) -> None:
        if self.hub.cdn and not self.path.startswith("/cdn/") and path.endswith(".safetensors"):
            return self._to_cdn(path, commit, files[path.split("/", 2)[-1]])
        self.hub.hits[path] += body
        known = self.hub.faults.get(path, "")
        refused = known.isdigit() or known in ("gated", "html")  # a HEAD meets this, too
        fault = self.hub.next_fault(path) if body or refused else ""
        if fault == "slow":
            time.sleep(self.hub.silence)
        if fault == "gated":
            return self._refuse(403, "GatedRepo")
        if fault == "html":
            return self._send(200, _PAGE)
        if fault.isdigit():
            return self._refuse(int(fault), _CODES.get(int(fault), ""))
        content = files.get(path.split("/", 2)[-1])
        if content is None:
            return self._refuse(404, "EntryNotFound")
        etag = _sha256(content)
        if fault == "oversized":
            content += bytes(1 << 20)
        if fault == "damaged":
            content = bytes(len(content))
        start = self._range_start(len(content)) if self.hub.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        if fault == "endless" or (not body and not self.hub.sizes):
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body:
            self._body(path, content[start:], fault)

    def _range_start(self, size: int) -> int:
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        return start if start < size else 0

    def _body(self, path: str, content: bytes, fault: str) -> None:
        if fault in ("broken", "reset"):
            self._write(path, content[: len(content) // 2])
            self.close_connection = True
            time.sleep(0.1)  # let the half arrive: at the end, clients drop what is unread
            if fault == "reset":
                no_linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
                self.connection.shutdown(socket.SHUT_RD)
                self.connection.close()
        elif fault == "trickle":
            for i in range(0, len(content), 4):
                self._write(path, content[i : i + 4])
                time.sleep(0.1)
        elif fault == "endless":
            while True:
                self._write(path, bytes(1 << 16))
        else:
            self._write(path, content)

    def _write(self, path: str, content: bytes) -> None:
        self.wfile.write(content)
        self.hub.sent[path] += len(content)

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


def _tree_entry(name: str, content: bytes) -> dict[str, str | int]:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": name, "size": len(content), "oid": oid}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
