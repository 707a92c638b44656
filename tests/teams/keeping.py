"""Thursday and Friday: a promotion, a page, a hand-over, a restore; an object that is lost, a store that is cleared."""

import re
from collections import Counter
from pathlib import Path

import boto3
from servers import BUCKET
from teams.colleagues import at_once
from teams.diary import Step
from teams.material import BASE, SMALL
from teams.scene import Scene, contents, found_in

TARGET = "owner/small"
STRANGER = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokens = AutoTokenizer.from_pretrained(sys.argv[1])("the river of a small town", return_tensors="pt")
with torch.no_grad():
    one, other = (AutoModelForCausalLM.from_pretrained(name).eval()(**tokens).logits for name in sys.argv[1:])
print(torch.equal(one, other))
"""


def promote(scene: Scene, step: Step) -> None:
    """The rules in the recipe refuse one model and let another one pass."""
    half, quarter = scene.swept("reap", 0.5).id[:8], scene.nightly.id[:8]
    step.holds("nothing is production", scene.records.alias(SMALL, "production"), None)
    refused, _ = at_once(
        lambda: scene.ana.run("moeprune", "promote", half, "--to", "production", status=2),
        lambda: scene.ana.run("moeprune", "promote", quarter, "--to", "production"),
    )
    step.holds("a model without half of its experts is refused in one line", len(refused.stderr.splitlines()), 1)
    told = found_in(refused.stderr, r"perplexity/wiki rises by \d+\.\d+%.*; at most")
    step.holds("which has the numbers", told)
    version = scene.records.alias(SMALL, "production")
    step.holds("one without a quarter becomes production", version and version["run_id"], scene.nightly.id)


def export(scene: Scene, step: Step) -> None:
    """The dashboard as one page."""
    runs = [scene.nightly, scene.swept("reap", 0.5)]
    words = [word for run in runs for word in ("--run", run.id)]
    said = scene.ana.run("moeprune", "dashboard", "--export", "week.html", *words).stdout
    page = (scene.ana.folder / "week.html").read_text()
    known = [run.id[:8] for run in (scene.nightly, *scene.sweep)]
    step.holds("it lists every run", [one for one in known if one not in page], [])
    digests = [stage.tags["digest"][:8] for run in runs for stage in scene.records.stages(run.id)]
    step.holds("it has every result of those compared", [one for one in digests if one not in page], [])
    step.holds("it forbids a browser to fetch anything", "default-src 'none'" in page.split("<body", 1)[0])
    (keeper,) = re.findall(r"kept by run ([0-9a-f]{32})", said)
    step.holds("the tracker keeps the same bytes", (scene.artifacts(keeper) / "week.html").read_text() == page)


def hand_over(scene: Scene, step: Step) -> None:
    """The model in production goes to the Hub, and somebody else loads it from there."""
    scene.ana.run("moeprune", "push", f"{SMALL}@production", TARGET)
    pushed = scene.hub.folder(TARGET, None)
    assert pushed
    folder, made = pushed[1], contents(scene.checkpoint(scene.nightly))
    del made["manifest.json"]
    step.holds("the Hub has the checkpoint's bytes", made.items() <= contents(folder).items())
    card = (folder / "README.md").read_text()
    named = [word for word in (f"base_model: {BASE}", "license: apache-2.0") if word not in card]
    step.holds("the card names base and licence", named, [])
    step.holds("the repository is private", TARGET in scene.hub.private)
    stranger = scene.machine("stranger", environ=scene.of_hub)
    said = stranger.run("python", "-c", STRANGER, TARGET, str(scene.checkpoint(scene.nightly))).stdout
    step.holds("transformers loads it from there, and its logits are the store's", said.split()[-1], "True")


def restore(scene: Scene, step: Step) -> None:
    """A new machine has a clone, the addresses, and nothing else."""
    fresh = scene.machine("fresh", scene.origin, scene.of_servers)
    had = [name for name in (".moeprune", "data") if (fresh.folder / name).exists()]
    step.holds("a fresh clone has neither store nor data", had, [])
    done = fresh.moeprune("restore", f"{SMALL}@production")
    checkpoint = contents(fresh.folder / done["checkpoint"])
    step.holds("the checkpoint is bit for bit the same", checkpoint, contents(scene.checkpoint(scene.nightly)))
    ways = Counter(one["how"] for one in done["results"])
    step.holds("corpora and mask came from DVC", ways["from DVC"], len(scene.versions(scene.nightly)))
    here, there = (contents(one.folder / "data") for one in (fresh, scene.workers[0]))
    step.holds("and are those that the worker has", here.items() <= there.items())


def verify(scene: Scene, step: Step) -> None:
    """An object is deleted in the S3 store; verify finds it, and what it says mends it."""
    run = scene.nightly.id[:8]
    _delete(scene, scene.dvc_object(scene.versions(scene.nightly)["mask"]))
    found = scene.ana.moeprune("verify", run, status=1)
    faults = [thing for thing in found["things"] if thing["state"] != "ok"]
    named = [(thing["where"], thing["name"], thing["state"]) for thing in faults]
    step.holds("the mask is missing in DVC, and nothing else is", named, [("DVC", "mask", "missing")])
    mends = re.findall(r"moeprune [a-z]+ [^\s,:]+", faults[0]["mend"])
    step.holds("it says how to mend that", [mend.split()[1] for mend in mends], ["restore", "run"])
    for mend in mends:
        scene.workers[0].run(*mend.split())
    step.holds("which mends it", scene.ana.moeprune("verify", run)["status"], "done")


def _delete(scene: Scene, path: Path) -> None:
    """Have the S3 store delete an object."""
    keys = {name.lower(): scene.team.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    client = boto3.client("s3", endpoint_url=scene.team.s3.endpoint, region_name="us-east-1", **keys)
    client.delete_object(Bucket=BUCKET, Key=str(path.relative_to(scene.team.s3.folder / BUCKET)))


def collect(scene: Scene, step: Step) -> None:
    """The store is cleared of all that nothing needs."""
    ana, kept, gone = scene.ana, scene.swept("reap", 0.5), scene.swept("frequency", 0.25)
    ana.run("moeprune", "runs", "keep", kept.id[:8])
    stays = {path: contents(path) for path in (scene.checkpoint(scene.nightly), scene.checkpoint(kept))}
    lost, before = scene.checkpoint(gone), contents(scene.checkpoint(gone))
    # What is needed takes more than nothing, which is the budget: hence exit status 1.
    would = ana.moeprune("gc", "--budget", "0B", status=1)
    step.holds("a dry run removes nothing", contents(lost), before)
    done = ana.moeprune("gc", "--budget", "0B", "--delete", status=1)
    announced, removed = (sorted(item["path"] for item in found["items"]) for found in (would, done))
    step.holds("what was announced is removed", removed, announced)
    step.holds("and with it a checkpoint that nothing needs", lost.exists(), False)
    step.holds("production and a kept run stay as they are", {path: contents(path) for path in stays}, stays)
    reasons = " ".join(done["stays"])
    step.holds("and why is said", f"{SMALL}@" in reasons and f"kept run {kept.id[:8]}" in reasons)
    ana.moeprune("restore", gone.id[:8])
    step.holds("what went is restored, bit for bit", contents(lost), before)
