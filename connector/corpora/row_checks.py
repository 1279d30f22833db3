"""Checks of a row before it becomes an item: whether its texts and its payload can be stored."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignment.value_kinds import kind_of
from connector.corpora.items import LONGEST_CAPTION
from connector.rejects import Reason
from connector.safe_text import printable

# Names that modalign writes into every payload.
RESERVED = frozenset(("modality", "content_sha256", "split", "aligned"))
ROLES = frozenset(("key", "group", "image", "caption"))
OWN_NAMES = RESERVED | ROLES


class RowError(ValueError):
    """A row, or a value of one, that cannot be used, with the reason for its reject.

    A reader puts it in the place of a value that cannot be read.
    """

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason


def check_key(fields: dict[str, Any], column: str | None = None) -> str:
    """Remove the key from `fields` and return it; errors name its column."""
    if key := text_field(fields, "key", column):
        return key
    raise RowError(
        Reason.KEY_MISSING, printable(f"expected a value in {column or 'key'!r}, the permanent name of the row")
    )


def text_field(fields: dict[str, Any], name: str, column: str | None = None) -> str | None:
    """Remove a text or a whole number from `fields` and return it as a text; None if it is missing or empty.

    Errors name its column. pandas makes floats of a column of integers in which some are missing: 3.0 is 3, and NaN is
    missing.
    """
    value = fields.pop(name, None)
    if isinstance(value, float) and (value.is_integer() or math.isnan(value)):
        value = None if math.isnan(value) else int(value)
    if isinstance(value, RowError):
        raise value
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    detail = f"expected a text in {column or name!r}, got {kind_of(value)}"
    raise RowError(Reason(f"{name}-not-text"), printable(detail))


def check_texts(*texts: str | None) -> None:
    """Raise a `RowError` if a database cannot store these texts."""
    for text in texts:
        for fault in _unstorable(text):
            raise RowError(Reason.ROW_UNREADABLE, fault)
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            detail = f"expected valid Unicode, got {error.object[error.start]!a} at character {error.start + 1}"
            raise RowError(Reason.ROW_UNREADABLE, detail) from error


def storable(payload: Mapping[str, Any]) -> tuple[dict[str, Any], list[RowError]]:
    """Return the fields that JSON and a database can hold, and an error for each of the others."""
    kept, refused = {}, []
    for name, value in payload.items():
        if fault := str(value) if isinstance(value, RowError) else _not_json({name: value}):
            refused.append(RowError(Reason.PAYLOAD_NOT_JSON, printable(f"the field {name!r} is left out: {fault}")))
        else:
            kept[name] = value
    return kept, refused


def _not_json(field: Mapping[str, Any]) -> str:
    """Say why JSON or a database cannot hold a field; empty if they can."""
    try:
        json.dumps(field, allow_nan=False, ensure_ascii=False).encode()
        return next(_unstorable(field), "")
    except RecursionError:
        return "expected a value that is nested less deep"
    except UnicodeEncodeError:
        return "expected valid Unicode, got half of a surrogate pair"
    except TypeError:
        within = ", ".join(kind_of(value) for value in field.values())
        return f"expected what JSON can hold, got {within} that it cannot"
    except ValueError:
        return "expected finite numbers, got NaN or infinity"


def check_caption(caption: Any, columns: Sequence[str] = ("caption",)) -> str:
    """Return a caption without the spaces around it, empty if there is nothing else; errors name its columns.

    Raises:
        RowError: it is no text, has more bytes than `LONGEST_CAPTION`, or no database can store it.
    """
    if isinstance(caption, RowError):
        raise caption
    if not isinstance(caption, str):
        named = " or ".join(map(repr, columns))
        raise RowError(Reason.CAPTION_NOT_TEXT, printable(f"expected a text in {named}, got {kind_of(caption)}"))
    text: str = caption.strip()
    if (length := len(text.encode("utf-8", "surrogatepass"))) > LONGEST_CAPTION:
        raise RowError(Reason.CAPTION_TOO_LONG, f"a caption of {length} bytes, expected at most {LONGEST_CAPTION}")
    check_texts(text)
    return text


def parse_json(text: str) -> Any:
    """Parse a JSON document.

    Raises:
        ValueError: it is no JSON, is nested too deep, or an object has a name twice, so that one value would be lost.
    """
    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("expected JSON that is nested less deep") from error
    except json.JSONDecodeError as error:
        at = f"character {error.colno}" if error.lineno == 1 else f"line {error.lineno}, character {error.colno}"
        raise ValueError(f"expected JSON, got none from {at} on: {error.msg[0].lower()}{error.msg[1:]}") from error


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its pairs; raises a `ValueError` if a name occurs twice."""
    names = dict(pairs)
    if len(names) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"expected each name once, got {twice!r} twice")
    return names


def without_collisions(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Rename fields whose names modalign uses itself, so that nothing is lost: `split` becomes `corpus_split`.

    >>> without_collisions({"split": "a", "corpus_split": "b", "year": 1999})
    {'corpus_corpus_split': 'a', 'corpus_split': 'b', 'year': 1999}
    """
    renamed: dict[str, Any] = {}
    for name, value in fields.items():
        free = name
        while free in OWN_NAMES or (free != name and (free in fields or free in renamed)):
            free = f"corpus_{free}"
        renamed[free] = value
    return renamed


def _unstorable(value: Any) -> Iterator[str]:
    """Yield what JSON can express and databases cannot store."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _unstorable(name)
            yield from _unstorable(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _unstorable(inner)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        yield "the integer exceeds 64 bits"
    elif isinstance(value, str) and "\0" in value:
        yield "the text holds a NUL character"
