"""What an audit found, in a paragraph made from its numbers."""

from collections.abc import Iterator, Sequence
from itertools import combinations

from flows.audit_consequence import Consequence, across, mean_perplexity
from flows.audit_findings import Findings, Row, percent, runs_of

CLEAR = 0.05
"""The p-value below which a correlation is called one."""
BRACKET = (
    "A bracket of agreement above chance runs from masks of separate halves of the data, which are too pessimistic as "
    "each has half the text, to bootstrap resamples of all of it, which are too optimistic as they share text: masks "
    "from as much other text lie between. 1 is the same mask, 0 what random masks have. Even where experts differ by "
    "chance alone resamples reach about 1/3 at half the experts."
)


def in_words(findings: Findings, consequences: Sequence[Consequence] = ()) -> str:
    """One paragraph: stability, budgets, corpora, further observations, and what measured masks came to."""
    return " ".join([
        *findings.content["warnings"],
        *_stability(findings),
        *_corpora(findings),
        *_again(findings),
        *(sentence for one in consequences for sentence in _consequence(one)),
        *_across(consequences),
    ])  # fmt: skip


def bracket(row: Row) -> str:
    """Such as `0.71 to 0.93`."""
    return f"{row['halves']:.2f} to {row['index']:.2f}"


def _named(names: Sequence[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 2 else quoted)


def _stability(findings: Findings) -> Iterator[str]:
    for ratio in findings.ratios:
        rows = findings.by_stability(ratio)
        first, last = rows[0], rows[-1]
        text = f"At {percent(ratio)} removed masks of `{first['criterion']}` "
        if len(rows) > 1:
            text += f"depend least on which text was drawn (agreement above chance {bracket(first)}), "
            text += f"those of `{last['criterion']}` most ({bracket(last)})"
        else:
            text += f"agree {bracket(first)} above chance whichever text of this kind is drawn"
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
    yield (
        f"With {findings.tokens(names[one]):,} tokens of `{names[one]}` alone, "
        f"{percent(round(sum(shares[place] for place in most) / len(most), 2))} of the experts that `{criterion}` "
        f"keeps at {percent(ratio)} removed change in {where} if the text is `{names[other]}` instead."
    )
    ratio = findings.ratios[-1]
    rows = sorted(findings.rows("corpora", ratio=ratio), key=lambda row: -row["corrected"])
    low, high = findings.within(rows[0]["criterion"], ratio)
    text = f"Between corpora masks at {percent(ratio)} removed agree {rows[0]['corrected']:.2f} above chance with "
    text += f"`{rows[0]['criterion']}` (of the same corpus {low:.2f} to {high:.2f})"
    if len(rows) > 1:
        text += f", the most of all criteria, and {rows[-1]['corrected']:.2f} with `{rows[-1]['criterion']}`, the least"
    yield text + "."
    left = max(findings.rows("left_out", criterion=criterion, ratio=ratio), key=lambda row: row["changed"])
    yield (
        f"Leaving `{left['corpus']}` out of the mixture changes {percent(round(left['changed'], 3))} of what "
        f"`{criterion}` keeps at {percent(ratio)} removed, more than leaving out any other."
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


def _consequence(found: Consequence) -> Iterator[str]:
    if found.cost is None or found.spread is None:
        return
    drawn = sum(mask.resampled for mask in found.masks)
    text = (
        f"Measured, the masks of {drawn} resamples of `{found.criterion}` at {percent(found.ratio)} removed differ in "
        f"log perplexity by a standard deviation of {found.spread:.3f} nats per token on a corpus"
    )
    if found.accuracy_spread is not None:
        text += f" and in accuracy by {100 * found.accuracy_spread:.1f} points"
    yield f"{text}, where removing experts costs {found.cost:.3f} nats."
    costs = [mean_perplexity(mask.damage) for mask in found.masks[1:] if not mask.resampled]
    known = [cost for cost in costs if cost is not None]
    if known:
        yield f"Masks of single corpora cost {min(known):.3f} to {max(known):.3f}."
    if found.correlation is None or found.p is None:
        return
    numbers = f"Spearman {found.correlation:+.2f} over {found.different} different masks, p = {found.p:.2g}"
    if found.p < CLEAR:
        more = "more" if found.correlation > 0 else "less"
        yield f"Masks that agree less with that of all the data differ {more} in perplexity ({numbers})."
    else:
        yield f"That masks that agree less with that of all the data differ more is not seen ({numbers})."


def _across(consequences: Sequence[Consequence]) -> Iterator[str]:
    """Whether what the audit calls less stable spreads more."""
    if (found := across(consequences)) is None:
        return
    rho, p = found
    numbers = f"Spearman {rho:+.2f} over {len(consequences)} criteria and ratios, p = {p:.2g}"
    if p < CLEAR:
        yield f"What is less stable in the audit spreads {'more' if rho > 0 else 'less'} in perplexity ({numbers})."
    else:
        yield f"That what is less stable in the audit spreads more in perplexity is not seen ({numbers})."
