"""Pages for results: one HTML file that needs nothing else, read on a screen or printed on A4.

    Page("Audit of demo", "At 25% removed ...", [
        Section("Stability", [
            Paragraph("A kept expert is ..."),
            HeatMap("Kept, reap at 25%", layers=[0, 1], values=[[1.0, 0.4], [0.2, 0.9]]),
        ]),
    ], note="Made by `moeprune audit params/audit.yaml`.").write(Path("audit.html"))

Parts take plain data, no arrays: lists of numbers and strings, None where there is no value (never NaN). Every part has
a `title` and a `note`, which stands with it; axes are named with their units by whoever makes the part. `half=True`
puts a plot beside its neighbour where the window is wide.

| part | shows |
|---|---|
| `Paragraph(text)` | prose; what stands between backticks is set as code |
| `HeatMap(title, layers, values, unit)` | layers x experts, such as the probability of being kept |
| `LinePlot(title, lines, x_title, y_title)` | `Line`s with error bands, such as learning curves |
| `Matrix(title, rows, columns, values, unit)` | overlaps and agreements, each value written into its cell |
| `Intervals(title, values, groups, x_title, bands)` | `Interval`s, a row a name, over bands: the draws' range |
| `Pareto(title, points, x_title, y_title, higher_is_better)` | `Point`s with error bars and their front |
| `Table(title, columns, rows, file)` | `Column`s of strings, numbers and `Measured`s; sortable, saved as CSV |

Anything else that has a method `html(name) -> str` is a part, too. Equal input gives equal bytes. The file holds
plotly.js (4.8 MB) once if there is a plot, and tells the browser to fetch nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Protocol

from flows.pages.lines import Line, LinePlot
from flows.pages.maps import HeatMap, Matrix
from flows.pages.points import Interval, Intervals, Pareto, Point
from flows.pages.table import Column, Measured, Table
from moeprune.errors import BadInput
from tasks.artifacts import replace_text

__all__ = [
    "Column", "HeatMap", "Interval", "Intervals", "Line", "LinePlot", "Matrix", "Measured", "Page", "Paragraph",
    "Pareto", "Part", "Point", "Section", "Table",
]  # fmt: skip

HERE = Path(__file__).parent
NOTHING_FETCHED = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


class Part(Protocol):
    """What a section is made of."""

    def html(self, name: str) -> str:
        """HTML whose elements' ids, if any, begin with `name`, which no other part of the page is given."""
        ...


@dataclass(frozen=True)
class Paragraph:
    """Prose; what stands between backticks is set as code."""

    text: str

    def html(self, name: str) -> str:
        """The paragraph as HTML."""
        return f"<p>{_prose(self.text)}</p>"


@dataclass(frozen=True)
class Section:
    """Parts under a heading."""

    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """A page: its title, what was found in words, sections, and a note below the words: how it was made.

    The summary's lines are paragraphs; what stands between backticks is set as code.
    """

    title: str
    summary: str
    sections: Sequence[Section]
    note: str = ""

    def write(self, path: Path) -> None:
        """Write the page as one file, making its folder. Who reads it sees the old or the new page, never a part."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, self.html())

    def html(self) -> str:
        """The whole file."""
        links = "".join(
            f'<li><a href="#section-{number}">{escape(section.title)}</a></li>'
            for number, section in enumerate(self.sections)
        )
        body = "\n".join(_section(section, number) for number, section in enumerate(self.sections))
        summary = "".join(f"<p>{_prose(text)}</p>" for text in self.summary.splitlines())
        drawing = f"<script>{_plotly()}</script>\n" if 'class="plot"' in body else ""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_FETCHED}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{_asset('page.css')}</style>\n{drawing}</head>\n<body>\n"
            f"<header><h1>{escape(self.title)}</h1>\n"
            f'<div class="summary">{summary}</div>\n'
            f'<p class="note">{_prose(self.note)}</p></header>\n'
            f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main>\n{body}\n</main>\n'
            f"<script>\n{_asset('page.js')}</script>\n</body>\n</html>\n"
        )


def check_path(path: Path) -> None:
    """Refuse a report's path before the long work."""
    if path.suffix != ".html":
        raise BadInput(f"--report {path}: a report is an HTML file: give a name that ends in .html")


def _section(section: Section, number: int) -> str:
    parts = "\n".join(part.html(f"part-{number}-{place}") for place, part in enumerate(section.parts))
    title = f"<h2>{escape(section.title)}</h2>"
    return f'<section id="section-{number}">{title}\n<div class="parts">\n{parts}\n</div></section>'


def _prose(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
