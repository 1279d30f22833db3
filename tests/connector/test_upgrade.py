"""A home that the version before migration 0005 wrote, upgraded: every row is still there, and the home still works."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from sqlalchemy import Connection, MetaData, insert, inspect, select

from connector.home import Home
from connector.provenance.database import Database, downgrade, upgrade
from connector.provenance.tables import LeaseRow, TombstoneRow
from connector.settings import Settings
from tests.support.cli import modalign

FIXTURES = Path(__file__).parent.parent / "fixtures"
BEFORE = "0004"
BOTH = ("--metric", "cosine", "--metric", "chi2")
CAPTIONS = ("item-05#0", "item-10#0", "item-13#0")

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("before")
    with tarfile.open(FIXTURES / "home-0004.tar.xz") as archive:
        archive.extractall(directory, filter="data")
    return directory / "home"


@pytest.fixture
def written(unpacked: Path, tmp_path: Path, database_url: str) -> tuple[str, Rows]:
    """A database of each kind with the rows that the version before wrote: its URL and the rows."""
    shutil.copy(unpacked / "modalign.db", tmp_path / "written.db")
    source = f"sqlite:///{tmp_path / 'written.db'}"
    if database_url.startswith("sqlite"):
        return source, rows(source)
    upgrade(database_url, BEFORE)
    copied = rows(source)
    with connected(database_url) as connection:
        for table in reflected(connection).sorted_tables:
            if table.name in copied:
                connection.execute(insert(table), copied[table.name])
        connection.commit()
    return database_url, copied


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    database = Database(url)
    try:
        with database.engine.connect() as connection:
            yield connection
    finally:
        database.close()


def reflected(connection: Connection) -> MetaData:
    metadata = MetaData()
    metadata.reflect(connection)
    return metadata


def rows(url: str) -> Rows:
    """Every row of every table but Alembic's, by table, ordered by all columns; times in UTC."""
    with connected(url) as connection:
        return {
            table.name: [
                {name: _in_utc(value) for name, value in row._mapping.items()}
                for row in connection.execute(select(table).order_by(*table.primary_key.columns))
            ]
            for table in reflected(connection).sorted_tables
            if table.name != "alembic_version"
        }


