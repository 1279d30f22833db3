"""Filters from JSON."""

import pytest
from qdrant_client import models

from connector.errors import FilterError
from connector.stores.filters import parse_filter
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


def test_an_empty_filter_is_none() -> None:
    assert parse_filter("{}") == models.Filter()
