"""The contract of connector.stores.contract, as tests: whoever has a store subclasses `StoreContract`.

A subclass, or its module, gives two fixtures of module scope or wider:

    open_store()      a function that opens an empty store, or one that others use too; the test closes it
    builds_graphs     whether `ready` builds HNSW graphs
    keeps_settings    whether a collection has the settings that it was created with
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import numpy.typing as npt
import pytest
from qdrant_client import models

from alignment.errors import VectorError
from alignment.metrics import METRICS, Distance, Metric
from alignment.vectors import FloatArray
from connector.errors import CollectionNotFoundError, StoreError
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.contract import Store
from connector.stores.layout import PAYLOAD_KINDS, PayloadKind
from connector.stores.points import IdRange, Payload, Points, id_ranges
from tests.support.errors import raises

DIM = 8
OpenStore = Callable[[], Store]


def unique_name() -> str:
    """The name of a collection that nobody else has: a server may be shared."""
    return f"test-{uuid4().hex[:12]}"


def drop_collections(store: Store, prefix: str) -> None:
    """Drop the collections whose names begin with `prefix`: no one else's."""
    for name in store.collections():
        if name.startswith(prefix):
            store.drop(name)


def ids(n: int, start: int = 0) -> list[str]:
    return [str(UUID(int=start + i + 1)) for i in range(n)]


def config(distance: Distance = Distance.DOT, **options: Any) -> CollectionConfig:
    """Two named vectors: `v`, and `other` with another dimension."""
    return CollectionConfig({"v": VectorConfig(DIM, distance), "other": VectorConfig(3, Distance.DOT)}, **options)


def points(vectors: npt.NDArray[Any], start: int = 0, payloads: Sequence[Payload] | None = None) -> Points:
    payloads = payloads or [{"number": start + i} for i in range(len(vectors))]
    return Points("v", ids(len(vectors), start), vectors, payloads)


def normal(rng: np.random.Generator, n: int) -> FloatArray:
    return rng.standard_normal((n, DIM)).astype(np.float32)


def metric_of(distance: Distance) -> Metric:
    return METRICS[distance.value.lower()]


def only(**fields: Any) -> models.Filter:
    return models.Filter(must=[equals(key, value) for key, value in fields.items()])


def equals(key: str, value: Any) -> models.FieldCondition:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


