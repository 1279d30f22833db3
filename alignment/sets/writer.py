"""Writing an embedding set, one durable shard at a time."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import pyarrow as pa
from filelock import FileLock, Timeout

from alignment.errors import EmbeddingSetError, SetBusyError
from alignment.modality import MODALITIES, Modality
from alignment.sets.cards import CARD, Dtype, EncoderCard, SetCard
from alignment.sets.fingerprint import Fingerprint
from alignment.sets.rows import IDENTITY, Rows
from alignment.sets.shards import read_columns, read_shard, shard_paths, write_shard


def recorded_encoders(path: Path) -> dict[Modality, EncoderCard]:
    """Return the encoders of the embedding set at `path` by modality: none where there is no set yet.

    Raises:
        EmbeddingSetError: its card is damaged or of another format.
    """
    return SetCard.read(path).encoders if (path / CARD).exists() else {}


def check_same_encoder(path: Path, modality: Modality, old: EncoderCard, new: EncoderCard) -> None:
    """Raise an `EmbeddingSetError` unless the encoder `new` is the one that made vectors of the set at `path`."""
    if old != new:
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
        card: the current card.
    """

    def __init__(self, path: Path, *, corpus: str, encoders: Mapping[Modality, EncoderCard], dtype: Dtype = "float32"):
        self.path = path
        self.card = SetCard(path.name, corpus, dict(encoders), dtype)
        self._made = False
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise SetBusyError(
                f"embedding set {self.path} is being written by another process; wait for it or stop it"
            ) from None
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None and self._made and [entry.name for entry in self.path.iterdir()] == [CARD]:
                shutil.rmtree(self.path)  # a set that never got a row is none
        finally:
            self._lock.release()

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
        if existing.dtype != self.card.dtype:
            raise EmbeddingSetError(
                f"embedding set {self.path} stores {existing.dtype}, asked for {self.card.dtype}; "
                "name another --set or keep the type"
            )
        for modality in MODALITIES:
            if modality in existing.encoders and modality in self.card.encoders:
                check_same_encoder(self.path, modality, existing.encoders[modality], self.card.encoders[modality])
        self.card = replace(existing, corpus=self.card.corpus, encoders={**existing.encoders, **self.card.encoders})

    def append(self, rows: Rows) -> Path:
        """Write `rows` as a new shard: durable and visible when this returns."""
        if self.card.complete:
            self.card = replace(self.card, complete=False, fingerprint="")
        self.card.write(self.path)
        existing = shard_paths(self.path, rows.modality)
        number = int(existing[-1].stem.rpartition("-")[2]) + 1 if existing else 0
        path = self.path / f"{rows.modality}-{number:06d}.parquet"
        write_shard(path, rows, self.card.dtype)
        return path

    def drop(self, shard: Path, modality: Modality, rows: set[int]) -> None:
        """Rewrite `shard` without the rows with these numbers; the file goes when no row is left."""
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
        for shard in shard_paths(self.path, modality):
            yield shard, read_columns(shard, IDENTITY)
