"""Lines with error bands, for a page. See flows.pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from math import ceil

from flows.pages.figure import COLOURS, DASHES, MARKS, Drawn, axis


@dataclass(frozen=True)
class Line:
    """One line of a LinePlot, with the bounds of its error where it has one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class LinePlot:
    """Lines with bands for their errors, such as learning curves.

    `x_title` and `y_title` name the axes with their units; `levels` are heights to be marked, with their names. The
    horizontal axis is labelled where the lines have points, and logarithmic with `log_x`.
    """

    title: str
    lines: Sequence[Line]
    x_title: str
    y_title: str
    log_x: bool = False
    y_range: tuple[float, float] | None = None
    levels: Sequence[tuple[float, str]] = ()
    note: str = ""
    half: bool = False

    def html(self, name: str) -> str:
        """The plot as HTML, its elements' ids beginning with `name`."""
        return self.drawn().html(self, name)

    def drawn(self) -> Drawn:
        """The plot as data."""
        traces = []
        styles = zip(self.lines, cycle(COLOURS), cycle(MARKS), cycle(DASHES), strict=False)
        for line, colour, mark, dash in styles:
            if line.low is not None and line.high is not None:
                traces.append({
                    "type": "scatter", "mode": "lines", "x": [*line.x, *reversed(line.x)],
                    "y": [*line.high, *reversed(line.low)], "fill": "toself", "fillcolor": colour, "opacity": 0.18,
                    "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "legendgroup": line.name,
                })  # fmt: skip
            traces.append({
                "type": "scatter", "mode": "lines+markers", "name": escape(line.name), "legendgroup": line.name,
                "x": list(line.x), "y": list(line.y), "line": {"color": colour, "dash": dash, "width": 2},
                "marker": {"symbol": mark, "size": 7},
                "hovertemplate": f"{escape(line.name)}<br>%{{x}}: %{{y:.3f}}<extra></extra>",
            })  # fmt: skip
        every = sorted({x for line in self.lines for x in line.x})
        for height, text in self.levels:
            traces.append({
                "type": "scatter", "mode": "lines", "name": escape(text), "x": [every[0], every[-1]],
                "y": [height, height], "line": {"color": "#444", "width": 1.5, "dash": "dot"}, "hoverinfo": "skip",
            })  # fmt: skip
        ticks = every[:: ceil(len(every) / 9)]
        horizontal = axis(self.x_title, tickvals=ticks, ticktext=[f"{tick:,g}" for tick in ticks])
        if self.log_x:
            horizontal["type"] = "log"
        layout = {
            "height": 440,
            "xaxis": horizontal,
            "yaxis": axis(self.y_title, **({"range": list(self.y_range)} if self.y_range else {})),
        }
        return Drawn(traces, layout)
