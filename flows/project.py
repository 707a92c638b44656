"""Setting up a project: git, DVC, a first recipe and its schedule."""

import subprocess
from pathlib import Path

from tasks import versioning

FIRST = "params/first.yaml"
SCHEDULE = "prefect.yaml"
FILES = {
    FIRST: ("first.yaml", f"fill in the model and the corpora, then: moeprune plan {FIRST}"),
    SCHEDULE: ("first_prefect.yaml", f"a nightly run of {FIRST}, once it is registered: moeprune deploy"),
}
"""Files of a new project: what each is a copy of, and what is to be done with it."""


def init(folder: Path) -> list[str]:
    """Make what is missing and say what was made; what is there is left as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    said = []
    inside = subprocess.run(["git", "rev-parse", "--is-inside-work-tree"], cwd=folder, capture_output=True, check=False)
    if inside.returncode:
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        said.append("made a git repository")
    if not (folder / ".dvc").is_dir():
        versioning.init(folder)
        said.append("set up DVC for corpora and masks under data/")
    ignored = folder / ".gitignore"
    lines = ignored.read_text().splitlines() if ignored.is_file() else []
    missing = [line for line in ("/.moeprune/", "/data") if line not in lines]
    if missing:
        ignored.write_text("\n".join([*lines, *missing]) + "\n")
        said.append(f"added {' and '.join(missing)} to .gitignore")
    for name, (template, use) in FILES.items():
        written = folder / name
        if not written.exists():
            written.parent.mkdir(parents=True, exist_ok=True)
            written.write_text((Path(__file__).parent / template).read_text())
            said.append(f"wrote {written}: {use}")
    return said or ["everything is set up already"]
