"""Results made again from their inputs, as their manifests say, to be compared with what they were.

The work is done in a store of its own, in which the inputs are links: nothing that differs from the record ever lies
where a run would find it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moeprune.errors import BadInput
from tasks import distill, download, observe, prune
from tasks.artifacts import Artifact, Runtime, Step, Store, git_state, library_versions

Manifest = Mapping[str, Any]
Given = Mapping[str, str]
"""The run's params in the tracker, by `section.key`."""


def rebuild(manifest: Manifest, given: Given, store: Store, scratch: Path) -> Path:
    """Do a stage's work again in `scratch`, with inputs from `store`, and return the folder of its result.

    Raises BadInput if the base model's source cannot be reached.
    """
    step = step_of(manifest)
    for artifact in step.inputs.values():
        assert artifact
        link = scratch / artifact.path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(store.folder(artifact).absolute())
    runtime = _runtime(manifest["producer"]["runtime"], scratch)
    return Store(scratch).folder(WORK[step.stage](step, runtime, given, store))


def step_of(manifest: Manifest) -> Step:
    """The step that a manifest is of."""
    inputs: dict[str, Artifact | None] = {name: Artifact(**entry) for name, entry in manifest["inputs"].items()}
    return Step(manifest["stage"], manifest["of"], manifest["code"], manifest["params"], inputs)


def _runtime(recorded: dict[str, Any], scratch: Path) -> Runtime:
    """How a result was made, on the device it was made on if this machine has it."""
    import torch

    runtime = Runtime(**recorded, store=scratch)
    try:
        torch.empty(0, device="cpu" if runtime.device == "auto" else runtime.device)
    except (RuntimeError, AssertionError, ImportError):  # as torch says that a device is not here
        return runtime.model_copy(update={"device": "auto"})
    return runtime


def source_of(given: Given, repository: Mapping[str, str], store: Store) -> download.Source:
    """Where the base model is to be had now, at the commit that was read if it is on the Hub. Raises BadInput."""
    params = download.DownloadParams(source=given["download.source"], revision=repository.get("commit"))
    try:
        return download.resolve(params, store)
    except BadInput as error:
        raise BadInput(f"{error}; or say with --base where the model is") from error


def _download(step: Step, runtime: Runtime, given: Given, store: Store) -> Artifact:
    return _do(download.download, step, runtime, source=source_of(given, step.params["source"], store))


def _observe(step: Step, runtime: Runtime, given: Given, _: Store) -> Artifact:
    params = observe.ObserveParams(**step.params)
    return _do(observe.observe, step, runtime, params=params, trust_remote_code=_trusted(given))


def _prune(step: Step, runtime: Runtime, given: Given, _: Store) -> Artifact:
    params = prune.PruneParams(shard_size=step.params["shard_size"])
    return _do(prune.prune, step, runtime, params=params, trust_remote_code=_trusted(given))


def _distill(step: Step, runtime: Runtime, given: Given, _: Store) -> Artifact:
    params = distill.DistillParams(**step.params)
    return _do(distill.distill, step, runtime, params=params, trust_remote_code=_trusted(given))


WORK: dict[str, Callable[[Step, Runtime, Given, Store], Artifact]] = {
    "download": _download,
    "observe": _observe,
    "prune": _prune,
    "distill": _distill,
}
"""The stages whose results are too large for the tracker and DVC, and how each is done."""


def _do(work: Any, step: Step, runtime: Runtime, **arguments: Any) -> Artifact:
    """A task's function itself, outside of any flow."""
    made: Artifact = work.fn(step=step, runtime=runtime, **arguments)
    return made


def _trusted(given: Given) -> bool:
    return given["download.trust_remote_code"] == "true"


def changes(manifest: Manifest) -> str:
    """What is not as it was when a result was made, of what its bytes depend on."""
    producer = manifest["producer"]
    commit = git_state()["git_commit"]
    then, now = ({"commit": producer["git_commit"], **producer["libraries"]}, {"commit": commit, **library_versions()})
    told = [f"{name} was {then[name]} and is {now[name]}" for name in now if then.get(name) and then[name] != now[name]]
    if producer["git_dirty"]:
        told.append("there were changes beyond that commit")
    return ", ".join(told) or "commit and libraries are those of the record"
