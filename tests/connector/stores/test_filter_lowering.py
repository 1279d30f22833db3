"""Filters rewritten for all engines; that they mean the same is the contract for filters, in tests/support."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import models

from connector.stores.filter_lowering import lowered, with_short_lists
from connector.stores.filters import check_filter
from tests.support import random_filters
from tests.support.filter_reference import matches
from tests.support.store_contract import ids

N = 20


@pytest.mark.slow
@settings(max_examples=50)
@given(random_filters.filters(N))
def test_a_rewritten_filter_means_the_same(filter: models.Filter) -> None:
    once = lowered(filter)
    check_filter(once)
    for id_, payload in zip(ids(N), random_filters.payloads(N), strict=True):
        assert matches(once, payload, id_=id_, vectors=["v"]) == matches(filter, payload, id_=id_, vectors=["v"])


@settings(max_examples=50)
@given(random_filters.filters(N), st.integers(1, 3))
def test_a_filter_with_short_lists_means_the_same(filter: models.Filter, most: int) -> None:
    short = with_short_lists(lowered(filter), most)
    assert short is not None
    for id_, payload in zip(ids(N), random_filters.payloads(N), strict=True):
        assert matches(short, payload, id_=id_, vectors=["v"]) == matches(filter, payload, id_=id_, vectors=["v"])


def test_lists_are_cut_wherever_they_stand() -> None:
    any_of = models.FieldCondition(key="a", match=models.MatchAny(any=["x", "y", "z"]))
    of_ids = models.HasIdCondition(has_id=[1, 2, 3])
    nested = models.NestedCondition(nested=models.Nested(key="b", filter=models.Filter(must=[any_of])))
    long = models.Filter(must=[any_of, nested], must_not=[models.Filter(should=[of_ids])])
    values = models.Filter(
        should=[models.FieldCondition(key="a", match=models.MatchAny(any=part)) for part in (["x", "y"], ["z"])]
    )
    numbers = models.Filter(should=[models.HasIdCondition(has_id=[1, 2]), models.HasIdCondition(has_id=[3])])
    assert with_short_lists(long, 2) == models.Filter(
        must=[values, models.NestedCondition(nested=models.Nested(key="b", filter=models.Filter(must=[values])))],
        must_not=[models.Filter(should=[numbers])],
    )
    assert with_short_lists(long, 3) == with_short_lists(long, None) == long
    assert with_short_lists(None, 2) is None


def test_what_an_index_answers_rightly_stays_as_it_is() -> None:
    """So that the engine asks its index."""
    box = models.GeoBoundingBox(top_left=models.GeoPoint(lon=1, lat=2), bottom_right=models.GeoPoint(lon=3, lat=1))
    plain = models.Filter(
        must=[
            models.FieldCondition(key="a", match=models.MatchValue(value=1)),
            models.IsEmptyCondition(is_empty=models.PayloadField(key="a")),
            models.FieldCondition(key="b", geo_bounding_box=box),
        ]
    )
    assert lowered(plain) == plain


RED, CHEAP = (models.FieldCondition(key=key, match=models.MatchValue(value=1)) for key in ("red", "cheap"))


@pytest.mark.parametrize(
    "several",
    [
        models.Filter(must=[RED], must_not=[RED]),
        models.Filter(should=[RED, CHEAP], must_not=[CHEAP]),
        models.Filter(must=[RED], should=[CHEAP]),
        models.Filter(min_should=models.MinShould(conditions=[RED, RED, CHEAP], min_count=2)),
    ],
)
def test_a_filter_of_several_clauses_is_one_condition(several: models.Filter) -> None:
    """So that no clause is taken for the whole filter."""
    assert lowered(several) == models.Filter(must=[several])
    assert lowered(models.Filter(must=[several])) == models.Filter(must=[several])


@pytest.mark.parametrize("clause", ["must", "should", "must_not"])
def test_a_filter_of_one_clause_stays_as_it_is(clause: str) -> None:
    plain = models.Filter.model_validate({clause: [RED, CHEAP]})
    assert lowered(plain) == plain
