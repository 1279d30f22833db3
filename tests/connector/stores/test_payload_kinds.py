"""What a payload index takes, and what filters may ask of it: the engine's answers are the reference."""

import json
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from qdrant_client import models

from alignment.metrics import Distance
from connector.errors import FilterError
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.edge import EdgeStore
from connector.stores.filters import parse_filter
from connector.stores.layout import PAYLOAD_KINDS, PayloadKind
from connector.stores.payload_kinds import check_kinds, read_kinds
from connector.stores.points import Points
from tests.support.errors import raises

FILE = "550e8400-e29b-41d4-a716-446655440000"
TAKEN: dict[PayloadKind, list[Any]] = {
    "keyword": ["a", "", "4", "日本語"],
    "tenant": ["a", "", "4", "日本語"],
    "integer": [4, 0, -(2**63), 2**63 - 1, 4.0, "4", "-4", "+4", "4.0", " 4 "],
    "float": [4, 4.5, -1e300, "4", "4.5", ".5", "1e3", "-1.5E-3"],
    "bool": [True, False, "true", "False"],
    "datetime": [
        "2024-02-29",
        "2024-06-01T12:30",
        "2024-06-01 12:30:15",
        "2024-06-01T12:30:15.25",
        "2024-06-01T12:30:15Z",
        "2024-06-01T12:30:15+02:00",
        "2024-06-01 12:30:15+02",
        "2024-06-01T12:30:15.123456789-0530",
    ],
    "uuid": [FILE, FILE.upper(), FILE.replace("-", ""), f"{{{FILE}}}", f"urn:uuid:{FILE}"],
    "geo": [{"lon": 13.4, "lat": 52.5}, {"lon": -179, "lat": -80.5, "name": "x"}],
    "text": ["a red heart", "x"],
}
REFUSED: dict[PayloadKind, list[Any]] = {
    "keyword": [4, 4.5, True, {}, [["a"]], ["a", 4]],
    "tenant": [4, 4.5, True, {}, [["a"]], ["a", 4]],
    "integer": [4.5, True, "4.5", "", "four", "1_000", 1e19, "9223372036854775808", [4, 4.5], [[4]], {}, "٤"],
    "float": [True, "nan", "inf", "1,5", "1e999", "", [4.5, "x"], {}, "1_0.5", "٤"],
    "bool": [0, 1, "0", "1", "yes", "", 1.0, [True, 1]],
    "datetime": [
        "2024",
        "01/02/2024",
        "2024-02-30",
        "2024-06-01T24:00",
        "2024-06-01T12",
        "2024-06-01T12:30Z",
        "20240601",
        "2024-06-01T12:30:61",
        "2024-06-01T12:30:15+25:00",
        "2024-06-01 ",
        1717245015,
        1717245015.5,
        "",
        "0000-01-01",
    ],
    "uuid": ["550e8400", FILE[:-1], FILE.replace("5", "g"), 550, "", f" {FILE}", f"{{{FILE.replace('-', '')}}}"],
    "geo": [
        "52.5,13.4",
        [52.5, 13.4],
        {"lon": 13.4},
        {"lon": 181, "lat": 0},
        {"lon": 0, "lat": 91},
        {"lon": "1", "lat": 2},
        {"lon": True, "lat": 2},
        {"lon": None, "lat": 2},
        {"lat": 1, "lng": 2},
    ],
    "text": [4, True, {}],
}
INDEXES: dict[str, PayloadKind] = {kind: kind for kind in PAYLOAD_KINDS}


def by(key: str, **test: Any) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key=key, **test)])


def finds(kind: PayloadKind, value: Any) -> models.Filter:
    """A filter for a stored value of a kind."""
    match kind:
        case "integer":
            return by(kind, match=models.MatchValue(value=value))
        case "float":
            return by(kind, range=models.Range(gte=value, lte=value))
        case "datetime":
            return by(kind, range=models.DatetimeRange(gte=datetime(1, 1, 1, tzinfo=UTC)))
        case "uuid":
            return by(kind, match=models.MatchValue(value=str(UUID(value))))
        case "geo":
            centre = models.GeoPoint(lon=value["lon"], lat=value["lat"])
            return by(kind, geo_radius=models.GeoRadius(center=centre, radius=1.0))
        case "text":
            return by(kind, match=models.MatchText(text=value))
        case _:
            return by(kind, match=models.MatchValue(value=value))


def id_of(number: int) -> str:
    return str(UUID(int=number + 1))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeStore]:
    """A store with an index of every kind, on the field of that name."""
    with EdgeStore(tmp_path_factory.mktemp("store") / "qdrant") as store:
        config = {"v": VectorConfig(2, Distance.DOT)}
        store.create("c", CollectionConfig(config, payload_indexes=INDEXES))
        yield store


def is_found(store: EdgeStore, kind: PayloadKind, value: Any) -> bool:
    """Read a value as its kind, store it, and search for it."""
    payload: dict[str, Any] = {kind: deepcopy(value)}
    assert read_kinds(payload, {kind: kind}) == []
    store.upsert("c", Points("v", [id_of(0)], np.ones((1, 2), np.float32), [payload]))
    return store.count("c", filter=finds(kind, payload[kind])) == 1


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in TAKEN.items() for value in values])
def test_what_is_taken_is_found(store: EdgeStore, kind: PayloadKind, value: Any) -> None:
    if value != "":
        assert is_found(store, kind, value)
    assert read_kinds({kind: [value, None]}, {kind: kind}) == []


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in REFUSED.items() for value in values])
def test_what_no_filter_would_find_is_refused_by_name(kind: PayloadKind, value: Any) -> None:
    payload = {kind: value, "other": 1}
    (refusal,) = read_kinds(payload, {kind: kind})
    assert payload == {"other": 1}
    assert refusal.reason == f"payload-not-{'keyword' if kind == 'tenant' else kind}"
    assert refusal.detail.startswith(f"{kind} is indexed as {kind}, got ")


