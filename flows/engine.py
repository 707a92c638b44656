"""Runs a recipe's steps as Prefect tasks, and tells DVC and MLflow of each."""

import csv
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE

from flows.outcome import Outcome, Record
from flows.preflight import check_servers
from flows.recipe import Recipe
from flows.sharing import Shared
from tasks import comparison, versioning
from tasks.artifacts import MANIFEST, Artifact, Step, Store
from tasks.recording import Run
from tasks.tracking import Tracker

LOGGED = {
    "score": (MANIFEST, "scores.safetensors"),
    "mask": (MANIFEST, "mask.json"),
    "evaluate": (MANIFEST, "report.json", "generations.json", "samples.parquet"),
    "audit": (MANIFEST, "audit.json"),
    "resample": (MANIFEST, "mask.json"),
}
"""The files of a result that the tracker gets; of other stages the manifest alone."""

Execute = Callable[[Any, dict[str, Any]], Artifact]
"""Calls a Prefect task with arguments, wherever its work is done."""


def here(work: Any, arguments: dict[str, Any]) -> Artifact:
    """The work is done in this process."""
    made: Artifact = work(**arguments)
    return made


@dataclass
class Engine:
    """One recipe's steps: looked up in the store, else run; recorded either way."""

    recipe: Recipe
    store: Store
    project: Path
    run: Run
    outcome: Outcome
    shared: Shared = field(default_factory=Shared)
    execute: Execute = here
    whose: str = ""
    """Which of a sweep's recipes this is, such as "recipe 7 of 66"."""
    children: dict[str, str] = field(default_factory=dict)

    def do(self, work: Any, step: Step, **arguments: Any) -> Artifact:
        """The step's artifact: the store's, or made now."""
        with self.shared.alone(step):
            started = time.monotonic()
            hit = self.store.find(step)
            named = work.with_options(
                task_run_name=f"{self.whose}: {step.title}" if self.whose else step.title,
                result_storage=_results(self.store),
                refresh_cache=hit is None,  # the store decides what is there, not Prefect's record
            )
            arguments |= {"step": step, "runtime": self.recipe.runtime}
            made = here(named, arguments) if hit else self.execute(named, arguments)
        artifact: Artifact = hit or made
        manifest = self.store.manifest(artifact)
        seconds = time.monotonic() - started
        # Another flow run may have made it while this one waited: the miss is then that one's.
        missed = hit is None and manifest["producer"]["flow_run"] == runtime.flow_run.id
        record = Record(step, artifact, "miss" if missed else "hit", seconds, manifest["producer"]["seconds"])
        self.outcome.records.append(record)
        say(f"{record.cache:4}  {step.title:28} {record.seconds:7.1f} s  {self.whose}".rstrip())
        with TemporaryDirectory() as folder:
            self.children[step.title] = self.run.log_stage(
                step.title,
                step.stage,
                step.of,
                manifest,
                record.cache,
                self._files(artifact, Path(folder)),
            )
        if step.stage == "distill":
            self.run.log_curve(self.children[step.title], manifest["facts"]["curve"])
        self._version(step, artifact)
        return artifact

    def _files(self, artifact: Artifact, scratch: Path) -> list[Path]:
        """The small files of an artifact, for people to look at in the tracker, and to restore it from there."""
        folder = self.store.folder(artifact)
        files = [folder / name for name in LOGGED.get(artifact.stage, (MANIFEST,))]
        table = self.store.manifest(artifact)["facts"].get("table") if artifact.stage == "mask" else None
        if table is not None:
            with (scratch / "experts.csv").open("w", newline="") as file:
                rows = csv.DictWriter(file, table[0].keys())
                rows.writeheader()
                rows.writerows(table)
            files.append(scratch / "experts.csv")
        return files

    def _version(self, step: Step, artifact: Artifact) -> None:
        folder = self.store.folder(artifact)
        if step.stage == "calibrate" and self.recipe.calibrate is not None:
            name = f"corpora/{step.of}-{artifact.key[:8]}.safetensors"
            version = self._registered(step, artifact, folder / "tokens.safetensors", name)
            source = next(corpus.source for corpus in self.recipe.calibrate.corpora if corpus.name == step.of)
            tokens = self.store.manifest(artifact)["facts"]["tokens"]
            self.run.log_corpus(self.children[step.title], step.of, version.md5, source, tokens)
        elif step.stage == "mask":
            name = f"masks/{artifact.digest[:8]}.json"
            self._registered(step, artifact, folder / "mask.json", name)

    def _registered(self, step: Step, artifact: Artifact, file: Path, name: str) -> versioning.Version:
        version = self.shared.registered(artifact, lambda: register(file, name, self.project))
        self.outcome.versions[step.title] = version
        self.run.log_version(self.children[step.title], version.md5)
        return version

    def remember(self) -> None:
        """Log the models made, their measurements and the paired differences from the base."""
        outcome, store, run = self.outcome, self.store, self.run
        outcome.measure(store)
        models = self._models()
        for of, measured in outcome.memory.items():
            kind = "memory_computed" if of in outcome.computed else "memory"
            memory = {f"{kind}/{name}": {"value": size} for name, size in measured.items()}
            run.log_metrics(outcome.metrics[of] | memory, of, self.children[f"evaluate {of}"], models.get(of))
        for of, delta in outcome.deltas():
            run.log_metrics(outcome.metrics[delta], delta)
            before, after = (outcome.made.reports[one] for one in ("base", of))
            assert before and after
            written = comparison.side_by_side(store.folder(before), store.folder(after))
            run.log_text(written, f"generations{'' if of == 'pruned' else f'-{of}'}.md")
        tags = {f"artifact.{record.step.title}": record.artifact.path for record in outcome.records}
        tags |= {f"dvc.{title}": version.md5 for title, version in outcome.versions.items()}
        if self.recipe.score.reason:
            tags["criterion.reason"] = self.recipe.score.reason
        run.tag(tags)

    def _models(self) -> dict[str, str]:
        """The base and the models made from it, as logged models by what they are."""
        made, run = self.outcome.made, self.run
        assert made.base and made.mask
        name = Path(self.recipe.download.source).name
        base = run.log_model("base", made.base.digest, name, {"source": self.recipe.download.source})
        lineage = {
            "base_model_id": base,
            "base_sha256": made.base.digest,
            "mask_sha256": made.mask.digest,
            "criterion": self.recipe.method,
        }
        if made.scores is not None:
            lineage["scores_sha256"] = made.scores.digest
        if self.recipe.sparse:
            budget = f"sparse-{self.recipe.mask.pattern}"
            lineage["sparsity"] = self.recipe.mask.pattern
        else:
            keep = self.store.manifest(made.mask)["facts"]["kept"]
            budget = f"{keep}-experts"
            lineage["keep"] = keep
        models = {"base": base}
        if made.pruned is None:  # a virtual mask makes no checkpoint
            return models
        models["pruned"] = run.log_model("pruned", made.pruned.digest, f"{name}-{budget}", lineage)
        if made.distilled is not None:
            lineage["pruned_sha256"] = made.pruned.digest
            named = f"{name}-{budget}-distilled"
            models["distilled"] = run.log_model("distilled", made.distilled.digest, named, lineage)
        return models


@task(name="reach", cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=[30, 120, 600])
def reach(store: Store, project: Path) -> Tracker:
    """The tracker, once it and DVC's remote can be used: nobody stands by to begin a schedule's run again."""
    return check_servers(store, project)


@task(name="register", cache_policy=NO_CACHE, persist_result=False)
def register(file: Path, name: str, project: Path) -> versioning.Version:
    """Have DVC hold a copy of a corpus or mask, on hits and misses alike."""
    return versioning.register(file, name, project)


@task(name="push", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=5)
def push(project: Path) -> bool:
    """Send what DVC holds to the team's remote, if one has been set."""
    return versioning.push(project)


def say(line: str) -> None:
    """A line on stderr, whole among those of other threads."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _results(store: Store) -> Path:
    folder = store.root.absolute() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
