"""What the page asks and is answered: from the index in memory, but for manifests, masks and reports."""

from dash import Dash

from flows.dashboard.answers import graph, runs, views
from flows.dashboard.watching import Watcher


def register(app: Dash, watcher: Watcher) -> None:
    """Have the app answer from what is kept up to date."""
    for one in (runs, graph, views):
        one.register(app, watcher)
