"""Ingesting: overlapped, incremental, and equal to an undisturbed run whatever fails."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from alignment.sets.embedding_set import EmbeddingSet
from connector.corpora.formats import open_corpus
from connector.corpora.items import Corpus, Entry
from connector.errors import CorpusError, ProvenanceError, StoreUnavailableError
from connector.releases import verify as verification
from connector.releases.release import load_release
from tests.support.cut_corpora import InRows
from tests.support.errors import raises
from tests.support.fakes import Pair
from tests.support.ingesting import SET, Bench, N, Outcome, arm
from tests.support.shuffling import Shuffling
from tests.support.slow import slow_unless
from tests.support.world import Calls, stored

pytestmark = pytest.mark.usefixtures("in_small_steps")


class TestOverlap:
    @pytest.mark.slow
    def test_it_is_encode_and_push(self, make: Callable[..., Bench]) -> None:
        one, two = make(), make(name="other")
        done = one.ingest(metrics=["cosine", "chi2"])
        assert done.counts == {"encoded": 3 * N, "written": 2 * 3 * N}
        two.ingest(metrics=["cosine"])
        two.ingest(metrics=["cosine", "chi2"])
        assert one.everything()[:4] == two.everything()[:4]
        assert one.world.ledger() == two.world.ledger()

    def test_points_are_written_while_the_corpus_is_read(self, make: Callable[..., Bench]) -> None:
        bench = make()
        written = threading.Event()

        @dataclass(frozen=True, slots=True)
        class Patient(Corpus):
            """Keeps its second half until points of the first are there."""

            def __iter__(self) -> Iterator[Entry]:
                for number, item in enumerate(open_corpus(self.path)):
                    if number == 2 * N:
                        assert written.wait(30), "nothing is written before the corpus ends"
                    yield item

            def total(self) -> int:
                return N

        upsert = bench.world.store.upsert

        def marked(*arguments: Any) -> None:
            upsert(*arguments)
            written.set()

        bench.world.store.upsert = marked  # type: ignore[method-assign,assignment]
        bench.corpus = Patient(bench.manifest)
        assert bench.ingest().counts["written"] == 3 * N

    def test_what_stands_in_the_set_is_written_first(
        self, make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = make()
        bench.write(bench.pairs[:12])
        failing = Calls(monkeypatch, bench.world.store, "upsert")
        failing.fail(0, StoreUnavailableError("gone"))
        with pytest.raises(StoreUnavailableError):
            bench.ingest()
        bench.write(bench.pairs)
        standing = [path.name for path in (bench.world.home / "sets" / SET).glob("*.parquet")]
        assert standing
        bench.ingest()
        first = [name for _, name, _ in list(bench.world.ledger())[: 2 * len(standing)]]
        assert set(standing) == set(first)


FAILURES: list[tuple[type | str, str, int, type[BaseException]]] = [
    ("corpus", "__iter__", 30, OSError),
    ("encoder", "embed", 3, RuntimeError),
    ("encoder", "embed", 3, KeyboardInterrupt),
    ("store", "upsert", 0, StoreUnavailableError),
    ("store", "upsert", 7, StoreUnavailableError),
    ("store", "upsert", 7, KeyboardInterrupt),
    ("store", "flush", 1, StoreUnavailableError),
    ("store", "ready", 0, StoreUnavailableError),
    ("ledger", "write", 0, ProvenanceError),
    ("ledger", "write", 4, ProvenanceError),
    ("artifacts", "record_set", 1, ProvenanceError),
    ("writer", "append", 2, OSError),
    ("writer", "finish", 0, KeyboardInterrupt),
]


class TestFailures:
    @pytest.mark.parametrize(
        ("where", "method", "number", "kind"),
        slow_unless(
            lambda case: (
                case[1:3]
                in {("__iter__", 30), ("flush", 1), ("append", 2), ("record_set", 1), ("write", 4), ("finish", 0)}
            ),
            FAILURES,
        ),
    )
    def test_it_is_raised_as_itself_and_the_next_run_ends_as_an_undisturbed_one(
        self,
        make: Callable[..., Bench],
        templates: Mapping[str, tuple[Path, Outcome]],
        monkeypatch: pytest.MonkeyPatch,
        where: str,
        method: str,
        number: int,
        kind: type[BaseException],
    ) -> None:
        bench, (_, undisturbed) = make(), templates["cosine"]
        error, threads = kind("the very same"), threading.active_count()
        with monkeypatch.context() as patched:
            arm(bench, patched, where, method, number, error)
            with pytest.raises(kind) as raised:
                bench.ingest()
        assert raised.value is error
        assert threading.active_count() == threads
        bench.ingest()
        assert bench.outcome() == undisturbed

    @pytest.mark.slow
    @pytest.mark.parametrize(("method", "number"), [("upsert", 0), ("upsert", 2), ("flush", 0), ("flush", 1)])
    def test_an_update_that_fails_is_not_begun_from_nothing(
        self, make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, method: str, number: int
    ) -> None:
        bench = make()
        bench.ingest()
        renamed = [Pair(p.key, p.image, p.captions, f"new {p.key}") for p in bench.pairs[:5]]
        bench.write([*renamed, *bench.pairs[5:]])
        with monkeypatch.context() as patched:
            arm(bench, patched, "store", method, number, StoreUnavailableError("gone"))
            with pytest.raises(StoreUnavailableError):
                bench.ingest()
        done = bench.ingest()
        assert done.counts.get("written", 0) <= 3 * 5 + 3 * 8  # what changed, and the rest of its shards
        assert bench.ingest().counts == {"already_in_set": 3 * N, "unchanged": 3 * N}


class TestIncremental:
    @pytest.mark.slow
    def test_what_is_unchanged_costs_a_hash(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.ingest()
        before = bench.everything()
        upserts = Calls(monkeypatch, bench.world.store, "upsert")
        deletes = Calls(monkeypatch, bench.world.store, "delete")
        done = bench.ingest()
        assert (done.embedded, len(upserts), len(deletes)) == (0, 0, 0)
        assert done.counts == {"already_in_set": 3 * N, "unchanged": 3 * N}
        assert bench.everything() == before

    @pytest.mark.slow
    def test_what_changed_is_replaced(self, bench: Bench) -> None:
        bench.ingest()
        changed = Pair(bench.pairs[3].key, bench.pairs[3].image, ["another caption", bench.pairs[3].captions[1]], "g")
        bench.write([*bench.pairs[:3], changed, *bench.pairs[4:]])
        done = bench.ingest()
        assert (done.embedded, done.counts["written"]) == (1, 3)  # the item's image and both its captions
        (name,) = bench.world.store.collections()
        texts = stored(bench.world.store, name, "text")
        payloads = [payload for _, payload in texts.values() if payload["key"] == f"{changed.key}#0"]
        assert [(p["caption"], p["group"]) for p in payloads] == [("another caption", "g")]
        images = stored(bench.world.store, name, "image").values()
        of_image = [payload for _, payload in images if payload["key"] == changed.key]
        assert [(p["caption"], p["group"]) for p in of_image] == [("another caption", "g")]
        assert bench.world.store.count(name) == 3 * N
        assert sum(points for points, _ in bench.world.ledger().values()) == 3 * N

    @pytest.mark.slow
    def test_what_left_the_corpus_stays_unless_told(self, bench: Bench) -> None:
        bench.ingest()
        bench.write(bench.pairs[:20])
        assert bench.ingest().counts["no_longer_in_corpus"] == 3 * 4
        assert len(bench.keys("image")) == N


class TestShadows:
    """What arrives and what leaves reaches the live release and its shadow, each through its own alignment."""

    def check_fresh(self, bench: Bench, live: str, shadow: str) -> None:
        """Both hold what pushing the sets into new collections gives, and SQL says so."""
        points, states = bench.points(), bench.world.states()
        assert (states[live][0], states[shadow][0]) == ("live", "ready")
        for name, turn in {live: "a", shadow: "b"}.items():
            for path in sorted(path for path in (bench.world.home / "sets").iterdir() if path.is_dir()):
                pushed = bench.world.push(EmbeddingSet.open(path), turn, collection=f"fresh-{len(states)}-{turn}")
            (fresh,) = pushed.releases
            assert points[name] == bench.points()[fresh.name]
            assert states[name][1] == bench.world.states()[fresh.name][1]

    @pytest.mark.slow
    def test_a_shadow_takes_part_in_everything(self, make: Callable[..., Bench]) -> None:
        bench = make()
        bench.write(bench.pairs[:-2])
        bench.ingest()
        bench.world.alignment("b", turn=1)
        for path in sorted(path for path in (bench.world.home / "sets").iterdir() if path.is_dir()):
            bench.world.push(EmbeddingSet.open(path), "b")
        live, shadow = (row.physical_name for row in bench.world.provenance.releases.find())
        bench.write(bench.pairs[2:])
        done = bench.ingest(prune=lambda gone: True)
        assert (done.counts["encoded"], done.counts["pruned"]) == (6, 6)
        self.check_fresh(bench, live, shadow)
        assert bench.delete(keys=[bench.pairs[5].key]).counts["deleted"] == 1
        self.check_fresh(bench, live, shadow)
        world = bench.world
        for name in (live, shadow):
            (row,) = world.provenance.releases.find(physical_name=name)
            verification.verify(load_release(world.provenance, world.store, row), world.store, world.provenance, seed=0)

    def test_points_of_shards_that_are_rewritten_are_counted_once(self, make: Callable[..., Bench]) -> None:
        bench = make()
        bench.ingest()
        bench.write(bench.pairs[1:])
        done = bench.ingest(prune=lambda gone: True)
        assert (done.counts["pruned"], done.counts["unchanged"]) == (3, 3 * N - 3)
        assert "written" not in done.counts

    @pytest.mark.slow
    def test_what_is_pruned_leaves_a_way_back(self, make: Callable[..., Bench]) -> None:
        """A retired release stays what SQL says that it is, until its alignment is pushed again."""
        bench = make()
        bench.ingest()
        bench.world.alignment("b", turn=1)
        (retired,) = bench.world.push(EmbeddingSet.open(bench.world.home / "sets" / SET), "b").releases
        retired.row.state = "retired"
        bench.world.provenance.releases.save(retired.row)
        bench.write(bench.pairs[2:])
        bench.ingest(prune=lambda gone: True)
        assert bench.world.states()[retired.name] == ("retired", 3 * N)
        verification.verify(retired, bench.world.store, bench.world.provenance, seed=0)
        bench.world.push(EmbeddingSet.open(bench.world.home / "sets" / SET), "b")
        assert sorted(bench.world.states().values()) == [("live", 3 * N - 6), ("ready", 3 * N - 6)]
        assert bench.everything()


@pytest.mark.usefixtures("fake_encoders")
class TestWorkers:
    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(3))
    def test_units_that_workers_encode_in_any_order_give_the_same(self, make: Callable[..., Bench], seed: int) -> None:
        one, other = make(), make(name="other")
        for bench, executor in ((one, None), (other, Shuffling(seed))):
            bench.corpus, bench.executor = InRows(bench.manifest), executor
            bench.ingest()
            bench.write([*bench.pairs[3:], replace(bench.pairs[3], key="renamed")])
            bench.corpus = InRows(bench.manifest)
            bench.ingest(prune=lambda gone: True)
        assert one.everything()[1:] == other.everything()[1:]
        assert one.world.ledger() == other.world.ledger()
        assert [counts for _, counts in one.sets().values()] == [counts for _, counts in other.sets().values()]

    def test_a_unit_that_fails_keeps_what_it_may_hold(self, bench: Bench) -> None:
        bench.corpus = InRows(bench.manifest)
        bench.ingest()
        before = bench.everything()
        bench.write(bench.pairs[:20])
        bench.corpus, bench.executor = InRows(bench.manifest), Shuffling(fails=("0",))
        with raises(CorpusError, "unit 0", code="units-failed"):
            bench.ingest(prune=lambda gone: pytest.fail("nobody is asked"))
        assert bench.everything() == before
