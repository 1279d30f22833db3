"""Conditions of filters, one at a time: refused where stores would take one for something else.

Over gRPC a server takes what REST refuses, such as a ring that is not closed, and Qdrant Edge reads some numbers as
others. An ambiguous condition in `modalign delete` would delete items that nobody meant.
"""

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from connector.errors import FilterError
from connector.stores.payload_checks import LARGEST, payload_fault
from connector.stores.payload_paths import parse_path

BOUNDS = ("lt", "lte", "gt", "gte")
LARGEST_ID = (1 << 64) - 1
# Between these, stores round whole numbers to floats, and their indexes do not. No whole number lies beyond.
FIRST_ROUNDED, LAST_ROUNDED = 1 << 53, 1 << 63
MOST_LON, MOST_LAT = 180, 90
# Larger than the Earth, and a float32, in which gRPC sends it, holds both.
LEAST_METRES, MOST_METRES = 1e-9, 1e8
RING_POINTS = 4
# What a test of words, of the start or of a part of a text is called.
TEXTS = ("text", "text_any", "phrase", "prefix", "substring")


def check_condition(condition: Any, *, in_element: bool = False) -> None:
    """Return if stores understand a condition alike.

    Args:
        condition: of a filter, in the classes of qdrant_client.
        in_element: it is on an element of a list, which has no id and no vectors.

    Raises:
        FilterError: a condition on a field holds no test or several; a path is invalid; a range has no bound, two lower
            or two upper ones, or one at which whole numbers would be rounded; a count of values may be 0; a number is
            not finite or needs more than 64 bits; a time is in no year from 1 to 9999; a text holds no word or is no
            Unicode; a place is nowhere on Earth; a ring is not closed; an id is none; or a condition on an element is
            on what no element has.
    """
    match type(condition).__name__:
        case "FieldCondition":
            _check_field(condition)
        case "IsEmptyCondition":
            _check_path(condition.is_empty.key)
        case "IsNullCondition":
            _check_path(condition.is_null.key)
        case "NestedCondition":
            _check_path(condition.nested.key)
        case "HasIdCondition" | "HasVectorCondition" | "SliceCondition" as name:
            if in_element:
                raise FilterError(f"{name}: an element of a list has neither id nor vectors; put it beside `nested`")
            if name == "HasIdCondition":
                for id_ in condition.has_id:
                    _check_id(id_)
            if name == "SliceCondition" and not 0 <= condition.slice.index < condition.slice.total <= LARGEST:
                raise FilterError(f"slice: expected an index from 0 to below total, got {condition.slice}")


def _check_path(text: str) -> None:
    try:
        parse_path(text)
    except ValueError as error:
        raise FilterError(str(error)) from None


def _check_id(id_: Any) -> None:
    if isinstance(id_, UUID) or (isinstance(id_, int) and 0 <= id_ <= LARGEST_ID):
        return
    try:
        UUID(id_)
    except (ValueError, AttributeError, TypeError):
        raise FilterError(f"has_id: expected UUIDs or whole numbers from 0 to 2^64 - 1, got {id_!r}") from None


def _check_field(condition: Any) -> None:
    """Refuse a condition on a field that is not exactly one test, or whose test stores would change."""
    _check_path(condition.key)
    tests = {name: getattr(condition, name, None) for name in type(condition).model_fields if name != "key"}
    given = sorted(name for name, test in tests.items() if test is not None)
    if not given:
        raise FilterError(f"the condition on {condition.key!r} asks for nothing; give it a match or a range")
    if len(given) > 1:
        raise FilterError(
            f"the condition on {condition.key!r} holds {len(given)} tests, {', '.join(given)}, of which stores may "
            "take any; give each test a condition of its own"
        )
    (name,) = given
    test = tests[name]
    for number in _numbers(test):
        if not math.isfinite(number):
            raise FilterError(f"the condition on {condition.key!r}: expected finite numbers, got {number}")
    if name in ("range", "values_count"):
        bounds = {bound: value for bound in BOUNDS if (value := getattr(test, bound, None)) is not None}
        _check_bounds(f"the {name} of {condition.key!r}", bounds)
        for bound in bounds.values():
            if isinstance(bound, datetime):
                _check_time(condition.key, bound)
            elif isinstance(bound, float) and FIRST_ROUNDED <= abs(bound) <= LAST_ROUNDED:
                raise FilterError(
                    f"the range of {condition.key!r}: {bound:.0f} is compared with rounded whole numbers, except by an "
                    "index of them; expected bounds below 2^53 in size, or beyond 2^63; a time can be a text, with an "
                    "index of kind datetime"
                )
        if name == "values_count":
            _check_count(condition.key, bounds)
    elif name == "match":
        _check_match(condition.key, test)
    elif name.startswith("geo_"):
        _check_place(condition.key, test)


