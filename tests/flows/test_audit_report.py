"""What an audit says: sentences against the numbers they are made of, and the page in a real browser."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import Browser, browser
from synthetic import experts, normal, statistics_of

from flows.audit_consequence import Consequence, MeasuredMask, across
from flows.audit_experts import MOST, claims_table, edge_rows
from flows.audit_findings import Findings, runs_of
from flows.audit_report import page_of
from flows.audit_words import in_words
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


def metrics(value: float) -> dict[str, dict[str, Any]]:
    found = {"log_perplexity/wiki": value, "log_perplexity/code": 2 * value, "choice/acc": -value}
    return {name: {"value": one, "stderr": 0.01, "n": 9} for name, one in found.items()}


def measured(correlation: float | None, p: float | None) -> Consequence:
    """Measured masks, three of them resamples."""
    labels = ["all data", "resample 0", "resample 1", "resample 2", "wiki"]
    masks = [
        MeasuredMask(label, 1 - 0.1 * number, metrics(0.3 + 0.01 * number), metrics(0.01 * number))
        for number, label in enumerate(labels)
    ]
    return Consequence("reap", 0.5, 0.9, 0.8, masks, 0.014, 0.02, 4, correlation, p)


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
        r"With 3,200 tokens of `(\w+)` alone, (\d+)% of the experts that `reap` keeps at (\d+)% removed change in "
        r"(layers 1 and 2|layer 1|layer 2) if the text is `(\w+)` instead",
        in_words(findings),
    )
    assert found
    one, share, ratio, layers, other = found.groups()
    kept = findings.arrays[f"corpora/reap/{int(ratio) / 100}/kept"]
    a, b = (kept[findings.corpora.index(name)] for name in (one, other))
    places = [int(digit) for digit in re.findall(r"\d", layers)]
    changed = (a & ~b).sum(-1) / a.sum(-1)
    assert int(share) == pytest.approx(100 * float(changed[places].mean()), abs=1)
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


def test_words_say_what_measured_masks_cost_and_whether_those_that_disagree_differ(findings):
    text = in_words(findings, [measured(0.9, 0.01)])
    assert (
        "the masks of 3 resamples of `reap` at 50% removed differ in log perplexity by a standard deviation of 0.014 "
        "nats per token on a corpus and in accuracy by 2.0 points, where removing experts costs 0.450 nats. Masks of "
        "single corpora cost 0.510 to 0.510. Masks that agree less with that of all the data differ more in perplexity "
        "(Spearman +0.90 over 4 different masks, p = 0.01)."
    ) in text
    assert "differ less in perplexity" in in_words(findings, [measured(-0.9, 0.01)])
    assert "is not seen (Spearman +0.40 over 4 different masks, p = 0.2)" in in_words(findings, [measured(0.4, 0.2)])
    assert "Spearman" not in in_words(findings, [measured(None, None)])


def test_words_say_whether_unstable_criteria_spread_more(findings):
    # The less stable, the wider: a perfect order, with p = 2 / 6! for six of them.
    ordered = [
        replace(measured(None, None), criterion=f"c{n}", index=0.9 - 0.1 * n, spread=0.01 * (n + 1)) for n in range(6)
    ]
    assert "What is less stable in the audit spreads more in perplexity (Spearman +1.00 over 6" in in_words(
        findings, ordered
    )
    backwards = [replace(one, spread=0.1 - one.spread) for one in ordered]
    assert "spreads less in perplexity (Spearman -1.00" in in_words(findings, backwards)
    assert "Spearman" not in in_words(findings, ordered[:3])
    rho, p = across(ordered)
    assert rho == pytest.approx(1) and p == pytest.approx(2 / 720, abs=2e-3)


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
    monkeypatch.setattr("flows.audit_experts.MOST", 2)
    page = page_of(findings, [], "demo", "moeprune audit demo.yaml").html()
    assert f"The 2 least certain of {len(edge_rows(findings)):,}" in page and MOST > 2


def test_page_of_one_corpus_has_no_section_between_corpora(findings):
    one = page_of(found_in(("wiki",)), [], "demo", "moeprune audit demo.yaml")
    titles = [section.title for section in one.sections]
    assert titles == ["How sure masks are", "Which experts are sure to stay", "How many tokens suffice",
                      "Between criteria"]  # fmt: skip
    whole = page_of(findings, [measured(0.9, 0.01)], "demo", "moeprune audit demo.yaml")
    added = [section.title for section in whole.sections if section.title not in titles]
    assert added == ["Between corpora", "Observed again", "What it comes to: reap at 50% removed"]
    several = page_of(findings, [measured(0.9, 0.01)] * 2, "demo", "moeprune audit demo.yaml")
    assert several.sections[-1].title == "Stability against damage"


def test_page_has_a_map_of_every_criterion_and_ratio_and_a_matrix_of_every_pair(findings):
    html = page_of(findings, [], "demo", "moeprune audit demo.yaml").html()
    for criterion in ("reap", "frequency"):
        for ratio in ("25%", "50%"):
            assert f"Kept by {criterion} at {ratio} removed" in html and f"{criterion} at {ratio} removed</h3>" in html
    assert "resamples reach about 1/3 at half the experts" in html


@pytest.fixture(scope="module")
def window(tmp_path_factory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("downloads")) as opened:
        yield opened


def test_browser_draws_an_audit_without_errors_or_requests(window, findings, tmp_path: Path):
    page = page_of(findings, [measured(0.9, 0.01)], "demo", "moeprune audit demo.yaml")
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
