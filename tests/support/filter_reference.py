"""What a filter means, by brute force over payloads: the reference that every store is compared with."""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, date, datetime
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from qdrant_client import models

from connector.stores.payload_paths import Path, parse_path

EARTH_METRES = 6_371_008.8


def matches(filter: models.Filter, payload: Any, *, id_: str = "", vectors: Collection[str] = ()) -> bool:
    """Say whether a point matches a filter: its id, the names of its vectors, its payload as JSON decodes it."""

    def fulfilled(clause: Any) -> Iterator[bool]:
        for condition in clause if isinstance(clause, list) else [clause]:
            yield _fulfils(condition, payload, id_, vectors)

    least = filter.min_should
    return (
        (filter.must is None or all(fulfilled(filter.must)))
        and (filter.should is None or any(fulfilled(filter.should)))
        and (filter.must_not is None or not any(fulfilled(filter.must_not)))
        and (least is None or sum(fulfilled(least.conditions)) >= least.min_count)
    )


def _fulfils(condition: Any, payload: Any, id_: str, vectors: Collection[str]) -> bool:
    match condition:
        case models.Filter():
            return matches(condition, payload, id_=id_, vectors=vectors)
        case models.HasIdCondition():
            return id_ in map(str, condition.has_id)
        case models.HasVectorCondition():
            return condition.has_vector in vectors
        case models.NestedCondition(nested=nested):
            path = parse_path(nested.key)
            elements = _values(payload, path if path[-1] is None else (*path, None))
            return any(isinstance(element, dict) and matches(nested.filter, element) for element in elements)
        case models.IsEmptyCondition():
            return _is_empty(_values(payload, parse_path(condition.is_empty.key)))
        case models.IsNullCondition():
            return _is_null(_values(payload, parse_path(condition.is_null.key)))
    return _field(condition, list(_values(payload, parse_path(condition.key))))


def _field(condition: models.FieldCondition, values: Sequence[Any]) -> bool:
    if condition.is_empty is not None:
        return _is_empty(values) == condition.is_empty
    if condition.is_null is not None:
        return _is_null(values) == condition.is_null
    if (count := condition.values_count) is not None:
        return any(_inside(count, len(v) if isinstance(v, list) else int(v is not None)) for v in values)
    flat = [inner for value in values for inner in (value if isinstance(value, list) else [value])]
    if (match := condition.match) is not None:
        return any(_matches_value(match, value) for value in flat)
    if (range_ := condition.range) is not None:
        return any(_in_range(range_, value) for value in flat)
    return any(_in_place(condition, value) for value in flat)


def _values(value: Any, path: Path) -> Iterator[Any]:
    if not path:
        yield value
    elif isinstance(step := path[0], str):
        if isinstance(value, dict) and step in value:
            yield from _values(value[step], path[1:])
    elif isinstance(value, list):
        for element in value if step is None else value[step : step + 1]:
            yield from _values(element, path[1:])


def _is_empty(values: Any) -> bool:
    return all(value is None or value == [] for value in values)


def _is_null(values: Any) -> bool:
    return any(value is None or (isinstance(value, list) and None in value) for value in values)


def _inside(bounds: Any, value: Any) -> bool:
    lt, lte, gt, gte = bounds.lt, bounds.lte, bounds.gt, bounds.gte
    below = (lt is None or value < lt) and (lte is None or value <= lte)
    return below and (gt is None or value > gt) and (gte is None or value >= gte)


def _matches_value(match: Any, value: Any) -> bool:
    def same(other: Any) -> bool:
        return type(other) is type(value) and bool(other == value)

    match match:
        case models.MatchValue():
            return same(match.value)
        case models.MatchAny():
            return any(map(same, match.any))
        case models.MatchExcept():
            return value is not None and not any(map(same, match.except_))
        case models.MatchText():
            return isinstance(value, str) and set(words(match.text)) <= set(words(value))
        case models.MatchTextAny():
            return isinstance(value, str) and not set(words(match.text_any)).isdisjoint(words(value))
    assert isinstance(match, models.MatchPhrase)
    phrase, text = words(match.phrase), words(value) if isinstance(value, str) else []
    return any(text[start : start + len(phrase)] == phrase for start in range(len(text)))


def words(text: str) -> list[str]:
    """Letters and digits that stand together, in lower case: what an index of words makes of a text."""
    return [word.lower() for word in re.findall(r"[^\W_]+", text)]


def _in_range(range_: Any, value: Any) -> bool:
    if isinstance(range_, models.DatetimeRange):
        bounds = SimpleNamespace(**{bound: None if time is None else _time(time) for bound, time in range_})
        return isinstance(value, str) and _inside(bounds, _time(value))
    return isinstance(value, (int, float)) and not isinstance(value, bool) and _inside(range_, float(value))


def _time(value: str | date) -> datetime:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _in_place(condition: models.FieldCondition, value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    lon, lat = value["lon"], value["lat"]
    if box := condition.geo_bounding_box:
        left, right = box.top_left.lon, box.bottom_right.lon
        between = left < lon < right if left <= right else lon > left or lon < right
        return bool(between and box.bottom_right.lat < lat < box.top_left.lat)
    if circle := condition.geo_radius:
        return _metres(lon, lat, circle.center.lon, circle.center.lat) < circle.radius
    assert condition.geo_polygon
    rings = [condition.geo_polygon.exterior, *(condition.geo_polygon.interiors or ())]
    exterior, *interiors = (_in_ring(ring.points, lon, lat) for ring in rings)
    return exterior and not any(interiors)


def _metres(lon: float, lat: float, other_lon: float, other_lat: float) -> float:
    x, y, u, v = map(math.radians, (lon, lat, other_lon, other_lat))
    haversine = math.sin((v - y) / 2) ** 2 + math.cos(y) * math.cos(v) * math.sin((u - x) / 2) ** 2
    return 2 * EARTH_METRES * math.asin(math.sqrt(min(1.0, haversine)))


def _in_ring(ring: Sequence[models.GeoPoint], lon: float, lat: float) -> bool:
    crossings = 0
    for a, b in pairwise(ring):
        if (a.lat > lat) != (b.lat > lat):
            crossings += lon < (b.lon - a.lon) * (lat - a.lat) / (b.lat - a.lat) + a.lon
    return bool(crossings % 2)
