"""Paths of payload fields, as Qdrant reads them in payload indexes and filters.

    year              a field
    meta.year         a field of an object
    meta[].year       a field of every object in a list
    tags[0]           the first value of a list
    "my year"         a field whose name holds more than letters, digits, _ and -; "meta.year" is one field

A path ends at values: a list at its end stands for the values in it.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

# Names, positions in lists, and None for every position.
Path = tuple[str | int | None, ...]

_STEP = re.compile(r'(?:"([^"]*)"|([\w-]+))((?:\[[0-9]*\])*)')
_PLAIN = re.compile(r"[\w-]+")


@lru_cache(1024)
def parse_path(text: str) -> Path:
    """Parse a path.

    Raises:
        ValueError: Qdrant reads no path in it.

    >>> parse_path('meta[]."my year"[0]')
    ('meta', None, 'my year', 0)
    """
    steps: list[str | int | None] = []
    end = -1
    while end < len(text):
        match = _STEP.match(text, end + 1)
        if match is None or (match.end() < len(text) and text[match.end()] != "."):
            quoted = ".".join(map(_quoted, text.split(".")))
            raise ValueError(
                f"{text!r} is no path of a payload field; expected one such as year, meta.year, tags[] or {quoted}"
            )
        steps.append(match[2] if match[1] is None else match[1])
        steps += [int(number) if number else None for number in re.findall(r"\[([0-9]*)\]", match[3])]
        end = match.end()
    return tuple(steps)


def print_path(path: Path) -> str:
    """Print a path in the shortest way that Qdrant reads: the way that it prints paths itself.

    >>> print_path(("meta", None, "my year", 0))
    'meta[]."my year"[0]'
    """
    text = ""
    for step in path:
        if isinstance(step, str):
            text += ("." if text else "") + _quoted(step)
        else:
            text += "[]" if step is None else f"[{step}]"
    return text


def canonical_path(text: str) -> str:
    """Return a path as `print_path` prints it.

    >>> canonical_path('"meta"."year"')
    'meta.year'
    """
    return print_path(parse_path(text))


def field_values(payload: Mapping[str, Any], within: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield all values in a payload with their paths, without positions in lists.

    >>> [(print_path(path), value) for path, value in field_values({"a b": 1, "tags": ["x"], "parts": [{"n": 2}]})]
    [('"a b"', 1), ('tags', 'x'), ('parts[].n', 2)]
    """
    for name, value in payload.items():
        yield from _values(value, (*within, name))


def _values(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping):
        yield from field_values(value, path)
    elif isinstance(value, list):
        for element in value:
            if isinstance(element, (Mapping, list)):
                yield from _values(element, (*path, None))
            else:
                yield path, element
    else:
        yield path, value


def _quoted(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else f'"{name}"'
