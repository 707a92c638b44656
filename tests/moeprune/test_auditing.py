"""The audit's rows against the numbers they are made of."""

import json
from functools import partial

import pytest
import torch
from synthetic import experts

from moeprune.agreement import chance_corrected
from moeprune.auditing import ALL, Design, audit, scopes, steps, warnings
from moeprune.comparing import masks_of
from moeprune.criteria import frequency, reap, unified
from moeprune.learning_curve import learning_curves, smallest_budget
from moeprune.routing import Routing
from moeprune.sensitivity import sensitivity

CRITERIA = {"reap": reap.score, "unified a=0": partial(unified.score, a=0)}
ROUTING = Routing(8, 2)
KEEPS = {0.25: 6, 0.5: 4}
OPTIONS = {"resamples": 60, "seed": 3}


def data(seed: int = 0, chunks: int = 8):
    return {name: experts(chunks, 3, 8, 0.5, 1.0, seed=seed + number) for number, name in enumerate(("wiki", "code"))}


def design(**more):
    return Design(CRITERIA, KEEPS, ROUTING, fractions=(0.25, 0.5, 1.0), repeats=5, **{**OPTIONS, **more})


@pytest.fixture(scope="module")
def found():
    return audit(data(), design(fixed={"aimer": torch.arange(24.0).reshape(3, 8).double()}, target=0.5))


def test_audit_of_every_scope_is_what_sensitivity_and_the_curve_say(found):
    assert list(scopes(data())) == ["wiki", "code", ALL]
    for scope, corpora in scopes(data()).items():
        expected = sensitivity(corpora, CRITERIA, [6, 4], ROUTING, **OPTIONS)
        curves = learning_curves(CRITERIA, corpora, [6, 4], ROUTING, fractions=(0.25, 0.5, 1.0), repeats=5, seed=3)
        for name in CRITERIA:
            for ratio, keep in KEEPS.items():
                mask = expected.criteria[name].masks[keep]
                rows = found.rows["masks"]
                (row,) = [r for r in rows if (r["scope"], r["criterion"], r["ratio"]) == (scope, name, ratio)]
                assert row["index"] == mask.stability.overall().value and row["halves"] == float(mask.halves.mean())
                assert row["edge"] == len(expected.edge(name, keep)) and row["keep"] == keep
                where = f"masks/{scope}/{name}/{ratio}"
                assert torch.equal(found.arrays[f"{where}/probability"], mask.stability.probability)
                assert torch.equal(found.arrays[f"{where}/kept"], mask.kept)
                curve = curves[name][keep]
                assert torch.equal(found.arrays[f"{where}/disjoint.corrected"], curve.disjoint.corrected)
                assert row["budget_full"] == smallest_budget(curve.full, "corrected", 0.5)
                assert row["budget_disjoint"] == smallest_budget(curve.disjoint, "corrected", 0.5)


def test_audit_holds_every_measure_of_the_learning_curves(found):
    curves = learning_curves(CRITERIA, data(), [6, 4], ROUTING, fractions=(0.25, 0.5, 1.0), repeats=5, seed=3)
    for kind in ("full", "disjoint"):
        (row,) = [
            row
            for row in found.rows["curves"]
            if (row["scope"], row["criterion"], row["ratio"], row["kind"]) == (ALL, "reap", 0.5, kind)
        ]
        curve = getattr(curves["reap"][4], kind)
        assert row["tokens"] == curve.tokens.tolist()
        for measure in ("corrected", "jaccard", "tau", "overlap"):
            assert row[measure] == pytest.approx(curve.mean(measure).tolist())
    assert len(found.rows["curves"]) == 3 * 2 * 2 * 2
    assert "index_lower" not in found.rows["masks"][0]


def test_audit_lists_criteria_of_no_data_as_stable_by_definition(found):
    rows = [row for row in found.rows["masks"] if row["criterion"] == "aimer"]
    assert len(rows) == 6 and all(row["fixed"] and row["index"] == 1 and row["edge"] == 0 for row in rows)
    assert not [name for name in found.arrays if "aimer" in name]
    assert found.rows["criteria"][0]["names"] == [*CRITERIA, "aimer"]


def test_audit_between_corpora_and_without_one_is_counted_mask_by_mask(found):
    corpora = data()
    (row,) = [r for r in found.rows["corpora"] if (r["criterion"], r["ratio"]) == ("reap", 0.5)]
    alone = {name: masks_of(reap.score(one.total()), 4, ROUTING) for name, one in corpora.items()}
    expected = float(chance_corrected(alone["wiki"], alone["code"]).mean())
    assert row["corrected"] == pytest.approx(expected) and row["corrected_matrix"][0][1] == pytest.approx(expected)
    gone = (~alone["wiki"] & ~alone["code"]).sum() / (~alone["wiki"]).sum()
    assert row["overlap"] == pytest.approx(float(gone))
    assert row["claimed"] == {name: int((alone[name] & ~alone[other]).sum())
                              for name, other in (("wiki", "code"), ("code", "wiki"))}  # fmt: skip
    whole = found.arrays[f"masks/{ALL}/reap/0.5/kept"]
    (left,) = [r for r in found.rows["left_out"] if (r["criterion"], r["ratio"], r["corpus"]) == ("reap", 0.5, "code")]
    assert left["changed"] == pytest.approx(float((whole & ~alone["wiki"]).sum() / whole.sum()))


def test_audit_of_other_observations_compares_their_masks():
    again = {"seeds": {0: data(), 7: data(seed=50)}, "sequence_lengths": {16: data(), 32: data()}}
    found = audit(data(), design(), again)
    (row,) = [r for r in found.rows["seeds"] if (r["scope"], r["criterion"], r["ratio"]) == (ALL, "reap", 0.5)]
    masks = [masks_of(design().scores(one)["reap"], 4, ROUTING) for one in again["seeds"].values()]
    assert row["names"] == [0, 7] and row["corrected"] == pytest.approx(float(chance_corrected(*masks).mean()))
    assert {row["corrected"] for row in found.rows["sequence_lengths"]} == {1.0}


def test_audit_of_one_corpus_has_one_scope_and_no_other_to_compare_with():
    found = audit({"wiki": data()["wiki"]}, design())
    assert {row["scope"] for row in found.rows["masks"]} == {"wiki"}
    assert found.rows.keys() == {"masks", "curves", "criteria"}


def test_audit_tells_its_steps_and_its_rows_are_json(found):
    told = []
    plan = design()
    audit(data(), plan, progress=told.append)
    assert sum(told) == steps(data(), plan)
    json.dumps(found.rows, allow_nan=False)
    equal = {"wiki": experts(8, 2, 8, 0.5, 0.0), "code": experts(8, 2, 8, 0.5, 0.0)}
    flat = Design({"frequency": frequency.score}, KEEPS, ROUTING, resamples=20, fractions=(0.5,), repeats=2)
    row = audit(equal, flat).rows["corpora"][0]
    assert row["spearman"] is None and row["corrected"] == 1.0


def test_audit_warns_below_32_chunks_and_not_from_there_on():
    (warning,) = warnings({"wiki": data(chunks=31)["wiki"], "code": data(chunks=32)["code"]})
    assert "wiki has 31" in warning and "code" not in warning and "calibrate.chunks" in warning
    assert warnings(data(chunks=32)) == []
