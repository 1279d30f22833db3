"""Filters: read from JSON, and checked before a store sees them.

Stores differ in what they make of a condition that holds several tests, of bounds that exclude each other's field, and
of numbers that JSON does not have: some points match that should not. What is ambiguous is refused on every store.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from connector.errors import FilterError

if TYPE_CHECKING:
    from qdrant_client.models import Filter

# Deeper filters end the parser of a server.
MOST_LEVELS = 64
# The engine lists every way to fulfil `min_should` to estimate how many points match: 20 conditions of which 10 must
# hold take seconds, 26 of which 13 must hold take all memory.
MOST_COMBINATIONS = 10_000


def parse_filter(text: str, *, what: str = "filter") -> "Filter":
    """Read a filter in Qdrant's own JSON; `what` names it in errors.

    Raises:
        FilterError: it is no JSON or no filter, or `check_filter` refuses it.
    """
    from pydantic import ValidationError
    from qdrant_client.models import Filter  # takes a second to import

    example = '{"must": [{"key": "language", "match": {"value": "en"}}]}'
    try:
        parsed = Filter.model_validate(json.loads(text, object_pairs_hook=_once))
        check_filter(parsed)
    except FilterError as error:
        raise FilterError(f"{what}: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise FilterError(f"{what} is no JSON ({error}); expected a Qdrant filter such as {example}") from None
    except ValidationError as error:
        places = sorted({".".join(map(str, e["loc"][:2])) or "(top)" for e in error.errors()})
        raise FilterError(
            f"{what} is not valid at {', '.join(places)}; expected a Qdrant filter such as {example}"
        ) from None
    return parsed


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON, in which a later field of the same name would replace the first."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FilterError(f"{twice!r} is given twice in one object; give it once, with a list of conditions")
    return fields


def check_filter(filter: "Filter") -> None:
    """Return if every store understands `filter` alike.

    Raises:
        FilterError: a condition holds no test or several; a range has no bound, two lower or two upper ones; a count of
            values may be 0; a number is not finite; `min_should` has more than `MOST_COMBINATIONS` ways to be
            fulfilled, or wants none of its conditions; or filters are nested deeper than `MOST_LEVELS`.
    """
    combinations = 0
    for level, inner in nested_filters(filter):
        if level > MOST_LEVELS:
            raise FilterError(f"filters are nested deeper than {MOST_LEVELS} levels; combine them in fewer")
        for condition in conditions_of(inner):
            if hasattr(condition, "key"):
                _check_condition(condition)
        if least := inner.min_should:
            combinations += _combinations(len(least.conditions or ()), least.min_count)
    if combinations > MOST_COMBINATIONS:
        raise FilterError(
            f"min_should: expected at most {MOST_COMBINATIONS} ways to choose min_count of the conditions, got "
            f"{combinations}; use fewer conditions"
        )


def conditions_of(filter: "Filter") -> Iterator[Any]:
    """Yield the conditions of all clauses of a filter, without those of filters inside it."""
    for clause in (filter.must, filter.should, filter.must_not, filter.min_should and filter.min_should.conditions):
        if clause is not None:
            yield from clause if isinstance(clause, list) else [clause]


def nested_filters(filter: "Filter") -> Iterator[tuple[int, "Filter"]]:
    """Yield a filter and those inside it, each with its depth; without recursion, which deep ones would end."""
    waiting = [(1, filter)]
    while waiting:
        level, inner = waiting.pop()
        yield level, inner
        for condition in conditions_of(inner):
            nested = getattr(getattr(condition, "nested", None), "filter", None)
            if hasattr(condition, "must_not"):
                waiting.append((level + 1, condition))
            elif nested is not None:
                waiting.append((level + 1, nested))


def _combinations(conditions: int, least: int) -> int:
    if least < 1:
        raise FilterError(f"min_should: expected a min_count of at least 1, got {least}; every point would match")
    return math.comb(conditions, least)


def _check_condition(condition: Any) -> None:
    """Refuse a condition on a field that is not exactly one test, or that JSON or an index would change."""
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
    if name in ("range", "values_count"):
        bounds = {bound: getattr(tests[name], bound, None) for bound in ("lt", "lte", "gt", "gte")}
        _check_bounds(
            f"the {name} of {condition.key!r}", {b: value for b, value in bounds.items() if value is not None}
        )
        if name == "values_count" and not ((bounds["gte"] or 0) >= 1 or bounds["gt"] is not None):
            raise FilterError(
                f"the values_count of {condition.key!r}: expected a lower bound above 0, since stores differ in "
                "whether a missing field has 0 values; ask for those by is_empty"
            )
    for number in _numbers(tests[name]):
        if not math.isfinite(number):
            raise FilterError(f"the condition on {condition.key!r}: expected finite numbers, got {number}")


def _check_bounds(what: str, bounds: Mapping[str, Any]) -> None:
    """Refuse no bound, or two of one side: an index obeys one of them."""
    if not bounds or {"lt", "lte"} <= bounds.keys() or {"gt", "gte"} <= bounds.keys():
        raise FilterError(
            f"{what}: expected one lower bound, one upper bound or both, got {', '.join(bounds) or 'none'}; a store "
            "may ignore one of two"
        )


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
