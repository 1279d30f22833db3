"""Filters: read from JSON, and checked before a store sees them.

Stores differ in what they make of conditions that hold several tests or none, of bounds that exclude each other, of
places that are nowhere and of numbers that JSON does not have: points match that should not. What is ambiguous is
refused on every store. What remains is rewritten by `connector.stores.filter_lowering`.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from connector.errors import FilterError
from connector.stores.filter_conditions import check_condition

if TYPE_CHECKING:
    from qdrant_client.models import Filter

LARGEST = 2**1023  # beyond, an integer is no float
# Stores compare microseconds: what is finer would be cut off.
_TIME = re.compile(r"\d{4}-\d\d-\d\d[^.]*(\.\d{1,6}(?!\d).*)?")
# Deeper filters end the parser of a server.
MOST_LEVELS = 64
# The engine lists every way to fulfil `min_should` to estimate how many points match: 20 conditions of which 10 must
# hold take seconds, 26 of which 13 must hold take all memory.
MOST_COMBINATIONS = 10_000


def parse_filter(text: str, *, what: str = "filter") -> "Filter":
    """Read a filter in Qdrant's own JSON; `what` names it in errors.

    Raises:
        FilterError: it is no JSON or no filter, it holds a bound that would be changed, or `check_filter` refuses it.
    """
    from pydantic import ValidationError
    from qdrant_client.models import Filter  # takes a second to import

    example = '{"must": [{"key": "language", "match": {"value": "en"}}]}'
    try:
        _check_ranges(json.loads(text, object_pairs_hook=_once))
        # Strictly: 5 is no time, and 1 is not true.
        parsed = Filter.model_validate_json(text, strict=True)
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


def _check_ranges(value: Any) -> None:
    """Refuse bounds of ranges, as JSON decodes them, that would be read as something else.

    An integer would be rounded, as stores compare with floats, and the text of a number would be taken for a time.
    """
    if isinstance(value, list):
        for inner in value:
            _check_ranges(inner)
    elif isinstance(value, dict):
        bounds = value.get("range")
        for bound in bounds.values() if isinstance(bounds, dict) else ():
            if isinstance(bound, int) and (abs(bound) > LARGEST or int(float(bound)) != bound):
                raise FilterError(f"range: {bound} cannot be compared exactly; write a number that a float64 holds")
            if isinstance(bound, str) and not _TIME.fullmatch(bound):
                raise FilterError(
                    "range: expected a number or a time such as 2024-06-01T12:30:00Z, to the microsecond at most, got "
                    f"{bound!r}"
                )
        for inner in value.values():
            _check_ranges(inner)


def check_filter(filter: "Filter") -> None:
    """Return if every store understands `filter` alike, or once it is rewritten.

    Raises:
        FilterError: `filter`, a clause or a filter in it has no condition; `check_condition` refuses a condition;
            `min_should` has more than `MOST_COMBINATIONS` ways to be fulfilled, or wants none of its conditions; or
            filters are nested deeper than `MOST_LEVELS`.
    """
    combinations = 0
    for level, in_element, inner in nested_filters(filter):
        if level > MOST_LEVELS:
            raise FilterError(f"filters are nested deeper than {MOST_LEVELS} levels; combine them in fewer")
        _check_clauses(inner)
        for condition in conditions_of(inner):
            check_condition(condition, in_element=in_element)
        if least := inner.min_should:
            combinations += _combinations(len(least.conditions or ()), least.min_count)
    if combinations > MOST_COMBINATIONS:
        raise FilterError(
            f"min_should: expected at most {MOST_COMBINATIONS} ways to choose min_count of the conditions, got "
            f"{combinations}; use fewer conditions"
        )


def _check_clauses(filter: "Filter") -> None:
    """Refuse a filter or a clause without conditions: it matches all points on one store and none on another."""
    clauses = {name: getattr(filter, name) for name in ("must", "should", "must_not", "min_should")}
    given = {name: clause for name, clause in clauses.items() if clause is not None}
    if not given:
        raise FilterError("a filter without a condition matches every point; give it a condition, or leave it out")
    for name, clause in given.items():
        if (clause.conditions if name == "min_should" else clause) == []:
            raise FilterError(f"{name} holds no condition; give it one, or leave it out")


def conditions_of(filter: "Filter") -> Iterator[Any]:
    """Yield the conditions of all clauses of a filter, without those of filters inside it."""
    for clause in (filter.must, filter.should, filter.must_not, filter.min_should and filter.min_should.conditions):
        if clause is not None:
            yield from clause if isinstance(clause, list) else [clause]


def nested_filters(filter: "Filter") -> Iterator[tuple[int, bool, "Filter"]]:
    """Yield a filter and those inside it, each with its depth and whether it is on the elements of a list.

    Without recursion, which deep filters would end.
    """
    waiting = [(1, False, filter)]
    while waiting:
        level, in_element, inner = waiting.pop()
        yield level, in_element, inner
        for condition in conditions_of(inner):
            nested = getattr(getattr(condition, "nested", None), "filter", None)
            if hasattr(condition, "must_not"):
                waiting.append((level + 1, in_element, condition))
            elif nested is not None:
                waiting.append((level + 1, True, nested))


def condition_names(filter: "Filter") -> set[str]:
    """Return the names of the classes of all conditions and matches in a filter."""
    conditions = [condition for _, _, inner in nested_filters(filter) for condition in conditions_of(inner)]
    tests = [*conditions, *(match for c in conditions if (match := getattr(c, "match", None)) is not None)]
    return {type(test).__name__ for test in tests}


def _combinations(conditions: int, least: int) -> int:
    if least < 1:
        raise FilterError(f"min_should: expected a min_count of at least 1, got {least}; every point would match")
    if least > conditions:
        raise FilterError(f"min_should: expected a min_count of at most {conditions}, got {least}; no point matches")
    return math.comb(conditions, least)
