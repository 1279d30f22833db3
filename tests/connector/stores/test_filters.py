"""Filters from JSON."""

import json
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from hypothesis import given, strategies
from qdrant_client import models

from connector.errors import FilterError
from connector.stores.filters import MOST_COMBINATIONS, MOST_LEVELS, check_filter, parse_filter
from tests.support.errors import raises
from tests.support.store_contract import equals


def test_it_reads_qdrants_own_json() -> None:
    text = '{"must": [{"key": "ok", "match": {"value": true}}], "must_not": [{"has_id": [1]}]}'
    read = parse_filter(text)
    assert read == models.Filter(must=[equals("ok", True)], must_not=[models.HasIdCondition(has_id=[1])])
    assert isinstance(read.must, list)
    condition = read.must[0]
    assert isinstance(condition, models.FieldCondition)
    assert isinstance(condition.match, models.MatchValue)
    assert condition.match.value is True


@pytest.mark.parametrize("text", ["", "{", "language=en", '{"must": [}'])
def test_what_is_no_json(text: str) -> None:
    with raises(FilterError, '"key": "language"'):  # an example of one
        parse_filter(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"must": [{"key": "a", "match": {"valeu": 1}}]}', "must"),
        ('{"mus": []}', "mus"),
        ("[1]", "(top)"),
        ("3", "(top)"),
        ('{"should": 5}', "should"),
    ],
)
def test_what_is_no_filter(text: str, place: str) -> None:
    with raises(FilterError, place, '"key": "language"'):
        parse_filter(text)


@pytest.mark.parametrize("depth", [1000, 100_000])
def test_what_is_nested_beyond_all_measure(depth: int) -> None:
    for text in ('{"must": [' * depth + "]}" * depth, "[" * depth + "]" * depth, '{"must": ' * depth):
        with raises(FilterError, '"key": "language"'):
            parse_filter(text)


@pytest.mark.parametrize(
    "text",
    ["{}", '{"must": []}', '{"must": [{}]}', '{"must_not": [{}]}', '{"should": [{"must": [{}]}]}', '{"must": {}}'],
)
def test_what_asks_for_nothing_is_no_filter(text: str) -> None:
    """It would match every point, and `delete --filter` would delete them."""
    with raises(FilterError, "condition"):
        parse_filter(text)


@pytest.mark.parametrize(
    ("test", "value"),
    [
        ('"range": {"gte": "5"}', "'5'"),
        ('"range": {"gte": "2024"}', "'2024'"),
        ('"range": {"gt": "2024-06-01T12:30:15.1234567Z"}', "2024-06-01T12:30:15.1234567Z"),
        ('"range": {"gte": 5, "lt": "2024-01-01"}', "must"),
        ('"is_empty": "true"', "must"),
        ('"is_null": 1', "must"),
        ('"values_count": {"gte": "1"}', "must"),
        ('"match": {"any": ["1", 1]}', "must"),
        ('"range": {"gte": 9007199254740993}', "9007199254740993"),
        ('"range": {"gte": 1' + "0" * 400 + "}", "1" + "0" * 400),
        ('"range": {"gt": 9007199254740992}', "9007199254740992"),
        ('"range": {"lt": 9007199254740992.0}', "9007199254740992"),
        ('"range": {"gte": -1e16}', "-10000000000000000"),
        ('"range": {"gte": 0, "lte": 9223372036854775808}', "9223372036854775808"),
    ],
)
def test_a_value_that_would_be_read_as_another_is_refused(test: str, value: str) -> None:
    with raises(FilterError, value):
        parse_filter(f'{{"must": [{{"key": "a", {test}}}]}}')


@pytest.mark.parametrize("bound", [5, 5.5, 1 - 2**53, 1e19, -1e300, "2024-01-01", "2024-01-01T10:00:00.123456+02:00"])
def test_a_bound_is_read_as_it_is_written(bound: Any) -> None:
    read: Any = parse_filter(json.dumps({"must": [{"key": "a", "range": {"gte": bound}}]})).must
    gte = read[0].range.gte
    assert isinstance(gte, date) if isinstance(bound, str) else gte == bound


