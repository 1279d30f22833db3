"""A home in object storage: it gives what one on disk gives, also after kills, and says what it needs."""

import os
import pickle
import signal
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from importlib import import_module
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from alignment.durable_directory import new_directory
from alignment.errors import AlignmentError, EmbeddingSetError, SetBusyError, StorageError
from alignment.modality import DIRECTIONS
from alignment.model.alignment import Alignment
from alignment.object_storage import located
from alignment.sets.cards import SetCard
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.sets.writer import SetWriter
from connector.corpora.items import Item, Unit
from connector.encoding import loading
from connector.encoding.set_index import REFUSED
from connector.encoding.staged_units import StagedUnits
from connector.encoding.unit_rows import SCHEMA
from connector.errors import SettingsError
from connector.home import Home
from connector.provenance.database import Database
from connector.provenance.leases import fit_lock, set_lock
from connector.provenance.recorder import Provenance
from connector.reports.output_files import append_line, claim_file, write_file
from connector.requests import AuditRequest, CompareRequest, DeleteRequest, EncodeRequest, FitRequest, PushRequest
from connector.settings import Settings
from tests.support.cut_corpora import Cut
from tests.support.databases import migrated, postgres_database
from tests.support.encoding import CountingTexts, encode_with
from tests.support.errors import raises
from tests.support.fakes import fake_entry_points, fake_pairs, fake_rows, write_manifest
from tests.support.faulty_server import FaultyServer, running
from tests.support.kills import die_before
from tests.support.object_storage import Storage
from tests.support.slow import slow_unless
from tests.support.world import COLLECTION, alignment, cards, pairs, stored, vectors_of

ENCODERS: Any = {"image": "fake-image:small", "text": "fake-text:small"}
FIT = FitRequest(sets=["pairs"], alignment="a", method="ridge", folds=2)
Where = dict[str, Any]
WRITER = "alignment.sets.writer"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "corpus.jsonl", fake_pairs(tmp_path, 40))


@pytest.fixture
def where(bucket: str, postgres: str, migrated_postgres: str) -> Iterator[Where]:
    """What names a home in a bucket, with its servers."""
    with running(FaultyServer()) as server, postgres_database(postgres, f"TEMPLATE {migrated_postgres}") as url:
        yield {"home": f"{bucket}/home", "qdrant_url": server.url, "database_url": url}


