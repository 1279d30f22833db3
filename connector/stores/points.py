"""Points as values: as they are written, stored and found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


def engine_id(id_: str) -> str | int:
    """Return a point id as engines take it: integers are numbers there, and no texts.

    >>> engine_id("5"), engine_id("00000000-0000-0000-0000-000000000005")
    (5, '00000000-0000-0000-0000-000000000005')
    """
    return int(id_) if id_.isdecimal() else id_
