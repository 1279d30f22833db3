"""Random filters over a few payloads, with indexes of every kind: what stores must answer as brute force does."""

import random
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

from hypothesis import strategies as st
from qdrant_client import models

from connector.stores.layout import PayloadKind
from tests.support.store_contract import ids

TEXTS = ["a", "A", "Red car", "red", "car red", "the red, car!", "Ümläut", "ümläut", "1", "", " ", "red-car", "foo_bar"]
TIMES = ["2024-01-01T00:00:00Z", "2024-01-01", "2024-06-01T12:00:00+02:00", "2024-06-01 10:00:00", "1969-12-31T23:59Z"]
PLACES = [(13.4, 52.5), (-74.0, 40.7), (179.9, 0.0), (-179.9, 1.0), (0.0, 90.0), (0.0, -90.0), (180.0, 10.0)]
VALUES: dict[str, list[Any]] = {
    "keyword": TEXTS,
    "tenant": TEXTS,
    "text": TEXTS,
    "integer": [-3, 0, 1, 2, 5, -(2**63), 2**63 - 1],
    "float": [0.5, -1.0, 0.0, 1, 2, 1e300, 0.1, -0.0],
    "bool": [True, False],
    "datetime": [time for time in TIMES if "Z" not in time or time.count(":") == 2],
    "uuid": [str(uuid5(NAMESPACE_DNS, name)) for name in "abc"],
    "geo": [{"lon": lon, "lat": lat} for lon, lat in PLACES],
    "free": [*TEXTS, 0, 1, True, False, 0.5, 1.0, {"w": 1}, {}, [1], []],
}
INDEXES: dict[str, PayloadKind] = {
    "keyword": "keyword",
    "text": "text",
    "integer": "integer",
    "float": "float",
    "bool": "bool",
    "datetime": "datetime",
    "tenant": "tenant",
    "uuid": "uuid",
    "geo": "geo",
    "parts[].keyword": "keyword",
    "parts[].integer": "integer",
    "parts[].text": "text",
    "size.integer": "integer",
}
PART = ("keyword", "integer", "text")
# Conditions that only an index of the kind makes sense of stand on fields of that kind alone.
WORDS = ("text", "parts[].text")
PATHS = [
    *VALUES,
    *INDEXES,
    "parts",
    "parts[]",
    "parts[0].integer",
    "integer[0]",
    "keyword[]",
    "free[0]",
    "free[]",
    "size",
    "nowhere",
    "nowhere.x",
]


def _value(rng: random.Random, name: str) -> Any:
    kind = rng.random()
    if kind < 0.1:
        return None
    if kind < 0.65:
        return rng.choice(VALUES[name])
    values = [rng.choice(VALUES[name]) for _ in range(rng.randint(0, 3))]
    return [None, *values] if rng.random() < 0.2 else values


def payloads(n: int) -> list[dict[str, Any]]:
    """Payloads in which fields are missing, null, empty, single values and lists; the first is empty."""
    rng = random.Random(0)

    def fields(names: Any) -> dict[str, Any]:
        return {name: _value(rng, name) for name in names if rng.random() < 0.7}

    some: list[dict[str, Any]] = [{}]
    while len(some) < n:
        payload = fields(VALUES)
        if rng.random() < 0.6:
            payload["parts"] = [fields(PART) for _ in range(rng.randint(0, 3))]
        if rng.random() < 0.4:
            payload["size"] = fields(("integer",))
        some.append(payload)
    return some


