"""What a store makes of payloads."""

import json
import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.rejects import Reason
from connector.stores.payload_checks import payload_fault, same_stored
from tests.support.json_values import JSON_VALUES
from tests.support.slow import slow_unless


def drifted(value: Any, units: int) -> Any:
    """Move every float by some units in its last place, at any depth."""
    if isinstance(value, float):
        for _ in range(units):
            moved = math.nextafter(value, math.inf)
            value = moved if math.isfinite(moved) else value
        return value
    if isinstance(value, dict):
        return {name: drifted(inner, units) for name, inner in value.items()}
    return [drifted(inner, units) for inner in value] if isinstance(value, list) else value


@pytest.mark.slow
@given(JSON_VALUES, st.integers(0, 20))
def test_floats_that_drifted_in_a_store_are_the_same_at_any_depth(value: Any, units: int) -> None:
    assert same_stored(value, drifted(json.loads(json.dumps(value)), units))


@given(JSON_VALUES, JSON_VALUES)
def test_what_differs_by_more_is_another_value(value: Any, other: Any) -> None:
    if json.dumps(value, sort_keys=True) == json.dumps(other, sort_keys=True):
        assert same_stored(value, other)
    elif same_stored(value, other):
        assert _rounded(value) == _rounded(other)


def _rounded(value: Any) -> Any:
    """Round floats far more coarsely than a store does; tell booleans from numbers."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float):
        return 0.0 if abs(value) < 1e-290 else float(f"{value:.9g}")
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


def test_a_change_that_people_make_is_seen() -> None:
    for value, other in (
        (19.99, 20.0),
        (0.1, 0.1000000001),
        (1.0, -1.0),
        (0.0, 1e-300),
        (sys.float_info.max, sys.float_info.max / (1 + 1e-9)),
        (True, 1),
        (False, 0.0),
        ("1", 1),
        (None, 0),
        (2**60, 2**60 + 1),
        ([1.5], [1.5, 1.5]),
        ({"a": 1.5}, {"a": 1.5, "b": None}),
        ({"a": [{"b": 0.1}]}, {"a": [{"b": 0.2}]}),
    ):
        assert not same_stored(value, other)
        assert not same_stored(other, value)
        assert not same_stored({"x": [value]}, {"x": [other]})


@pytest.mark.slow
@given(st.dictionaries(st.text(), JSON_VALUES, max_size=4))
def test_what_json_can_write_and_the_engine_keeps_is_no_fault(payload: dict[str, Any]) -> None:
    assert payload_fault(payload) is None


@pytest.mark.parametrize(
    ("value", "reason"),
    slow_unless(
        lambda case: case[0] in ({"\ud800": 1}, 2**63, math.inf),
        [
            ("\ud800", Reason.PAYLOAD_NOT_UNICODE),
            ({"\ud800": 1}, Reason.PAYLOAD_NOT_UNICODE),
            (2**63, Reason.PAYLOAD_INTEGER_TOO_LARGE),
            (-(2**63) - 1, Reason.PAYLOAD_INTEGER_TOO_LARGE),
            (math.inf, Reason.PAYLOAD_NOT_FINITE),
            (math.nan, Reason.PAYLOAD_NOT_FINITE),
        ],
    ),
)
@given(st.lists(JSON_VALUES, max_size=3), st.integers(0, 3))
def test_a_fault_is_found_at_any_depth(value: Any, reason: Reason, beside: list[Any], depth: int) -> None:
    for _ in range(depth):
        value = [*beside, {"in": value}]
    fault = payload_fault({"title": "a", "field": value})
    assert fault is not None
    assert fault.reason is reason
