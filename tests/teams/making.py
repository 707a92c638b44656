"""Monday to Wednesday: a project, a schedule that fires, a worker elsewhere, an audit beside a sweep."""

import hashlib
import re
import shutil
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import team_page
from teams.colleagues import ROOT, Machine, at_once
from teams.diary import Step
from teams.records import wait
from teams.scene import AUDIT, PRUNE, SWEEP, Scene, contents

AT_NIGHT, SOON = '{cron: "0 2 * * *", timezone: UTC, active: true}', "{interval: 15, active: false}"
"""As prefect.yaml has it, and for a night that is not waited for: a switch on Prefect's page lets it begin."""


def set_up(scene: Scene, step: Step) -> None:
    """Ana makes the project, names DVC's remote in it, shares it, and deploys its flows."""
    ana = scene.ana
    ana.run("moeprune", "init")
    shutil.copytree(scene.folder / "prepared", ana.folder, dirs_exist_ok=True)
    for line in team_page.commands("DVC's remote").splitlines():
        ana.run(*line.replace("http://127.0.0.1:9000", scene.team.s3.endpoint).split())
    shutil.copy(ROOT / "prefect.yaml", ana.folder)
    _reschedule(ana.folder, AT_NIGHT, SOON)
    ana.run("git", "init", "--quiet", "--bare", str(scene.origin))
    ana.run("git", "remote", "add", "origin", str(scene.origin))
    _share(ana, ".")
    examined, deployed = at_once(lambda: ana.moeprune("doctor"), lambda: ana.run("moeprune", "deploy"))
    findings = {one["subject"]: one["health"] for one in examined["findings"]}
    well = ("git", "DVC", "DVC remote", "Prefect", "MLflow", "artifacts")
    step.holds("doctor finds the project and all servers well", [findings[one] for one in well], ["ok"] * len(well))
    step.holds("three deployments are registered", deployed.stdout.count("registered"), 3)


def fire(scene: Scene, step: Step) -> None:
    """The schedule fires, the first worker does what it says, and the schedule is set back to the night."""
    worker, _ = scene.workers
    with worker.working():
        scene.records.switch(PRUNE, True)
        flow_run = wait(lambda: scene.records.flow_runs(PRUNE, "PENDING", "RUNNING", "COMPLETED"))[0]
        scene.records.switch(PRUNE, False)  # before the next one is due
        _reschedule(scene.ana.folder, SOON, AT_NIGHT)
        scene.ana.run("moeprune", "deploy")
        flow_run = scene.records.ended(flow_run["id"])
    step.holds("the clock began the run", flow_run["auto_scheduled"])
    step.holds("it ends well", flow_run["state_type"], "COMPLETED")
    due = wait(lambda: scene.records.flow_runs(PRUNE, "SCHEDULED"))  # the server makes them a while after
    times = {one["expected_start_time"][11:16] for one in due}
    step.holds("set back to the night, it is due at two", times, {"02:00"})
    run, stages = scene.nightly, scene.records.stages(scene.nightly.id)
    step.holds("MLflow has the run", (run.name, run.status), ("demo", "FINISHED"))
    step.holds("every stage was run", {stage.tags["cache"] for stage in stages}, {"miss"})
    there = {name: scene.dvc_object(md5) for name, md5 in scene.versions(run).items()}
    md5s = {name: hashlib.md5(path.read_bytes()).hexdigest() for name, path in there.items()}
    step.holds("the S3 store has corpora and mask by their md5", md5s, scene.versions(run))
    _share(worker, "data.dvc")


def again(scene: Scene, step: Step) -> None:
    """The first worker is gone; another one, in another folder, is asked for the same."""
    _, worker = scene.workers
    with worker.working():
        scene.ana.run("prefect", "deployment", "run", PRUNE, "--watch")
    stages = scene.records.stages(scene.records.runs("run")[-1].id)
    step.holds("no stage is run again", {stage.tags["cache"] for stage in stages}, {"hit"})
    first = {stage.name: stage.id for stage in scene.records.stages(scene.nightly.id)}
    step.holds("each names who made it", {stage.name: stage.tags["produced_by_run"] for stage in stages}, first)
    here, there = (contents(one.folder / "data") for one in scene.workers)
    step.holds("corpora and mask are the same here and there", here, there)
    stores = [one.folder for one in scene.workers if (one.folder / ".moeprune").exists()]
    step.holds("no machine has a store of its own", stores, [])


def together(scene: Scene, step: Step) -> None:
    """An audit and a sweep at once."""
    with ExitStack() as both:
        logs = [both.enter_context(one.working()) for one in scene.workers]
        asking = (partial(scene.ana.run, "prefect", "deployment", "run", name) for name in (AUDIT, SWEEP))
        asked = [uuid for one in at_once(*asking) for uuid in re.findall(r"UUID: (\S+)", one.stdout)]
        ended = [scene.records.ended(one) for one in asked]
    step.holds("both end well", [one["state_type"] for one in ended], ["COMPLETED"] * 2)
    (_, first), (second, _) = sorted((one["start_time"], one["end_time"]) for one in ended)
    step.holds("they were under way together", second < first)
    # Both may ask for the same one; the server gives it to one of them.
    began = [f"Flow run '{one['name']}' submitted to infrastructure" for one in ended]
    takers = [[log for log in logs if one in log.read_text()] for one in began]
    step.holds("each worker had one of them", takers in (_each(logs), _each(logs[::-1])))
    said = "".join(log.read_text().lower() for log in logs)
    step.holds("nothing was locked out", [word for word in ("is locked", "traceback") if word in said], [])


def left(scene: Scene, step: Step) -> None:
    """What the audit and the sweep have left in the tracker."""
    (audit,) = scene.records.runs("run", "tags.kind = 'audit'")
    step.holds("both recipes of the sweep are finished", [one.status for one in scene.sweep], ["FINISHED"] * 2)
    stages = [stage for one in (audit, *scene.sweep) for stage in scene.records.stages(one.id)]
    observed = {stage.tags["cache"] for stage in stages if stage.tags["stage"] == "observe"}
    step.holds("the model was observed for neither", observed, {"hit"})
    made = Counter(stage.tags["key"] for stage in stages if stage.tags["cache"] == "miss")
    step.holds("no stage was made twice", set(made.values()), {1})
    step.holds("the S3 store has the audit's report", (scene.artifacts(audit.id) / "report.html").is_file())


def _reschedule(project: Path, old: str, new: str) -> None:
    file = project / "prefect.yaml"
    text = file.read_text()
    assert old in text, f"{file} has no {old}"
    file.write_text(text.replace(old, new))


def _share(where: Machine, *paths: str) -> None:
    where.run("git", "add", *paths)
    where.run("git", "commit", "--quiet", "--message", "this week")
    where.run("git", "push", "--quiet", "origin", "HEAD")


def _each(logs: list[Path]) -> list[list[Path]]:
    return [[log] for log in logs]
