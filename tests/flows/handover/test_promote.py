"""Promotions of real runs: by what is measured, into a registry that MLflow's own client reads."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
from commanded import run_in
from mlflow.tracking import MlflowClient
from pyarrow import parquet
from scipy import stats

from flows.upkeep.collect import collect
from tasks.registry import Registry

LAX = "promote={perplexity: {wiki: 0.5}, accuracy: {choice/acc: 0.5}}"
STRICT = "promote={perplexity: {wiki: 0.5, code: 0}, accuracy: {choice/acc: 0.5}}"
NAME = "model-pruned"


@pytest.fixture(scope="module")
def runs(finished, tmp_path_factory, server) -> tuple[Path, dict[str, str]]:
    """A project and its runs: "unruled" has no rules, "half" removes half, "strict" cannot keep to its rules."""
    project = tmp_path_factory.mktemp("promoting") / "project"
    shutil.copytree(finished[0], project)
    made = {
        "unruled": finished[1].json["run_id"],
        "lax": run_in(project, "params/whole.yaml", LAX),
        "half": run_in(project, "params/whole.yaml", LAX, "mask.ratio=0.5"),
        "strict": run_in(project, "params/whole.yaml", STRICT),
    }
    return project, made


@pytest.fixture
def made(runs, tmp_path, monkeypatch) -> dict[str, str]:
    """The runs' ids in a copy of the project that has promoted nothing; the working directory."""
    shutil.copytree(runs[0], tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return runs[1]


def client() -> MlflowClient:
    uri = f"sqlite:///{Path.cwd()}/.moeprune/mlflow.db"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def aliases() -> dict[str, int]:
    found = client().search_registered_models()
    return {name: int(number) for model in found for name, number in model.aliases.items()}


def samples(run: str, of: str) -> dict[int, dict[str, float]]:
    path = client().get_run(run).data.tags[f"artifact.evaluate {of}"]
    rows = parquet.read_table(f".moeprune/{path}/samples.parquet").to_pylist()
    return {row["id"]: row for row in rows if row["set"] == "wiki"}


def test_promotion_registers_the_checkpoint_and_judges_it_by_its_samples(made, moeprune):
    answer = moeprune("promote", made["lax"], "--to", "candidate", "--json")
    assert answer.status == 0, answer.err
    path = client().get_run(made["lax"]).data.tags["artifact.prune"]
    digest = json.loads(Path(f".moeprune/{path}/manifest.json").read_text())["digest"]
    version = client().get_model_version_by_alias(NAME, "candidate")
    assert int(version.version) == answer.json["version"] == 1 and version.run_id == made["lax"]
    assert version.tags["sha256"] == answer.json["digest"] == digest
    model = client().get_logged_model(version.source.removeprefix("models:/"))
    assert model.params["sha256"] == digest and model.tags["kind"] == "pruned"
    (wiki, choice) = answer.json["rules"]
    before, after = samples(made["lax"], "base"), samples(made["lax"], "pruned")
    shift = [after[one]["nll"] - before[one]["nll"] for one in before]
    tokens = [row["tokens"] for row in before.values()]
    ratio, n = sum(shift) / sum(tokens), len(shift)
    spread = sum((x - ratio * y) ** 2 for x, y in zip(shift, tokens, strict=True))
    error = math.sqrt(n / (n - 1) * spread) / sum(tokens)
    assert wiki["loss"] == pytest.approx(math.exp(ratio) - 1, rel=1e-6)
    assert wiki["worst"] == pytest.approx(math.exp(ratio + stats.t.ppf(0.975, n - 1) * error) - 1, rel=1e-3)
    assert (wiki["metric"], wiki["n"], choice["metric"], choice["n"]) == ("perplexity/wiki", n, "choice/acc", 24)
    assert f"{wiki['worst']:.2%}" in answer.out and "50.00%" in answer.out
    assert not Path("mlflow.db").exists(), "MLflow looked into its default database"


def test_alias_moves_from_one_model_to_the_next_and_back(made, moeprune):
    said = [moeprune("promote", made[name], "--to", "production", "--json") for name in ("lax", "half", "lax", "lax")]
    assert [answer.status for answer in said] == [0] * 4, [answer.err for answer in said]
    assert [(answer.json["version"], answer.json["before"]) for answer in said] == [(1, None), (2, 1), (1, 2), (1, 1)]
    assert "before it version 1" in said[1].out
    assert aliases() == {"production": 1} and len(client().search_model_versions()) == 2
    kept = json.loads(client().get_model_version(NAME, "2").tags["promoted.production"])
    assert kept["run"] == made["half"] and kept["verdicts"][0]["limit"] == 0.5
    assert client().get_run(made["half"]).data.tags["registry.production"] == f"{NAME}/2"


def test_promotion_tells_what_the_alias_named_at_the_last_and_marks_all_it_needs_as_used(made, moeprune, monkeypatch):
    assert moeprune("promote", made["lax"], "--to", "production").status == 0
    needed = {path for key, path in client().get_run(made["half"]).data.tags.items() if key.startswith("artifact.")}
    for path in needed:
        os.utime(f".moeprune/{path}/manifest.json", (0, 0))
    register = Registry.register

    def overtaken(*words):
        client().delete_registered_model_alias(NAME, "production")
        return register(*words)

    monkeypatch.setattr(Registry, "register", overtaken)
    answer = moeprune("promote", made["half"], "--to", "production", "--json")
    assert answer.status == 0 and answer.json["before"] is None
    assert json.loads(client().get_model_version(NAME, "2").tags["promoted.production"])["before"] is None
    assert needed and all(Path(f".moeprune/{path}/manifest.json").stat().st_mtime > 0 for path in needed)


def test_what_is_promoted_is_not_taken_by_a_gc_that_does_not_know_of_it_yet(made, moeprune, monkeypatch):
    register, gone = Registry.register, []

    def beside_gc(*words):
        gone.extend(collect(Path(".moeprune"), budget=0, delete=True).items)
        return register(*words)

    monkeypatch.setattr(Registry, "register", beside_gc)
    assert moeprune("promote", made["half"], "--to", "production").status == 0
    assert gone and Path(".moeprune", client().get_run(made["half"]).data.tags["artifact.prune"]).is_dir()


def test_alias_names_another_run_that_made_the_same_once_its_own_was_deleted(made, moeprune):
    assert moeprune("promote", made["lax"], "--to", "production").status == 0
    client().delete_run(made["lax"])
    answer = moeprune("promote", f"{NAME}@production", "--to", "candidate", "--json")
    assert answer.status == 2 and made["strict"][:8] in answer.err, "the newest of them, by whose rules it is judged"
    for name in ("strict", "unruled"):
        client().delete_run(made[name])
    answer = moeprune("export", f"{NAME}@production", "smaller")
    assert answer.status == 2 and answer.err.count("\n") == 1
    assert f"{NAME} version 1: its run {made['lax'][:8]} was deleted" in answer.err


def test_candidate_is_promoted_by_its_name_in_the_registry(made, moeprune):
    assert moeprune("promote", made["half"][:12], "--to", "candidate").status == 0
    answer = moeprune("promote", f"{NAME}@candidate", "--to", "production", "--json")
    assert answer.status == 0 and answer.json["run_id"] == made["half"]
    assert aliases() == {"candidate": 1, "production": 1}
    answer = moeprune("promote", f"{NAME}@champion", "--to", "production")
    assert answer.status == 2 and answer.err.count("\n") == 1
    assert f"there is {NAME}@candidate, {NAME}@production" in answer.err


def test_model_that_breaks_a_rule_is_refused_with_the_numbers_and_the_alias_stays(made, moeprune):
    assert moeprune("promote", made["lax"], "--to", "production").status == 0
    answer = moeprune("promote", made["strict"], "--to", "production")
    assert answer.status == 2 and answer.err.count("\n") == 1
    lost = moeprune("run", "params/whole.yaml", "--set", STRICT, "--json").json["metrics"]["delta"][
        "log_perplexity/code"
    ]
    worst = math.exp(lost["value"] + stats.t.ppf(0.975, lost["n"] - 1) * lost["stderr"]) - 1
    assert f"perplexity/code rises by {math.exp(lost['value']) - 1:.2%} on {lost['n']}" in answer.err
    assert f"its 95% interval ends at {worst:.2%}; at most 0.00% may be lost" in answer.err
    assert "perplexity/wiki" not in answer.err and f"production stays with {NAME} version 1" in answer.err
    assert aliases() == {"production": 1} and len(client().search_model_versions()) == 1
    answer = moeprune("promote", made["strict"], "--to", "candidate")
    assert answer.status == 2 and "nothing is candidate yet" in answer.err


def test_rules_may_name_the_model_and_look_at_values_alone(made, moeprune):
    changed = STRICT.replace("code: 0}", "code: 0.05}").replace("}}", "}, judge: value, model: team-small}")
    run = run_in(Path.cwd(), "params/whole.yaml", changed)
    answer = moeprune("promote", run, "--to", "candidate", "--json")
    assert answer.status == 0, answer.err
    assert answer.json["model"] == "team-small" and {one["judged"] for one in answer.json["rules"]} == {"value"}
    assert "the value, whatever its error" in answer.out


def test_run_without_rules_or_of_no_known_id_is_refused(made, moeprune):
    for name, words in {
        made["unruled"]: "has no rules to be judged by: add the section promote",
        "0123456789": "is not in sqlite",
        "no-run": "is no MLflow run id",
    }.items():
        answer = moeprune("promote", name, "--to", "production")
        assert answer.status == 2 and words in answer.err and answer.err.count("\n") == 1
    assert aliases() == {}


@pytest.mark.parametrize("harm", ["lost", "changed"])
def test_checkpoint_that_is_not_whole_in_the_store_is_not_promoted(harm: str, made, moeprune):
    folder = Path(".moeprune", client().get_run(made["lax"]).data.tags["artifact.prune"])
    if harm == "lost":
        shutil.rmtree(folder)
    else:
        (folder / "config.json").write_text("{}")
    answer = moeprune("promote", made["lax"], "--to", "production")
    assert answer.status == 2 and f"moeprune restore {made['lax'][:8]}" in answer.err and answer.err.count("\n") == 1
    assert aliases() == {}


def test_report_of_another_checkpoint_does_not_count(made, moeprune):
    run = run_in(Path.cwd(), "params/whole.yaml", LAX)
    experiment = client().get_run(run).info.experiment_id
    (stage,) = client().search_runs(
        [experiment], f"tags.`mlflow.parentRunId` = '{run}' AND tags.stage = 'evaluate' AND tags.of = 'pruned'"
    )
    content = json.loads(Path(client().download_artifacts(stage.info.run_id, "report.json")).read_text())
    client().log_text(stage.info.run_id, json.dumps(content | {"checkpoint": "0" * 64}), "report.json")
    answer = moeprune("promote", run, "--to", "production")
    assert answer.status == 2 and "its report is of another checkpoint" in answer.err and aliases() == {}
