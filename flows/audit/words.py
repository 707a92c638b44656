"""What an audit found, in a paragraph made from its numbers."""

from collections.abc import Iterator, Sequence
from itertools import combinations

from flows.audit.consequence import Consequence, between_criteria, between_resamples, mean_perplexity
from flows.audit.findings import Findings, Row, alike, inverted, runs_of
from flows.sweep.grid import percent
from moeprune.comparing import RankTest

CLEAR = 0.05
"""The p-value below which a correlation is called one."""
LEGEND = (
    "A mask says which experts of each layer are kept. Two masks agree above chance by 1 if they are the same, by 0 on "
    "average if they are drawn at random. Criteria are named by the words of recipes; 25% removed means that share of "
    "each layer's experts. Log perplexity is in nats per token: 0.01 more is 1% more perplexity."
)
BRACKET = (
    "How well would masks from two other texts agree, each as large as this one? Two numbers enclose the answer, its "
    "bracket: masks of separate halves of the data are too pessimistic, as each has half the text, and bootstrap "
    "resamples of all of it are too optimistic, as they share text. Even where experts differ by chance alone "
    "resamples reach about 1/3 at half the experts."
)


def in_words(findings: Findings, consequences: Sequence[Consequence] = ()) -> str:
    """One paragraph: stability, budgets, corpora, further observations, and what measured masks came to."""
    return " ".join([
        *findings.content["warnings"],
        *_stability(findings),
        *_corpora(findings),
        *_again(findings),
        *_consequences(consequences),
        *_relations(consequences),
    ])  # fmt: skip


def bracket(row: Row) -> str:
    """Such as `0.71 to 0.93`: of halves, and of resamples."""
    ends = f"{row['halves']:.2f} to {row['index']:.2f}"
    return f"{ends} (inverted)" if inverted(row) else ends


def _named(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 2 else quoted)


def _stability(findings: Findings) -> Iterator[str]:
    for ratio in findings.ratios:
        rows = findings.by_stability(ratio)
        first, last = rows[0], rows[-1]
        text = f"At {percent(ratio)} removed masks of `{first['criterion']}` "
        if len(rows) == 1:
            text += f"agree {bracket(first)} above chance whichever text of this kind is drawn"
        elif alike(first, last):
            text += f"agree {bracket(first)} above chance whichever text is drawn, those of `{last['criterion']}` "
            fault = "are inverted" if inverted(first) or inverted(last) else "overlap"
            text += f"{bracket(last)}: as brackets {fault}, neither is known to be more stable"
        else:
            text += f"depend least on which text was drawn (agreement above chance {bracket(first)}), "
            text += f"those of `{last['criterion']}` most ({bracket(last)})"
            if near := [row["criterion"] for row in rows[1:] if alike(first, row)]:
                text += f"; the bracket of the former does not tell it from {_named(near)}"
        yield text + f"; {first['edge']} of {_cells(findings)} experts are on the edge with `{first['criterion']}`."
        yield _budget(findings, rows)


def _cells(findings: Findings) -> int:
    return len(findings.layers) * int(findings.content["experts"])


def _budget(findings: Findings, rows: Sequence[Row]) -> str:
    """The least tokens for which masks of separate texts agree as asked for."""
    target = findings.content["params"]["stability"]
    reached = sorted((row["budget_disjoint"], row["criterion"]) for row in rows if row["budget_disjoint"] is not None)
    most = findings.tokens(findings.whole) // 2
    asked = f"an agreement of {target:g} between masks of separate texts"
    if not reached:
        return f"No criterion reaches {asked} with up to {most:,} tokens each, which is half of those at hand."
    told = ", ".join(f"`{criterion}` with {tokens:,} tokens" for tokens, criterion in reached)
    missing = len(rows) - len(reached)
    rest = f"; {missing} of {len(rows)} criteria do not with up to {most:,}" if missing else ""
    return f"{asked[0].upper()}{asked[1:]} is reached by {told}{rest}."


def _corpora(findings: Findings) -> Iterator[str]:
    names = findings.corpora
    if len(names) < 2:
        return
    criterion = findings.criteria[0]
    found = [
        (shares, ratio, pair)
        for ratio in findings.ratios
        for pair in combinations(range(len(names)), 2)
        for shares in [_changed(findings, criterion, ratio, pair)]
    ]
    shares, ratio, (one, other) = max(found, key=lambda entry: sum(entry[0]))
    mean = sum(shares) / len(shares)
    most = [place for place, share in enumerate(shares) if share >= mean]
    layers = [findings.layers[place] for place in most]
    where = "every layer" if len(layers) == len(shares) else f"layer{'s' * (len(layers) > 1)} {runs_of(layers)}"
    chosen = "" if len(layers) == len(shares) else f", where more do than the mean of {percent(round(mean, 2))},"
    yield (
        f"Of all pairs of corpora and ratios `{names[one]}` and `{names[other]}` differ most at {percent(ratio)} "
        f"removed: with {findings.tokens(names[one]):,} tokens of `{names[one]}` alone, "
        f"{percent(round(sum(shares[place] for place in most) / len(most), 2))} of the experts that `{criterion}` "
        f"keeps change in {where}{chosen} if the text is `{names[other]}` instead."
    )
    ratio = findings.ratios[-1]
    rows = sorted(findings.rows("corpora", ratio=ratio), key=lambda row: float(row["corrected"]))
    told = []
    for row in dict.fromkeys((0, len(rows) - 1)):
        low, high = findings.within(rows[row]["criterion"], ratio)
        beside = f"other text of the same corpus: {low:.2f} to {high:.2f}"
        told.append(f"{rows[row]['corrected']:.2f} with `{rows[row]['criterion']}` ({beside})")
    yield f"Between corpora masks at {percent(ratio)} removed agree above chance by {' to '.join(told)}."
    rows = findings.rows("left_out", criterion=criterion, ratio=ratio)
    largest = max(row["changed"] for row in rows)
    left = [row["corpus"] for row in rows if row["changed"] == largest]
    than = ", more than leaving out any other" if len(left) < len(rows) else ""
    yield (
        f"Leaving {' or '.join(f'`{corpus}`' for corpus in left)} out of the mixture changes "
        f"{percent(round(largest, 3))} of what `{criterion}` keeps at {percent(ratio)} removed{than}."
    )


