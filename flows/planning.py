"""Plans: the chain looked up in the store instead of run."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.chain import chain
from flows.preflight import disk_needed, preflight
from flows.recipe import Recipe
from moeprune.checkpoint import Checkpoint
from moeprune.file_plan import read_file_plan
from moeprune.schema import Plan as Experts
from moeprune.sizes import pruned_bytes
from tasks import download
from tasks.artifacts import Artifact, Step, Store


@dataclass(frozen=True)
class Planned:
    """One stage of a plan: `state` is hit, run or unknown; `why` says it in words."""

    step: Step
    state: str
    why: str


@dataclass(frozen=True)
class Plan:
    """What a run would do, the bytes it may write, and the bytes of weights it holds in memory at once.

    `training` are those of distilling: both models, gradients and two moments of each parameter. `copied` are at most
    those of the experts that a virtual mask keeps, held beside the base. `fetched` are bytes that the Hub would send.
    """

    stages: list[Planned]
    disk: int | None
    memory: int | None
    training: int | None = None
    copied: int | None = None
    fetched: int = 0


def make_plan(recipe: Recipe) -> Plan:
    """Look every stage up; nothing is run. BadInput as for a run."""
    store = Store(recipe.runtime.store)
    sources = preflight(recipe, store, Path.cwd())
    stages: list[Planned] = []

    def look_up(work: Any, step: Step, **arguments: Any) -> Artifact | None:
        found = store.find(step)
        if step.key is None:
            stages.append(Planned(step, "unknown", f"unknown until its {' and '.join(step.unknown)} is known"))
        elif found:
            stages.append(Planned(step, "hit", "in the store, verified"))
        else:
            stages.append(Planned(step, "run", reason(step, store)))
        return found

    chain(recipe, sources, store, look_up)
    fetched = 0 if stages[0].state == "hit" else download.bytes_to_fetch(sources.model)
    if (checkpoint := sources.files) is None or sources.keep is None:
        return Plan(stages, None, None, fetched=fetched)
    trusted = recipe.download.trust_remote_code
    plan = read_file_plan(checkpoint, trusted)
    training = None
    if recipe.distill is not None:
        parameters = sum(math.prod(info.shape) for info in checkpoint.tensors.values())
        training = 5 * parameters * (4 if recipe.distill.dtype == "float32" else 2)
    copied = sources.keep * _expert_bytes(checkpoint, plan) if recipe.virtual else None
    disk = disk_needed(recipe, checkpoint, plan, sources.keep)
    return Plan(stages, disk, checkpoint.weight_bytes, training, copied, fetched)


def _expert_bytes(checkpoint: Checkpoint, plan: Experts) -> int:
    """Bytes of one expert in each layer."""
    return pruned_bytes(checkpoint, plan, plan.experts) - pruned_bytes(checkpoint, plan, plan.experts - 1)


def reason(step: Step, store: Store) -> str:
    """Why a stage must run: what differs from the result of this stage and label that is nearest to it."""
    before: list[list[str]] = []
    for path in store.manifests(step.stage):
        manifest = json.loads(path.read_text())
        if manifest["of"] == step.of:
            before.append(differences(step, manifest))
    if not before:
        return "never run" if not step.of else f"never run for {step.of}"
    nearest = min(before, key=len)
    return "changed: " + ", ".join(nearest)


def differences(step: Step, manifest: dict[str, Any]) -> list[str]:
    """What decides the step's result and is not as in a manifest."""
    found = ["code"] if step.code != manifest["code"] else []
    for name in sorted(step.params.keys() | manifest["params"].keys()):
        old, new = manifest["params"].get(name), step.params.get(name)
        if old != new:
            simple = all(isinstance(value, str | int | float | bool | None) for value in (old, new))
            long = any(len(str(value)) > 24 for value in (old, new))
            found.append(f"{name} {old} -> {new}" if simple and not long else name)
    old_inputs = {name: entry["digest"] for name, entry in manifest["inputs"].items()}
    new_inputs = {name: artifact.digest for name, artifact in step.inputs.items() if artifact}
    found += [
        name for name in sorted(old_inputs.keys() | new_inputs.keys()) if old_inputs.get(name) != new_inputs.get(name)
    ]
    return found
