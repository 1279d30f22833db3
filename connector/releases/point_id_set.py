"""Sets of point ids that do not fit into memory."""

import tempfile
from collections.abc import Iterator, Sequence
from typing import Self
from uuid import UUID

import numpy as np
import numpy.typing as npt

ID_BYTES = 17  # a mark for integers, which modalign gives to no point, and 16 bytes of a UUID
AT_ONCE = 4096


class PointIds:
    """Point ids in a temporary file, 17 bytes each: add all of them first, then ask. A context manager.

    >>> with PointIds() as ids, PointIds() as others:
    ...     ids.add(["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"])
    ...     others.add(["00000000-0000-0000-0000-000000000002"])
    ...     list(ids.without(others))
    [['00000000-0000-0000-0000-000000000001']]
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed when this is
        self._count = 0
        self._sorted: npt.NDArray[np.bytes_] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sorted = None
        self._file.close()

    def add(self, ids: Sequence[str]) -> None:
        """Add ids; one that is added again counts once."""
        self._file.seek(0, 2)
        self._file.write(b"".join(map(_packed, ids)))
        self._count += len(ids)
        self._sorted = None

    def distinct(self) -> int:
        """Count the different ids that were added. No `len`: none added yet must not count as none given."""
        ids = self._in_order()
        # A batch begins with the last id of the one before, to tell whether the next is another one.
        batches = (ids[max(0, start - 1) : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE))
        return len(ids) - sum(int((batch[1:] == batch[:-1]).sum()) for batch in batches)

    def without(self, others: "PointIds") -> Iterator[list[str]]:
        """Yield the ids that are not among `others`, in batches."""
        ids = self._in_order()
        for start in range(0, len(ids), AT_ONCE):
            batch = np.unique(ids[start : start + AT_ONCE])
            if len(missing := batch[~others._holds(batch)]):
                yield [_printed(id_) for id_ in missing]

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Return those of `ids` that are not in here, in their order."""
        packed = np.array([*map(_packed, ids)], f"S{ID_BYTES}")
        return [id_ for id_, held in zip(ids, self._holds(packed), strict=True) if not held]

    def _holds(self, packed: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
        ids = self._in_order()
        if not len(ids):
            return np.zeros(len(packed), bool)
        places = np.minimum(np.searchsorted(ids, packed), len(ids) - 1)
        held: npt.NDArray[np.bool_] = ids[places] == packed
        return held

    def _in_order(self) -> npt.NDArray[np.bytes_]:
        """Sort the file in place; the system keeps of it in memory what there is room for."""
        if self._sorted is None:
            self._file.flush()
            if not self._count:
                return np.empty(0, f"S{ID_BYTES}")
            self._sorted = np.memmap(self._file, f"S{ID_BYTES}", "r+", shape=(self._count,))
            self._sorted.sort()
        return self._sorted


def _packed(id_: str) -> bytes:
    return b"i" + int(id_).to_bytes(ID_BYTES - 1) if id_.isdecimal() else b"u" + bytes.fromhex(id_.replace("-", ""))


def _printed(packed: bytes) -> str:
    kind, number = packed[:1], packed[1:].ljust(ID_BYTES - 1, b"\0")  # numpy takes zeros at the end for padding
    return str(int.from_bytes(number)) if kind == b"i" else str(UUID(bytes=number))
