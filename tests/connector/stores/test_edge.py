"""What only the embedded store has: a registry, a lock, and crashes that it must survive."""

import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import qdrant_edge as edge

from alignment.metrics import Distance
from connector.errors import StoreBusyError, StoreError
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.edge import SPARE_BYTES, EdgeStore
from connector.stores.layout import Quantization
from connector.stores.points import Points
from tests.support.edge_stores import DIM, LAYOUT, N, batch, died, ids, kill_me, registry
from tests.support.errors import raises
from tests.support.sparse_copy import copy_sparse


def write_and_die(path: Path) -> None:
    store = EdgeStore(path)
    store.create("c", LAYOUT)
    store.set_aliases({"live": "c"})
    store.upsert("live", batch())
    store.upsert("c", Points("v", ids(1), np.full((1, DIM), 7, np.float32), [{"number": -1}]))
    store.delete("c", ids(2)[1:])
    kill_me()


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
            "caption_payload": True,
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
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            with pytest.raises(StoreBusyError):
                EdgeStore(tmp_path)
        EdgeStore(tmp_path).close()

    def test_a_closed_store_does_not_open_collections_again(self, tmp_path: Path) -> None:
        store = EdgeStore(tmp_path)
        store.create("c", LAYOUT)
        store.close()
        store.close()
        with pytest.raises(StoreError, match="closed"):
            store.count("c")


