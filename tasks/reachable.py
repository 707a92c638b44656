"""Whether a database or server can be reached, told within seconds."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import create_engine, make_url

DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def check_address(url: str) -> None:
    """Raise OSError if nobody listens at an http address."""
    parts = urlsplit(url)
    socket.create_connection((parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)), 5).close()


def check_database(uri: str) -> None:
    """Raise OSError, ValueError or SQLAlchemyError if a database cannot be used, or no server listens at an address.

    MLflow itself tries for minutes to open a database, and cannot be told otherwise.
    """
    parts = urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    if kind in DATABASE_PORTS:
        socket.create_connection((parts.hostname or "localhost", parts.port or DATABASE_PORTS[kind]), 5).close()
        create_engine(uri).connect().close()
    elif kind in ("http", "https"):
        check_address(uri)
    elif kind == "sqlite" and (path := make_url(uri).database):
        folder = Path(path).absolute().parent
        folder.mkdir(parents=True, exist_ok=True)
        if not all(os.access(place, os.W_OK) for place in (folder, path) if os.path.exists(place)):
            raise PermissionError(f"{path} cannot be written")


@contextmanager
def impatient(retries: int = 0, seconds: int = 5) -> Iterator[None]:
    """Meanwhile MLflow gives a server so many seconds and tries more. A run under way keeps MLflow's own minutes."""
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries), "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    before = {name: os.environ.get(name) for name in patience}
    os.environ.update(patience)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def without_password(uri: str) -> str:
    """An address that may be shown."""
    return re.sub(r"//[^/@]*@", "//…@", uri)
