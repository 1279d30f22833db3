"""The directory of an embedded store: its lock, its registry, and the state of every collection.

    DIR/.lock                            held while the store is open: one process at a time
    DIR/registry.json                    the store's id, its collections (layout, metadata) and aliases
    DIR/collections/NAME/                one shard of the engine
    DIR/collections/NAME/modalign.json   which store made the directory, and what was last done to it

The engine has no collections, aliases or metadata. The registry adds them, and what it names exists. All files are
replaced atomically.

A crash may leave a directory that the registry does not name. It is removed only if its own `modalign.json` proves
that this store was creating or dropping it: that file is the first that a creation writes and the last that a removal
deletes, and a collection takes no point while it says so. Everything else is named in a warning and left alone. Only a
store that is about to be written is made, and only then are leftovers removed: reading changes nothing.
"""

import json
import logging
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from alignment.distance import Distance
from alignment.durable import sync_directory, write_durably
from connector.errors import StoreBusyError, StoreError
from connector.stores.collection import CollectionConfig, VectorConfig
from connector.stores.edge_files import (
    REGISTRY,
    STATE,
    CheckedFile,
    CollectionState,
    Step,
    damaged,
    listed,
    read_registry,
    read_state,
)

_log = logging.getLogger(__name__)

LOCK, TEMPORARY = ".lock", ".tmp"
# Files of the engine whose damage ends the process or hides points. None of them shrinks between a flush and a write.
# Opening a collection may rewrite the versions, so of those only the size is known.
CHECKED_FILES = (
    "segments/*/*id_tracker.*",
    "segments/*/version.info",
    "segments/*/vector_storage*/matrix.dat",
    "segments/*/vector_storage*/vectors/chunk_*",
    "segments/*/payload_storage/page_*",
)
HASHED_SUFFIXES = (".mappings", ".deleted", ".info")