@pytest.fixture
def local(tmp_path: Path) -> Where:
    """What names a home on disk."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "modalign.db").write_bytes(migrated())
    return {"home": str(tmp_path / "home")}


def encode(home: Home, corpus: Path) -> EmbeddingSet:
    return home.encode(EncodeRequest(corpus=corpus, set="pairs", encoders=ENCODERS, shard_size=16)).value


@pytest.mark.usefixtures("fake_encoders")
def test_a_home_in_a_bucket_gives_what_one_on_disk_gives(
    where: Where, local: Where, corpus: Path, tmp_path: Path, storage: Storage, bucket: str
) -> None:
    made, vectors = [], []
    for settings, report in ((local, tmp_path / "audit.html"), (where, located(f"{bucket}/reports/audit.html"))):
        with Home(Settings.load(**settings)) as home:
            encoded = encode(home, corpus)
            fitted = home.fit(FIT).value
            home.push(PushRequest(set="pairs", into="c", alignment="a"))
            (audit,) = home.audit(AuditRequest(collection="c", pairs="pairs", report=report)).value
            (row,) = home.provenance.releases.find(collection="c")
            of_release = [vectors_of(home.store, row.physical_name, modality) for modality in ("image", "text")]
            vectors.append([dict(zip(keys, of_modality, strict=True)) for keys, _, of_modality in of_release])
            made.append(
                [
                    *(encoded.card.fingerprint, fitted.fingerprint, Alignment.load(fitted_path(home)).fingerprint),
                    *(home.store.count(row.physical_name), audit.measure(next(iter(DIRECTIONS)), "mrr").value),
                ]
            )
            assert "<html" in report.read_text(encoding="utf-8")
            assert [row.path for row in home.provenance.artifacts.sets()] == ["sets/pairs"]
            assert [(held.fault, held.counts["image"]) for held in home.sets()] == [("", 40)]
            assert [held.fault for held in home.alignments()] == [""]
            home.delete(DeleteRequest(collection="c", keys=["s0-00003"]))
            assert home.embedding_set("pairs").card.counts == {"image": 39, "text": 40}
            home.compare(CompareRequest(sets=["pairs"], methods=["ridge"], folds=2))
            with raises(AlignmentError, "a", "--alignment"):
                home.fit(FIT)
    assert made[0] == made[1]
    for on_disk, afar in zip(*vectors, strict=True):
        assert on_disk.keys() == afar.keys()
        np.testing.assert_allclose([afar[key] for key in on_disk], [*on_disk.values()], atol=1e-5)
    keys = storage.keys(bucket)
    assert any(key.startswith("home/reports/compare-") and key.endswith("compare.html") for key in keys)
    assert not [key for key in keys if key.endswith((".tmp", ".lock"))]


def fitted_path(home: Home) -> Path:
    return home.settings.alignment_path("a")


# Kills


def killed(where: Where, environment: Mapping[str, str], corpus: Path, module: str, name: str, calls: int) -> None:
    """Encode and fit, and die before a function is called once more than `calls` times."""
    os.environ.update(environment)
    die_before(import_module(module), name, calls)
    setattr(loading, "entry_points", fake_entry_points)  # noqa: B010  of this process, which ends
    with Home(Settings.load(**where)) as home:
        encode(home, corpus)
        home.fit(FIT)


@pytest.mark.usefixtures("fake_encoders")
@pytest.mark.parametrize(
    ("module", "name", "calls"),
    slow_unless(
        lambda case: case[2] == 3,
        [(WRITER, "write_shard", 0), (WRITER, "write_shard", 3), ("alignment.durable_directory", "write_durably", 1)],
    ),
    ids=["before the first shard", "between shards", "between weights and card"],
)
def test_a_kill_leaves_nothing_half_visible_and_the_same_command_goes_on(
    module: str,
    name: str,
    calls: int,
    where: Where,
    local: Where,
    corpus: Path,
    storage: Storage,
    processes: ForkServerContext,
) -> None:
    arguments = (where, storage.environment, corpus, module, name, calls)
    child = processes.Process(target=killed, args=arguments, daemon=True)
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    with Home(Settings.load(**local)) as home:
        expected = encode(home, corpus).card.fingerprint, home.fit(FIT).value.fingerprint
    with Home(Settings.load(**where)) as home:
        path = home.settings.set_path("pairs")
        if module == WRITER:
            with raises(EmbeddingSetError, "pairs"):
                home.embedding_set("pairs")
            left = EmbeddingSet(path, SetCard.read(path))
            assert len([*left.shards("image"), *left.shards("text")]) == calls
            rows = left.rows()
        else:
            with raises(AlignmentError, "a"):
                home.alignment("a")
            rows = 80
        encoded = home.encode(EncodeRequest(corpus=corpus, set="pairs", encoders=ENCODERS, shard_size=16))
        assert encoded.counts.get("already_in_set", 0) == rows
        assert (encoded.value.card.fingerprint, home.fit(FIT).value.fingerprint) == expected


# Who writes


def test_one_process_writes_a_set_and_a_second_one_is_told(provenance: Provenance, bucket: str) -> None:
    path = located(f"{bucket}/sets/pairs")
    with provenance.runs.start("encode", {}) as first, provenance.runs.start("encode", {}) as second:
        database: Database = provenance.database
        lock = set_lock(database, path, first.id)
        with SetWriter(path, corpus="x", encoders={}, lock=lock) as held:
            with (
                raises(SetBusyError, f"run {first.id}", path),
                SetWriter(path, corpus="x", encoders={}, lock=set_lock(database, path, second.id)),
            ):
                pass
            held.finish()
        with SetWriter(path, corpus="x", encoders={}, lock=set_lock(database, path, second.id)):
            pass
        with fit_lock(database, path, first.id), raises(AlignmentError, path), fit_lock(database, path, second.id):
            pass


def test_a_writer_without_a_lock_is_refused(bucket: str) -> None:
    path = located(f"{bucket}/sets/pairs")
    with raises(EmbeddingSetError, path, code="set-without-lock"), SetWriter(path, corpus="x", encoders={}):
        pass
    assert not path.exists()


def test_a_writer_that_lost_its_lock_writes_no_more(bucket: str, rng: np.random.Generator) -> None:
    def lost() -> None:
        raise SetBusyError("lost")

    path = located(f"{bucket}/sets/pairs")
    with pytest.raises(SetBusyError), SetWriter(path, corpus="x", encoders={}, lock=nullcontext(lost)) as held:
        held.append(fake_rows("image", rng.standard_normal((3, 2))))
    assert not path.exists()


# What a home needs


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({}, "home-needs-database"),
        ({"database_url": "sqlite:////tmp/x.db", "qdrant_url": "http://host:6333"}, "home-needs-database"),
        ({"database_url": "postgresql://host/modalign"}, "home-needs-server"),
        ({"database_url": "postgresql://host/modalign", "qdrant_url": "edge:/tmp/x"}, "home-needs-server"),
    ],
)
def test_a_home_in_a_bucket_needs_servers_and_says_so(given: dict[str, Any], code: str, bucket: str) -> None:
    with raises(SettingsError, f"{bucket}/home", code=code):
        Settings.load(home=f"{bucket}/home", **given)


def test_a_home_never_names_a_secret() -> None:
    with pytest.raises(StorageError) as caught:
        Settings.load(home="s3://me:hidden@bucket/home")
    assert caught.value.code == "storage-url"
    assert "hidden" not in str(caught.value)


def test_a_home_in_no_bucket_or_without_rights_is_named_before_anything_is_done(
    where: Where, storage: Storage, corpus: Path
) -> None:
    elsewhere: Where = {**where, "home": "s3://no-such-bucket/home"}
    with Home(Settings.load(**elsewhere)) as home, raises(StorageError, "no-such-bucket", code="bucket-missing"):
        encode(home, corpus)
    with storage.refusing(), Home(Settings.load(**where)) as home, pytest.raises((StorageError, PermissionError)):
        encode(home, corpus)
    with Home(Settings.load(**where)) as home:
        assert home.provenance.runs.newest(1) == []


# Files


def test_a_directory_appears_with_its_last_file(bucket: str) -> None:
    path = located(f"{bucket}/made")
    with new_directory(path, last="card") as building:
        (building / "card").write_text("1")
        (building / "weights").write_text("2")
        assert not path.exists()
    assert sorted(entry.name for entry in path.iterdir()) == ["card", "weights"]
    with pytest.raises(FileExistsError), new_directory(path, last="card"):
        pass


def test_a_file_is_written_whole_and_lines_are_added_to_it(bucket: str, storage: Storage) -> None:
    path = located(f"{bucket}/page.html")
    write_file(path, "one")
    write_file(path, "two")
    assert path.read_text() == "two"
    claim_file(path)
    for line in ("1", "2"):
        append_line(path, line)
    assert path.read_text() == "two\n1\n2\n"
    with storage.refusing(), raises(StorageError, path, code="storage-denied"):
        write_file(path, "three")


def test_results_of_units_wait_in_the_bucket_and_go(bucket: str) -> None:
    path = located(f"{bucket}/sets/pairs")
    staged, unit = StagedUnits(path, "of a corpus"), Unit("all")
    batch = pa.RecordBatch.from_pylist([{"key": "a", "kind": "item"}, {"key": "b", "kind": "item"}], SCHEMA)
    staged.write(unit, [batch])
    assert list(StagedUnits(path, "of a corpus").read(unit)) == [batch]
    assert list(path.glob("image-*.parquet")) == []
    staged.clear()
    with pytest.raises(FileNotFoundError):
        list(staged.read(unit))
    assert not path.exists()


@pytest.mark.slow
def test_vectors_of_refused_items_are_kept_in_the_bucket_and_go(bucket: str, tmp_path: Path) -> None:
    path, embedded = located(f"{bucket}/sets/texts"), []
    first, twin = (Item("text", "a", "a", text, {}, "list", place) for place, text in enumerate(("red", "green"), 1))
    for entries, sizes in (([first, twin], [1, 1]), ([first, twin], [1, 1]), ([twin], [1])):
        texts = CountingTexts()
        encode_with(Cut(tmp_path, entries, sizes), path, {"text": texts}, lock=nullcontext(lambda: None))
        embedded.append(sum(texts.batches))
        kept = [shard.name for shard in (path / REFUSED).glob("*")]
        assert kept == (["text-000000.parquet"] if first in entries else [])
    assert embedded == [2, 0, 0]


def test_a_dataset_is_staged_in_the_bucket_and_leaves_what_a_push_leaves(
    where: Where, local: Where, storage: Storage, bucket: str
) -> None:
    sinks = pytest.importorskip("connector.ray.sink", reason="needs the extra `ray`")

    parts = pairs(20)
    points = []
    for number, given in enumerate((local, where)):
        settings = Settings.load(**given)
        alignment().save(settings.alignment_path("a"))
        request = PushRequest(set="s", into=COLLECTION, alignment="a")
        sink = sinks.ReleaseSink(request, encoders=cards(), settings=settings)
        sink.on_write_start()
        tasks = [pickle.loads(pickle.dumps(sink)) for _ in parts]
        block = [dataset_of(part) for part in parts]
        names = [task.write([rows], None) for task, rows in zip(tasks, block, strict=True)]
        tasks[0].write(block[:1], None)  # a task that was repeated, and whose names never arrived
        if number:
            assert len([name for name in storage.keys(bucket) if ".rows/" in name]) == 3
        sink.on_write_complete(sinks.WriteResult(2 * len(parts[0]), 0, names))
        assert sink.result is not None
        (release,) = sink.result.value
        with Home(settings) as home:
            points.append({m: stored(home.store, release.name, m) for m in ("image", "text")})
    assert points[0] == points[1]
    assert not [name for name in storage.keys(bucket) if ".rows/" in name]


def dataset_of(part: Rows) -> pa.Table:
    vectors = pa.array(list(part.vectors), pa.list_(pa.float32()))
    return pa.table(
        {"modality": [part.modality] * len(part), "key": part.keys, "group": part.groups, "vector": vectors}
    )
