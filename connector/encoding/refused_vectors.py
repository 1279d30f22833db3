"""Vectors of items that were refused because another unit of the corpus has their key: beside the set, no part of it.

    SET/.refused/MODALITY-NUMBER.parquet    shards, in the layout of those of the set

Workers know nothing of other units, so that such an item is refused once it is encoded. Its vector is kept as long as
each pass refuses it: the next one encodes it no more, and has its vector where it comes first. Readers of the set look
for its shards and its card alone, and never at this folder.
"""

from collections.abc import Iterable

import numpy as np

from alignment.modality import Modality
from alignment.sets.rows import Rows
from alignment.sets.shards import shard_paths, write_shard
from alignment.sets.writer import SetWriter
from alignment.vectors import FloatArray, invalid_rows, rows_lost_in
from connector.corpora.items import Item
from connector.encoding.set_index import REFUSED, SetIndex
from connector.encoding.unit_encoder import Content


class RefusedVectors:
    """Takes the refused items of a pass, and writes a shard of each `shard_rows`."""

    def __init__(self, writer: SetWriter, index: SetIndex, shard_rows: int):
        self._writer, self._index, self._shard_rows = writer, index, shard_rows
        self._new: dict[Modality, dict[str, tuple[Item, str, FloatArray]]] = {}  # by content

    def take(self, item: Item, payload: str, content: Content) -> None:
        """Keep the vector of a refused item, unless it is kept already."""
        if self._index.refuse(item.modality, content.sha256) or content.vector is None:
            return
        new = self._new.setdefault(item.modality, {})
        new[content.sha256] = item, payload, content.vector
        if len(new) >= self._shard_rows:
            self.write()

    def write(self) -> None:
        """Write what is new, and not in the set."""
        folder, dtype = self._writer.path / REFUSED, self._writer.card.dtype
        for modality, new in self._new.items():
            held = self._index.held_contents(modality, list(new))
            contents = [content for content in new if content not in held]
            if not contents:
                continue
            items, payloads, stacked = zip(*(new[content] for content in contents), strict=True)
            vectors = np.stack(stacked)
            invalid = {**rows_lost_in(vectors, dtype), **invalid_rows(vectors)}
            keys, groups = [item.key for item in items], [item.group for item in items]
            rows = Rows(modality, keys, groups, contents, list(payloads), vectors)
            if not len(rows := rows.take(row for row in range(len(rows)) if row not in invalid)):
                continue
            folder.mkdir(exist_ok=True)
            existing = shard_paths(folder, modality)
            number = int(existing[-1].stem.rpartition("-")[2]) + 1 if existing else 0
            shard = folder / f"{modality}-{number:06d}.parquet"
            write_shard(shard, rows, dtype)
            self._index.add_refused(shard, modality, rows.content_sha256, again=True)
        self._new.clear()

    def finish(self, modalities: Iterable[Modality]) -> None:
        """Drop the vectors of items of `modalities` that this pass has not refused."""
        for modality in modalities:
            for shard, rows in self._index.not_refused(modality).items():
                self._writer.drop(self._writer.path / shard, modality, rows)
