"""What the loopback Hub does for those who write: repositories made, large files taken, commits of many files.

As the Hub does, it checks a card's metadata before anything is sent, takes large files by the batch interface of git
LFS (at another origin), and refuses a commit whose parent is no longer the newest.
"""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml

if TYPE_CHECKING:
    from hub import Hub

REPO = r"(?P<repo>[^/]+/[^/]+)"
LARGE = (".safetensors", ".parquet", ".bin", ".gz")
LICENCES = ("apache-2.0", "mit", "other", "cc-by-4.0", "llama3")
"""Some of the identifiers that the Hub knows; any other is an error in a card."""


def blob_id(path: Path) -> str:
    """Git's name of a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(path: Path) -> str:
    """By what the Hub knows a file's content: large files are kept as LFS files."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.suffix in LARGE else blob_id(path)


def metadata_errors(card: str) -> list[str]:
    """What the Hub finds wrong in the metadata of a card, in our words."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    try:
        data = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    wrong = []
    if data.get("license", "mit") not in LICENCES:
        wrong.append('"license" is not known')
    if data.get("license") == "other" and not re.fullmatch(r"[a-z0-9.-]+", str(data.get("license_name"))):
        wrong.append('"license_name" must be given, in lower case')
    if "base_model" in data and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(data["base_model"])):
        wrong.append('"base_model" is not the id of a model')
    if not isinstance(data.get("tags", []), list) or not isinstance(data.get("datasets", []), list):
        wrong.append("a list is expected")
    return wrong


class Writing(BaseHTTPRequestHandler):
    """The requests of writers, for the handler of the loopback Hub."""

    def answer_writer(self, hub: "Hub", body: bytes) -> None:
        """Answer POST or PUT."""
        path = urlsplit(self.path).path
        routes: dict[str, Callable[..., None]] = {
            r"/api/repos/create": self._create,
            r"/api/validate-yaml": self._validate,
            rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)": self._preupload,
            rf"/{REPO}\.git/info/lfs/objects/batch": self._batch,
            r"/lfs/(?P<oid>[0-9a-f]{64})": self._take,
            rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)": self._commit,
        }
        for pattern, answer in routes.items():
            if found := re.fullmatch(pattern, path):
                part = {name: unquote(value) for name, value in found.groupdict().items()}
                if "repo" in part and part["repo"] not in hub.repositories:
                    return self.reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                return answer(hub, body, **part)
        self.reply(404, {"error": "not found"})

    def reply(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """Answer with JSON."""
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def read_body(self) -> bytes:
        """What was sent; to be read before anything is answered, for the next request comes after it."""
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):  # in chunks
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _create(self, hub: "Hub", body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in hub.owners:
            return self.reply(403, {"error": "You don't have the rights to create a model under this namespace"})
        if name in hub.repositories:
            return self.reply(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
        first = hub.storage / name / ("0" * 39 + "1")
        first.mkdir(parents=True)
        (first / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        hub.repositories[name] = {first.name: first}
        hub.refs[name] = {"main": first.name}
        if asked.get("visibility") == "private":
            hub.private.add(name)
        self.reply(200, {"url": f"{hub.url}/{name}", "name": name})

    def _validate(self, hub: "Hub", body: bytes) -> None:
        wrong = metadata_errors(json.loads(body)["content"])
        self.reply(400 if wrong else 200, {"errors": [{"message": one} for one in wrong], "warnings": []})

    def _preupload(self, hub: "Hub", body: bytes, repo: str, revision: str) -> None:
        folder = hub.repositories[repo][hub.refs[repo][revision]]
        files = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(LARGE) else "regular"
            there = folder / file["path"]
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            files[-1] |= {"oid": etag(there)} if there.is_file() else {}
        self.reply(200, {"files": files})

    def _batch(self, hub: "Hub", body: bytes, repo: str) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            place = f"{hub.url.replace('127.0.0.1', 'localhost')}/lfs/{wanted['oid']}"
            upload = {} if wanted["oid"] in hub.large else {"actions": {"upload": {"href": place}}}
            objects.append({**wanted, **upload})
        self.reply(200, {"transfer": "basic", "objects": objects})

    def _take(self, hub: "Hub", body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.reply(400, {"error": "not the content of that hash"})
        hub.large[oid] = body
        self.reply(200, {})

    def _commit(self, hub: "Hub", body: bytes, repo: str, revision: str) -> None:
        header, *operations = [json.loads(line) for line in body.splitlines()]
        parent = hub.refs[repo][revision]
        if header["value"].get("parentCommit", parent) != parent:
            return self.reply(412, {"error": "A commit has happened since. Please refresh and try again."})
        commit = hashlib.sha1(parent.encode() + body).hexdigest()
        folder = hub.storage / repo / commit
        shutil.copytree(hub.repositories[repo][parent], folder)
        for operation in operations:
            _apply(operation["key"], operation["value"], folder, hub.large)
        hub.repositories[repo] = {**hub.repositories[repo], commit: folder}
        hub.refs[repo][revision] = commit
        hub.messages.append(header["value"]["summary"])
        self.reply(200, {"commitUrl": f"{hub.url}/{repo}/commit/{commit}", "commitOid": commit, "pullRequestUrl": None})


def _apply(kind: str, value: dict[str, Any], folder: Path, large: Mapping[str, bytes]) -> None:
    path = folder / value["path"]
    if kind == "deletedFile":
        return path.unlink()
    content = large[value["oid"]] if kind == "lfsFile" else base64.b64decode(value["content"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
