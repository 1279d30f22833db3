"""Checks of a row before it becomes an item: whether its texts and its payload can be stored."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from connector.corpora.items import LONGEST_CAPTION
from connector.rejects import Reason

# Names that modalign writes into every payload.
RESERVED = frozenset(("modality", "content_sha256", "split", "aligned"))
COLUMNS = frozenset(("key", "group", "image", "caption"))
OWN_NAMES = RESERVED | COLUMNS


class RowError(ValueError):
    """A row that cannot be used, with the reason for its reject."""

    def __init__(self, reason: Reason, detail: str):
        super().__init__(detail)
        self.reason = reason


def misspelt(names: Iterable[str]) -> str:
    """Say which of the names is a name of ours but for its case or spaces around it; empty if none is.

    It would pass for payload, and an image or a caption would be lost without a word. A `Group` may well be payload.
    """
    given = set(names)
    for name in sorted(given):
        own = name.strip().lower()
        if own in COLUMNS - {"group"} and own not in given:
            return f"{name!r} is not read as {own}: write {own!r}, or rename it if it is payload"
    return ""


def check_key(fields: dict[str, Any]) -> str:
    """Remove the key from `fields` and return it."""
    if key := text_field(fields, "key"):
        return key
    raise RowError(Reason.KEY_MISSING, "expected a value in 'key', the permanent name of the row")


def text_field(fields: dict[str, Any], name: str) -> str | None:
    """Remove a text or an integer from `fields` and return it as a text; None if it is missing or empty."""
    value = fields.pop(name, None)
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RowError(Reason(f"{name}-not-text"), f"expected '{name}' to be a text, got {type(value).__name__}")


def check_storable(texts: Sequence[str | None], payload: Mapping[str, Any]) -> None:
    """Raise a `RowError` if a database cannot store these texts or this payload."""
    if taken := RESERVED & payload.keys():
        raise RowError(Reason.PAYLOAD_NAME_RESERVED, f"rename the columns {', '.join(sorted(taken))}")
    try:
        json.dumps(payload, allow_nan=False)
        for fault in _unstorable(payload):
            raise ValueError(fault)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowError(Reason.PAYLOAD_NOT_JSON, f"payload cannot be stored: {error}") from error
    for fault in _unstorable(texts):
        raise RowError(Reason.ROW_UNREADABLE, fault)
    try:
        json.dumps([texts, payload], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RowError(Reason.ROW_UNREADABLE, f"expected valid Unicode: {error}") from error


def check_caption(caption: str) -> None:
    """Raise a `RowError` if a caption has more bytes than `LONGEST_CAPTION`."""
    if (length := len(caption.encode("utf-8", "surrogatepass"))) > LONGEST_CAPTION:
        raise RowError(Reason.CAPTION_TOO_LONG, f"a caption of {length} bytes, expected at most {LONGEST_CAPTION}")


def parse_json(text: str) -> Any:
    """Parse a JSON document.

    Raises:
        ValueError: it is no JSON, is nested too deep, or an object has a name twice, so that one value would be lost.
    """
    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError as error:
        raise ValueError("expected JSON that is nested less deep") from error


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its pairs; raises a `ValueError` if a name occurs twice."""
    names = dict(pairs)
    if len(names) < len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"expected each name once, got {twice!r} twice")
    return names


def without_collisions(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Rename fields whose names modalign uses itself: `split` becomes `corpus_split`.

    For formats whose files are not edited by hand; a row of a manifest is rejected instead.
    """
    return {f"corpus_{name}" if name in OWN_NAMES else name: value for name, value in fields.items()}


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