class CollectionsContract:
    def test_a_new_collection_is_described_as_it_was_created(self, store: Store, name: str, distance: Distance) -> None:
        metadata = {"modalign": {"metric": "cosine", "versions": [1, 2.5, None, True], "name": "Ümläut"}}
        layout = config(distance, metadata=metadata, payload_indexes={"a": "keyword", "b": "integer", "c": "float"})
        store.create(name, layout)
        info = store.describe(name)
        assert (info.name, info.points, info.indexed) == (name, 0, 0)
        assert info.vectors == layout.vectors
        assert info.metadata == metadata
        assert name in store.collections()

    def test_a_new_collection_has_the_indexes_that_were_chosen(
        self, store: Store, name: str, builds_graphs: bool
    ) -> None:
        if not builds_graphs:
            pytest.skip("no engine")
        indexes: dict[str, PayloadKind] = {f"of_{kind}": kind for kind in PAYLOAD_KINDS}
        store.create(name, config(payload_indexes={**indexes, "meta.tenant": "tenant"}))
        assert store.describe(name).payload_indexes == {**indexes, "meta.tenant": "tenant"}
        assert store.payload_indexes(name) == store.describe(name).payload_indexes

    def test_metadata_is_empty_where_none_was_given(self, store: Store, name: str) -> None:
        store.create(name, config())
        assert store.describe(name).metadata == {}

    def test_collections_are_sorted(self, store: Store, name: str) -> None:
        for suffix in ("b", "c", "a"):
            store.create(f"{name}-{suffix}", config())
        ours = [found for found in store.collections() if found.startswith(name)]
        assert ours == [f"{name}-a", f"{name}-b", f"{name}-c"]

    def test_creating_twice_is_refused_and_harms_nothing(
        self, store: Store, name: str, rng: np.random.Generator
    ) -> None:
        store.create(name, config(Distance.DOT, metadata={"first": True}))
        store.upsert(name, points(normal(rng, 3)))
        with pytest.raises(StoreError, match=name):
            store.create(name, config(Distance.EUCLID))
        info = store.describe(name)
        assert (info.vectors["v"].distance, info.metadata, info.points) == (Distance.DOT, {"first": True}, 3)

    def test_creating_under_the_name_of_an_alias_is_refused(self, store: Store, name: str) -> None:
        store.create(name, config())
        store.set_aliases({f"{name}-alias": name})
        with pytest.raises(StoreError, match=f"{name}-alias"):
            store.create(f"{name}-alias", config())
        assert f"{name}-alias" not in store.collections()

    @pytest.mark.parametrize("wrong", ["../up", "a/b", "/abs", "a\\b", 'a"b', "a*b"])
    def test_a_name_that_could_leave_the_directory_is_refused(self, store: Store, wrong: str, tmp_path: Path) -> None:
        with pytest.raises(StoreError):
            store.create(wrong, config())
        assert wrong not in store.collections()
        assert not (tmp_path / "edge" / "up").exists()

    def test_settings_that_differ_are_named_and_restored(
        self, store: Store, name: str, rng: np.random.Generator, keeps_settings: bool, builds_graphs: bool
    ) -> None:
        if not keeps_settings:
            pytest.skip("the client's local mode keeps no settings")
        before: Any = "binary" if builds_graphs else None
        created = config(payload_indexes={"a": "keyword", "b": "integer", "words": "text"}, quantization=before)
        store.create(name, created)
        store.upsert(name, points(normal(rng, 3)))
        assert store.setting_differences(name, created) == []
        changes: dict[str, Any] = {
            "m": 5,
            "ef_construct": 50,
            "quantization": "scalar" if builds_graphs else None,
            "vectors_on_disk": True,
            "hnsw_on_disk": True,
            "payload_on_disk": False,
            "indexing_threshold": 77,
            "payload_indexes": {"a": "integer", "b": "integer", "c": "float", "words": "text"},
        }
        for wanted in (replace(created, **changes), replace(created, **{**changes, "m": 6, "quantization": None})):
            assert store.setting_differences(name, wanted) != []
            store.restore_settings(name, wanted)
            assert store.setting_differences(name, wanted) == []
            assert store.describe(name).payload_indexes == (changes["payload_indexes"] if builds_graphs else {})
            assert (store.count(name), store.datatype(name)) == (3, "float32")
            assert len(store.search(name, "v", normal(rng, 1), 5)[0]) == 3

    def test_an_index_that_is_added_finds_what_was_there(
        self, store: Store, name: str, rng: np.random.Generator, builds_graphs: bool
    ) -> None:
        store.create(name, config())
        store.upsert(name, points(normal(rng, 3)))
        store.add_payload_index(name, "number", "integer")
        assert store.payload_indexes(name) == ({"number": "integer"} if builds_graphs else {})
        condition = models.FieldCondition(key="number", range=models.Range(gte=1))
        assert store.count(name, filter=models.Filter(must=[condition])) == 2
        if builds_graphs:  # the client's local mode takes it for a collection that is not there, too
            with pytest.raises(CollectionNotFoundError):
                store.add_payload_index(f"{name}-none", "number", "integer")

    def test_a_layout_that_the_engine_refuses_leaves_nothing(self, store: Store, name: str) -> None:
        with pytest.raises(StoreError):
            store.create(name, CollectionConfig({"v": VectorConfig(0, Distance.DOT)}))
        assert name not in store.collections()
        store.create(name, config())
        assert store.count(name) == 0

    def test_a_dropped_collection_is_gone_with_its_aliases_and_no_other(
        self, store: Store, name: str, rng: np.random.Generator
    ) -> None:
        kept = f"{name}-kept"
        store.create(name, config())
        store.create(kept, config())
        store.upsert(name, points(normal(rng, 4)))
        store.set_aliases({f"{name}-1": name, f"{name}-2": name, f"{name}-3": kept})
        store.drop(name)
        assert name not in store.collections()
        assert kept in store.collections()
        assert {a: t for a, t in store.aliases().items() if a.startswith(name)} == {f"{name}-3": kept}
        with pytest.raises(CollectionNotFoundError, match=name):
            store.describe(name)
        store.create(name, config(Distance.EUCLID))
        assert store.count(name) == 0
        assert store.describe(name).vectors["v"].distance is Distance.EUCLID

    def test_a_collection_created_anew_is_checked_by_its_new_layout(
        self, store: Store, name: str, rng: np.random.Generator
    ) -> None:
        store.create(name, config())
        store.upsert(name, points(normal(rng, 1)))
        store.drop(name)
        store.create(name, CollectionConfig({"v": VectorConfig(3, Distance.DOT)}))
        store.upsert(name, points(np.ones((1, 3), np.float32)))
        with pytest.raises(VectorError):
            store.upsert(name, points(normal(rng, 1)))

    def test_dropping_what_is_not_there_means_nothing(self, store: Store, name: str) -> None:
        store.create(f"{name}-kept", config())
        store.drop(name)
        assert f"{name}-kept" in store.collections()

    def test_dropping_an_alias_means_nothing(self, store: Store, name: str) -> None:
        store.create(name, config())
        store.set_aliases({f"{name}-alias": name})
        store.drop(f"{name}-alias")
        assert name in store.collections()
        assert store.aliases()[f"{name}-alias"] == name


