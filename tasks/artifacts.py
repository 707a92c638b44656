"""The store: results as folders `<store>/<stage>/<key>/`, whole or absent, verified before they are believed.

A stage's task asks the store first. A hit means that the store had the result and that its bytes are those the
manifest names, whatever any other record says.
"""

import json
import os
import platform
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field

from moeprune.errors import BadInput
from moeprune.hashing import digest_of, sha256
from tasks.identity import key_of

if TYPE_CHECKING:  # importing it takes a second
    from prefect import Task

P = ParamSpec("P")
R = TypeVar("R")
MANIFEST = "manifest.json"
LIBRARIES = ("moeprune", "torch", "transformers", "safetensors", "prefect", "mlflow", "dvc", "lm-eval")


class Params(BaseModel):
    """A section of a recipe: unknown keys are errors, values do not change; docstrings of keys are shown in forms."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def offering(words: Callable[[], Iterable[str]]) -> Callable[[dict[str, Any]], None]:
    """For a key's `json_schema_extra`: forms offer these words. What is wrong with others, the params class says."""

    def offer(schema: dict[str, Any]) -> None:
        schema["enum"] = list(words())

    return offer


class Runtime(Params):
    """Where and how work is done. It never decides a result's identity; it is recorded in the manifest."""

    device: str = "auto"
    """torch device; auto: the first accelerator, else the CPU."""
    batch_size: int = 16
    """Sequences in a forward pass."""
    threads: int | None = None
    """CPU threads of torch; null: torch decides."""
    store: Path = Field(default_factory=lambda: Path(os.environ.get("MOEPRUNE_STORE", ".moeprune")))
    """Folder of results, relative to the working directory; else MOEPRUNE_STORE of the environment, else .moeprune."""


class Artifact(BaseModel):
    """What travels between stages: where in the store a result lies, and the digest of its content."""

    model_config = ConfigDict(frozen=True)

    stage: str
    key: str
    digest: str

    @property
    def path(self) -> str:
        """The folder, relative to the store."""
        return f"{self.stage}/{self.key}"


@dataclass(frozen=True)
class Step:
    """One stage to be done: everything that decides its result.

    `of` says which corpus or model it is for and is a label only. `inputs` are the artifacts it reads; one that is
    not known yet (when planning) is None, and then so is the key.
    """

    stage: str
    of: str
    code: str
    params: dict[str, Any]
    inputs: dict[str, Artifact | None]

    @property
    def key(self) -> str | None:
        """The key of the result, or None while an input is not known."""
        digests = {name: artifact.digest for name, artifact in self.inputs.items() if artifact is not None}
        return None if len(digests) < len(self.inputs) else key_of(self.stage, self.code, self.params, digests)

    @property
    def unknown(self) -> list[str]:
        """Stages whose results must be there before the key is known."""
        return [name.split(".")[0] for name, artifact in self.inputs.items() if artifact is None]

    @property
    def title(self) -> str:
        """The stage and what it is for."""
        return f"{self.stage} {self.of}".strip()


def stage(**options: Any) -> "Callable[[Callable[P, R]], Task[P, R]]":
    """Makes a stage's function a Prefect task that is cached on the step's key. Its first parameter is `step`."""
    from prefect import task

    made: Callable[[Callable[P, R]], Task[P, R]] = task(
        persist_result=True,
        result_serializer="json",
        cache_key_fn=lambda context, arguments: f"{arguments['step'].stage}-{arguments['step'].key}",
        **options,
    )
    return made


