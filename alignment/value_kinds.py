"""What kind of value something is, in words: people who write JSON, CSV or options know no types of Python."""

from typing import Any

_KINDS = {
    type(None): "nothing",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    bytes: "bytes",
    list: "a list",
    dict: "an object",
}


def kind_of(value: Any) -> str:
    """Say what kind of value this is.

    >>> kind_of(None), kind_of({"a": 1}), kind_of(True)
    ('nothing', 'an object', 'true or false')
    """
    return kind_named(type(value))


def kind_named(kind: type) -> str:
    """Say what values of a type are."""
    return _KINDS.get(kind, kind.__name__)
