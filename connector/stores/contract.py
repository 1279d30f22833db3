"""The Store contract: what modalign needs of a Qdrant collection, however it runs.

Two implementations behave alike (one test suite runs over both): `EdgeStore`, the engine in this process, and
`QdrantStore`, a server. A name given to a method that reads or writes may be a collection or an alias.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from alignment.errors import VectorError
from alignment.metrics import Distance
from alignment.vectors import ZERO, FloatArray, invalid_rows
from connector.errors import CollectionNotFoundError, PointsRefusedError
from connector.stores.layout import OVERSAMPLING, Datatype, Layout
from connector.stores.payload_checks import payload_fault

if TYPE_CHECKING:
    from qdrant_client.models import Filter


Payload = dict[str, Any]


@dataclass(frozen=True, slots=True)
class VectorConfig:
    """A named vector: its dimension and how Qdrant compares it."""

    dim: int
    distance: Distance


@dataclass(frozen=True, slots=True)
class CollectionConfig(Layout):
    """A collection to be created: its vectors, and how they are laid out.

    Attributes:
        vectors: named vectors; a point carries any of them.
        metadata: JSON that is kept with the collection: the provenance chain.
    """

    vectors: Mapping[str, VectorConfig]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """What a collection is at the moment.

    Attributes:
        points: exact number of points.
        indexed: vectors in an HNSW graph; 0 means that search is exact brute force.
        payload_indexes: payload fields that filters have an index for.
        m, ef_construct: of the graph.
        quantization: of the copy that searches walk over, by its name in a layout; None: there is none.
        status: in the words of the engine.
    """

    name: str
    vectors: Mapping[str, VectorConfig]
    metadata: Mapping[str, Any]
    points: int
    indexed: int
    payload_indexes: Sequence[str] = ()
    m: int | None = None
    ef_construct: int | None = None
    quantization: str | None = None
    status: str = "green"


@dataclass(frozen=True, slots=True)
class Points:
    """A batch of points that carry the same named vector: n ids (UUIDs), vectors (n, d), payloads."""

    vector_name: str
    ids: Sequence[str]
    vectors: FloatArray
    payloads: Sequence[Payload]

    def take(self, rows: Sequence[int]) -> "Points":
        """Return the points at `rows`."""
        ids, payloads = [self.ids[row] for row in rows], [self.payloads[row] for row in rows]
        return Points(self.vector_name, ids, self.vectors[list(rows)], payloads)


class Hit(NamedTuple):
    """A found point with Qdrant's raw score: a similarity under Cosine and Dot, a distance under the others."""

    id: str
    raw_score: float
    payload: Payload


class Record(NamedTuple):
    """A stored point; `vector` is (d,) where it was asked for. Cosine collections store normalised vectors."""

    id: str
    vector: FloatArray | None
    payload: Payload


