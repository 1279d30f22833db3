"""Compare the rows of an embedding set with the points that a release holds of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from alignment.distance import Distance
from alignment.modality import Modality
from alignment.sets.rows import Rows
from alignment.vectors import FloatArray
from connector.releases.aligned_payload import ALIGNED, unpacked
from connector.releases.caption_payload import release_rows
from connector.releases.points import lowered, project
from connector.releases.release import Release
from connector.stores.contract import Store
from connector.stores.payload_checks import same_stored
from connector.stores.points import Payload, Points, Record

# How far apart vectors may lie that were computed from the same numbers, relative to their length. The rounding of a
# float32 matrix product depends on its number of rows. Collections of a smaller datatype round what they store.
TOLERANCE = {"float32": 1e-4, "float16": 2e-3, "uint8": 1e-1}


@dataclass(frozen=True, slots=True)
class ComparedBatch:
    """A batch of rows as points, and the positions of points that the collection lacks or holds otherwise.

    Attributes:
        points: what the collection should hold.
        keys: of the points' items.
        missing: positions that the collection has no point for.
        differing: positions whose payload or vector differs.
        unlike: those of `differing` whose payload differs: the content, group or fields of the item have changed.
        vectors: number of vectors compared.
    """

    points: Points
    keys: Sequence[str]
    missing: list[int]
    differing: list[int]
    unlike: list[int]
    vectors: int

    def names(self, positions: Sequence[int]) -> list[str]:
        """Name items: `image:1F436`."""
        return [f"{self.points.vector_name}:{self.keys[position]}" for position in positions]


def compare_points(release: Release, store: Store, rows: Rows, with_vector: npt.NDArray[np.bool_]) -> ComparedBatch:
    """Compare rows with their points: every payload, and the vector where the mask `with_vector` (n,) is True."""
    projected = project(release.alignment, release_rows(release, rows), release.indexes)
    points = lowered(release, projected)
    chosen = {key for key, is_chosen in zip(rows.keys, with_vector, strict=True) if is_chosen}
    ids = {id_ for id_, key in zip(points.ids, projected.rows.keys, strict=True) if key in chosen}
    missing, differing, unlike = _differences(release, store, points, ids)
    return ComparedBatch(points, projected.rows.keys, missing, differing, unlike, len(ids))


def lost_writes(release: Release, store: Store, points: Points) -> list[int]:
    """Read points back; return the positions of those that a release lacks or holds otherwise.

    Args:
        points: as they were written; with vectors of shape (n, 0), payloads alone are compared.
    """
    missing, differing, _ = _differences(release, store, points, set(points.ids if points.vectors.shape[1] else ()))
    return sorted(missing + differing)


def _differences(
    release: Release, store: Store, points: Points, with_vector: set[str]
) -> tuple[list[int], list[int], list[int]]:
    """Return the positions of points that are missing, of those that differ, and of those with another payload.

    Args:
        with_vector: ids of the points whose vectors are compared too.
    """
    stored = _stored(release, store, points, with_vector)
    tolerance = TOLERANCE[store.datatype(release.name)]
    cosine = release.lowerings[cast(Modality, points.vector_name)].distance is Distance.COSINE
    missing: list[int] = []
    differing: list[int] = []
    unlike: list[int] = []
    for position, id_ in enumerate(points.ids):
        record, expected = stored.get(id_), points.payloads[position]
        if record is None:
            missing.append(position)
        elif not same_stored(_described(expected), _described(record.payload)):
            differing.append(position)
            unlike.append(position)
        elif not _same_aligned(expected, record.payload) or (
            id_ in with_vector and not _close(points.vectors[position], record.vector, cosine, tolerance)
        ):
            differing.append(position)
    return missing, differing, unlike


def _stored(release: Release, store: Store, points: Points, with_vector: set[str]) -> dict[str, Record]:
    """Read points back, with their vector where the id is in `with_vector`."""
    records: list[Record] = []
    if others := [id_ for id_ in points.ids if id_ not in with_vector]:
        records += store.retrieve(release.name, others, consistent=True)
    if with_vector:
        chosen = sorted(with_vector)
        records += store.retrieve(release.name, chosen, vector_name=points.vector_name, consistent=True)
    return {record.id: record for record in records}


def _described(payload: Payload) -> Payload:
    """Return the fields of a payload that describe its item."""
    if ALIGNED not in payload:
        return payload
    return {name: value for name, value in payload.items() if name != ALIGNED}


def _same_aligned(expected: Payload, stored: Payload) -> bool:
    if expected.get(ALIGNED) == stored.get(ALIGNED):
        return True
    if ALIGNED not in expected or not isinstance(stored.get(ALIGNED), str):
        return False
    try:
        ours, theirs = unpacked([expected[ALIGNED]])[0], unpacked([stored[ALIGNED]])[0]
    except ValueError:  # the stored text is no vector
        return False
    return _close(ours, theirs, False, TOLERANCE["float32"])


def _close(expected: FloatArray, stored: FloatArray | None, cosine: bool, tolerance: float) -> bool:
    """Compare vectors (d,); under cosine Qdrant stores the direction alone."""
    if stored is None or stored.shape != expected.shape:
        return False
    length = np.linalg.norm(expected)
    if cosine:
        expected, length = expected / length, np.float32(1)
    return bool(np.linalg.norm(expected - stored) <= tolerance * max(float(length), 1e-12))
