"""Masks applied to the resident model against checkpoints that were really pruned; lm-eval runs for real."""

import json
from pathlib import Path
from typing import Any

import families
import pytest
import sample
import torch
from pyarrow import parquet
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from moeprune import likelihood, models
from moeprune.errors import BadInput
from moeprune.masks import Mask
from tasks import comparison, download, evaluate, harness, prune
from tasks.artifacts import Artifact, Runtime, Step, Store
from tasks.evaluate import EvaluateParams

TOLERANCE = 1e-5
PEAKS = {"load_peak_anonymous": 5, "forward_peak_anonymous": 7}
SIX = ((0, 1, 3, 4, 6, 7), (1, 2, 3, 4, 5, 6))
"""Six of eight experts, three of each half as two router groups demand."""


@pytest.fixture(scope="module", autouse=True)
def memory_of_a_child():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moeprune.footprint.measure", lambda *_: dict(PEAKS))
        yield


@pytest.fixture(autouse=True)
def nothing_resident():
    models.cached_model.cache_clear()


@pytest.fixture
def answers(monkeypatch) -> list[list[tuple[float, bool]]]:
    """What the model was found to say of every choice, a list for each time that lm-eval asked."""
    found: list[list[tuple[float, bool]]] = []
    ask = likelihood.log_likelihoods
    monkeypatch.setattr(
        likelihood, "log_likelihoods", lambda *given: found.append(list(ask(*given))) or list(found[-1])
    )
    return found


class Bench:
    """A base model in a store, and what is measured of it and of what masks leave."""

    def __init__(self, model: Path, sources: Path, store: Path) -> None:
        self.runtime = Runtime(device="cpu", batch_size=4, threads=1, store=store)
        self.store = Store(store)
        source = download.Source(model)
        step = download.step(download.DownloadParams(source=str(model)), source, self.store)
        self.base = download.download.fn(step=step, runtime=self.runtime, source=source)
        corpora = [
            {"name": name, "source": str(sources / f"sources/{name}.heldout.jsonl.gz")} for name in sample.CORPORA
        ]
        tasks = [str(sources / "questions/choice.yaml")]
        self.params = EvaluateParams(corpora=corpora, tasks=tasks, sequence_length=32, generations=1, virtual=True)
        self.corpora = {corpus.name: Path(corpus.source) for corpus in self.params.corpora}

    def mask(self, *kept: tuple[int, ...], criterion: str = "") -> Artifact:
        """A mask with these experts kept in the layers that have experts, turn by turn."""
        layers = self.layers
        content = Mask(self.base.digest, 8, {layer: kept[i % len(kept)] for i, layer in enumerate(layers)})
        return self.mask_of(content, criterion)

    def mask_of(self, content: Mask, criterion: str = "") -> Artifact:
        """A mask's artifact, as if made by a criterion."""
        step = Step("mask", "", "test", {"mask": content.to_json(), "criterion": criterion}, {})

        def build(target: Path) -> dict[str, Any]:
            (target / "mask.json").write_text(content.to_json())
            return {}

        return self.store.produce(step, self.runtime, build)

    @property
    def layers(self) -> list[int]:
        """The layers that have experts."""
        from moeprune.checkpoint import open_checkpoint
        from moeprune.file_plan import read_file_plan

        return read_file_plan(open_checkpoint(self.store.folder(self.base))).layers

    def virtual_step(self, mask: Artifact | None, params: EvaluateParams | None = None) -> Step:
        """Measuring what a mask leaves of the base."""
        return evaluate.virtual_step(params or self.params, "pruned", self.base, mask, self.corpora, self.store, False)

    def run(self, step: Step, params: EvaluateParams) -> Path:
        """The folder of a step's report."""
        artifact = evaluate.evaluate.fn(
            step=step,
            runtime=self.runtime,
            params=params,
            corpora=self.corpora,
            trust_remote_code=False,
        )
        return self.store.folder(artifact)

    def virtual(self, mask: Artifact, **changes: Any) -> Path:
        """The report of a mask applied in memory."""
        params = self.params.model_copy(update=changes)
        return self.run(self.virtual_step(mask, params), params)

    def pruned(self, mask: Artifact, **changes: Any) -> Path:
        """The report of the checkpoint that pruning writes."""
        pruning = prune.PruneParams()
        step = prune.step(pruning, self.base, mask)
        checkpoint = prune.prune.fn(step=step, runtime=self.runtime, params=pruning, trust_remote_code=False)
        return self.measured("pruned", checkpoint, virtual=False, **changes)

    def measured(self, of: str, checkpoint: Artifact, **changes: Any) -> Path:
        """The report of a checkpoint."""
        params = self.params.model_copy(update=changes)
        return self.run(evaluate.step(params, of, checkpoint, self.corpora, self.store, False), params)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return sample.write_project(tmp_path_factory.mktemp("virtual"))


