"""SQL, collection and embedding sets are compared point by point, and mended from the embedding sets."""

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from alignment.errors import EmbeddingSetError
from alignment.modality import MODALITIES
from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import MismatchError
from connector.push import batches as pushing
from connector.releases import reconcile as reconciling
from connector.releases.point_id_set import AT_ONCE, PointIds
from connector.releases.points import point_id
from connector.releases.reconcile import ReconcileReport, reconcile
from connector.releases.reconcile_releases import repair_releases
from connector.releases.release import open_release
from connector.stores import qdrant_readiness
from connector.stores.points import Points
from connector.stores.qdrant_connection import Connection
from tests.support.errors import raises
from tests.support.world import (
    COLLECTION,
    KINDS,
    LIVE,
    SOME,
    LocalModeStore,
    World,
    embedded,
    latent,
    opened_world,
    pairs,
    points_of,
    rows,
    stored,
)


@pytest.fixture(params=[*KINDS, *LIVE])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for module in (pushing, reconciling):
        monkeypatch.setattr(module, "BATCH_POINTS", 4)
    with opened_world(request.param, tmp_path, request) as opened:
        opened.alignment()
        opened.push(opened.set("s", *pairs(10)), metrics=["cosine"])
        opened.push(opened.set("more", *pairs(3, seed=4, prefix="more-")), metrics=["cosine"])
        yield opened


def found(world: World, metric: str = "cosine", *, seed: int = 0, full: bool = False) -> ReconcileReport:
    release = open_release(world.provenance, world.store, COLLECTION, metric)
    return reconcile(release, world.store, world.provenance, seed=seed, full=full)


def repaired(world: World, *, orphans: int | None = None, full: bool = False) -> dict[str, int]:
    with world.provenance.runs.start("repair", {}) as run:
        repair_releases(world.provenance, world.store, run, COLLECTION, orphans=orphans, full=full)
    return dict(run.counts)


def counts(result: ReconcileReport) -> tuple[int, int, int, int]:
    return result.missing.count, result.differing.count, result.orphans.count, result.unrecorded.count


def name(world: World) -> str:
    return open_release(world.provenance, world.store, COLLECTION).name


def edit(world: World, modality: str, key: str, **payload: object) -> None:
    (record,) = world.store.retrieve(name(world), [point_id(modality, key)], vector_name=modality)  # type: ignore[arg-type]
    vector = np.asarray(record.vector)[None]
    world.store.upsert(name(world), Points(modality, [record.id], vector, [{**record.payload, **payload}]))


def another_content(world: World) -> None:
    edit(world, "image", "3", content_sha256="0")


def another_payload(world: World) -> None:
    edit(world, "text", "0", extra=1)


def turn(world: World, key: str = "4") -> None:
    (record,) = world.store.retrieve(name(world), [point_id("text", key)], vector_name="text")
    world.store.upsert(
        name(world), Points("text", [record.id], np.roll(np.asarray(record.vector), 1)[None], [record.payload])
    )


def delete(world: World) -> None:
    world.store.delete(name(world), [point_id("image", "2"), point_id("text", "more-1")])


def stray(world: World) -> None:
    world.store.upsert(name(world), Points("image", points_of(2), np.eye(6, dtype=np.float32)[:2], [{}, {"key": "k"}]))


def stray_integers(world: World) -> None:
    """Points of another program, one of them a copy of ours under its own number."""
    (ours,) = world.store.retrieve(name(world), [point_id("image", "3")])
    payloads = [{}, ours.payload, {"modality": ["image"], "key": 5}, {"group": "1"}]
    numbers = ["0", "5", "123456789", str(2**64 - 1)]
    world.store.upsert(name(world), Points("image", numbers, np.eye(6, dtype=np.float32)[:4], payloads))


def copy(world: World) -> None:
    """A copy of one of ours, under an id that does not follow from its key."""
    (ours,) = world.store.retrieve(name(world), [point_id("text", "3")], vector_name="text")
    world.store.upsert(name(world), Points("text", points_of(1), np.asarray(ours.vector)[None], [ours.payload]))


def forget(world: World) -> None:
    row = open_release(world.provenance, world.store, COLLECTION).row
    (embedding_set, _) = world.provenance.ledger.sets_in([row.id])
    with world.provenance.runs.start("push", {}) as run:
        forgotten = [("image-000000.parquet", 4)]
        world.provenance.ledger.write(row.id, embedding_set.id, run.id, {}, removed=forgotten)


def encode_more(world: World) -> None:
    world.set("s", *pairs(10), *pairs(1, seed=8, prefix="later-"))


