"""audit and resample through the store: what decides them, what they refuse, and that they tell the same story."""

import json
from functools import partial
from pathlib import Path

import pytest
import sample
import torch
from safetensors.torch import load_file

from moeprune.auditing import ALL
from moeprune.combining import combine
from moeprune.comparing import masks_of
from moeprune.criteria import frequency, reap, unified
from moeprune.files import load_corpus, load_scores, load_statistics
from moeprune.masks import Mask
from moeprune.replicates import bootstrap
from moeprune.resampling import resampled_scores
from moeprune.routing import Routing
from moeprune.sensitivity import sensitivity
from tasks import audit, calibrate, download, observe, resample, score
from tasks.artifacts import Artifact, Step
from tasks.audit_params import AuditParams
from tasks.calibrate import CalibrateParams
from tasks.observe import ObserveParams
from tasks.score import ScoreParams

ROUTING = Routing(sample.EXPERTS, sample.TOP_K)
GIVEN = {
    "criteria": ["reap", {"criterion": "unified", "options": {"a": 0}}, "router_weight_norm"],
    "ratios": [0.25, 0.5],
    "resamples": 60,
    "curve": {"fractions": [0.5, 1.0], "repeats": 3},
    "consequence": {"criterion": "reap", "ratio": 0.5, "masks": 2},
}
PARAMS = AuditParams(**GIVEN)


@pytest.fixture(scope="module")
def observed(workshop) -> dict[int, dict[str, Artifact]]:
    """Observations of the sample's corpora by seed."""
    sources = [{"name": name, "source": str(workshop.folder / f"sources/{name}.jsonl")} for name in sample.CORPORA]
    tokenizer = download.tokenizer_of(workshop.base, workshop.store)
    observing = ObserveParams(dtype="float32", gate_modes=("softmax_full",))
    found: dict[int, dict[str, Artifact]] = {}
    for seed in (0, 4):
        params = CalibrateParams(corpora=sources, tokens=256, sequence_length=16, chunks=4, seed=seed)
        for corpus in params.corpora:
            path = Path(corpus.source)
            step = calibrate.step(params, corpus, path, tokenizer, workshop.store)
            given = {"params": params, "corpus": corpus, "path": path, "trust_remote_code": False}
            blocks = calibrate.calibrate.fn(step=step, runtime=workshop.runtime, **given)
            step = observe.step(observing, corpus.name, workshop.base, blocks)
            made = observe.observe.fn(step=step, runtime=workshop.runtime, params=observing, trust_remote_code=False)
            found.setdefault(seed, {})[corpus.name] = made
    return found


def audited(workshop, observed, params: AuditParams = PARAMS) -> Step:
    """The step of an audit of the first observation and both seeds."""
    scoring = ScoreParams(criterion="router_weight_norm")
    step = score.step(scoring, workshop.base, {})
    fixed = score.score.fn(step=step, runtime=workshop.runtime, params=scoring, trust_remote_code=False)
    again = {"seeds": observed}
    drawn = {seed: {name: blocks_of(workshop, one) for name, one in made.items()} for seed, made in observed.items()}
    return audit.step(params, workshop.base, observed[0], again, {"router_weight_norm": fixed}, drawn)


def blocks_of(workshop, observed: Artifact) -> Artifact:
    """The tokens that were observed."""
    return Artifact(**workshop.store.manifest(observed)["inputs"]["calibrate"])


@pytest.fixture(scope="module")
def made(workshop, observed) -> Path:
    step = audited(workshop, observed)
    artifact = audit.audit.fn(step=step, runtime=workshop.runtime, params=PARAMS, trust_remote_code=False)
    assert workshop.store.find(step) == artifact
    return workshop.store.folder(artifact)


def statistics_of(workshop, observed, seed: int = 0):
    folders = {name: workshop.store.folder(artifact) for name, artifact in observed[seed].items()}
    return {name: load_statistics(folder / "statistics.safetensors") for name, folder in folders.items()}


def test_audit_holds_what_sensitivity_says_of_the_statistics_in_the_store(workshop, observed, made):
    data = statistics_of(workshop, observed)
    criteria = {"reap": reap.score, "unified a=0": partial(unified.score, a=0)}
    expected = sensitivity(data, criteria, [6, 4], ROUTING, resamples=60)
    arrays = load_file(made / "arrays.safetensors")
    for name in criteria:
        for ratio, keep in ((0.25, 6), (0.5, 4)):
            mask = expected.criteria[name].masks[keep]
            assert torch.equal(arrays[f"masks/{ALL}/{name}/{ratio}/probability"], mask.stability.probability)
        assert torch.equal(arrays[f"scores/{ALL}/{name}/upper"], expected.criteria[name].upper)
    content = json.loads((made / "audit.json").read_text())
    assert content["data"] == {name: {"chunks": 4, "tokens": 256} for name in sample.CORPORA}
    assert content["layers"] == list(range(sample.LAYERS)) and content["experts"] == sample.EXPERTS
    assert "calibrate.chunks" in content["warnings"][0]


