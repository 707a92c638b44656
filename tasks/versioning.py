"""DVC versions the bytes of corpora and masks: files under `data/`, recorded in `data.dvc`.

The store's artifact is canonical; what lies under `data/` is a copy, named once and kept. Files are added one by one:
that changes their own entry in `data.dvc` and nothing else, so neither a file that is missing from the workspace nor
one that somebody edited can alter what is recorded. `dvc` is imported here only.
"""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.fs import FileSystem
from dvc.lock import LockError
from dvc.output import Output
from dvc.repo import Repo, lock_repo
from dvc_data.hashfile.checkout import checkout
from dvc_data.hashfile.hash import hash_file
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.transfer import transfer
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError
from filelock import FileLock

from moeprune.errors import BadInput
from tasks.reachable import check_address, without_password

DATA = "data"
RECORD = "data.dvc"
SHIPPED = Path("demo/remote")
"""The remote that comes with the repository; it is read, never written."""
ATTEMPTS = 20
"""Each waits the three seconds that DVC itself waits for its lock."""
QUIET = {"autostage": False, "analytics": False, "check_update": False}

os.environ.setdefault("DVC_NO_ANALYTICS", "1")
for _noisy in ("dvc", "dvc_data", "dvc_objects"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)


@dataclass(frozen=True)
class Version:
    """A file as DVC knows it."""

    path: str
    """Relative to the project, `data/corpora/...`."""
    md5: str
    """Of this one file; what the tracker records and `restore` asks for."""
    bytes: int


@dataclass(frozen=True)
class Survey:
    """Where objects are to be had."""

    places: Mapping[str, frozenset[str]]
    """By md5: "cache", and names of remotes."""
    team: str | None
    """The remote of the team, if it has set one."""
    silent: Mapping[str, str]
    """Remotes that could not be asked, and why."""


def init(project: Path) -> bool:
    """Make `project` a DVC project, quiet about itself and hands off the git index. False: it is one already.

    Outside git it works as well, without older revisions.
    """
    if _is_project(project):
        return False
    inside_git = _git(project, "rev-parse", "--is-inside-work-tree") is not None
    with (
        Repo.init(str(project), no_scm=not inside_git, subdir=inside_git and not (project / ".git").exists()) as repo,
        repo.config.edit() as config,
    ):
        config["core"].update(QUIET)
    return True


def register(file: Path, name: str, project: Path) -> Version:
    """Have `data/<name>` be `file` and `data.dvc` record it; done already, nothing is written.

    Whatever else `data.dvc` lists and the workspace lacks is brought back first. Raises BadInput if that is not to be
    had, or if `project` is no DVC project.
    """
    with _repository(project) as repo:
        _complete(repo)
        target = Path(repo.root_dir, DATA, name)
        md5 = _md5(repo, file)
        if not target.is_file() or _md5(repo, target) != md5:
            _copy(file, target)
        if _recorded(repo).get(name) != md5:
            # The first file makes data.dvc; from then on each is added alone.
            repo.add(str(target if _output(repo) else Path(repo.root_dir, DATA)))
        return Version(path=f"{DATA}/{name}", md5=_recorded(repo)[name], bytes=target.stat().st_size)


def pull(project: Path) -> list[str]:
    """Bring back what `data.dvc` lists and the workspace lacks; files that are there are left as they are.

    Returns the names brought back, relative to `data/`. Raises BadInput if one is not to be had.
    """
    with _repository(project) as repo:
        return _complete(repo)


def restore(md5: str, project: Path) -> Path:
    """The file with this md5 under `data/`, brought back by DVC if it is not there.

    It is looked for in `data.dvc`, in what the cache remembers and in all commits. Where its name has since got other
    content, that stays and the file lies beside it with its md5 in the name. Raises BadInput if it is not to be had.
    """
    with _repository(project) as repo:
        name = next((name for tree in _trees(repo) for name, known in tree.items() if known == md5), f"restored/{md5}")
        target = Path(repo.root_dir, DATA, name)
        if target.exists() and _md5(repo, target) != md5:
            target = target.with_name(f"{target.stem}.{md5[:8]}{target.suffix}")
        if not target.exists():
            if _fetch(repo, [md5]):
                raise BadInput(
                    f"md5 {md5} is neither in the DVC cache of {project} nor in {_remotes_text(repo)}: "
                    "have whoever registered it run `dvc push`, or run its recipe again"
                )
            _check_out(repo, md5, target)
        return target