class WritingContract:
    def test_what_is_written_is_read(
        self, store: Store, name: str, distance: Distance, rng: np.random.Generator
    ) -> None:
        store.create(name, config(distance))
        vectors = normal(rng, 5)
        payloads: list[Payload] = [
            {"caption": "Ein Bild 🖼", "n": 2**62, "f": 0.1, "ok": True, "none": None},
            {"deep": {"list": [1, "two", {"three": 3}]}},
            {},
            {"empty": [], "nothing": {}},
            {"text": "a\0b"},
        ]
        store.upsert(name, points(vectors, payloads=payloads))
        records = {record.id: record for record in store.retrieve(name, ids(5), vector_name="v")}
        assert sorted(records) == ids(5)
        assert [records[i].payload for i in ids(5)] == payloads
        expected = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if distance is Distance.COSINE else vectors
        found = [records[i].vector for i in ids(5)]
        np.testing.assert_allclose(np.array(found, np.float32), expected, rtol=1e-6)

    def test_vectors_come_only_where_asked_for(self, store: Store, name: str, rng: np.random.Generator) -> None:
        store.create(name, config())
        store.upsert(name, points(normal(rng, 1)))
        [plain] = store.retrieve(name, ids(1))
        [other] = store.retrieve(name, ids(1), vector_name="other")
        assert (plain.vector, other.vector) == (None, None)

    def test_a_point_of_the_same_id_is_replaced_whole(self, store: Store, name: str, rng: np.random.Generator) -> None:
        store.create(name, config())
        first, second = normal(rng, 3), normal(rng, 1)
        store.upsert(name, points(first))
        store.upsert(name, Points("v", ids(1), second, [{"new": 1}]))
        assert store.count(name) == 3
        [record] = store.retrieve(name, ids(1), vector_name="v")
        assert record.payload == {"new": 1}
        assert record.vector is not None
        np.testing.assert_allclose(record.vector, second[0], rtol=1e-6)

    def test_a_point_written_under_another_vector_loses_the_first(
        self, store: Store, name: str, rng: np.random.Generator
    ) -> None:
        store.create(name, config())
        store.upsert(name, points(normal(rng, 1)))
        store.upsert(name, Points("other", ids(1), np.ones((1, 3), np.float32), [{}]))
        [record] = store.retrieve(name, ids(1), vector_name="v")
        assert record.vector is None
        assert store.count(name) == 1

    def test_unknown_ids_are_left_out(self, store: Store, name: str, rng: np.random.Generator) -> None:
        store.create(name, config())
        store.upsert(name, points(normal(rng, 2)))
        found = store.retrieve(name, [*ids(1), str(uuid4())])
        assert [record.id for record in found] == ids(1)
        assert store.retrieve(name, [str(uuid4())]) == []
        assert store.retrieve(name, []) == []

    def test_deleted_points_are_gone_and_unknown_ids_mean_nothing(
        self, store: Store, name: str, rng: np.random.Generator
    ) -> None:
        store.create(name, config())
        vectors = normal(rng, 4)
        store.upsert(name, points(vectors))
        store.delete(name, [*ids(2), str(uuid4())])
        store.delete(name, ids(1))
        store.delete(name, [])
        assert sorted(record.id for page in store.scroll(name) for record in page) == ids(2, start=2)
        assert {hit.id for hit in store.search(name, "v", vectors[:1], 10)[0]} == set(ids(2, start=2))

    def test_ids_that_are_integers_are_read_and_deleted_as_uuids_are(
        self, store: Store, name: str, rng: np.random.Generator
    ) -> None:
        """Another program may have given them: modalign has to name such points, and to delete them."""
        store.create(name, config())
        store.upsert(name, points(normal(rng, 5)))  # UUIDs of the same numbers
        numbers = ["0", "1", str(2**64 - 1)]
        store.upsert(name, Points("v", numbers, normal(rng, 3), [{}, {}, {}]))
        assert sorted(record.id for page in store.scroll(name, page=2) for record in page) == sorted(ids(5) + numbers)
        assert sorted(record.id for record in store.retrieve(name, ["1", "5", *ids(1)])) == sorted(["1", *ids(1)])
        store.delete(name, [*numbers, "7"])
        assert sorted(record.id for page in store.scroll(name) for record in page) == ids(5)

    def test_an_empty_batch_means_nothing(self, store: Store, name: str) -> None:
        store.create(name, config())
        store.upsert(name, points(np.empty((0, DIM), np.float32)))
        assert store.count(name) == 0

    def test_float64_is_stored_as_float32(self, store: Store, name: str) -> None:
        store.create(name, config())
        vectors = np.full((1, DIM), 1 / 3)
        store.upsert(name, points(vectors))
        [record] = store.retrieve(name, ids(1), vector_name="v")
        assert record.vector is not None
        assert record.vector.dtype == np.float32
        assert record.vector.tolist() == vectors[0].astype(np.float32).tolist()

    def test_flushing_keeps_everything(self, store: Store, name: str, rng: np.random.Generator) -> None:
        store.create(name, config())
        store.upsert(name, points(normal(rng, 2)))
        store.flush(name)
        assert store.count(name) == 2

    def test_an_id_that_is_none_is_refused(self, store: Store, name: str, rng: np.random.Generator) -> None:
        store.create(name, config())
        with pytest.raises(StoreError, match="no-uuid"):
            store.upsert(name, Points("v", [*ids(1), "no-uuid"], normal(rng, 2), [{}, {}]))


