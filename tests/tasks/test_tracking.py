"""MLflow for real, on databases of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from textwrap import dedent, indent
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.tracked import LONGEST, flatten
from tasks.tracking import Tracker

ROOT = Path(__file__).parents[2]
MD5 = "0cc175b9c0f1b6a831c399e269772661"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """One database for the tests that do not mind what else is in it; its folder has a blank in its name."""
    return Tracker(Store(tmp_path_factory.mktemp("a store")))


@pytest.fixture
def tracker(shared: Tracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tracker:
    """An experiment of its own in the shared database."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    return Tracker(shared.store)


@pytest.fixture
def client(tracker: Tracker) -> MlflowClient:
    return MlflowClient(tracker.uri)


@pytest.fixture
def deaf_server() -> Iterator[str]:
    """It accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def manifest(key: str = "k1", started: str = "2026-01-02T03:04:05+00:00", **facts: Any) -> dict[str, Any]:
    return {
        "key": key,
        "digest": f"digest-{key}",
        "params": {"tokens": 32768, "corpus": {"name": "wiki", "field": None}},
        "facts": facts,
        "inputs": {},
        "producer": {
            "flow_run": "flow-1",
            "git_commit": "c0ffee",
            "git_dirty": False,
            "seconds": 2.5,
            "peak_memory_bytes": 4096,
            "started": started,
        },
    }


def processes(store: Path, names: list[str], work: str) -> "subprocess.Popen[str]":
    """One process for each name that start `work` together. They are buried in reverse order."""
    script = f"""
import os, sys, time
from pathlib import Path
from tasks.artifacts import Store
from tasks.tracking import Tracker

def work(tracker, name):
{indent(dedent(work), "    ")}

pids = []
for name in {names}:
    pids.append(os.fork())
    if pids[-1] == 0:
        work(Tracker(Store(Path({str(store)!r}))), name)
        sys.exit()
