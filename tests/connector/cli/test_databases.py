"""Databases that are missing, foreign, full or in use, and their secrets."""

import errno
import json
import os
import socket
import sqlite3
import time
from pathlib import Path

import pytest

from connector.releases.store_identity import OWNER
from connector.stores import qdrant as qdrant_store
from connector.stores.edge import EdgeStore
from tests.support.cli import SPECS, Ended, N, done, modalign
from tests.support.unprivileged import unprivileged

LISTING = (("status",), ("sets",), ("alignments",), ("rejects",), ("verify",))
SECRET, KEY = "s3cret/pass", "k3y-of-the-server"


class TestDatabases:
    def test_a_home_that_is_new_says_how_to_begin(self, tmp_path: Path) -> None:
        for arguments in (("search", "things", "red"), ("fit", "s", "--alignment", "a"), ("status", "things")):
            ended = modalign(*arguments, "--home", tmp_path / "new")
            assert (ended.code, ended.error_code) == (1, "home-new")
            assert "modalign encode" in ended.error
        assert str(tmp_path / "new") in done("status", "--home", tmp_path / "new").err
        assert not (tmp_path / "new").exists()

    def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "modalign.db").write_text("no database" * 100)
        for arguments in (("status",), ("db", "upgrade")):
            assert "file is not a database" in modalign(*arguments, "--home", tmp_path).error

    @pytest.mark.parametrize("home", ["file", "file/below/it", "link-to-nothing"])
    def test_a_home_that_is_no_directory(self, home: str, tmp_path: Path) -> None:
        """Also for commands that only list: it is no home that holds nothing yet."""
        (tmp_path / "file").write_text("a file")
        (tmp_path / "link-to-nothing").symlink_to(tmp_path / "not-mounted")
        changing = (("db", "upgrade"), ("search", "things", "red"), ("encode", tmp_path, "--set", "s", *SPECS))
        for arguments in LISTING + changing:
            ended = modalign(*arguments, "--home", tmp_path / home)
            assert (ended.code, ended.error_code) == (2, "settings")
            assert str(tmp_path / home) in ended.error
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link-to-nothing"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_home_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "home").mkdir(mode=0o500)
        assert str(tmp_path) in modalign("db", "upgrade", "--home", tmp_path / "home" / "new").error

    def test_a_disk_that_is_full(self, home: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        arguments = ("ingest", corpus, "--into", "new", "--alignment", "a", "--home", home)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            assert "No space left on device" in modalign(*arguments).error
            encode = modalign("encode", corpus, "--set", "another", *SPECS, "--home", home)
            assert "No space left on device" in encode.error
            assert encode.error_code == "out-of-resources"
        runs = done("status", "-n", 2, "--json", "--home", home).document["runs"]
        assert [run["outcome"] for run in runs] == ["failed", "failed"]
        assert all("[Errno 28] No space left on device" in run["error"] for run in runs)
        assert done(*arguments, "--json").document["counts"]["written"] == 2 * N

    def test_upgrading_again_changes_nothing(self, home: Path) -> None:
        before = done("status", "--json", "--home", home).document
        done("db", "upgrade", "--home", home)
        assert done("status", "--json", "--home", home).document == before

    def test_a_database_of_an_unknown_version(self, home: Path) -> None:
        with sqlite3.connect(home / "modalign.db") as database:
            database.execute("UPDATE alembic_version SET version_num = 'ffff'")
        database.close()
        ended = modalign("db", "upgrade", "--home", home)
        assert ended.code == 1
        assert f"database sqlite:///{home}/modalign.db: " in ended.error
        assert ended.error_code == "database-foreign"
        assert "found ffff" in ended.error
        assert "found ffff" in modalign("status", "--home", home).error

    def test_a_home_in_use(self, home: Path) -> None:
        with EdgeStore(home / "qdrant"):
            for arguments in (("search", "things", "red"), ("push", "pairs", "--into", "things", "--alignment", "a")):
                assert "is in use by another process" in modalign(*arguments, "--home", home).error
            assert done("status", "--home", home).code == 0  # needs no store
        assert done("search", "things", "red", "--home", home).code == 0


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_command_fails_by_its_timeout_and_not_later(home: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url, began = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}", time.monotonic()
        ended = modalign("search", "things", "red", "--qdrant-url", url, "--timeout", "1", "--home", home)
    assert time.monotonic() - began < 10
    assert (ended.code, ended.error_code) == (1, "deadline-passed")
    assert "within the 1 s" in ended.error


class TestStores:
    """Who a store is: said by hand where the collections of an older version do not say it."""

    PUSH = ("push", "pairs", "--into", "things", "--alignment", "a")

    def moved(self, home: Path, to: Path) -> str:
        """Move the store of a home as the version before migration 0007 left it; return its URL there."""
        with EdgeStore(home / "qdrant") as store:
            for name in store.collections():
                store.add_metadata(name, {OWNER: None})
        with sqlite3.connect(home / "modalign.db") as database:
            database.execute("UPDATE store SET claimed = 0")
        database.close()
        (home / "qdrant").rename(to)
        return f"edge:{to}"

    def test_a_merge_tells_where_it_is_now(self, home: Path, tmp_path: Path) -> None:
        where = ("--home", home, "--qdrant-url", self.moved(home, tmp_path / "elsewhere"))
        refused = modalign(*self.PUSH, *where)
        assert (refused.code, refused.error_code) == (1, "store-known-twice")
        assert "db merge-stores edge:qdrant" in refused.error
        assert done("db", "merge-stores", "edge:qdrant", "--yes", "--json", *where).document["merged"] == 1
        assert done(*self.PUSH, "--json", *where).document["counts"]["unchanged"] == 2 * N
        assert done("search", "things", "red", *where).code == 0
        releases = done("status", "--json", *where).document["releases"]
        assert [row["state"] for row in releases] == ["live"]

    def test_a_store_that_sql_does_not_know(self, home: Path) -> None:
        ended = modalign("db", "merge-stores", "http://nowhere:6333", "--yes", "--home", home)
        assert ended.code == 2
        assert "edge:qdrant" in ended.error

    def test_a_lost_database_takes_over_by_an_option(self, home: Path) -> None:
        (home / "modalign.db").unlink()
        done("db", "upgrade", "--home", home)
        refused = modalign(*self.PUSH, "--home", home)
        assert (refused.code, refused.error_code) == (1, "collection-of-another-database")
        assert "--take-over" in refused.error
        done(*self.PUSH, "--take-over", "--home", home)
        assert done("verify", "things", "--home", home).code == 0

    def test_so_does_an_ingest(self, home: Path, corpus: Path) -> None:
        (home / "modalign.db").unlink()
        done("db", "upgrade", "--home", home)
        ingest = ("ingest", corpus, "--into", "things", "--alignment", "a", "--set", "pairs", "--home", home)
        refused = modalign(*ingest)
        assert (refused.code, refused.error_code) == (1, "collection-of-another-database")
        assert done(*ingest, "--take-over", "--json").document["counts"]["written"] == 2 * N


class TestSecrets:
    """Passwords of URLs and the API key stay where they are."""

    def everything(self, ended: Ended, home: Path) -> str:
        with sqlite3.connect(home / "modalign.db") as database:
            dump = "\n".join(database.iterdump())
        database.close()
        return ended.out + ended.err + dump

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(qdrant_store, "ATTEMPTS_TO_CONNECT", 1)
        monkeypatch.setenv("MODALIGN_QDRANT_API_KEY", KEY)

    @pytest.mark.parametrize(
        "url",
        [
            f"http://me:{SECRET}@127.0.0.1:1",
            f"https://me:{SECRET}@127.0.0.1:1/x?api_key={KEY}",
            f"http://me:{SECRET}@:x",
            "https://s3cret.token@127.0.0.1:1",
            f"grpc://127.0.0.1:1?token={KEY}",
            f"127.0.0.1:1/?api-key={KEY}",
        ],
    )
    def test_of_the_store(self, home: Path, url: str) -> None:
        for arguments in (("push", "pairs", "--into", "new", "--alignment", "a"), ("search", "things", "red")):
            ended = modalign(*arguments, "--qdrant-url", url, "--home", home)
            assert ended.error
            found = self.everything(ended, home)
            assert (SECRET in found, "s3cret" in found, KEY in found) == (False, False, False)

    @pytest.mark.parametrize(
        "url",
        [
            f"postgresql://me:{SECRET}@127.0.0.1:1/db",
            f"nonsense://me:{SECRET}@127.0.0.1/db",
            f"postgresql://me:{SECRET}@127.0.0.1:port/db",
            f"postgresql://me:{SECRET}@127.0.0.1:1/db?password={SECRET}",
            f"postgresql://me@127.0.0.1:1/db?sslpassword={SECRET}",
            f"postgresql://me@127.0.0.1:1/db?api_key={KEY}",
            f"postgresql://me@127.0.0.1:1/db?passfile=/{SECRET}",
            f"sqlite://me:{SECRET}@/x.db",
            f"postgresql://me:{SECRET}",
        ],
    )
    @pytest.mark.parametrize("arguments", [("status",), ("db", "upgrade")], ids=" ".join)
    def test_of_the_database(self, home: Path, url: str, arguments: tuple[str, ...]) -> None:
        ended = modalign(*arguments, "--database-url", url, "--home", home)
        assert ended.error
        found = self.everything(ended, home)
        assert (SECRET in found, "s3cret" in found, KEY in found) == (False, False, False)

    def test_in_what_is_said_of_a_good_database(self, tmp_path: Path) -> None:
        ended = done("db", "upgrade", "--home", tmp_path)
        assert "modalign.db is up to date" in ended.err


@pytest.mark.parametrize("card", ["sets/pairs/card.json", "alignments/a/card.json"])
@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"format":' * 5000, b"\xff\xfe", b"", b"null"])
def test_a_card_that_holds_something_else_is_named(card: str, content: bytes, home: Path) -> None:
    (home / card).write_bytes(content)
    ended = modalign("push", "pairs", "--into", "things", "--alignment", "a", "--home", home)
    assert ended.code == 1
    assert str((home / card).parent) in ended.error


@pytest.mark.slow
def test_a_read_only_home_is_looked_at(home: Path) -> None:
    done("audit", "things", "--pairs", "pairs", "--home", home)
    for path in (*home.rglob("*"), home):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        for arguments in (["status", "things"], ["rejects"], ["audit", "things", "--history"]):
            ended = unprivileged(*arguments, "--json", "--home", home)
            assert (ended.returncode, ended.stderr) == (0, "")
            assert json.loads(ended.stdout)
        refused = unprivileged("search", "things", "red", "--home", home)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    finally:
        for path in (home, *home.rglob("*")):
            path.chmod(0o755)
