"""Plots of results."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from statistics import mean

from flows.sweep.findings import Measure, Method, draws_of
from flows.sweep.words import removed

COLOURS = ("#0072B2", "#D55E00", "#999999", "black")  # Okabe and Ito's: told apart by colour-blind readers


def sweep(methods: Sequence[Method], measures: Sequence[Measure], path: Path) -> None:
    """Damage by method: one panel a measure, one row a method, one colour a budget, 95% intervals.

    A band spans the random draws of each budget: what lies inside it cannot be told from chance.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    names = _by_damage(methods, measures)
    tall = 0.34 * len(names) + 1.6
    wide = 2.6 * len(measures) + 1.6
    figure, panels = plt.subplots(1, len(measures), figsize=(wide, tall), sharey=True, squeeze=False)
    groups = dict.fromkeys((method.base, method.budget) for method in methods)
    styles = dict(zip(groups, zip(cycle(COLOURS), cycle("os^Dv"), strict=False), strict=False))
    for panel, measure in zip(panels[0], measures, strict=True):
        for number, (group, (colour, marker)) in enumerate(styles.items()):
            own = [method for method in methods if (method.base, method.budget) == group]
            if draws := draws_of(own, own[0], measure):
                panel.axvspan(min(draws), max(draws), color=colour, alpha=0.15, linewidth=0)
            for method in own:
                height = names.index(method.name) + 0.16 * (number - (len(groups) - 1) / 2)
                for one in method.each(measure):
                    half = 0 if one.high is None else one.high - one.value
                    panel.errorbar(one.value, height, xerr=half, color=colour, marker=marker, markersize=4, linewidth=1)
        panel.axvline(0, color="black", linewidth=0.6)
        panel.set_title(f"Δ {measure.what}\n{measure.of}", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.locator_params(axis="x", nbins=5)
        panel.grid(axis="y", linewidth=0.3)
    panels[0][0].set_yticks(range(len(names)), names)
    panels[0][0].invert_yaxis()
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=4, linewidth=1) for colour, marker in styles.values()
    ]
    labels = [f"{base} {removed(budget)}".strip() for base, budget in groups]
    figure.legend(
        handles, labels, loc="lower center", ncols=len(groups), fontsize=8, frameon=False,
        title="paired against the unpruned model, 95% intervals; bands: range of the random draws", title_fontsize=8,
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.55 / tall, 1, 1))  # room for the legend
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _by_damage(methods: Sequence[Method], measures: Sequence[Measure]) -> list[str]:
    """Names from least to most mean damage by what is measured first, perplexity or accuracy; chance last."""
    damage: dict[str, list[float]] = {}
    for method in methods:
        found = [one for measure in measures if measure.what == measures[0].what for one in method.each(measure)]
        damage.setdefault(method.name, []).extend(-measures[0].sign * one.value for one in found)
    chance = {method.name for method in methods if method.random}
    return sorted(damage, key=lambda name: (name in chance, mean(damage[name]) if damage[name] else float("inf"), name))
