"""Measured values against values computed one document, one question at a time; lm-eval runs for real."""

import gzip
import json
import math
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sample
import torch
import yaml
from fetched import benchmarks_folder
from pyarrow import parquet
from tokenizers import Tokenizer

from moeprune import models
from moeprune.errors import BadInput
from moeprune.masks import Mask
from tasks import calibrate, comparison, download, evaluate, harness, observe, prune
from tasks.artifacts import Artifact, Step
from tasks.evaluate import EvaluateParams
from tasks.suites import SUITES

MEMORY = {"load_peak_anonymous": 5, "forward_peak_anonymous": 7}
LENGTH = 16  # shorter than most documents: they are read in several windows


@pytest.fixture(scope="module", autouse=True)
def memory_of_a_child():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moeprune.footprint.measure", lambda *_: dict(MEMORY))
        yield


@pytest.fixture(scope="module")
def params(workshop) -> EvaluateParams:
    corpora = [
        {"name": name, "source": str(workshop.folder / f"sources/{name}.heldout.jsonl.gz")} for name in sample.CORPORA
    ]
    tasks = [str(workshop.folder / "questions/choice.yaml")]
    return EvaluateParams(corpora=corpora, tasks=tasks, sequence_length=LENGTH, generations=1)


def step_of(workshop, params: EvaluateParams, of: str, checkpoint: Artifact) -> Step:
    corpora = {corpus.name: Path(corpus.source) for corpus in params.corpora}
    return evaluate.step(params, of, checkpoint, corpora, workshop.store, False)


def measure(workshop, params: EvaluateParams, of: str = "base", checkpoint: Artifact | None = None) -> Path:
    """The folder of the report of a checkpoint, by default the base."""
    artifact = evaluate.evaluate.fn(
        step=step_of(workshop, params, of, checkpoint or workshop.base),
        runtime=workshop.runtime,
        params=params,
        corpora={corpus.name: Path(corpus.source) for corpus in params.corpora},
        trust_remote_code=False,
    )
    return workshop.store.folder(artifact)


def pruned(workshop, kept: tuple[int, ...]) -> Artifact:
    """The model with the same experts kept in every layer."""
    mask = Mask(workshop.base.digest, sample.EXPERTS, dict.fromkeys(range(sample.LAYERS), kept))
    step = Step("mask", "", "test", {"kept": list(kept)}, {})

    def build(target: Path) -> dict[str, Any]:
        (target / "mask.json").write_text(mask.to_json())
        return {}

    artifact = workshop.store.produce(step, workshop.runtime, build)
    pruning = prune.PruneParams()
    return prune.prune.fn(
        step=prune.step(pruning, workshop.base, artifact),
        runtime=workshop.runtime,
        params=pruning,
        trust_remote_code=False,
    )


@pytest.fixture(scope="module")
def base(workshop, params) -> Path:
    return measure(workshop, params)


@pytest.fixture(scope="module")
def smaller(workshop, params) -> Path:
    return measure(workshop, params, "pruned", pruned(workshop, (0, 1, 2, 3, 4, 5)))


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def samples(folder: Path) -> list[dict[str, Any]]:
    return parquet.read_table(folder / "samples.parquet").to_pylist()


@cache
def model_and_tokenizer(folder: Path) -> tuple[Any, Tokenizer]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


@torch.no_grad()
def log_probability(folder: Path, before: list[int], then: list[int]) -> list[float]:
    """Natural logarithms of the probability of each token of `then`, by one plain forward pass in float64."""
    model, _ = model_and_tokenizer(folder)
    logits = model(torch.tensor([[*before, *then]])).logits[0].log_softmax(-1)
    start = len(before) - 1
    return [float(logits[start + i, token]) for i, token in enumerate(then)]


def texts(workshop, name: str) -> list[str]:
    lines = gzip.decompress((workshop.folder / f"sources/{name}.heldout.jsonl.gz").read_bytes()).decode().splitlines()
    return [json.loads(line)["text"] for line in lines]


