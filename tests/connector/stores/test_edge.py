"""What only the embedded store has: a registry, a lock, and crashes that it must survive."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch
from uuid import UUID

import numpy as np
import pytest

from alignment.durable import write_durably
from alignment.metrics import Distance
from connector.errors import StoreBusyError, StoreError
from connector.stores import edge as edge_store
from connector.stores.contract import CollectionConfig, Points, VectorConfig
from connector.stores.edge import SPARE_BYTES, EdgeStore
from connector.stores.layout import Quantization
from tests.support.errors import raises

N, DIM = 100, 4
LAYOUT = CollectionConfig(
    {"v": VectorConfig(DIM, Distance.EUCLID), "w": VectorConfig(3, Distance.COSINE)},
    payload_indexes={"number": "integer"},
    metadata={"chain": {"alignment": "abc", "name": "Ümläut"}},
    m=8,
    ef_construct=50,
    indexing_threshold=123,
)


def ids(n: int) -> list[str]:
    return [str(UUID(int=i + 1)) for i in range(n)]


def batch(n: int = N) -> Points:
    vectors = np.arange(n * DIM, dtype=np.float32).reshape(n, DIM)
    return Points("v", ids(n), vectors, [{"number": i} for i in range(n)])


def registry(path: Path) -> Any:
    return json.loads((path / "registry.json").read_text(encoding="utf-8"))


def died(processes: ForkServerContext, crash: Callable[[Path], None], path: Path) -> None:
    """Let a child run `crash`, which kills it."""
    child = processes.Process(target=crash, args=(path,), daemon=True)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


def kill_me(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_and_die(path: Path) -> None:
    store = EdgeStore(path)
    store.create("c", LAYOUT)
    store.set_aliases({"live": "c"})
    store.upsert("live", batch())
    store.upsert("c", Points("v", ids(1), np.full((1, DIM), 7, np.float32), [{"number": -1}]))
    store.delete("c", ids(2)[1:])
    kill_me()


def die_before_the_registry(path: Path) -> None:
    store = EdgeStore(path)
    store.create("kept", LAYOUT)
    patch.object(edge_store, "write_durably", kill_me).start()
    store.create("c", LAYOUT)


def die_after_the_registry(path: Path) -> None:
    store = EdgeStore(path)
    store.create("kept", LAYOUT)

    def write_and_die(place: Path, content: Any) -> None:
        write_durably(place, content)
        kill_me()

    patch.object(edge_store, "write_durably", write_and_die).start()
    store.create("c", LAYOUT)


def die_before_the_indexes(path: Path) -> None:
    store = EdgeStore(path)
    store.create("kept", LAYOUT)
    patch("qdrant_edge.UpdateOperation.create_field_index", kill_me).start()
    store.create("c", LAYOUT)


def die_while_dropping(path: Path) -> None:
    store = EdgeStore(path)
    for name in ("kept", "c"):
        store.create(name, LAYOUT)
    store.set_aliases({"live": "c"})
    patch("shutil.rmtree", kill_me).start()
    store.drop("c")


def die_while_switching(path: Path) -> None:
    store = EdgeStore(path)
    for name in ("old", "new"):
        store.create(name, LAYOUT)
    store.set_aliases({"a": "old", "b": "old"})
    patch("pathlib.Path.replace", kill_me).start()
    store.set_aliases({"a": "new", "b": "new"})


def hold(path: Path, opened: Connection) -> None:
    store = EdgeStore(path)
    opened.send(store.collections())
    threading.Event().wait(60)


class TestReopening:
    def test_everything_survives(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.create("d", CollectionConfig({"x": VectorConfig(2, Distance.DOT)}))
            store.set_aliases({"live": "c", "other": "d"})
            store.upsert("c", batch())
            before = store.describe("c")
        with EdgeStore(tmp_path) as store:
            assert store.collections() == ["c", "d"]
            assert store.aliases() == {"live": "c", "other": "d"}
            assert store.describe("live") == before
            assert (before.points, before.vectors, before.metadata) == (N, LAYOUT.vectors, LAYOUT.metadata)
            [hits] = store.search("live", "v", batch().vectors[42:43], 1)
            assert (hits[0].id, hits[0].raw_score, hits[0].payload) == (ids(N)[42], 0.0, {"number": 42})

    @pytest.mark.parametrize("quantization", [None, "scalar"])
    def test_the_layout_survives_whole(self, tmp_path: Path, quantization: Quantization | None) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", replace(LAYOUT, quantization=quantization))
        raw = registry(tmp_path)["collections"]["c"]
        assert raw == {
            "vectors": {"v": {"dim": DIM, "distance": "Euclid"}, "w": {"dim": 3, "distance": "Cosine"}},
            "payload_indexes": {"number": "integer"},
            "metadata": {"chain": {"alignment": "abc", "name": "Ümläut"}},
            "m": 8,
            "ef_construct": 50,
            "indexing_threshold": 123,
            "quantization": quantization,
            "compression": None,
            "oversampling": 4.0,
            "rescore": True,
            "datatype": "float32",
            "vectors_on_disk": False,
            "hnsw_on_disk": False,
            "payload_on_disk": True,
            "shards": None,
            "replication_factor": 1,
            "write_consistency_factor": 1,
        }
        with EdgeStore(tmp_path) as store:
            store.set_aliases({})  # writes what was read
        assert registry(tmp_path)["collections"]["c"] == raw

    def test_a_registry_from_before_there_was_quantization_opens(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.upsert("c", batch())
        raw = registry(tmp_path)
        del raw["collections"]["c"]["quantization"]
        (tmp_path / "registry.json").write_text(json.dumps(raw), encoding="utf-8")
        with EdgeStore(tmp_path) as store:
            assert store.count("c") == N

    def test_a_dropped_collection_stays_dropped(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.upsert("c", batch())
            store.drop("c")
            assert not (tmp_path / "collections" / "c").exists()
        with EdgeStore(tmp_path) as store:
            assert store.collections() == []

    def test_a_relative_path_is_the_same_store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with EdgeStore(tmp_path / "s") as store:
            store.create("c", LAYOUT)
        monkeypatch.chdir(tmp_path)
        with EdgeStore("s") as store:
            assert store.collections() == ["c"]
            assert store.url == f"edge:{tmp_path / 's'}"

    def test_a_copy_of_a_closed_store_is_a_backup(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path / "a") as store:
            store.create("c", LAYOUT)
            store.upsert("c", batch())
        (tmp_path / "a").rename(tmp_path / "b")
        with EdgeStore(tmp_path / "b") as store:
            assert store.count("c") == N


class TestCrashes:
    def test_killed_after_a_write_without_flush_nothing_is_lost(
        self, processes: ForkServerContext, tmp_path: Path
    ) -> None:
        died(processes, write_and_die, tmp_path)
        with EdgeStore(tmp_path) as store:
            assert store.aliases() == {"live": "c"}
            assert store.count("c") == N - 1
            records = {r.id: r for page in store.scroll("live", vector_name="v") for r in page}
            expected = dict(zip(ids(N), batch().vectors.tolist(), strict=True))
            expected[ids(1)[0]] = [7.0] * DIM
            del expected[ids(2)[1]]
            assert {i: r.vector.tolist() for i, r in records.items() if r.vector is not None} == expected
            assert records[ids(1)[0]].payload == {"number": -1}

    def test_a_directory_that_the_registry_does_not_name_is_removed(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
        leftover = tmp_path / "collections" / "leftover" / "segments"
        leftover.mkdir(parents=True)
        (leftover / "file").write_text("x")
        with EdgeStore(tmp_path) as store:
            assert store.collections() == ["c"]
            assert sorted(p.name for p in (tmp_path / "collections").iterdir()) == ["c"]
            store.create("leftover", LAYOUT)
            assert store.count("leftover") == 0

    def test_orphans_of_an_optimisation_are_removed(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.upsert("c", batch())
        orphan = tmp_path / "collections" / "c" / "temp_segments" / "segment"
        orphan.mkdir(parents=True)
        (orphan / "file").write_text("x")
        with EdgeStore(tmp_path) as store:
            assert not orphan.exists()
            assert store.count("c") == N

    @pytest.mark.parametrize("crash", [die_before_the_indexes, die_before_the_registry])
    def test_killed_before_a_collection_exists(
        self, processes: ForkServerContext, tmp_path: Path, crash: Callable[[Path], None]
    ) -> None:
        died(processes, crash, tmp_path)
        assert (tmp_path / "collections" / "c").exists()
        with EdgeStore(tmp_path) as store:
            assert store.collections() == ["kept"]
            assert not (tmp_path / "collections" / "c").exists()
            store.create("c", LAYOUT)
            store.upsert("c", batch())
            assert store.count("c") == N

    def test_killed_after_a_collection_exists(self, processes: ForkServerContext, tmp_path: Path) -> None:
        died(processes, die_after_the_registry, tmp_path)
        with EdgeStore(tmp_path) as store:
            assert store.collections() == ["c", "kept"]
            store.upsert("c", batch())
            assert store.count("c") == N

    def test_killed_while_a_collection_is_dropped(self, processes: ForkServerContext, tmp_path: Path) -> None:
        died(processes, die_while_dropping, tmp_path)
        assert (tmp_path / "collections" / "c").exists()
        with EdgeStore(tmp_path) as store:
            assert (store.collections(), store.aliases()) == (["kept"], {})
            assert not (tmp_path / "collections" / "c").exists()

    def test_killed_while_aliases_are_switched(self, processes: ForkServerContext, tmp_path: Path) -> None:
        died(processes, die_while_switching, tmp_path)
        with EdgeStore(tmp_path) as store:
            assert store.aliases() == {"a": "old", "b": "old"}
            store.set_aliases({"a": "new", "b": "new"})
            assert store.aliases() == {"a": "new", "b": "new"}


class TestRegistry:
    @pytest.mark.parametrize(
        "content",
        ["", "{", "[]", "null", "{}", '{"collections": {}}', '{"collections": {"c": {}}, "aliases": {}}', "\x00"],
    )
    def test_a_damaged_one_is_named_and_nothing_is_removed(self, tmp_path: Path, content: str) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.upsert("c", batch())
        good = (tmp_path / "registry.json").read_bytes()
        (tmp_path / "registry.json").write_text(content)
        for _ in range(2):  # the lock is free again after the first
            with raises(StoreError, "registry.json"):
                EdgeStore(tmp_path)
        (tmp_path / "registry.json").write_bytes(good)
        with EdgeStore(tmp_path) as store:
            assert store.count("c") == N

    def test_an_unknown_distance_is_damage(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
        text = (tmp_path / "registry.json").read_text(encoding="utf-8")
        (tmp_path / "registry.json").write_text(text.replace("Euclid", "Hamming"), encoding="utf-8")
        with raises(StoreError, "Hamming"):
            EdgeStore(tmp_path)

    def test_it_is_replaced_and_never_half_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A reader that has the old file open goes on seeing the old content, whole."""
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            before = (tmp_path / "registry.json").stat().st_ino
            with (tmp_path / "registry.json").open(encoding="utf-8") as reader:
                store.set_aliases({"live": "c"})
                assert json.load(reader)["aliases"] == {}
            assert registry(tmp_path)["aliases"] == {"live": "c"}
            assert (tmp_path / "registry.json").stat().st_ino != before
            assert not list(tmp_path.glob("*.tmp"))

    def test_a_write_that_fails_changes_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(path: Path, content: Any) -> None:
            raise OSError(28, "No space left on device")

        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            monkeypatch.setattr(edge_store, "write_durably", full)
            with pytest.raises(StoreError, match="No space left"):
                store.set_aliases({"live": "c"})
            with pytest.raises(StoreError, match="No space left"):
                store.create("d", LAYOUT)
            with pytest.raises(StoreError, match="No space left"):
                store.drop("c")
            assert (store.collections(), store.aliases()) == (["c"], {})
            monkeypatch.undo()
            store.create("d", LAYOUT)
            store.upsert("d", batch())
            store.upsert("c", batch())
            assert (store.count("c"), store.count("d")) == (N, N)


