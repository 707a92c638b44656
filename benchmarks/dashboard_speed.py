"""How quickly the dashboard shows and answers over many runs, in a real headless Chromium.

    PYTHONPATH=tests python benchmarks/dashboard_speed.py [--runs 1000] [--store FOLDER] [--server]

The runs are made up (tests/many_runs.py): as a pruning run records itself, then copied; with --store they are kept
there, and found the next time. They are read from SQLite, or with --server as a team reads them: by way of MLflow's
server, on PostgreSQL and an S3-compatible store, started as compose.yaml says (tests/servers.py). Times are from the
act (the command started, the page asked for, a key pressed, a mouse button let go) until the answer stands in the page,
looked for every 20 ms.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import many_runs
from browser import Browser, browser
from selenium.webdriver.support.wait import WebDriverWait
from servers import BUCKET, mlflow, postgres, s3
from sqlalchemy import Boolean, Engine, MetaData, create_engine
from sqlalchemy.dialects.postgresql import insert

ROOT = Path(__file__).parents[1]

PLOT = "#comparison .main-svg"


def main() -> None:
    """Make the runs if need be, measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--server", action="store_true")
    given = parser.parse_args()
    with TemporaryDirectory() as scratch:
        store = (given.store or Path(scratch) / "store").absolute()
        if not (store / "mlflow.db").is_file():
            store.mkdir(parents=True, exist_ok=True)
            many_runs.make(store, given.runs)
        serving = served(store, Path(scratch)) if given.server else nullcontext()
        with serving as address, browser(Path(scratch)) as window:
            rows = measure(window, store, given.runs, {"MLFLOW_TRACKING_URI": address} if address else {})
    print("| what | seconds |\n|---|---|")
    for what, seconds in rows:
        print(f"| {what} | {seconds:.2f} |")


@contextmanager
def served(store: Path, scratch: Path) -> Iterator[str]:
    """MLflow's server with what the store's database has on record; gives its address."""
    with postgres() as cluster, s3(scratch) as storage, mlflow(cluster, storage, scratch) as address:
        shutil.copytree(store / "mlruns", storage.folder / BUCKET / "mlflow" / "1")
        _copy(create_engine(f"sqlite:///{store / 'mlflow.db'}"), create_engine(cluster.url("mlflow")))
        yield address


def _copy(origin: Engine, target: Engine) -> None:
    """Every row of a database that the other does not have; files of runs are where the server keeps them."""
    known = MetaData()
    known.reflect(target)
    with origin.connect() as source, target.begin() as written:
        for table in known.sorted_tables:
            flags = {column.name for column in table.columns if isinstance(column.type, Boolean)}
            rows = [
                {name: bool(value) if name in flags else _place(value) for name, value in row._mapping.items()}
                for row in source.exec_driver_sql(f"SELECT * FROM {table.name}")
            ]
            for start in range(0, len(rows), 1000):
                written.execute(insert(table).on_conflict_do_nothing(), rows[start : start + 1000])


def _place(value: Any) -> Any:
    return re.sub(r"^file://.*/mlruns", "mlflow-artifacts:/1", value) if isinstance(value, str) else value


def measure(window: Browser, store: Path, runs: int, environ: dict[str, str]) -> list[tuple[str, float]]:
    """What was measured, and seconds."""
    started = time.monotonic()
    rows: list[tuple[str, float]] = []

    def note(what: str, since: float, reached: Callable[[], Any]) -> None:
        WebDriverWait(window.driver, 600, poll_frequency=0.02).until(lambda _: reached())
        rows.append((what, time.monotonic() - since))
        print(f"{rows[-1][1]:7.2f} s  {what}", file=sys.stderr, flush=True)

    def text(selector: str) -> str:
        return str(window.run("return document.querySelector(arguments[0])?.innerText || ''", selector))

    def drawn() -> Any:
        return window.find("#runs tbody tr") and window.find("#graph canvas") and window.find("#nodes button")

    with command(store, environ) as address:
        rows.append(("command started until it listens", time.monotonic() - started))
        window.visit(address, 1400, 1000)
        note("command started until list and graph of the newest runs are seen", started, drawn)
        note(
            f"command started until all {runs:,} runs can be searched",
            started,
            lambda: f"{runs:,} runs" in text("#status") and "older" not in text("#status"),
        )
        loads = []
        for _ in range(5):
            since = time.monotonic()
            window.visit(address, 1400, 1000)
            WebDriverWait(window.driver, 60, poll_frequency=0.02).until(
                lambda _: drawn() and f"{runs:,} runs" in text("#turn")
            )
            loads.append(time.monotonic() - since)
        rows += [("page loaded, all runs listed: median of 5", median(loads)), ("the same: slowest", max(loads))]
        time.sleep(3)  # plotly, which is fetched after what is seen

        asked(window, note, text, runs)
        note(
            "command started until every result has been checked",
            started,
            lambda: "to be checked" not in text("#status"),
        )
    return rows


def asked(
    window: Browser, note: Callable[[str, float, Callable[[], Any]], None], text: Callable[[str], str], runs: int
) -> None:
    """Every kind of query, one after the other."""
    (field,) = window.find("#text")
    since = time.monotonic()
    field.send_keys("seer 0.5")
    note(
        "search for words (0.3 s of it waiting for more keys)",
        since,
        lambda: f"of {runs // 20:,} runs" in text("#turn"),
    )
    since = time.monotonic()
    window.run("const f = arguments[0]; f.focus(); f.select()", field)
    field.send_keys("\ue017")
    note("search taken back", since, lambda: f"of {runs:,} runs" in text("#turn"))
    since = time.monotonic()
    window.find("#turn button")[1].click()
    note("page of the list turned", since, lambda: "16 to 30" in text("#turn"))
    since = time.monotonic()
    for number in (0, 5):
        window.find("#runs input[type=checkbox]")[number].click()
    note("two runs chosen, their graph drawn", since, lambda: "of 2 runs" in text("#drawn"))
    since = time.monotonic()
    window.run("[...document.querySelectorAll('#nodes button')].at(-1).click()")  # marks that come make them anew
    note("node chosen, its details told", since, lambda: "digest" in text("#details"))
    since = time.monotonic()
    window.find("#to-compare")[0].click()
    note("two runs compared, all plots drawn", since, lambda: len(window.find(PLOT)) >= 4)
    since = time.monotonic()
    window.find("#turn button")[2].click()
    note("all runs drawn against memory", since, lambda: "No run is chosen" in text("#compared"))
    since = time.monotonic()
    window.find("#to-models")[0].click()
    note("models listed", since, lambda: window.find("#view-models tbody tr"))
    since = time.monotonic()
    next(one for one in window.find("#view-models tbody a") if "pruned" in one.text).click()
    note("a model's page with its card", since, lambda: "How to load it" in text("#view-models .card"))


@contextmanager
def command(store: Path, environ: dict[str, str]) -> Iterator[str]:
    """`moeprune dashboard` as a process of its own; gives its address."""
    words = [sys.executable, "-m", "flows.command", "dashboard", "--port", "0", "--store", str(store)]
    kept = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with subprocess.Popen(words, cwd=ROOT, env=kept | environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found, "it did not say where it listens"
            yield found[0]
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
