"""DVC for real, in small git repositories of their own."""

import os
import shutil
import subprocess
import sys
import time
from functools import partial
from hashlib import md5
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from moeprune.errors import BadInput
from tasks import versioning
from tasks.versioning import Version

ROOT = Path(__file__).parents[2]
CORPUS = "corpora/wiki-1a2b3c4d.safetensors"
MASK = "masks/9f8e7d6c.json"


def md5_of(content: str) -> str:
    return md5(content.encode()).hexdigest()


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.org"]
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def commit(project: Path) -> None:
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "state")


def dvc(project: Path, *words: str) -> str:
    command = [sys.executable, "-m", "dvc", *words]
    return subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout


def listed(project: Path) -> set[str]:
    """What DVC's own command line finds in data.dvc."""
    return set(dvc(project, "ls", ".", "data", "--dvc-only", "--recursive").split())


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "--quiet")
    versioning.init(folder)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path / "store" / "tokens", "corpus")
    write(tmp_path / "store" / "mask", "mask")
    return tmp_path / "store"


@pytest.fixture
def clone(project: Path, store: Path, tmp_path: Path) -> Path:
    """A clone of a project whose objects lie in the remote it ships; it has neither data nor cache."""
    write(project / "data/sources/wiki.txt", "source")
    versioning.register(store / "tokens", CORPUS, project)
    config = project / ".dvc/config"
    config.write_text(f"{config.read_text()}    remote = demo\n['remote \"demo\"']\n    url = ../demo/remote\n")
    dvc(project, "push")
    commit(project)
    git(tmp_path, "clone", "--quiet", str(project), "clone")
    assert not (tmp_path / "clone/data").exists()
    return tmp_path / "clone"


def test_init_twice_leaves_the_first(project: Path) -> None:
    write(project / ".dvc/config", (project / ".dvc/config").read_text() + "[cache]\n    type = copy\n")
    assert versioning.init(project) is False
    assert "type = copy" in (project / ".dvc/config").read_text()


def test_init_below_a_git_repository_sees_its_commits(tmp_path: Path, store: Path) -> None:
    git(tmp_path, "init", "--quiet")
    project = tmp_path / "below"
    project.mkdir()
    assert versioning.init(project)
    versioning.register(store / "tokens", CORPUS, project)
    assert versioning.changed(project)
    commit(tmp_path)
    assert not versioning.changed(project)