@pytest.fixture(scope="module")
def bench(project) -> Bench:
    return Bench(project / "model", project, project / "store")


@pytest.fixture
def of_family(project, tmp_path):
    """A bench for the tiny model of a family, whose tokens are whole words."""

    def make(family: str) -> Bench:
        families.tiny_model(family).save_pretrained(tmp_path / family)
        words = [
            "<pad>",
            "<s>",
            "<end>",
            "<unknown>",
            *sorted({word for name in sample.WORDS.values() for word in name}),
        ]
        tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="<end>", pad_token="<pad>"
        )
        fast.save_pretrained(tmp_path / family)
        return Bench(tmp_path / family, project, tmp_path / "store")

    return make


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / comparison.REPORT).read_text())


def samples(folder: Path) -> list[dict[str, Any]]:
    return parquet.read_table(folder / comparison.SAMPLES).to_pylist()


def distance(one: Path, other: Path) -> float:
    """The largest difference of a document's negative log-likelihood, in nats."""
    pairs = zip(samples(one), samples(other), strict=True)
    found = [abs(a["nll"] - b["nll"]) for a, b in pairs if a["kind"] == "document"]
    assert len(found) == 24
    return max(found)


def choices(answers: list[tuple[float, bool]]) -> list[int]:
    """The likeliest of each question's three choices."""
    likely = torch.tensor([value for value, _ in answers], dtype=torch.float64)
    return likely.view(-1, 3).argmax(1).tolist()


def compare(bench: Bench, mask: Artifact, answers: list[Any]) -> tuple[Path, Path]:
    """The reports of the virtual and of the really pruned model, which must be equal in everything."""
    virtual, pruned = bench.virtual(mask), bench.pruned(mask)
    assert distance(virtual, pruned) < TOLERANCE, distance(virtual, pruned)
    said, expected = answers
    assert choices(said) == choices(expected) and len(set(choices(said))) > 1
    assert [value for value, _ in said] == pytest.approx([value for value, _ in expected], rel=TOLERANCE)
    one, other = report(virtual), report(pruned)
    assert one["metrics"].keys() == other["metrics"].keys() >= {"perplexity/wiki", "choice/acc"}
    for name, metric in one["metrics"].items():
        assert metric == pytest.approx(other["metrics"][name], rel=TOLERANCE), name
    answered = [[row["acc"] for row in samples(folder) if row["kind"] == "question"] for folder in (virtual, pruned)]
    assert answered[0] == answered[1] and len(answered[0]) == 24
    assert one["memory"] | PEAKS == other["memory"]  # exact, the bytes of weights in memory included
    assert (one["memory_known"], other["memory_known"]) == ("computed", "measured")
    written = [(folder / comparison.GENERATIONS).read_text() for folder in (virtual, pruned)]
    assert written[0] == written[1]
    return virtual, pruned


def test_virtual_report_equals_that_of_the_pruned_checkpoint_and_a_wrong_mask_does_not(bench, answers):
    mask = bench.mask(*SIX)
    virtual, pruned = compare(bench, mask, answers)
    base = bench.measured("base", bench.base)
    assert report(virtual)["memory"]["weights"] < report(base)["memory"]["weights"]
    assert (report(virtual)["checkpoint"], report(virtual)["mask"]) == (bench.base.digest, mask.digest)
    assert report(base)["mask"] is None
    ours, theirs = (comparison.compare(base, folder) for folder in (virtual, pruned))
    for name in ("log_perplexity/wiki", "choice/acc"):
        assert ours[name] == pytest.approx(theirs[name], abs=TOLERANCE)

    wrong = bench.virtual(bench.mask((0, 1, 3, 4, 6, 7), (0, 2, 3, 4, 5, 6)))  # one expert of one layer is another
    assert distance(wrong, pruned) > 100 * TOLERANCE
    assert [value for value, _ in answers[-1]] != pytest.approx([value for value, _ in answers[1]], rel=TOLERANCE)
    swapped = bench.virtual(bench.mask(*reversed(SIX)))
    assert distance(swapped, pruned) > 100 * TOLERANCE


