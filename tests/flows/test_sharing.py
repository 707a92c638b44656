"""What recipes under way at once know of one another, and the processes that work for them."""

import threading
from pathlib import Path

import pytest

from flows.sharing import Shared
from moeprune.errors import BadInput
from tasks.artifacts import Step


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


SCRIPT = """
import os, signal
from prefect import task
from flows.workers import Workers

@task
def die():
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
            execute(die, {})
        except RuntimeError as error:
            print(error)
        print(*execute(look, {}), flush=True)
    SubprocessASGIServer().stop()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_worker_that_dies_is_replaced_and_one_whose_parent_dies_ends(project, process):
    Path("script.py").write_text(SCRIPT)
    start = "import os, runpy; del os.environ['PREFECT_API_URL']; runpy.run_path('script.py', run_name='__main__')"
    answer = process(project, script=start, PREFECT_HOME=str(project / "prefect"))
    assert answer.status == -9, answer.err
    server, error, seen = answer.out.splitlines()
    pid, threads, used = seen.split()
    assert "ended without a word" in error and threads == "3"
    assert used == server, "the worker has started a server of its own"
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return
        threading.Event().wait(0.1)
    pytest.fail("the worker is still there")
