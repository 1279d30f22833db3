"""Payload fields of filters that find nothing: fields that no item has, and values of another type."""

from collections.abc import Collection, Iterable, Iterator
from copy import deepcopy
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, Any

from connector.errors import Refusal
from connector.stores.contract import Store
from connector.stores.layout import PayloadKind
from connector.stores.payload_kinds import finds, kind_for, read_kinds, tests_of
from connector.stores.payload_paths import field_values, print_path

if TYPE_CHECKING:
    from qdrant_client.models import Filter

SAMPLE = 256  # points whose fields are offered instead
LONGEST_SHOWN = 40  # characters of a value
SHOWN = 8  # fields that a sentence lists at most


def missing_fields(store: Store, name: str, fields: Iterable[str]) -> Iterator[str]:
    """Yield those of the fields, given as paths, in which no point of a collection has a value."""
    for field in fields:
        if not next(store.scroll(name, filter=_has_value(field), page=1), []):
            yield field


def missing_in_words(store: Store, name: str, fields: Iterable[str]) -> list[str]:
    """Say which fields no point of a collection has, each with names near to it; nothing of an empty collection."""
    if not (missing := list(missing_fields(store, name, sorted(fields)))):
        return []
    page = next(store.scroll(name, page=SAMPLE), [])
    known = sorted({print_path(path) for record in page for path, _ in field_values(record.payload)})
    return [f"no item of {name} has payload field {field}; {_near(field, known)}" for field in missing] if page else []


def unlike_in_words(
    store: Store, name: str, condition: "Filter", fields: Collection[str], *, whole: bool = False
) -> list[str]:
    """Say which of these fields a filter compares with what none of their values is, as a number with a CSV's texts.

    Fields that no point has are left to `missing_in_words`.

    Args:
        store: where the collection is.
        name: of the collection.
        condition: the filter.
        fields: of it, those to look at.
        whole: look at all values instead of a sample, where the sample has none that can match.
    """
    sentences = []
    for field, test in dict.fromkeys(tests_of(condition)):
        if field not in fields:
            continue
        values: list[Any] = []
        for page in islice(_values(store, name, field), None if whole else 1):
            values = values or page
            if any(finds(test, value) for value in page):
                break
        else:
            sentences += [_unlike(name, field, test, values)] if values else []
    return sentences


def unreadable_in_words(store: Store, name: str, field: str, kind: PayloadKind) -> str:
    """Say of a field that a collection has no value in it that a kind can be read from; empty: it has, or no value."""
    refusals: list[Refusal] = []
    for page in store.scroll(name, filter=_has_value(field), page=SAMPLE):
        for record in page:
            if not (refusals := read_kinds(deepcopy(dict(record.payload)), {field: kind})):
                return ""
    return f"no item of {name} has such a value in it: {refusals[0].detail}" if refusals else ""


def _values(store: Store, name: str, field: str) -> Iterator[list[Any]]:
    """Yield the values of a field, without null, a page of points at a time."""
    own = field.removesuffix("[]")
    for page in store.scroll(name, filter=_has_value(field), page=SAMPLE):
        of_points = ((print_path(path), value) for record in page for path, value in field_values(record.payload))
        yield [value for path, value in of_points if path == own and value is not None]


def _unlike(name: str, field: str, test: str, values: list[Any]) -> str:
    says = f"field {field} of {name} holds {_called(values[0])}, and is compared with {test}, which finds none of them"
    if all(isinstance(value, str) for value in values) and (kind := kind_for(test, values)):
        index = f"--payload-index {field}={kind}"
        says += f"; all values of a CSV are texts: push again with {index}, which reads them"
    return says


def _called(value: Any) -> str:
    shown = repr(value) if len(repr(value)) <= LONGEST_SHOWN else f"{repr(value)[:LONGEST_SHOWN]}..."
    kind = "true or false" if isinstance(value, bool) else "texts" if isinstance(value, str) else "numbers"
    return f"{kind}, such as {shown}"


def _has_value(field: str) -> "Filter":
    from qdrant_client.models import Filter, IsEmptyCondition, PayloadField  # takes a second to import

    return Filter(must_not=[IsEmptyCondition(is_empty=PayloadField(key=field))])


def _near(field: str, known: list[str]) -> str:
    by_folded = {name.casefold(): name for name in known}
    if near := get_close_matches(field.casefold(), by_folded, n=3, cutoff=0.6):
        return f"near to it: {', '.join(by_folded[name] for name in near)}"
    return f"fields are {', '.join(known[:SHOWN])}{', ...' if len(known) > SHOWN else ''}"