def _check_bounds(what: str, bounds: Mapping[str, Any]) -> None:
    """Refuse no bound, or two of one side: an index obeys one of them."""
    if not bounds or {"lt", "lte"} <= bounds.keys() or {"gt", "gte"} <= bounds.keys():
        raise FilterError(
            f"{what}: expected one lower bound, one upper bound or both, got {', '.join(bounds) or 'none'}; a store "
            "may ignore one of two"
        )


def _check_time(key: str, time: datetime) -> None:
    """Refuse a time that no message of gRPC can hold: one before the year 1 or after 9999, in UTC."""
    try:
        (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (OverflowError, ValueError):
        raise FilterError(f"the range of {key!r}: expected times from the year 1 to 9999 in UTC, got {time}") from None


def _check_count(key: str, bounds: Mapping[str, int]) -> None:
    if bounds.get("gte", 0) < 1 and bounds.get("gt", -1) < 0:
        raise FilterError(
            f"the values_count of {key!r}: expected a lower bound above 0, since stores differ in whether a missing "
            "field has 0 values; ask for those by is_empty"
        )
    if wrong := [bound for bound in bounds.values() if not 0 <= bound <= LARGEST]:
        raise FilterError(f"the values_count of {key!r}: expected 0 to 2^63 - 1, got {wrong[0]}")


def _check_match(key: str, match: Any) -> None:
    """Refuse texts without a word and values that no payload can hold."""
    for name in TEXTS:
        text = getattr(match, name, None)
        if text is not None and not any(map(str.isalnum, text)):
            raise FilterError(f"the {name} of {key!r}: expected a letter or a digit, got {text!r}; it asks for nothing")
    for name in type(match).model_fields:
        if fault := payload_fault({key: getattr(match, name)}):
            raise FilterError(f"the match of {key!r}: {fault.detail}")


def _check_place(key: str, test: Any) -> None:
    """Refuse what is nowhere on Earth: gRPC takes it and finds nothing, or the server fails."""
    for lon, lat in _places(test):
        if abs(lon) > MOST_LON or abs(lat) > MOST_LAT:
            expected = f"lon of -{MOST_LON} to {MOST_LON} and lat of -{MOST_LAT} to {MOST_LAT}"
            raise FilterError(f"the place of {key!r}: expected {expected}, got lon {lon} and lat {lat}")
    radius = getattr(test, "radius", None)
    if radius is not None and not LEAST_METRES <= radius <= MOST_METRES:
        raise FilterError(f"the radius of {key!r}: expected {LEAST_METRES} to {MOST_METRES:.0f} metres, got {radius}")
    if hasattr(test, "exterior"):
        for line in (test.exterior, *(test.interiors or ())):
            if len(line.points) < RING_POINTS or line.points[0] != line.points[-1]:
                raise FilterError(
                    f"a ring of {key!r}: expected at least {RING_POINTS} points of which the last is the first, got "
                    f"{len(line.points)}"
                )
    if (box := getattr(test, "top_left", None)) and box.lat <= test.bottom_right.lat:
        raise FilterError(
            f"the box of {key!r}: expected top_left above bottom_right, got lat {box.lat} and {test.bottom_right.lat}"
        )


def _places(value: Any) -> Iterator[tuple[float, float]]:
    """Yield lon and lat of every point of a test, at any depth."""
    if isinstance(value, list):
        for inner in value:
            yield from _places(inner)
    elif hasattr(value, "lon"):
        yield value.lon, value.lat
    elif hasattr(type(value), "model_fields"):
        for name in type(value).model_fields:
            yield from _places(getattr(value, name, None))


def _numbers(value: Any) -> Iterator[float]:
    """Yield the floats of a test, at any depth."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner)
    elif hasattr(type(value), "model_fields"):
        for name in type(value).model_fields:
            yield from _numbers(getattr(value, name, None))
