"""Ingesting: overlapped, incremental, in parts, and equal to an undisturbed run whatever fails."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from alignment.metrics import parse
from alignment.modality import MODALITIES, Modality
from alignment.model.alignment import Alignment
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.writer import SetWriter
from alignment.vectors import FloatArray
from connector.corpora.formats import open_corpus
from connector.corpora.items import Corpus, Entry, Item
from connector.corpora.partition import CorpusPart
from connector.encoding.encoders import Encoder
from connector.errors import CollectionNotFoundError, CorpusError, MismatchError, ProvenanceError, StoreUnavailableError
from connector.provenance.artifacts import Artifacts
from connector.provenance.ledger import Ledger
from connector.provenance.runs import Run
from connector.push import batches as pushing
from connector.push import ingest as ingesting
from connector.push.delete import Deletion, DeletionPreview
from connector.push.ingest import Confirm, Ingest
from connector.releases import verify as verification
from connector.releases.release import load_release
from connector.stores.filters import parse_filter
from tests.support.errors import raises
from tests.support.fakes import FakeImageEncoder, FakeTextEncoder, Pair, fake_pairs, write_manifest
from tests.support.sparse_copy import copy_sparse
from tests.support.world import COLLECTION, KINDS, LIVE, Calls, World, opened_world, stored

N = 24
SET = "things"


class Counting:
    """The fake encoders, which count what they embed."""

    def __init__(self) -> None:
        self.embedded = 0
        outer = self

        class Images(FakeImageEncoder):
            def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
                outer.embedded += len(prepared)
                return super().embed(modality, prepared)

        class Texts(FakeTextEncoder):
            def embed(self, modality: Modality, prepared: Sequence[Any]) -> FloatArray:
                outer.embedded += len(prepared)
                return super().embed(modality, prepared)

        self.encoders: Mapping[Modality, Encoder] = {"image": Images(), "text": Texts()}


@dataclass
class Ingested:
    counts: dict[str, int]
    embedded: int


@dataclass(frozen=True)
class Outcome:
    """What commands left behind."""

    everything: Any
    ledger: Any


@dataclass
class Bench:
    """A world with a corpus."""

    world: World
    pairs: list[Pair]
    manifest: Path
    encoders: Mapping[Modality, Encoder] | None = None
    corpus: Corpus | None = None
    extra: list[dict[str, Any]] = field(default_factory=list)

    def write(self, pairs: Sequence[Pair]) -> None:
        write_manifest(self.manifest, pairs, *self.extra)

    def ingest(
        self, *, metrics: Sequence[str] = ("cosine",), parts: int | None = None, prune: Confirm | None = None
    ) -> Ingested:
        counting = Counting()
        path = self.world.home / "alignments" / "a"
        loaded = Alignment.load(path)
        with self.world.provenance.runs.start("ingest", {}) as run:
            ingest = Ingest(
                self.corpus or open_corpus(self.manifest),
                self.world.home / "sets" / SET,
                self.encoders or counting.encoders,
                loaded,
                self.world.provenance.artifacts.record_alignment("a", path, loaded),
                COLLECTION,
                [parse(metric) for metric in metrics],
                self.world.store,
                self.world.provenance,
                run,
                prune=prune,
                prune_at_most=1,
            )
            if parts is None:
                ingest.whole()
            else:
                ingest.in_parts(parts)
        return Ingested({name: count for name, count in run.counts.items() if count}, counting.embedded)

    def delete(self, **options: Any) -> Run:
        with self.world.provenance.runs.start("delete", {}) as run:
            Deletion(COLLECTION, self.world.store, self.world.provenance, run).delete(**options)
        return run

    def sets(self) -> dict[str, Any]:
        """The rows of every set, whatever shards they lie in."""
        found = {}
        for path in sorted((self.world.home / "sets").iterdir()):
            if path.is_dir():
                opened = EmbeddingSet.open(path)
                found[path.name] = (opened.card.fingerprint, opened.card.counts)
        return found

    def points(self) -> dict[str, Any]:
        """Every point of every collection."""
        store = self.world.store
        return {name: {m: stored(store, name, m) for m in MODALITIES} for name in store.collections()}

    def everything(self) -> Any:
        written = sum(points for points, _ in self.world.ledger().values())
        with self.world.provenance.database.session() as session:
            from connector.provenance.tables import LeaseRow, TombstoneRow

            assert not session.query(TombstoneRow).count()
            assert not session.query(LeaseRow).count()
        return self.sets(), self.points(), written, self.world.store.aliases(), self.world.states()

    def outcome(self) -> Outcome:
        return Outcome(self.everything(), self.world.ledger())

    def keys(self, modality: Modality) -> list[str]:
        (name,) = self.world.store.collections()
        return sorted(
            p["key"] for _, p in stored(self.world.store, name, modality).values() if p["modality"] == modality
        )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Pair]]:
    directory = tmp_path_factory.mktemp("corpus")
    return directory, fake_pairs(directory, N, captions=2)


@pytest.fixture(autouse=True, scope="module")
def small_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ingesting, "BATCH_ITEMS", 4)
        patched.setattr(ingesting, "SHARD_ROWS", 8)
        patched.setattr(ingesting, "POLL_SECONDS", 0.01)
        patched.setattr(pushing, "BATCH_POINTS", 4)
        patched.setattr(verification, "BATCH_POINTS", 4)
        patched.setattr(pushing, "FLUSH_POINTS", 8)
        yield


@pytest.fixture
def make(
    drawn: tuple[Path, list[Pair]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Bench]]:
    """Make benches, each with a home of its own, which may begin as a copy of another."""
    directory, pairs = drawn
    with ExitStack() as opened:

        def one(kind: str = "edge", name: str = "home", copy_of: Path | None = None) -> Bench:
            home = tmp_path / name
            if copy_of:
                copy_sparse(copy_of, home)
            world = opened.enter_context(opened_world(kind, home, monkeypatch, request))
            if not copy_of:
                world.alignment()
            bench = Bench(world, pairs, directory / f"{tmp_path.name}-{name}.jsonl")
            bench.write(pairs)
            return bench

        yield one


@pytest.fixture(scope="module")
def templates(
    drawn: tuple[Path, list[Pair]], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, tuple[Path, Outcome]]:
    """By metrics, a home that holds the corpus, to copy, and what is in it."""
    directory, pairs = drawn
    made = {}
    for metrics in ("cosine", "cosine euclid"):
        home = tmp_path_factory.mktemp("template") / "home"
        with pytest.MonkeyPatch.context() as patched, opened_world("edge", home, patched) as world:
            world.alignment()
            bench = Bench(world, pairs, directory / f"template-{metrics}.jsonl")
            bench.write(pairs)
            bench.ingest(metrics=metrics.split())
            made[metrics] = home, bench.outcome()
    return made


@pytest.fixture(scope="module")
def pruned(
    drawn: tuple[Path, list[Pair]],
    templates: Mapping[str, tuple[Path, Outcome]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """What a prune that nothing disturbs leaves behind."""
    directory, pairs = drawn
    home = copy_sparse(templates["cosine"][0], tmp_path_factory.mktemp("pruned") / "home")
    with pytest.MonkeyPatch.context() as patched, opened_world("edge", home, patched) as world:
        bench = Bench(world, pairs, directory / "pruned.jsonl")
        bench.write([*pairs[:5], *pairs[9:]])
        bench.ingest(prune=lambda gone: True)
        return bench.everything()


@pytest.fixture(scope="module", params=["key", "filter"])
def deletion(
    request: pytest.FixtureRequest,
    drawn: tuple[Path, list[Pair]],
    templates: Mapping[str, tuple[Path, Outcome]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], Outcome]:
    """Options of a deletion, and what it leaves behind where nothing disturbs it."""
    directory, pairs = drawn
    group = pairs[2].group
    condition = parse_filter(json.dumps({"must": [{"key": "group", "match": {"value": group}}]}))
    keys = [group, f"{group}#0", f"{group}#1"]
    options: dict[str, Any] = {"filter": condition} if request.param == "filter" else {"keys": keys}
    home = copy_sparse(templates["cosine euclid"][0], tmp_path_factory.mktemp("deleted") / "home")
    with pytest.MonkeyPatch.context() as patched, opened_world("edge", home, patched) as world:
        bench = Bench(world, pairs, directory / "deleted.jsonl")
        bench.delete(**options)
        return options, bench.outcome()


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, make: Callable[..., Bench]) -> Bench:
    return make(request.param)


class TestOverlap:
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


def arm(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, where: Any, method: str, number: int, error: BaseException
) -> None:
    """Let call `number` of a method fail, once."""
    owner: Any = {
        "store": bench.world.store,
        "ledger": Ledger,
        "artifacts": Artifacts,
        "writer": SetWriter,
        "encoder": Encoder,
        "corpus": type(open_corpus(bench.manifest)),
    }[where]
    plain, calls = getattr(owner, method), iter(range(1 << 30))

    def iterated(self: Any) -> Iterator[Entry]:
        for item in plain(self):
            if next(calls) == number:
                raise error
            yield item

    def called(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            raise error
        return plain(*arguments, **options)

    monkeypatch.setattr(owner, method, iterated if where == "corpus" else called)


class TestFailures:
    @pytest.mark.parametrize(("where", "method", "number", "kind"), FAILURES)
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
        assert bench.ingest().counts == {"unchanged": 2 * 3 * N}


class TestIncremental:
    def test_what_is_unchanged_costs_a_hash(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        bench.ingest()
        before = bench.everything()
        upserts = Calls(monkeypatch, bench.world.store, "upsert")
        deletes = Calls(monkeypatch, bench.world.store, "delete")
        done = bench.ingest()
        assert (done.embedded, len(upserts), len(deletes)) == (0, 0, 0)
        assert done.counts == {"unchanged": 2 * 3 * N}  # by encode, and by push
        assert bench.everything() == before

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
        assert bench.world.store.count(name) == 3 * N
        assert sum(points for points, _ in bench.world.ledger().values()) == 3 * N

    def test_what_left_the_corpus_stays_unless_told(self, bench: Bench) -> None:
        bench.ingest()
        bench.write(bench.pairs[:20])
        assert bench.ingest().counts["no_longer_in_corpus"] == 3 * 4
        assert len(bench.keys("image")) == N


class TestPrune:
    def test_what_left_the_corpus_leaves_points_rows_and_ledger(self, bench: Bench, make: Callable[..., Bench]) -> None:
        bench.ingest(metrics=["cosine", "chi2"])
        bench.write([*bench.pairs[:5], *bench.pairs[9:]])
        asked: list[int] = []

        def agree(gone: int) -> bool:
            asked.append(gone)
            return True

        done = bench.ingest(metrics=["cosine", "chi2"], prune=agree)
        assert asked == [12]
        assert done.counts["pruned"] == 12
        assert "written" not in done.counts  # the rows that stay have moved up in their shards
        plain = make(name="plain")
        plain.write([*bench.pairs[:5], *bench.pairs[9:]])
        plain.ingest(metrics=["cosine", "chi2"])
        assert bench.everything()[0] == plain.everything()[0]
        ours, theirs = bench.points(), plain.points()
        assert {n: {m: set(p) for m, p in of.items()} for n, of in ours.items()} == {
            n: {m: set(p) for m, p in of.items()} for n, of in theirs.items()
        }
        assert bench.everything()[2] == 2 * 3 * (N - 4)
        assert bench.ingest(metrics=["cosine", "chi2"], prune=lambda gone: pytest.fail("nothing is left to ask")).counts

    def test_no_means_no(self, bench: Bench) -> None:
        bench.ingest()
        before = bench.everything()
        bench.write(bench.pairs[:20])
        assert bench.ingest(prune=lambda gone: False).counts["no_longer_in_corpus"] == 12
        assert bench.everything() == before

    def test_rows_that_cannot_be_read_keep_everything(self, bench: Bench) -> None:
        bench.ingest()
        before = bench.everything()
        bench.extra = [{"image": "no key"}]
        bench.write(bench.pairs[:20])
        done = bench.ingest(prune=lambda gone: pytest.fail("nobody is asked"))
        assert (done.counts["not_pruned"], done.counts["rejected"]) == (12, 1)
        assert bench.everything() == before

    def test_a_row_that_another_part_cannot_read_keeps_everything(self, make: Callable[..., Bench]) -> None:
        bench = make()
        bench.ingest(parts=3)
        before = bench.everything()
        bench.extra = [{"image": "no key"}]
        bench.write(bench.pairs[:20])
        done = bench.ingest(parts=3, prune=lambda gone: pytest.fail("nobody is asked"))
        assert (done.counts["not_pruned"], done.counts["rejected"]) == (12, 1)
        assert bench.everything() == before

    @pytest.mark.parametrize("parts", [None, 3])
    def test_an_empty_corpus_is_an_error_and_prunes_nothing(
        self, make: Callable[..., Bench], parts: int | None
    ) -> None:
        bench = make()
        bench.ingest(parts=parts)
        held = bench.sets(), bench.points()
        bench.write([])
        with raises(CorpusError, bench.manifest):
            bench.ingest(parts=parts, prune=lambda gone: pytest.fail("nobody is asked"))
        assert (bench.sets(), bench.points()) == held

    def test_another_collection_of_the_set_loses_them_at_its_next_push(self, make: Callable[..., Bench]) -> None:
        bench = make()
        bench.ingest()
        embedding_set = EmbeddingSet.open(bench.world.home / "sets" / SET)
        bench.world.push(embedding_set, collection="beside")
        bench.write(bench.pairs[:20])
        bench.ingest(prune=lambda gone: True)
        bench.world.push(EmbeddingSet.open(embedding_set.path), collection="beside")
        assert {bench.world.store.count(name) for name in bench.world.store.collections()} == {60}

    def test_what_comes_back_is_written_again(self, bench: Bench) -> None:
        bench.ingest()
        bench.write(bench.pairs[:20])
        bench.ingest(prune=lambda gone: True)
        bench.write(bench.pairs)
        bench.ingest(prune=lambda gone: True)
        assert len(bench.keys("image")) == N

    @pytest.mark.parametrize(
        ("where", "method", "number"),
        [
            ("ledger", "add_tombstones", 0),
            ("ledger", "add_tombstones", 1),
            ("writer", "drop", 0),
            ("writer", "drop", 1),
            ("writer", "finish", 0),
            ("store", "delete", 0),
            ("store", "flush", 0),
            ("ledger", "remove_tombstones", 0),
            ("ledger", "write", 0),
        ],
    )
    def test_a_failure_anywhere_is_mended_by_the_next_run(
        self,
        make: Callable[..., Bench],
        templates: Mapping[str, tuple[Path, Outcome]],
        pruned: Any,
        monkeypatch: pytest.MonkeyPatch,
        where: str,
        method: str,
        number: int,
    ) -> None:
        bench = make(copy_of=templates["cosine"][0])
        bench.write([*bench.pairs[:5], *bench.pairs[9:]])
        with monkeypatch.context() as patched:
            arm(bench, patched, where, method, number, ProvenanceError("gone"))
            with pytest.raises(ProvenanceError):
                bench.ingest(prune=lambda gone: True)
        bench.ingest(prune=lambda gone: True)
        assert bench.everything() == pruned


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

    @pytest.mark.parametrize("parts", [None, 2])
    def test_a_shadow_takes_part_in_everything(self, make: Callable[..., Bench], parts: int | None) -> None:
        bench = make()
        bench.write(bench.pairs[:-2])
        bench.ingest(parts=parts)
        bench.world.alignment("b", turn=1)
        for path in sorted(path for path in (bench.world.home / "sets").iterdir() if path.is_dir()):
            bench.world.push(EmbeddingSet.open(path), "b")
        live, shadow = (row.physical_name for row in bench.world.provenance.releases.find())
        bench.write(bench.pairs[2:])
        done = bench.ingest(parts=parts, prune=lambda gone: True)
        assert (done.counts["encoded"], done.counts["pruned"]) == (6, 6)
        self.check_fresh(bench, live, shadow)
        assert bench.delete(keys=[bench.pairs[5].key]).counts["deleted"] == 1
        self.check_fresh(bench, live, shadow)
        world = bench.world
        for name in (live, shadow):
            (row,) = world.provenance.releases.find(physical_name=name)
            verification.verify(load_release(world.provenance, world.store, row), world.store, world.provenance, seed=0)

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


class TestDelete:
    @pytest.fixture(params=[*KINDS, *LIVE])
    def bench(self, request: pytest.FixtureRequest, make: Callable[..., Bench]) -> Bench:
        return make(request.param)

    def test_by_key(self, bench: Bench) -> None:
        bench.ingest(metrics=["cosine", "chi2"])
        key = bench.pairs[7].key
        said: list[DeletionPreview] = []

        def agree(doomed: DeletionPreview) -> bool:
            said.append(doomed)
            return True

        run = bench.delete(keys=[key, f"{key}#1", "unknown"], confirm=agree)
        assert said == [DeletionPreview(2, [SET], COLLECTION, [])]
        assert (run.counts["deleted"], run.counts["rows"]) == (2, 2)
        sets, points, written, _, states = bench.everything()
        assert sets[SET][1] == {"image": N - 1, "text": 2 * N - 1}
        assert written == 2 * (3 * N - 2)
        assert set(states.values()) == {("live", 3 * N - 2)}
        assert all(
            payload["key"] not in (key, f"{key}#1")
            for of in points.values()
            for p in of["image"].values()
            for payload in [p[1]]
        )
        again = bench.world.push(EmbeddingSet.open(bench.world.home / "sets" / SET), metrics=["cosine", "chi2"])
        assert again.counts == {"unchanged": 2 * (3 * N - 2)}

    def test_of_one_modality(self, bench: Bench) -> None:
        bench.ingest()
        bench.delete(keys=[bench.pairs[0].key, f"{bench.pairs[0].key}#0"], modalities=["text"])
        assert len(bench.keys("image")) == N
        assert len(bench.keys("text")) == 2 * N - 1

    def test_by_filter(self, bench: Bench) -> None:
        bench.ingest()
        group = bench.pairs[2].group
        condition = parse_filter(json.dumps({"must": [{"key": "group", "match": {"value": group}}]}))
        assert bench.delete(filter=condition).counts["deleted"] == 3
        assert bench.pairs[2].key not in bench.keys("image")
        assert bench.everything()[2] == 3 * N - 3

    def test_no_means_no(self, bench: Bench) -> None:
        bench.ingest()
        before = bench.everything()
        bench.delete(keys=[bench.pairs[0].key], confirm=lambda doomed: False)
        assert bench.everything() == before

    def test_what_is_not_there(self, bench: Bench) -> None:
        bench.ingest()
        before = bench.everything()
        assert bench.delete(keys=["unknown"], confirm=lambda doomed: pytest.fail("asked")).counts["deleted"] == 0
        assert bench.everything() == before

    def test_a_collection_that_there_is_not(self, bench: Bench) -> None:
        with raises(CollectionNotFoundError, "'things'"):
            bench.delete(keys=["a"])

    def test_retired_releases_and_other_collections_of_the_set_lose_it_too(self, make: Callable[..., Bench]) -> None:
        bench = make()
        bench.ingest()
        bench.world.alignment("b", turn=1)
        embedding_set = EmbeddingSet.open(bench.world.home / "sets" / SET)
        (retired,) = bench.world.push(embedding_set, "b").releases
        retired.row.state = "retired"
        bench.world.provenance.releases.save(retired.row)
        bench.world.push(embedding_set, collection="beside")
        assert sorted(state for state, _ in bench.world.states().values()) == ["live", "live", "retired"]
        bench.delete(keys=[bench.pairs[0].key])
        assert {bench.world.store.count(name) for name in bench.world.store.collections()} == {3 * N - 1}
        assert sorted(bench.world.states().values()) == [("live", 3 * N - 1)] * 2 + [("retired", 3 * N - 1)]
        verification.verify(retired, bench.world.store, bench.world.provenance, seed=0)  # a rollback may return to it

    @pytest.mark.parametrize(
        ("where", "method", "number"),
        [
            ("ledger", "add_tombstones", 0),
            ("ledger", "add_tombstones", 1),
            ("writer", "drop", 0),
            ("writer", "drop", 1),
            ("writer", "finish", 0),
            ("artifacts", "record_set", 0),
            ("store", "delete", 0),
            ("store", "flush", 0),
            ("store", "delete", 1),
            ("ledger", "remove_tombstones", 0),
            ("store", "retrieve", 2),  # points that stay are read, and none is written
            ("ledger", "write", 0),
            ("store", "ready", 0),
        ],
    )
    def test_a_failure_anywhere_is_mended_by_the_same_command(
        self,
        make: Callable[..., Bench],
        templates: Mapping[str, tuple[Path, Outcome]],
        deletion: tuple[dict[str, Any], Outcome],
        monkeypatch: pytest.MonkeyPatch,
        where: str,
        method: str,
        number: int,
    ) -> None:
        bench, (options, undisturbed) = make(copy_of=templates["cosine euclid"][0]), deletion
        with monkeypatch.context() as patched:
            arm(bench, patched, where, method, number, ProvenanceError("gone"))
            with suppress(ProvenanceError):  # a filter that finds nothing any more comes by fewer places
                bench.delete(**options)
        bench.delete(**options)
        assert bench.outcome() == undisturbed


class TestParts:
    def test_together_they_are_the_corpus(self, bench: Bench) -> None:
        corpus = open_corpus(bench.manifest)
        parts = [list(CorpusPart(corpus.path, corpus, number, 3)) for number in (1, 2, 3)]
        assert all(parts)
        named = [(item.modality, item.key) for part in parts for item in part if isinstance(item, Item)]
        assert sorted(named) == sorted((item.modality, item.key) for item in corpus if isinstance(item, Item))

    def test_a_row_that_cannot_be_read_is_refused_by_one_part(self, bench: Bench) -> None:
        bench.extra = [{"image": "no key"}]
        bench.write(bench.pairs)
        assert bench.ingest(parts=3).counts["rejected"] == 1

    def test_one_process_takes_them_all(self, bench: Bench, make: Callable[..., Bench]) -> None:
        done = bench.ingest(parts=3)
        assert done.counts["written"] == 3 * N
        whole = make(name="whole")
        whole.ingest()
        ours, theirs = bench.points(), whole.points()
        assert {n: {m: set(p) for m, p in of.items()} for n, of in ours.items()} == {
            n: {m: set(p) for m, p in of.items()} for n, of in theirs.items()
        }
        assert bench.world.states() == whole.world.states()
        assert set(bench.sets()) == {f"{SET}.part-{number}-of-3" for number in (1, 2, 3)}
        assert bench.ingest(parts=3).counts == {"unchanged": 2 * 3 * N}

    def test_parts_may_be_empty_but_not_all_of_them(self, make: Callable[..., Bench]) -> None:
        bench = make()
        bench.write(bench.pairs[:1])
        assert bench.ingest(parts=9).counts["written"] == 3
        nothing = make(name="nothing")
        nothing.write([])
        with raises(CorpusError, nothing.manifest):
            nothing.ingest(parts=2)
        nothing.write(nothing.pairs)
        assert nothing.ingest(parts=2).counts["written"] == 3 * N

    def test_nothing_is_live_before_all_are_done(
        self, make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = make()
        with monkeypatch.context() as patched:
            arm(bench, patched, "writer", "finish", 2, OSError("gone"))
            with pytest.raises(OSError, match="gone"):
                bench.ingest(parts=3)
        assert bench.world.store.aliases() == {}
        assert [state for state, _ in bench.world.states().values()] == ["building"]
        read: list[str] = []
        plain = CorpusPart.__iter__

        def noted(self: CorpusPart) -> Iterator[Entry]:
            read.append(f"{self.number}")
            return plain(self)

        monkeypatch.setattr(CorpusPart, "__iter__", noted)
        bench.ingest(parts=3)
        assert read == ["3"]  # what is done is not done again
        assert list(bench.world.states().values()) == [("live", 3 * N)]

    @pytest.mark.parametrize(("first", "then"), [(2, 3), (None, 2), (2, None)])
    def test_another_division_is_refused(self, bench: Bench, first: int | None, then: int | None) -> None:
        bench.ingest(parts=first)
        before = bench.everything()
        with raises(MismatchError, "--parts"):
            bench.ingest(parts=then)
        with bench.world.provenance.database.session() as session:
            from connector.provenance.tables import LeaseRow

            session.query(LeaseRow).delete()
        assert bench.everything() == before

    def test_a_part_that_another_process_still_writes_is_passed_over(
        self, make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = make()
        path = bench.world.home / "sets" / f"{SET}.part-1-of-2"
        slow = SetWriter(path, corpus="slow", encoders={})
        slow.__enter__()
        order: list[str] = []
        enter = SetWriter.__enter__

        def noted(self: SetWriter) -> SetWriter:
            writer = enter(self)
            order.append(self.path.name)
            if self.path != path:
                slow.__exit__(OSError, None, None)  # the other process notices that its claim is lost
            return writer

        monkeypatch.setattr(SetWriter, "__enter__", noted)
        assert bench.ingest(parts=2).counts["written"] == 3 * N
        assert order == [f"{SET}.part-2-of-2", f"{SET}.part-1-of-2"]

    def test_what_cannot_be_verified_begins_anew(
        self, make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = make()
        with monkeypatch.context() as patched:
            arm(bench, patched, "store", "ready", 0, MismatchError("other counts"))
            with pytest.raises(MismatchError):
                bench.ingest(parts=2)
        assert bench.ingest(parts=2).counts == {"unchanged": 2 * 3 * N}