BROKEN: Sequence[tuple[Callable[[World], None], tuple[int, int, int, int], dict[str, list[str]], dict[str, int]]] = [
    (delete, (2, 0, 0, 0), {"missing": ["image:2", "text:more-1"]}, {"repaired": 2}),
    (another_content, (0, 1, 0, 0), {"differing": ["image:3"]}, {"repaired": 1}),
    (another_payload, (0, 1, 0, 0), {"differing": ["text:0"]}, {"repaired": 1}),
    (turn, (0, 1, 0, 0), {"differing": ["text:4"]}, {"repaired": 1}),
    (stray, (0, 0, 2, 0), {"orphans": points_of(2)}, {"orphans_deleted": 2}),
    (
        stray_integers,
        (0, 0, 4, 0),
        {"orphans": ["0", "5", "123456789", "18446744073709551615"]},
        {"orphans_deleted": 4},
    ),
    (copy, (0, 0, 1, 0), {"orphans": points_of(1)}, {"orphans_deleted": 1}),
    (forget, (0, 0, 0, 1), {"unrecorded": ["image-000000.parquet:4"]}, {"repaired": 4}),
    (
        encode_more,
        (2, 0, 0, 2),
        {
            "missing": ["image:later-0", "text:later-0"],
            "unrecorded": ["image-000001.parquet:0", "text-000001.parquet:0"],
        },
        {"repaired": 2},
    ),
]


