"""A Hub on this machine: what ``hf_hub_download`` and ``snapshot_download`` ask of
``HF_ENDPOINT``, and nothing more."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_API = re.compile(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/?]+).*")
_PATH = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def commit_of(revision: str) -> str:
    """The commit of a branch or tag, or a commit itself."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    return hashlib.sha1(revision.encode()).hexdigest()


@dataclass
class LocalHub:
    """Files by repository, revision and path; ``gated``: repositories that need permission.

    ``cuts``: how many answers end in the middle before one is whole. ``asked``: method, path and
    headers of every request.
    """

    files: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cuts: int = 0
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    endpoint: str = ""

    def add(self, repo: str, path: str, content: bytes, revision: str = "main") -> None:
        """Publish a file, under the revision's commit as well."""
        for each in (revision, commit_of(revision)):
            self.files[repo, each, path] = content

    def methods(self) -> list[str]:
        """The methods of all requests so far, which are forgotten."""
        found = [method for method, _, _ in self.asked]
        self.asked.clear()
        return found


@contextlib.contextmanager
def serving() -> Iterator[LocalHub]:
    """A hub that answers at ``endpoint`` until the block ends."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: LocalHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            headers = {key.lower(): value for key, value in self.headers.items()}
            hub.asked.append((self.command, self.path, headers))
            if listed := _API.fullmatch(self.path):
                return self._list(*listed.groups())
            found = _PATH.fullmatch(self.path)
            if found is None:
                return self._refuse(404, "EntryNotFound")
            repo, revision, path = found.groups()
            if repo in hub.gated and "authorization" not in headers:
                return self._refuse(401, "GatedRepo")
            if not any(repo == each for each, _, _ in hub.files):
                return self._refuse(401, "RepoNotFound")
            if not any((repo, revision) == each[:2] for each in hub.files):
                return self._refuse(404, "RevisionNotFound")
            content = hub.files.get((repo, revision, path))
            if content is None:
                return self._refuse(404, "EntryNotFound")
            start = int(headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", commit_of(revision))
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            self.end_headers()
            if body and hub.cuts:
                hub.cuts -= 1
                self.wfile.write(content[start : start + (len(content) - start) // 2])
                self.close_connection = True
            elif body:
                self.wfile.write(content[start:])
            return None

        def _list(self, repo: str, what: str, revision: str) -> None:
            """The commit of a revision, or the files that it has."""
            if not any(repo == each for each, _, _ in hub.files):
                return self._refuse(401, "RepoNotFound")
            named = {p: c for (r, v, p), c in hub.files.items() if (r, v) == (repo, revision)}
            if not named:
                return self._refuse(404, "RevisionNotFound")
            found: Any = {"id": repo, "sha": commit_of(revision), "siblings": []}
            if what == "tree":
                found = [
                    {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for p, c in named.items()
                ]
            content = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return None

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None: ...

    return Handler
