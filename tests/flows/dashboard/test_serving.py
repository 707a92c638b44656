"""The dashboard's server without a browser: who is answered, what is served, what the command refuses."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hub
import many_runs
import pytest

from flows.dashboard.serving import app_of, is_local, serving
from flows.dashboard.watching import Watcher
from moeprune.errors import BadInput
from tasks.artifacts import Store
from tasks.tracking import Tracker


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Watcher:
    folder = tmp_path_factory.mktemp("few")
    many_runs.make(folder, 4)
    store = Store(folder)
    watcher = Watcher(Tracker(store), store, folder)
    watcher.read()
    return watcher


@pytest.mark.parametrize("host", ["127.0.0.1:8050", "localhost:8050", "[::1]:8050", "127.0.0.1"])
def test_server_on_this_machine_answers_what_is_addressed_to_it(few, host):
    answer = app_of(few, local=True).server.test_client().get("/", headers={"Host": host})
    assert answer.status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8050", "127.0.0.1.evil.example", "10.0.0.1:8050"])
def test_server_on_this_machine_refuses_other_names(few, host):
    client = app_of(few, local=True).server.test_client()
    assert client.get("/", headers={"Host": host}).status_code == 403
    assert client.post("/_dash-update-component", headers={"Host": host}, json={}).status_code == 403
    assert app_of(few, local=False).server.test_client().get("/", headers={"Host": host}).status_code == 200


def test_server_page_names_no_other_place_and_forbids_it(few):
    answer = app_of(few, local=True).server.test_client().get("/", headers={"Host": "localhost"})
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", answer.text)
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("run", ["unknown", "a run that is no audit"])
def test_server_report_of_what_is_no_audit_is_not_found(few, run):
    named = run if run == "unknown" else next(one.id for one in few.index.entries.values() if not one.audit)
    client = app_of(few, local=True).server.test_client()
    assert client.get(f"/audit-report/{named}", headers={"Host": "localhost"}).status_code == 404


def test_server_report_is_kept_apart_from_the_page_and_from_the_network_whatever_it_holds(few):
    planted = "<script>fetch('/_dash-layout')</script>"
    with few.tracker.run("planted", {}, {"kind": "audit"}) as run:
        run.log_text(planted, "report.html")
    few.read()
    client = app_of(few, local=True).server.test_client()
    answer = client.get(f"/audit-report/{run.id}", headers={"Host": "localhost"})
    assert (answer.status_code, answer.mimetype, answer.text) == (200, "text/html", planted)
    rules = {rule.split()[0]: rule.split()[1:] for rule in answer.headers["Content-Security-Policy"].split(";")}
    assert rules["sandbox"] == ["allow-scripts", "allow-downloads"]  # above all not allow-same-origin
    assert rules["default-src"] == ["'none'"] and rules["frame-ancestors"] == ["'self'"]
    assert "connect-src" not in rules


@pytest.mark.parametrize(("host", "local"), [
    ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True),
    ("0.0.0.0", False), ("10.0.0.1", False), ("localhost.example", False), ("", False),
])  # fmt: skip
def test_is_local_only_of_loopback(host, local):
    assert is_local(host) is local


def test_serving_listens_on_this_machine_only(few):
    with serving(few.store.root) as address:
        assert address.startswith("http://127.0.0.1:")
        port = int(address.rstrip("/").rsplit(":", 1)[1])
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
                     if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == port]  # fmt: skip
    assert listening == [f"0100007F:{port:04X}"]


def test_serving_port_that_is_taken_is_refused_in_one_line(few):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"--port {port}: cannot be listened on"), serving(few.store.root, port=port):
            pass


@pytest.mark.parametrize(("words", "said"), [
    (("--export", "page.txt"), "--export page.txt: a page is an HTML file"),
    (("--export", "page.html"), "the tracker has no run yet"),
    (("--export", "page.html", "--port", "0"), "--export FILE listens nowhere"),
    (("--run", "0123"), "--run is for --export FILE"),
    (("--store", "elsewhere"), "there is neither elsewhere/mlflow.db nor MLFLOW_TRACKING_URI"),
    (("--store", "elsewhere", "--export", "page.html"), "there is neither elsewhere/mlflow.db nor MLFLOW_TRACKING_URI"),
    (("--host", "no.such.host.invalid", "--port", "0"), "--host no.such.host.invalid --port 0: cannot be listened on"),
])  # fmt: skip
def test_dashboard_command_unusable_request_is_refused(project, moeprune, words, said):
    answer = moeprune("dashboard", *words)
    assert answer.status == 2 and said in answer.err and answer.err.count("\n") == 1
    assert not Path("page.html").exists() and not Path("elsewhere").exists()


@contextmanager
def started(folder: Path, *words: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """`moeprune dashboard` as a process of its own in a folder, killed if it has not ended with the block."""
    command = [sys.executable, "-m", "flows.command", "dashboard", *words]
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | environ
    kept = {"env": environment | {"PYTHONPATH": str(Path(__file__).parents[3])}, "cwd": folder, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kept) as process:
        try:
            yield process
        finally:
            process.kill()


def test_dashboard_ends_at_an_interrupt_without_an_error(few, tmp_path):
    with started(tmp_path, "--port", "0", "--store", str(few.store.root)) as process:
        assert "moeprune dashboard at http://127.0.0.1:" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (0, "")


def test_export_asks_no_hub(few, tmp_path):
    with hub.serve({}) as served:  # in this folder, demo/model is no folder but a name on the Hub
        words = ("--export", "page.html", "--store", str(few.store.root))
        with started(tmp_path, *words, HF_ENDPOINT=served.url) as process:
            _, said = process.communicate(timeout=300)
        assert (process.returncode, said, served.requests) == (0, "", [])
    assert "demo/model" in (tmp_path / "page.html").read_text()


def test_dashboard_begins_without_torch_and_prefect_which_take_two_seconds_to_import():
    heavy = (
        "import sys, flows.dashboard.serving; sys.exit(bool({'torch', 'transformers', 'prefect'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", heavy], check=False).returncode == 0