class Store:
    """Results by stage and key under one folder. Several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def folder(self, artifact: Artifact) -> Path:
        """Where an artifact's files lie."""
        return self.place(artifact.path)

    def place(self, path: str) -> Path:
        """The folder of a result `<stage>/<key>`; of links to files on other disks each machine has its own."""
        own = self._own(path)
        return own if own.is_dir() else self.root / path

    def manifests(self, stage: str) -> list[Path]:
        """Those of all results of a stage that this machine can read."""
        return [found for above in (self.root, self._own("")) for found in above.glob(f"{stage}/*/{MANIFEST}")]

    def _own(self, path: str) -> Path:
        return self.root / "links" / machine() / path

    def partial(self, step: Step) -> Path:
        """A folder where a long stage keeps its progress until its result is in the store."""
        folder = self.root / "partial" / f"{step.stage}-{step.key}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def manifest(self, artifact: Artifact) -> dict[str, Any]:
        """The manifest of an artifact that was found or produced."""
        content: dict[str, Any] = json.loads((self.folder(artifact) / MANIFEST).read_text())
        return content

    def find(self, step: Step) -> Artifact | None:
        """The step's verified result, or None. One that is not what its manifest says stays until it is made again."""
        if step.key is None:
            return None
        artifact = Artifact(stage=step.stage, key=step.key, digest="")
        folder = self.folder(artifact)
        if not self.touch(artifact):
            return None
        if fault := self.fault(folder):
            logger().warning("%s: %s in the store: it is made again", step.title, fault)
            return None
        return artifact.model_copy(update={"digest": self.manifest(artifact)["digest"]})

    def touch(self, artifact: Artifact) -> bool:
        """Note that an artifact is used now, which keeps `collecting` from it; False if it is not there."""
        folder = self.folder(artifact)
        if not folder.is_dir():
            return False
        with self.lock("collecting"):
            if not folder.is_dir():
                return False
            try:
                os.utime(folder / MANIFEST)
            except FileNotFoundError:  # a fault, which `fault` finds
                pass
            except OSError as error:
                logger().warning("%s: its use cannot be noted, so gc may take it for old: %s", folder, error)
        return True

    def fault(self, folder: Path, hash_of: Callable[[Path], str] | None = None) -> str | None:
        """What of a result's folder is not as its manifest says; None if all is. Files are hashed by `hash_of`."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            files, digest = manifest["files"], manifest["digest"]
        except (OSError, ValueError, KeyError):
            return f"{MANIFEST} is missing or damaged"
        if digest_of({name: file["sha256"] for name, file in files.items()}) != digest:
            return f"{MANIFEST} is not what was written"
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"] or (hash_of or self.hash_of)(path) != expected["sha256"]:
                return f"{name} is not what was written"
        return None

    def adopt(self, building: Path, manifest: dict[str, Any]) -> Artifact:
        """Put a folder on the store's disk into its place, as the result that `manifest` is of.

        To be called with the result's lock held. Raises ValueError if a file is not what the manifest says.
        """
        (building / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if fault := self.fault(building):
            raise ValueError(fault)
        artifact = Artifact(stage=manifest["stage"], key=manifest["key"], digest=manifest["digest"])
        own = self._own(artifact.path)
        target = own if any(path.is_symlink() for path in building.iterdir()) else self.root / artifact.path
        for path in building.iterdir():
            sync(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for folder in {own, target}:  # what was there is not the result
            shutil.rmtree(folder, ignore_errors=True)
        building.rename(target)
        sync(target.parent)
        return artifact

    def produce(self, step: Step, runtime: Runtime, build: Callable[[Path], dict[str, Any]]) -> Artifact:
        """The step's result: what the store has, or what `build` writes into the folder it is given.

        `build` returns facts for the manifest. The folder appears in the store whole or not at all; of two processes
        producing the same result one waits for the other.
        """
        assert step.key is not None, f"{step.title}: its inputs are not known"
        with self.lock(f"{step.stage}-{step.key}"):
            if found := self.find(step):
                return found
            building = self.root / step.stage / f".{step.key}.building"
            shutil.rmtree(building, ignore_errors=True)  # what a killed process left behind
            building.mkdir(parents=True)
            started = datetime.now(UTC)
            with PeakMemory() as peak:
                facts = build(building)
            files = {
                path.name: {"sha256": self.hash_of(path), "bytes": path.stat().st_size}
                for path in sorted(building.iterdir())
            }
            digest = digest_of({name: str(file["sha256"]) for name, file in files.items()})
            manifest = {
                "stage": step.stage,
                "key": step.key,
                "of": step.of,
                "digest": digest,
                "code": step.code,
                "params": step.params,
                "files": files,
                "facts": facts,
                "inputs": {name: entry.model_dump() for name, entry in step.inputs.items() if entry is not None},
                "producer": {
                    "flow_run": flow_run_id(),
                    **git_state(),
                    "libraries": library_versions(),
                    "runtime": runtime.model_dump(mode="json", exclude={"store"}),
                    "started": started.isoformat(timespec="seconds"),
                    "seconds": round((datetime.now(UTC) - started).total_seconds(), 3),
                    "peak_memory_bytes": peak.bytes,
                },
            }
            artifact = self.adopt(building, manifest)
            shutil.rmtree(self.root / "partial" / f"{step.stage}-{step.key}", ignore_errors=True)
            return artifact

    def hash_of(self, path: Path) -> str:
        """sha256 of a file; remembered by inode, size and time of change, so that a second look costs nothing."""
        state = path.stat()
        seen = [state.st_size, state.st_mtime_ns]
        memo = self.root / "hashes" / f"{state.st_dev:x}-{state.st_ino:x}"
        if memo.is_file():
            *before, known = json.loads(memo.read_text())
            if before == seen:
                return str(known)
        digest = sha256(path)
        memo.parent.mkdir(parents=True, exist_ok=True)
        replace_text(memo, json.dumps([*seen, digest]))
        return digest

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """One process at a time; others wait."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            yield

    @contextmanager
    def try_lock(self, name: str) -> Iterator[bool]:
        """Whether the lock was free; if so, it is held meanwhile."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def check_space(self, needed: int) -> None:
        """Raise BadInput if the store's disk has not that many bytes free."""
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise BadInput(
                f"runtime.store: {self.root.absolute()} has {free / 1e9:.2f} GB free, this run needs about "
                f"{needed / 1e9:.2f} GB: free some space or set runtime.store to another disk"
            )


