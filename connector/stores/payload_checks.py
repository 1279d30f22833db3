"""Payloads that Qdrant cannot store, or would silently change."""

import math
from collections.abc import Mapping
from typing import Any

from connector.errors import Refusal
from connector.rejects import Reason

# The engine's integers have 64 bits and a sign. JSON has no NaN and no infinity: a client writes null instead.
SMALLEST, LARGEST = -(1 << 63), (1 << 63) - 1


def payload_fault(payload: Mapping[str, Any]) -> Refusal | None:
    """Return why `payload`, as JSON decodes it, cannot be stored as it is; None if it can.

    >>> payload_fault({"a": [1, {"b": 2.5}]}) is None
    True
    >>> payload_fault({"a": [1, {"b": float("inf")}]})
    Refusal(reason=<Reason.PAYLOAD_NOT_FINITE: 'payload-not-finite'>, detail='a[1].b is inf')
    """
    return _fault("", payload)


def _fault(place: str, value: Any) -> Refusal | None:
    # Most values are short texts: what is cheap to know comes first.
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


def _is_unicode(text: str) -> bool:
    """Half a surrogate pair is what JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
