"""Whether a folder is a project: git, DVC, and the remote that keeps its corpora and masks."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from flows.doctor.health import Finding, fail, ok, refused, warn
from moeprune.errors import BadInput
from tasks.artifacts import Store, git_state


def git(store: Store) -> Iterator[Finding]:
    """The commit that runs are recorded with."""
    if shutil.which("git") is None:
        yield fail("git", "is not installed", "install it: `apt-get install git`")
        return
    state = git_state()
    commit = str(state["git_commit"])[:8]
    if state["git_dirty"] is None:
        yield warn("git", f"{Path.cwd()} is no repository: runs are recorded without a commit", "run `moeprune init`")
    elif state["git_commit"] is None:
        yield warn("git", "nothing is committed yet: runs are recorded without a commit", "commit the project")
    elif state["git_dirty"]:
        yield warn("git", f"at {commit} with changes, and so are runs recorded", "commit them")
    else:
        yield ok("git", f"at {commit}")


def dvc(store: Store) -> Iterator[Finding]:
    """The record of corpora and masks, and the remote they are pushed to."""
    from tasks import versioning

    project = Path.cwd()
    if not (project / ".dvc" / "config").is_file():
        yield fail("DVC", f"{project} is not set up", "run `moeprune init`")
        return
    if versioning.changed(project):
        mend = f"commit it: `git add {versioning.RECORD} && git commit`; on a machine that only works, leave it"
        yield warn("DVC", f"{versioning.RECORD} lists what is not committed", mend)
    else:
        yield ok("DVC", "set up")
    try:
        remote = versioning.reach(project)
    except BadInput as error:
        yield refused("DVC remote", error)
        return
    if remote is None:
        yield warn(
            "DVC remote",
            "none is set: corpora and masks stay on this machine",
            "name one: `dvc remote add --default team ADDRESS`",
        )
    else:
        yield ok("DVC remote", remote)
