"""Writing an embedding set, one durable shard at a time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

import pyarrow as pa
from filelock import FileLock, Timeout

from alignment.errors import EmbeddingSetError, SetBusyError
from alignment.modality import MODALITIES, Modality
from alignment.object_storage import is_remote
from alignment.sets.cards import CARD, Dtype, EncoderCard, SetCard
from alignment.sets.fingerprint import Fingerprint
from alignment.sets.rows import IDENTITY, Rows
from alignment.sets.shards import read_ahead, read_columns, read_shard, shard_paths, write_shard

SetLock = AbstractContextManager[Callable[[], None]]


def recorded_encoders(path: Path) -> dict[Modality, EncoderCard]:
    """Return the encoders of the embedding set at `path` by modality: none where there is no set yet.

    Raises:
        EmbeddingSetError: its card is damaged or of another format.
    """
    return SetCard.read(path).encoders if (path / CARD).exists() else {}


def check_may_add(path: Path, encoders: Mapping[Modality, EncoderCard | str], dtype: Dtype = "float32") -> None:
    """Refuse what a `SetWriter` would refuse, before encoders are loaded: of each the spec may be all that is known.

    Raises:
        EmbeddingSetError: the set at `path` has vectors of other encoders, or of another type.
        OSError: nothing can be written there.
    """
    if (path / CARD).exists():
        _check_fits(path, SetCard.read(path), encoders, dtype)
    if not is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path if path.is_dir() else path.parent):
            pass


def _check_fits(path: Path, card: SetCard, encoders: Mapping[Modality, EncoderCard | str], dtype: Dtype) -> None:
    if card.dtype != dtype:
        raise EmbeddingSetError(
            f"embedding set {path} stores {card.dtype}, asked for {dtype}; name another --set or keep the type"
        )
    for modality in MODALITIES:
        if modality in card.encoders and modality in encoders:
            check_same_encoder(path, modality, card.encoders[modality], encoders[modality])


def check_same_encoder(path: Path, modality: Modality, old: EncoderCard, new: EncoderCard | str) -> None:
    """Raise an `EmbeddingSetError` unless the encoder, or spec, `new` is the one that made vectors of a set."""
    if new not in (old, old.spec):
        raise EmbeddingSetError(
            f"embedding set {path} holds {modality} vectors of {old}, asked to add vectors of {new}; "
            "vectors of two encoders cannot be mixed: name another --set"
        )


class SetWriter:
    """An embedding set, opened for writing by one process.

    Use as a context manager. Rows are appended as whole shards; a row whose key is in a newer shard too is
    superseded, and `drop` removes it. `finish` makes the set complete.

    Attributes:
        path: directory of the set.
        lock: keeps other writers out and returns a function that raises once it no longer does; by default a file
            beside the set, which is not to be had in object storage.
        card: the current card.
    """

    def __init__(
        self,
        path: Path,
        *,
        corpus: str,
        encoders: Mapping[Modality, EncoderCard],
        dtype: Dtype = "float32",
        lock: SetLock | None = None,
    ):
        self.path = path
        self.card = SetCard(path.name, corpus, dict(encoders), dtype)
        self._made = False
        self._numbers: dict[Modality, int] = {}
        self._lock = lock or _file_lock(path)
        self._held = ExitStack()
        self._raise_if_lost: Callable[[], None] = lambda: None

    def __enter__(self) -> Self:
        with ExitStack() as held:
            self._raise_if_lost = held.enter_context(self._lock)
            self._open()
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None and self._made and [entry.name for entry in self.path.iterdir()] == [CARD]:
                (self.path / CARD).unlink()  # a set that never got a row is none
                self.path.rmdir()
        finally:
            self._held.close()

    def _open(self) -> None:
        # Of a writer that was killed, maybe before its first card. Other files are somebody's own.
        leftovers = {*self.path.glob(f"{CARD}.tmp"), *self.path.glob("*-[0-9][0-9][0-9][0-9][0-9][0-9].parquet.tmp")}
        if self.path.exists() and (not self.path.is_dir() or set(self.path.iterdir()) - leftovers):
            self._reopen(SetCard.read(self.path))
        else:
            self.path.mkdir(exist_ok=True)
            self.card.write(self.path)
            self._made = True
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)

    def _reopen(self, existing: SetCard) -> None:
        _check_fits(self.path, existing, self.card.encoders, self.card.dtype)
        self.card = replace(existing, corpus=self.card.corpus, encoders={**existing.encoders, **self.card.encoders})

    def append(self, rows: Rows) -> Path:
        """Write `rows` as a new shard: durable and visible when this returns."""
        self._raise_if_lost()
        if self.card.complete:
            self.card = replace(self.card, complete=False, fingerprint="")
        self.card.write(self.path)
        number = self._next_number(rows.modality)
        path = self.path / f"{rows.modality}-{number:06d}.parquet"
        write_shard(path, rows, self.card.dtype)
        self._numbers[rows.modality] = number + 1
        return path

    def _next_number(self, modality: Modality) -> int:
        """Return the number of the next shard. The directory is listed once: a large set has a million shards."""
        if modality not in self._numbers:
            existing = shard_paths(self.path, modality)
            self._numbers[modality] = int(existing[-1].stem.rpartition("-")[2]) + 1 if existing else 0
        return self._numbers[modality]

    def drop(self, shard: Path, modality: Modality, rows: set[int]) -> None:
        """Rewrite `shard` without the rows with these numbers; the file goes when no row is left."""
        self._raise_if_lost()
        table = read_shard(shard, modality)
        kept = [row for row in range(len(table)) if row not in rows]
        if kept:
            write_shard(shard, table.take(kept), self.card.dtype)
        else:
            shard.unlink()

    def finish(self, truncated: int | None = None) -> None:
        """Count and fingerprint all rows and mark the set complete. No-op if nothing changed.

        Args:
            truncated: for the card. None: as before if there are as many captions, otherwise unknown.
        """
        self._raise_if_lost()
        fingerprint = Fingerprint(self.card.encoders)
        for modality in MODALITIES:
            for _, identity in self.identities(modality):
                fingerprint.add(modality, identity)
        if truncated is None and fingerprint.counts["text"] == self.card.counts.get("text", 0):
            truncated = self.card.truncated
        finished = replace(
            self.card,
            counts=fingerprint.counts,
            complete=True,
            fingerprint=fingerprint.hexdigest(),
            truncated=truncated,
        )
        if finished != SetCard.read(self.path):
            finished.write(self.path)
        self.card = finished

    def identities(self, modality: Modality) -> Iterator[tuple[Path, pa.Table]]:
        """Yield every shard of `modality` with its columns except the vectors, oldest first."""
        yield from read_ahead(shard_paths(self.path, modality), lambda shard: (shard, read_columns(shard, IDENTITY)))


@contextmanager
def _file_lock(path: Path) -> Iterator[Callable[[], None]]:
    if is_remote(path):
        raise EmbeddingSetError(
            f"embedding set {path}: no file keeps other processes out of object storage; give the writer a lock, as "
            "`modalign encode` does with a lease in SQL",
            code="set-without-lock",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SetBusyError(
            f"embedding set {path} is being written by another process; wait for it or stop it"
        ) from None
    try:
        yield lambda: None
    finally:
        lock.release()
