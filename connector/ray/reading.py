"""Read an embedding set as a Ray dataset."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from typing_extensions import override

from alignment.arrow import look_for_pandas
from alignment.errors import EmbeddingSetError
from alignment.modality import MODALITIES, Modality
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import IDENTITY
from alignment.sets.shards import read_columns, shard_rows

TEXT_BYTES = 200  # of key, group, hash and payload of a row: Ray plans with an estimate


def read_set(path: Path | str, *, modality: Modality | None = None) -> ray.data.Dataset:
    """Read the embedding set at `path` as a Ray dataset, shard by shard when blocks are needed.

    The columns are `modality`, `key`, `group`, `content_sha256`, `payload` (JSON text) and `vector` (float32): a tensor
    of a fixed shape, or lists where the modalities differ in dimension. Tasks read the shards by the same path, so
    every node must see it.

    Args:
        path: directory of the set.
        modality: read its rows alone; None: all rows.

    Raises:
        EmbeddingSetError: as `EmbeddingSet.open`; or the set holds no row of `modality`.
    """
    source = _SetSource(EmbeddingSet.open(path), MODALITIES if modality is None else (modality,))
    dataset: ray.data.Dataset = ray.data.read_datasource(source)
    return dataset


class _SetSource(Datasource):
    """The shards of an embedding set: each is read as one table."""

    def __init__(self, embedding_set: EmbeddingSet, modalities: Sequence[Modality]):
        super().__init__()  # type: ignore[no-untyped-call]
        encoders = embedding_set.card.encoders
        self._shards = [(modality, shard) for modality in modalities for shard in embedding_set.shards(modality)]
        if not self._shards:
            raise EmbeddingSetError(
                f"embedding set {embedding_set.path} holds no {' and no '.join(modalities)} rows; encode a corpus that "
                "has some"
            )
        self._dims = {modality: encoders[modality].dim for modality, _ in self._shards}

    @override
    def estimate_inmemory_data_size(self) -> int:
        return sum(self._size(modality, shard) for modality, shard in self._shards)

    @override
    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Give each task a run of shards, about as many rows as the others get."""
        tensor = len(set(self._dims.values())) == 1
        tasks = []
        for places in np.array_split(np.arange(len(self._shards)), min(parallelism, len(self._shards))):
            shards = [self._shards[place] for place in places]
            metadata = BlockMetadata(
                num_rows=sum(shard_rows(shard, self._dims[modality]) for modality, shard in shards),
                size_bytes=sum(self._size(modality, shard) for modality, shard in shards),
                input_files=tuple(str(shard) for _, shard in shards),
                exec_stats=None,
            )
            read: Callable[[], Iterable[pa.Table]] = partial(_tables, shards, tensor=tensor)
            tasks.append(ReadTask(read, metadata, per_task_row_limit=per_task_row_limit))
        return tasks

    def _size(self, modality: Modality, shard: Path) -> int:
        dim = self._dims[modality]
        return shard_rows(shard, dim) * (4 * dim + TEXT_BYTES)


def _tables(shards: Sequence[tuple[Modality, Path]], *, tensor: bool) -> Iterator[pa.Table]:
    """Read shards one after the other, as tables in the layout of `read_set`."""
    look_for_pandas()
    for modality, shard in shards:
        table = read_columns(shard, [*IDENTITY, "vector"])
        vectors = table.column("vector").combine_chunks()
        dim = vectors.type.list_size
        flat = vectors.flatten().cast(pa.float32())
        if tensor:
            kind = pa.fixed_shape_tensor(pa.float32(), [dim])
            column = pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, dim))
        else:
            offsets = pa.array(np.arange(0, len(flat) + 1, dim, dtype=np.int32))
            column = pa.ListArray.from_arrays(offsets, flat)
        table = table.set_column(table.schema.get_field_index("vector"), "vector", column)
        yield table.add_column(0, "modality", pa.array([modality] * len(table), pa.string()))