def _changed(findings: Findings, criterion: str, ratio: float, pair: tuple[int, int]) -> list[float]:
    """In each layer the share of experts one corpus keeps and the other does not."""
    masks = findings.arrays[f"corpora/{criterion}/{ratio}/kept"]
    one, other = masks[pair[0]], masks[pair[1]]
    return list(((one & ~other).sum(-1) / one.sum(-1)).tolist())


def _again(findings: Findings) -> Iterator[str]:
    ratio, scope = findings.ratios[-1], findings.whole
    for kind, what in (("seeds", "other seeds"), ("sequence_lengths", "other sequence lengths")):
        for row in findings.rows(kind, scope=scope, criterion=findings.criteria[0], ratio=ratio):
            own = findings.row("masks", scope=scope, criterion=row["criterion"], ratio=ratio)
            common = percent(round(findings.in_common(scope), 2)) if kind == "seeds" else "100%"
            yield (
                f"Observed again with {what}, which have {common} of their text in common, masks of "
                f"`{row['criterion']}` at {percent(ratio)} removed agree {row['corrected']:.2f} above chance; the "
                f"bracket, of texts that have nothing in common, was {bracket(own)}."
            )


def _consequences(consequences: Sequence[Consequence]) -> Iterator[str]:
    """What measured masks cost and how far they spread: a sentence or two for each ratio."""
    for ratio in dict.fromkeys(one.ratio for one in consequences):
        found = [one for one in consequences if one.ratio == ratio and one.spread is not None]
        if not found:
            continue
        numbers = sorted(sum(mask.resampled for mask in one.masks) for one in found)
        drawn = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
        spreads = _between([(one.spread, one.criterion) for one in found], ".3f")
        text = (
            f"Measured at {percent(ratio)} removed, the masks of {drawn} resamples of a criterion differ in log "
            f"perplexity by a standard deviation of {spreads} nats per token on a corpus"
        )
        accuracies = [(100 * one.accuracy_spread, one.criterion) for one in found if one.accuracy_spread is not None]
        if accuracies:
            text += f" and in accuracy by {_between(accuracies, '.1f')} points"
        yield f"{text}, where removing experts costs {_between([(one.cost, one.criterion) for one in found], '.3f')}."
        alone = [
            (mean_perplexity(mask.damage), f"{one.criterion}, {mask.label}")
            for one in found
            for mask in one.masks[1:]
            if not mask.resampled
        ]
        if alone:
            yield f"Masks of single corpora cost {_between(alone, '.3f')}."


def _between(values: Sequence[tuple[float | None, str]], digits: str) -> str:
    """The least and the largest with what they are of, such as ``0.012 (`reap`) to 0.034 (`man`)``."""
    known = sorted((value, of) for value, of in values if value is not None)
    return " to ".join(f"{value:{digits}} (`{of}`)" for value, of in dict.fromkeys((known[0], known[-1])))


def _relations(consequences: Sequence[Consequence]) -> Iterator[str]:
    """Whether masks that are less stable in the audit differ more in perplexity when measured."""
    if (found := between_resamples(consequences)) is not None:
        what = "resamples whose masks agree less with that of all the data change perplexity {}"
        of = f"{found.pairs} different masks, criterion by criterion and ratio by ratio"
        yield _related(found, what, of)
    if (found := between_criteria(consequences)) is not None:
        what = "criteria whose masks are less stable in the audit spread {} in perplexity"
        yield _related(found, what, f"{found.pairs} criteria and ratios, ratio by ratio") + (
            " Criteria are scored from the same data, so that they are not independent and p is too small."
        )


def _related(found: RankTest, what: str, of: str) -> str:
    numbers = f"rank correlation {found.rho:+.2f} over {of}, p = {found.p:.2g}"
    if found.p < CLEAR:
        text = what.format("more" if found.rho > 0 else "less")
        return f"{text[0].upper()}{text[1:]} ({numbers})."
    return f"That {what.format('more')} is not seen ({numbers})."