class TestReconcile:
    def test_what_was_pushed_is_sound(self, world: World) -> None:
        result = found(world)
        assert result.consistent
        assert (result.points, result.recorded, result.held, result.vectors) == (26, 26, 26, 26)

    @pytest.mark.slow
    @pytest.mark.parametrize("world", KINDS, indirect=True)  # which vectors lie there is not the server's affair
    @pytest.mark.parametrize("metric", SOME)
    def test_under_every_guarantee(self, world: World, metric: str) -> None:
        world.push(world.set("s", *pairs(10)), metrics=[metric])
        assert counts(found(world, metric)) == (0, 0, 0, 0)

    @pytest.mark.slow
    @pytest.mark.parametrize(("broken", "expected", "examples", "mending"), BROKEN)
    def test_what_differs_is_counted_named_and_repaired(
        self,
        world: World,
        broken: Callable[[World], None],
        expected: tuple[int, int, int, int],
        examples: dict[str, list[str]],
        mending: dict[str, int],
    ) -> None:
        broken(world)
        before = world.snapshot()
        result = found(world)
        assert (counts(result), result.consistent) == (expected, False)
        for kind, items in examples.items():
            assert sorted(getattr(result, kind).examples) == sorted(items)
        assert world.snapshot() == before
        assert repaired(world, orphans=expected[2] or None) == mending
        assert found(world).consistent
        release = open_release(world.provenance, world.store, COLLECTION)
        assert release.row.points == world.store.count(release.name)
        for path in ("s", "more"):  # a push then has nothing left to do
            embedding_set = EmbeddingSet.open(world.home / "sets" / path)
            assert "written" not in world.push(embedding_set).counts

    def test_orphans_stay_unless_told(self, world: World) -> None:
        stray(world)
        assert repaired(world) == {}
        assert counts(found(world)) == (0, 0, 2, 0)

    @pytest.mark.parametrize("orphans", [1, 3])
    def test_another_number_of_orphans_than_there_are_deletes_none(self, world: World, orphans: int) -> None:
        stray(world)
        delete(world)
        with raises(MismatchError, str(orphans), "2"):
            repaired(world, orphans=orphans)
        assert counts(found(world)) == (0, 0, 2, 0)  # all else is repaired

    def test_no_orphan_is_deleted_while_another_run_writes(self, world: World) -> None:
        stray(world)
        with world.provenance.runs.start("push", {"into": COLLECTION}) as writer:
            with raises(MismatchError, f"run {writer.id}"):
                repaired(world, orphans=2)
            assert counts(found(world)) == (0, 0, 2, 0)
        assert repaired(world, orphans=2) == {"orphans_deleted": 2}

    def test_an_aligned_vector_in_a_payload_is_compared(self, world: World) -> None:
        (release,) = world.push(world.set("s", *pairs(10)), metrics=["chi2"]).releases
        (one, other) = (
            world.store.retrieve(release.name, [point_id("image", key)], vector_name="image")[0] for key in "12"
        )
        for aligned in (other.payload["aligned"], "bm8=", 5):
            payload = {**one.payload, "aligned": aligned}
            world.store.upsert(release.name, Points("image", [one.id], np.asarray(one.vector)[None], [payload]))
            assert found(world, "chi2").differing.examples == ["image:1"]
        repaired(world)
        assert stored(world.store, release.name, "image")[one.id][1] == one.payload

    @pytest.fixture
    def sampled(self, world: World, monkeypatch: pytest.MonkeyPatch) -> World:
        """Eight of the 26 vectors are wrong, and a comparison draws about seven of each set."""
        monkeypatch.setattr(reconciling, "VECTORS", 7)
        for key in "01234567":
            turn(world, key)
        return world

    @pytest.mark.slow
    def test_one_wrong_vector_in_the_sample_makes_it_compare_all(self, sampled: World) -> None:
        results = [found(sampled, seed=seed) for seed in range(12)]
        assert {(r.differing.count, r.vectors) for r in results if r.differing.count} == {(8, 26)}
        assert {r.consistent for r in results} == {r.differing.count == 0 for r in results}

    @pytest.mark.slow
    def test_another_seed_draws_another_sample_and_the_same_one_the_same(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reconciling, "VECTORS", 7)
        turn(world)
        seen = [found(world, seed=seed).consistent for seed in range(24)]
        assert set(seen) == {True, False}
        assert seen[:8] == [found(world, seed=seed).consistent for seed in range(8)]
        assert found(world, seed=seen.index(True), full=True).differing.examples == ["text:4"]

    @pytest.mark.slow
    @pytest.mark.parametrize("full", [True, False])
    def test_a_repair_that_meets_one_wrong_vector_repairs_all(self, sampled: World, full: bool) -> None:
        mended = repaired(sampled, full=full)
        while not mended:  # no wrong vector was in its sample
            mended = repaired(sampled, full=full)
        assert mended == {"repaired": 8}
        assert found(sampled, full=True).consistent

    def test_a_set_that_is_gone_makes_no_orphans(self, world: World) -> None:
        (world.home / "sets" / "more" / "card.json").unlink()
        with raises(EmbeddingSetError, "more"):
            found(world)

    def test_what_qdrant_refused_is_not_missing(self, world: World) -> None:
        """A ledger line with the rows' digest and fewer points: the push that wrote it recorded the rest as rejects."""
        row = open_release(world.provenance, world.store, COLLECTION).row
        (embedding_set, _) = world.provenance.ledger.sets_in([row.id])
        place = ("text-000000.parquet", 4)
        (digest, points) = world.provenance.ledger.entries(row.id, embedding_set.id)[place]
        world.store.delete(name(world), [point_id("text", "5")])
        with world.provenance.runs.start("push", {}) as run:
            world.provenance.ledger.write(row.id, embedding_set.id, run.id, {place: (digest, points - 1)})
        assert found(world).consistent

    @pytest.mark.slow
    @pytest.mark.parametrize(("lost", "strays"), [(0, 0), (1, 1), (0, 1), (2, 1), (1, 2)])
    def test_orphans_are_found_whatever_the_number_of_points_and_not_looked_for_where_there_is_no_room(
        self, world: World, monkeypatch: pytest.MonkeyPatch, lost: int, strays: int
    ) -> None:
        """As many points as there should be say nothing where one of them is missing."""
        world.store.delete(name(world), [point_id("image", str(number)) for number in range(lost)])
        vectors, payloads = np.eye(6, dtype=np.float32)[:strays], [{"key": "k"}] * strays
        world.store.upsert(name(world), Points("image", points_of(strays), vectors, payloads))
        unfiltered = []
        scroll = world.store.scroll

        def recorded(*arguments: Any, **options: Any) -> Any:
            if "filter" not in options:
                unfiltered.append(arguments)
            return scroll(*arguments, **options)

        monkeypatch.setattr(world.store, "scroll", recorded)
        result = found(world)
        assert (result.missing.count, result.orphans.count) == (lost, strays)
        assert bool(unfiltered) == bool(lost or strays)

    def test_a_stray_point_in_the_place_of_a_refused_one_is_an_orphan(self, world: World) -> None:
        (row,) = world.provenance.releases.find()
        refused = point_id("image", "0")
        world.store.delete(name(world), [refused])
        shard = ("image-000000.parquet", 0)
        (embedding_set, _) = world.provenance.ledger.sets_in([row.id])
        digest, count = world.provenance.ledger.entries(row.id, embedding_set.id)[shard]
        with world.provenance.runs.start("push", {}) as run:
            world.provenance.ledger.write(row.id, embedding_set.id, run.id, {shard: (digest, count - 1)})
        world.store.upsert(name(world), Points("image", points_of(1), np.eye(6, dtype=np.float32)[:1], [{}]))
        assert counts(found(world)) == (0, 0, 1, 0)

    def test_only_some_examples_are_kept(self, world: World) -> None:
        world.store.delete(name(world), [point_id("image", str(number)) for number in range(10)])
        result = found(world)
        assert (result.missing.count, len(result.missing.examples)) == (10, reconciling.EXAMPLES)


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning")
def test_a_vector_that_was_lost_or_added_is_found_whatever_the_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "VECTORS", 0)  # the sample is empty
    monkeypatch.setattr(qdrant_readiness, "POLL_SECONDS", 0.0)
    client = QdrantClient(":memory:")
    with LocalModeStore(Connection(client, "http://memory"), uploads=1) as store:
        world = World(tmp_path / "home", store)
        world.alignment()
        world.push(world.set("s", *pairs(10)))
        assert found(world).consistent
        extra = models.PointVectors(id=point_id("image", "2"), vector={"text": [1.0] * 6})
        client.update_vectors(name(world), points=[extra])
        client.delete_vectors(name(world), vectors=["text"], points=[point_id("text", "7")])
        result = found(world)
        assert (sorted(result.differing.examples), result.vectors) == (["image:2", "text:7"], 20)
        assert repaired(world) == {"repaired": 2}
        assert found(world, full=True).consistent
        assert stored(store, name(world), "text")[point_id("image", "2")][0] is None
        world.provenance.close()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = []
    with opened_world("edge", tmp_path) as world:
        world.alignment()
        monkeypatch.setattr(reconciling, "BATCH_POINTS", 64)
        monkeypatch.setattr(reconciling, "VECTORS", 64)
        for n in (500, 4000):
            images, texts = pairs(n)
            parts = [part.take(range(start, start + 250)) for part in (images, texts) for start in range(0, n, 250)]
            world.push(world.set(f"s{n}", *parts), collection=f"c{n}")
            release = open_release(world.provenance, world.store, f"c{n}")
            tracemalloc.start()
            result = reconcile(release, world.store, world.provenance, seed=0)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert result.missing.count == 0
            assert result.held == 2 * n
    assert peaks[1] < 2 * peaks[0]