@pytest.mark.parametrize(
    "text",
    [
        '{"must": [{"key": "a", "match": {"value": 1}}], "must": []}',
        '{"must": [{"key": "a", "key": "b", "match": {"value": 1}}]}',
        '{"must": [{"key": "a", "match": {"value": 1}, "match": {"value": 2}}]}',
        '{"must": [{"key": "a", "range": {"gte": 1, "gte": 2}}]}',
    ],
)
def test_a_field_that_is_given_twice_would_be_taken_once(text: str) -> None:
    with raises(FilterError, "twice"):
        parse_filter(text)


def test_the_filter_that_is_wrong_is_named() -> None:
    with raises(FilterError, "filter cheap", "'price'", "match, range"):
        parse_filter('{"must": [{"key": "price", "match": {"value": 1}, "range": {"lt": 2}}]}', what="filter cheap")


TESTS: dict[str, Any] = {
    "match": models.MatchAny(any=["a"]),
    "range": models.Range(gte=0.5, lt=3),
    "geo_radius": models.GeoRadius(center=models.GeoPoint(lon=1, lat=2), radius=3),
    "values_count": models.ValuesCount(gt=0),
    "is_empty": False,
    "is_null": True,
}


def nested(inner: models.Filter) -> models.NestedCondition:
    return models.NestedCondition(nested=models.Nested(key="c", filter=inner))


CLAUSES: list[Callable[[Any], models.Filter]] = [
    lambda condition: models.Filter(must=[equals("b", 1), condition]),
    lambda condition: models.Filter(should=condition),
    lambda condition: models.Filter(must_not=[condition]),
    lambda condition: models.Filter(min_should=models.MinShould(conditions=[condition], min_count=1)),
    lambda condition: models.Filter(
        must=[models.NestedCondition(nested=models.Nested(key="c", filter=models.Filter(must=condition)))]
    ),
]


@given(
    names=strategies.lists(strategies.sampled_from(sorted(TESTS)), max_size=4, unique=True),
    path=strategies.lists(strategies.sampled_from(CLAUSES), min_size=1, max_size=5),
)
def test_a_condition_is_one_test_wherever_it_stands(
    names: list[str], path: list[Callable[[Any], models.Filter]]
) -> None:
    condition: Any = models.FieldCondition(key="field", **{name: TESTS[name] for name in names})
    for clause in path:
        condition = clause(condition)
    if len(names) == 1:
        check_filter(condition)
    else:
        with raises(FilterError, "'field'", *names):
            check_filter(condition)


def test_filters_in_filters_have_a_limit() -> None:
    deep = models.Filter(must=[equals("n", 1)])
    for _ in range(MOST_LEVELS - 1):
        deep = models.Filter(must=[deep])
    check_filter(deep)
    with raises(FilterError, MOST_LEVELS):
        check_filter(models.Filter(must=[deep]))


@pytest.mark.parametrize(("conditions", "least"), [(1000, 1), (64, 2), (64, 64), (8, 4)])
def test_min_should_with_few_ways_to_be_fulfilled(conditions: int, least: int) -> None:
    many: list[Any] = [equals("n", number) for number in range(conditions)]
    check_filter(models.Filter(min_should=models.MinShould(conditions=many, min_count=least)))


def test_ways_to_fulfil_several_min_should_add_up() -> None:
    some = models.MinShould(conditions=[equals("n", number) for number in range(14)], min_count=7)
    check_filter(models.Filter(must=[models.Filter(min_should=some)] * 2))
    with raises(FilterError, MOST_COMBINATIONS, 3 * 3432):
        check_filter(models.Filter(must=[models.Filter(min_should=some)] * 3))
