"""Filters that Qdrant Edge refuses: what the engine does not have, or would take for something else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from qdrant_client import models

from connector.errors import FilterError, StoreError
from connector.stores.edge import EdgeStore
from connector.stores.payload_kinds import WORDS
from tests.support.errors import raises
from tests.support.filter_contract import FILTERS, POINT, field, must
from tests.support.store_contract import config


def test_edge_refuses_by_name_what_it_does_not_have(tmp_path: Path) -> None:
    """Conditions that a newer client brings must never be dropped silently."""
    known = {type(c).__name__ for f, _ in FILTERS.values() for c in _conditions(f)} | {"Filter"}
    matches = {type(c.match).__name__ for f, _ in FILTERS.values() for c in _conditions(f) if _has_match(c)}
    with EdgeStore(tmp_path / "edge") as store:
        store.create("c", config())
        for condition in get_args(models.Condition):
            if condition.__name__ not in known:
                asked = models.Filter.model_construct(must=[condition.model_construct()], min_should=None)
                with raises(FilterError, condition.__name__):
                    store.count("c", filter=asked)
        for match in get_args(models.Match):
            if match.__name__ not in matches | WORDS | {"MatchPrefix", "MatchSubstring"}:
                asked = must(models.FieldCondition.model_construct(key="a", match=match.model_construct()))
                with raises(FilterError, match.__name__):
                    store.count("c", filter=asked)


def test_a_filter_that_the_engine_refuses(tmp_path: Path) -> None:
    impossible = field("at", geo_radius=models.GeoRadius(center=POINT(lon=13, lat=99), radius=1))
    with EdgeStore(tmp_path / "edge") as store:
        store.create("c", config())
        with pytest.raises((FilterError, StoreError), match="99"):
            store.count("c", filter=must(impossible))


def _conditions(filter: models.Filter) -> Iterator[Any]:
    for clause in (filter.must, filter.should, filter.must_not):
        for condition in clause if isinstance(clause, list) else [clause] if clause else []:
            yield condition
            if isinstance(condition, models.Filter):
                yield from _conditions(condition)


def _has_match(condition: Any) -> bool:
    return isinstance(condition, models.FieldCondition) and condition.match is not None
