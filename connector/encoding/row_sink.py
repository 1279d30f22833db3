"""The new rows of one modality on their way into shards."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alignment.errors import EmbeddingSetError
from alignment.modality import Modality
from alignment.sets.rows import Rows
from alignment.sets.writer import SetWriter
from alignment.vectors import FloatArray, invalid_rows, rows_lost_in
from connector.corpora.items import Item
from connector.encoding.encoders import Encoder
from connector.encoding.preparation import reject_of
from connector.encoding.set_index import SetIndex
from connector.encoding.truncation import is_truncated
from connector.encoding.unit_encoder import Content, EncodedItem
from connector.provenance.runs import Run
from connector.rejects import Reason


@dataclass(frozen=True, slots=True)
class DurableShard:
    """A shard that is durable on disk.

    Attributes:
        additive: whether all its keys are new to the set. Otherwise older shards hold rows of some of these keys until
            `Encoding.finish` drops them.
    """

    modality: Modality
    path: Path
    additive: bool


@dataclass(slots=True)
class RowSink:
    """Collects the new rows of one modality into shards.

    Attributes:
        none_truncated: whether the captions that the set held before the pass are all whole.
        rows_written: by this pass.
        truncated_rows: captions among them that are truncated; None: it is not known.
    """

    modality: Modality
    encoder: Encoder
    writer: SetWriter
    index: SetIndex
    run: Run
    shard_rows: int
    written: list[DurableShard]
    none_truncated: bool
    rows_written: int = 0
    truncated_rows: int | None = 0
    _taken: list[tuple[EncodedItem, Content]] = field(default_factory=list)
    _rows: list[Rows] = field(default_factory=list)

    def take(self, item: EncodedItem, content: Content) -> None:
        """Take an item that this pass meets for the first time."""
        self._taken.append((item, content))

    def end_group(self) -> None:
        """Skip what is unchanged of the items taken since the last call, and check the vectors of the others.

        Writes a shard if there are enough of them.
        """
        rows = self._new_rows()
        if not rows:
            return
        vectors = np.stack([row.vector for row in rows])
        dtype = self.writer.card.dtype
        invalid = {**rows_lost_in(vectors, dtype), **invalid_rows(vectors)}
        for number, reason in invalid.items():
            detail = f"expected a finite vector with a norm above 0 from {self.encoder.spec}, which {dtype} can hold"
            self.run.reject(reject_of(rows[number].item, "encode", Reason(reason), detail))
        valid = [number for number in range(len(rows)) if number not in invalid]
        reused = sum(rows[number].reused for number in valid)
        self.run.counts["reused"] += reused
        self.run.counts["encoded"] += len(valid) - reused
        for number in valid:
            truncated = rows[number].truncated
            before = self.truncated_rows
            self.truncated_rows = None if before is None or truncated is None else before + truncated
        if valid:
            self._rows.append(_rows(self.modality, [rows[number] for number in valid], vectors[valid]))
        if sum(map(len, self._rows)) >= self.shard_rows:
            self.write()

    def _new_rows(self) -> list["_NewRow"]:
        """Return the items that are new or changed, each with the vector that the set holds of its content, if any."""
        taken, self._taken = self._taken, []
        stored = self.index.find_keys(self.modality, [row.item.key for row, _ in taken])
        new = [
            (row, content)
            for row, content in taken
            if (found := stored.get(row.item.key)) is None
            or not found.matches(content.sha256, row.item.group, row.payload)
        ]
        if unchanged := len(taken) - len(new):
            self.run.count("already_in_set", unchanged)
        held = self.index.find_vectors(self.modality, [content.sha256 for _, content in new])
        return [self._new_row(row.item, row.payload, content, held.get(content.sha256)) for row, content in new]

    def _new_row(self, item: Item, payload: str, content: Content, held: FloatArray | None) -> "_NewRow":
        in_set = held is not None
        if held is None and content.vector is None:
            held = self.index.find_refused(self.modality, content.sha256)
        vector = content.vector if held is None else held
        if vector is None:
            raise EmbeddingSetError(
                f"embedding set {self.writer.path} has lost the vector of {self.modality} {item.key!r} while it was "
                "written; run the same command again"
            )
        truncated = content.truncated
        if content.vector is None and isinstance(item.content, str):
            truncated = False if self.none_truncated and in_set else is_truncated(self.encoder, item.content)
        if truncated:
            self.run.count("truncated", 1)
        return _NewRow(item, payload, content.sha256, vector, truncated, held is not None or content.copied)

    def write(self) -> None:
        """Write the rows that are left as a shard."""
        if not self._rows:
            return
        joined = Rows.concatenate(self._rows)
        self._rows = []
        shard = self.writer.append(joined)
        self.written.append(DurableShard(self.modality, shard, self.index.add(shard, joined)))
        self.rows_written += len(joined)


@dataclass(slots=True)
class _NewRow:
    """A row on its way into a shard.

    Attributes:
        truncated: whether its caption is longer than the encoder reads; None: unknown.
        reused: its vector was not computed for it.
    """

    item: Item
    payload: str
    sha256: str
    vector: FloatArray
    truncated: bool | None
    reused: bool


def _rows(modality: Modality, rows: list[_NewRow], vectors: FloatArray) -> Rows:
    return Rows(
        modality,
        [row.item.key for row in rows],
        [row.item.group for row in rows],
        [row.sha256 for row in rows],
        [row.payload for row in rows],
        vectors,
    )
