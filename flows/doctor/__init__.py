"""Looking at all that a run depends on, without running anything."""

from collections.abc import Callable, Iterator

from flows.doctor import machine as doctor_machine
from flows.doctor import project as doctor_project
from flows.doctor import servers as doctor_servers
from flows.doctor.health import Finding, fail
from moeprune.errors import one_line
from tasks.artifacts import Store

Check = Callable[[Store], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    doctor_project.git,
    doctor_project.dvc,
    doctor_machine.python,
    doctor_machine.packages,
    doctor_servers.prefect,
    doctor_servers.mlflow,
    doctor_servers.runs,
    doctor_machine.store,
    doctor_machine.disk,
    doctor_machine.device,
    doctor_machine.tests,
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
