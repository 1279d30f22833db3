"""The contract for filters, as tests: every store finds the same points. Used as `StoreContract` is."""

import json
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from qdrant_client import models

from connector.errors import FilterError
from connector.stores.contract import Store
from connector.stores.filters import condition_names, parse_filter
from connector.stores.layout import PayloadKind
from connector.stores.points import Payload, Points
from tests.support import random_filters
from tests.support.errors import raises
from tests.support.filter_reference import matches
from tests.support.store_contract import DIM, OpenStore, config, equals, ids, points, unique_name

PAYLOADS: list[Payload] = [
    {
        "lang": "en",
        "n": 0,
        "f": 0.5,
        "ok": True,
        "tags": ["a", "b"],
        "at": "2024-01-01T00:00:00Z",
        "place": {"lon": 13.4, "lat": 52.5},
        "size": {"w": 1},
        "parts": [{"kind": "x", "n": 1}, {"kind": "y", "n": 2}],
    },
    {
        "lang": "de",
        "n": 1,
        "f": 1.5,
        "ok": False,
        "tags": ["b"],
        "at": "2024-06-01T12:00:00+02:00",
        "place": {"lon": 2.35, "lat": 48.85},
        "parts": [{"kind": "x", "n": 2}],
    },
    {
        "lang": "fr",
        "n": 2,
        "f": -1.0,
        "ok": True,
        "tags": [],
        "at": "2025-01-01",
        "parts": [],
        "place": {"lon": -74.0, "lat": 40.7},
    },
    {"lang": None, "n": None, "ok": None, "tags": None},
    {},
    {"lang": ["en", "de"], "n": [5, 6], "ok": [True, False], "tags": ["c", "d", "e"]},
    {"lang": "EN", "n": 1, "f": 1, "ok": 1, "one": 1},
    {"lang": "1", "n": -3, "f": 1e10, "ok": "true", "size": {"w": 2}, "mixed": [None, 1]},
]


def field(key: str, **condition: Any) -> models.FieldCondition:
    return models.FieldCondition(key=key, **condition)


def must(*conditions: Any) -> models.Filter:
    return models.Filter(must=list(conditions))


def ring(*corners: tuple[float, float]) -> models.GeoLineString:
    return models.GeoLineString(points=[models.GeoPoint(lon=x, lat=y) for x, y in (*corners, corners[0])])


def box(top_left: tuple[float, float], bottom_right: tuple[float, float]) -> models.GeoBoundingBox:
    corners = (models.GeoPoint(lon=lon, lat=lat) for lon, lat in (top_left, bottom_right))
    return models.GeoBoundingBox(top_left=next(corners), bottom_right=next(corners))


def nested(*conditions: Any) -> models.Filter:
    return must(models.NestedCondition(nested=models.Nested(key="parts", filter=must(*conditions))))


