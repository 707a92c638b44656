"""What an audit says: sentences against the numbers they are made of, and the page in a real browser."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import Browser, browser
from synthetic import experts, normal, statistics_of

from flows.audit.consequence import Consequence, MeasuredMask, between_criteria, between_resamples
from flows.audit.damage import damage
from flows.audit.experts import MOST, claims_table, edge_rows
from flows.audit.findings import Findings, runs_of
from flows.audit.report import page_of
from flows.audit.words import in_words
from flows.pages import LinePlot
from moeprune.auditing import ALL, Design, audit, warnings
from moeprune.criteria import frequency, reap
from moeprune.routing import Routing

LAYERS, EXPERTS = 4, 8


def domain(seed: int, shared: torch.Tensor, own: float, chunks: int):
    """A corpus whose scores are `shared` and, in layers 1 and 2, `own` of its own; the counts are noise."""
    count = (normal(chunks, LAYERS, EXPERTS, seed=seed) * 0.5 + 3).exp()
    truth = shared.clone()
    truth[1:3] += own * normal(2, EXPERTS, seed=seed + 100)
    return statistics_of(count * (10 + truth), count)


def found_in(names: tuple[str, ...], chunks: int = 32, again: bool = False) -> Findings:
    """An audit of corpora that differ in layers 1 and 2."""
    shared = normal(LAYERS, EXPERTS, seed=1)
    data = {name: domain(seed, shared, 3.0, chunks) for seed, name in enumerate(names)}
    more = {"seeds": {0: data, 5: {name: domain(seed + 50, shared, 3.0, chunks) for seed, name in enumerate(names)}}}
    design = Design(
        {"reap": reap.score, "frequency": frequency.score},
        {0.25: 6, 0.5: 4},
        Routing(EXPERTS, 2),
        fixed={"aimer": normal(LAYERS, EXPERTS)},
        resamples=100,
        fractions=(0.25, 0.5, 0.75),
        repeats=4,
    )
    made = audit(data, design, more if again else None)
    content = {
        "layers": list(range(LAYERS)),
        "experts": EXPERTS,
        "data": {name: {"chunks": chunks, "tokens": 100 * chunks} for name in names},
        "params": {"stability": 0.9, "resamples": 100, "level": 0.9, "combine": "pooled"},
        "warnings": warnings(data),
        "in_common": dict.fromkeys(names, 0.25),
        "rows": made.rows,
    }
    return Findings(content, made.arrays)


@pytest.fixture(scope="module")
def findings() -> Findings:
    return found_in(("wiki", "code", "law"), again=True)


def metrics(value: float, stderr: float | None = 0.01) -> dict[str, dict[str, Any]]:
    found = {"log_perplexity/wiki": value, "log_perplexity/code": 2 * value, "choice/acc": -value}
    return {name: {"value": one, "stderr": stderr, "n": 9} for name, one in found.items()}


def measured(changes: tuple[float, ...] = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06), **more: Any) -> Consequence:
    """Measured masks: resamples that agree ever less with that of all the data and change so much, and of a corpus."""
    labels = ["all data", *(f"resample {number}" for number in range(len(changes))), "wiki"]
    masks = [
        MeasuredMask(label, 1 - 0.1 * number, False, metrics(0.3 + change), metrics(change))
        for number, (label, change) in enumerate(zip(labels, (0.0, *changes, 0.09), strict=True))
    ]
    given = {"criterion": "reap", "ratio": 0.5, "index": 0.9, "halves": 0.8, "spread": 0.014, "accuracy_spread": 0.02}
    return Consequence(**{**given, "masks": masks, **more})


def test_words_name_the_most_and_the_least_stable_criterion_with_their_brackets(findings):
    text = in_words(findings)
    for ratio, said in ((0.25, "At 25% removed"), (0.5, "At 50% removed")):
        rows = {name: findings.row("masks", scope=ALL, criterion=name, ratio=ratio) for name in ("reap", "frequency")}
        assert rows["reap"]["halves"] > rows["frequency"]["index"]
        spans = {name: f"{row['halves']:.2f} to {row['index']:.2f}" for name, row in rows.items()}
        assert re.search(
            rf"{said} masks of `reap` depend least.*?\({'agreement above chance ' + spans['reap']}\), those of "
            rf"`frequency` most \({spans['frequency']}\)",
            text,
        )


def test_words_name_the_smallest_budget_that_reaches_what_was_asked(findings):
    budget = findings.row("masks", scope=ALL, criterion="reap", ratio=0.5)["budget_disjoint"]
    assert budget is not None and f"is reached by `reap` with {budget:,} tokens; 1 of 2 criteria do not" in in_words(
        findings
    )
    hard = replace(findings, content={**findings.content, "rows": {
        **findings.content["rows"],
        "masks": [row | {"budget_disjoint": None} for row in findings.rows("masks", fixed=False)]}})  # fmt: skip
    assert "No criterion reaches an agreement of 0.9" in in_words(hard) and "with up to 4,800 tokens each" in in_words(
        hard
    )


def test_words_say_in_which_layers_two_corpora_keep_other_experts(findings):
    found = re.search(
        r"differ most at (\d+)% removed: with 3,200 tokens of `(\w+)` alone, (\d+)% of the experts that `reap` keeps "
        r"change in (layers 1 and 2|layer 1|layer 2), where more do than the mean of (\d+)%, if the text is `(\w+)` ",
        in_words(findings),
    )
    assert found
    ratio, one, share, layers, mean, other = found.groups()
    kept = findings.arrays[f"corpora/reap/{int(ratio) / 100}/kept"]
    a, b = (kept[findings.corpora.index(name)] for name in (one, other))
    places = [int(digit) for digit in re.findall(r"\d", layers)]
    changed = (a & ~b).sum(-1) / a.sum(-1)
    assert int(share) == pytest.approx(100 * float(changed[places].mean()), abs=1)
    assert int(mean) == pytest.approx(100 * float(changed.mean()), abs=1)
    assert float(changed[[0, 3]].max()) < float(changed[places].min())


def test_words_of_one_corpus_say_nothing_of_others_and_warn_of_few_chunks():
    text = in_words(found_in(("wiki",), chunks=8))
    assert text.startswith("Few chunks (wiki has 8)")
    assert "instead" not in text and "Between corpora" not in text and "Observed again" not in text


def test_words_say_how_much_text_other_seeds_have_in_common(findings):
    row = findings.row("seeds", scope=ALL, criterion="reap", ratio=0.5)
    assert (
        "Observed again with other seeds, which have 25% of their text in common, masks of `reap` at 50% removed agree "
        f"{row['corrected']:.2f} above chance"
    ) in in_words(findings)


def with_rows(findings: Findings, kind: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Findings:
    """The findings with every row of a kind changed."""
    rows = {**findings.content["rows"], kind: [row | change(row) for row in findings.rows(kind)]}
    return replace(findings, content={**findings.content, "rows": rows})


def test_words_rank_no_criteria_whose_brackets_overlap(findings):
    ends = {"reap": (0.5, 0.9), "frequency": (0.4, 0.8), "aimer": (1.0, 1.0)}
    near = with_rows(findings, "masks", lambda row: dict(zip(("halves", "index"), ends[row["criterion"]], strict=True)))
    text = in_words(near)
    assert "depend least" not in text
    assert "`frequency` 0.40 to 0.80: as brackets overlap, neither is known to be more stable" in text


def test_words_and_page_say_that_a_bracket_is_inverted(findings):
    ends = {"reap": (0.93, 0.71), "frequency": (0.2, 0.4), "aimer": (1.0, 1.0)}
    odd = with_rows(findings, "masks", lambda row: dict(zip(("halves", "index"), ends[row["criterion"]], strict=True)))
    assert (
        "of `reap` agree 0.93 to 0.71 (inverted) above chance whichever text is drawn, those of `frequency` 0.20 to "
        "0.40: as brackets are inverted, neither is known to be more stable"
    ) in in_words(odd)
    note = "Inverted, halves agreeing more than resamples, so that it encloses nothing: reap at 25%, wiki; "
    page = page_of(odd, [], "demo").html()
    assert note in page and note not in page_of(findings, [], "demo").html()


def test_words_name_every_corpus_that_changes_as_much_when_left_out(findings):
    tied = with_rows(findings, "left_out", lambda row: {"changed": 0.02 if row["corpus"] == "wiki" else 0.05})
    assert "Leaving `code` or `law` out of the mixture changes 5% of what" in in_words(tied)
    level = with_rows(findings, "left_out", lambda row: {"changed": 0.05})
    assert "Leaving `wiki` or `code` or `law` out" in in_words(level) and "any other" not in in_words(level)


def test_words_say_what_measured_masks_cost_and_whether_those_that_disagree_differ(findings):
    assert (
        "Measured at 50% removed, the masks of 6 resamples of a criterion differ in log perplexity by a standard "
        "deviation of 0.014 (`reap`) nats per token on a corpus and in accuracy by 2.0 (`reap`) points, where removing "
        "experts costs 0.450 (`reap`). Masks of single corpora cost 0.585 (`reap, wiki`). Resamples whose masks agree "
        "less with that of all the data change perplexity more (rank correlation +1.00 over 6 different masks, "
        "criterion by criterion and ratio by ratio, p = 0.00"
    ) in in_words(findings, [measured()])
    assert "change perplexity less (rank" in in_words(findings, [measured((6.0, 5.0, 4.0, 3.0, 2.0, 1.0))])
    assert "change perplexity more is not seen (rank" in in_words(findings, [measured((2.0, 1.0, 3.0, 2.5))])
    assert "rank correlation" not in in_words(findings, [measured((0.01, 0.02, 0.03))])


def test_words_tell_the_least_and_the_largest_spread_of_a_ratio(findings):
    given = [measured(criterion=f"c{n}", spread=0.01 * n, accuracy_spread=None) for n in (2, 1, 3)]
    text = in_words(findings, [*given, measured(ratio=0.25)])
    assert "Measured at 50% removed" in text and "Measured at 25% removed" in text
    assert "a standard deviation of 0.010 (`c1`) to 0.030 (`c3`) nats per token on a corpus, where" in text


def test_relation_of_resamples_counts_a_mask_once_and_leaves_corpora_out():
    found = measured()
    again = [replace(mask, again=mask.label in ("resample 1", "resample 4")) for mask in found.masks]
    test = between_resamples([replace(found, masks=again)])
    assert (test.pairs, test.strata) == (4, 1)
    assert between_resamples([found]).pairs == 6  # of seven masks beside that of all the data one is a corpus'


def test_relation_of_resamples_is_not_made_by_what_differs_between_criteria():
    # All masks of one criterion disagree more and change more than those of the other; little goes together within.
    near, far = measured((0.02, 0.01, 0.04, 0.03)), measured((0.2, 0.1, 0.4, 0.3), criterion="man")
    apart = [replace(mask, agreement=mask.agreement - 1) for mask in far.masks]
    test = between_resamples([near, replace(far, masks=apart)])
    one = between_resamples([near])
    assert (test.pairs, test.strata) == (8, 2) and test.rho == pytest.approx(one.rho)


def test_words_say_whether_unstable_criteria_spread_more(findings):
    # The less stable, the wider: a perfect order, with p = 2 / 6! for six of them.
    ordered = [measured(criterion=f"c{n}", index=0.9 - 0.1 * n, spread=0.01 * (n + 1)) for n in range(6)]
    said = "Criteria whose masks are less stable in the audit spread more in perplexity (rank correlation +1.00 over 6"
    assert said in in_words(findings, ordered) and "they are not independent" in in_words(findings, ordered)
    backwards = [replace(one, spread=0.1 - one.spread) for one in ordered]
    assert "spread less in perplexity (rank correlation -1.00" in in_words(findings, backwards)
    assert between_criteria(ordered[:3]) is None
    test = between_criteria([*ordered, replace(ordered[0], spread=None)])
    assert test.rho == pytest.approx(1) and test.p == pytest.approx(2 / 720, abs=2e-3) and test.pairs == 6


def test_relation_of_criteria_is_not_made_by_the_ratio(findings):
    # At 50% all criteria are less stable and spread more than at 25%; at one ratio neither goes with the other.
    mixed = [(0.9, 0.02), (0.8, 0.01), (0.7, 0.04), (0.6, 0.03)]
    small = [measured(criterion=f"c{n}", ratio=0.25, index=i, spread=s) for n, (i, s) in enumerate(mixed)]
    unrelated = [(0.4, 0.12), (0.3, 0.14), (0.2, 0.11), (0.1, 0.13)]
    large = [measured(criterion=f"c{n}", index=i, spread=s) for n, (i, s) in enumerate(unrelated)]
    test = between_criteria([*small, *large])
    assert (test.pairs, test.strata) == (8, 2) and test.rho == pytest.approx(0.3) and test.p > 0.3


def test_damage_of_masks_measured_on_a_single_document_has_no_interval():
    masks = [MeasuredMask("all data", 1.0, False, metrics(0.3, None), metrics(0.0, None))]
    plot, table = damage(measured(masks=masks), "demo")
    assert [(value.value, value.low, value.high) for value in plot.values] == [(0.6, None, None), (0.3, None, None)]
    assert "+0.300" in table.html("t") and "±" not in table.html("t").split("</h3>")[1].split("</p>")[1]
    assert "Change of perplexity" in plot.html("p")


@pytest.mark.parametrize(
    ("numbers", "said"),
    [([3], "3"), ([2, 3, 4], "2 to 4"), ([0, 2, 3, 4, 7], "0, 2 to 4 and 7"), ([1, 2], "1 and 2")],
    ids=str,
)
def test_runs_of_numbers_in_words(numbers, said):
    assert runs_of(numbers) == said


def test_edge_rows_are_every_uncertain_expert_the_least_certain_first(findings):
    rows = edge_rows(findings)
    expected = sum(row["edge"] for row in findings.rows("masks", scope=ALL, fixed=False))
    assert len(rows) == expected > 0
    shares = [row[4] for row in rows]
    assert all(0.05 < share < 0.95 for share in shares)
    assert [abs(share - 0.5) for share in shares] == sorted(abs(share - 0.5) for share in shares)
    criterion, removed, layer, expert, share, kept, score, lower, upper = rows[0]
    where = f"masks/{ALL}/{criterion}/{int(removed.rstrip('%')) / 100}"
    assert findings.arrays[f"{where}/probability"][layer, expert].item() == share
    assert findings.arrays[f"{where}/kept"][layer, expert].item() == (kept == "yes")
    assert lower < score < upper


def test_claims_are_the_experts_that_one_corpus_alone_keeps(findings):
    kept = findings.arrays["corpora/reap/0.5/kept"]
    rows = [row for row in claims_table(findings).rows if row[:2] == ["reap", "50%"]]
    assert [row[2] for row in rows] == ["wiki", "code", "law"]
    for number, (_, _, _, count, told) in enumerate(rows):
        others = torch.cat([kept[:number], kept[number + 1 :]]).any(0)
        expected = (kept[number] & ~others).nonzero().tolist()
        found = [
            [int(layer), int(expert)]
            for part in told.split("; ") if part
            for layer, experts in [part.split(": ")]
            for expert in experts.split()
        ]  # fmt: skip
        assert found == expected and count == len(expected)
    assert sum(row[3] for row in rows) > 0


def test_edge_table_of_many_experts_says_how_many_there_are(monkeypatch, findings):
    monkeypatch.setattr("flows.audit.experts.MOST", 2)
    page = page_of(findings, [], "demo").html()
    assert f"The 2 least certain of {len(edge_rows(findings)):,}" in page and MOST > 2


def test_page_of_one_corpus_has_no_section_between_corpora(findings):
    one = page_of(found_in(("wiki",)), [], "demo")
    titles = [section.title for section in one.sections]
    assert titles == ["How to read this page", "How sure masks are", "Which experts are sure to stay",
                      "How many tokens suffice", "Between criteria"]  # fmt: skip
    whole = page_of(findings, [measured()], "demo")
    added = [section.title for section in whole.sections if section.title not in titles]
    effect = "Effect on perplexity and accuracy"
    assert added == ["Between corpora", "Other seeds and sequence lengths", effect]
    several = page_of(findings, [measured()] * 2, "demo")
    parts = [part.title for part in several.sections[-1].parts]
    assert several.sections[-1].title == effect and parts[0] == "Stability in the audit, and spread when measured"
    assert parts.count("Measured masks: reap at 50% removed") == 2


def test_page_has_a_map_of_every_criterion_and_ratio_and_a_matrix_of_every_pair(findings):
    html = page_of(findings, [], "demo").html()
    for criterion in ("reap", "frequency"):
        for ratio in ("25%", "50%"):
            assert f"Kept by {criterion} at {ratio} removed" in html and f"{criterion} at {ratio} removed</h3>" in html
        assert f"Rank correlation of scores: {criterion}</h3>" in html
    assert "resamples reach about 1/3 at half the experts" in html


def test_page_has_the_learning_curves_of_all_the_data_by_every_measure(findings):
    page = page_of(findings, [], "demo")
    (table,) = [
        part for section in page.sections for part in section.parts if getattr(part, "file", "") == "curves.csv"
    ]
    (row,) = [row for row in table.rows if row[:4] == ["reap", "25%", "all the data", 7200]]
    where = f"masks/{ALL}/reap/0.25/full"
    measures = ("corrected", "jaccard", "tau", "overlap")
    assert row[4:] == pytest.approx([float(findings.arrays[f"{where}.{name}"][:, 2].mean()) for name in measures])
    # Of two criteria and ratios two sizes beside another part, three beside all the data.
    assert len(table.rows) == 4 * (2 + 3)


def test_page_draws_learning_curves_where_their_points_are(findings):
    page = page_of(findings, [], "demo")
    lines = [line for section in page.sections for part in section.parts if isinstance(part, LinePlot)
             and part.x_title == "calibration tokens" for line in part.lines]  # fmt: skip
    drawn = {x for line in lines for x in line.x}
    assert drawn == {tokens for row in findings.rows("curves") for tokens in row["tokens"]}


@pytest.fixture(scope="module")
def window(tmp_path_factory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("downloads")) as opened:
        yield opened


def test_browser_draws_an_audit_without_errors_or_requests(window, findings, tmp_path: Path):
    page = page_of(findings, [measured()], "demo")
    page.write(tmp_path / "audit.html")
    window.open(tmp_path / "audit.html")
    assert window.messages() == [] and window.requests() == [(tmp_path / "audit.html").as_uri()]
    drawn = page.html().count('class="plot"')
    assert window.run("return document.body.dataset.drawn") == str(drawn) and drawn > 15
    assert window.run("return document.documentElement.scrollWidth") <= 1280
    assert window.crowded() == []


def test_noise_alone_reaches_a_third_above_chance_by_resamples_and_none_by_halves():
    # What the page says of its bracket, on data that hold nothing but noise.
    data = {"noise": experts(32, 24, 16, 0.0, 1.0, seed=3)}
    found = audit(
        data, Design({"reap": reap.score}, {0.5: 8}, Routing(16, 2), resamples=300, fractions=(0.5,), repeats=2)
    )
    (row,) = found.rows["masks"]
    assert row["index"] == pytest.approx(1 / 3, abs=0.06) and row["halves"] == pytest.approx(0, abs=0.06)
