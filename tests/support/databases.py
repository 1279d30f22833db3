"""Databases for tests: migrated once, then copied. Migrating one takes longer than most tests."""

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from uuid import uuid4

import pytest
from sqlalchemy.engine import make_url

from connector.provenance.database import upgrade


@cache
def migrated() -> bytes:
    """An empty SQLite database with all tables."""
    with tempfile.TemporaryDirectory() as directory:
        upgrade(f"sqlite:///{directory}/modalign.db")
        with closing(sqlite3.connect(f"{directory}/modalign.db")) as connection:
            return connection.serialize()


@contextmanager
def postgres_database(server: str, options: str = "") -> Iterator[str]:
    """Create a database on a PostgreSQL, with `options` of CREATE DATABASE; yield its URL and drop it."""
    psycopg = pytest.importorskip("psycopg", reason="needs the extra `postgres`")
    name = f"test_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} {options}")
    yield make_url(server).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
