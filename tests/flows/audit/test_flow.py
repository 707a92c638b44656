"""The audit command: run, run again, its record, its report; and what it refuses before any work."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import killed
import pytest
import sample
import yaml
from browser import browser
from mlflow.tracking import MlflowClient
from PIL import Image
from sweeps import counts

from flows.audit.flow import check
from flows.audit.recipe import read_audit
from flows.command import main
from moeprune.errors import BadInput
from tasks.artifacts import Store

AUDIT: dict[str, Any] = {
    "criteria": ["reap", {"criterion": "unified", "options": {"a": 0}}, "router_weight_norm"],
    "ratios": [0.25, 0.5],
    "resamples": 60,
    "curve": {"fractions": [0.5, 1.0], "repeats": 2},
    "seeds": [1],
    "sequence_lengths": [8],
    "consequence": {"criterion": "reap", "ratio": 0.5, "masks": 2},
}


def write(project: Path, **sections: dict[str, Any] | None) -> str:
    """An audit's recipe in a project; sections are updated, None removes one. Returns its path."""
    own = ("download", "calibrate", "observe", "runtime")
    content: dict[str, Any] = {word: sample.RECIPE[word] for word in own}
    content |= {"audit": AUDIT, "evaluate": sample.EVALUATE}
    for word, changes in sections.items():
        content[word] = None if changes is None else content[word] | changes
    path = project / "params/audit.yaml"
    path.write_text(yaml.safe_dump({word: value for word, value in content.items() if value is not None}))
    return "params/audit.yaml"


@dataclass(frozen=True)
class Audits:
    """A project whose audit was killed, run, and run again with a report elsewhere; and what each said.

    `less` is the audit without measured masks, `plans` are what `moeprune plan` said before and after all of it.
    """

    project: Path
    killed: int
    first: dict[str, Any]
    second: dict[str, Any]
    less: dict[str, Any]
    said: str
    plans: tuple[str, str]


