"""A team's servers as real processes on the loopback interface, as compose.yaml describes them.

with postgres() as database, s3(folder) as storage, prefect(database) as api, mlflow(database, storage) as tracker:
    subprocess.run([...], env=os.environ | {"PREFECT_API_URL": api, "MLFLOW_TRACKING_URI": tracker} | storage.environ)

The commands and settings are read from compose.yaml itself; only addresses differ. The fixtures are of the whole
session: `team` is all of them at once.
"""

import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from started import answers, free_port, running

COMPOSE = Path(__file__).parents[1] / "compose.yaml"
MISSING = "no PostgreSQL: nothing is tried on a team's database. Install it: make postgresql"
SECRETS = {"POSTGRES_PASSWORD": "team-secret", "AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": "team-secret"}
DOTENV = SECRETS | {"MLFLOW_WORKERS": "2"}
"""What `.env` would hold here. Two workers: enough to get in each other's way."""
BUCKET = "moeprune"
ROLE = "CREATE ROLE moeprune LOGIN PASSWORD '{password}'"


@dataclass(frozen=True)
class Postgres:
    """A cluster whose role `moeprune` is no superuser and owns its databases."""

    port: int
    programs: Path

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def url(self, database: str) -> str:
        """The address of a database, for SQLAlchemy."""
        return f"postgresql+psycopg://moeprune:{SECRETS['POSTGRES_PASSWORD']}@{self.address}/{database}"

    def create(self, database: str = "") -> str:
        """The address of a new, empty database."""
        name = database or f"one_{secrets.token_hex(4)}"
        self._run("createdb", "--owner=moeprune", name)
        return self.url(name)

    def query(self, database: str, sql: str) -> list[tuple[Any, ...]]:
        """What a query returns."""
        import psycopg

        with psycopg.connect(self.url(database).replace("+psycopg", "")) as connection:
            return connection.execute(sql).fetchall()

    def _run(self, program: str, *words: str) -> None:
        where = ["--host=127.0.0.1", f"--port={self.port}", "--username=postgres", "--no-password"]
        environment = os.environ | {"PGPASSWORD": SECRETS["POSTGRES_PASSWORD"]}
        subprocess.run([self.programs / program, *where, *words], env=environment, check=True, capture_output=True)


