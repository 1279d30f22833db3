"""Points as values: as they are written, stored and found."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np

from alignment.vectors import FloatArray

Payload = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Points:
    """A batch of points that carry the same named vector: n ids, vectors (n, d), payloads."""

    vector_name: str
    ids: Sequence[str]
    vectors: FloatArray
    payloads: Sequence[Payload]

    def take(self, rows: Sequence[int]) -> "Points":
        """Return the points at `rows`."""
        ids, payloads = [self.ids[row] for row in rows], [self.payloads[row] for row in rows]
        return Points(self.vector_name, ids, self.vectors[list(rows)], payloads)

    @classmethod
    def concatenate(cls, parts: Sequence["Points"]) -> "Points":
        """Join parts of one named vector, at least one, in their order."""
        if len(parts) == 1:
            return parts[0]
        ids, payloads = [id_ for part in parts for id_ in part.ids], [p for part in parts for p in part.payloads]
        return cls(parts[0].vector_name, ids, np.concatenate([part.vectors for part in parts]), payloads)


class Record(NamedTuple):
    """A stored point. `vector` (d,) is None unless asked for; Cosine collections store normalised vectors.

    The id is a UUID, or the digits of an integer. Modalign gives no point an integer; another program may.
    """

    id: str
    vector: FloatArray | None
    payload: Payload


class Hit(NamedTuple):
    """A point with the raw score of a search: a similarity under Cosine and Dot, a distance under the others."""

    id: str
    raw_score: float
    payload: Payload


class IdRange(NamedTuple):
    """Ids from `first` on and before `end`, in the order of a scroll; None: no end on that side."""

    first: str | None
    end: str | None

    def __str__(self) -> str:
        return f"points from {self.first or 'the first'} to {self.end or 'the last'}"

    def holds(self, id_: str) -> bool:
        """Whether it holds an id that is not before `first`. Integers are before all UUIDs."""
        return self.end is None or id_.isdecimal() or id_ < self.end


def id_ranges(count: int) -> list[IdRange]:
    """Cut all ids into ranges of as many UUIDs: those that modalign gives are spread evenly over them.

    >>> [str(ids) for ids in id_ranges(2)]
    ['points from the first to 80000000-0000-0000-0000-000000000000', \
'points from 80000000-0000-0000-0000-000000000000 to the last']
    """
    starts = [str(UUID(int=2**128 * number // count)) for number in range(1, count)]
    return [IdRange(first, end) for first, end in pairwise([None, *starts, None])]


def engine_id(id_: str) -> str | int:
    """Return a point id as engines take it: integers are numbers there, and no texts.

    >>> engine_id("5"), engine_id("00000000-0000-0000-0000-000000000005")
    (5, '00000000-0000-0000-0000-000000000005')
    """
    return int(id_) if id_.isdecimal() else id_