@pytest.fixture(scope="module")
def audits(finished, tmp_path_factory, server) -> Iterator[Audits]:
    project = tmp_path_factory.mktemp("audited") / "project"
    shutil.copytree(finished[0], project)
    recipe = write(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr("moeprune.footprint.measure", lambda *_: {"forward_peak_anonymous": 1})

        def call(*words: str) -> str:
            patch.setattr(sys, "argv", ["moeprune", *words])
            with redirect_stdout(io.StringIO()) as out, suppress(SystemExit):
                main()
            return out.getvalue()

        before = call("plan", recipe)
        # Of the second seed one corpus is observed, and a chunk of the other.
        code = killed.moeprune(project, ("audit", recipe), "moeprune.observation.observe_chunk", 6, server)
        less = ("--set", "audit.consequence=null", "--set", "evaluate=null")
        said = [call("audit", recipe, *more, "--json") for more in ((), ("--report", "elsewhere/audit.html"), less)]
        answers = [json.loads(text.splitlines()[-1]) for text in said]
        assert [answer["status"] for answer in answers] == ["done"] * 3, [answer["error"] for answer in answers]
        yield Audits(project, code, *answers, said[0], (before, call("plan", recipe)))


def caches(answer: dict[str, Any], stage: str) -> list[str]:
    return [artifact["cache"] for artifact in answer["stages"][stage]["artifacts"]]


def test_audit_shares_observations_with_runs_and_observes_again_only_what_was_asked(audits):
    labels = [one["of"] for one in audits.first["stages"]["observe"]["artifacts"]]
    assert labels == [f"{name}{how}" for how in ("", " seeds 1", " sequence_lengths 8") for name in sample.CORPORA]
    assert caches(audits.first, "observe") == ["hit"] * 3 + ["miss"] * 3  # one of them by the audit that was killed
    assert audits.first["stages"]["download"]["cache"] == "hit"
    assert "prune" not in audits.first["stages"]


def test_audit_killed_and_run_again_goes_on_where_it_was_left(audits):
    assert audits.killed == -9
    assert audits.first["stages"]["audit"]["cache"] == "miss" and not list(
        audits.project.glob(".moeprune/*/.*.building")
    )
    runs = MlflowClient(f"sqlite:///{audits.project}/.moeprune/mlflow.db").search_runs(["1"], "tags.kind = 'audit'")
    assert sorted(run.info.status for run in runs) == ["FINISHED", "FINISHED", "FINISHED", "KILLED"]


def test_plan_of_an_audit_counts_its_stages_and_what_is_there(audits):
    before, after = (counts(SimpleNamespace(status=0, out=said)) for said in audits.plans)
    # Measured: the base, and masks of all data, two resamples and two corpora.
    wanted = {"download": 1, "calibrate": 6, "observe": 6, "score": 1, "audit": 1, "resample": 5, "evaluate": 6}
    assert {stage: numbers[0] for stage, numbers in before.items()} == {**wanted, "all": 26}
    assert before["observe"] == [6, 6, 2, 4] and before["audit"] == [1, 1, 0, 1] and before["resample"] == [5, 5, 0, 5]
    assert after["all"][3] == 0 and "stages are in the store, at most 0 are to be run" in audits.plans[1]


def test_audit_run_again_does_nothing_again(audits):
    assert {stage["cache"] for stage in audits.second["stages"].values()} == {"hit"}
    for key in ("summary", "rows", "consequences"):
        assert audits.second[key] == audits.first[key]


def test_audit_measures_masks_of_all_data_resamples_and_each_corpus(audits):
    (found,) = audits.first["consequences"]
    assert [mask["label"] for mask in found["masks"]] == ["all data", "resample 0", "resample 1", "wiki", "code"]
    whole, *others = found["masks"]
    # One accuracy of the task, though it has two, and no bits per byte.
    assert whole["damage"].keys() == {"log_perplexity/wiki", "log_perplexity/code", "choice/acc"}
    assert whole["agreement"] == 1 and all(metric["value"] == 0 for metric in whole["change"].values())
    rows = [row for row in audits.first["rows"]["corpora"] if (row["criterion"], row["ratio"]) == ("reap", 0.5)]
    assert rows[0]["names"] == ["wiki", "code"] and others[-1]["agreement"] < 1
    damage = [mask["damage"]["log_perplexity/wiki"]["value"] for mask in found["masks"]]
    for mask, cost in zip(found["masks"], damage, strict=True):
        assert mask["change"]["log_perplexity/wiki"]["value"] == pytest.approx(cost - damage[0])
    reports = [one["of"] for one in audits.first["stages"]["evaluate"]["artifacts"]]
    assert reports == ["base", *(f"reap 0.5 {mask['label']}" for mask in found["masks"])]


def test_audit_is_remembered_with_its_numbers_and_its_report(audits):
    client = MlflowClient(f"sqlite:///{audits.project}/.moeprune/mlflow.db")
    run = client.get_run(audits.first["run_id"])
    assert run.info.status == "FINISHED" and run.data.tags["kind"] == "audit"
    (row,) = [
        row
        for row in audits.first["rows"]["masks"]
        if (row["scope"], row["criterion"], row["ratio"]) == ("all corpora", "reap", 0.5)
    ]
    metrics = run.data.metrics
    assert metrics["audit/reap/0.5/all corpora/stability"] == row["index"]
    assert metrics["audit/reap/0.5/all corpora/stability_halves"] == row["halves"]
    assert metrics["audit/reap/0.5/consequence/spread"] == audits.first["consequences"][0]["spread"]
    kept = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "summary.txt", "recipe.yaml"} <= kept
    assert run.data.params["audit.resamples"] == "60"
    cost = audits.first["consequences"][0]["masks"][3]["damage"]
    measured = [metric["value"] for name, metric in cost.items() if name.startswith("log_perplexity/")]
    assert metrics["audit/reap/0.5/consequence/wiki/log_perplexity"] == pytest.approx(sum(measured) / len(measured))


def test_audit_is_linked_to_its_model_its_corpora_and_its_artifacts(audits):
    client = MlflowClient(f"sqlite:///{audits.project}/.moeprune/mlflow.db")
    run = client.get_run(audits.first["run_id"])
    stages = {f"{word} {one['of']}".strip(): one for word, stage in audits.first["stages"].items()
              for one in stage["artifacts"]}  # fmt: skip
    tags = run.data.tags
    assert tags["artifact.audit"] == stages["audit"]["path"]
    assert tags["artifact.observe wiki seeds 1"] == stages["observe wiki seeds 1"]["path"]
    assert {tag for tag in tags if tag.startswith("dvc.")} >= {f"dvc.calibrate {name}" for name in sample.CORPORA}
    (model,) = run.inputs.model_inputs
    digest = json.loads((audits.project / ".moeprune" / stages["download"]["path"] / "manifest.json").read_text())[
        "digest"
    ]
    assert client.get_logged_model(model.model_id).params["sha256"] == digest
    report = json.loads((audits.project / ".moeprune" / stages["evaluate base"]["path"] / "report.json").read_text())
    assert run.data.metrics["base/perplexity/wiki"] == report["metrics"]["perplexity/wiki"]["value"]


def test_audit_report_is_written_where_asked_and_is_the_same(audits):
    own, other = (Path(answer["report"]) for answer in (audits.first, audits.second))
    assert own.parent == audits.project / ".moeprune/reports" and other == audits.project / "elsewhere/audit.html"
    assert own.read_bytes() == other.read_bytes()
    less = Path(audits.less["report"])
    assert less.parent == own.parent and less != own and less.stat().st_size != own.stat().st_size
    page = own.read_text()
    assert audits.first["summary"].split("`")[1] in page and "Few chunks" in page