sys.exit(any([os.waitpid(pid, 0)[1] for pid in reversed(pids)]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=PIPE, stderr=PIPE, text=True)


def test_database_made_by_three_processes_at_once_serves_them_all(tmp_path: Path) -> None:
    work = f"""
        tracker.check()
        with tracker.run(name, {{}}) as run:
            run.log_stage("score", "score", "", {manifest()}, "miss")
    """
    workers = processes(tmp_path / "new", ["a", "b", "c"], work)
    output = workers.communicate(timeout=300)
    assert workers.returncode == 0, output
    assert output == ("", "")  # nothing of MLflow's chatter reaches the user
    tracker = Tracker(Store(tmp_path / "new"))
    assert sorted(run.name for run in tracker.list_runs()) == ["a", "b", "c"]
    assert len(MlflowClient(tracker.uri).search_experiments(filter_string="name = 'moeprune'")) == 1


def test_artifacts_lie_in_the_store_whatever_the_working_directory(
    tracker: Tracker, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with tracker.run("demo", {}, recipe="mask: {ratio: 0.25}\n") as run:
        pass
    path = tracker.store.root / "mlruns" / run.id / "artifacts" / "recipe.yaml"
    assert path.read_text() == "mask: {ratio: 0.25}\n"
    assert Path(client.download_artifacts(run.id, "recipe.yaml")).read_text() == path.read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["http://127.0.0.1:9", "postgresql://someone:secret@127.0.0.1:9/moeprune"])
def test_check_with_nothing_listening_refuses_at_once(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", scheme)
    started = time.monotonic()
    with pytest.raises(BadInput, match=r"127\.0\.0\.1:9.*unset MLFLOW_TRACKING_URI") as refused:
        Tracker(Store(tmp_path)).check()
    assert time.monotonic() - started < 30  # MLflow by itself goes on for minutes
    assert "secret" not in str(refused.value)


def test_check_with_a_server_that_never_answers_refuses_within_seconds(
    deaf_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", deaf_server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    started = time.monotonic()
    with pytest.raises(BadInput, match=deaf_server):
        Tracker(Store(tmp_path)).check()
    assert time.monotonic() - started < 60
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_check_of_an_address_that_is_none_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:port")
    with pytest.raises(BadInput, match=r"127\.0\.0\.1:port cannot be used"):
        Tracker(Store(tmp_path)).check()


def test_check_with_a_store_in_an_impossible_place_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/nowhere/mlflow.db")
    with pytest.raises(BadInput, match="/proc/nowhere"):
        Tracker(Store(Path("/proc/nowhere"))).check()


def test_check_with_a_deleted_experiment_says_how_to_bring_it_back(tracker: Tracker, client: MlflowClient) -> None:
    tracker.check()
    experiment = client.get_experiment_by_name(tracker.experiment)
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(BadInput, match=f"mlflow experiments restore -x {experiment.experiment_id}"):
        Tracker(tracker.store).check()


def test_run_to_its_end_is_finished_with_its_params(tracker: Tracker) -> None:
    params = {"mask": {"ratio": 0.25, "keep": None}, "calibrate": {"corpora": [{"name": "wiki"}]}, "notes": "x" * 7000}
    with tracker.run("demo", params, {"sweep": "s1"}) as run:
        assert tracker.find_run(run.id).status == "RUNNING"
    found = tracker.find_run(run.id)
    assert (found.name, found.status, found.tags["sweep"]) == ("demo", "FINISHED", "s1")
    assert found.params == {
        "mask.ratio": "0.25",
        "mask.keep": "null",
        "calibrate.corpora": '[{"name": "wiki"}]',
        "notes": "x" * (LONGEST - 1) + "…",
    }


def test_run_with_more_params_than_a_server_takes_at_once_keeps_all(tracker: Tracker) -> None:
    params = {"many": {f"p{i}": i for i in range(250)}}
    with tracker.run("demo", params) as run:
        pass
    assert tracker.find_run(run.id).params == flatten(params)


@pytest.mark.parametrize(
    ("error", "status"), [(BadInput("mask.ratio: 2 is more than 1"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_run_that_raises_is_closed_and_lets_the_error_through(
    error: BaseException, status: str, tracker: Tracker
) -> None:
    with pytest.raises(type(error)), tracker.run("demo", {}) as run:
        raise error
    found = tracker.find_run(run.id)
    assert found.status == status
    assert found.tags["error"] == f"{type(error).__name__}: {error}"


def test_runs_left_by_a_killed_process_are_closed_and_live_ones_left(tracker: Tracker, client: MlflowClient) -> None:
    work = """
        with tracker.run(name, {}) as run:
            child = run._client.create_run(tracker._experiment_id, tags={"mlflow.parentRunId": run.id})
            print(name, os.getpid(), run.id, child.info.run_id, flush=True)
            time.sleep(300)
    """
    workers = processes(tracker.store.root, ["first", "second"], work)
    assert workers.stdout is not None
    lines = sorted(workers.stdout.readline().split() for _ in range(2))
    (_, pid, killed, killed_child), (_, other_pid, alive, _) = lines
    elsewhere = client.create_run(
        client.get_run(alive).info.experiment_id,
        tags={"role": "run", "place": "another host", "process": client.get_run(killed).data.tags["process"]},
    ).info.run_id
    os.kill(int(pid), signal.SIGKILL)
    while ") Z" not in Path(f"/proc/{pid}/stat").read_text():  # dead, and still in the table of processes
        pass
    try:
        with tracker.run("next", {}) as run:
            runs = (killed, killed_child, alive, elsewhere, run.id)
            status = [client.get_run(run_id).info.status for run_id in runs]
    finally:
        os.kill(int(other_pid), signal.SIGKILL)
        workers.communicate()
    assert status == ["KILLED", "KILLED", "RUNNING", "RUNNING", "RUNNING"]


def test_closing_ends_what_is_lost_with_all_below_it_and_nothing_else(tracker: Tracker, client: MlflowClient) -> None:
    lost = {"place": "a machine that is gone"}
    with (
        tracker.sweep("grid", "key", {}, "") as sweep,
        tracker.run("beside", {}) as beside,
        tracker.run("recipe", {}, lost, sweep=sweep.id) as run,
    ):
        child = client.create_run(tracker._experiment_id, tags={"mlflow.parentRunId": run.id}).info.run_id
        for alive in (sweep.id, beside.id):
            with pytest.raises(BadInput, match="under way on this machine"):
                tracker.close(alive)
        client.set_tag(sweep.id, "place", lost["place"])
        assert tracker.close(sweep.id[:12]).status == "KILLED"
        ids = (sweep.id, run.id, child, beside.id)
        assert [client.get_run(one).info.status for one in ids] == ["KILLED"] * 3 + ["RUNNING"]
        with pytest.raises(BadInput, match="is KILLED: there is nothing to close"):
            tracker.close(run.id)


def test_sweep_lists_as_one_and_holds_its_runs(tracker: Tracker) -> None:
    with tracker.run("alone", {}) as alone:
        pass
    with tracker.sweep("grid", "key", {"mask.ratio": "0.25 | 0.5"}, "a: 1\n") as sweep:
        ids = []
        for recipe in ("r1", "r2"):
            with tracker.run(recipe, {}, {"recipe": recipe}, sweep=sweep.id) as run:
                run.log_stage("score", "score", "", manifest(recipe), "miss")
            ids.append(run.id)
        with pytest.raises(OSError), tracker.run("r3", {}, {"recipe": "r3"}, sweep=sweep.id):
            raise OSError
    assert [record.id for record in tracker.list_runs()] == [sweep.id, alone.id]
    found = tracker.find_sweep(sweep.id[:12])
    assert found.status == "FINISHED" and found.params == {"mask.ratio": "0.25 | 0.5"}
    assert [(child.name, child.status) for child in found.children] == [
        ("r1", "FINISHED"), ("r2", "FINISHED"), ("r3", "FAILED"),
    ]  # fmt: skip
    assert tracker.finished(sweep.id) == dict(zip(("r1", "r2"), ids, strict=True))
    assert [child.name for child in tracker.find_run(ids[0]).children] == ["score"]
    with pytest.raises(BadInput, match="runs list"):
        tracker.find_sweep(alone.id)


@pytest.mark.parametrize(
    ("key", "ending", "goes_on"),
    [("key", "killed", True), ("key", "failed", True), ("key", "finished", False), ("another", "killed", False)],
)
def test_sweep_goes_on_where_the_same_one_did_not_come_to_its_end(
    key: str, ending: str, goes_on: bool, tracker: Tracker
) -> None:
    try:
        with tracker.sweep("grid", key, {"ratio": "0.25"}, "") as first:
            if ending == "failed":
                first.fail("1 of 2 recipes failed")
            if ending == "killed":
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert tracker.find_sweep(first.id).status == {"killed": "KILLED", "failed": "FAILED"}.get(ending, "FINISHED")
    with tracker.sweep("grid", "key", {"ratio": "0.25"}, "") as second:
        assert tracker.find_sweep(second.id).status == "RUNNING"
    assert (second.id == first.id) is goes_on
    found = tracker.find_sweep(second.id)
    assert found.status == "FINISHED" and "error" not in found.tags


def test_sweep_left_by_a_killed_process_is_closed_with_its_runs_and_gone_on_with(
    tracker: Tracker, client: MlflowClient
) -> None:
    work = """
        with tracker.sweep(name, "key", {}, "") as sweep, tracker.run(name, {}, sweep=sweep.id) as run:
            child = run._client.create_run(tracker._experiment_id, tags={"mlflow.parentRunId": run.id})
            print(os.getpid(), sweep.id, run.id, child.info.run_id, flush=True)
            time.sleep(300)
    """
    worker = processes(tracker.store.root, ["grid"], work)
    assert worker.stdout is not None
    pid, *ids = worker.stdout.readline().split()
    with tracker.sweep("grid", "key", {}, "") as beside:  # the other one is under way
        assert beside.id != ids[0]
    client.delete_run(beside.id)
    os.kill(int(pid), signal.SIGKILL)
    worker.communicate()
    with tracker.sweep("grid", "key", {}, "") as again:
        status = [client.get_run(run_id).info.status for run_id in ids]
    assert again.id == ids[0] and status == ["RUNNING", "KILLED", "KILLED"]


def test_a_dataset_new_to_several_threads_is_made_once(tracker: Tracker, client: MlflowClient) -> None:
    together = threading.Barrier(4)
    faults: list[Exception] = []

    def one(name: str) -> None:
        with tracker.run(name, {}) as run:
            child = run.log_stage("calibrate wiki", "calibrate", "wiki", manifest(name), "miss")
            together.wait()
            try:
                run.log_corpus(child, "wiki", MD5, "data/sources/wiki.jsonl.gz", 32768)
            except Exception as error:
                faults.append(error)

    threads = [threading.Thread(target=one, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == [] and len(tracker.runs_with_dataset(MD5)) == 4


def test_a_process_id_used_again_does_not_keep_a_stale_run_open(tracker: Tracker, client: MlflowClient) -> None:
    with tracker.run("demo", {}) as run:
        info = client.get_run(run.id)
    pid, start = info.data.tags["process"].split(":")
    stale = client.create_run(
        info.info.experiment_id, tags={**info.data.tags, "process": f"{pid}:{int(start) - 1}"}
    ).info.run_id
    with tracker.run("next", {}):
        assert client.get_run(stale).info.status == "KILLED"


def test_stage_made_now_is_its_own_maker_and_has_the_times_of_the_work(
    tracker: Tracker, client: MlflowClient, tmp_path: Path
) -> None:
    mask = tmp_path / "mask.json"
    mask.write_text('{"kept": {}}')
    with tracker.run("demo", {}) as run:
        facts = {"experts": 64, "nan": float("nan"), "exact": True, "deep": {"share": 0.5}, "rule": "uniform"}
        child = run.log_stage("mask wiki", "mask", "wiki", manifest(**facts), "miss", [mask])
    (found,) = tracker.find_run(run.id).children
    assert (found.id, found.name, found.status) == (child, "mask wiki", "FINISHED")
    assert found.params == {"tokens": "32768", "corpus.name": "wiki", "corpus.field": "null"}
    assert found.metrics == {"experts": 64, "deep.share": 0.5, "seconds": 2.5, "peak_memory_bytes": 4096}
    expected = {"stage": "mask", "of": "wiki", "cache": "miss", "key": "k1", "digest": "digest-k1"}
    expected |= {
        "produced_by_flow_run": "flow-1",
        "produced_by_run": child,
        "git_commit": "c0ffee",
        "git_dirty": "False",
    }
    assert expected.items() <= found.tags.items()
    info = client.get_run(child).info
    assert info.end_time - info.start_time == 2500
    assert found.start.isoformat() == "2026-01-02T03:04:05+00:00"
    assert Path(client.download_artifacts(child, "mask.json")).read_text() == '{"kept": {}}'


def test_stage_found_names_the_latest_run_that_made_it(tracker: Tracker) -> None:
    with tracker.run("first", {}) as run:
        run.log_stage("score", "score", "", manifest("k1"), "miss")
        other = run.log_stage("score", "score", "", manifest("k2"), "miss")
        again = run.log_stage("score", "score", "", manifest("k1", "2026-01-02T03:05:00+00:00"), "miss")
    with tracker.run("second", {}) as run:
        children = [run.log_stage("score", "score", "", manifest(key), "hit") for key in ("k1", "k2", "k3")]
    found = tracker.find_run(run.id).children
    assert [child.id for child in found] == children
    assert [child.tags.get("produced_by_run") for child in found] == [again, other, None]
    assert all(child.start.year > 2026 or child.start.month > 1 for child in found)  # the hit's time, not the work's


def test_stages_logged_by_threads_keep_their_parents(tracker: Tracker) -> None:
    def one(name: str) -> None:
        with tracker.run(name, {}) as run:
            for i in range(3):
                run.log_stage(f"{name} {i}", "score", "", manifest(f"{name}{i}"), "miss")

    threads = [threading.Thread(target=one, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run in tracker.list_runs():
        names = [child.name for child in tracker.find_run(run.id).children]
        assert names == [f"{run.name} {i}" for i in range(3)]


def test_runs_are_found_by_the_md5_of_a_corpus(tracker: Tracker, client: MlflowClient) -> None:
    ids = []
    for name, md5 in (("one", MD5), ("two", MD5), ("other", "f" * 32)):
        with tracker.run(name, {}) as run:
            child = run.log_stage("calibrate wiki", "calibrate", "wiki", manifest(name), "miss")
            run.log_corpus(child, "wiki", md5, "data/sources/wiki.jsonl.gz", 32768)
        ids.append(run.id)
    assert [run.id for run in tracker.runs_with_dataset(MD5)] == [ids[1], ids[0]]
    everywhere = client.search_runs(
        [client.get_run(child).info.experiment_id], filter_string=f"datasets.digest = '{MD5}'"
    )
    assert len(everywhere) == 4  # each run and its child
    used = client.get_run(child).inputs.dataset_inputs[0]
    assert (used.dataset.name, used.dataset.digest) == ("wiki", "f" * 32)
    assert json.loads(used.dataset.source) == {"uri": "data/sources/wiki.jsonl.gz"}
    assert used.tags[0].value == "calibration"


def test_model_is_logged_once_per_digest_and_linked_to_each_run(tracker: Tracker, client: MlflowClient) -> None:
    links = []
    for ratio in (0.25, 0.5):
        with tracker.run("demo", {}) as run:
            base = run.log_model("base", "b" * 64, "org/model:v1.0", {"source": "org/model"})
            pruned = run.log_model("pruned", "c" * 64, "model-25", {"base_model_id": base, "ratio": ratio})
            assert run.log_model("base", "b" * 64, "org/model:v1.0") == base
        stored = client.get_run(run.id)
        links.append((base, pruned))
        assert [model.model_id for model in stored.inputs.model_inputs] == [base]
        assert [model.model_id for model in stored.outputs.model_outputs] == [pruned]
    assert links[0] == links[1] and base != pruned
    model = client.get_logged_model(pruned)
    assert model.params == {"base_model_id": base, "ratio": "0.25", "sha256": "c" * 64}
    assert str(model.status) == "READY"
    descendants = client.search_logged_models([model.experiment_id], f"params.base_model_id = '{base}'")
    assert [model.model_id for model in descendants] == [pruned]


def test_metrics_are_bound_to_the_model_and_headline_the_run(tracker: Tracker, client: MlflowClient) -> None:
    measured = {"wiki/bits_per_byte": {"value": 1.5, "stderr": 0.25, "n": 40}, "arc@easy(acc,none)=": {"value": 0.75}}
    with tracker.run("demo", {}) as run:
        models, children = {}, {}
        for kind in ("base", "pruned"):
            children[kind] = run.log_stage(f"evaluate {kind}", "evaluate", kind, manifest(kind), "miss")
            models[kind] = run.log_model(kind, kind[0] * 64, kind)
            run.log_metrics(measured, kind, children[kind], models[kind])
        run.log_metrics({"wiki/bits_per_byte": {"value": 0.0, "stderr": None, "n": 40}}, "delta")
    for kind, model in models.items():
        logged = client.get_logged_model(model)
        values = {metric.key: metric.value for metric in logged.metrics}
        plain = {"wiki/bits_per_byte": 1.5, "wiki/bits_per_byte_stderr": 0.25, "wiki/bits_per_byte_n": 40}
        assert values == plain | {"arc_easy_acc_none__": 0.75}, kind
        assert {metric.run_id for metric in logged.metrics} == {children[kind]}
    assert tracker.find_run(run.id).metrics == {
        "base/wiki/bits_per_byte": 1.5,
        "base/wiki/bits_per_byte_stderr": 0.25,
        "base/arc_easy_acc_none__": 0.75,
        "pruned/wiki/bits_per_byte": 1.5,
        "pruned/wiki/bits_per_byte_stderr": 0.25,
        "pruned/arc_easy_acc_none__": 0.75,
        "delta/wiki/bits_per_byte": 0.0,
    }


def test_list_runs_shows_parents_newest_first(tracker: Tracker) -> None:
    for name in "abc":
        with tracker.run(name, {}) as run:
            run.log_stage("score", "score", "", manifest(name), "miss")
    assert [run.name for run in tracker.list_runs(2)] == ["c", "b"]
    assert tracker.find_run(run.id[:12]).id == run.id


@pytest.mark.parametrize("prefix", ["", "f" * 32, "%", "' OR 1"], ids=["ambiguous", "unknown", "wildcard", "quote"])
def test_find_run_without_one_answer_is_refused(prefix: str, tracker: Tracker) -> None:
    with tracker.run("a", {}), pytest.raises(BadInput, match="moeprune runs"):
        tracker.find_run(prefix)


def test_find_run_by_a_beginning_that_fits_two_names_them(tracker: Tracker) -> None:
    ids: list[str] = []
    while len({run_id[0] for run_id in ids}) == len(ids):  # at most 17 runs: an id begins with one of 16 digits
        with tracker.run("a", {}) as run:
            ids.append(run.id)
    with pytest.raises(BadInput, match=ids[-1]):
        tracker.find_run(ids[-1][0])


def test_logging_a_run_of_fourteen_stages_costs_less_than_four_seconds(tracker: Tracker, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("{}" * 5000)
    measured = {f"task{i}/acc": {"value": 0.5, "stderr": 0.1, "n": 100} for i in range(20)}
    tracker.check()
    started = time.process_time()  # what else runs on the machine does not count
    with tracker.run("demo", {"calibrate": {"tokens": 32768}}, recipe="calibrate: {tokens: 32768}\n") as run:
        children = [run.log_stage(f"stage {i}", "stage", "", manifest(f"k{i}"), "hit", [report]) for i in range(14)]
        for i, child in enumerate(children[:4]):
            run.log_corpus(child, f"corpus{i}", f"{i:032x}", "data/sources/wiki.jsonl.gz", 32768)
        run.log_metrics(measured, "base", children[12], run.log_model("base", "b" * 64, "base"))
        run.log_metrics(measured, "pruned", children[13], run.log_model("pruned", "c" * 64, "pruned"))
    assert time.process_time() - started < 4
