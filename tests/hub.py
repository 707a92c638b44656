"""A Hub on the loopback interface: repositories that are folders, by commit, as huggingface_hub asks for them.

with serve({"owner/name": {"<40 hex digits>": folder}}) as hub:
    ...                                     # HF_ENDPOINT=hub.url
    hub.refs["owner/name"]["main"] = commit # main moves on

Large files are handed out by another origin, the same server under another name, as the real Hub does.
"""

import math
import re
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hub_writes import LARGE, Writing, blob_id, etag

INFO = re.compile(r"/api/(models|datasets)/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
FILE = re.compile(r"/(datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
TREE = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
STORAGE = re.compile(r"/storage/(?P<repo>[^/]+/[^/]+)/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Fault:
    """An answer in place of the right one, to requests in whose "METHOD /path" `where` (a pattern) is found."""

    where: str
    status: int
    """0: the connection is closed without an answer."""
    code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    times: float = math.inf
    whole: bool = False
    """Only to requests for whole files: those that read headers ask for the first bytes."""


@dataclass
class Hub:
    """What is served, what goes wrong, and what has been asked for: (method, path) in order."""

    url: str
    repositories: dict[str, Mapping[str, Path]]
    refs: dict[str, dict[str, str]]
    """Commits by branch or tag, of each repository."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)
    """Bytes of bodies sent, by file name."""
    ranges: list[tuple[str, int]] = field(default_factory=list)
    """(file name, first byte) of every request for a part."""
    faults: list[Fault] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    """Names of files whose next sending stops halfway, once each."""
    poisoned: set[str] = field(default_factory=set)
    """Names of files that are sent with one byte changed."""
    token: str | None = None
    """Without it nothing is told or given out, but by the storage, which must never be sent it."""
    told: set[str] = field(default_factory=set)
    """What `Authorization` the storage was sent."""
    xet: bool = False
    """Large files are announced as kept in Xet storage, which is not there."""
    storage: Path = Path()
    """Where commits that are sent here lie, while it runs."""
    owners: tuple[str, ...] = ("owner",)
    """Under which names repositories may be made."""
    private: set[str] = field(default_factory=set)
    large: dict[str, bytes] = field(default_factory=dict)
    """Large files that were sent here, by sha256."""
    messages: list[str] = field(default_factory=list)
    """Of the commits that were sent here."""

    @property
    def sent(self) -> int:
        """Bytes of all files' bodies."""
        return self.served.total()

    def folder(self, repository: str, revision: str | None) -> tuple[str, Path] | None:
        """(commit, its folder) of a revision: a commit, branch or tag, or None for the newest."""
        commits = self.repositories.get(repository, {})
        commit = self.refs.get(repository, {}).get(revision or "main", revision or "")
        return (commit, commits[commit]) if commit in commits else None


@contextmanager
def serve(repositories: Mapping[str, Mapping[str, Path]]) -> Iterator[Hub]:
    """Serve repositories `{name: {commit: folder}}` while the block runs; a repository's last commit is its main."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    refs = {name: {"main": list(commits)[-1]} for name, commits in repositories.items()}
    storage = TemporaryDirectory()
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", dict(repositories), refs, storage=Path(storage.name))
    server.hub = hub  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        storage.cleanup()


class _Handler(Writing):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    do_POST = do_PUT = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def _answer(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = urlsplit(self.path).path
        hub.requests.append((self.command, unquote(path)))
        body = self.read_body() if self.command in ("POST", "PUT") else b""
        for fault in hub.faults:
            if fault.whole and "Range" in self.headers:
                continue
            if fault.times > 0 and re.search(fault.where, f"{self.command} {unquote(path)}"):
                fault.times -= 1
                return self._refuse(fault.status, fault.code, fault.headers)
        said = self.headers.get("Authorization", "")
        if STORAGE.fullmatch(path) or self.command == "PUT":
            hub.told |= {said} - {""}
        elif hub.token and said != f"Bearer {hub.token}":
            return self._refuse(401, "RepoNotFound")
        if self.command in ("POST", "PUT"):
            return self.answer_writer(hub, body)
        routes = ((STORAGE, self._send), (INFO, self._info), (TREE, self._tree), (FILE, self._file))
        for pattern, answer in routes:
            if found := pattern.fullmatch(path):
                part = {name: value and unquote(value) for name, value in found.groupdict().items()}
                if part["repo"] not in hub.repositories:
                    return self._refuse(401, "RepoNotFound")
                place = hub.folder(part["repo"], part["revision"])
                return answer(hub, part, *place) if place else self._refuse(404, "RevisionNotFound")
        return self._refuse(404, "EntryNotFound")

    def _info(self, hub: Hub, part: dict[str, str], commit: str, folder: Path) -> None:
        files = []
        for path in _files(folder):
            entry = {"rfilename": path.relative_to(folder).as_posix()}
            if "blobs=true" in urlsplit(self.path).query.lower():
                entry |= {"size": path.stat().st_size, "blobId": blob_id(path), "lfs": _lfs(path)}
            files.append(entry)
        self.reply(
            200,
            {
                "id": part["repo"],
                "modelId": part["repo"],
                "sha": commit,
                "siblings": files,
                "private": part["repo"] in hub.private,
            },
        )

    def _tree(self, hub: Hub, part: dict[str, str], commit: str, folder: Path) -> None:
        files = []
        for path in _files(folder):
            entry = {"type": "file", "path": path.relative_to(folder).as_posix(), "size": path.stat().st_size}
            large = _lfs(path)
            files.append(entry | {"oid": blob_id(path)} | ({"lfs": large | {"oid": large["sha256"]}} if large else {}))
        self.reply(200, files)

    def _file(self, hub: Hub, part: dict[str, str], commit: str, folder: Path) -> None:
        path = folder / part["path"]
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        if path.suffix not in LARGE:
            return self._send(hub, part, commit, folder)
        # Another origin, since it is another host name.
        place = f"{hub.url.replace('127.0.0.1', 'localhost')}/storage/{part['repo']}/{commit}/{part['path']}"
        headers = {"Location": place, "X-Repo-Commit": commit, "X-Linked-Etag": f'"{etag(path)}"'}
        if hub.xet:
            route = f"{hub.url}/api/models/{part['repo']}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": etag(path), "X-Xet-Refresh-Route": route}
        return self._refuse(302, "", headers | {"X-Linked-Size": str(path.stat().st_size)})

    def _send(self, hub: Hub, part: dict[str, str], commit: str, folder: Path) -> None:
        path = folder / part["path"]
        content = path.read_bytes()
        start, end = 0, len(content)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), min(int(asked[2]) + 1, end) if asked[2] else end
            hub.ranges.append((path.name, start))
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{etag(path)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if path.name in hub.poisoned:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if path.name in hub.broken:
            hub.broken.remove(path.name)
            end = (start + end) // 2
            self.close_connection = True
        hub.served[path.name] += end - start
        self.wfile.write(content[start:end])

    def _refuse(self, status: int, code: str, headers: Mapping[str, str] | None = None) -> None:
        if not status:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {
            **(headers or {}),
            **({"X-Error-Code": code} if code else {}),
            "Content-Length": "0",
        }.items():
            self.send_header(name, value)
        self.end_headers()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _lfs(path: Path) -> dict[str, Any] | None:
    """What the Hub tells of a large file."""
    return {"sha256": etag(path), "size": path.stat().st_size, "pointerSize": 134} if path.suffix in LARGE else None


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