def test_audit_shows_its_masks_and_says_it_in_words(audits):
    assert "masks of all corpora" in audits.said and "unified a=0" in audits.said
    assert audits.first["summary"].split(". ")[0] in audits.said
    assert f"report: {Path('.moeprune/reports') / Path(audits.first['report']).name}" in audits.said


def test_browser_opens_the_page_that_the_command_wrote(audits, tmp_path):
    path = Path(audits.first["report"])
    with browser(tmp_path) as window:
        window.open(path)
        assert window.messages() == [] and window.requests() == [path.as_uri()]
        assert window.run("return document.body.dataset.drawn") == str(path.read_text().count('class="plot"'))
        titles = [title.text for title in window.find("h2")]
        assert "Effect on perplexity and accuracy" in titles
        assert "Other seeds and sequence lengths" in titles
        assert window.run("return document.documentElement.scrollWidth") <= 1280 and window.crowded() == []
        image = Image.open(io.BytesIO(window.screenshot())).convert("RGB")
        assert image.width == 1280 and len(image.getcolors(1 << 24) or ()) > 1000


@pytest.fixture
def refuse(project: Path, moeprune) -> Callable[..., str]:
    """The one line with which an audit's recipe is refused before any work."""

    def call(*words: str, **sections: dict[str, Any] | None) -> str:
        answer = moeprune("audit", write(project, **sections), *words, "--json")
        assert answer.status == 2 and answer.json["status"] == "bad_input", answer.err
        assert not (project / ".moeprune/download").exists() and not (project / ".moeprune/calibrate").exists()
        return str(answer.json["error"])

    return call


def test_audit_that_cannot_work_is_refused_before_any_work(refuse):
    fewest = refuse(audit={"ratios": [0.25, 0.9], "consequence": None}, evaluate=None)
    assert "mask.ratio 0.9" in fewest and "the nearest that works is 0.75" in fewest
    assert "no file sources/none.jsonl" in refuse("--set", "calibrate.corpora=[{name: a, source: sources/none.jsonl}]")
    assert "--report page.pdf" in refuse("--report", "page.pdf")
    none = refuse(audit={"ratios": [0.1, 0.25], "consequence": None}, evaluate=None)
    assert "audit.ratios: 0.1 of 8 experts removes none: the least that removes one is 0.125" in none


def test_audit_that_finds_no_room_for_every_observation_is_refused(project, moeprune, monkeypatch):
    recipe = write(project, audit={"consequence": None}, evaluate=None)
    alone = read_audit(Path(recipe), ("audit.seeds=[]", "audit.sequence_lengths=[]"))
    needed: list[int] = []
    monkeypatch.setattr(Store, "check_space", lambda _, size: needed.append(size))
    check(alone, store := Store(project / ".moeprune"))
    one = needed[-1]
    check(read_audit(Path(recipe)), store)
    # Its own, another seed and another length; each keeps sums of 16 experts in 4 chunks, vectors of 32, and tokens.
    assert needed[-1] == 3 * one and one == 2 * 2 * 8 * (16 * (4 * 14 + 32) + 256)


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_command_for_other_recipes_names_the_one_for_audits(command, project, moeprune):
    answer = moeprune(command, write(project))
    assert answer.status == 2
    assert "params/audit.yaml: this is an audit" in answer.err and "`moeprune audit params/audit.yaml`" in answer.err


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"audit": None}, "audit: the section is missing"),
        ({"calibrate": {"chunks": 1}}, r"calibrate\.chunks: a corpus of one chunk cannot be resampled"),
        ({"evaluate": None}, r"audit\.consequence: nothing says what to measure: add the section evaluate"),
        ({"audit": {"consequence": None}}, "evaluate: no mask is to be measured"),
        ({"audit": {"criteria": ["mone"]}}, "'mone' reads the sums 'vectors'.*cannot be resampled"),
        ({"audit": {"gate_mode": "softmax_full"}}, r"observe\.gate_modes: score\.gate_mode is softmax_full"),
        ({"audit": {"weights": {"wiki": 1.0}}}, r"weights: give one for each of the corpora code, wiki"),
        ({"audit": {"resample": 5}}, r"audit\.resample.*did you mean 'resamples'"),
    ],
    ids=lambda given: "" if isinstance(given, str) else " ".join(given),
)
def test_audit_recipe_that_does_not_go_together_is_refused_by_name(sections, words, tmp_path):
    (tmp_path / "params").mkdir()
    path = tmp_path / write(tmp_path, **sections)
    with pytest.raises(BadInput, match=words):
        read_audit(path)