class ChecksContract:
    @pytest.mark.parametrize(
        ("value", "reason"),
        [(np.nan, "not-finite"), (np.inf, "not-finite"), (-np.inf, "not-finite"), (1e39, "not-finite")],
    )
    def test_a_value_that_is_not_finite_as_float32(
        self, store: Store, name: str, distance: Distance, rng: np.random.Generator, value: float, reason: str
    ) -> None:
        store.create(name, config(distance))
        vectors = rng.standard_normal((3, DIM))
        vectors[1, 2] = value
        with raises(VectorError, ids(3)[1], f"vector-{reason}"):
            store.upsert(name, points(vectors))
        assert store.count(name) == 0

    def test_zero_has_no_direction_but_a_place(
        self, store: Store, name: str, distance: Distance, rng: np.random.Generator
    ) -> None:
        store.create(name, config(distance))
        vectors = normal(rng, 3)
        vectors[2] = 0
        if distance is Distance.COSINE:
            with raises(VectorError, "1 of 3", ids(3)[2], "vector-zero"):
                store.upsert(name, points(vectors))
            assert store.count(name) == 0
        else:
            store.upsert(name, points(vectors))
            [record] = store.retrieve(name, ids(3)[2:], vector_name="v")
            assert record.vector is not None
            assert record.vector.tolist() == [0.0] * DIM

    def test_underflow_to_zero_under_cosine(self, store: Store, name: str) -> None:
        store.create(name, config(Distance.COSINE))
        with raises(VectorError, "vector-zero"):
            store.upsert(name, points(np.full((1, DIM), 1e-300)))
        assert store.count(name) == 0

    @pytest.mark.parametrize("shape", [(2, DIM - 1), (2, DIM + 1), (3, DIM), (1, DIM)])
    def test_another_shape(self, store: Store, name: str, shape: tuple[int, int]) -> None:
        store.create(name, config())
        with raises(VectorError, (2, DIM), shape):
            store.upsert(name, Points("v", ids(2), np.ones(shape, np.float32), [{}, {}]))
        assert store.count(name) == 0

    def test_payloads_that_do_not_belong_to_the_vectors(self, store: Store, name: str) -> None:
        store.create(name, config())
        with raises(VectorError, 1, 2):
            store.upsert(name, Points("v", ids(2), np.ones((2, DIM), np.float32), [{}]))
        assert store.count(name) == 0

    def test_an_unknown_vector(self, store: Store, name: str) -> None:
        store.create(name, config())
        with raises(CollectionNotFoundError, "'image'", "other, v"):
            store.upsert(name, Points("image", ids(1), np.ones((1, DIM), np.float32), [{}]))
        assert store.count(name) == 0