def test_audit_compares_criteria_of_no_data_by_their_scores(workshop, observed, made):
    content = json.loads((made / "audit.json").read_text())
    (row,) = [row for row in content["rows"]["criteria"] if (row["scope"], row["ratio"]) == (ALL, 0.5)]
    assert row["names"] == ["reap", "unified a=0", "router_weight_norm"]
    fixed = audited(workshop, observed).inputs["score.0"]
    scores, _, _ = load_scores(workshop.store.folder(fixed) / "scores.safetensors")
    pooled, _ = combine(reap.score, list(statistics_of(workshop, observed).values()), "pooled")
    both = [masks_of(one, 4, ROUTING) for one in (pooled, scores)]
    shared = (~both[0] & ~both[1]).sum() / (~both[0]).sum()
    assert row["overlap_matrix"][0][2] == pytest.approx(float(shared))


def test_audit_compares_the_masks_of_other_seeds(workshop, observed, made):
    (row,) = [
        row
        for row in json.loads((made / "audit.json").read_text())["rows"]["seeds"]
        if (row["scope"], row["criterion"], row["ratio"]) == ("code", "reap", 0.5)
    ]
    masks = [
        masks_of(reap.score(statistics_of(workshop, observed, seed)["code"].total()), 4, ROUTING) for seed in (0, 4)
    ]
    assert row["names"] == [0, 4]
    assert row["overlap"] == pytest.approx(float((~masks[0] & ~masks[1]).sum() / (~masks[0]).sum()))


def test_audit_tells_how_much_text_other_seeds_have_in_common(workshop, observed, made):
    found = json.loads((made / "audit.json").read_text())["in_common"]
    for name in sample.CORPORA:
        folders = [workshop.store.folder(blocks_of(workshop, observed[seed][name])) for seed in (0, 4)]
        texts = [load_corpus(folder / "tokens.safetensors") for folder in folders]
        # No document is cut but the last: of a common document all tokens are common.
        common = set(texts[0].document.tolist()) & set(texts[1].document.tolist())
        whole = sum(
            length
            for text in texts
            for document, length in zip(text.document.tolist(), text.length.tolist(), strict=True)
            if document in common
        )
        assert found[name] == pytest.approx(whole / 512, abs=0.06)
    assert any(0 < share < 1 for share in found.values())


def test_audit_is_decided_by_what_it_computes_and_not_by_what_is_measured_afterwards(workshop, observed, made):
    key = audited(workshop, observed).key
    assert audited(workshop, observed, AuditParams(**{**GIVEN, "consequence": None})).key == key
    weighted = audited(workshop, observed, AuditParams(**{**GIVEN, "weights": {"wiki": 1, "code": 2}})).key
    changes = [
        {"resamples": 61}, {"seed": 1}, {"ratios": [0.25]}, {"criteria": ["reap"]}, {"combine": "mean"}, {"level": 0.8},
        {"stability": 0.8}, {"curve": {"fractions": [0.5]}}, {"curve": {"repeats": 4}}, {"gate_mode": "softmax_full"},
        {"criteria": [*GIVEN["criteria"][1::-1], "router_weight_norm"]}, {"weights": {"wiki": 2, "code": 1}},
        {"criteria": ["reap", {"criterion": "unified", "options": {"a": 1}}, "router_weight_norm"]},
    ]  # fmt: skip
    keys = [audited(workshop, observed, AuditParams(**{**GIVEN, "consequence": None, **one})).key for one in changes]
    assert len({key, weighted, *keys}) == 2 + len(changes)
    # Mappings have no order: these are the same weights.
    again = audited(workshop, observed, AuditParams(**{**GIVEN, "weights": {"code": 2, "wiki": 1}})).key
    assert again == weighted
    swapped = {0: {"wiki": observed[0]["wiki"], "code": observed[4]["code"]}, 4: observed[4]}
    assert audited(workshop, swapped).key != key


def mask_of(workshop, observed, label: str, params: AuditParams = PARAMS) -> torch.Tensor:
    """Which experts a mask to be measured keeps."""
    step = resample.step(params, params.consequence[0], label, workshop.base, observed[0])
    made = resample.resample.fn(step=step, runtime=workshop.runtime, trust_remote_code=False)
    mask = Mask.from_json((workshop.store.folder(made) / "mask.json").read_text())
    assert mask.base == workshop.base.digest
    return torch.tensor([[expert in kept for expert in range(mask.experts)] for kept in mask.kept.values()])


