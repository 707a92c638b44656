"""A team's project after a run, with a DVC remote, and a fresh clone of it that has nothing but what git brings."""

import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import sample
import yaml

from tasks import versioning


@dataclass(frozen=True)
class Team:
    """The project in which a run was done, and a clone on what might be another machine."""

    project: Path
    clone: Path
    remote: Path
    """DVC's."""
    run: str

    @property
    def tracker(self) -> str:
        """What the clone sets as MLFLOW_TRACKING_URI."""
        return f"sqlite:///{self.project}/.moeprune/mlflow.db"

    def lose_dvc(self) -> None:
        """Remove what DVC has, but for the copies in the project's workspace."""
        shutil.rmtree(self.remote)
        shutil.rmtree(self.project / ".dvc/cache")


def copy_project(source: Path, target: Path) -> Path:
    """A copy with its store, whose tracker has its own artifacts rather than those of the original."""
    shutil.copytree(source, target)
    with sqlite3.connect(target / ".moeprune/mlflow.db") as database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
        ):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(source), str(target)))
    database.close()
    return target


def share(project: Path, folder: Path, run: str) -> Team:
    """Push a project's data to a remote of the team, commit all, and clone it."""
    remote = folder / "remote"
    config = project / ".dvc/config"
    config.write_text(f"{config.read_text()}    remote = team\n['remote \"team\"']\n    url = {remote}\n")
    assert versioning.push(project)
    sample.git(project, "add", "--all")
    sample.git(project, "commit", "--quiet", "--message", "a run")
    sample.git(folder, "clone", "--quiet", str(project), "clone")
    return Team(project, folder / "clone", remote, run)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip_a_byte(path: Path) -> None:
    """Change one byte in the middle of a file, whatever it may be linked to."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def sparse_recipe(project: Path) -> str:
    """A recipe whose mask is not bits but a rule, and whose model is trained afterwards."""
    content = yaml.safe_load((project / "params/quick.yaml").read_text())
    content |= {"score": {"criterion": "wanda"}, "mask": {"sparsity": 0.5}, "distill": {"epochs": 1, "batch_size": 8}}
    content["observe"]["sums"] = ["core", "inputs"]
    (project / "params/sparse.yaml").write_text(yaml.safe_dump(content))
    return "params/sparse.yaml"
