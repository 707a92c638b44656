"""Whether this machine will do: versions, space, device; and in moeprune's own clone, what its tests need."""

import os
import platform
import re
import shutil
import stat
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import Specifier, SpecifierSet

from flows.doctor.health import Finding, fail, ok, warn
from tasks.artifacts import MANIFEST, Store

CLONE = Path(__file__).parents[2]
"""Where this code lies: moeprune's own clone, unless it was installed from a wheel."""
CONSTRAINTS = "constraints.txt"
LITTLE, SCARCE = 10e9, 1e9
"""Bytes free on the store's disk: below the first a model may not fit, below the second hardly anything does."""


def python(store: Store) -> Iterator[Finding]:
    """The interpreter."""
    ours, wanted = platform.python_version(), distribution("moeprune").metadata["Requires-Python"]
    if ours in SpecifierSet(wanted):
        yield ok("Python", ours)
    else:
        yield fail("Python", f"{ours} is not {wanted}", "make the environment again with such a Python")


def packages(store: Store) -> Iterator[Finding]:
    """What is installed, against what moeprune requires and against the versions it is tested with."""
    required = [Requirement(line) for line in distribution("moeprune").requires or ()]
    wrong = [
        f"{one.name} {found or 'is missing'} ({one.specifier})"
        for one in required
        if (one.marker is None or one.marker.evaluate({"extra": ""}))
        and ((found := _installed(one.name)) is None or not one.specifier.contains(found, prereleases=True))
    ]
    pins = _pins(CLONE / CONSTRAINTS)
    other = [
        f"{name} {found} ({pin})"
        for name, pin in pins.items()
        if (found := _installed(name)) and not Specifier(f"=={pin}").contains(found, prereleases=True)
    ]
    mend = f"pip install --constraint {CLONE / CONSTRAINTS} --editable {CLONE}" if pins else "pip install moeprune"
    if wrong:
        yield fail("packages", _listed(wrong), f"`{mend}`")
    elif other:
        yield warn("packages", f"not as tested: {_listed(other)}", f"`{mend}`")
    else:
        yield ok("packages", f"the {len(pins)} versions that are tested" if pins else "as required")


def store(store: Store) -> Iterator[Finding]:
    """Whether several users may use one store: each takes the locks and marks the results of the others."""
    places = (store.root, store.root / "locks", *store.root.glob("locks/*.lock"), *store.root.glob(f"*/*/{MANIFEST}"))
    there = [place for place in places if os.path.exists(place)]
    if not there:
        return
    closed = [place for place in there if not os.access(place, os.W_OK, effective_ids=True)]
    if closed:
        yield fail(
            "store",
            f"this user cannot write {_listed([str(place) for place in closed])}",
            f"let {store.root} and all in it be of one group that may write it, and each user's umask be 002",
        )
    elif store.root.stat().st_mode & stat.S_ISGID and _umask() & stat.S_IWGRP:
        yield warn("store", f"others of its group cannot use what is made here: {store.root}", "set `umask 002`")
    else:
        yield ok("store", str(store.root))


def _umask() -> int:
    mask = os.umask(0o077)  # there is no other way to ask for it
    os.umask(mask)
    return mask


def disk(store: Store) -> Iterator[Finding]:
    """Room for results."""
    root = store.root.absolute()
    there = next(folder for folder in (root, *root.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    mend = "free some (`moeprune gc` shows what of the store would go), or set MOEPRUNE_STORE to another disk"
    what = f"{free / 1e9:.1f} GB free for {root}"
    if free < SCARCE:
        yield fail("disk", what, mend)
    elif free < LITTLE:
        yield warn("disk", f"{what}: `moeprune plan RECIPE` says how much a run needs", mend)
    else:
        yield ok("disk", what)


def device(store: Store) -> Iterator[Finding]:
    """What models are run on."""
    import torch

    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        names = f"{torch.accelerator.device_count()} of {kind}"
        if torch.cuda.is_available():
            one = torch.cuda.get_device_properties(0)
            names = f"{names}, {one.name}, {one.total_memory / 1e9:.0f} GB"
        yield ok("device", names)
    elif shutil.which("nvidia-smi"):
        yield warn(
            "device",
            f"torch {torch.__version__} does not see the accelerator of this machine: models run on the CPU",
            "install the build of torch for its driver, see pytorch.org/get-started",
        )
    else:
        yield ok("device", f"no accelerator: the CPU, {torch.get_num_threads()} threads")


def tests(store: Store) -> Iterator[Finding]:
    """What moeprune's own tests need beside packages; asked in its clone only."""
    if not (CLONE / "tests").is_dir() or Path.cwd() != CLONE:
        return
    lack = "its tests are left out"
    if all(map(shutil.which, ("chromium", "chromedriver"))):
        yield ok("browser", "chromium")
    else:
        yield warn("browser", f"no chromium and chromedriver: {lack}", "`make browser`")
    if shutil.which("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        yield ok("PostgreSQL", "installed")
    else:
        yield warn("PostgreSQL", f"not installed: {lack}", "`make postgresql`")
    if not any(Path(folder).is_dir() for folder in ("/usr/share/fonts", "/usr/local/share/fonts")):
        yield warn("fonts", "none: pages are pictured without text", "`apt-get install fonts-dejavu-core`")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _pins(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    return dict(re.findall(r"^([\w.\-]+)==([^\s;#]+)", file.read_text(), re.MULTILINE))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"