POINT = models.GeoPoint
FILTERS: dict[str, tuple[models.Filter, list[int]]] = {
    "match a text": (must(equals("lang", "en")), [0, 5]),
    "match an integer": (must(equals("n", 1)), [1, 6]),
    "match true": (must(equals("ok", True)), [0, 2, 5]),
    "match false": (must(equals("ok", False)), [1, 5]),
    "match the integer 1, not true": (must(equals("ok", 1)), [6]),
    "match the text of a number": (must(equals("lang", "1")), [7]),
    "match any text": (must(field("lang", match=models.MatchAny(any=["en", "fr"]))), [0, 2, 5]),
    "match any integer": (must(field("n", match=models.MatchAny(any=[1, 5]))), [1, 5, 6]),
    "match any of none": (must(field("lang", match=models.MatchAny(any=[]))), []),
    "match except a text": (must(field("lang", match=models.MatchExcept(**{"except": ["en"]}))), [1, 2, 5, 6, 7]),
    "match except an integer": (must(field("n", match=models.MatchExcept(**{"except": [1]}))), [0, 2, 5, 7]),
    "range of integers": (must(field("n", range=models.Range(gte=1, lt=6))), [1, 2, 5, 6]),
    "range that holds zero": (must(field("n", range=models.Range(gte=0, lte=0))), [0]),
    "range of floats": (must(field("f", range=models.Range(gt=0.5))), [1, 6, 7]),
    "range of times": (
        must(field("at", range=models.DatetimeRange(gte=datetime(2024, 6, 1, 10, tzinfo=timezone(timedelta(0)))))),
        [1, 2],
    ),
    "range of times elsewhere": (
        must(field("at", range=models.DatetimeRange(gt=datetime(2024, 6, 1, 13, tzinfo=timezone(timedelta(hours=2)))))),
        [2],
    ),
    "range of times without a zone": (
        must(field("at", range=models.DatetimeRange(gte=datetime(2024, 6, 1, 10), lt=datetime(2025, 1, 1)))),
        [1],
    ),
    "range of days": (must(field("at", range=models.DatetimeRange(lte=date(2024, 6, 1)))), [0]),
    "is empty": (must(models.IsEmptyCondition(is_empty=models.PayloadField(key="tags"))), [2, 3, 4, 6, 7]),
    "is null": (must(models.IsNullCondition(is_null=models.PayloadField(key="tags"))), [3]),
    "field is empty": (must(field("tags", is_empty=True)), [2, 3, 4, 6, 7]),
    "field is not empty": (must(field("tags", is_empty=False)), [0, 1, 5]),
    "field is null": (must(field("tags", is_null=True)), [3]),
    "field is not null": (must(field("tags", is_null=False)), [0, 1, 2, 4, 5, 6, 7]),
    "has id": (must(models.HasIdCondition(has_id=[ids(1)[0], ids(4)[3], ids(12)[11]])), [0, 3]),
    "has id as UUID": (must(models.HasIdCondition(has_id=[UUID(ids(1)[0])])), [0]),
    "has id of none": (must(models.HasIdCondition(has_id=[])), []),
    "has id, and not": (
        models.Filter(
            must=[models.HasIdCondition(has_id=[*ids(1)])], must_not=[models.HasIdCondition(has_id=[*ids(1)])]
        ),
        [],
    ),
    "one of two, and not one of them": (
        models.Filter(should=[equals("lang", "en"), equals("n", 1)], must_not=[equals("n", 1)]),
        [0, 5],
    ),
    "two of three, of which two are one": (
        models.Filter(
            min_should=models.MinShould(conditions=[equals("n", 1), equals("lang", "en"), equals("n", 1)], min_count=2)
        ),
        [1, 6],
    ),
    "has vector": (must(models.HasVectorCondition(has_vector="other")), [7]),
    "values count": (must(field("tags", values_count=models.ValuesCount(gte=2))), [0, 5]),
    "values count between": (must(field("lang", values_count=models.ValuesCount(gt=0, lte=1))), [0, 1, 2, 6, 7]),
    "nested: one element fulfils all": (
        must(
            models.NestedCondition(nested=models.Nested(key="parts", filter=must(equals("kind", "x"), equals("n", 2))))
        ),
        [1],
    ),
    "path into elements": (must(equals("parts[].kind", "x"), equals("parts[].n", 2)), [0, 1]),
    "path into an object": (must(equals("size.w", 1)), [0]),
    "geo radius": (must(field("place", geo_radius=models.GeoRadius(center=POINT(lon=13, lat=52), radius=1e5))), [0]),
    "geo box": (
        must(
            field(
                "place",
                geo_bounding_box=models.GeoBoundingBox(
                    top_left=POINT(lon=-80, lat=50), bottom_right=POINT(lon=5, lat=40)
                ),
            )
        ),
        [1, 2],
    ),
    "geo polygon": (
        must(field("place", geo_polygon=models.GeoPolygon(exterior=ring((0, 45), (20, 45), (20, 55), (0, 55))))),
        [0, 1],
    ),
    "geo polygon with a hole": (
        must(
            field(
                "place",
                geo_polygon=models.GeoPolygon(
                    exterior=ring((0, 45), (20, 45), (20, 55), (0, 55)),
                    interiors=[ring((1, 48), (4, 48), (4, 50), (1, 50))],
                ),
            )
        ),
        [0],
    ),
    "should": (models.Filter(should=[equals("lang", "en"), equals("n", 1)]), [0, 1, 5, 6]),
    "must not": (models.Filter(must_not=[equals("lang", "en")]), [1, 2, 3, 4, 6, 7]),
    "single conditions": (models.Filter(must=equals("lang", "en"), must_not=equals("n", 5)), [0]),
    "must, should and must not": (
        models.Filter(
            must=[field("n", range=models.Range(gte=0))],
            should=[equals("lang", "en"), equals("lang", "de")],
            must_not=[equals("ok", False)],
        ),
        [0],
    ),
    "min should": (
        models.Filter(
            min_should=models.MinShould(
                conditions=[equals("lang", "en"), equals("n", 0), equals("ok", True)], min_count=2
            )
        ),
        [0, 5],
    ),
    "filters in filters": (
        must(
            models.Filter(
                should=[equals("lang", "en"), models.Filter(must_not=[field("n", range=models.Range(gte=0))])]
            )
        ),
        [0, 3, 4, 5, 7],
    ),
    "null as a condition, in a list": (must(models.IsNullCondition(is_null=models.PayloadField(key="mixed"))), [7]),
    "null as a test, in a list": (must(field("mixed", is_null=True)), [7]),
    "no null in a list": (models.Filter(must_not=[field("mixed", is_null=False)]), [7]),
    "a radius beyond all places": (
        must(field("place", geo_radius=models.GeoRadius(center=POINT(lon=0, lat=0), radius=2.1e7))),
        [0, 1, 2],
    ),
    "the whole world": (must(field("place", geo_bounding_box=box((-180, 90), (180, -90)))), [0, 1, 2]),
    "across the date line": (must(field("place", geo_bounding_box=box((13, 53), (12, 30)))), [0, 1, 2]),
    "nested: an element without a field": (
        must(models.NestedCondition(nested=models.Nested(key="parts", filter=must(field("m", is_empty=True))))),
        [0, 1],
    ),
}
NEW_MATCHES: dict[str, tuple[Callable[[], models.Filter], list[int]]] = {
    "match a prefix": (lambda: must(field("lang", match=models.MatchPrefix(prefix="e"))), [0, 5]),
    "match a part": (lambda: must(field("lang", match=models.MatchSubstring(substring="e"))), [0, 1, 5]),
    "the only slice": (
        lambda: must(models.SliceCondition(slice=models.Slice(total=1, index=0))),
        list(range(8)),
    ),
}
ONE = models.Range(gte=1)
# What stores take for something else, or take all memory for; each with what its error names.
REFUSED: dict[str, tuple[models.Filter, list[str]]] = {
    "match and range": (must(field("n", match=models.MatchValue(value=1), range=ONE)), ["'n'", "match, range"]),
    "match and count": (
        must(field("tags", match=models.MatchValue(value="a"), values_count=models.ValuesCount(gte=1))),
        ["'tags'", "match, values_count"],
    ),
    "range and emptiness": (models.Filter(should=[field("n", range=ONE, is_empty=False)]), ["is_empty, range"]),
    "emptiness and null": (models.Filter(must_not=[field("n", is_null=True, is_empty=True)]), ["is_empty, is_null"]),
    "two tests, nested": (
        must(
            models.NestedCondition(nested=models.Nested(key="parts", filter=must(field("n", range=ONE, is_null=True))))
        ),
        ["is_null, range"],
    ),
    "two tests, in a filter of a filter": (
        models.Filter(must_not=models.Filter(should=[equals("n", 1), field("n", range=ONE, is_null=False)])),
        ["is_null, range"],
    ),
    "two tests, of min_should": (
        models.Filter(min_should=models.MinShould(conditions=[field("n", range=ONE, is_null=True)], min_count=1)),
        ["is_null, range"],
    ),
    "no test": (must(field("lang")), ["'lang'"]),
    "no bound": (must(field("n", range=models.Range())), ["'n'", "none"]),
    "no bound of times": (must(field("at", range=models.DatetimeRange())), ["'at'", "none"]),
    "two lower bounds": (must(field("n", range=models.Range(gt=4, gte=1))), ["gt, gte"]),
    "two upper bounds": (must(field("n", range=models.Range(lt=1, lte=4, gt=0))), ["lt, lte, gt"]),
    "two bounds of counts": (must(field("n", values_count=models.ValuesCount(lt=1, lte=4))), ["lt, lte"]),
    "counts below one": (must(field("tags", values_count=models.ValuesCount(lt=1))), ["'tags'", "is_empty"]),
    "counts from zero": (must(field("tags", values_count=models.ValuesCount(gte=0, lte=4))), ["'tags'", "is_empty"]),
    "a bound that is no number": (must(field("n", range=models.Range(gte=float("nan")))), ["nan"]),
    "a bound beyond all numbers": (must(field("n", range=models.Range(lt=float("inf")))), ["inf"]),
    "a bound at which an index and the engine part": (must(field("n", range=models.Range(gt=2.0**53))), ["2^53"]),
    "a bound at the largest integer": (must(field("n", range=models.Range(gte=-1, lte=2.0**63))), ["2^63"]),
    "a radius that is no number": (
        must(field("place", geo_radius=models.GeoRadius(center=POINT(lon=1, lat=1), radius=float("nan")))),
        ["nan"],
    ),
    "min_should of half of 64": (
        models.Filter(min_should=models.MinShould(conditions=[equals("n", i) for i in range(64)], min_count=32)),
        ["10000", "1832624140942590534"],
    ),
    "min_should of none": (
        models.Filter(min_should=models.MinShould(conditions=[equals("n", 1)], min_count=0)),
        ["min_count", "0"],
    ),
    "min_should of more than there are": (
        models.Filter(min_should=models.MinShould(conditions=[equals("n", 1)], min_count=2)),
        ["min_count", "2"],
    ),
    "nothing asked": (models.Filter(), ["condition"]),
    "must nothing": (must(), ["must"]),
    "should nothing": (models.Filter(must=[equals("n", 1)], should=[]), ["should"]),
    "a filter that asks for nothing": (must(models.Filter()), ["condition"]),
    "none but a filter that asks for nothing": (
        models.Filter(must_not=[equals("n", 1), models.Filter()]),
        ["condition"],
    ),
    "an element that fulfils nothing": (
        must(models.NestedCondition(nested=models.Nested(key="parts", filter=models.Filter()))),
        ["condition"],
    ),
    "words without an index of words": (must(field("lang", match=models.MatchText(text="en"))), ["lang", "text"]),
    "any word without an index of words": (
        models.Filter(must_not=[field("lang", match=models.MatchTextAny(text_any="en de"))]),
        ["lang", "text"],
    ),
    "a phrase of elements without an index of words": (
        nested(field("kind", match=models.MatchPhrase(phrase="x"))),
        ["parts[].kind", "text"],
    ),
    "no word": (models.Filter(must_not=[field("lang", match=models.MatchText(text=" !"))]), ["'lang'", "' !'"]),
    "a latitude beyond the pole": (
        must(field("place", geo_radius=models.GeoRadius(center=POINT(lon=1, lat=99), radius=1))),
        ["'place'", "99"],
    ),
    "a longitude beyond the date line": (
        must(field("place", geo_bounding_box=box((170, 10), (190, 0)))),
        ["'place'", "190"],
    ),
    "a box upside down": (must(field("place", geo_bounding_box=box((0, 10), (1, 20)))), ["'place'", "10.0", "20.0"]),
    "no radius": (
        must(field("place", geo_radius=models.GeoRadius(center=POINT(lon=1, lat=9), radius=-1))),
        ["'place'", "-1"],
    ),
    "a radius that rounds to none": (
        must(field("place", geo_radius=models.GeoRadius(center=POINT(lon=1, lat=9), radius=1e-46))),
        ["'place'", "1e-46"],
    ),
    "a time before all years": (
        must(field("at", range=models.DatetimeRange(gt=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))))),
        ["'at'", "0001-01-01"],
    ),
    "a time after all years": (
        must(
            field(
                "at", range=models.DatetimeRange(lte=datetime(9999, 12, 31, 23, tzinfo=timezone(-timedelta(hours=2))))
            )
        ),
        ["'at'", "9999-12-31"],
    ),
    "a ring that is not closed": (
        must(
            field(
                "place",
                geo_polygon=models.GeoPolygon(
                    exterior=models.GeoLineString(points=ring((0, 0), (9, 0), (9, 9), (0, 9)).points[:-1])
                ),
            )
        ),
        ["'place'", "4"],
    ),
    "an integer of 65 bits": (must(equals("n", 2**63)), ["n", "64"]),
    "an integer of 65 bits among others": (must(field("n", match=models.MatchAny(any=[1, -(2**63) - 1]))), ["n", "64"]),
    "half a surrogate pair": (must(equals("lang", "\ud800")), ["lang", "Unicode"]),
    "a negative count": (must(field("tags", values_count=models.ValuesCount(gt=0, lt=-1))), ["'tags'", "-1"]),
    "a path that is none": (must(equals("a..b", 1)), ["a..b"]),
    "a path that is none, of emptiness": (
        models.Filter(must_not=[models.IsEmptyCondition(is_empty=models.PayloadField(key="tags["))]),
        ["tags["],
    ),
    "an id that is none": (must(models.HasIdCondition(has_id=["a"])), ["has_id", "'a'"]),
    "a negative id": (must(models.HasIdCondition(has_id=[-1])), ["has_id", "-1"]),
    "the id of an element": (nested(models.HasIdCondition(has_id=[1])), ["HasIdCondition"]),
    "the vector of an element": (nested(models.HasVectorCondition(has_vector="v")), ["HasVectorCondition"]),
}
N = 40
# Qdrant indexes what filters ask for; an index must not change an answer.
INDEXES = {"lang": "keyword", "n": "integer", "f": "float", "ok": "bool"}


