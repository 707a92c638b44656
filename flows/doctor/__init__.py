"""Looking at all that a run depends on, without running anything."""

from collections.abc import Callable, Iterator

from flows.doctor import machine, project, servers
from flows.doctor.health import Finding, fail
from moeprune.errors import one_line
from tasks.artifacts import Store

Check = Callable[[Store], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    project.git,
    project.dvc,
    machine.python,
    machine.packages,
    servers.prefect,
    servers.mlflow,
    servers.runs,
    machine.store,
    machine.disk,
    machine.device,
    machine.tests,
)


def examine(store: Store) -> Iterator[Finding]:
    """What is well with the project in the working directory, its store and this machine, and what is not.

    Each server is asked what a run asks it first: the tracker's database and experiment are made if they are missing.
    """
    for check in CHECKS:
        try:
            yield from check(store)
        except Exception as error:  # whatever is ill, the rest is still looked at
            yield fail(check.__name__, f"{type(error).__name__}: {one_line(error)}", "report this as a bug of moeprune")
