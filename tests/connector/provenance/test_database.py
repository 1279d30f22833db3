"""Databases: URLs, errors, transactions, and paths under a home."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from connector.errors import ProvenanceError
from connector.provenance.database import upgrade
from connector.provenance.recorder import Provenance
from connector.provenance.tables import (
    EmbeddingSetRow,
    EncoderRow,
)
from tests.support.rows import count, embedding_set


class TestUnreachable:
    @pytest.mark.parametrize("password", ["s3cret", "s3%2Fcret", "s3/cret", "s3:cret", "p%40s3cret"])
    @pytest.mark.parametrize("operation", [Provenance.open, upgrade])
    def test_the_password_is_never_shown(self, password: str, operation: Callable[[str], Any]) -> None:
        pytest.importorskip("psycopg", reason="needs the extra `postgres`")
        with pytest.raises(ProvenanceError, match=r"database postgresql://me:\*\*\*@127\.0\.0\.1:1/x: ") as raised:
            operation(f"postgresql://me:{password}@127.0.0.1:1/x?connect_timeout=2")
        assert password not in str(raised.value)
        assert "cret" not in str(raised.value)

    def test_a_password_with_an_at_sign_is_never_shown(self) -> None:
        with pytest.raises(ProvenanceError, match="%40") as raised:
            Provenance.open("postgresql://me:half@s3cret@h/x")
        assert "half" not in str(raised.value)
        assert "cret" not in str(raised.value)

    def test_a_password_in_the_query_is_never_shown(self) -> None:
        pytest.importorskip("psycopg", reason="needs the extra `postgres`")
        with pytest.raises(ProvenanceError, match="MODALIGN_DATABASE_URL") as raised:
            Provenance.open("postgresql://me@127.0.0.1:1/x?password=s3cret")
        assert "s3cret" not in str(raised.value)

    @pytest.mark.parametrize(
        "url", ["nope://me:s3cret@h/x", "postgresql://me:s3cret@h:port/x", "mysql://me:s3cret@h/x", "", "x.db"]
    )
    @pytest.mark.parametrize("operation", [Provenance.open, upgrade])
    def test_urls_that_cannot_be_meant(self, url: str, operation: Callable[[str], Any]) -> None:
        with pytest.raises(ProvenanceError, match="sqlite:///PATH") as raised:
            operation(url)
        assert "s3cret" not in str(raised.value)

    def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "x.db").write_bytes(b"hello" * 1000)
        for operation in (Provenance.open, upgrade):
            with pytest.raises(ProvenanceError, match="not a database"):
                operation(f"sqlite:///{tmp_path / 'x.db'}")

    def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ProvenanceError, match="unable to open"):
            Provenance.open(f"sqlite:///{tmp_path}")


class TestSessions:
    def test_a_block_that_raises_leaves_nothing(self, provenance: Provenance) -> None:
        def fail() -> None:
            with provenance.database.session() as session:
                session.add(EncoderRow(modality="text", spec="s", fingerprint="f", dim=1))
                session.flush()
                raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            fail()
        assert count(provenance, EncoderRow) == 0

    def test_sqlite_survives_a_power_cut_and_lets_readers_in(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'x.db'}"
        upgrade(url)
        with Provenance.open(url) as provenance, provenance.database.session() as session:
            pragmas = {
                name: session.execute(text(f"PRAGMA {name}")).scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
            session.add(EncoderRow(modality="text", spec="s", fingerprint="f", dim=1))
            session.flush()
            reader = sqlite3.connect(tmp_path / "x.db")
            assert reader.execute("SELECT count(*) FROM encoder").fetchone() == (0,)
            reader.close()
        assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}


def test_a_home_can_be_moved(database_url: str, tmp_path: Path) -> None:
    upgrade(database_url)
    with Provenance.open(database_url, home=tmp_path / "old") as provenance:
        first = provenance.artifacts.record_set(embedding_set(tmp_path / "old" / "sets" / "s"))
        outside = provenance.artifacts.record_set(embedding_set(tmp_path / "elsewhere"))
    with Provenance.open(database_url, home=tmp_path / "new") as provenance:
        assert provenance.artifacts.record_set(embedding_set(tmp_path / "new" / "sets" / "s")) == first
        with provenance.database.session() as session:
            paths = {i: session.get_one(EmbeddingSetRow, i).path for i in (first, outside)}
        assert paths == {first: "sets/s", outside: str(tmp_path / "elsewhere")}
        assert provenance.database.located(paths[first]) == tmp_path / "new" / "sets" / "s"
        assert provenance.database.located(paths[outside]) == tmp_path / "elsewhere"
        assert provenance.database.stored(f"edge:{tmp_path / 'new' / 'qdrant'}") == "edge:qdrant"
        assert provenance.database.stored("http://host:6333") == "http://host:6333"
