"""The pruning flow: the chain run by Prefect, versioned by DVC, remembered by MLflow."""

import csv
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.chain import Products, chain
from flows.preflight import preflight
from flows.recipe import Recipe, to_yaml
from tasks import comparison, versioning
from tasks.artifacts import Artifact, Step, Store
from tasks.tracking import Run, Tracker

DELTA = "delta"
"""Key of the paired differences, pruned minus base; `delta_distilled` and `delta_skipped` are of those."""


@dataclass(frozen=True)
class Record:
    """One stage of a run as it went."""

    step: Step
    artifact: Artifact
    cache: Literal["hit", "miss"]
    seconds: float
    work: float
    """Seconds the result took when it was made."""


@dataclass
class Outcome:
    """What a run comes to: its id in the tracker, its stages, and the measured metrics."""

    run_id: str
    records: list[Record] = field(default_factory=list)
    made: Products = field(default_factory=Products)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)
    versions: dict[str, versioning.Version] = field(default_factory=dict)


@flow(name="prune", validate_parameters=True)
def prune_model(recipe: Recipe, name: str = "prune") -> Outcome:
    """Prune one model by one recipe: every stage the store does not have is run."""
    return run_recipe(recipe, name)


def run_recipe(recipe: Recipe, name: str, tags: dict[str, str] | None = None) -> Outcome:
    """One recipe inside the current flow run, as one parent run of the tracker."""
    store, project = Store(recipe.runtime.store), Path.cwd()
    tracker = Tracker(store)
    tracker.check()
    sources = preflight(recipe, store, project)
    with tracker.run(
        name, recipe.model_dump(mode="json"), {"method": recipe.method, **(tags or {})}, to_yaml(recipe)
    ) as run:
        outcome = Outcome(run.id)
        if recipe.score.reason:
            print(f"criterion {recipe.score.reason}", file=sys.stderr)
        engine = Engine(recipe, store, project, run, outcome)
        outcome.made = chain(recipe, sources, store, engine.do)
        engine.remember()
        push(project)
    return outcome


@dataclass
class Engine:
    """Runs steps as Prefect tasks, and tells DVC and MLflow of each."""

    recipe: Recipe
    store: Store
    project: Path
    run: Run
    outcome: Outcome
    children: dict[str, str] = field(default_factory=dict)

    def do(self, work: Any, step: Step, **arguments: Any) -> Artifact:
        """The step's artifact: the store's, or made now."""
        started = time.monotonic()
        hit = self.store.find(step)
        made = work.with_options(
            task_run_name=step.title,
            result_storage=_results(self.store),
            refresh_cache=hit is None,  # the store decides what is there, not Prefect's record
        )(step=step, runtime=self.recipe.runtime, **arguments)
        artifact: Artifact = hit or made
        manifest = self.store.manifest(artifact)
        seconds = time.monotonic() - started
        record = Record(step, artifact, "hit" if hit else "miss", seconds, manifest["producer"]["seconds"])
        self.outcome.records.append(record)
        print(f"{record.cache:4}  {step.title:28} {record.seconds:7.1f} s", file=sys.stderr)
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
        """The small files of an artifact that people look at in the tracker."""
        folder = self.store.folder(artifact)
        if artifact.stage == "mask":
            table = self.store.manifest(artifact)["facts"].get("table")
            if table is None:
                return [folder / "mask.json"]
            with (scratch / "experts.csv").open("w", newline="") as file:
                rows = csv.DictWriter(file, table[0].keys())
                rows.writeheader()
                rows.writerows(table)
            return [folder / "mask.json", scratch / "experts.csv"]
        wanted = {"score": ["scores.safetensors"], "evaluate": ["report.json", "generations.json", "samples.parquet"]}
        return [folder / name for name in wanted.get(artifact.stage, [])]

    def _version(self, step: Step, artifact: Artifact) -> None:
        folder = self.store.folder(artifact)
        if step.stage == "calibrate" and self.recipe.calibrate is not None:
            name = f"corpora/{step.of}-{artifact.key[:8]}.safetensors"
            version = register(folder / "tokens.safetensors", name, self.project)
            source = next(corpus.source for corpus in self.recipe.calibrate.corpora if corpus.name == step.of)
            tokens = self.store.manifest(artifact)["facts"]["tokens"]
            self.run.log_corpus(self.children[step.title], step.of, version.md5, source, tokens)
            self.outcome.versions[step.title] = version
        elif step.stage == "mask":
            name = f"masks/{artifact.digest[:8]}.json"
            self.outcome.versions[step.title] = register(folder / "mask.json", name, self.project)

    def remember(self) -> None:
        """Log the models made, their measurements and the paired differences from the base."""
        made, store, run = self.outcome.made, self.store, self.run
        models = self._models()
        for of, report in made.reports.items():
            assert report is not None
            content = json.loads((store.folder(report) / comparison.REPORT).read_text())
            self.outcome.metrics[of], self.outcome.memory[of] = content["metrics"], content["memory"]
            memory = {f"memory/{kind}": {"value": size} for kind, size in content["memory"].items()}
            run.log_metrics(content["metrics"] | memory, of, self.children[f"evaluate {of}"], models.get(of))
        if before := made.reports.get("base"):
            for of, report in made.reports.items():
                if of != "base" and report is not None:
                    delta = DELTA if of == "pruned" else f"{DELTA}_{of}"
                    self.outcome.metrics[delta] = comparison.compare(store.folder(before), store.folder(report))
                    run.log_metrics(self.outcome.metrics[delta], delta)
                    written = comparison.side_by_side(store.folder(before), store.folder(report))
                    run.log_text(written, f"generations{'' if of == 'pruned' else f'-{of}'}.md")
        versions = {f"dvc.{title}": version.md5 for title, version in self.outcome.versions.items()}
        if self.recipe.score.reason:
            versions["criterion.reason"] = self.recipe.score.reason
        run.tag({f"artifact.{record.step.title}": record.artifact.path for record in self.outcome.records} | versions)

    def _models(self) -> dict[str, str]:
        """The base and the models made from it, as logged models by what they are."""
        made, run = self.outcome.made, self.run
        assert made.base and made.pruned and made.mask
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
        models = {"base": base, "pruned": run.log_model("pruned", made.pruned.digest, f"{name}-{budget}", lineage)}
        if made.distilled is not None:
            lineage["pruned_sha256"] = made.pruned.digest
            named = f"{name}-{budget}-distilled"
            models["distilled"] = run.log_model("distilled", made.distilled.digest, named, lineage)
        return models


@task(name="register", cache_policy=NO_CACHE, persist_result=False)
def register(file: Path, name: str, project: Path) -> versioning.Version:
    """Have DVC hold a copy of a corpus or mask, on hits and misses alike."""
    return versioning.register(file, name, project)


@task(name="push", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=5)
def push(project: Path) -> bool:
    """Send what DVC holds to the team's remote, if one has been set."""
    return versioning.push(project)


def _results(store: Store) -> Path:
    folder = store.root.absolute() / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
