"""What recipes under way at once know of one another, and the processes that work for them."""

import io
import sys
import threading
from pathlib import Path

import pytest
from tqdm import tqdm

from flows.sharing import Shared
from flows.sweep.workers import Lines
from moeprune.errors import BadInput
from tasks.artifacts import Artifact, Step, Store


def test_shared_step_is_made_by_one_thread_and_found_by_the_others():
    shared, made, step = Shared(), [], Step("score", "", "code", {}, {})
    together = threading.Barrier(4)

    def want() -> None:
        together.wait()
        with shared.alone(step):
            if not made:  # were two of them in here at once, both would find nothing
                together_inside.wait(0.2)
                made.append(threading.get_ident())

    together_inside = threading.Event()
    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


@pytest.mark.parametrize(("fault", "kind"), [(BadInput("too few"), BadInput), (OSError("no disk"), RuntimeError)])
def test_shared_step_that_failed_is_not_tried_again(fault, kind):
    shared, step = Shared(), Step("score", "reap", "code", {}, {})
    with pytest.raises(type(fault)), shared.alone(step):
        raise fault
    with pytest.raises(kind, match=f"score reap failed for another recipe already: {fault}"), shared.alone(step):
        pytest.fail("it was tried again")
    with shared.alone(Step("score", "reap", "code", {"options": 1}, {})):
        pass


def test_stage_that_another_run_has_made_meanwhile_is_a_hit(done, run, monkeypatch):
    find, looked = Store.find, []

    def find_late(store: Store, step: Step) -> Artifact | None:
        looked.append(step.stage)
        return None if step.stage == "mask" and looked.count("mask") == 1 else find(store, step)

    monkeypatch.setattr(Store, "find", find_late)
    assert run("params/whole.yaml").missed == []
    assert looked.count("mask") == 2, "once before it was to be made, once more when it was this run's turn"


def test_bars_of_workers_are_whole_lines(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", Lines(written))
    for name in ("one", "other"):
        with tqdm(total=4, desc=name, file=sys.stderr, mininterval=0, leave=False) as bar:
            bar.update(2)
            bar.update(2)
    lines = written.getvalue().splitlines()
    assert {line.partition(":")[0] for line in lines} == {"one", "other"}
    assert sum("100%" in line for line in lines) == 2 and "\r" not in written.getvalue()


SCRIPT = """
import os, signal
from pathlib import Path
from prefect import task
from flows.sweep.workers import Workers

@task
def die(before):  # once only, if it is told a file by which to know
    if before is None or not before.exists():
        if before:
            before.touch()
        os.kill(os.getpid(), signal.SIGKILL)

@task
def look():
    import torch
    from prefect.settings import PREFECT_API_URL
    return os.getpid(), torch.get_num_threads(), PREFECT_API_URL.value()

if __name__ == "__main__":
    from prefect.client.orchestration import get_client
    from prefect.server.api.server import SubprocessASGIServer

    with get_client(sync_client=True) as client:
        print(str(client.api_url).rstrip("/"))
    with Workers(1, 3).one() as execute:
        try:
            execute(die, {"before": Path("died")})
            execute(die, {"before": None})
        except RuntimeError as error:
            print(error)
        print(*execute(look, {}), flush=True)
    SubprocessASGIServer().stop()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_worker_that_dies_is_replaced_its_task_tried_once_more_and_one_whose_parent_dies_ends(project, process):
    Path("script.py").write_text(SCRIPT)
    start = "import os, runpy; del os.environ['PREFECT_API_URL']; runpy.run_path('script.py', run_name='__main__')"
    answer = process(project, script=start, PREFECT_HOME=str(project / "prefect"))
    assert answer.status == -9, answer.err
    server, error, seen = answer.out.splitlines()
    pid, threads, used = seen.split()
    assert "two processes" in error and threads == "3"
    assert answer.err.count("is tried once more") == 2
    assert used == server, "the worker has started a server of its own"
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        threading.Event().wait(0.1)
    pytest.fail("the worker is still there")
