"""Embedding sets: an encoded corpus on disk, written shard by shard, read without filling the memory.

An embedding set is a directory:

    card.json               which corpus and which encoders: written last, read first
    image-000000.parquet    rows of one modality: key, group, content_sha256, payload (JSON), vector
    text-000000.parquet     ...

A shard appears by atomic rename after it is durable, so a killed writer leaves whole shards only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa

from alignment.errors import EmbeddingSetError
from alignment.modality import Modality
from alignment.object_storage import located
from alignment.sets.cards import SetCard
from alignment.sets.fingerprint import Fingerprint
from alignment.sets.rows import IDENTITY, Rows
from alignment.sets.shards import (
    WHOLE_SHARDS,
    read_ahead,
    read_columns,
    read_shard,
    shard_batches,
    shard_paths,
    shard_rows,
)

# Most shards that a sample is read from.
SAMPLED_SHARDS = 16


@dataclass(frozen=True, slots=True)
class EmbeddingSet:
    """A complete embedding set, opened for reading."""

    path: Path
    card: SetCard

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the embedding set at `path`.

        Raises:
            EmbeddingSetError: no embedding set, an incomplete one, or one whose shards disagree with its card: other
                counts or another fingerprint. Every row is read for it, without its vector.
        """
        path = located(path)
        card = SetCard.read(path)
        if not card.complete:
            raise EmbeddingSetError(
                f"embedding set {path} is incomplete: what made it was interrupted; run the same `modalign encode`, "
                "`ingest` or `import` again, it continues after the last whole shard"
            )
        opened = cls(path, card)
        for modality, expected in card.counts.items():
            encoder = card.encoders.get(modality)
            found = opened._rows_of(modality, encoder.dim if encoder else 0)
            if found != expected:
                raise EmbeddingSetError(
                    f"embedding set {path}: the card promises {expected} {modality} rows, the shards hold {found}; "
                    "run the same `modalign encode`, `ingest` or `import` again to repair it"
                )
        opened._check_fingerprint()
        return opened

    def _check_fingerprint(self) -> None:
        fingerprint = Fingerprint(self.card.encoders)
        for modality in self.card.counts:
            for identity in read_ahead(self.shards(modality), lambda shard: read_columns(shard, IDENTITY)):
                fingerprint.add(modality, identity)
        if fingerprint.hexdigest() != self.card.fingerprint:
            raise EmbeddingSetError(
                f"embedding set {self.path}: the card promises rows of fingerprint {self.card.fingerprint[:12]}, the "
                f"shards hold rows of {fingerprint.hexdigest()[:12]}; they were changed by something else than "
                "modalign: restore them, or make the set again under another name",
                code="set-changed",
            )

    def shards(self, modality: Modality) -> list[Path]:
        """Return the shard files of `modality`, oldest first."""
        return shard_paths(self.path, modality)

    def rows(self) -> int:
        """Count the rows of a set that may be incomplete."""
        return sum(self.counts().values())

    def counts(self) -> dict[Modality, int]:
        """Count the rows of each modality of a set that may be incomplete."""
        if self.card.complete:
            return self.card.counts
        encoders = self.card.encoders
        return {m: self._rows_of(m, encoders[m].dim) for m in encoders}

    def _rows_of(self, modality: Modality, dim: int) -> int:
        return sum(read_ahead(self.shards(modality), lambda shard: shard_rows(shard, dim)))

    def batches(self, modality: Modality, size: int) -> Iterator[tuple[str, int, Rows]]:
        """Yield `(shard file name, first row, rows)` of `modality`, at most `size` rows at a time."""
        for shard in self.shards(modality):
            for start, rows in shard_batches(shard, modality, size):
                yield shard.name, start, rows

    def sample(self, modality: Modality, count: int) -> Rows:
        """Read some rows of `modality`, about `count` in all, spread evenly over the set; few shards are read."""
        shards = self.shards(modality)
        shards = [shards[place] for place in _spread(len(shards), SAMPLED_SHARDS)]
        parts = []
        for shard in shards:
            rows = read_shard(shard, modality)
            parts.append(rows.take(_spread(len(rows), -(-count // len(shards)))))
        return Rows.concatenate(parts)

    def read(self, modality: Modality) -> Iterator[Rows]:
        """Yield every row of `modality`, a shard at a time.

        Raises:
            EmbeddingSetError: the set holds no row of this modality.
        """
        yield from read_ahead(self._some_shards(modality), lambda shard: read_shard(shard, modality), WHOLE_SHARDS)

    def columns(self, modality: Modality, names: list[str]) -> Iterator[pa.Table]:
        """Yield some columns of every row of `modality`, a shard at a time; vectors are read only where they are named.

        Raises:
            EmbeddingSetError: the set holds no row of this modality.
        """
        yield from read_ahead(self._some_shards(modality), lambda shard: read_columns(shard, names), WHOLE_SHARDS)

    def _some_shards(self, modality: Modality) -> list[Path]:
        if not (shards := self.shards(modality)):
            raise EmbeddingSetError(
                f"embedding set {self.path} holds no {modality} rows; encode a corpus that has some"
            )
        return shards

    def load(self, modality: Modality) -> Rows:
        """Read every row of `modality` into memory.

        Raises:
            EmbeddingSetError: the set holds no row of this modality.
        """
        return Rows.concatenate(list(self.read(modality)))

    def labels(self, modality: Modality) -> Iterator[tuple[list[str], list[str]]]:
        """Yield keys and groups of every row of `modality`, a shard at a time; vectors are not read."""
        for table in read_ahead(self.shards(modality), lambda shard: read_columns(shard, ["key", "group"])):
            yield table.column("key").to_pylist(), table.column("group").to_pylist()


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers below `count`, evenly spread."""
    return list(range(0, count, -(-count // most))) if count else []
