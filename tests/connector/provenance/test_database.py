"""Databases: URLs, errors, transactions, and paths under a home."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from connector.errors import ProvenanceError, SettingsError
from connector.provenance.database import upgrade
from connector.provenance.recorder import Provenance
from connector.provenance.tables import (
    EmbeddingSetRow,
    EncoderRow,
)
from connector.settings import Settings
from tests.support.databases import postgres_database
from tests.support.errors import raises
from tests.support.rows import count, embedding_set
from tests.support.unprivileged import unprivileged


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
        with pytest.raises(SettingsError, match="%40") as raised:
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
        with pytest.raises(SettingsError, match="sqlite:///PATH") as raised:
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


@pytest.fixture
def other_encoding(request: pytest.FixtureRequest, postgres: str) -> Iterator[str]:
    """An empty PostgreSQL database of an encoding other than UTF-8: its URL."""
    options = f"ENCODING '{request.param}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    with postgres_database(postgres, options) as url:
        yield url


class TestEncodings:
    @pytest.mark.parametrize("other_encoding", ["LATIN1", "SQL_ASCII", "EUC_JP", "WIN1252"], indirect=True)
    @pytest.mark.parametrize("operation", [Provenance.open, upgrade])
    def test_a_database_that_is_not_utf_8_is_refused(
        self, other_encoding: str, operation: Callable[[str], Any]
    ) -> None:
        with raises(ProvenanceError, "UTF8", "TEMPLATE template0", code="database-encoding"):
            operation(other_encoding)

    def test_the_encoding_of_the_environment_does_not_matter(
        self, provenance: Provenance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
        with Provenance.open(provenance.database.url) as opened:
            with opened.runs.start("encode", {"corpus": "写真 🎉"}):
                pass
            assert opened.runs.newest(1)[0].parameters == {"corpus": "写真 🎉"}


@pytest.mark.slow
def test_a_home_of_any_name_has_its_database_inside(tmp_path: Path) -> None:
    names = ["a%2Fb", "a%20b", "a b", "a?b", "a#b", "a?mode=ro", "a+b", "a@b:c", "100%", "ä", "file:x", "a;b&c=d"]
    for number, name in enumerate(names):
        settings = Settings.load(home=tmp_path / name)
        upgrade(settings.database_url)
        assert [path.name for path in (tmp_path / name).glob("*.db")] == ["modalign.db"]
        with Provenance.open(settings.database_url) as provenance:  # each has one of its own
            assert provenance.runs.newest(10) == []
            with provenance.runs.start("encode", {"number": number}):
                pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.slow
@pytest.mark.parametrize("left", [None, "-wal -shm", "-wal"], ids=["closed", "killed", "killed, and its index lost"])
def test_a_read_only_database_is_read(left: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "a home?"
    url = Settings.load(home=home).database_url
    upgrade(url)
    writer = Provenance.open(url)
    with writer.runs.start("encode", {}):
        pass
    if left:  # as a killed process leaves it: the log beside the database holds the run
        shutil.copytree(home, home.with_name("copy"))
    writer.close()
    if left:
        shutil.rmtree(home)
        home.with_name("copy").rename(home)
        if "-shm" not in left:
            (home / "modalign.db-shm").unlink()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    before = {path.name: path.read_bytes() for path in home.iterdir() if not path.name.endswith("-shm")}
    for path in (*home.iterdir(), home):
        path.chmod(0o555)
    status = unprivileged("status", "--json", "--home", home)
    assert (status.returncode, status.stderr) == (0, "")
    assert [run["command"] for run in json.loads(status.stdout)["runs"]] == ["encode"]
    rejects = unprivileged("rejects", "--json", "--home", home)
    assert (rejects.returncode, json.loads(rejects.stdout)) == (0, {"run": None, "rejects": []})
    refused = unprivileged("gap", "pairs", "--home", home)
    assert refused.returncode == 1
    assert "readonly" in refused.stderr
    assert "Traceback" not in refused.stderr
    home.chmod(0o755)
    assert {path.name: path.read_bytes() for path in home.iterdir() if not path.name.endswith("-shm")} == before
    assert not list(temporary.iterdir())


def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    upgrade(url)
    with Provenance.open(url) as provenance:
        session = provenance.database.session()
        with raises(ProvenanceError, tmp_path / "x.db", code="out-of-resources"), session as opened:
            opened.execute(text("PRAGMA max_page_count = 1"))  # as few as it has already
            for number in range(1000):
                opened.execute(text(f"CREATE TABLE t{number} (a)"))
