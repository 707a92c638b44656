"""A team's week on one machine, with every claim checked: `PYTHONPATH=tests python -m teams.week`.

The servers are real, as compose.yaml describes them: Prefect and MLflow on PostgreSQL, an S3-compatible store for
MLflow's artifacts and DVC's objects; the Hub is one on the loopback interface. Members and workers have folders and
homes of their own, nothing in their environment but what docs/team.md and the Hub ask for, and all they do are
commands. docs/week.md shows what is told. With --tiny it is played with the tests' sample instead of the demo.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import servers
from hub import serve
from teams import keeping, making
from teams.colleagues import at_once
from teams.diary import Diary, Step
from teams.material import BASE, COMMIT, prepare
from teams.scene import TOKEN, Scene

TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
WEEK: list[list[tuple[str, str, Callable[[Scene, Step], None]]]] = [
    [("Mon", "Ana makes a project and deploys its flows", making.set_up)],
    [("Tue", "the nightly schedule fires, the first worker runs it", making.fire)],
    [("Tue", "the second worker, elsewhere, is asked for the same", making.again)],
    [("Wed", "an audit and a sweep at once, one on each worker", making.together)],
    [("Wed", "what they have left in the tracker", making.left)],
    [("Thu", "a promotion is refused, another passes", keeping.promote)],
    [
        ("Thu", "the dashboard is exported as one page", keeping.export),
        ("Thu", "production is pushed to the Hub, a stranger loads it", keeping.hand_over),
        ("Thu", "production is restored in a fresh clone", keeping.restore),
    ],
    [("Fri", "an object is deleted, verify finds it", keeping.verify)],
    [("Fri", "gc clears the store, but for what is kept", keeping.collect)],
]
"""By day; what is in one list is done at the same time."""


def main() -> None:
    """Play it and show all that was checked."""
    with tempfile.TemporaryDirectory(prefix="moeprune-week-") as folder:
        diary = play("tiny" if "--tiny" in sys.argv[1:] else "demo", Path(folder))
    print(f"\n{diary.table()}")


def play(model: str, folder: Path) -> Diary:
    """The week with this model, `tiny` or `demo`, in an empty folder. AssertionError for a claim that does not hold."""
    diary = Diary()
    prepare(model, folder / "prepared", folder / "base")
    with ExitStack() as until_friday:
        starting = diary.add("Mon", "the servers start")
        with starting.taken():
            scene = until_friday.enter_context(_scene(folder))
            for database in ("prefect", "mlflow"):
                ((tables,),) = scene.team.postgres.query(database, TABLES)
                starting.holds(f"{database} has its tables in PostgreSQL", tables > 10)
        for steps in WEEK:
            at_once(*(partial(_take, diary.add(day, title), scene, act) for day, title, act in steps))
    return diary


def _take(step: Step, scene: Scene, act: Callable[[Scene, Step], None]) -> None:
    with step.taken():
        act(scene, step)


@contextmanager
def _scene(folder: Path) -> Iterator[Scene]:
    with servers.postgres() as database, servers.s3(folder) as storage, serve({BASE: {COMMIT: folder / "base"}}) as hub:
        hub.token = TOKEN
        with servers.prefect(database, folder) as api, servers.mlflow(database, storage, folder) as tracker:
            yield Scene(folder, servers.Team(database, storage, api, tracker), hub)


if __name__ == "__main__":
    main()
