"""What the page asks and is answered: from the index in memory, but for manifests, masks and reports."""

from dash import Dash

from flows.dashboard import searching, showing, viewing
from flows.dashboard.living import Living


def register(app: Dash, living: Living) -> None:
    """Have the app answer from what is kept up to date."""
    searching.register(app, living)
    showing.register(app, living)
    viewing.register(app, living)
