"""A Hub on the loopback interface: repositories that are folders, by commit, as huggingface_hub asks for them.

with serve({"owner/name": {"<40 hex digits>": folder}}) as hub:
    ...                          # HF_ENDPOINT=hub.url
    hub.heads["owner/name"] = other_commit   # main moves on
"""

import hashlib
import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LARGE = (".safetensors", ".parquet", ".bin", ".gz")
"""Kept as LFS files: their etag is the sha256 of the content, that of others the git blob id."""
INFO = re.compile(r"/api/(models|datasets)/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
TREE = re.compile(r"/api/(models|datasets)/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)/?")
FILE = re.compile(r"/(datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Hub:
    """What is served, and what has been asked for: (method, path) in order."""

    url: str
    repositories: Mapping[str, Mapping[str, Path]]
    heads: dict[str, str]
    requests: list[tuple[str, str]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    """Names of files whose next sending stops halfway, once each."""
    gated: set[str] = field(default_factory=set)
    """Repositories that tell about themselves but give no file out."""

    def folder(self, repository: str, revision: str | None) -> tuple[str, Path] | None:
        """(commit, its folder) of a revision: a commit, `main`, or None for the newest."""
        commits = self.repositories.get(repository, {})
        commit = self.heads.get(repository, "") if revision in (None, "main") else str(revision)
        return (commit, commits[commit]) if commit in commits else None


@contextmanager
def serve(repositories: Mapping[str, Mapping[str, Path]]) -> Iterator[Hub]:
    """Serve repositories `{name: {commit: folder}}` while the block runs; a repository's last commit is its head."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    heads = {name: list(commits)[-1] for name, commits in repositories.items()}
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", repositories, heads)
    server.hub = hub  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def _answer(self, body: bool) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path))
        for pattern, answer in ((TREE, self._tree), (INFO, self._info), (FILE, self._file)):
            if found := pattern.fullmatch(path):
                if found["repo"] not in hub.repositories:
                    return self._refuse(401, "RepoNotFound")
                place = hub.folder(found["repo"], found["revision"])
                if place is None:
                    return self._refuse(404, "RevisionNotFound")
                return answer(hub, found, *place, body)
        return self._refuse(404, "EntryNotFound")

    def _info(self, hub: Hub, found: re.Match[str], commit: str, folder: Path, body: bool) -> None:
        files = [{"rfilename": path.relative_to(folder).as_posix()} for path in _files(folder)]
        self._json({"id": found["repo"], "modelId": found["repo"], "sha": commit, "siblings": files, "private": False})

    def _tree(self, hub: Hub, found: re.Match[str], commit: str, folder: Path, body: bool) -> None:
        entries = []
        for path in _files(folder):
            entry = {"type": "file", "path": path.relative_to(folder).as_posix(), "size": path.stat().st_size}
            if path.suffix in LARGE:
                entry["lfs"] = {"oid": _etag(path), "size": entry["size"], "pointerSize": 134}
            entries.append(entry | {"oid": _blob_id(path)})
        self._json(entries)

    def _file(self, hub: Hub, found: re.Match[str], commit: str, folder: Path, body: bool) -> None:
        path = folder / found["path"]
        if found["repo"] in hub.gated:
            return self._refuse(403, "GatedRepo")
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", commit)
        content = path.read_bytes()
        start, end = 0, len(content)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), int(asked[2]) + 1 if asked[2] else end
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{_etag(path)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if body and path.name in hub.broken:
            hub.broken.remove(path.name)
            self.wfile.write(content[start : (start + end) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(content[start:end])
        return None

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _blob_id(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix in LARGE else _blob_id(path)


def point_at(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """Have huggingface_hub in this process ask `endpoint` and keep its files in `cache`."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def closed_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
