"""Where the week is played: the servers, the store that the team shares, its machines, and what is found on them."""

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hub import Hub
from servers import BUCKET, Team
from teams.colleagues import Machine, machine
from teams.records import Recorded, Records

TOKEN = "a-teams-token"
PRUNE, AUDIT, SWEEP = "prune/nightly", "audit/weekly", "sweep/on-demand"
"""The deployments of prefect.yaml."""


@dataclass
class Scene:
    """A folder in which all of it lies, and what the steps so far have left."""

    folder: Path
    team: Team
    hub: Hub
    machines: dict[str, Machine] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store, self.origin = self.folder / "shared", self.folder / "origin.git"
        # There is no Xet storage on the loopback Hub.
        self.of_hub = {"HF_ENDPOINT": self.hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        self.of_servers = self.team.environ | self.of_hub
        self.of_all = self.of_servers | {"MOEPRUNE_STORE": str(self.store)}

    def machine(self, name: str, origin: Path | None = None, environ: dict[str, str] | None = None) -> Machine:
        """A machine with this environment, that of a member who shares the store unless told; made if it is new."""
        if name not in self.machines:
            self.machines[name] = machine(self.folder, name, environ or self.of_all, origin)
        return self.machines[name]

    @property
    def ana(self) -> Machine:
        """A member's."""
        return self.machine("ana")

    @property
    def workers(self) -> tuple[Machine, Machine]:
        """Two machines on which workers run."""
        return self.machine("one", self.origin), self.machine("two", self.origin)

    @cached_property
    def records(self) -> Records:
        """What the servers have on record."""
        return Records(self.team.prefect, self.team.mlflow)

    @cached_property
    def nightly(self) -> Recorded:
        """The run that the schedule began."""
        return self.records.runs("run")[0]

    @cached_property
    def sweep(self) -> list[Recorded]:
        """The runs of the sweep."""
        (parent,) = self.records.runs("sweep")
        return self.records.runs("run", f"tags.`mlflow.parentRunId` = '{parent.id}'")

    def swept(self, criterion: str, ratio: float) -> Recorded:
        """The run of the sweep by this criterion and ratio."""
        wanted = {"score.criterion": criterion, "mask.ratio": str(ratio)}
        (found,) = (run for run in self.sweep if wanted.items() <= run.params.items())
        return found

    def checkpoint(self, run: Recorded) -> Path:
        """The folder of the pruned checkpoint of a run, in the store that the team shares."""
        (stage,) = (one for one in self.records.stages(run.id) if one.tags["stage"] == "prune")
        return self.store / "prune" / stage.tags["key"]

    def versions(self, run: Recorded) -> dict[str, str]:
        """The md5 of what DVC has of a run, by stage."""
        found = ((stage.name, stage.tags.get("dvc.md5")) for stage in self.records.stages(run.id))
        return {name: md5 for name, md5 in found if md5}

    def dvc_object(self, md5: str) -> Path:
        """Where the S3 store has an object of DVC's remote."""
        return self.team.s3.folder / BUCKET / "dvc/files/md5" / md5[:2] / md5[2:]

    def artifacts(self, run: str) -> Path:
        """Where the S3 store has the files of a run of MLflow's."""
        (found,) = (self.team.s3.folder / BUCKET / "mlflow").glob(f"*/{run}/artifacts")
        return found


def contents(folder: Path) -> dict[str, str]:
    """The sha256 of all files below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def found_in(text: str, pattern: str) -> bool:
    """Whether a text has it."""
    return re.search(pattern, text) is not None