def _in_utc(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return value


def upgraded(before: Rows) -> Rows:
    """What the migrations from 0005 on make of rows."""
    after = dict(before)
    urls = sorted({row["store_url"] for row in before["release"] + before["promotion"]})
    after["store"] = [
        {"id": number, "uid": ANY, "claimed": False, "merged_into_id": None} for number in range(1, len(urls) + 1)
    ]
    after["store_address"] = [{"id": n, "store_id": n, "address": url} for n, url in enumerate(urls, 1)]
    after["lease"] = [_renamed(row, work="job", heard_at="heartbeat_at") for row in after.pop("claim")]
    after["tombstone"] = [{**row, "shard": "", "counted": False} for row in after.pop("deletion")]
    after["promotion"] = [
        {**_renamed(_with_store(row, urls), begun_at="started_at"), "request": None} for row in before["promotion"]
    ]
    after["run"] = [{**row, "heartbeat_at": None} for row in before["run"]]
    after["release_set"] = [
        {"release_id": release_id, "embedding_set_id": set_id}
        for release_id, set_id in sorted(
            {(row["release_id"], row["embedding_set_id"]) for row in before["batch"] + before["deletion"]}
        )
    ]
    after["measure"] = [
        {**row, "stage": "" if "=" in part else part, "stratum": part if "=" in part else ""}
        for row, part in ((row, row.pop("part")) for row in map(dict, before["measure"]))
    ]
    after["release"] = []
    for row in before["release"]:
        settings = dict(row["settings"])
        tuning = {
            "hnsw_ef": settings.pop("hnsw_ef", None),
            "hnsw_recall": settings.pop("hnsw_recall", None),
            "needs_tuning": settings.pop("untuned", False),
            "fusion": None,
        }
        revision = _changed_since_audit(before, row["id"])
        after["release"].append({**_with_store(row, urls), "settings": settings, **tuning, "revision": int(revision)})
    return after


def _changed_since_audit(before: Rows, release_id: int) -> bool:
    """Whether a release was written to, or rolled back, since its newest audit began."""
    started = {row["id"]: row["started_at"] for row in before["run"]}
    audited = [started[row["run_id"]] for row in before["audit"] if row["release_id"] == release_id]
    changes = [row["written_at"] for row in before["batch"] if row["release_id"] == release_id] + [
        row["begun_at"] for row in before["promotion"] if row["kind"] == "rollback" and row["previous_id"] == release_id
    ]
    return bool(audited and changes) and max(changes) >= max(audited)


def _with_store(row: dict[str, Any], urls: list[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "store_url"} | {
        "store_id": urls.index(row["store_url"]) + 1
    }


def _renamed(row: dict[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in row.items()}


class TestRows:
    @pytest.mark.slow
    def test_every_row_is_still_there(self, written: tuple[str, Rows]) -> None:
        url, before = written
        assert {name: len(of_table) for name, of_table in before.items()} == {
            **{"encoder": 4, "embedding_set": 5, "alignment": 5, "release": 10, "run": 37, "batch": 24, "deletion": 2},
            **{"claim": 5, "reject": 13, "audit": 10, "measure": 1644, "per_query": 18, "promotion": 4},
        }
        upgrade(url)
        after = rows(url)
        assert after == upgraded(before)
        assert {row["stage"] for row in after["measure"]} >= {"", "reference", "index", "quantization", "filter:chairs"}
        assert {row["stratum"] for row in after["measure"]} == {
            "",
            *(f"category={c}" for c in ("chair", "lamp", "table")),
        }
        assert [row["hnsw_ef"] for row in after["release"]][:3] == [128, 128, None]
        assert [row["id"] for row in after["release"] if row["needs_tuning"]] == [8]

    @pytest.mark.slow
    def test_down_and_up_again_changes_nothing(self, written: tuple[str, Rows]) -> None:
        url, before = written
        upgrade(url)
        after = rows(url)
        downgrade(url, BEFORE)
        assert rows(url) == before
        upgrade(url)
        assert rows(url) == {**after, "store": [{**row, "uid": ANY} for row in after["store"]]}

    @pytest.mark.slow
    def test_new_rows_get_ids_of_their_own(self, written: tuple[str, Rows]) -> None:
        url, before = written
        upgrade(url)
        database = Database.open(url)
        with database.session() as session:
            lease = LeaseRow(job="j", step=0, done=False)
            tombstone = TombstoneRow(release_id=1, embedding_set_id=1, modality="text", key="k")
            session.add_all([lease, tombstone])
        database.close()
        assert lease.id == max(row["id"] for row in before["claim"]) + 1
        assert tombstone.id == max(row["id"] for row in before["deletion"]) + 1

    @pytest.mark.slow
    def test_settings_that_are_invalid_stay_as_they_are(self, written: tuple[str, Rows]) -> None:
        url, _ = written
        with connected(url) as connection:
            release = reflected(connection).tables["release"]
            damaged = {"m": 16, "hnsw_ef": "far", "hnsw_recall": 0.99}
            connection.execute(release.update().where(release.c.id == 1).values(settings=damaged))
            connection.commit()
        upgrade(url)
        row = next(row for row in rows(url)["release"] if row["id"] == 1)
        assert (row["settings"], row["hnsw_ef"], row["hnsw_recall"]) == (damaged, None, None)

    @pytest.mark.slow
    def test_an_upgrade_that_fails_leaves_everything_as_it_was(
        self, written: tuple[str, Rows], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url, before = written

        def fail(*arguments: object, **options: object) -> None:
            raise RuntimeError("stop")

        with monkeypatch.context() as patched:
            patched.setattr("alembic.op.add_column", fail)
            with pytest.raises(RuntimeError, match="stop"):
                upgrade(url)
        with connected(url) as connection:
            assert not {"lease", "tombstone"} & set(inspect(connection).get_table_names())
        assert rows(url) == before


@pytest.fixture(scope="module")
def home(unpacked: Path) -> Path:
    """The home after `modalign db upgrade`."""
    run(unpacked, "db", "upgrade")
    return unpacked


def run(home: Path, *arguments: str, code: int = 0) -> str:
    """Run a command in the home; return what it prints on stdout."""
    ended = modalign(*arguments, "--home", home)
    assert ended.code == code, ended.err
    return ended.out


def last_counts(home: Path) -> dict[str, int]:
    """The counts of the newest run."""
    return dict(rows(f"sqlite:///{home / 'modalign.db'}")["run"][-1]["counts"])


def answers(home: Path) -> dict[str, list[list[Any]]]:
    """The three best images of `shop` and their scores, by metric and caption."""
    found: dict[str, list[list[Any]]] = {}
    with Home(Settings.load(home=home)) as opened:
        things = opened.embedding_set("things")
        captions = things.load("text")
        X = captions.vectors[[captions.keys.index(key) for key in CAPTIONS]]
        for metric in ("cosine", "chi2"):
            results = opened.retriever("shop", metric).search_embeddings(
                "text", X, 3, encoder=things.card.encoders["text"].fingerprint
            )
            for key, result in zip(CAPTIONS, results, strict=True):
                found[f"{metric} {key}"] = [[hit.key, pytest.approx(hit.score, abs=1e-5)] for hit in result]
    return found


def live(home: Path) -> dict[str, str]:
    """The live release of each metric of `shop`."""
    releases = json.loads(run(home, "status", "shop", "--json"))["releases"]
    return {row["metric"]: row["physical_name"] for row in releases if row["state"] == "live"}


def test_the_home_works(home: Path) -> None:
    """One story, because each step changes what the next one finds."""
    expected = json.loads((FIXTURES / "expected.json").read_text())
    assert answers(home) == expected

    status = json.loads(run(home, "status", "--json"))
    assert sorted((row["collection"], row["metric"], row["state"], row["points"]) for row in status["releases"]) == [
        ("archive", "cosine", "live", 102),
        ("nightly", "cosine", "building", 0),
        ("pictures", "cosine", "live", 48),
        *(
            ("shop", metric, state, 108)
            for metric in ("chi2(map=split)", "cosine")
            for state in ("live", "ready", "retired")
        ),
    ]

    # Nothing is written again.
    for name, unchanged in (("things", 408), ("extra", 24)):
        run(home, "push", name, "--into", "shop", "--alignment", "first", *BOTH)
        assert last_counts(home) == {"unchanged": unchanged}

    # The audits of the version before allow the promotion, and the rollback returns to what it promoted.
    first = live(home)
    run(home, "promote", "shop")
    assert set(live(home)) == set(first)
    assert not set(live(home).values()) & set(first.values())
    audited = run(home, "audit", "shop", "--pairs", "things", "--metric", "cosine", "--require", "recall@10>=0.1")
    assert "recall@10" in audited
    run(home, "rollback", "shop")
    assert live(home) == first
    assert answers(home) == expected
    run(home, "push", "things", "--into", "shop", "--alignment", "first", *BOTH)
    assert last_counts(home) == {"unchanged": 204}


def test_what_was_deleted_before_the_upgrade_is_deleted_after_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODALIGN_QDRANT_URL", f"edge:{home / 'archive'}")
    url = f"sqlite:///{home / 'modalign.db'}"
    push = ("push", "things", "--into", "archive", "--alignment", "first", "--metric", "cosine")
    assert {row["key"] for row in rows(url)["tombstone"]} == {"item-07", "item-07#0"}
    run(home, *push, code=4)  # two items that were refused for a payload field are written without it
    assert last_counts(home) == {"written": 2, "unchanged": 100, "rejected": 2}
    assert rows(url)["tombstone"] == []
    run(home, *push)
    assert last_counts(home) == {"unchanged": 102}