@given(st.integers(-(2**63), 2**63 - 1), st.booleans())
@example(2**53 + 1, True)
def test_every_integer_is_found_as_text_and_as_number(store: EdgeStore, value: int, as_text: bool) -> None:
    payload: dict[str, Any] = {"integer": f"{value}" if as_text else value}
    assert read_kinds(payload, INDEXES) == []
    assert payload == {"integer": value}
    store.upsert("c", Points("v", [id_of(1)], np.ones((1, 2), np.float32), [payload]))
    assert store.count("c", filter=by("integer", match=models.MatchValue(value=value))) >= 1


@given(st.datetimes(), st.sampled_from(["T", " "]), st.sampled_from(["", "Z", "+00:00", "-05:30", "+0200"]))
def test_every_time_is_found(store: EdgeStore, value: Any, separator: str, zone: str) -> None:
    text = value.isoformat(separator) + zone
    if value.year > 1 and value.year < 9999:
        assert is_found(store, "datetime", text)


def test_nothing_is_refused_where_there_is_nothing() -> None:
    payload: dict[str, Any] = {"meta": None, "t": [], "deep": {"x": 1}}
    kept = deepcopy(payload)
    indexes: dict[str, PayloadKind] = {
        "meta.year": "integer",
        "t": "bool",
        "deep.y": "geo",
        "deep.x.z": "geo",
        "u[]": "uuid",
    }
    assert read_kinds(payload, indexes) == []
    assert payload == kept


@pytest.mark.parametrize(
    ("condition", "values"),
    [
        ('{"key": "integer", "match": {"value": "4"}}', ("integer", "a text")),
        ('{"key": "uuid", "match": {"any": ["550e8400"]}}', ("uuid", "no UUID")),
        ('{"key": "integer", "match": {"any": ["4"]}}', ("integer", "a text")),
        ('{"key": "integer", "match": {"except": ["4"]}}', ("integer", "a text")),
        ('{"key": "integer", "range": {"gte": "2024-01-01T00:00:00Z"}}', ("integer", "a range of times")),
        ('{"key": "integer", "range": {"lt": 1e200}}', ("integer", "beyond 64 bits")),
        ('{"key": "integer", "range": {"gte": 0, "lte": 18446744073709551616}}', ("integer", "beyond 64 bits")),
        ('{"key": "float", "match": {"value": 4}}', ("float", "a whole number", "gte")),
        ('{"key": "bool", "match": {"value": 1}}', ("bool", "a whole number")),
        ('{"key": "keyword", "match": {"value": 4}}', ("keyword", "a whole number")),
        ('{"key": "keyword", "range": {"gte": 4}}', ("keyword", "a range of numbers")),
        ('{"key": "tenant", "match": {"value": 4}}', ("tenant", "a whole number")),
        ('{"key": "datetime", "range": {"gte": 1704067200}}', ("datetime", "a range of numbers")),
        ('{"key": "geo", "match": {"value": "Berlin"}}', ("geo", "a text")),
        ('{"key": "text", "geo_radius": {"center": {"lon": 1, "lat": 2}, "radius": 3}}', ("text", "a place")),
        ('{"key": "uuid", "match": {"value": true}}', ("uuid", "true or false")),
        ('{"nested": {"key": "parts", "filter": {"must": {"key": "n", "match": {"value": "4"}}}}}', ("parts[].n",)),
        ('{"should": [{"must_not": [{"key": "\\"bool\\"", "match": {"value": "true"}}]}]}', ("bool", "a text")),
        ('{"key": "my year", "match": {"value": 4}}', ("my year", '"my year"')),
    ],
)
def test_a_filter_that_an_index_cannot_answer_is_refused(condition: str, values: tuple[str, ...]) -> None:
    with raises(FilterError, *values):
        check_kinds(parse_filter(f'{{"must": [{condition}]}}'), {**INDEXES, "parts[].n": "integer"})


@pytest.mark.parametrize("kind", PAYLOAD_KINDS)
def test_a_filter_that_an_index_answers_is_taken(kind: PayloadKind) -> None:
    value = TAKEN[kind][0]
    check_kinds(finds(kind, value), INDEXES)
    check_kinds(by(kind, is_empty=True), INDEXES)
    check_kinds(by("free", match=models.MatchValue(value=4)), INDEXES)
    check_kinds(models.Filter(must=[models.HasIdCondition(has_id=[1, "a"])]), INDEXES)


@pytest.mark.parametrize("field", ["keyword", "free"])
@pytest.mark.parametrize("match", [{"text": "a"}, {"text_any": "a"}, {"phrase": "a"}])
def test_words_want_an_index_of_words(field: str, match: dict[str, str]) -> None:
    """Without one, one engine ignores case and the other looks for a part of the text."""
    condition = parse_filter(json.dumps({"must": [{"key": field, "match": match}]}))
    with raises(FilterError, field, "text"):
        check_kinds(condition, INDEXES)
    check_kinds(condition, {**INDEXES, field: "text"})
