"""DVC's remote in the team's bucket: what is pushed there is what a colleague gets."""

import hashlib
import shutil
from pathlib import Path

import pytest
import sample
import team_page
from servers import BUCKET, S3

from flows.project import init
from moeprune.errors import BadInput
from tasks import versioning


@pytest.fixture
def project(storage: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed project with the team's remote, its keys in the environment; nobody is asked for others."""
    for name, value in (storage.environ | {"AWS_EC2_METADATA_DISABLED": "true"}).items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "project"
    init(folder)
    team_page.name_remote(folder, storage.endpoint)
    return folder


def registered(project: Path, name: str, content: bytes) -> versioning.Version:
    """A corpus of a project, committed with data.dvc."""
    file = project.parent / "made"
    file.write_bytes(content)
    version = versioning.register(file, name, project)
    sample.git(project, "add", "--all")
    sample.git(project, "commit", "--quiet", "--message", name)
    return version


def clone(project: Path) -> Path:
    """A colleague's clone, without what DVC has cached here."""
    folder = project.parent / "clone"
    shutil.rmtree(folder, ignore_errors=True)
    sample.git(project.parent, "clone", "--quiet", str(project), str(folder))
    return folder


def test_files_pushed_to_s3_come_back_in_a_clone(project, storage: S3):
    # Larger than what one request carries, of bytes that do not repeat: 9 MiB in parts of 8.
    large = b"".join(hashlib.sha512(bytes([high, low])).digest() for high in range(256) for low in range(256)) * 3
    contents = {"corpora/large.safetensors": large[: 9 << 20], "masks/small.json": b"{}"}
    versions = {name: registered(project, name, content) for name, content in contents.items()}
    assert versioning.reach(project) == f"s3://{BUCKET}/dvc", "a prefix that nobody has written to yet"
    assert versioning.push(project)
    for name, content in contents.items():
        md5 = hashlib.md5(content).hexdigest()
        assert versions[name].md5 == md5
        assert (storage.folder / BUCKET / "dvc/files/md5" / md5[:2] / md5[2:]).read_bytes() == content

    fresh = clone(project)
    assert versioning.pull(fresh) == sorted(contents)
    for name, content in contents.items():
        assert (fresh / "data" / name).read_bytes() == content


def test_file_of_an_older_commit_comes_back_from_s3(project):
    old = registered(project, "masks/a.json", b"[1]")
    versioning.push(project)
    registered(project, "masks/b.json", b"[2]")
    versioning.push(project)
    fresh = clone(project)
    assert versioning.survey([old.md5], fresh).places == {old.md5: {"team"}}
    assert versioning.restore(old.md5, fresh).read_bytes() == b"[1]"


def test_object_that_changed_on_s3_is_not_taken(project, storage: S3):
    version = registered(project, "masks/c.json", b"[3, 4]")
    versioning.push(project)
    (stored,) = (storage.folder / BUCKET / "dvc").rglob(version.md5[2:])
    stored.write_bytes(b"[4, 3]")
    fresh = clone(project)
    assert versioning.survey([version.md5], fresh, read=True).places == {version.md5: set()}
    with pytest.raises(BadInput, match=r"masks/c\.json"):
        versioning.pull(fresh)


def test_push_with_wrong_keys_is_refused(project, monkeypatch):
    registered(project, "masks/d.json", b"[5]")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(BadInput, match="DVC remote 'team'"):
        versioning.push(project)
