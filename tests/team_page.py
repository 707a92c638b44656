"""The commands of docs/team.md, as a reader copies them."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/team.md"


def commands(heading: str) -> str:
    """The shell commands under a heading."""
    found = re.search(rf"^#+ {re.escape(heading)}\n.*?^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found, f"{PAGE.name}: no commands under '{heading}'"
    return found[1]


def settings(heading: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What the commands under a heading export, as bash understands them in this environment and no other."""
    exports = "".join(line + "\n" for line in commands(heading).splitlines() if line.startswith("export "))
    done = subprocess.run(
        ["/bin/bash", "--noprofile", "--norc", "-euc", f"{exports}/usr/bin/env -0"],
        env=dict(environ), check=True, capture_output=True, text=True,
    )  # fmt: skip
    names = set(re.findall(r"(\w+)=", exports))
    return {
        name: value for name, _, value in (each.partition("=") for each in done.stdout.split("\0")) if name in names
    }


def command(heading: str) -> list[str]:
    """The last command under a heading."""
    return commands(heading).splitlines()[-1].split()


def name_remote(project: Path, endpoint: str, url: str = "s3://moeprune/dvc") -> None:
    """Name DVC's remote in a project as the page tells, but for the addresses."""
    text = commands("DVC's remote")
    for line in text.replace("http://127.0.0.1:9000", endpoint).replace("s3://moeprune/dvc", url).splitlines():
        subprocess.run([sys.executable, "-m", *line.split()], cwd=project, check=True, capture_output=True)