class TestPointIds:
    @hypothesis_settings(max_examples=30)
    @given(st.lists(st.uuids().map(str) | st.integers(0, 2**64 - 1).map(str), unique=True, max_size=40), st.data())
    def test_like_a_set(self, ids: list[str], data: st.DataObject) -> None:
        chosen = data.draw(st.sets(st.sampled_from(ids))) if ids else set()
        with PointIds() as every, PointIds() as some:
            every.add(ids)
            some.add(sorted(chosen))
            some.add(sorted(chosen)[:2])  # once more
            assert (every.distinct(), some.distinct()) == (len(ids), len(chosen))
            assert some.missing(ids) == [id_ for id_ in ids if id_ not in chosen]
            assert sorted(id_ for batch in every.without(some) for id_ in batch) == sorted(set(ids) - chosen)

    def test_an_id_that_is_added_again_counts_once_at_the_edge_of_a_batch_too(self) -> None:
        ids = [str(UUID(int=number)) for number in range(3 * AT_ONCE)]
        with PointIds() as some:
            some.add(ids)
            some.add(ids[::2])
            assert some.distinct() == len(ids)

    def test_ids_that_end_in_zeros(self) -> None:
        ids = ["11111111-0000-0000-0000-000000000000", "11111111-1100-0000-0000-000000000000"]
        with PointIds() as some, PointIds() as none:
            some.add(ids)
            assert (some.missing(ids), list(some.without(none))) == ([], [ids])

    def test_an_integer_is_not_the_uuid_of_its_number(self) -> None:
        with PointIds() as some:
            some.add(["256"])
            assert some.missing(["256", "00000000-0000-0000-0000-000000000100"]) == [
                "00000000-0000-0000-0000-000000000100"
            ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_floats_that_the_engine_changes_by_a_unit_in_the_last_place_break_nothing(kind: str, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).random((40, 3)) * 10.0 ** np.arange(-8, 16, 8)
    payloads = [{"price": a, "deep": {"list": [b, {"inner": c}]}} for a, b, c in numbers.tolist()]
    points, keys = latent(40, 0), [f"{number}" for number in range(40)]
    with opened_world(kind, tmp_path) as world:
        world.alignment()
        parts = [rows(m, embedded(m, points), keys=keys, payloads=payloads) for m in MODALITIES]
        world.push(world.set("s", *parts), metrics=["cosine"])
        world.store.ready(name(world))
        held = [record.payload for page in world.store.scroll(name(world)) for record in page]
        if kind == "edge":
            assert {payload["price"] for payload in held} != set(numbers[:, 0].tolist())  # the engine did change some
        assert found(world).consistent
        repaired(world)
        assert found(world).consistent
        edit(world, "image", "3", price=numbers[3, 0] * (1 + 1e-9))
        assert counts(found(world)) == (0, 1, 0, 0)
        repaired(world)
        assert found(world).consistent
