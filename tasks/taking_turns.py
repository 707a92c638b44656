"""Taking turns among all who record with one tracker, on whichever machines."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import NullPool, create_engine, text

from tasks.artifacts import Store


@contextmanager
def alone(store: Store, uri: str, what: str) -> Iterator[None]:
    """Within this block nobody else who uses this store, or this PostgreSQL database, is in one of the same name.

    Those who reach a tracker by http and share no store are not kept apart.
    """
    with store.lock(what), _turn(uri, what):
        yield


@contextmanager
def _turn(uri: str, what: str) -> Iterator[None]:
    if not uri.startswith("postgresql"):
        yield
        return
    number = int.from_bytes(hashlib.sha256(f"moeprune {what}".encode()).digest()[:8], signed=True)
    engine = create_engine(uri, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:  # the lock ends with the connection, also when this process is killed
        connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": number})
        yield