class Usage(NamedTuple):
    """Stands in for what `shutil.disk_usage` answers."""

    free: int


def left(monkeypatch: pytest.MonkeyPatch, free: int) -> list[Path]:
    """Let every disk have `free` bytes left; return the places that are asked about."""
    asked: list[Path] = []

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    return asked


class TestFullDisk:
    """The engine maps its files: where the disk is full, the process would be killed."""

    MESSAGE = r"has 127 MiB of disk left, Qdrant Edge needs 128 MiB to spare; make room and run the same command"

    def test_nothing_is_created(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            before = registry(tmp_path), sorted(tmp_path.rglob("*"))
            with monkeypatch.context() as patched:
                asked = left(patched, SPARE_BYTES - 1)
                with pytest.raises(StoreError, match=self.MESSAGE) as caught:
                    store.create("d", LAYOUT)
            assert str(caught.value).startswith(f"{tmp_path} has ")
            assert asked == [tmp_path]
            assert store.collections() == ["c"]
            assert (registry(tmp_path), sorted(tmp_path.rglob("*"))) == before
            store.create("d", LAYOUT)
            assert store.collections() == ["c", "d"]

    def test_nothing_is_upserted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.set_aliases({"live": "c"})
            store.upsert("c", batch(10))
            changed = Points("v", ids(20), np.full((20, DIM), 7, np.float32), [{"number": -1}] * 20)
            before = [record.payload for page in store.scroll("c") for record in page]
            with monkeypatch.context() as patched:
                left(patched, SPARE_BYTES - 1)
                for name in ("c", "live"):
                    with pytest.raises(StoreError, match=self.MESSAGE):
                        store.upsert(name, changed)
                # What is there can be read, deleted and closed: that makes room.
                assert [record.payload for page in store.scroll("c") for record in page] == before
                assert len(before) == 10
                store.delete("c", ids(1))
                store.flush("c")
                assert store.count("c") == 9
            store.upsert("c", changed)
            assert store.count("c") == 20
        with EdgeStore(tmp_path) as store:
            assert store.count("live") == 20

    def test_just_enough_is_enough(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        left(monkeypatch, SPARE_BYTES)
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.upsert("c", batch())
            assert store.count("c") == N
        assert SPARE_BYTES == 128 << 20

    def test_a_full_disk_is_dropped_from(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            left(monkeypatch, 1 << 20)
            store.drop("c")
            assert store.collections() == []


class TestOneOwner:
    def test_a_second_process_is_refused_until_the_first_is_killed(
        self, processes: ForkServerContext, tmp_path: Path
    ) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
        ours, theirs = processes.Pipe()
        child = processes.Process(target=hold, args=(tmp_path, theirs), daemon=True)
        child.start()
        assert ours.poll(60)
        assert ours.recv() == ["c"]
        with raises(StoreBusyError, "MODALIGN_QDRANT_URL"):
            EdgeStore(tmp_path)
        child.kill()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        with EdgeStore(tmp_path) as store:
            assert store.collections() == ["c"]

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_forked_child_is_refused_instead_of_waiting_for_ever(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            if not (child := os.fork()):
                try:
                    store.count("c")
                except StoreBusyError as error:
                    os._exit(7 if "forked" in str(error) else 8)
                os._exit(9)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert store.count("c") == 0

    def test_a_second_opening_in_one_process_is_refused(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path), pytest.raises(StoreBusyError):
            EdgeStore(tmp_path)
        EdgeStore(tmp_path).close()

    def test_a_closed_store_does_not_open_collections_again(self, tmp_path: Path) -> None:
        store = EdgeStore(tmp_path)
        store.create("c", LAYOUT)
        store.close()
        store.close()
        with pytest.raises(StoreError, match="closed"):
            store.count("c")

    def test_a_place_that_is_no_directory(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(StoreError, match="cannot be used as a store"):
            EdgeStore(tmp_path / "file")