class Store(ABC):
    """A Qdrant, wherever it runs. Use as a context manager."""

    url: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Make everything durable and let go of it."""

    @abstractmethod
    def collections(self) -> list[str]:
        """Return the names of all collections, sorted."""

    @abstractmethod
    def check_layout(self, layout: Layout) -> None:
        """Return if this store can lay out a collection so.

        Raises:
            SettingsError: it cannot; the message says which setting, and why.
        """

    @abstractmethod
    def create(self, name: str, config: CollectionConfig) -> None:
        """Create a collection with its payload indexes: whole, or not at all.

        Raises:
            StoreError: it exists.
            SettingsError: this store has not what the layout asks for.
        """

    @abstractmethod
    def drop(self, name: str) -> None:
        """Delete a collection, its points and the aliases that name it.

        Nothing happens where there is none, and an alias is none.
        """

    @abstractmethod
    def describe(self, name: str) -> CollectionInfo:
        """Describe a collection.

        Raises:
            CollectionNotFoundError: there is none.
        """

    def upsert(self, name: str, points: Points) -> None:
        """Write points; a point of the same id is replaced. All vectors are checked before any is written.

        Raises:
            VectorError: a vector of another dimension, not finite as float32, zero under Cosine, or with values that
                the collection's datatype cannot hold.
            PointsRefusedError: some payloads cannot be stored, or Qdrant refuses some points; the others are written.
            CollectionNotFoundError: there is no such collection or named vector.
        """
        self._check(name, points)
        refused = {row: fault for row, payload in enumerate(points.payloads) if (fault := payload_fault(payload))}
        sound = [row for row in range(len(points.ids)) if row not in refused]
        try:
            if sound:
                self._upsert(name, points.take(sound) if refused else points)
        except PointsRefusedError as error:
            refused |= {sound[row]: fault for row, fault in error.refused.items()}
        if refused:
            raise PointsRefusedError(f"collection {name}", refused)

    @abstractmethod
    def _upsert(self, name: str, points: Points) -> None:
        """Write checked points, at least one; raises a `PointsRefusedError` for those that Qdrant refuses."""

    @abstractmethod
    def flush(self, name: str) -> None:
        """Return once everything written so far survives a power cut."""

    @abstractmethod
    def delete(self, name: str, ids: Sequence[str]) -> None:
        """Delete points; unknown ids mean nothing."""

    @abstractmethod
    def retrieve(self, name: str, ids: Sequence[str], *, vector_name: str | None = None) -> list[Record]:
        """Return the points with these ids, those that exist, in any order."""

    @abstractmethod
    def search(
        self,
        name: str,
        vector_name: str,
        queries: npt.NDArray[np.floating],
        k: int,
        *,
        filter: "Filter | None" = None,
        exact: bool = False,
        ef: int | None = None,
        with_payload: bool | Sequence[str] = True,
        quantized: bool = True,
        oversampling: float = OVERSAMPLING,
        rescore: bool = True,
    ) -> list[list[Hit]]:
        """Search for each of the queries (n, d): up to `k` hits each, best first.

        Args:
            name: collection or alias.
            vector_name: which vector of the points to compare with; points without it are never found.
            queries: vectors (n, d), at least one.
            k: how many hits.
            filter: only points that match it.
            exact: compare with every point instead of walking the graph.
            ef: how many of the points that it met a walk goes on from; None: Qdrant's default, `ef_construct`.
            with_payload: whether hits carry their payload, or which fields of it.
            quantized: walk over the quantized vectors, where the collection has some.
            oversampling: of a quantized collection: how many times `k` to take from the quantized vectors.
            rescore: of a quantized collection: order those by the vectors themselves.
        """

    @abstractmethod
    def scroll(
        self, name: str, *, vector_name: str | None = None, filter: "Filter | None" = None, page: int = 1000
    ) -> Iterator[list[Record]]:
        """Yield all points that match `filter` in pages of at most `page`, with the vector `vector_name`."""

    @abstractmethod
    def count(self, name: str, *, filter: "Filter | None" = None) -> int:
        """Count points exactly."""

    @abstractmethod
    def ready(self, name: str) -> CollectionInfo:
        """Build the index and return when nothing is left to build.

        Raises:
            StoreUnavailableError: the index was not built in time.
        """

    @abstractmethod
    def aliases(self) -> dict[str, str]:
        """Return `{alias: collection}`."""

    @abstractmethod
    def set_aliases(self, aliases: Mapping[str, str]) -> None:
        """Let each alias name its collection: all of them at one moment, for every reader."""

    def _check(self, name: str, points: Points) -> None:
        vectors = self._vectors(name)
        config = vectors.get(points.vector_name)
        if config is None:
            raise CollectionNotFoundError(
                f"collection {name} has no vector {points.vector_name!r}; it has {', '.join(sorted(vectors))}"
            )
        expected = (len(points.ids), config.dim)
        if points.vectors.shape != expected or len(points.payloads) != len(points.ids):
            raise VectorError(
                f"collection {name}: expected vectors of shape {expected} with a payload each, got "
                f"{points.vectors.shape} with {len(points.payloads)} payloads"
            )
        self._check_datatype(name, points)
        harmful = {
            row: reason
            for row, reason in invalid_rows(points.vectors).items()
            if reason != ZERO or config.distance is Distance.COSINE
        }
        if harmful:
            row, reason = next(iter(harmful.items()))
            raise VectorError(
                f"collection {name}: {len(harmful)} of {len(points.ids)} vectors cannot be stored under "
                f"{config.distance}, the first is point {points.ids[row]}: {reason}"
            )

    def _check_datatype(self, name: str, points: Points) -> None:
        """Refuse what the engine would store as something else without a word."""
        datatype = self.datatype(name)
        if datatype == "float32":
            return
        if datatype == "float16":
            held, range_ = np.abs(points.vectors) <= np.finfo(np.float16).max, "values of at most 65504"
        else:
            X = points.vectors
            held, range_ = (X >= 0) & (X <= 255) & (np.floor(X) == X), "whole numbers from 0 to 255"
        if not held.all():
            row, column = np.argwhere(~held)[0]
            raise VectorError(
                f"collection {name} stores {datatype}, which holds {range_}; point {points.ids[row]} has "
                f"{points.vectors[row, column]}: push into a new collection with another datatype"
            )

    @abstractmethod
    def _vectors(self, name: str) -> Mapping[str, VectorConfig]:
        """Return the named vectors of a collection, cheaply."""

    @abstractmethod
    def datatype(self, name: str) -> Datatype:
        """Return the type of a collection's stored vectors, cheaply."""