def test_resample_of_all_data_and_of_each_corpus_is_the_mask_of_their_scores(workshop, observed, made):
    arrays = load_file(made / "arrays.safetensors")
    asked = PARAMS.consequence[0]
    assert resample.labels(asked, ["wiki", "code"]) == ["all data", "resample 0", "resample 1", "wiki", "code"]
    without = asked.model_copy(update={"corpora": False})
    assert resample.labels(without, ["wiki", "code"]) == ["all data", "resample 0", "resample 1"]
    assert resample.labels(asked, ["wiki"]) == ["all data", "resample 0", "resample 1"]
    assert torch.equal(mask_of(workshop, observed, "all data"), arrays[f"masks/{ALL}/reap/0.5/kept"])
    for name in ("wiki", "code"):
        assert torch.equal(mask_of(workshop, observed, name), arrays[f"masks/{name}/reap/0.5/kept"])


@pytest.mark.parametrize("combination", ["pooled", "mean"])
def test_resample_is_the_bootstrap_resample_of_the_audit(workshop, observed, combination):
    weights = {"code": 3.0, "wiki": 1.0}
    params = AuditParams(**{**GIVEN, "combine": combination, "weights": weights})
    data = list(statistics_of(workshop, observed).values())
    drawn = bootstrap([4, 4], 60, 0)
    expected = resampled_scores(reap.score, data, drawn, combination, [1.0, 3.0])
    for number in (0, 1):
        found = mask_of(workshop, observed, f"resample {number}", params)
        assert torch.equal(found, masks_of(expected[number], 4, ROUTING))


def test_resample_in_another_gate_mode_reads_its_moments(workshop, observed):
    params = AuditParams(**{**GIVEN, "gate_mode": "softmax_full"})
    data = [one.in_gate_mode("softmax_full") for one in statistics_of(workshop, observed).values()]
    expected = masks_of(combine(reap.score, data, "pooled")[0], 4, ROUTING)
    assert torch.equal(mask_of(workshop, observed, "all data", params), expected)
    assert not torch.equal(expected, masks_of(combine(frequency.score, data, "pooled")[0], 4, ROUTING))


def test_mask_of_a_corpus_alone_does_not_depend_on_the_others_nor_on_the_resamples(workshop, observed):
    asked = PARAMS.consequence[0]
    alone = resample.step(PARAMS, asked, "wiki", workshop.base, observed[0]).key
    mixed = {"wiki": observed[0]["wiki"], "code": observed[4]["code"]}
    other = AuditParams(**{**GIVEN, "seed": 5, "combine": "mean"})
    assert resample.step(other, other.consequence[0], "wiki", workshop.base, mixed).key == alone
    assert resample.step(other, other.consequence[0], "resample 1", workshop.base, observed[0]).key != (
        resample.step(PARAMS, asked, "resample 1", workshop.base, observed[0]).key
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"criteria": ["reaap"]}, r"audit\.criteria 'reaap' is unknown: did you mean 'reap'"),
        ({"criteria": ["mone"]}, r"'mone' reads the sums 'vectors', which are kept for a whole corpus.*leave it out"),
        ({"criteria": ["wanda"]}, "'wanda' ranks weights inside experts"),
        ({"criteria": ["aimer"]}, "none depends on calibration data"),
        ({"criteria": ["reap", "reap"]}, "listed twice"),
        ({"criteria": ["unified", {"criterion": "unified", "options": {"a": 1}}]}, "listed twice"),
        ({"criteria": ["reap", "uniform_random"]}, "'uniform_random' draws masks whatever the data.*leave it out"),
        ({"criteria": None}, "at least 1 item"),
        ({"criteria": {"criterion": "reaap"}}, r"audit\.criteria 'reaap' is unknown"),
        ({"sequence_lengths": [128, 1]}, r"sequence_lengths\.1\n  Input should be greater than 1"),
        ({"ratios": [0.25, 1.5]}, "are not all between 0 and 1"),
        ({"consequence": {"criterion": "man", "ratio": 0.5}}, r"audit\.consequence\.criterion.*'man' is unknown"),
        ({"consequence": {"criterion": "router_weight_norm", "ratio": 0.5}}, "depends on no data"),
        ({"consequence": {"criterion": "reap", "ratio": 0.4}}, r"0\.4 is not among audit\.ratios"),
        ({"consequence": {"criterion": "reap", "ratio": 0.5, "masks": 61}}, "61 of 60 resamples"),
        ({"curve": {"fractions": [0.6]}}, "one of them at most 0.5"),
        ({"combine": "median"}, r"audit\.combine 'median' is unknown"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, dict) else "",
)
def test_params_that_cannot_work_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        AuditParams(**{**GIVEN, "consequence": None, **change})


def test_a_criterion_with_options_that_is_not_in_a_list_is_the_only_one():
    one = AuditParams(criteria={"criterion": "unified", "options": {"a": 0}}, ratios=0.5)
    assert [found.name for found in one.criteria] == ["unified a=0"] and one.ratios == (0.5,)