def test_init_outside_git_still_registers(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    project = tmp_path / "plain"
    project.mkdir()
    versioning.init(project)
    assert versioning.register(store / "tokens", CORPUS, project).md5 == md5_of("corpus")
    assert versioning.changed(project) is False


def test_register_without_dvc_says_what_to_run(tmp_path: Path, store: Path) -> None:
    with pytest.raises(BadInput, match="moeprune init"):
        versioning.register(store / "tokens", CORPUS, tmp_path)


def test_register_a_file_is_recorded_by_its_own_md5(project: Path, store: Path) -> None:
    version = versioning.register(store / "tokens", CORPUS, project)
    assert version == Version(f"data/{CORPUS}", md5_of("corpus"), 6)
    assert (project / version.path).read_text() == "corpus"
    assert listed(project) == {CORPUS}
    assert (project / ".dvc/cache/files/md5" / version.md5[:2] / version.md5[2:]).read_text() == "corpus"


def test_register_leaves_git_to_the_user(project: Path, store: Path) -> None:
    commit(project)
    versioning.register(store / "tokens", CORPUS, project)
    assert git(project, "diff", "--cached", "--name-only") == ""
    assert versioning.changed(project)
    commit(project)
    assert not versioning.changed(project)
    assert git(project, "ls-files", "data") == ""


def test_register_again_writes_nothing_and_is_quick(project: Path, store: Path) -> None:
    first = versioning.register(store / "tokens", CORPUS, project)
    before = [(project / name).stat().st_mtime_ns for name in ("data.dvc", first.path)]
    started = time.process_time()
    assert versioning.register(store / "tokens", CORPUS, project) == first
    assert time.process_time() - started < 1
    assert [(project / name).stat().st_mtime_ns for name in ("data.dvc", first.path)] == before


def test_register_a_damaged_copy_is_replaced_without_touching_the_cache(project: Path, store: Path) -> None:
    first = versioning.register(store / "tokens", CORPUS, project)
    write(project / first.path, "damage")
    assert versioning.register(store / "tokens", CORPUS, project) == first
    assert (project / first.path).read_text() == "corpus"


def test_register_brings_back_deleted_files(project: Path, store: Path) -> None:
    versioning.register(store / "tokens", CORPUS, project)
    shutil.rmtree(project / "data/corpora")
    versioning.register(store / "mask", MASK, project)
    assert (project / "data" / CORPUS).read_text() == "corpus"
    assert listed(project) == {CORPUS, MASK}


def test_register_neither_records_nor_overwrites_an_edited_neighbour(project: Path, store: Path) -> None:
    versioning.register(store / "tokens", CORPUS, project)
    write(project / "data" / CORPUS, "edited by hand")
    versioning.register(store / "mask", MASK, project)
    assert (project / "data" / CORPUS).read_text() == "edited by hand"
    assert "modified" in dvc(project, "data", "status", "--granular")
    assert CORPUS in dvc(project, "data", "status", "--granular")


def test_register_in_a_fresh_clone_keeps_what_was_committed(clone: Path, store: Path) -> None:
    versioning.register(store / "mask", MASK, clone)
    assert listed(clone) == {"sources/wiki.txt", CORPUS, MASK}
    assert (clone / "data/sources/wiki.txt").read_text() == "source"


def test_register_with_committed_data_out_of_reach_refuses_and_changes_nothing(clone: Path, store: Path) -> None:
    shutil.rmtree(clone / "demo/remote")
    before = (clone / "data.dvc").read_text()
    with pytest.raises(BadInput, match=r"data\.dvc.*demo/remote.*dvc remote add"):
        versioning.register(store / "mask", MASK, clone)
    assert (clone / "data.dvc").read_text() == before


def test_register_with_one_object_lost_names_the_file(project: Path, store: Path) -> None:
    lost = versioning.register(store / "tokens", CORPUS, project)
    (project / ".dvc/cache/files/md5" / lost.md5[:2] / lost.md5[2:]).unlink()
    mine = write(project / "data/sources/mine.txt", "not yet registered")
    (project / lost.path).unlink()
    with pytest.raises(BadInput, match=CORPUS):
        versioning.register(store / "mask", MASK, project)
    assert mine.read_text() == "not yet registered"


def test_register_with_the_cache_deleted_makes_it_again_from_the_workspace(project: Path, store: Path) -> None:
    versioning.register(store / "tokens", CORPUS, project)
    shutil.rmtree(project / ".dvc/cache")
    versioning.register(store / "mask", MASK, project)
    assert listed(project) == {CORPUS, MASK}
    shutil.rmtree(project / "data")
    assert sorted(versioning.pull(project)) == [CORPUS, MASK]


def test_register_by_processes_at_once_all_succeed(project: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tasks import versioning\n"
        "for i in range(3):\n"
        "    name = f'{sys.argv[1]}{i}'; file = Path(sys.argv[2]) / name; file.write_text(name)\n"
        "    versioning.register(file, f'masks/{name}.json', Path(sys.argv[3]))\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", script, name, str(tmp_path), str(project)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for name in "abc"
    ]
    assert [worker.wait(300) for worker in workers] == [0, 0, 0]
    assert listed(project) == {f"masks/{name}{i}.json" for name in "abc" for i in range(3)}


def test_register_while_dvc_is_busy_waits_longer_than_dvc_would(project: Path, store: Path) -> None:
    holder = (
        "import sys, time, zc.lockfile as z; held = z.LockFile(sys.argv[1]); print('held', flush=True); time.sleep(5)"
    )
    busy = subprocess.Popen(
        [sys.executable, "-c", holder, str(project / ".dvc/tmp/lock")], stdout=subprocess.PIPE, text=True
    )
    assert busy.stdout and busy.stdout.readline() == "held\n"
    versioning.register(store / "tokens", CORPUS, project)
    assert busy.wait() == 0
    assert listed(project) == {CORPUS}


def test_register_data_that_git_tracks_says_so(project: Path, store: Path) -> None:
    write(project / "data/sources/wiki.txt", "source")
    commit(project)
    with pytest.raises(BadInput, match="git rm"):
        versioning.register(store / "tokens", CORPUS, project)


def test_pull_brings_a_clone_its_files_and_keeps_edits(clone: Path) -> None:
    write(clone / "data/sources/wiki.txt", "edited")
    assert versioning.pull(clone) == [CORPUS]
    assert (clone / "data" / CORPUS).read_text() == "corpus"
    assert (clone / "data/sources/wiki.txt").read_text() == "edited"
    assert versioning.pull(clone) == []


def test_pull_asks_the_other_remotes_where_the_default_lacks_it(clone: Path, tmp_path: Path) -> None:
    dvc(clone, "remote", "add", "--default", "team", str(tmp_path / "team"))
    assert versioning.pull(clone) == [CORPUS, "sources/wiki.txt"]


def test_restore_both_versions_of_a_corpus_by_md5_after_data_is_deleted(project: Path, store: Path) -> None:
    first = versioning.register(store / "tokens", CORPUS, project)
    commit(project)
    second = versioning.register(write(store / "tokens", "other corpus"), CORPUS, project)
    shutil.rmtree(project / "data")
    assert versioning.restore(first.md5, project).read_text() == "corpus"
    assert versioning.restore(second.md5, project).read_text() == "other corpus"
    assert versioning.restore(first.md5, project).read_text() == "corpus"


def test_restore_a_current_name_never_overwrites_newer_content(project: Path, store: Path) -> None:
    first = versioning.register(store / "tokens", CORPUS, project)
    versioning.register(write(store / "tokens", "other corpus"), CORPUS, project)
    path = versioning.restore(first.md5, project)
    assert path.read_text() == "corpus" and path.parent == project / "data/corpora"
    assert (project / "data" / CORPUS).read_text() == "other corpus"


def test_restore_what_only_an_old_commit_records_comes_from_the_remote(clone: Path, store: Path) -> None:
    git(clone, "rm", "--quiet", "data.dvc")
    commit(clone)
    versioning.register(store / "mask", MASK, clone)
    commit(clone)
    shutil.rmtree(clone / ".dvc/cache")
    assert versioning.restore(md5_of("corpus"), clone) == clone / "data" / CORPUS
    assert (clone / "data" / CORPUS).read_text() == "corpus"


def test_restore_an_unknown_md5_is_refused(project: Path, store: Path) -> None:
    versioning.register(store / "tokens", CORPUS, project)
    with pytest.raises(BadInput, match="0000"):
        versioning.restore("0" * 32, project)


def test_push_goes_to_the_teams_remote_only(clone: Path, store: Path, tmp_path: Path) -> None:
    version = versioning.register(store / "mask", MASK, clone)
    shipped = sorted((clone / "demo/remote").rglob("*"))
    assert versioning.push(clone) is False
    assert sorted((clone / "demo/remote").rglob("*")) == shipped
    dvc(clone, "remote", "add", "--default", "team", str(tmp_path / "team"))
    assert versioning.push(clone) is True
    assert (tmp_path / "team/files/md5" / version.md5[:2] / version.md5[2:]).read_text() == "mask"


def test_push_with_a_hole_in_the_cache_still_pushes_everything(project: Path, store: Path, tmp_path: Path) -> None:
    versions = [
        versioning.register(store / "tokens", CORPUS, project),
        versioning.register(store / "mask", MASK, project),
    ]
    (project / ".dvc/cache/files/md5" / versions[0].md5[:2] / versions[0].md5[2:]).unlink()
    dvc(project, "remote", "add", "--default", "team", str(tmp_path / "team"))
    assert versioning.push(project)
    for folder in (".dvc/cache", "data"):
        shutil.rmtree(project / folder)
    assert versioning.pull(project) == [CORPUS, MASK]


def test_push_of_what_is_nowhere_is_refused(project: Path, store: Path, tmp_path: Path) -> None:
    version = versioning.register(store / "tokens", CORPUS, project)
    (project / ".dvc/cache/files/md5" / version.md5[:2] / version.md5[2:]).unlink()
    write(project / version.path, "edited")
    dvc(project, "remote", "add", "--default", "team", str(tmp_path / "team"))
    with pytest.raises(BadInput, match=CORPUS):
        versioning.push(project)


def test_password_in_the_address_of_a_remote_is_told_to_nobody(project: Path, store: Path, tmp_path: Path) -> None:
    versioning.register(store / "tokens", CORPUS, project)
    (tmp_path / "served").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        dvc(project, "remote", "add", "--default", "team", f"http://ana:secret@{address}/")
        assert versioning.reach(project) == f"http://…@{address}/"
        with pytest.raises(BadInput, match=address) as pushed:  # this server takes nothing
            versioning.push(project)
        server.shutdown()
    with pytest.raises(BadInput, match=address) as reached:
        versioning.reach(project)
    with pytest.raises(BadInput, match=address) as restored:
        versioning.restore("0" * 32, project)
    assert not [one for one in (pushed, reached, restored) if "secret" in str(one.value)]


def test_push_without_any_remote_does_nothing(project: Path, store: Path) -> None:
    versioning.register(store / "tokens", CORPUS, project)
    assert versioning.push(project) is False


def test_survey_tells_cache_remote_or_nowhere_and_fetches_nothing(project: Path, store: Path, clone: Path) -> None:
    wiki, lost, shipped = md5_of("corpus"), md5_of("never registered"), {"demo"}
    assert versioning.survey([wiki, lost], project).places == {wiki: {"cache"} | shipped, lost: set()}
    assert versioning.survey([wiki, lost], clone).places == {wiki: shipped, lost: set()}
    assert versioning.survey([wiki], clone, read=True).places == {wiki: shipped}
    assert not (clone / "data").exists() and not list((clone / ".dvc").glob("cache/files/md5/*/*"))


def test_survey_does_not_believe_the_name_of_a_damaged_object(project: Path, clone: Path) -> None:
    wiki = md5_of("corpus")
    for root in (project / ".dvc/cache", clone / "demo/remote"):
        held = root / "files/md5" / wiki[:2] / wiki[2:]
        held.unlink()
        write(held, "damage")
    assert versioning.survey([wiki], project, read=True).places == {wiki: {"demo"}}
    assert versioning.survey([wiki], clone, read=True).places == {wiki: set()}


def test_survey_tells_all_places_the_team_s_remote_and_a_remote_that_cannot_be_asked(
    project: Path, store: Path, tmp_path: Path
) -> None:
    wiki = versioning.register(store / "tokens", CORPUS, project).md5
    dvc(project, "remote", "add", "--default", "team", str(tmp_path / "team"))
    assert versioning.survey([wiki], project).places == {wiki: {"cache"}}
    assert versioning.push(project)
    assert versioning.survey([wiki], project) == versioning.Survey({wiki: frozenset({"cache", "team"})}, "team", {})
    dvc(project, "remote", "add", "gone", "http://127.0.0.1:9/dvc")
    found = versioning.survey([wiki], project)
    assert found.places == {wiki: {"cache", "team"}} and found.silent.keys() == {"gone"}
    with pytest.raises(BadInput, match="moeprune init"):
        versioning.survey([wiki], tmp_path)


def test_remote_of_which_only_the_name_is_known_is_told_of(project: Path, store: Path) -> None:
    wiki = versioning.register(store / "tokens", CORPUS, project).md5
    dvc(project, "config", "core.remote", "team")
    said = "core.remote names 'team', of which no address is known here: `dvc remote add team ADDRESS`"
    for used in (versioning.reach, versioning.push):
        with pytest.raises(BadInput, match=said):
            used(project)
    found = versioning.survey([wiki], project)
    assert found.places == {wiki: {"cache"}} and found.team == "team" and said in found.silent["team"]


def test_survey_waits_for_nobody_and_leaves_a_damaged_object_where_it_is(project: Path, store: Path) -> None:
    wiki = versioning.register(store / "tokens", CORPUS, project).md5
    held = project / ".dvc/cache/files/md5" / wiki[:2] / wiki[2:]
    held.unlink()
    write(held, "damage")
    script = (
        "import sys, time; from dvc.repo import Repo, lock_repo\n"
        "with Repo('.') as repo, lock_repo(repo): print(flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=project, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        try:
            assert versioning.survey([wiki], project).places == {wiki: frozenset()}
        finally:
            other.kill()
    assert held.read_text() == "damage"


def test_push_sends_again_what_the_remote_has_lost(project: Path, store: Path, tmp_path: Path) -> None:
    wiki = versioning.register(store / "tokens", CORPUS, project).md5
    versioning.register(store / "mask", MASK, project)
    dvc(project, "remote", "add", "--default", "team", str(tmp_path / "team"))
    assert versioning.push(project)
    held = tmp_path / "team/files/md5" / wiki[:2] / wiki[2:]
    held.unlink()
    assert versioning.push(project)
    assert held.read_text() == "corpus"