class StoreDirectory:
    """The directory of an embedded store. A missing or an empty one is an empty store, and is made by `prepare`.

    Attributes:
        path: of the directory.
        collections: by name; the directory of one may be missing, see `exists`.
        aliases: `{alias: collection}`.

    Raises:
        StoreBusyError: another process has the store open.
        StoreError: the directory is not a store and not empty, or its registry is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self.collections: Mapping[str, CollectionConfig] = {}
        self.aliases: Mapping[str, str] = {}
        self._id: str | None = None
        self._prepared = False
        self._lock = FileLock(path / LOCK, thread_local=False)  # held by the store, whichever thread uses it
        with self._usable():
            if self._is_store():
                _read_configs(self.path / REGISTRY)  # no lock is left in a directory that is not ours
                self._open()

    def _is_store(self) -> bool:
        """Say whether there is a store; False if the directory is missing or empty.

        Raises:
            StoreError: it is neither.
        """
        if (self.path / REGISTRY).exists():
            return True
        try:
            others = {entry.name for entry in self.path.iterdir()} - {LOCK, REGISTRY + TEMPORARY}
        except FileNotFoundError:
            return False
        if others:
            raise StoreError(
                f"{self.path} is not a store: expected {REGISTRY}, found {listed(others)}; nothing was changed. Check "
                f"MODALIGN_QDRANT_URL. If this was a store, restore its {REGISTRY} from a backup; otherwise name an "
                "empty or a new directory"
            )
        return False

    def _open(self) -> None:
        """Lock the directory and read the registry; warn of what it does not name."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise StoreBusyError(
                f"{self.path} is in use by another process, and Qdrant Edge serves one at a time; wait until it ends, "
                "or run a Qdrant server and name it by MODALIGN_QDRANT_URL"
            ) from None
        try:
            if self._is_store():
                self._id, self.collections, self.aliases = _read_configs(self.path / REGISTRY)
                self._warn()
        except BaseException:
            self._lock.release()
            raise

    def _warn(self) -> None:
        unknown = {entry.name for entry in self._unnamed() if not self._is_leftover(entry)}
        if unknown:
            _log.warning(
                "%s does not name %s in %s, which is left alone. If an older %s was restored, restore the newest",
                self.path / REGISTRY,
                listed(unknown),
                self.path / "collections",
                REGISTRY,
            )
        if missing := [name for name in self.collections if not self.exists(name)]:
            _log.warning("%s names %s, whose directory is missing", self.path / REGISTRY, listed(missing))

    def prepare(self) -> None:
        """Make the store if there is none, and remove what a crash left of creating or dropping collections.

        Call it before the first write; a second call does nothing.

        Raises:
            StoreBusyError: another process has the store open.
            StoreError: the directory cannot be written.
        """
        if self._prepared:
            return
        with self._usable():
            self.path.mkdir(parents=True, exist_ok=True)
            if not self._lock.is_locked:
                self._open()
            if self._id is None:
                self._id = uuid4().hex
                self.commit(self.collections, self.aliases)
            for entry in self._unnamed():
                if self._is_leftover(entry):
                    _remove(entry)
            for name in filter(self.exists, self.collections):
                self._recover(name)
        self._prepared = True

    def _recover(self, name: str) -> None:
        """Tidy a collection that the registry names and that a crash may have left in the middle of a step."""
        state = self.state(name)
        if state is None or state.store != self._id or state.step == "closed":
            return
        scratch = self.home(name) / "temp_segments"  # where the engine builds what it was killed in
        if scratch.is_dir() and not scratch.is_symlink():
            shutil.rmtree(scratch)
        if state.step != "open":  # the registry says that the creation took effect, or that the drop did not
            self.set_state(name, "open")

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def home(self, name: str) -> Path:
        """Return the directory of a collection."""
        return self.path / "collections" / name

    def exists(self, name: str) -> bool:
        """Say whether the registry names a collection and its directory is there."""
        return name in self.collections and self.home(name).is_dir()

    def commit(self, collections: Mapping[str, CollectionConfig], aliases: Mapping[str, str]) -> None:
        """Replace the registry atomically."""
        named = {name: asdict(config) for name, config in collections.items()}
        with self._usable():
            _write_json(self.path / REGISTRY, {"id": self._id, "collections": named, "aliases": dict(aliases)})
        self.collections, self.aliases = dict(collections), dict(aliases)

    def begin(self, name: str) -> Path:
        """Make the directory of a new collection, with the proof that this store is creating it.

        Raises:
            StoreError: something is there that the registry does not name.
        """
        home = self.home(name)
        with self._usable():
            if others := {entry.name for entry in _entries(home)} - {STATE + TEMPORARY}:
                raise StoreError(
                    f"{home} is in the way of collection {name}: {REGISTRY} does not name it, and it holds "
                    f"{listed(others)}; move it away and run the same command again"
                )
            if name in self.collections:  # lost: named again once it is whole, so that a crash leaves a leftover
                named = {other: config for other, config in self.collections.items() if other != name}
                self.commit(named, self.aliases)
            home.mkdir(parents=True, exist_ok=True)
            self.set_state(name, "creating")
            sync_directory(home.parent)
            sync_directory(self.path)
        return home

    def remove(self, name: str) -> None:
        """Remove the directory of a collection that this store is creating or dropping."""
        with self._usable():
            if self._is_leftover(self.home(name)):
                _remove(self.home(name))

    def state(self, name: str) -> CollectionState | None:
        """Return the state of a collection; None if it has none that can be read."""
        return read_state(self.home(name) / STATE)

    def set_state(self, name: str, step: Step, *, engine: str = "", points: int = 0) -> None:
        """Record what is done to a collection now; with `closed`, the files that it is made of."""
        files = dict(_checked_files(self.home(name))) if step == "closed" else {}
        state = CollectionState(self._id or "", step, engine, points, files)
        with self._usable():
            _write_json(self.home(name) / STATE, asdict(state))

    def damaged_file(self, name: str, state: CollectionState) -> Path | None:
        """Return a file of a closed collection that is missing or changed since; None if there is none."""
        for place, recorded in state.files.items():
            path = self.home(name) / place
            present = _checked_file(path)
            if present is None or present.size < recorded.size or present.crc32 != recorded.crc32:
                return path
        return None

    def _unnamed(self) -> list[Path]:
        """Return what lies among the collections and is not named by the registry."""
        return [entry for entry in _entries(self.path / "collections") if entry.name not in self.collections]

    def _is_leftover(self, home: Path) -> bool:
        """Say whether it is proven that this store was creating or dropping the collection in `home`."""
        if home.is_symlink() or home.name in self.collections:
            return False
        state = read_state(home / STATE)
        return state is not None and state.store == self._id and state.step in ("creating", "dropping")

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
            raise StoreError(f"{self.path} cannot be used as a store: {error}") from error


def _read_configs(path: Path) -> tuple[str | None, dict[str, CollectionConfig], Mapping[str, str]]:
    """Return id, collections and aliases of a registry, as `read_registry`, with the settings of the collections."""
    registry = read_registry(path)
    try:
        return registry.id, {name: _config(raw) for name, raw in registry.collections.items()}, registry.aliases
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error


def _config(raw: dict[str, Any]) -> CollectionConfig:
    vectors = {n: VectorConfig(v["dim"], Distance(v["distance"])) for n, v in raw["vectors"].items()}
    return CollectionConfig(**{**raw, "vectors": vectors})


def _write_json(path: Path, value: Any) -> None:
    write_durably(path, (json.dumps(value, indent=2) + "\n").encode())


def _checked_files(home: Path) -> Iterator[tuple[str, CheckedFile]]:
    for pattern in CHECKED_FILES:
        for path in sorted(home.glob(pattern)):
            if checked := _checked_file(path):
                yield path.relative_to(home).as_posix(), checked


def _checked_file(path: Path) -> CheckedFile | None:
    """Return size and checksum of a file; None if it cannot be read."""
    try:
        hashed = path.suffix in HASHED_SUFFIXES
        return CheckedFile(path.stat().st_size, zlib.crc32(path.read_bytes()) if hashed else None)
    except OSError:
        return None


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.exists() else []


def _remove(home: Path) -> None:
    """Remove a directory, the proof that it may be removed last: a kill in between leaves the proof."""
    for entry in home.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != STATE:
            entry.unlink()
    (home / STATE).unlink(missing_ok=True)
    home.rmdir()