@dataclass(frozen=True)
class S3:
    """An S3-compatible store over a folder: a bucket is a folder in it."""

    port: int
    folder: Path
    pid: int

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """What a client needs in its environment."""
        return {name: SECRETS[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}


@dataclass(frozen=True)
class Team:
    """All of it."""

    postgres: Postgres
    s3: S3
    prefect: str
    mlflow: str

    @property
    def environ(self) -> dict[str, str]:
        """What those who use it have in their environment."""
        return {"PREFECT_API_URL": self.prefect, "MLFLOW_TRACKING_URI": self.mlflow} | self.s3.environ


def service(name: str, environ: Mapping[str, str] = DOTENV) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a service of compose.yaml, with its variables filled in from `environ`."""

    def value(found: re.Match[str]) -> str:
        return environ.get(found["name"]) or found["default"] or ""

    content = yaml.safe_load(COMPOSE.read_text())["services"][name]
    variable = r"\$\{(?P<name>\w+)(?::(?:-(?P<default>[^${}]*)|\?[^}]*))?\}"
    settings = content["environment"]
    for _ in range(2):  # a default may hold a variable: those within come first
        settings = {key: re.sub(variable, value, text) for key, text in settings.items()}
    return shlex.split(content.get("command", "")), settings


def programs() -> Path:
    """The folder of PostgreSQL's programs; where there is none the test is skipped, and fails under CI."""
    found = [Path(path).parent for path in (shutil.which("initdb"),) if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    return found[-1]


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A new cluster with the empty databases `prefect` and `mlflow`."""
    found = programs()
    # PostgreSQL does not run as root: then its files belong to the user that Debian's package makes.
    as_whom: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if not os.getuid() else {}
    with tempfile.TemporaryDirectory(prefix="moeprune-postgres-") as scratch:
        folder, password, port = Path(scratch), Path(scratch, "password"), free_port()
        password.write_text(SECRETS["POSTGRES_PASSWORD"])
        if as_whom:
            for path in (folder, password):
                shutil.chown(path, "postgres", "postgres")
        words = ["--pgdata=data", "--username=postgres", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync"]
        subprocess.run(
            [found / "initdb", *words, "--encoding=UTF8", "--locale=C"],
            cwd=folder, check=True, capture_output=True, **as_whom,
        )  # fmt: skip
        settings = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
        command = [str(found / "postgres"), "-D", "data", *(word for each in settings for word in ("-c", each))]
        cluster = Postgres(port, found)

        def up() -> None:
            ready = [found / "pg_isready", "--host=127.0.0.1", f"--port={port}", "--quiet"]
            if subprocess.run(ready, check=False).returncode:
                raise ConnectionError

        log = folder.with_suffix(".log")
        try:
            # At SIGTERM it would wait until its last client is gone.
            with running(command, up, log, signal.SIGINT, cwd=folder, **as_whom):
                role = ROLE.format(password=SECRETS["POSTGRES_PASSWORD"])
                cluster._run("psql", "--dbname=postgres", "--command", role)
                for database in ("prefect", "mlflow"):
                    cluster.create(database)
                yield cluster
        finally:
            log.unlink(missing_ok=True)


@contextmanager
def s3(folder: Path) -> Iterator[S3]:
    """An S3-compatible store over a folder, with the team's bucket."""
    command, settings = service("s3")
    port, store = free_port(), folder / "store"
    (store / BUCKET).mkdir(parents=True)
    settings |= {"RCLONE_ADDR": f"127.0.0.1:{port}", "RCLONE_CONFIG": str(folder / "none.conf")}
    # The image's entry point is the program itself.
    words = [str(store) if word == "/store" else word for word in command]
    started = [str(Path(sys.executable).with_name("rclone")), *words]
    up = answers(f"http://127.0.0.1:{port}")
    with running(started, up, folder / "s3.log", env=os.environ | settings) as pid:
        yield S3(port, store, pid)


@contextmanager
def prefect(database: Postgres, folder: Path) -> Iterator[str]:
    """Prefect's server on the database `prefect`; yields the address of its API."""
    command, settings = service("prefect")
    port = free_port()
    settings |= {"PREFECT_SERVER_API_HOST": "127.0.0.1", "PREFECT_SERVER_API_PORT": str(port)}
    with _server(command, settings, database, None, f"http://127.0.0.1:{port}/api/health", folder / "prefect"):
        yield f"http://127.0.0.1:{port}/api"


@contextmanager
def mlflow(database: Postgres, storage: S3, folder: Path) -> Iterator[str]:
    """MLflow's server on the database `mlflow` and the team's bucket; yields its address."""
    command, settings = service("mlflow")
    port = free_port()
    settings |= {"MLFLOW_HOST": "127.0.0.1", "MLFLOW_PORT": str(port)}
    with _server(command, settings, database, storage, f"http://127.0.0.1:{port}/health", folder / "mlflow"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _server(
    command: list[str], settings: dict[str, str], database: Postgres, storage: S3 | None, health: str, folder: Path
) -> Iterator[None]:
    folder.mkdir()
    for name, value in settings.items():
        value = value.replace("postgres:5432", database.address)
        settings[name] = value.replace("http://s3:9000", storage.endpoint) if storage else value
    environment = os.environ | {"PREFECT_HOME": str(folder), "HOME": str(folder)} | settings
    started = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    with running(started, answers(health), folder / "log", env=environment, cwd=folder):
        yield


@pytest.fixture(scope="session")
def cluster() -> Iterator[Postgres]:
    """A PostgreSQL cluster, shared: use `create` for databases of your own."""
    with postgres() as found:
        yield found


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3-compatible store, shared."""
    with s3(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture(scope="session")
def prefect_url(cluster: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Prefect's server, shared."""
    with prefect(cluster, tmp_path_factory.mktemp("prefect")) as found:
        yield found


@pytest.fixture(scope="session")
def mlflow_url(cluster: Postgres, storage: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's server, shared: use an experiment of your own."""
    with mlflow(cluster, storage, tmp_path_factory.mktemp("mlflow")) as found:
        yield found


@pytest.fixture(scope="session")
def team(cluster: Postgres, storage: S3, prefect_url: str, mlflow_url: str) -> Team:
    """All of them."""
    return Team(cluster, storage, prefect_url, mlflow_url)
