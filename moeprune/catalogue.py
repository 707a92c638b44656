"""The table of all criteria and selection rules, read from their signatures, constants and docstrings.

`python -m moeprune.catalogue > docs/criteria.md` writes the page.
"""

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from moeprune import criteria, selection

NEEDS = {
    "experts": "weights",
    "router": "weights of the router",
    "weight": "weights",
    "shape": "nothing",
    "scores": "scores",
    "per_corpus": "scores of each corpus",
    "model": "rerouting: runs the model",
    "candidate": "what another rule keeps, if asked to",
}
"""What each parameter means to a user; `statistics` and `energy` are the groups of `observe.sums`."""

HEAD = """# Criteria and selection rules

Made from the docstrings by `python -m moeprune.catalogue > docs/criteria.md`: edit those.

A criterion is the word in `score.criterion`, a selection rule the one in `mask.selection`; options and their defaults
go to `score.options` and `mask.options`. Sums are groups of `observe.sums`, weights are read from the checkpoint
without running it, and "rerouting" runs the model. In formulas, e is an expert of layer l, t a token routed to it,
g the gate, f = f_e(x_t) the expert's output before the gate, n = ||f||_2 and N the number of those tokens.
"""

COLUMNS = ("word", "formula", "needs", "options", "what it is, and where it comes from", "good for")


@dataclass(frozen=True)
class Entry:
    """A criterion or rule: `formula` holds lines, `paper` what it is and where it comes from."""

    word: str
    kind: str
    formula: tuple[str, ...]
    options: dict[str, Any]
    needs: str
    paper: str
    good_for: str


def catalogue() -> list[Entry]:
    """Every criterion, then every selection rule, each kind in the order of words."""
    scores = [criteria.find(word) for word in criteria.words()]
    rules = [selection.find(word) for word in selection.words()]
    return [
        *(
            _entry("criterion", found, found.score, ("weight", "energy") if found.reads == "weight" else (found.reads,))
            for found in scores
        ),
        *(_entry("selection", found, found.select, found.reads) for found in rules),
    ]


def _entry(
    kind: str, found: criteria.Criterion | selection.Rule, function: Callable[..., Any], reads: tuple[str, ...]
) -> Entry:
    docstring = inspect.getdoc(function) or ""
    sums = "sums: " + " + ".join(dict.fromkeys(["core", *found.sums]))
    needs = [sums if name in ("statistics", "energy") else NEEDS.get(name, "") for name in reads]
    module = inspect.getdoc(import_module(found.module)) or ""
    return Entry(
        word=found.word,
        kind=kind,
        formula=_formula(docstring),
        options=found.defaults,
        needs=", ".join(filter(None, needs)),
        paper=" ".join(module.split("\n\n")[0].split()),
        good_for=_good_for(docstring),
    )


def _formula(docstring: str) -> tuple[str, ...]:
    blocks = (block.strip("\n").splitlines() for block in docstring.split("\n\n"))
    first = next((lines for lines in blocks if all(line.startswith("    ") for line in lines)), [])
    return tuple(re.split(r" {3,}", line.strip())[0].rstrip(",") for line in first)  # a legend may follow on the line


def _good_for(docstring: str) -> str:
    paragraphs = (" ".join(part.split()) for part in docstring.split("\n\n"))
    return next((part.removeprefix("Good for ") for part in paragraphs if part.startswith("Good for ")), "")


def markdown(entries: list[Entry]) -> str:
    """The page of the docs."""
    lines = [HEAD]
    for kind, title in (("criterion", "Criteria"), ("selection", "Selection rules")):
        lines += [f"## {title}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += [_row(entry) for entry in entries if entry.kind == kind] + [""]
    return "\n".join(lines)


def _row(entry: Entry) -> str:
    formula = "<br>".join(f"`{line}`" for line in entry.formula)
    options = ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in entry.options.items())
    cells = [f"`{entry.word}`", formula, entry.needs, options, _linked(entry.paper), _linked(entry.good_for)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _linked(text: str) -> str:
    return re.sub(r"(?:arXiv:)?(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", text)


if __name__ == "__main__":
    print(markdown(catalogue()), end="")
