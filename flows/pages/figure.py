"""What the plots of a page have in common. See flows.pages."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import Any, Protocol

# Okabe and Ito's colours but yellow, which is faint on white: told apart by colour-blind readers. Marks and dashes
# differ too, for readers of a page printed in black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
MARKS = ("circle", "square", "diamond", "triangle-up", "x", "triangle-down", "cross", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SCALE = "Viridis"  # even steps of lightness, which survive a printer and colour-blindness
TALLEST = 900
"""Pixels a plot may be high to be printed on one page."""

Values = Sequence[float | None]


FONT = "Helvetica Neue, Arial, Liberation Sans, DejaVu Sans, sans-serif"


class Titled(Protocol):
    """What every plot has: its title, a note below it, and whether it stands beside its neighbour."""

    @property
    def title(self) -> str:
        """Above the plot."""
        ...

    @property
    def note(self) -> str:
        """Below the plot."""
        ...

    @property
    def half(self) -> bool:
        """Whether half the page's width is enough."""
        ...


@dataclass(frozen=True)
class Drawn:
    """A plot as plotly takes it, and a numbered list to stand below it under its head."""

    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    head: str = ""
    below: Sequence[str] = ()

    def figure(self) -> dict[str, Any]:
        """Plotly's data and layout. Raises ValueError for a key plotly does not know."""
        from plotly.graph_objects import Figure

        common = {
            "template": "none",
            "margin": {"l": 60, "r": 24, "t": 24, "b": 56},
            "font": {"family": FONT, "color": "#1a1a1a"},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom"},
        }
        drawn = Figure(data=self.traces, layout=common | self.layout).to_plotly_json()
        return {"data": drawn["data"], "layout": drawn["layout"]}

    def html(self, plot: Titled, name: str) -> str:
        """The plot under its title, drawn by page.js. Raises ValueError for a value that is no number."""
        text = json.dumps(self.figure(), ensure_ascii=False, allow_nan=False)
        text = text.replace("<", "\\u003c")  # no label ends the script
        note = f"<figcaption>{escape(plot.note)}</figcaption>" if plot.note else ""
        items = "".join(f"<li>{escape(one)}</li>" for one in self.below)
        below = f'<p class="note">{escape(self.head)}</p><ol>{items}</ol>' if self.head else ""
        return (
            f"<figure{' class=half' if plot.half else ''}><h3>{escape(plot.title)}</h3>\n"
            f'<div id="{name}" class="plot" role="img" aria-label="{escape(plot.title)}" '
            f'style="height: {self.layout["height"]}px"></div>\n'
            f'<script type="application/json" id="{name}-data">{text}</script>\n{note}{below}</figure>'
        )


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with its title and a light grid."""
    return {
        "title": {"text": escape(title), "standoff": 10},
        "automargin": True,
        "showline": True,
        "linecolor": "#444",
        "ticks": "outside",
        "tickcolor": "#444",
        "gridcolor": "#e6e6e6",
        "zerolinecolor": "#444",
        **more,
    }


def colour_scale(unit: str, low: float, high: float) -> dict[str, Any]:
    """Colours from dark at `low` to light at `high`, and the bar that explains them."""
    bar = {"title": {"text": escape(unit), "side": "right"}, "thickness": 14, "outlinewidth": 0}
    return {"colorscale": SCALE, "zmin": low, "zmax": high, "colorbar": bar}


def error_bars(values: Iterable[tuple[float, float | None, float | None]], colour: str) -> dict[str, Any]:
    """Bars from (value, low, high); none where the ends are not known."""
    ends = [(value, value if low is None else low, value if high is None else high) for value, low, high in values]
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, _, high in ends],
        "arrayminus": [value - low for value, low, _ in ends],
        "color": colour,
        "thickness": 1.2,
        "width": 0,
    }


def between(low: float | None, high: float | None) -> str:
    """An interval's ends, in words."""
    return "" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]"


def label_of(text: str) -> str:
    """A name in lines of at most 38 letters."""
    return "<br>".join(map(escape, wrap(text, 38)))


def lines_of(labels: Iterable[str]) -> int:
    """The lines of the label that has most."""
    return max(label.count("<br>") + 1 for label in labels)


def short(value: float | None) -> float | None:
    """A value of a map, to the four digits that a colour or a cell can show."""
    return None if value is None else float(f"{value:.4g}")