def _bounds(bound: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    lower, upper = (
        st.dictionaries(st.sampled_from(pair), bound, max_size=1) for pair in (("gt", "gte"), ("lt", "lte"))
    )
    return st.builds(lambda low, high: low | high, lower, upper).filter(bool)


def _place(lon: float, lat: float) -> models.GeoPoint:
    return models.GeoPoint(lon=lon, lat=lat)


def _rectangle(west: float, south: float, east: float, north: float) -> models.GeoPolygon:
    corners = [(west, south), (east, south), (east, north), (west, north), (west, south)]
    return models.GeoPolygon(exterior=models.GeoLineString(points=[_place(*corner) for corner in corners]))


LONGITUDES, LATITUDES = st.sampled_from([-180.0, -100.5, -1.25, 13.0, 14.5, 180.0]), (-90.0, -50.5, 39.25, 53.5, 90.0)
ZONES = st.sampled_from([None, UTC, timezone(timedelta(hours=2))])
MOMENTS = st.builds(
    lambda month, hour, zone: datetime(2024, month, 1, hour, tzinfo=zone),
    st.sampled_from([1, 6]),
    st.integers(9, 13),
    ZONES,
)
BOXES = st.builds(
    lambda west, east, south, north: models.GeoBoundingBox(
        top_left=_place(west, LATITUDES[north]), bottom_right=_place(east, LATITUDES[south])
    ),
    LONGITUDES,
    LONGITUDES,
    st.integers(0, 1),
    st.integers(2, 4),
)
CIRCLES = st.builds(
    lambda place, metres: models.GeoRadius(center=_place(*place), radius=metres),
    st.sampled_from([*PLACES, (100.0, 89.5), (0.0, 80.0)]),
    st.sampled_from([1.0, 12_345.678, 1e5, 3e6, 1.5e7, 2.1e7]),
)
POLYGONS = st.builds(
    _rectangle,
    st.sampled_from([-180.0, -80.5]),
    st.sampled_from([-89.5, 39.5]),
    st.sampled_from([14.5, 180.0]),
    st.sampled_from([53.5, 90.0]),
)


def _matches(name: str) -> st.SearchStrategy[dict[str, Any]]:
    values = [value for value in VALUES.get(name, VALUES["free"]) if isinstance(value, (str, int))] or [1, "a"]
    texts = st.lists(st.sampled_from([value for value in values if isinstance(value, str)] or ["a"]), max_size=15)
    numbers = st.lists(st.sampled_from([v for v in values if type(v) is int] or [1]), max_size=3)
    lists: st.SearchStrategy[Any] = st.one_of(
        [numbers] if name in ("integer", "bool") else [texts] if name in INDEXES else [texts, numbers]
    )
    return st.one_of(
        st.sampled_from(values).map(lambda value: {"match": models.MatchValue(value=value)}),
        lists.map(lambda some: {"match": models.MatchAny(any=some)}),
        lists.map(lambda some: {"match": models.MatchExcept(**{"except": some})}),
    )


NUMBERS = _bounds(st.sampled_from([-1.5, -1.0, 0.0, 0.5, 1.0, 2.0])).map(lambda b: {"range": models.Range(**b)})
LARGE = _bounds(st.sampled_from([-1e301, 0.25, 1e200])).map(lambda b: {"range": models.Range(**b)})
MOMENT_RANGES = _bounds(st.one_of(MOMENTS, MOMENTS.map(datetime.date), st.just(date(1969, 12, 31)))).map(
    lambda b: {"range": models.DatetimeRange(**b)}
)
COUNTS = _bounds(st.integers(0, 3)).filter(lambda b: b.get("gte", 0) >= 1 or "gt" in b)
GEO = st.one_of(
    BOXES.map(lambda box: {"geo_bounding_box": box}),
    CIRCLES.map(lambda circle: {"geo_radius": circle}),
    POLYGONS.map(lambda polygon: {"geo_polygon": polygon}),
)
WORD_MATCHES = st.sampled_from([text for text in TEXTS if any(map(str.isalnum, text))]).flatmap(
    lambda text: st.sampled_from(
        [models.MatchText(text=text), models.MatchTextAny(text_any=text), models.MatchPhrase(phrase=text)]
    ).map(lambda match: {"match": match})
)
ANYWHERE = st.one_of(
    COUNTS.map(lambda b: {"values_count": models.ValuesCount(**b)}),
    st.booleans().map(lambda value: {"is_empty": value}),
    st.booleans().map(lambda value: {"is_null": value}),
)


def _tests(path: str) -> st.SearchStrategy[dict[str, Any]]:
    """Tests of a field that an index of its kind answers."""
    name = path.replace("parts[].", "").replace("size.", "")
    by_kind: dict[str, list[st.SearchStrategy[dict[str, Any]]]] = {
        "keyword": [_matches(name)],
        "tenant": [_matches(name)],
        "text": [_matches(name), WORD_MATCHES],
        "integer": [_matches(name), NUMBERS],
        "float": [NUMBERS, LARGE],
        "bool": [st.booleans().map(lambda value: {"match": models.MatchValue(value=value)})],
        "datetime": [_matches(name), MOMENT_RANGES],
        "uuid": [_matches(name)],
        "geo": [GEO],
    }
    of_kind = by_kind[INDEXES[path]] if path in INDEXES else [_matches(name), NUMBERS]
    return st.one_of(*of_kind, ANYWHERE)


@st.composite
def _fields(draw: st.DrawFn, paths: list[str], within: str = "") -> Any:
    path = draw(st.sampled_from(paths))
    key = path.removeprefix(within)
    payload_field = models.PayloadField(key=key)
    match draw(st.integers(0, 7)):
        case 0:
            return models.IsEmptyCondition(is_empty=payload_field)
        case 1:
            return models.IsNullCondition(is_null=payload_field)
    return models.FieldCondition(key=key, **draw(_tests(path)))


@st.composite
def _clauses(draw: st.DrawFn, conditions: st.SearchStrategy[Any]) -> models.Filter:
    names = draw(st.sets(st.sampled_from(["must", "should", "must_not", "min_should"]), min_size=1, max_size=2))
    clauses: dict[str, Any] = {name: draw(st.lists(conditions, min_size=1, max_size=3)) for name in sorted(names)}
    if least := clauses.get("min_should"):
        clauses["min_should"] = models.MinShould(conditions=least, min_count=draw(st.integers(1, len(least))))
    return models.Filter(**clauses)


@st.composite
def filters(draw: st.DrawFn, n: int) -> models.Filter:
    """Filters over `payloads(n)` of points with the ids `ids(n)`, with every condition that all stores have.

    Some have one condition in several places, of which engines may think to know the answer.
    """
    of_parts = _fields([f"parts[].{name}" for name in PART], "parts[].")
    leaves = st.one_of(
        _fields(PATHS),
        st.lists(st.sampled_from(ids(n)), max_size=3).map(lambda some: models.HasIdCondition(has_id=list(some))),
        st.sampled_from(["v", "other", "nowhere"]).map(lambda name: models.HasVectorCondition(has_vector=name)),
        st.builds(
            lambda key, inner: models.NestedCondition(nested=models.Nested(key=key, filter=inner)),
            st.sampled_from(["parts", "parts[]"]),
            _clauses(of_parts),
        ),
    )
    conditions = st.recursive(leaves, _clauses, max_leaves=4)
    repeated = st.lists(leaves, min_size=1, max_size=2).flatmap(lambda few: _clauses(st.sampled_from(few)))
    return draw(st.one_of(_clauses(conditions), repeated))