@pytest.mark.parametrize("family", ["longcat_flash", "deepseek_v3"])
def test_virtual_report_equals_that_of_the_pruned_checkpoint_of_a_family(family: str, of_family, answers):
    # longcat_flash: rows of its router that belong to no expert; deepseek_v3: groups, biases, a shared expert.
    bench = of_family(family)
    mask = bench.mask(*SIX)
    compare(bench, mask, answers)
    wrong = bench.virtual(bench.mask(*reversed(SIX)))
    assert distance(wrong, bench.pruned(mask)) > 100 * TOLERANCE


def test_virtual_report_of_layers_that_keep_different_numbers_equals_the_pruned_one(bench, answers):
    virtual, _ = compare(bench, bench.mask((0, 2, 3, 4, 5, 6, 7), (1, 4, 6)), answers)
    even = bench.virtual(bench.mask((0, 2, 3, 4, 6), (1, 2, 4, 6, 7)))
    assert report(virtual)["memory"]["parameters"] == report(even)["memory"]["parameters"]


def test_many_masks_and_the_base_take_one_load(bench, monkeypatch):
    loaded, load = [], models.load_model
    monkeypatch.setattr(models, "load_model", lambda *given: loaded.append(given[0]) or load(*given))
    changes = {"seed": 1, "tasks": ()}  # reports that no other test has made
    base = bench.measured("base", bench.base, **changes)
    masks = [bench.mask(tuple(range(keep)), SIX[1]) for keep in (3, 4, 5, 6)]
    reports = [bench.virtual(mask, **changes) for mask in masks]
    assert loaded == [bench.store.folder(bench.base)]
    assert not any(torch.equal(nll(base), nll(one)) for one in reports)
    assert len({tuple(nll(one).tolist()) for one in reports}) == len(masks)


def nll(folder: Path) -> torch.Tensor:
    return torch.tensor([row["nll"] for row in samples(folder) if row["kind"] == "document"])


def test_model_is_whole_again_after_an_evaluation_that_fails(bench, monkeypatch):
    mask, changes = bench.mask(*SIX), {"seed": 3}
    before = bench.measured("base", bench.base, **changes)
    model = models.cached_model(bench.store.folder(bench.base), "float32", "cpu", False)
    state = {name: id(tensor) for name, tensor in model.named_parameters()}
    held = []

    def fail(model: Any, *_: Any) -> Any:
        held.append({name: tuple(tensor.shape) for name, tensor in model.named_parameters()})
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(harness, "ask", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            bench.virtual(mask, **changes)
    assert {shape[0] for name, shape in held[0].items() if name.endswith("gate.weight")} == {6}
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == state
    assert bench.store.find(bench.virtual_step(mask, bench.params.model_copy(update=changes))) is None
    expected = nll(before)
    (before / "manifest.json").unlink()  # no longer what the store believes: measured again
    assert torch.equal(nll(bench.measured("base", bench.base, **changes)), expected)
    assert distance(bench.virtual(mask, **changes), bench.pruned(mask, **changes)) < TOLERANCE


def test_key_is_of_the_mask_the_base_and_the_params_alone(bench, project, tmp_path):
    mask = bench.mask(*SIX)
    key = bench.virtual_step(mask).key
    same = bench.mask(*SIX, criterion="another that keeps the same experts")
    assert same.key != mask.key and bench.virtual_step(same).key == key
    others = [
        bench.virtual_step(bench.mask(*reversed(SIX))).key,
        bench.virtual_step(mask, bench.params.model_copy(update={"dtype": "bfloat16"})).key,
        evaluate.step(bench.params, "pruned", bench.base, bench.corpora, bench.store, False).key,
    ]
    assert key not in others and len(set(others)) == 3

    moved = sample.write_project(tmp_path / "elsewhere")
    elsewhere = Bench(moved / "model", moved, tmp_path / "store")
    assert elsewhere.virtual_step(elsewhere.mask(*SIX)).key == key

    base = evaluate.step(bench.params, "base", bench.base, bench.corpora, bench.store, False)
    really = bench.params.model_copy(update={"virtual": False})
    assert evaluate.step(really, "base", bench.base, bench.corpora, bench.store, False).key == base.key
    assert bench.virtual_step(None).key is None and bench.virtual_step(None).unknown == ["mask"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Mask("0" * 64, 8, dict.fromkeys(range(2), SIX[0])), "it is of the base model 000000000000"),
        (None, "layer 1: 1 of 8 experts to keep"),
    ],
    ids=["other base", "too few"],
)
def test_virtual_mask_that_does_not_fit_is_refused(content: Mask | None, words: str, bench):
    mask = bench.mask_of(content or Mask(bench.base.digest, 8, {0: SIX[0], 1: (3,)}))
    with pytest.raises(BadInput, match=words):
        bench.virtual(mask)
