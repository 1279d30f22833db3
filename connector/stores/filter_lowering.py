"""Filters rewritten, so that every store takes them alike, with payload indexes and without.

Engines differ in conditions that have another of the same meaning:

    is_null as a condition of its own     older servers pass over null inside a list
    is_null: false, is_empty as a test    a list of objects is judged by an index as a whole, else by its elements
    is_empty on the elements of a list    an index answers for the whole list, and misses points
    places at a pole or at longitude 180  an index of places misses points

What an index would answer wrongly stands in two negations: nothing asks an index for the inside of `must_not`, so the
engine tests each point.

The engine takes the points that indexes, or ids, name for one clause of a filter, and tests them against the filter
unless each condition of it is one of that clause. So it takes `must_not` for met where its conditions stand in another
clause: of `should` red or blue and `must_not` blue, blue points are found. A filter of several clauses stands in the
`must` of another one, whose only condition then is the filter: every point is tested against it.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from qdrant_client.models import Condition, Filter, GeoPoint

EARTH_METRES = 6_371_008.8  # the engine's mean radius


def lowered(filter: "Filter") -> "Filter":
    """Return a checked filter as every store takes it alike.

    Args:
        filter: which `connector.stores.filters.check_filter` has passed.
    """
    from qdrant_client import models  # takes a second, and whoever has a filter has imported it

    result = _lowered_filter(filter, in_element=False)
    clauses = [clause for clause in (filter.must, filter.should, filter.must_not) if clause]
    return models.Filter(must=[result]) if filter.min_should or len(clauses) > 1 else result


def _lowered_filter(filter: "Filter", *, in_element: bool) -> "Filter":
    return _changed(filter, lambda condition: _lowered(condition, in_element))


def _changed(filter: "Filter", change: "Callable[[Condition], Condition]") -> "Filter":
    """Return a filter with each of its conditions changed."""
    from qdrant_client import models

    def conditions(clause: Any) -> "list[Condition] | None":
        if clause is None:
            return None
        return [change(condition) for condition in (clause if isinstance(clause, list) else [clause])]

    least = filter.min_should
    return models.Filter(
        must=conditions(filter.must),
        should=conditions(filter.should),
        must_not=conditions(filter.must_not),
        min_should=least and models.MinShould(conditions=conditions(least.conditions) or [], min_count=least.min_count),
    )


def _lowered(condition: "Condition", in_element: bool) -> "Condition":
    from qdrant_client import models

    result = condition
    match condition:
        case models.Filter():
            result = _lowered_filter(condition, in_element=in_element)
        case models.NestedCondition(nested=nested):
            inner = _lowered_filter(nested.filter, in_element=True)
            result = models.NestedCondition(nested=models.Nested(key=nested.key, filter=inner))
        case models.IsNullCondition():
            result = models.FieldCondition(key=condition.is_null.key, is_null=True)
        case models.FieldCondition(is_null=False):
            result = models.Filter(must_not=[models.FieldCondition(key=condition.key, is_null=True)])
        case models.IsEmptyCondition() if in_element:
            result = _unindexed(condition)
        case models.FieldCondition(is_empty=bool() as is_empty):
            empty = models.IsEmptyCondition(is_empty=models.PayloadField(key=condition.key))
            result = _lowered(empty, in_element) if is_empty else models.Filter(must_not=[empty])
        case models.FieldCondition(geo_radius=models.GeoRadius() as circle):
            # gRPC sends radii in float32.
            rounded = circle.model_copy(update={"radius": float(np.float32(circle.radius))})
            result = models.FieldCondition(key=condition.key, geo_radius=rounded)
    return _unindexed(result) if _is_at_an_edge(result) else result


def with_short_lists(filter: "Filter | None", most: int | None) -> "Filter | None":
    """Return a lowered filter in which no condition names more than `most` values or ids, None: any number.

    A longer list is cut, and one of its parts should match. An `except` stays: it has no other form.
    """
    return filter if filter is None or most is None else _changed(filter, lambda condition: _cut(condition, most))


def _cut(condition: "Condition", most: int) -> "Condition":
    from qdrant_client import models

    parts: list[Condition] = []
    match condition:
        case models.Filter():
            return _changed(condition, lambda inner: _cut(inner, most))
        case models.NestedCondition(nested=nested):
            inner = _changed(nested.filter, lambda inner: _cut(inner, most))
            return models.NestedCondition(nested=models.Nested(key=nested.key, filter=inner))
        case models.HasIdCondition(has_id=ids):
            parts = [models.HasIdCondition(has_id=ids[start : start + most]) for start in range(0, len(ids), most)]
        case models.FieldCondition(match=models.MatchAny(any=values)):
            of_parts: list[Any] = [values[start : start + most] for start in range(0, len(values), most)]
            parts = [models.FieldCondition(key=condition.key, match=models.MatchAny(any=part)) for part in of_parts]
    return models.Filter(should=parts) if len(parts) > 1 else condition


def _unindexed(condition: "Condition") -> "Condition":
    from qdrant_client import models

    return models.Filter(must_not=[models.Filter(must_not=[condition])])


def _is_at_an_edge(condition: "Condition") -> bool:
    """Say whether a condition is on places up to a pole or to longitude 180, or across it."""
    from qdrant_client import models

    match condition:
        case models.FieldCondition(geo_bounding_box=models.GeoBoundingBox() as box):
            return box.top_left.lon >= box.bottom_right.lon or any(map(_is_edge, (box.top_left, box.bottom_right)))
        case models.FieldCondition(geo_radius=models.GeoRadius() as circle):
            to_the_pole = math.radians(90 - abs(circle.center.lat)) * EARTH_METRES
            return circle.radius >= to_the_pole * (1 - 1e-6)
        case models.FieldCondition(geo_polygon=models.GeoPolygon() as polygon):
            return any(map(_is_edge, polygon.exterior.points))
    return False


def _is_edge(point: "GeoPoint") -> bool:
    return abs(point.lon) >= 180 or abs(point.lat) >= 90
