"""Paths of payload fields are read as the engine reads them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models
from qdrant_client.local.json_path_parser import JsonPathItemType, parse_json_path

from alignment.metrics import Distance
from connector.errors import StoreError
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.edge import EdgeStore
from connector.stores.layout import PayloadKind
from connector.stores.payload_kinds import read_kinds
from connector.stores.payload_paths import field_values, parse_path, print_path
from connector.stores.points import Points

PAYLOADS: list[dict[str, Any]] = [
    {"year": 4},
    {"meta": {"year": 4}},
    {"meta.year": 4},
    {"meta": [{"year": 4}, {"year": 5}]},
    {"meta": {"year": [4, 5]}},
    {"my year": 4},
    {"t": [4, 5]},
    {"t": [[4]]},
    {"a": {"b c": {"d": 4}}},
    {"größe": 4},
    {"a-b_c": 4},
    {"": 4},
    {"t": {"0": 4}},
]
IDS = [f"00000000-0000-0000-0000-{number:012d}" for number in range(len(PAYLOADS))]
PATHS = [
    "year",
    "meta.year",
    '"meta.year"',
    "meta[].year",
    "meta[0].year",
    "meta[1].year",
    '"my year"',
    "t",
    "t[]",
    "t[0]",
    "t[][]",
    'a."b c".d',
    "größe",
    "a-b_c",
    '""',
    "t.0",
    '"meta"."year"',
    '"t"[0]',
]
NO_PATHS = ["my year", "a..b", ".a", "a.", "", "t[-1]", "t[x]", "t[", "a b.c", '"a', "[0]", "$.a", " a", 'q"x']


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeStore]:
    """A store with the payloads above in a collection with an index on every path."""
    with EdgeStore(tmp_path_factory.mktemp("store") / "qdrant") as store:
        indexes: dict[str, PayloadKind] = dict.fromkeys(PATHS, "integer")
        store.create("c", CollectionConfig({"v": VectorConfig(2, Distance.DOT)}, payload_indexes=indexes))
        store.upsert("c", Points("v", IDS, np.ones((len(IDS), 2), np.float32), PAYLOADS))
        yield store


def holding_4(path: str) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key=path, match=models.MatchValue(value=4))])


@pytest.mark.parametrize("path", PATHS)
def test_values_are_read_where_the_engine_finds_them(store: EdgeStore, path: str) -> None:
    found = {IDS.index(record.id) for page in store.scroll("c", filter=holding_4(path)) for record in page}
    as_text = [_with_text(payload) for payload in PAYLOADS]
    read = {n for n, payload in enumerate(as_text) if not read_kinds(payload, {path: "integer"}) and _holds(payload, 4)}
    assert found == read
    assert found or path == "meta[1].year"


def _with_text(value: Any) -> Any:
    """The same with every 4 as a text, which is read as a number where the path leads."""
    if isinstance(value, dict):
        return {name: _with_text(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_with_text(inner) for inner in value]
    return "4" if value == 4 else value


def _holds(value: Any, wanted: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value is wanted or any(_holds(each, wanted) for each in inner)


@pytest.mark.parametrize("text", NO_PATHS)
def test_what_the_engine_reads_no_path_in_is_refused(store: EdgeStore, text: str) -> None:
    with pytest.raises(ValueError, match="path of a payload field"):
        parse_path(text)
    with pytest.raises((StoreError, ValueError)):
        store.count("c", filter=holding_4(text))


@given(st.text('ab."[]0-_ é', max_size=12))
def test_paths_are_those_of_the_client(text: str) -> None:
    try:
        path = parse_path(text)
    except ValueError:
        return
    kinds = {JsonPathItemType.KEY: "key", JsonPathItemType.INDEX: "index"}
    theirs = [
        None if i.item_type is JsonPathItemType.WILDCARD_INDEX else getattr(i, kinds[i.item_type])
        for i in parse_json_path(text)
    ]
    assert list(path) == theirs


@given(st.lists(st.one_of(st.text("ab. é-", max_size=4), st.none(), st.integers(0, 99)), max_size=4), st.text("ab. "))
def test_a_printed_path_reads_as_itself(steps: list[str | int | None], first: str) -> None:
    path = (first, *steps)
    assert parse_path(print_path(path)) == path


def test_values_of_a_payload_are_named_as_filters_name_them() -> None:
    payload = {"a b": {"c.d": 1}, "tags": ["x", "y"], "parts": [{"n": 1}, {"m": [2]}], "deep": [[1]], "none": None}
    assert [(print_path(path), value) for path, value in field_values(payload)] == [
        ('"a b"."c.d"', 1),
        ("tags", "x"),
        ("tags", "y"),
        ("parts[].n", 1),
        ("parts[].m", 2),
        ("deep[]", 1),
        ("none", None),
    ]