def survey(md5s: Iterable[str], project: Path, read: bool = False) -> Survey:
    """Where each of these objects is to be had. Nothing is fetched or changed, and no lock is waited for.

    What is in the cache is hashed. Remotes are asked for names only, unless their objects are to be `read` and hashed.
    Raises BadInput if `project` is no DVC project.
    """
    wanted, silent = sorted(set(md5s)), {}
    _require_project(project)
    with Repo(str(project), config={"core": QUIET}) as repo:
        places = {md5: {"cache"} if _intact(repo.cache.local, md5) else set() for md5 in wanted}
        for remote in _remotes(repo) if wanted else ():
            try:
                objects = _objects(repo, remote)
                for md5 in objects.list_oids_exists(wanted):
                    if not read or _intact(objects, md5):
                        places[md5].add(remote)
            except Exception as error:  # a remote fails in as many ways as there are clouds
                silent[remote] = without_password(" ".join(str(error).split())) or type(error).__name__
        try:
            team = _team_remote(repo)
        except BadInput as error:
            team = repo.config["core"]["remote"]
            silent[team] = str(error)
        return Survey({md5: frozenset(found) for md5, found in places.items()}, team, silent)


def _intact(objects: Any, md5: str) -> bool:
    held = objects.get(md5)
    try:
        return bool(hash_file(held.path, objects.fs, "md5")[1].value == md5)
    except FileNotFoundError:
        return False


def push(project: Path) -> bool:
    """Push what `data.dvc` lists to the team's remote. False: the team has set none, so nothing was done."""
    with _repository(project) as repo:
        remote = _team_remote(repo)
        if remote is None or _output(repo) is None:
            return False
        _fill_cache(repo)
        try:
            repo.push(targets=[str(Path(repo.root_dir, RECORD))])
            _push_lost(repo, remote)
        except Exception as error:  # a remote fails in as many ways as there are clouds
            url = without_password(repo.config["remote"][remote]["url"])
            reason = without_password(str(error))
            raise BadInput(f"DVC remote '{remote}' ({url}): {reason}: check it with `dvc push`") from error
        return True


def _push_lost(repo: Repo, remote: str) -> None:
    """Send what the remote lacks of the listed files: where it has their list, DVC takes it to have them all."""
    objects, md5s = repo.cloud.get_remote_odb(remote), sorted(set(_recorded(repo).values()))
    lost = set(md5s) - set(objects.list_oids_exists(md5s))
    if lost:
        transfer(repo.cache.local, objects, {HashInfo("md5", md5) for md5 in lost})


def reach(project: Path) -> str | None:
    """The address of the team's remote; None if the team has set none. Raises BadInput if it cannot be used.

    Nothing is written, and no lock is waited for.
    """
    _require_project(project)
    with Repo(str(project), config={"core": QUIET}) as repo:
        remote = _team_remote(repo)
        if remote is None:
            return None
        url = without_password(repo.config["remote"][remote]["url"])
        try:
            objects = _objects(repo, remote)
            _check_root(objects.fs, objects.path)
        except Exception as error:  # a remote fails in as many ways as there are clouds
            reason = without_password(" ".join(str(error).split())) or type(error).__name__
            mend = "mend its address (`dvc remote modify`), the keys in the environment, or that server"
            raise BadInput(f"DVC remote '{remote}' ({url}): {reason}: {mend}") from error
        return url


def _objects(repo: Repo, remote: str) -> Any:
    """What a remote holds. Raises OSError if nobody listens there: clients of clouds would try for minutes."""
    if address := _endpoint(repo.config["remote"][remote]):
        check_address(address)
    return repo.cloud.get_remote_odb(remote)


def _endpoint(settings: dict[str, str]) -> str | None:
    """Where a remote's server is, if it is not the cloud's own."""
    if settings["url"].startswith("s3://"):
        named = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
        return settings.get("endpointurl") or next(filter(None, named), None)
    return settings["url"] if settings["url"].startswith("http") else None


