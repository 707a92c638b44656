"""The sweep flow: many recipes, each stage that several share run once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.states import Failed
from pydantic import Field

from flows.chain import Sources
from flows.deployment.notify import notify
from flows.engine import Execute, here, push, reach, say
from flows.outcome import Entry, Outcome, Record, Sweep
from flows.pruning import Among, run_recipe
from flows.recipe import Recipe, to_yaml
from flows.sharing import Shared
from flows.sweep import grid
from flows.walk import Walk, walk
from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.identity import key_of
from tasks.recording import Run


@flow(name="sweep", validate_parameters=True, on_failure=[notify], on_crashed=[notify])
def prune_models(recipe: dict[str, Any], name: str = "sweep", max_parallel: Annotated[int, Field(ge=1)] = 1) -> Any:
    """Run a recipe that has lists where it could have single values, every combination; what they share is made once.

    Returns a Sweep. One recipe that fails does not keep the others from running: the flow run then ends as Failed,
    with its Sweep as data. A sweep that did not come to its end goes on in the tracker's run where it was left.
    """
    recipes = grid.recipes_of(recipe, name)
    store = grid.store_of(recipes)
    tracker = reach(store, Path.cwd())
    jobs = [
        Job(number, one, sources, walk(one, sources, store))
        for number, (one, sources) in enumerate(zip(recipes, grid.check(recipes, store), strict=True), 1)
    ]
    origins = {"store": str(store.root.absolute()), "recipes": [job.walk.origin for job in jobs]}
    with tracker.sweep(name, key_of("sweep", name, origins, {}), grid.axes(recipes), to_yaml(*recipes)) as parent:
        parent.tag({"recipes": str(len(jobs))})
        course = Course(name, store, parent, len(jobs), tracker.finished(parent.id))
        result = Sweep(name, parent.id, _run(jobs, course.entry, min(max_parallel, len(jobs))))
        _remember(result, parent)
        push(Path.cwd())
    return Failed(message=failure(result), data=result) if result.failed else result


@dataclass(frozen=True)
class Job:
    """A recipe of a sweep, by its number from 1, with all that is known before any work."""

    number: int
    recipe: Recipe
    sources: Sources
    walk: Walk


@dataclass(frozen=True)
class Course:
    """A sweep under way."""

    name: str
    store: Store
    parent: Run
    count: int
    recorded: dict[str, str]
    """The runs that an earlier attempt has finished, by what decides their results."""
    shared: Shared = field(default_factory=Shared)

    def entry(self, job: Job, execute: Execute) -> Entry:
        """Run one recipe. Whatever it fails with is kept, and told."""
        whose, called = f"recipe {job.number} of {self.count}", grid.label(job.recipe)
        origin = job.walk.origin
        try:
            # The sweep was not on record when they were looked up, so gc may have taken them since.
            if origin in self.recorded and job.walk.done(self.store):
                say(f"{whose}: {called}: done before")
                return Entry(job.number, job.recipe, recall(job.walk, self.recorded[origin], self.store))
            say(f"{whose}: {called}")
            among = Among(self.parent.id, {"sweep": self.name, "recipe": origin}, self.shared, execute, whose)
            return Entry(job.number, job.recipe, run_recipe(job.recipe, called, job.sources, among))
        except Exception as error:
            named = "" if isinstance(error, BadInput) else f"{type(error).__name__}: "
            reason = " ".join(f"{named}{error}".split())
            say(f"{whose} failed: {reason}")
            return Entry(job.number, job.recipe, error=reason)


def recall(walked: Walk, run_id: str, store: Store) -> Outcome:
    """The outcome of a recipe whose results are all in the store, as a run of the tracker has recorded it."""
    outcome = Outcome(run_id, made=walked.made)
    for stage in walked.wanted:
        assert stage.artifact is not None
        work = store.manifest(stage.artifact)["producer"]["seconds"]
        outcome.records.append(Record(stage.step, stage.artifact, "hit", 0.0, work))
    outcome.measure(store)
    return outcome


def failure(result: Sweep) -> str:
    """How many recipes failed, and what to do."""
    return (
        f"{len(result.failed)} of {len(result.entries)} recipes failed: mend the cause, then run the same command "
        "again: what is done is kept"
    )


def divided(recipe: Recipe, count: int) -> Recipe:
    """The recipe with its part of torch's threads, where `count` are under way at once."""
    import torch

    threads = max(1, (recipe.runtime.threads or torch.get_num_threads()) // count)
    return recipe.model_copy(update={"runtime": recipe.runtime.model_copy(update={"threads": threads})})


def _run(jobs: list[Job], entry: Callable[[Job, Execute], Entry], count: int) -> list[Entry]:
    """Each job's entry, `count` under way at once: a thread for each, which has the work done by a process."""
    if count == 1:
        return [entry(job, here) for job in jobs]
    from flows.sweep.workers import Workers

    jobs = [replace(job, recipe=divided(job.recipe, count)) for job in jobs]
    with Workers(count, jobs[0].recipe.runtime.threads) as workers, ThreadPoolExecutor(count) as pool:

        def in_worker(job: Job) -> Entry:
            with workers.one() as execute:
                return entry(job, execute)

        # Prefect knows by its context which flow run a task belongs to.
        futures = [pool.submit(copy_context().run, in_worker, job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            workers.stop()
            raise


def _remember(result: Sweep, parent: Run) -> None:
    """Log how many were done and what was shared, the table of results and the report."""
    from flows.sweep import report as sweep_report
    from flows.sweep import table as sweep_table

    records = [record for outcome in result.outcomes for record in outcome.records]
    parent.log_counts(
        {
            "recipes": len(result.entries),
            "done": len(result.outcomes),
            "failed": len(result.failed),
            "stages": len(records),
            "stages_made": sum(record.cache == "miss" for record in records),
        }
    )
    if lines := sweep_table.table_of(result):
        parent.log_text(sweep_table.markdown(lines), "table.md")
    try:
        if page := sweep_report.report_of(result, f"moeprune sweep {result.name}.yaml"):
            parent.log_text(page.html(), "report.html")
    except Exception as error:  # hours of work are not lost for want of a page about them
        say(f"the report cannot be made: {type(error).__name__}: {error}")
    if result.failed:
        parent.fail(failure(result))
