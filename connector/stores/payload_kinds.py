"""Kinds of payload values: what an index of a kind takes, and what a filter may ask of it.

Qdrant's index of a kind passes over values of another kind without a word, and no filter finds them. So values are
checked before they are stored, along the path that the index reads. Texts are read as the kind, because a CSV file
holds nothing but texts.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, time
from typing import TYPE_CHECKING, Any, cast

from connector.errors import FilterError, Refusal
from connector.rejects import Reason
from connector.stores.layout import PayloadKind, value_kind
from connector.stores.payload_checks import LARGEST, SMALLEST
from connector.stores.payload_paths import Path, canonical_path, parse_path, print_path

if TYPE_CHECKING:
    from qdrant_client.models import Filter

LONGEST_SHOWN = 80  # characters of a value in an error

_WHOLE = re.compile(r"\s*([+-]?[0-9]+)(?:\.0*)?\s*")
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
_COMMA = re.compile(r"'\s*[+-]?\d+,\d+\s*'")
_DATETIME = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)"
    r"(?:[T ](?P<minute>\d\d:\d\d)(?::(?P<second>\d\d)(?:\.\d+)?(?:Z|[+-](?P<offset>\d\d(?::?\d\d)?))?)?)?",
    re.ASCII,
)
_HYPHENATED = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UUID = re.compile(rf"(urn:uuid:)?{_HYPHENATED}|\{{{_HYPHENATED}\}}|[0-9a-f]{{32}}", re.ASCII | re.IGNORECASE)


class _WrongKindError(ValueError):
    """A value of another kind than the index of its field; the text says where it is and what it is."""


def read_kinds(payload: dict[str, Any], indexes: Mapping[str, PayloadKind], *, stored: bool = False) -> list[Refusal]:
    """Read the values of indexed fields as their kinds, in place; return why values are not of their kinds.

    A field of the payload that holds such a value is left out of it.

    Args:
        payload: as JSON decodes it.
        indexes: kinds by path.
        stored: the payload comes from a store, where nothing reads a text as anything else.

    >>> payload = {"meta": {"year": "1999"}, "sold": "true"}
    >>> read_kinds(payload, {"meta.year": "integer", "sold": "bool"}), payload
    ([], {'meta': {'year': 1999}, 'sold': True})
    >>> payload = {"year": [1999, 4.5], "title": "a"}
    >>> (refusal,) = read_kinds(payload, {"year": "integer"})
    >>> print(refusal.reason, "|", refusal.detail, "|", payload)
    payload-not-integer | year is indexed as integer, got 4.5 | {'title': 'a'}
    """
    refusals = []
    for field, kind in indexes.items():
        path = parse_path(field)
        if path[0] not in payload:
            continue
        try:
            _read(payload, path, _as_stored(_READ[kind]) if stored and kind not in _TEXTS else _READ[kind])
        except _WrongKindError as error:
            reason = Reason(f"payload-not-{value_kind(kind)}")
            hint = (
                "; numbers have a decimal point" if _COMMA.search(str(error)) and kind in ("integer", "float") else ""
            )
            refusals.append(Refusal(reason, f"{field} is indexed as {kind}, got {error}{hint}"))
            payload.pop(str(path[0]), None)
    return refusals


def _read(value: Any, path: Path, read: Callable[[Any], Any]) -> Any:
    """Return `value` with everything at `path` in it read. What is null or not there stays so."""
    if value is None:
        return None
    if not path:
        if isinstance(value, list):
            return [None if element is None else _read_one(element, read) for element in value]
        return _read_one(value, read)
    step, rest = path[0], path[1:]
    if isinstance(step, str):
        if isinstance(value, list):
            raise _WrongKindError(f"a list where {step} is expected to be a field; index it with [] before .{step}")
        if isinstance(value, dict) and step in value:
            value[step] = _read(value[step], rest, read)
        return value
    if not isinstance(value, list):
        raise _WrongKindError(f"{_shown(value)} where the path has {print_path((step,))}, expected a list")
    for position in range(len(value)) if step is None else range(len(value))[step : step + 1]:
        value[position] = _read(value[position], rest, read)
    return value


def _read_one(value: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(value)
    except ValueError:
        raise _WrongKindError(_shown(value)) from None


def _as_stored(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read_stored(value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError
        return read(value)

    return read_stored


def _shown(value: Any) -> str:
    text = f"the text {value!r}" if isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _integer(value: Any) -> int:
    if isinstance(value, str) and (match := _WHOLE.fullmatch(value)) and len(match[1]) < 32:
        value = int(match[1])
    elif isinstance(value, float) and value.is_integer():  # how pandas writes the integers of a column with gaps
        value = int(value)
    if type(value) is not int or not SMALLEST <= value <= LARGEST:
        raise ValueError
    return value


def _float(value: Any) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError
    return cast(float, value)


def _bool(value: Any) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower())
    if not isinstance(value, bool):
        raise ValueError
    return value


def _datetime(value: Any) -> str:
    match = _DATETIME.fullmatch(_text(value))
    if match is None:
        raise ValueError
    date.fromisoformat(match["day"])
    for part in (match["minute"], f"00:00:{match['second'] or '00'}", match["offset"]):
        if part:
            time.fromisoformat(part)
    return match[0]


def _uuid(value: Any) -> str:
    if not _UUID.fullmatch(_text(value)):
        raise ValueError
    return cast(str, value)


def _geo(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    for name, most in (("lon", 180), ("lat", 90)):
        if type(value.get(name)) not in (int, float) or not -most <= value[name] <= most:
            raise ValueError
    return value


_READ: Mapping[PayloadKind, Callable[[Any], Any]] = {
    "keyword": _text,
    "tenant": _text,
    "integer": _integer,
    "float": _float,
    "bool": _bool,
    "datetime": _datetime,
    "uuid": _uuid,
    "geo": _geo,
    "text": _text,
}

# Matches, by their classes in qdrant_client, that ask for words of a text.
WORDS = frozenset(("MatchText", "MatchTextAny", "MatchPhrase"))
# The kinds of index that can answer a test; any other finds nothing, or reads the bounds as something else.
_TEXTS = frozenset(("keyword", "tenant", "uuid", "text", "datetime"))
_ANSWERED_BY: Mapping[str, frozenset[str]] = {
    "a text": _TEXTS,
    "a text that is no UUID": _TEXTS - {"uuid"},
    "words of a text": frozenset(("text",)),
    "the start or a part of a text": frozenset(("keyword", "tenant", "text")),
    "a whole number": frozenset(("integer",)),
    "true or false": frozenset(("bool",)),
    "a range of numbers": frozenset(("integer", "float")),
    "a range beyond 64 bits": frozenset(("float",)),  # an index of integers takes its bounds for its own largest ones
    "a range of times": _TEXTS,
    "a place": frozenset(("geo",)),
}
# The tests that find a value of a type in a field without an index.
_FOUND_BY: Mapping[type, Sequence[str]] = {
    bool: ("true or false",),
    int: ("a whole number", "a range of numbers", "a range beyond 64 bits"),
    float: ("a range of numbers", "a range beyond 64 bits"),
    str: ("a text", "a text that is no UUID", "words of a text", "the start or a part of a text", "a range of times"),
}
_HINTS = {
    ("float", "a whole number"): '; ask for a range such as {"gte": 4, "lte": 4}',
    ("keyword", "words of a text"): "; an index of kind text answers it",
    ("tenant", "words of a text"): "; an index of kind text answers it",
}


def check_kinds(condition: "Filter", indexes: Mapping[str, str], *, what: str = "filter") -> None:
    """Refuse a filter that compares an indexed field with what its kind never holds; `what` names it in errors.

    Raises:
        FilterError: it would find nothing, or something else than it asks for; or a path is invalid.
    """
    kinds = {canonical_path(field): kind for field, kind in indexes.items()}
    try:
        tests = tests_of(condition)
    except ValueError as error:
        raise FilterError(f"{what}: {error}") from None
    for field, test in tests:
        kind = kinds.get(field)
        if kind is None and test == "words of a text":
            raise FilterError(
                f"{what}: field {field} has no index of kind text as modalign makes it, and without one stores make "
                f"different words of a text; push with --payload-index '{field}=text', or match whole values"
            )
        if kind is not None and kind not in _ANSWERED_BY[test]:
            raise FilterError(
                f"{what}: field {field} is indexed as {kind}, and the filter compares it with {test}, which such an "
                f"index does not find{_HINTS.get((kind, test), '')}"
            )


def tests_of(condition: "Filter") -> list[tuple[str, str]]:
    """Return the fields that a filter compares, each with what it is compared with, in words.

    >>> from connector.stores.filters import parse_filter
    >>> tests_of(parse_filter('{"must": [{"key": "year", "range": {"gte": 1990}}]}'))
    [('year', 'a range of numbers')]
    """
    return [(field, test) for field, inner in _conditions(_json(condition)) for test in _compared_with(inner)]


def finds(test: str, value: Any) -> bool:
    """Whether a test can find a value of this type in a field without an index, or ever does.

    >>> finds("a range of numbers", 1999), finds("a range of numbers", "1999")
    (True, False)
    """
    return test in _FOUND_BY.get(type(value), ())


def kind_for(test: str, texts: Sequence[str]) -> PayloadKind | None:
    """Return the kind of index that reads all these texts as what a test finds; None: there is none."""
    for kind in ("integer", "float", "bool"):
        if kind in _ANSWERED_BY[test] and all(_reads(kind, text) for text in texts):
            return kind
    return None


def _reads(kind: PayloadKind, text: str) -> bool:
    try:
        _READ[kind](text)
    except ValueError:
        return False
    return True


def unanswered(value: Any, kind: PayloadKind) -> list[str]:
    """Return the tests that find a value in a field without an index, and that one of a kind does not answer.

    >>> unanswered(4, "integer"), unanswered(4, "float")
    ([], ['a whole number'])
    """
    usual = {"true or false", "a whole number", "a range of numbers", "a text"}
    tests = [test for test in _FOUND_BY.get(type(value), ()) if test in usual]
    return [test for test in tests if kind not in _ANSWERED_BY[test]]


def fields_of(condition: "Filter") -> set[str]:
    """Return the payload fields that a filter reads, as Qdrant prints their paths.

    >>> from connector.stores.filters import parse_filter
    >>> nested = '{"nested": {"key": "sizes", "filter": {"must": [{"key": "unit", "match": {"value": "cm"}}]}}}'
    >>> sorted(fields_of(parse_filter('{"must": [{"key": "kind", "is_null": true}], "should": [' + nested + "]}")))
    ['kind', 'sizes[].unit']
    """
    return {field for field, _ in _conditions(_json(condition))}


def _json(condition: "Filter") -> dict[str, Any]:
    return condition.model_dump(exclude_none=True)


def _conditions(condition: Any, within: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the conditions on fields within a filter, given as JSON, each with the path of its field."""
    if isinstance(condition, list):
        for inner in condition:
            yield from _conditions(inner, within)
    elif isinstance(condition, Mapping):
        if nested := condition.get("nested"):
            yield from _conditions(nested["filter"], f"{within}{nested['key'].removesuffix('[]')}[].")
        elif isinstance(condition.get("key"), str):
            yield canonical_path(within + condition["key"]), condition
        else:
            for inner in condition.values():
                yield from _conditions(inner, within)


def _compared_with(condition: Mapping[str, Any]) -> Iterator[str]:
    match = condition.get("match") or {}
    compared = [match.get("value"), *(match.get("any") or ()), *(match.get("except_") or match.get("except") or ())]
    for value in compared:
        if isinstance(value, str):
            yield "a text" if _UUID.fullmatch(value) else "a text that is no UUID"
        elif value is not None:
            yield "true or false" if isinstance(value, bool) else "a whole number"
    if match.keys() & {"text", "text_any", "phrase"}:
        yield "words of a text"
    if match.keys() & {"prefix", "substring"}:
        yield "the start or a part of a text"
    if bounds := condition.get("range"):
        numbers = all(isinstance(bound, (int, float)) for bound in bounds.values())
        yield "a range of numbers" if numbers else "a range of times"
        if numbers and not all(SMALLEST <= bound <= LARGEST for bound in bounds.values()):
            yield "a range beyond 64 bits"
    if any(name.startswith("geo_") for name in condition):
        yield "a place"