def _check_root(fs: FileSystem, path: str) -> None:
    """Raise OSError if nothing can be put there; what clouds call folders are not there before their first file."""
    if fs.exists(path):
        return
    if fs.protocol == "local":
        above = next(folder for folder in Path(path).parents if folder.exists())
        if not (above.is_dir() and os.access(above, os.W_OK)):
            raise PermissionError(f"nothing can be put into {above}")
    elif "://" in path:
        return  # an http server that answers, without what would be the folder of its first file
    elif "/" in path and not fs.exists(path.split("/")[0]):
        raise FileNotFoundError(f"there is no bucket '{path.split('/')[0]}'")


def _team_remote(repo: Repo) -> str | None:
    """The remote that is pushed to, if a team has set one. Raises BadInput if it is set by its name alone."""
    remote: str | None = repo.config["core"].get("remote")
    if remote is None:
        return None
    if remote not in repo.config["remote"]:
        raise BadInput(
            f"{repo.root_dir}/.dvc/config: core.remote names '{remote}', of which no address is known here: "
            f"`dvc remote add {remote} ADDRESS`"
        )
    shipped = Path(repo.root_dir, SHIPPED).resolve()
    return None if Path(repo.config["remote"][remote]["url"]).resolve() == shipped else remote


def changed(project: Path) -> bool:
    """Whether `data.dvc` differs from the last commit; False outside git."""
    return bool(_git(project, "--no-optional-locks", "status", "--porcelain", "--", RECORD))


def _is_project(project: Path) -> bool:
    return (project / ".dvc" / "config").is_file()


def _require_project(project: Path) -> None:
    if not _is_project(project):
        raise BadInput(f"{project.absolute()} is not set up for DVC: run `moeprune init` there")


def _git(project: Path, *words: str) -> str | None:
    done = subprocess.run(["git", *words], cwd=project, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


@contextmanager
def _repository(project: Path) -> Iterator[Repo]:
    """The project's DVC repository, held alone: other runs and a user's own `dvc` are waited for."""
    _require_project(project)
    project = project.absolute()
    own = project / ".dvc" / "tmp" / "moeprune.lock"
    own.parent.mkdir(exist_ok=True)
    try:
        with FileLock(own), Repo(str(project), config={"core": QUIET}) as repo, ExitStack() as stack:
            _hold(repo, stack)
            yield repo
    except DvcException as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"{project / RECORD}: DVC says: {reason}: `dvc status` there shows what is wrong") from error


def _hold(repo: Repo, stack: ExitStack) -> None:
    for _ in range(ATTEMPTS):
        try:
            stack.enter_context(lock_repo(repo))
            return
        except LockError:
            continue
    raise BadInput(f"{repo.root_dir}: another `dvc` holds the repository: let it finish, then run again")


def _output(repo: Repo) -> Output | None:
    """What `data.dvc` records, or None without one."""
    record = str(Path(repo.root_dir, RECORD))
    if not repo.fs.exists(record):
        return None
    output: Output = repo.stage.load_one(record).outs[0]
    return output


def _recorded(repo: Repo) -> dict[str, str]:
    """Name and md5 of the files that `data.dvc` lists. Raises BadInput if the list itself is not to be had."""
    output = _output(repo)
    if output is None:
        return {}
    oid = str(output.hash_info.value)
    if _fetch(repo, [oid]):
        if output.workspace_status():
            raise BadInput(
                f"{Path(repo.root_dir, RECORD)} names the list {oid}, which is neither in the DVC cache nor in "
                f"{_remotes_text(repo)}: name the remote that has it (`dvc remote add`), have whoever committed "
                f"data.dvc run `dvc push`, or go back to an older data.dvc with git"
            )
        repo.add(output.fs_path)  # every listed file is in the workspace, unchanged: only the cache was lost
    return _names(repo, oid)


def _names(repo: Repo, oid: str) -> dict[str, str]:
    return {"/".join(key): str(info.value) for key, _, info in Tree.load(repo.cache.local, HashInfo("md5", oid))}


def _complete(repo: Repo) -> list[str]:
    data = Path(repo.root_dir, DATA)
    missing = {name: md5 for name, md5 in _recorded(repo).items() if not (data / name).exists()}
    _require(repo, missing)
    for name, md5 in missing.items():
        _check_out(repo, md5, data / name)
    return sorted(missing)


