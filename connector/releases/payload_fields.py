"""Payload fields that are asked for and that no item has: mostly misspelt, or written otherwise than a path."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from connector.stores.contract import Store
from connector.stores.payload_paths import field_values, print_path

SAMPLE = 256  # points whose fields are offered instead
SHOWN = 8  # fields that a sentence lists at most


def missing_fields(store: Store, name: str, fields: Iterable[str]) -> Iterator[str]:
    """Yield those of the fields, given as paths, in which no point of a collection has a value."""
    from qdrant_client.models import Filter, IsEmptyCondition, PayloadField  # takes a second to import

    for field in fields:
        has_value = Filter(must_not=[IsEmptyCondition(is_empty=PayloadField(key=field))])
        if not next(store.scroll(name, filter=has_value, page=1), []):
            yield field


def missing_in_words(store: Store, name: str, fields: Iterable[str]) -> list[str]:
    """Say which fields no point of a collection has, each with names near to it; nothing of an empty collection."""
    if not (missing := list(missing_fields(store, name, sorted(fields)))):
        return []
    page = next(store.scroll(name, page=SAMPLE), [])
    known = sorted({print_path(path) for record in page for path, _ in field_values(record.payload)})
    return [f"no item of {name} has payload field {field}; {_near(field, known)}" for field in missing] if page else []


def _near(field: str, known: list[str]) -> str:
    by_folded = {name.casefold(): name for name in known}
    if near := get_close_matches(field.casefold(), by_folded, n=3, cutoff=0.6):
        return f"near to it: {', '.join(by_folded[name] for name in near)}"
    return f"fields are {', '.join(known[:SHOWN])}{', ...' if len(known) > SHOWN else ''}"
