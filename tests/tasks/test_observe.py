"""observe and score through the store: batches, resuming, mixtures of corpora."""

from pathlib import Path

import pytest
import sample
import torch

from moeprune import observation
from moeprune.combining import ranks
from moeprune.files import load_scores, load_statistics
from tasks import calibrate, download, observe, score
from tasks.artifacts import Artifact, Runtime
from tasks.calibrate import CalibrateParams
from tasks.observe import ObserveParams
from tasks.score import ScoreParams


@pytest.fixture(scope="module")
def corpora(workshop) -> dict[str, Artifact]:
    sources = [{"name": name, "source": str(workshop.folder / f"sources/{name}.jsonl")} for name in sample.CORPORA]
    params = CalibrateParams(corpora=sources, tokens=256, sequence_length=16, chunks=4)
    tokenizer = download.tokenizer_of(workshop.base, workshop.store)
    return {
        corpus.name: calibrate.calibrate.fn(
            step=calibrate.step(params, corpus, Path(corpus.source), tokenizer, workshop.store),
            runtime=workshop.runtime,
            params=params,
            corpus=corpus,
            path=Path(corpus.source),
            trust_remote_code=False,
        )
        for corpus in params.corpora
    }


def look(workshop, corpora: dict[str, Artifact], name: str, runtime: Runtime | None = None, **given) -> Artifact:
    params = ObserveParams(dtype="float32", **given)
    return observe.observe.fn(
        step=observe.step(params, name, workshop.base, corpora[name]),
        runtime=runtime or workshop.runtime,
        params=params,
        trust_remote_code=False,
    )


def test_observe_counts_every_token_in_every_layer(workshop, corpora):
    found = load_statistics(workshop.store.folder(look(workshop, corpora, "wiki")) / "statistics.safetensors")
    assert int(found.tokens.sum()) == 256 and len(found.tokens) == 4
    assert (found.count.sum(-1) == sample.TOP_K * found.tokens[:, None]).all()


def test_observe_failure_in_a_chunk_is_taken_up_there(workshop, corpora, monkeypatch):
    whole = workshop.store.folder(look(workshop, corpora, "code"))
    seen: list[int] = []
    real = observation.observe_chunk

    def failing(model, observer, corpus, chunk, *rest):
        if chunk == 2 and 2 not in seen:
            seen.append(chunk)
            raise OSError("the machine went away")
        seen.append(chunk)
        return real(model, observer, corpus, chunk, *rest)

    monkeypatch.setattr(observation, "observe_chunk", failing)
    # Other sums, hence another key; the sums they share must come out the same.
    with pytest.raises(OSError, match="went away"):
        look(workshop, corpora, "code", sums=["core"])
    again = workshop.store.folder(look(workshop, corpora, "code", sums=["core"]))
    assert seen == [0, 1, 2, 2, 3]
    one, two = (load_statistics(folder / "statistics.safetensors") for folder in (whole, again))
    assert torch.equal(one.moments, two.moments) and torch.equal(one.count, two.count)


@pytest.mark.parametrize("how", ["pooled", "mean", "max", "rank"])
def test_score_combines_corpora_as_told(how: str, workshop, corpora):
    statistics = {name: look(workshop, corpora, name) for name in sample.CORPORA}
    params = ScoreParams(criterion="frequency", combine=how)
    artifact = score.score.fn(
        step=score.step(params, workshop.base, statistics),
        runtime=workshop.runtime,
        params=params,
        trust_remote_code=False,
    )
    combined, per_corpus, layers = load_scores(workshop.store.folder(artifact) / "scores.safetensors")
    assert layers == list(range(sample.LAYERS)) and per_corpus.shape == (2, sample.LAYERS, sample.EXPERTS)
    counts = [
        load_statistics(workshop.store.folder(found) / "statistics.safetensors").count.sum(0).double()
        for found in statistics.values()
    ]
    for own, count in zip(per_corpus, counts, strict=True):  # one corpus alone is ordered by how often experts ran
        assert torch.equal(own.argsort(stable=True), count.argsort(stable=True))
    expected = {
        "pooled": sum(counts).argsort(stable=True),
        "mean": per_corpus.mean(0).argsort(stable=True),
        "max": per_corpus.amax(0).argsort(stable=True),
        "rank": ranks(per_corpus).mean(0).argsort(stable=True),
    }
    assert torch.equal(combined.argsort(stable=True), expected[how])
