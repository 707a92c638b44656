"""The dashboard's server: files of its own only, this machine only unless told otherwise."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from threading import Event, Thread
from typing import Any

from dash import Dash
from flask import Flask, Response, abort, request
from werkzeug.serving import BaseWSGIServer, make_server

from flows.dashboard.answers import register
from flows.dashboard.audits import report
from flows.dashboard.page import layout
from flows.dashboard.watching import Watcher, watcher_of
from flows.pages import NOTHING_FETCHED
from moeprune.errors import BadInput

NOTHING_ELSEWHERE = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; frame-ancestors 'self'"
)
"""What the browser may load: Dash's page has scripts and styles within itself, all else comes from this server."""
REPORTS = "/audit-report/"
APART = f"sandbox allow-scripts allow-downloads; {NOTHING_FETCHED}; frame-ancestors 'self'"
"""For reports: whoever writes to the tracker can plant one, so its scripts are given no origin and no network."""


def app_of(watcher: Watcher, local: bool) -> Dash:
    """The app. With `local` it answers only what is addressed to this machine: no other site can have it asked."""
    app = Dash(
        __name__,
        assets_folder=str(Path(__file__).parent / "assets"),
        title="moeprune",
        update_title="",
        suppress_callback_exceptions=True,
        serve_locally=True,
    )
    app.layout = layout()
    register(app, watcher)
    server: Flask = app.server

    @server.before_request
    def answer_first() -> None:
        watcher.give_way()

    @server.before_request
    def refuse_others() -> None:
        if local and not is_local(request.host.rsplit(":", 1)[0].strip("[]")):
            abort(403)

    @server.after_request
    def restrict(answer: Response) -> Response:
        watcher.give_way()  # the next one follows soon
        rules = APART if request.path.startswith(REPORTS) else NOTHING_ELSEWHERE
        answer.headers["Content-Security-Policy"] = rules
        answer.headers["X-Content-Type-Options"] = "nosniff"
        return answer

    @server.route(f"{REPORTS}<run>")
    def audit_report(run: str) -> Any:
        entry = watcher.index.entries.get(run)
        if entry is None or not entry.audit:
            abort(404)
        try:
            return Response(report(entry, watcher.tracker), mimetype="text/html")
        except BadInput as error:
            return Response(str(error), 404, mimetype="text/plain")

    return app


def is_local(host: str) -> bool:
    """Whether a host's name or address is that of this machine, seen from itself."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(watcher: Watcher, host: str, port: int) -> BaseWSGIServer:
    """A server that answers on `host`; port 0 is any free one. Raises BadInput if it cannot be had."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    try:
        # By itself the server would print why it cannot have the address, and exit.
        taken = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise BadInput(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror}): choose another port or address"
        ) from error
    with taken:
        return make_server(host, port, app_of(watcher, is_local(host)).server, threaded=True, fd=taken.fileno())


@contextmanager
def serving(store: Path, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve in the background; gives the address. BadInput as `watcher_of` and `listen`."""
    watcher = watcher_of(store)
    server = listen(watcher, host, port)
    watcher.start()
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.socket.getsockname()[1]}/"
    finally:
        server.shutdown()
        watcher.stop()


def serve(store: Path, host: str, port: int) -> None:
    """Serve until interrupted. BadInput as `serving`."""
    with serving(store, host, port) as address, suppress(KeyboardInterrupt):
        print(f"moeprune dashboard at {address} (Ctrl-C ends it)", flush=True)
        if not is_local(host):
            print("Anyone who can reach this address sees it all: there is no log-in.", flush=True)
        Event().wait()
