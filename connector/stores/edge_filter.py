"""Filters of qdrant_client, translated for Qdrant Edge: both stores take the same filter."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import qdrant_edge as edge

from connector.errors import FilterError

if TYPE_CHECKING:
    from qdrant_client.models import Filter


def to_edge(filter: "Filter | None") -> edge.Filter | None:
    """Translate a filter of qdrant_client into the engine's own classes; None stays None.

    Args:
        filter: whose conditions `check_supported` has passed.

    Raises:
        FilterError: the engine refuses it.
    """
    if filter is None:
        return None

    def conditions(value: Any) -> list[Any] | None:
        if value is None:
            return None
        return [_condition(c) for c in (value if isinstance(value, list) else [value])]

    least = filter.min_should
    with _translated_filter():
        return edge.Filter(
            must=conditions(filter.must),
            should=conditions(filter.should),
            must_not=conditions(filter.must_not),
            min_should=edge.MinShould(conditions(least.conditions) or [], least.min_count) if least else None,
        )


@contextmanager
def _translated_filter() -> Iterator[None]:
    try:
        yield
    except (FilterError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of the engine is no Exception
        raise FilterError(f"Qdrant Edge does not take this filter: {error}") from error


def check_supported(names: Collection[str]) -> None:
    """Return if the engine has the conditions and matches of these classes of qdrant_client.

    Raises:
        FilterError: it does not have one of them.
    """
    for name in sorted(names):
        if name not in _CONDITIONS and name not in _MATCHES:
            raise FilterError(
                f"Qdrant Edge has no {name}; it has {', '.join([*_CONDITIONS, *_MATCHES])}, or use a Qdrant server"
            )


def _condition(condition: Any) -> Any:
    return _CONDITIONS[type(condition).__name__](condition)


def _field(condition: Any) -> Any:
    range_ = condition.range
    return edge.FieldCondition(
        key=condition.key,
        match=_match(condition.match) if condition.match else None,
        range=_RANGES[type(range_).__name__](range_) if range_ else None,
        geo_bounding_box=_maybe(
            condition.geo_bounding_box,
            lambda box: edge.GeoBoundingBox(_point(box.top_left), _point(box.bottom_right)),
        ),
        geo_radius=_maybe(condition.geo_radius, lambda circle: edge.GeoRadius(_point(circle.center), circle.radius)),
        geo_polygon=_maybe(
            condition.geo_polygon,
            lambda polygon: edge.GeoPolygon(
                [_point(p) for p in polygon.exterior.points],
                [[_point(p) for p in line.points] for line in polygon.interiors or []],
            ),
        ),
        values_count=_maybe(condition.values_count, lambda n: edge.ValuesCount(lt=n.lt, gt=n.gt, lte=n.lte, gte=n.gte)),
        is_empty=condition.is_empty,
        is_null=condition.is_null,
    )


def _match(match: Any) -> Any:
    return _MATCHES[type(match).__name__](match)


def _value(match: Any) -> Any:
    # The engine reads a Python bool as the number 1 and then finds no boolean; numpy's own type it reads right.
    value: Any = np.bool_(match.value) if isinstance(match.value, bool) else match.value
    return edge.MatchValue(value)


def _datetimes(range_: Any) -> Any:
    bounds = {name: getattr(range_, name) for name in ("lt", "gt", "lte", "gte")}
    return edge.RangeDateTime(**{name: value.isoformat() if value else None for name, value in bounds.items()})


def _maybe(value: Any, translate: Callable[[Any], Any]) -> Any:
    return None if value is None else translate(value)


def _point(point: Any) -> Any:
    return edge.GeoPoint(point.lon, point.lat)


_CONDITIONS: dict[str, Callable[[Any], Any]] = {
    "FieldCondition": _field,
    "Filter": to_edge,
    "HasIdCondition": lambda c: edge.HasIdCondition(set(c.has_id)),
    "HasVectorCondition": lambda c: edge.HasVectorCondition(c.has_vector),
    "IsEmptyCondition": lambda c: edge.IsEmptyCondition(c.is_empty.key),
    "IsNullCondition": lambda c: edge.IsNullCondition(c.is_null.key),
    "NestedCondition": lambda c: edge.NestedCondition(c.nested.key, to_edge(c.nested.filter) or edge.Filter()),
}

_MATCHES: dict[str, Callable[[Any], Any]] = {
    "MatchValue": _value,
    "MatchAny": lambda m: edge.MatchAny(m.any),
    "MatchExcept": lambda m: edge.MatchExcept(m.except_),
    "MatchText": lambda m: edge.MatchText(m.text),
    "MatchTextAny": lambda m: edge.MatchTextAny(m.text_any),
    "MatchPrefix": lambda m: edge.MatchPrefix(m.prefix),
    "MatchSubstring": lambda m: edge.MatchSubstring(m.substring),
    "MatchPhrase": lambda m: edge.MatchPhrase(m.phrase),
}

_RANGES: dict[str, Callable[[Any], Any]] = {
    "Range": lambda r: edge.RangeFloat(lt=r.lt, gt=r.gt, lte=r.lte, gte=r.gte),
    "DatetimeRange": _datetimes,
}
