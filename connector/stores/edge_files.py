"""What an embedded store writes beside the engine's files: its registry, and the state of every collection.

This module imports nothing heavy: a status reads these files, and opens no store.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from connector.errors import StoreError

REGISTRY, STATE = "registry.json", "modalign.json"
FORBIDDEN = frozenset('<>:"/\\|?*\0\x1f')  # in the name of a collection: what a Qdrant server refuses
NAMES_SHOWN = 5
Step = Literal["creating", "open", "closed", "dropping"]


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A file of the engine when its collection was closed: its bytes, and their CRC-32 if it must not change."""

    size: int
    crc32: int | None = None


@dataclass(frozen=True, slots=True)
class CollectionState:
    """What a store last did to a collection.

    Attributes:
        store: id of the store.
        step: `open` while a process writes, or after it was killed; `closed` once everything is on disk.
        engine: version of the engine that closed it.
        points: how many points it had then.
        files: of the engine, by their path in the collection.
    """

    store: str
    step: Step
    engine: str = ""
    points: int = 0
    files: Mapping[str, CheckedFile] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Registry:
    """What a registry says; one of an older modalign has no id.

    Attributes:
        id: of the store.
        collections: by name, the fields of a `CollectionConfig`, which are not checked yet.
        aliases: `{alias: collection}`.
    """

    id: str | None
    collections: Mapping[str, Any]
    aliases: Mapping[str, str]


def read_registry(path: Path) -> Registry:
    """Read a registry.

    Raises:
        StoreError: it is damaged, or of another program.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if unknown := raw.keys() - {"id", "collections", "aliases"}:
            raise ValueError(f"modalign writes no {listed(unknown)}")
        collections = dict(raw["collections"].items())
        aliases = {str(alias): str(target) for alias, target in raw["aliases"].items()}
        if wrong := [name for name in collections if not may_be_named(name)]:
            raise ValueError(f"{wrong[0]!r} cannot name a collection")
        if not isinstance(id_ := raw.get("id"), str | None):
            raise TypeError(f"expected a text as id, got {id_!r}")
        return Registry(id_, collections, aliases)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> StoreError:
    """Return the error that says that a registry holds something else than modalign writes."""
    return StoreError(
        f"{path} is damaged, or of another program ({error!r}); restore it from a backup, or name another directory by "
        "MODALIGN_QDRANT_URL"
    )


def may_be_named(name: str) -> bool:
    """Say whether a collection, which is a directory here, may have this name."""
    return bool(name) and name not in (".", "..") and not FORBIDDEN & set(name)


def read_state(path: Path) -> CollectionState | None:
    """Read the state of a collection; None if it has none that can be read: that is no proof of anything."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        files = {place: CheckedFile(**checked) for place, checked in raw["files"].items()}
        state = CollectionState(**{**raw, "files": files})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return state if state.step in get_args(Step) else None


def closed_points(path: Path) -> dict[str, int]:
    """Return how many points collections had when they were closed, by name: without the lock of their store.

    A collection that a process has open, or was killed with, is left out; one whose directory is missing has none.

    Raises:
        StoreError: the registry is damaged.
    """
    if not (path / REGISTRY).exists():
        return {}
    points = {}
    for name in read_registry(path / REGISTRY).collections:
        home = path / "collections" / name
        state = read_state(home / STATE)
        if not home.is_dir() or (state is not None and state.step == "closed"):
            points[name] = state.points if state else 0
    return points


def listed(names: Collection[str]) -> str:
    """List names, quoted: they may be anything."""
    shown = ", ".join(ascii(name) if not name.isprintable() else repr(name) for name in sorted(names)[:NAMES_SHOWN])
    return shown + (f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else "")