def nll_of(folder: Path, text: str) -> tuple[float, int]:
    """(nats, tokens) of a document, read in windows that begin with the last token of the one before."""
    _, tokenizer = model_and_tokenizer(folder)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    end = tokenizer.token_to_id("<end>")
    whole = [end, *ids]
    total = 0.0
    for start in range(0, len(ids), LENGTH):
        total -= sum(log_probability(folder, [whole[start]], whole[start + 1 : start + 1 + LENGTH]))
    return total, len(ids)


@pytest.mark.parametrize("name", sample.CORPORA)
def test_evaluate_perplexity_equals_one_document_at_a_time(name: str, workshop, base):
    documents = texts(workshop, name)
    direct = [nll_of(workshop.folder / "model", text) for text in documents]
    assert max(tokens for _, tokens in direct) > LENGTH
    nats, tokens = sum(n for n, _ in direct), sum(t for _, t in direct)
    metrics = report(base)["metrics"]
    assert metrics[f"perplexity/{name}"]["value"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert metrics[f"perplexity/{name}"]["n"] == len(documents)
    size = sum(len(text.encode()) for text in documents)
    assert metrics[f"bits_per_byte/{name}"]["value"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)

    rows = [row for row in samples(base) if row["set"] == name]
    assert [row["nll"] for row in rows] == pytest.approx([n for n, _ in direct], rel=1e-5)
    assert [row["tokens"] for row in rows] == [t for _, t in direct]
    assert [row["bytes"] for row in rows] == [len(text.encode()) for text in documents]


def test_evaluate_perplexity_error_is_the_spread_of_documents(workshop, base):
    rows = [row for row in samples(base) if row["set"] == "wiki"]
    nats = torch.tensor([row["nll"] for row in rows], dtype=torch.float64)
    tokens = torch.tensor([row["tokens"] for row in rows], dtype=torch.float64)
    value = report(base)["metrics"]["perplexity/wiki"]
    # The bootstrap is another estimate of the same error; with 12 documents they agree to some tens of per cent.
    draws = torch.randint(len(rows), (4000, len(rows)), generator=torch.Generator().manual_seed(0))
    spread = float((nats[draws].sum(1) / tokens[draws].sum(1)).exp().std())
    assert value["stderr"] == pytest.approx(spread, rel=0.25)


def right_answers(workshop) -> tuple[list[float], list[float]]:
    """(acc, acc_norm) of each question: is the likeliest choice, or the likeliest per character, the answer?"""
    folder = workshop.folder / "model"
    _, tokenizer = model_and_tokenizer(folder)
    acc, normed = [], []
    for line in (workshop.folder / "questions/choice.jsonl").read_text().splitlines():
        row = json.loads(line)
        scores = []
        for choice in row["choices"]:
            text = f"{row['context']} {choice}"  # lm-eval's delimiter is a blank
            context = tokenizer.encode(row["context"], add_special_tokens=False).ids
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            scores.append(sum(log_probability(folder, ids[: len(context)], ids[len(context) :])))
        lengths = [len(choice) for choice in row["choices"]]
        acc.append(float(max(range(3), key=lambda i: scores[i]) == row["answer"]))
        normed.append(float(max(range(3), key=lambda i: scores[i] / lengths[i]) == row["answer"]))
    return acc, normed


def test_evaluate_accuracy_equals_one_question_at_a_time(workshop, params):
    # Long enough for every question, so that no context is cut.
    long = params.model_copy(update={"sequence_length": 128, "corpora": ()})
    folder = measure(workshop, long)
    metrics = report(folder)["metrics"]
    rows = {row["id"]: row for row in samples(folder)}
    for name, direct in zip(("acc", "acc_norm"), right_answers(workshop), strict=True):
        assert [rows[number][name] for number in range(len(direct))] == direct
        share, n = sum(direct) / len(direct), len(direct)
        assert 0 < share < 1
        assert metrics[f"choice/{name}"]["value"] == pytest.approx(share)
        assert metrics[f"choice/{name}"]["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / (n - 1)))
        assert metrics[f"choice/{name}"]["n"] == n


def test_evaluate_batch_size_does_not_change_the_values(workshop, params, base, tmp_path):
    other = workshop.runtime.model_copy(update={"batch_size": 1, "store": tmp_path / "store"})
    shutil.copytree(workshop.store.root / "download", other.store / "download")
    artifact = evaluate.evaluate.fn(
        step=step_of(workshop, params, "base", workshop.base),
        runtime=other,
        params=params,
        corpora={corpus.name: Path(corpus.source) for corpus in params.corpora},
        trust_remote_code=False,
    )
    alone = samples(other.store / artifact.path)
    assert [row["nll"] for row in alone if row["nll"]] == pytest.approx(
        [row["nll"] for row in samples(base) if row["nll"]], rel=1e-5
    )


def test_evaluate_pruned_model_is_another_and_the_base_is_reused(workshop, params, base, smaller, monkeypatch):
    metrics = report(smaller)["metrics"]
    assert metrics["perplexity/wiki"]["value"] != report(base)["metrics"]["perplexity/wiki"]["value"]
    assert report(smaller)["memory"]["disk"] < report(base)["memory"]["disk"]
    assert report(smaller)["memory"]["parameters"] < report(base)["memory"]["parameters"]

    loaded = []
    load_model = models.load_model
    monkeypatch.setattr(models, "load_model", lambda folder, *more: loaded.append(folder) or load_model(folder, *more))
    other = pruned(workshop, (2, 3, 4, 5, 6, 7))
    assert measure(workshop, params) == base
    measure(workshop, params, "pruned", other)
    assert loaded == [workshop.store.folder(other)]


def test_compare_pairs_equal_direct_computation(base, smaller):
    found = comparison.compare(base, smaller)
    before = [row for row in samples(base) if row["set"] == "code"]
    after = [row for row in samples(smaller) if row["set"] == "code"]
    tokens = sum(row["tokens"] for row in before)
    shift = [b["nll"] - a["nll"] for a, b in zip(before, after, strict=True)]
    assert found["log_perplexity/code"]["value"] == pytest.approx(sum(shift) / tokens)
    ratio = report(smaller)["metrics"]["perplexity/code"]["value"] / report(base)["metrics"]["perplexity/code"]["value"]
    assert found["log_perplexity/code"]["value"] == pytest.approx(math.log(ratio))
    # Pairs leave out what documents have in common: the error is below that of two independent measurements.
    errors = [report(folder)["metrics"]["perplexity/code"] for folder in (base, smaller)]
    independent = math.hypot(*(metric["stderr"] / metric["value"] for metric in errors))
    assert 0 < found["log_perplexity/code"]["stderr"] < independent

    one = [row["acc"] for row in samples(base) if row["kind"] == "question"]
    two = [row["acc"] for row in samples(smaller) if row["kind"] == "question"]
    change = torch.tensor(two, dtype=torch.float64) - torch.tensor(one, dtype=torch.float64)
    assert found["choice/acc"]["value"] == pytest.approx(float(change.mean()))
    assert found["choice/acc"]["stderr"] == pytest.approx(float(change.std()) / math.sqrt(len(one)))


def test_compare_with_itself_is_zero(base):
    assert {metric["value"] for metric in comparison.compare(base, base).values()} == {0.0}


def test_compare_sets_that_differ_are_left_out(workshop, params, base, tmp_path):
    fewer = sample.write_lines(tmp_path / "wiki.jsonl", [{"text": text} for text in texts(workshop, "wiki")[:-1]])
    changed = params.model_copy(
        update={
            "corpora": (params.corpora[0].model_copy(update={"source": str(fewer)}), params.corpora[1]),
            "tasks": (),
        }
    )
    assert set(comparison.compare(base, measure(workshop, changed))) == {"log_perplexity/code", "bits_per_byte/code"}


def test_compare_other_documents_of_equal_number_are_left_out(workshop, params, base, tmp_path):
    # As many documents, each as many tokens long, but other text: no pairs.
    turned = [{"text": " ".join(reversed(text.split()))} for text in texts(workshop, "wiki")]
    other = sample.write_lines(tmp_path / "wiki.jsonl", turned)
    corpora = (params.corpora[0].model_copy(update={"source": str(other)}),)
    folder = measure(workshop, params.model_copy(update={"corpora": corpora, "tasks": ()}))
    assert comparison.compare(base, folder) == {}


def test_evaluate_limit_takes_the_first_and_is_flagged(workshop, params, base):
    folder = measure(workshop, params.model_copy(update={"limit": 5}))
    assert report(folder)["limited"] and not report(base)["limited"]
    rows = samples(folder)
    for name in (*sample.CORPORA, "choice"):
        assert sum(row["set"] == name for row in rows) == 5
    first = [row["nll"] for row in samples(base) if row["set"] == "wiki"][:5]
    assert [row["nll"] for row in rows if row["set"] == "wiki"] == pytest.approx(first, rel=1e-5)
    assert "log_perplexity/wiki" not in comparison.compare(base, folder)


def test_evaluate_generations_are_what_the_model_writes_greedily(workshop, base):
    (written,) = json.loads((base / "generations.json").read_text())
    model, tokenizer = model_and_tokenizer(workshop.folder / "model")
    ids = tokenizer.encode(texts(workshop, "wiki")[0], add_special_tokens=False).ids[:48]
    assert written["corpus"] == "wiki" and written["prompt"] == tokenizer.decode(ids)
    with torch.no_grad():
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    assert written["text"].startswith(tokenizer.decode([token]))


def test_evaluate_key_counts_content_and_not_paths(workshop, params, tmp_path):
    before = step_of(workshop, params, "base", workshop.base).key
    shutil.copytree(workshop.folder / "questions", tmp_path / "questions")
    shutil.copytree(workshop.folder / "sources", tmp_path / "sources")
    text = json.dumps(params.model_dump(mode="json")).replace(str(workshop.folder), str(tmp_path))
    moved = EvaluateParams.model_validate_json(text)
    assert step_of(workshop, moved, "base", workshop.base).key == before
    data = tmp_path / "questions/choice.jsonl"
    data.write_text(data.read_text().replace("river", "stream"))
    assert step_of(workshop, moved, "base", workshop.base).key != before


def test_evaluate_two_local_tasks_from_two_folders_with_data_of_the_same_name(workshop, params, tmp_path):
    names = []
    for number, count in enumerate((6, 9)):
        path = sample.write_questions(tmp_path / f"set{number}", count)
        path.write_text(yaml.safe_dump(sample.TASK | {"task": f"choice{number}"}, sort_keys=False))
        names.append(str(path))
    metrics = report(measure(workshop, params.model_copy(update={"corpora": (), "tasks": tuple(names)})))["metrics"]
    assert metrics["choice0/acc"]["n"] == 6 and metrics["choice1/acc"]["n"] == 9


def test_evaluate_unreadable_data_of_a_task_is_bad_input(workshop, params, tmp_path):
    path = sample.write_questions(tmp_path)
    (tmp_path / "choice.jsonl").write_text("not JSON at all\n")
    with pytest.raises(BadInput, match="choice"):
        measure(workshop, params.model_copy(update={"corpora": (), "tasks": (str(path),)}))


EIGHT, SIX = "zero-shot-eight", "tb-coverage-six"


@pytest.fixture(scope="module")
def twins(workshop, params) -> tuple[EvaluateParams, Path, Path]:
    """(what was measured, report of the base, report of a smaller model): five questions of every local twin."""
    benchmarks_folder()
    given = params.model_copy(
        update={"corpora": (), "tasks": (EIGHT, SIX), "data": "local", "limit": 5, "sequence_length": 192}
    )
    return given, measure(workshop, given), measure(workshop, given, "pruned", pruned(workshop, (0, 1, 2, 3)))


def test_evaluate_suites_of_local_twins_measure_every_task_and_their_mean(twins):
    _, base, _ = twins
    metrics = report(base)["metrics"]
    headline = dict.fromkeys(("arc_challenge", "arc_easy", "hellaswag", "openbookqa"), "acc_norm")
    headline |= dict.fromkeys(("boolq", "mmlu", "rte", "winogrande", "piqa"), "acc")
    for word in (EIGHT, SIX):
        parts = [metrics[f"{name}/{headline[name]}"] for name in SUITES[word]]
        assert [part["n"] for part in parts] == [5 * 57 if name == "mmlu" else 5 for name in SUITES[word]]
        found = metrics[f"suite/{word}"]
        assert found["value"] == pytest.approx(sum(part["value"] for part in parts) / len(parts))
        assert found["stderr"] == pytest.approx(math.sqrt(sum(part["stderr"] ** 2 for part in parts)) / len(parts))
    subjects = [value["value"] for name, value in metrics.items() if name.startswith("mmlu_") and value["n"] == 5]
    assert len(subjects) == 57
    assert metrics["mmlu/acc"]["value"] == pytest.approx(sum(subjects) / 57)  # as many questions of each


def test_compare_suites_are_means_of_paired_differences(twins):
    _, base, smaller = twins
    found, old, new = comparison.compare(base, smaller), report(base)["metrics"], report(smaller)["metrics"]
    assert any(found[f"suite/{word}"]["value"] for word in (EIGHT, SIX))
    for word in (EIGHT, SIX):
        parts = [found[name] for name in report(base)["suites"][word]]
        assert len(parts) == len(SUITES[word])
        assert found[f"suite/{word}"]["value"] == pytest.approx(
            new[f"suite/{word}"]["value"] - old[f"suite/{word}"]["value"]
        )
        assert found[f"suite/{word}"]["stderr"] == pytest.approx(
            math.sqrt(sum(part["stderr"] ** 2 for part in parts)) / len(parts)
        )
    sets = [(row["set"], row["id"], row["acc"]) for row in samples(base) if row["set"].startswith("mmlu_")]
    after = {(row["set"], row["id"]): row["acc"] for row in samples(smaller)}
    change = torch.tensor([after[name, number] - acc for name, number, acc in sets], dtype=torch.float64)
    assert found["mmlu/acc"]["value"] == pytest.approx(float(change.mean()))
    assert found["mmlu/acc"]["stderr"] == pytest.approx(float(change.std()) / math.sqrt(len(change)))


def test_compare_a_suite_measured_on_one_side_only_is_left_out(workshop, twins):
    given, base, _ = twins
    alone = measure(workshop, given.model_copy(update={"tasks": (SIX,)}))
    found = comparison.compare(base, alone)
    assert f"suite/{SIX}" in found and f"suite/{EIGHT}" not in found and "arc_easy/acc" in found


def test_evaluate_key_counts_the_data_of_twins_and_lm_evals_definition(workshop, twins, tmp_path, monkeypatch):
    given, *_ = twins
    before = step_of(workshop, given, "base", workshop.base).key
    shutil.copytree(benchmarks_folder(), tmp_path / "benchmarks")
    monkeypatch.setenv("MOEPRUNE_BENCHMARKS", str(tmp_path / "benchmarks"))
    assert step_of(workshop, given, "base", workshop.base).key == before
    shutil.copy(tmp_path / "benchmarks/arc_easy/test.parquet", tmp_path / "benchmarks/arc_challenge/test.parquet")
    changed = step_of(workshop, given, "base", workshop.base).key
    assert changed != before
    assert step_of(workshop, given.model_copy(update={"data": "hub"}), "base", workshop.base).key not in (
        before,
        changed,
    )
    monkeypatch.setattr("tasks.suites.digest", lambda paths: "another release of lm-eval")
    assert step_of(workshop, given, "base", workshop.base).key not in (before, changed)


def test_check_few_shots_are_refused_where_twins_have_no_examples():
    benchmarks_folder()
    given = EvaluateParams(tasks=("arc_easy",), data="local", num_fewshot=5)
    with pytest.raises(BadInput, match=r"evaluate\.num_fewshot: local data of 'arc_easy'"):
        harness.check(given, False)
    harness.check(given.model_copy(update={"tasks": ("mmlu",)}), False)


@pytest.mark.parametrize("name", ["code", "generative", "mbpp_instruct", "longproc"])
def test_check_running_code_needs_leave(name: str):
    given = EvaluateParams(tasks=(name,), sequence_length=4096)
    with pytest.raises(BadInput, match=r"runs what a model writes: set evaluate\.allow_code_execution"):
        harness.check(given, False)
    harness.check(given.model_copy(update={"allow_code_execution": True}), False)


def test_check_answers_that_do_not_fit_are_bad_input():
    harness.check(EvaluateParams(tasks=("maths",), sequence_length=1280), False)
    with pytest.raises(BadInput, match=r"evaluate\.sequence_length: 'gsm8k' writes up to 256 tokens.* 1280"):
        harness.check(EvaluateParams(tasks=("maths",)), False)


def test_check_unknown_name_tells_the_nearest_word():
    with pytest.raises(BadInput, match="zero-shot-eight"):
        harness.check(EvaluateParams(tasks=("zero-shot-eigth",)), False)


def test_evaluate_tasks_of_the_hub_without_network_are_bad_input(workshop, params):
    given = params.model_copy(update={"corpora": (), "tasks": ("rte",)})
    with pytest.raises(BadInput, match=r"cannot run rte: .*their data can be reached"):
        measure(workshop, given)


def write_task(folder: Path, rows: list[dict[str, str]], **more: Any) -> str:
    """A task that has a model write four tokens after each prompt."""
    sample.write_lines(folder / "writing.jsonl", rows)
    task = {
        "task": "writing",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "writing.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "target",
        "generation_kwargs": {"until": ["never"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    text = yaml.safe_dump(task | more, sort_keys=False).replace("'!function ", "!function ").replace("many'", "many")
    (folder / "writing.yaml").write_text(text)
    return str(folder / "writing.yaml")


def continuation_of(workshop, prompt: str) -> str:
    """What the model writes greedily, one plain forward pass for each of four tokens."""
    model, tokenizer = model_and_tokenizer(workshop.folder / "model")
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    written = []
    with torch.no_grad():
        for _ in range(4):
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return tokenizer.decode(written)


@pytest.mark.parametrize("higher", [True, False])
def test_evaluate_writing_tasks_have_a_metric_for_each_filter_and_pairs(workshop, params, tmp_path, higher: bool):
    prompts = ["the river of", "a small town in", "north was named"]
    texts = [continuation_of(workshop, prompt) for prompt in prompts]
    targets = [texts[0], texts[1], f"not {texts[2]}"]
    rows = [{"prompt": prompt, "target": target} for prompt, target in zip(prompts, targets, strict=True)]
    never = {"function": "regex", "regex_pattern": "(no such thing)"}
    filters = [
        {"name": "strict-match", "filter": [never, {"function": "take_first"}]},
        {"name": "as-it-is", "filter": [{"function": "take_first"}]},
    ]
    listed = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": higher}]
    name = write_task(tmp_path, rows, filter_list=filters, metric_list=listed)
    folder = measure(workshop, params.model_copy(update={"corpora": (), "tasks": (name,), "sequence_length": 64}))
    metrics = report(folder)["metrics"]
    assert metrics["writing/exact_match_as_it_is"]["value"] == pytest.approx(2 / 3)
    assert metrics["writing/exact_match_as_it_is"]["n"] == 3
    assert metrics["writing/exact_match_strict_match"]["value"] == 0
    assert [metric.get("less_is_better", False) for metric in metrics.values()] == [not higher] * 2
    assert [row["exact_match_as_it_is"] for row in samples(folder)] == [1, 1, 0]
    assert comparison.compare(folder, folder)["writing/exact_match_as_it_is"]["value"] == 0


def test_evaluate_code_runs_with_leave_only(workshop, params, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "what the user set")
    (tmp_path / "helper.py").write_text(
        "import os\n\n\ndef how_many(references, predictions):\n    return float(os.environ['HF_ALLOW_CODE_EVAL'])\n"
    )
    metric = {"metric": "!function helper.how_many", "aggregation": "mean", "higher_is_better": True}
    rows = [{"prompt": "the river", "target": "bridge"}]
    name = write_task(tmp_path, rows, unsafe_code=True, metric_list=[metric])
    given = params.model_copy(update={"corpora": (), "tasks": (name,), "sequence_length": 64})
    with pytest.raises(BadInput, match="allow_code_execution"):
        harness.check(given, True)
    given = given.model_copy(update={"allow_code_execution": True})
    harness.check(given, True)
    artifact = evaluate.evaluate.fn(
        step=evaluate.step(given, "base", workshop.base, {}, workshop.store, True),
        runtime=workshop.runtime,
        params=given,
        corpora={},
        trust_remote_code=True,
    )
    assert report(workshop.store.folder(artifact))["metrics"]["writing/how_many"]["value"] == 1
    assert os.environ["HF_ALLOW_CODE_EVAL"] == "what the user set"


def test_check_code_marked_in_an_included_file_is_noticed(tmp_path):
    name = write_task(tmp_path, [{"prompt": "a", "target": "b"}], unsafe_code=True)
    outer = tmp_path / "outer.yaml"
    outer.write_text(f"include: {Path(name).name}\ntask: outer\n")
    with pytest.raises(BadInput, match="allow_code_execution"):
        harness.check(EvaluateParams(tasks=(str(outer),)), False)


def test_evaluate_with_skipping_measures_the_model_that_skips(workshop, params, base):
    from moeprune.files import load_statistics
    from moeprune.perplexity import document_nll
    from moeprune.skipping import skipping, thresholds

    source = {"name": "wiki", "source": str(workshop.folder / "sources/wiki.jsonl")}
    calibration = calibrate.CalibrateParams(corpora=[source], tokens=256, sequence_length=16, chunks=4)
    (corpus,) = calibration.corpora
    tokenizer = download.tokenizer_of(workshop.base, workshop.store)
    blocks = calibrate.calibrate.fn(
        step=calibrate.step(calibration, corpus, Path(corpus.source), tokenizer, workshop.store),
        runtime=workshop.runtime,
        params=calibration,
        corpus=corpus,
        path=Path(corpus.source),
        trust_remote_code=False,
    )
    observing = observe.ObserveParams(dtype="float32", sums=("core", "ratios"))
    statistics = observe.observe.fn(
        step=observe.step(observing, "wiki", workshop.base, blocks),
        runtime=workshop.runtime,
        params=observing,
        trust_remote_code=False,
    )
    corpora = {corpus.name: Path(corpus.source) for corpus in params.corpora}
    step = evaluate.step(params, "skipped", workshop.base, corpora, workshop.store, False, {"wiki": statistics})
    assert step.key != step_of(workshop, params, "skipped", workshop.base).key
    found = evaluate.evaluate.fn(
        step=step, runtime=workshop.runtime, params=params, corpora=corpora, trust_remote_code=False
    )
    metrics = report(workshop.store.folder(found))["metrics"]
    assert 1 < metrics["experts_per_token"]["value"] < 2
    sums = load_statistics(workshop.store.folder(statistics) / "statistics.safetensors")
    model = models.load_model(workshop.store.folder(workshop.base), "float32")
    _, tokens = model_and_tokenizer(workshop.folder / "model")
    ids = [tokens.encode(text, add_special_tokens=False).ids for text in texts(workshop, "wiki")]
    with skipping(model, dict(zip(sums.layer.tolist(), thresholds(sums).tolist(), strict=True))):
        nats = document_nll(model, ids, tokens.token_to_id("<end>"), LENGTH, 16)
    assert metrics["perplexity/wiki"]["value"] == pytest.approx(
        math.exp(float(nats.sum()) / sum(map(len, ids))), rel=1e-5
    )
    assert metrics["perplexity/wiki"]["value"] != pytest.approx(report(base)["metrics"]["perplexity/wiki"]["value"])