def matched(store: Store, name: str, filter: models.Filter) -> list[int]:
    found = sorted(ids(8).index(record.id) for page in store.scroll(name, filter=filter, page=3) for record in page)
    assert store.count(name, filter=filter) == len(found)
    [hits] = store.search(name, "v", np.ones((1, DIM), np.float32), 10, filter=filter)
    assert sorted(ids(8).index(hit.id) for hit in hits) == [i for i in found if i < 7]
    return found


class FilterContract:
    """Filters in Qdrant's own language."""

    @pytest.fixture(scope="class")
    @classmethod
    def filtered(cls, open_store: OpenStore, builds_graphs: bool) -> Iterator[tuple[Store, str]]:
        """A store with the payloads above in two collections, NAME without and NAME-indexed with payload indexes."""
        name, indexes = unique_name(), INDEXES if builds_graphs else {}  # a store without an index may warn of them
        with open_store() as store:
            for collection, wanted in ((name, {}), (f"{name}-indexed", indexes)):
                store.create(collection, config(payload_indexes=wanted))
                store.upsert(collection, points(np.ones((7, DIM), np.float32), payloads=PAYLOADS[:7]))
                store.upsert(collection, Points("other", ids(8)[7:], np.ones((1, 3), np.float32), PAYLOADS[7:]))
            yield store, name
            for collection in (name, f"{name}-indexed", f"{name}-empty"):
                store.drop(collection)

    @pytest.mark.parametrize("what", FILTERS)
    def test_every_store_finds_the_same(self, filtered: tuple[Store, str], what: str) -> None:
        store, name = filtered
        asked, expected = FILTERS[what]
        assert matched(store, name, asked) == expected
        assert matched(store, f"{name}-indexed", asked) == expected
        as_json = asked.model_dump_json(exclude_none=True, by_alias=True)
        assert matched(store, name, parse_filter(as_json)) == expected

    @pytest.mark.parametrize("what", REFUSED)
    def test_every_store_refuses_what_stores_understand_differently(
        self, filtered: tuple[Store, str], what: str
    ) -> None:
        store, name = filtered
        asked, values = REFUSED[what]
        empty = f"{name}-empty"
        if empty not in store.collections():
            store.create(empty, config())
        for collection in (name, empty):
            with raises(FilterError, *values):
                store.count(collection, filter=asked)
            with raises(FilterError, *values):
                store.scroll(collection, filter=asked)
            with raises(FilterError, *values):
                store.search(collection, "v", np.ones((1, DIM), np.float32), 3, filter=asked)
        if {"text", "Unicode"}.isdisjoint(values):  # what a collection indexes, and what JSON cannot say
            as_json = asked.model_dump(exclude_none=True, by_alias=True, mode="python")
            with raises(FilterError, *values):
                parse_filter(json.dumps(as_json, default=str))

    @pytest.mark.parametrize("what", NEW_MATCHES)
    @pytest.mark.skipif(not hasattr(models, "MatchPrefix"), reason="this qdrant-client does not know them")
    def test_what_newer_engines_have_is_found_or_refused_by_name(self, filtered: tuple[Store, str], what: str) -> None:
        store, name = filtered
        make, expected = NEW_MATCHES[what]
        condition, refusal, found = make(), "", expected
        try:
            found = matched(store, name, condition)
        except FilterError as error:
            refusal = str(error)
        assert found == expected
        assert not refusal or any(name in refusal for name in condition_names(condition))

    @pytest.fixture(scope="class")
    @classmethod
    def random_points(cls, open_store: OpenStore, builds_graphs: bool) -> Iterator[tuple[Store, str]]:
        """A store with the payloads of `random_filters` in two collections, with and without payload indexes."""
        name, payloads = unique_name(), random_filters.payloads(N)
        words: dict[str, PayloadKind] = dict.fromkeys(random_filters.WORDS, "text")
        with open_store() as store:
            for collection, indexes in ((name, words), (f"{name}-indexed", random_filters.INDEXES)):
                store.create(collection, config(payload_indexes=indexes if builds_graphs else {}))
                store.upsert(collection, points(np.ones((N - 8, DIM), np.float32), payloads=payloads[:-8]))
                store.upsert(collection, Points("other", ids(N)[-8:], np.ones((8, 3), np.float32), payloads[-8:]))
            store.ready(f"{name}-indexed")
            yield store, name
            for collection in (name, f"{name}-indexed"):
                store.drop(collection)

    @settings(max_examples=50)
    @given(random_filters.filters(N))
    def test_a_random_filter_finds_what_brute_force_finds(
        self, random_points: tuple[Store, str], builds_graphs: bool, filter: models.Filter
    ) -> None:
        """With and without an index of each kind, whether points are scrolled, counted or searched."""
        if not builds_graphs:
            pytest.skip("no engine")
        store, name = random_points
        vectors = ["v"] * (N - 8) + ["other"] * 8
        rows = zip(random_filters.payloads(N), ids(N), vectors, strict=True)
        expected = [
            i for i, (payload, id_, vector) in enumerate(rows) if matches(filter, payload, id_=id_, vectors=[vector])
        ]
        for collection in (name, f"{name}-indexed"):
            pages = store.scroll(collection, filter=filter)
            assert sorted(ids(N).index(record.id) for page in pages for record in page) == expected, collection
            assert store.count(collection, filter=filter) == len(expected), collection
            [hits] = store.search(collection, "v", np.ones((1, DIM), np.float32), N, filter=filter)
            assert sorted(ids(N).index(hit.id) for hit in hits) == [i for i in expected if i < N - 8], collection