class TestThreads:
    def test_a_collection_that_several_use_first_at_once_is_opened_once(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            store.upsert("c", batch())
        together = threading.Barrier(8)

        def use(number: int) -> int:
            together.wait()
            if number % 2:
                return store.count("c")
            store.upsert("c", batch())
            return N

        with EdgeStore(tmp_path) as store, ThreadPoolExecutor(8) as pool:
            assert list(pool.map(use, range(8))) == [N] * 8

    def test_a_store_is_written_and_closed_in_other_threads_than_it_was_opened_in(self, tmp_path: Path) -> None:
        with EdgeStore(tmp_path) as store:
            store.set_aliases({})  # makes the store
        with ThreadPoolExecutor(1) as opening, ThreadPoolExecutor(1) as using:
            store = opening.submit(EdgeStore, tmp_path).result()
            using.submit(store.create, "c", LAYOUT).result()
            using.submit(store.close).result()
            with EdgeStore(tmp_path) as store:
                assert store.collections() == ["c"]


class Panic(BaseException):
    """Stands in for a panic of the engine, which is no Exception."""


CALLS: dict[str, tuple[str, Callable[[EdgeStore], object]]] = {
    "EdgeShard.create": ("create", lambda store: store.create("d", LAYOUT)),
    "EdgeShard.load": ("open", lambda store: store.count("c")),
    "EdgeShard.count": ("count", lambda store: store.count("c")),
    "EdgeShard.info": ("describe", lambda store: store.describe("c")),
    "EdgeShard.retrieve": ("read", lambda store: store.retrieve("c", ids(1))),
    "EdgeShard.scroll": ("read", lambda store: list(store.scroll("c"))),
    "EdgeShard.query": ("search", lambda store: store.search("c", "v", np.ones((1, DIM)), 1)),
    "EdgeShard.query_batch": ("search", lambda store: store.search("c", "v", np.ones((2, DIM)), 1)),
    "EdgeShard.update": ("write to", lambda store: store.upsert("c", batch())),
    "UpdateOperation.delete_points": ("delete from", lambda store: store.delete("c", ids(1))),
    "EdgeShard.optimize": ("index", lambda store: store.ready("c")),
    "EdgeShard.flush": ("flush", lambda store: store.flush("c")),
    "EdgeShard.close": ("close", lambda store: store.drop("c")),
}


class TestPanics:
    @pytest.mark.parametrize("error", [Panic("index out of range"), KeyboardInterrupt()], ids=["panic", "interrupt"])
    @pytest.mark.parametrize("call", CALLS)
    def test_a_panic_of_any_call_is_an_error_of_the_store(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
    ) -> None:
        def panicking(*_: object, **__: object) -> None:
            raise error

        what, use = CALLS[call]
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
        with EdgeStore(tmp_path) as store:
            if call != "EdgeShard.load":
                store.count("c")
            with monkeypatch.context() as patched:
                patched.setattr(f"qdrant_edge.{call}", panicking)
                if isinstance(error, KeyboardInterrupt):
                    with pytest.raises(KeyboardInterrupt):
                        use(store)
                else:
                    with raises(StoreError, f"could not {what}", "index out of range"):
                        use(store)

    def test_a_collection_that_cannot_be_closed_does_not_keep_the_others_and_the_lock(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = EdgeStore(tmp_path)
        for name in ("a", "b"):
            store.create(name, LAYOUT)
        flush, left = edge.EdgeShard.flush, [1]

        def failing(shard: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Panic("disk gone")
            flush(shard)

        with monkeypatch.context() as patched:
            patched.setattr("qdrant_edge.EdgeShard.flush", failing)
            with raises(StoreError, "disk gone"):
                store.close()
        with EdgeStore(tmp_path) as store:
            assert store.collections() == ["a", "b"]

    @pytest.mark.parametrize("k", [-1, 2**64])
    def test_numbers_that_the_engine_does_not_take(self, tmp_path: Path, k: int) -> None:
        with EdgeStore(tmp_path) as store:
            store.create("c", LAYOUT)
            with raises(StoreError, "could not search collection c"):
                store.search("c", "v", np.ones((1, DIM)), k)


# What is done to a file; None: it is removed.
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "half of ones": lambda content: content[: len(content) // 2] + b"\xff" * (len(content) - len(content) // 2),
}
NOT_HASHED = ("id_tracker.versions", "mutable_id_tracker.versions")


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose collection has an indexed and a growing segment."""
    path = tmp_path_factory.mktemp("closed")
    with EdgeStore(path) as store:
        store.create("c", replace(LAYOUT, indexing_threshold=1))
        store.upsert("c", batch(300))
        store.ready("c")
        store.upsert("c", batch(100))
    assert any(path.rglob("id_tracker.mappings"))
    assert any(path.rglob("mutable_id_tracker.mappings"))
    return path


class TestDamage:
    """Of damaged id files the engine ends the process, or finds fewer points without a word."""

    @pytest.mark.parametrize("damage", DAMAGES)
    @pytest.mark.parametrize(
        "file",
        ["id_tracker.mappings", "id_tracker.deleted", "mutable_id_tracker.mappings", *NOT_HASHED, "version.info"],
    )
    def test_a_damaged_file_is_named_before_the_engine_reads_it(
        self, closed: Path, tmp_path: Path, file: str, damage: str
    ) -> None:
        path = copy_sparse(closed, tmp_path / "copy")
        (place, *_) = sorted(path.rglob(file))
        content = DAMAGES[damage](place.read_bytes())
        if content is None:
            place.unlink()
        else:
            place.write_bytes(content)
        with EdgeStore(path) as store:
            if (
                file in NOT_HASHED
                and content is not None
                and len(content) == (closed / place.relative_to(path)).stat().st_size
            ):
                assert store.count("c") == 300  # the engine itself rewrites them
            else:
                for use in (store.count, store.describe, store.ready):
                    with raises(StoreError, "collection c is damaged", place, "backup"):
                        use("c")

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(20))
    def test_damage_at_random_is_an_error_or_changes_no_answer(self, closed: Path, tmp_path: Path, seed: int) -> None:
        draw = random.Random(seed)
        path = copy_sparse(closed, tmp_path / "copy")
        place = draw.choice([*sorted(path.rglob("*id_tracker.mappings")), *sorted(path.rglob("*id_tracker.deleted"))])
        content = bytearray(place.read_bytes())
        at = draw.randrange(len(content))
        content[at] ^= draw.randrange(1, 256)
        place.write_bytes(content)
        with EdgeStore(path) as store, raises(StoreError, "collection c is damaged", place):
            store.count("c")

    def test_a_collection_of_fewer_points_than_it_was_closed_with_is_damaged(
        self, closed: Path, tmp_path: Path
    ) -> None:
        path = copy_sparse(closed, tmp_path / "copy")
        place = path / "collections" / "c" / "modalign.json"
        state = json.loads(place.read_text(encoding="utf-8"))
        place.write_text(json.dumps({**state, "points": 301}), encoding="utf-8")
        with EdgeStore(path) as store:
            for _ in range(2):
                with raises(StoreError, "collection c is damaged", 301, 300, "backup"):
                    store.count("c")

    def test_one_damaged_collection_does_not_block_the_others(self, closed: Path, tmp_path: Path) -> None:
        path = copy_sparse(closed, tmp_path / "copy")
        with EdgeStore(path) as store:
            store.create("d", LAYOUT)
            store.upsert("d", batch())
        next((path / "collections" / "c").rglob("id_tracker.mappings")).write_bytes(b"")
        with EdgeStore(path) as store:
            assert store.collections() == ["c", "d"]
            store.upsert("d", batch())
            assert store.count("d") == N

    def test_what_another_version_of_the_engine_closed_is_not_compared(self, closed: Path, tmp_path: Path) -> None:
        path = copy_sparse(closed, tmp_path / "copy")
        place = path / "collections" / "c" / "modalign.json"
        state = json.loads(place.read_text(encoding="utf-8"))
        place.write_text(json.dumps({**state, "engine": "0.8.0", "points": 1, "files": {}}), encoding="utf-8")
        with EdgeStore(path) as store:
            assert store.count("c") == 300

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(4))
    def test_what_is_closed_and_opened_again_and_again_is_never_called_damaged(self, tmp_path: Path, seed: int) -> None:
        draw = random.Random(seed)
        with EdgeStore(tmp_path) as store:
            store.create("c", replace(LAYOUT, indexing_threshold=1))
        for _ in range(4):
            with EdgeStore(tmp_path) as store:
                for _ in range(draw.randrange(1, 5)):
                    chosen = batch(300).take(sorted(draw.sample(range(300), draw.randrange(1, 200))))
                    match draw.randrange(4):
                        case 0:
                            store.delete("c", chosen.ids)
                        case 1:
                            store.ready("c")
                        case _:
                            store.upsert("c", chosen)
                points = store.count("c")
            for _ in range(2):
                with EdgeStore(tmp_path) as store:
                    assert store.count("c") == points
