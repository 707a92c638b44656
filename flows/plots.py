"""Plots of results."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

RANDOM = "uniform_random"
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # Okabe and Ito's colours: told apart by colour-blind readers


def sweep(measured: Iterable[tuple[str, str, dict[str, dict[str, Any]]]], path: Path) -> None:
    """Damage by criterion: one panel a metric, one row a criterion, one colour a budget, 95% intervals.

    `measured` holds (budget, criterion, paired differences against the base) of each run. A band spans the random
    draws of each budget: what lies inside it cannot be told from chance.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = list(measured)
    metrics = [name for name in rows[0][2] if name.startswith("log_perplexity/") or name.endswith("/acc")]
    budgets = sorted({budget for budget, _, _ in rows})
    criteria = _by_damage(rows, metrics)
    tall = 0.34 * len(criteria) + 1.6
    figure, panels = plt.subplots(1, len(metrics), figsize=(2.6 * len(metrics) + 1.6, tall), sharey=True, squeeze=False)
    for panel, metric in zip(panels[0], metrics, strict=True):
        for number, (budget, colour, marker) in enumerate(
            zip(budgets, (BLUE, ORANGE, GREY, "black"), "os^D", strict=False)
        ):
            own = [row for row in rows if row[0] == budget]
            draws = [found[metric]["value"] for _, criterion, found in own if criterion == RANDOM]
            if draws:
                panel.axvspan(min(draws), max(draws), color=colour, alpha=0.15, linewidth=0)
            for _, criterion, found in own:
                height = criteria.index(criterion) + 0.16 * (number - (len(budgets) - 1) / 2)
                panel.errorbar(
                    found[metric]["value"], height, xerr=1.96 * (found[metric]["stderr"] or 0), color=colour,
                    marker=marker, markersize=4, linewidth=1, label=f"{budget} removed",
                )  # fmt: skip
        panel.axvline(0, color="black", linewidth=0.6)
        panel.set_title(
            metric.replace("log_perplexity/", "Δ log perplexity\n").replace("/acc", "\nΔ accuracy"), fontsize=9
        )
        panel.tick_params(labelsize=8)
        panel.locator_params(axis="x", nbins=5)
        panel.grid(axis="y", linewidth=0.3)
    panels[0][0].set_yticks(range(len(criteria)), criteria)
    panels[0][0].invert_yaxis()
    handles, labels = panels[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="lower center", ncols=len(unique), fontsize=8, frameon=False,
        title="paired against the unpruned model, 95% intervals; bands: range of the random draws", title_fontsize=8,
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.55 / tall, 1, 1))  # room for the legend
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _by_damage(rows: list[tuple[str, str, dict[str, dict[str, Any]]]], metrics: list[str]) -> list[str]:
    """Criteria from least to most mean damage to perplexity; chance last."""
    damage: dict[str, list[float]] = {}
    for _, criterion, found in rows:
        damage.setdefault(criterion, []).extend(found[name]["value"] for name in metrics if name.startswith("log_"))
    return sorted(damage, key=lambda criterion: (criterion == RANDOM, sum(damage[criterion]) / len(damage[criterion])))