def _fill_cache(repo: Repo) -> None:
    """Have every listed file in the cache: DVC pushes what it finds there and is silent about the rest."""
    data = Path(repo.root_dir, DATA)
    missing = {name: md5 for name, md5 in _recorded(repo).items() if not _cached(repo, md5)}
    for name, md5 in missing.items():
        if (data / name).is_file() and _md5(repo, data / name) == md5:
            repo.add(str(data / name))
    _require(repo, missing)


def _require(repo: Repo, files: dict[str, str]) -> None:
    """Have these listed files in the cache; raise BadInput if neither it nor a remote has one."""
    lost = set(_fetch(repo, list(files.values())))
    if lost:
        names = [f"{DATA}/{name}" for name, md5 in files.items() if md5 in lost]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise BadInput(
            f"{Path(repo.root_dir, RECORD)} lists {', '.join(names[:3])}{more}, neither in the workspace, nor in the "
            f"DVC cache, nor in {_remotes_text(repo)}: name the remote that has it (`dvc remote add`), have whoever "
            "registered it run `dvc push`, or drop it with `dvc add data`"
        )


def _trees(repo: Repo) -> Iterator[dict[str, str]]:
    """What has been recorded, nearest first: now, in lists the cache holds, in any commit."""
    seen: set[str] = set()
    for lists in (_current_list, _cached_lists, _committed_lists):
        for oid in lists(repo):
            if oid not in seen and not _fetch(repo, [oid]):
                yield _names(repo, oid)
            seen.add(oid)


def _current_list(repo: Repo) -> list[str]:
    output = _output(repo)
    return [str(output.hash_info.value)] if output else []


def _cached_lists(repo: Repo) -> list[str]:
    return [oid for oid in repo.cache.local.all() if oid.endswith(".dir")]


def _committed_lists(repo: Repo) -> list[str]:
    # Gathered before any is fetched: meanwhile the repository, its remotes included, is that of an old commit.
    return [oid for _ in repo.brancher(all_commits=True, workspace=False) for oid in _current_list(repo)]


def _remotes(repo: Repo) -> list[str]:
    """The default first. The others count too: the demo's objects stay in the remote they came with."""
    default = repo.config["core"].get("remote")
    return sorted(repo.config["remote"], key=lambda name: (name != default, name))


def _remotes_text(repo: Repo) -> str:
    places = [f"{name} ({without_password(repo.config['remote'][name]['url'])})" for name in _remotes(repo)]
    return f"a remote: {', '.join(places)}" if places else "a remote (none is set)"


def _fetch(repo: Repo, md5s: list[str]) -> list[str]:
    """Have objects in the cache; returns those that neither it nor any remote has."""
    missing = [md5 for md5 in md5s if not _cached(repo, md5)]
    for remote in _remotes(repo):
        if not missing:
            break
        repo.config["remote"][remote]["verify"] = True  # else DVC takes whatever bytes a remote has under the name
        try:
            repo.cloud.pull([HashInfo("md5", md5) for md5 in missing], remote=remote)
        except Exception as error:  # a remote fails in as many ways as there are clouds; the next one may have it
            logging.getLogger("moeprune").warning("DVC remote '%s': %s", remote, error)
        missing = [md5 for md5 in missing if not _cached(repo, md5)]
    return missing


def _cached(repo: Repo, md5: str) -> bool:
    try:
        repo.cache.local.check(md5)
    except (FileNotFoundError, ObjectFormatError):
        return False
    return True


def _check_out(repo: Repo, md5: str, target: Path) -> None:
    """Put one object of the cache where no file is. `Repo.checkout` would drop all of `data/` if one file failed."""
    checkout(str(target), repo.fs, repo.cache.local.get(md5), repo.cache.local, state=repo.state)


def _md5(repo: Repo, file: Path) -> str:
    """A file's md5; DVC remembers it by the file's size and time of change."""
    return str(hash_file(str(file.absolute()), repo.fs, "md5", state=repo.state)[1].value)


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(file, new)
        new.replace(target)  # never through a link into DVC's cache
    finally:
        new.unlink(missing_ok=True)