class PeakMemory:
    """`with PeakMemory() as peak:` `peak.bytes` is the largest resident memory of this process meanwhile."""

    def __enter__(self) -> "PeakMemory":
        self.bytes = 0
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._watch, daemon=True)
        self._sampler.start()
        return self

    def _watch(self) -> None:
        while True:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.bytes = max(self.bytes, pages * os.sysconf("SC_PAGE_SIZE"))
            if self._done.wait(0.05):
                return

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._sampler.join()


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new content, never a part."""
    new = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    new.write_text(text)
    new.rename(path)


def sync(path: Path) -> None:
    """Have the disk hold a file's bytes, or a folder's names, before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def machine() -> str:
    """Whose links to files elsewhere can be followed: another machine, or another user, may not get there."""
    return f"{platform.node()}-{os.getuid()}"


def git_state() -> dict[str, Any]:
    """The commit of the working directory and whether there are changes beyond it; None where there is no git."""

    def git(*words: str) -> str | None:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    status = git("status", "--porcelain", "--", ":/", ":(exclude)data.dvc")  # a run writes that itself
    return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": None if status is None else bool(status)}


@cache
def library_versions() -> dict[str, str]:
    """The versions that results depend on."""
    return {name: version(name) for name in LIBRARIES}


def flow_run_id() -> str | None:
    """That of the flow run that is under way here."""
    from prefect import runtime

    found: str | None = runtime.flow_run.id
    return found


def logger() -> Any:
    """Prefect's logger inside a run, else the ordinary one."""
    import logging

    from prefect import get_run_logger
    from prefect.exceptions import MissingContextError

    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("moeprune")


def set_threads(runtime: Runtime) -> None:
    """Have torch use as many CPU threads as the recipe says."""
    import torch

    if runtime.threads:
        torch.set_num_threads(runtime.threads)
