"""Payloads that Qdrant cannot store, or would silently change, and what it makes of floats."""

import math
import sys
from collections.abc import Mapping
from typing import Any

from connector.errors import Refusal
from connector.rejects import Reason

# The engine's integers have 64 bits and a sign. JSON has no NaN and no infinity: a client writes null instead.
SMALLEST, LARGEST = -(1 << 63), (1 << 63) - 1
# The engine reads JSON floats to within one unit in the last place, at each write and each time it rebuilds a segment:
# a tenth of all floats of 17 digits change, and some drift by a unit with each rebuild. This allows for thousands.
FLOAT_TOLERANCE = 1e-12


def payload_fault(payload: Mapping[str, Any]) -> Refusal | None:
    """Return why `payload`, as JSON decodes it, cannot be stored as it is; None if it can.

    >>> payload_fault({"a": [1, {"b": 2.5}]}) is None
    True
    >>> payload_fault({"a": [1, {"b": float("inf")}]})
    Refusal(reason=<Reason.PAYLOAD_NOT_FINITE: 'payload-not-finite'>, detail='a[1].b is inf')
    """
    return None if _is_sound(payload) else _fault("", payload)


def _is_sound(value: Any) -> bool:
    """Return whether `_fault` finds nothing in a value: in a third of its time, because most values are sound."""
    kind = type(value)
    if kind is str:
        return bool(value.isascii()) or _is_unicode(value)
    if kind is bool or value is None:
        return True
    if kind is int:
        return bool(SMALLEST <= value <= LARGEST)
    if kind is float:
        return math.isfinite(value)
    if kind is dict:
        return all(map(_is_sound, value)) and all(map(_is_sound, value.values()))
    return kind is list and all(map(_is_sound, value))


def _fault(place: str, value: Any) -> Refusal | None:
    if isinstance(value, str):
        sound = value.isascii() or _is_unicode(value)
        return None if sound else Refusal(Reason.PAYLOAD_NOT_UNICODE, f"{place} is no Unicode: {value!a}")
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        sound = SMALLEST <= value <= LARGEST
        return None if sound else Refusal(Reason.PAYLOAD_INTEGER_TOO_LARGE, f"{place} needs more than 64 bits")
    if isinstance(value, float):
        return None if math.isfinite(value) else Refusal(Reason.PAYLOAD_NOT_FINITE, f"{place} is {value}")
    if isinstance(value, Mapping):
        inside = [(f"{place}.{key}" if place else str(key), each) for key, each in value.items()]
        if name := next((key for key in value if not key.isascii() and not _is_unicode(key)), None):
            return Refusal(Reason.PAYLOAD_NOT_UNICODE, f"a field is no Unicode: {name!a}")
    else:
        inside = [(f"{place}[{i}]", each) for i, each in enumerate(value)]
    return next((fault for where, each in inside if (fault := _fault(where, each))), None)


def same_stored(expected: Any, stored: Any) -> bool:
    """Say whether a store that was given the JSON value `expected` may return `stored` for it.

    Floats are compared as stores keep them, at any depth: relative to `FLOAT_TOLERANCE`. All else must be equal, and
    true is not 1.

    >>> same_stored({"a": [0.6046602879796196]}, {"a": [0.6046602879796197]})
    True
    >>> same_stored({"a": True}, {"a": 1})
    False
    """
    if isinstance(expected, dict):
        # Most values are texts: these are compared without a call for each.
        return (
            isinstance(stored, dict)
            and expected.keys() == stored.keys()
            and all(
                value == stored[name] if type(value) is str else same_stored(value, stored[name])
                for name, value in expected.items()
            )
        )
    if isinstance(expected, list | tuple):
        return (
            isinstance(stored, list | tuple)
            and len(expected) == len(stored)
            and all(map(same_stored, expected, stored))
        )
    if isinstance(expected, bool) or isinstance(stored, bool):
        return expected is stored
    if isinstance(expected, float) and isinstance(stored, float):
        return math.isclose(expected, stored, rel_tol=FLOAT_TOLERANCE, abs_tol=sys.float_info.min)
    return bool(expected == stored)


def _is_unicode(text: str) -> bool:
    """Half a surrogate pair is what JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