class SearchingContract:
    def test_order_and_scores_are_those_of_the_metric(
        self, store: Store, name: str, distance: Distance, rng: np.random.Generator
    ) -> None:
        store.create(name, config(distance))
        items, queries = normal(rng, 60), normal(rng, 5)
        store.upsert(name, points(items))
        metric = metric_of(distance)
        reference = metric.score(queries.astype(np.float64), items.astype(np.float64))
        for exact in (False, True):
            answers = store.search(name, "v", queries, 10, exact=exact)
            assert len(answers) == 5
            for scores, hits in zip(reference, answers, strict=True):
                best = np.argsort(-scores)[:10]
                assert [hit.id for hit in hits] == [ids(60)[i] for i in best]
                raw = [hit.raw_score for hit in hits]
                np.testing.assert_allclose([metric.lower(DIM).score(score) for score in raw], scores[best], rtol=1e-4)
                assert [hit.payload for hit in hits] == [{"number": i} for i in best]
                assert all(score >= 0 for score in raw) or distance.higher_is_better

    def test_a_batch_answers_as_its_queries_one_by_one(
        self, store: Store, name: str, distance: Distance, rng: np.random.Generator
    ) -> None:
        store.create(name, config(distance))
        store.upsert(name, points(normal(rng, 30)))
        queries = normal(rng, 4)
        together = store.search(name, "v", queries, 7)
        alone = [store.search(name, "v", queries[i : i + 1], 7)[0] for i in range(4)]
        assert [[hit.id for hit in hits] for hits in together] == [[hit.id for hit in hits] for hits in alone]
        assert len({hits[0].id for hits in together}) > 1

    def test_more_hits_than_points(self, store: Store, name: str, rng: np.random.Generator) -> None:
        store.create(name, config())
        store.upsert(name, points(normal(rng, 3)))
        [hits] = store.search(name, "v", normal(rng, 1), 1000)
        assert sorted(hit.id for hit in hits) == ids(3)

    def test_an_empty_collection(self, store: Store, name: str, rng: np.random.Generator) -> None:
        store.create(name, config())
        assert store.search(name, "v", normal(rng, 2), 5) == [[], []]

    def test_points_without_the_vector_are_never_found(
        self, store: Store, name: str, distance: Distance, rng: np.random.Generator
    ) -> None:
        store.create(name, config(distance))
        store.upsert(name, points(normal(rng, 3)))
        store.upsert(name, Points("other", ids(2, start=3), np.ones((2, 3), np.float32), [{}, {}]))
        for exact in (False, True):
            [hits] = store.search(name, "v", normal(rng, 1), 10, exact=exact)
            assert {hit.id for hit in hits} == set(ids(3))
            [hits] = store.search(name, "other", np.ones((1, 3), np.float32), 10, exact=exact)
            assert {hit.id for hit in hits} == set(ids(2, start=3))

    @pytest.mark.parametrize("exact", [False, True])
    def test_a_filter_comes_before_k(self, store: Store, name: str, rng: np.random.Generator, exact: bool) -> None:
        store.create(name, config(payload_indexes={"half": "keyword"}))
        items, query = normal(rng, 40), normal(rng, 1)
        store.upsert(name, points(items, payloads=[{"half": "ab"[i % 2]} for i in range(40)]))
        [hits] = store.search(name, "v", query, 5, filter=only(half="b"), exact=exact)
        odd = np.arange(1, 40, 2)
        best = odd[np.argsort(-(items[odd] @ query[0]))[:5]]
        assert [hit.id for hit in hits] == [ids(40)[i] for i in best]

    def test_the_payload_comes_whole_in_part_or_not_at_all(
        self, store: Store, name: str, rng: np.random.Generator
    ) -> None:
        store.create(name, config())
        store.upsert(name, points(normal(rng, 1), payloads=[{"a": 1, "b": 2, "c": 3}]))
        query = normal(rng, 1)
        payloads = [
            store.search(name, "v", query, 1, with_payload=wanted)[0][0].payload for wanted in (True, ["a", "c"], False)
        ]
        assert payloads == [{"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 3}, {}]

    def test_another_dimension_is_refused(self, store: Store, name: str, rng: np.random.Generator) -> None:
        store.create(name, config())
        store.upsert(name, points(normal(rng, 2)))
        with pytest.raises(StoreError):
            store.search(name, "v", normal(rng, 1)[:, :-1], 3)

    def test_an_unknown_vector_is_refused(self, store: Store, name: str, rng: np.random.Generator) -> None:
        store.create(name, config())
        store.upsert(name, points(normal(rng, 2)))
        with pytest.raises(StoreError, match="image"):
            store.search(name, "image", normal(rng, 1), 3)


class ReadingContract:
    @pytest.mark.parametrize("page", [1, 7, 23, 24, 1000])
    def test_pages_hold_every_point_once(self, store: Store, name: str, rng: np.random.Generator, page: int) -> None:
        store.create(name, config())
        vectors = normal(rng, 23)
        store.upsert(name, points(vectors))
        pages = list(store.scroll(name, vector_name="v", page=page))
        assert all(0 < len(found) <= page for found in pages)
        records = [record for found in pages for record in found]
        assert sorted(record.id for record in records) == ids(23)
        for record in records:
            assert record.vector is not None
            np.testing.assert_allclose(record.vector, vectors[record.payload["number"]], rtol=1e-6)

    @pytest.mark.parametrize("page", [2, 100])
    def test_ranges_of_ids_hold_each_point_once(
        self, store: Store, name: str, page: int, rng: np.random.Generator
    ) -> None:
        """Also those whose ids another program gave."""
        store.create(name, config())
        spread = [str(UUID(int=number << 124 | 7)) for number in range(16)]
        numbers = ["0", "3", str(2**64 - 1)]
        store.upsert(name, Points("v", spread + numbers, normal(rng, 19), [{"third": i % 3} for i in range(19)]))
        ranges = [[r.id for found in store.scroll(name, ids=ids, page=page) for r in found] for ids in id_ranges(4)]
        assert ranges == [numbers + spread[:4], spread[4:8], spread[8:12], spread[12:]]
        within = store.scroll(name, ids=IdRange(spread[3], spread[9]), filter=only(third=0), page=page)
        assert [record.id for found in within for record in found] == [spread[3], spread[6]]

    def test_pages_of_a_filter(self, store: Store, name: str, rng: np.random.Generator) -> None:
        store.create(name, config(payload_indexes={"third": "integer"}))
        store.upsert(name, points(normal(rng, 20), payloads=[{"third": i % 3} for i in range(20)]))
        found = [record.id for page in store.scroll(name, filter=only(third=1), page=2) for record in page]
        assert sorted(found) == [ids(20)[i] for i in range(20) if i % 3 == 1]
        assert list(store.scroll(name, filter=only(third=9))) == []

    def test_counts_are_exact(self, store: Store, name: str, rng: np.random.Generator) -> None:
        store.create(name, config(payload_indexes={"third": "integer"}))
        store.upsert(name, points(normal(rng, 20), payloads=[{"third": i % 3} for i in range(20)]))
        store.upsert(name, Points("other", ids(2, start=20), np.ones((2, 3), np.float32), [{"third": 0}, {}]))
        assert store.count(name) == 22
        assert [store.count(name, filter=only(third=i)) for i in range(4)] == [8, 7, 6, 0]
        assert store.describe(name).points == 22


class AliasesContract:
    def test_an_alias_stands_for_its_collection_everywhere(
        self, store: Store, name: str, rng: np.random.Generator
    ) -> None:
        alias, vectors = f"{name}-alias", normal(rng, 6)
        store.create(name, config(metadata={"mine": 1}))
        store.set_aliases({alias: name})
        assert store.aliases()[alias] == name
        store.upsert(alias, points(vectors))
        store.flush(alias)
        store.delete(alias, ids(1))
        assert store.count(alias) == store.count(name) == 5
        assert [record.id for record in store.retrieve(alias, ids(2))] == ids(2)[1:]
        assert sum(map(len, store.scroll(alias, page=2))) == 5
        assert store.search(alias, "v", vectors[:1], 3) == store.search(name, "v", vectors[:1], 3)
        for info in (store.describe(alias), store.ready(alias)):
            assert (info.name, info.metadata, info.points) == (name, {"mine": 1}, 5)

    def test_several_are_switched_at_once(self, store: Store, name: str) -> None:
        old, new = f"{name}-old", f"{name}-new"
        for collection in (old, new):
            store.create(collection, config())
        store.set_aliases({f"{name}-1": old, f"{name}-2": old, f"{name}-3": old})
        store.set_aliases({f"{name}-1": new, f"{name}-2": new})
        assert {a: t for a, t in store.aliases().items() if a.startswith(name)} == {
            f"{name}-1": new,
            f"{name}-2": new,
            f"{name}-3": old,
        }

    def test_a_switched_alias_is_written_by_the_new_layout(self, store: Store, name: str) -> None:
        alias = f"{name}-alias"
        store.create(name, config())
        store.create(f"{name}-3d", CollectionConfig({"v": VectorConfig(3, Distance.DOT)}))
        store.set_aliases({alias: name})
        store.upsert(alias, points(np.ones((1, DIM), np.float32)))
        store.set_aliases({alias: f"{name}-3d"})
        store.upsert(alias, points(np.ones((2, 3), np.float32)))
        assert (store.count(name), store.count(f"{name}-3d")) == (1, 2)

    def test_one_that_is_refused_refuses_all(self, store: Store, name: str) -> None:
        store.create(name, config())
        store.create(f"{name}-2", config())
        store.set_aliases({f"{name}-alias": name})
        for wrong, refused in (
            ({f"{name}-x": f"{name}-missing"}, CollectionNotFoundError),
            ({f"{name}-x": f"{name}-alias"}, CollectionNotFoundError),
            ({f"{name}-2": name}, StoreError),
            ({name: name}, StoreError),
        ):
            with pytest.raises(refused, match=name):
                store.set_aliases({f"{name}-alias": f"{name}-2", **wrong})
            assert {a: t for a, t in store.aliases().items() if a.startswith(name)} == {f"{name}-alias": name}

    def test_setting_none_changes_nothing(self, store: Store, name: str) -> None:
        store.create(name, config())
        store.set_aliases({f"{name}-alias": name})
        store.set_aliases({})
        assert {a: t for a, t in store.aliases().items() if a.startswith(name)} == {f"{name}-alias": name}


class UnknownCollectionContract:
    @pytest.mark.parametrize(
        "operation",
        [
            lambda store, name: store.describe(name),
            lambda store, name: store.upsert(name, points(np.ones((1, DIM), np.float32))),
            lambda store, name: store.delete(name, ids(1)),
            lambda store, name: store.retrieve(name, ids(1)),
            lambda store, name: store.search(name, "v", np.ones((1, DIM), np.float32), 1),
            lambda store, name: list(store.scroll(name)),
            lambda store, name: store.count(name),
            lambda store, name: store.ready(name),
        ],
        ids=["describe", "upsert", "delete", "retrieve", "search", "scroll", "count", "ready"],
    )
    def test_it_is_named(self, store: Store, name: str, operation: Callable[[Store, str], Any]) -> None:
        with pytest.raises(CollectionNotFoundError, match=name):
            operation(store, name)


class IndexContract:
    def test_a_small_collection_is_searched_exactly(self, store: Store, name: str, rng: np.random.Generator) -> None:
        store.create(name, config())
        store.upsert(name, points(normal(rng, 50)))
        info = store.ready(name)
        assert (info.points, info.indexed) == (50, 0)

    def test_a_graph_is_built_and_finds_what_exact_search_finds(
        self, store: Store, name: str, distance: Distance, rng: np.random.Generator, builds_graphs: bool
    ) -> None:
        n, dim, k = 600, 32, 10
        vectors, queries = rng.standard_normal((n, dim)), rng.standard_normal((50, dim)).astype(np.float32)
        store.create(name, CollectionConfig({"v": VectorConfig(dim, distance)}, indexing_threshold=1))
        store.upsert(name, points(vectors.astype(np.float32)))
        info = store.ready(name)
        assert info.points == n
        assert info.indexed >= n * 0.9 if builds_graphs else info.indexed == 0
        exact = store.search(name, "v", queries, k, exact=True)
        searched = store.search(name, "v", queries, k)
        reference = np.argsort(-metric_of(distance).score(queries.astype(np.float64), vectors), axis=1)[:, :k]
        expected = [{ids(n)[i] for i in row} for row in reference]
        assert np.mean([len({h.id for h in hits} & e) / k for hits, e in zip(exact, expected, strict=True)]) > 0.995
        recall = np.mean([len({h.id for h in hits} & e) / k for hits, e in zip(searched, expected, strict=True)])
        assert recall > (0.9 if builds_graphs else 0.995)


class StoreContract(
    CollectionsContract,
    WritingContract,
    ChecksContract,
    SearchingContract,
    ReadingContract,
    AliasesContract,
    UnknownCollectionContract,
    IndexContract,
):
    """Everything that a store has to do."""

    @pytest.fixture
    def store(self, open_store: OpenStore, name: str) -> Iterator[Store]:
        """An open store; what a test leaves in it under its own name is dropped."""
        with open_store() as store:
            yield store
            drop_collections(store, name)

    @pytest.fixture(params=list(Distance))
    def distance(self, request: pytest.FixtureRequest) -> Distance:
        return Distance(request.param)

    @pytest.fixture
    def name(self) -> str:
        return unique_name()
