"""Collections as values: what one is created with, its present state, and how the two differ."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from alignment.distance import Distance
from connector.stores.layout import Layout


@dataclass(frozen=True, slots=True)
class VectorConfig:
    """A named vector: its dimension and the distance it is compared by."""

    dim: int
    distance: Distance


@dataclass(frozen=True, slots=True)
class CollectionConfig(Layout):
    """A collection to create: its vectors and their layout.

    Attributes:
        vectors: by name; a point carries any of them.
        metadata: JSON that is kept with the collection: the provenance chain.
    """

    vectors: Mapping[str, VectorConfig]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """The present state of a collection.

    Attributes:
        points: exact number of points.
        indexed: vectors in an HNSW graph; 0 means that search is exact brute force.
        layout: fields of a `Layout` that the engine knows of the collection. How searches use quantized vectors is
            not among them: a request says that.
        status: as the engine calls it.
    """

    name: str
    vectors: Mapping[str, VectorConfig]
    metadata: Mapping[str, Any]
    points: int
    indexed: int
    layout: Mapping[str, Any] = field(default_factory=dict)
    status: str = "green"

    @property
    def payload_indexes(self) -> Mapping[str, str]:
        """The kind of each payload index, by the path of its field as the engine prints it."""
        indexes: Mapping[str, str] = self.layout.get("payload_indexes", {})
        return indexes

    @property
    def m(self) -> int | None:
        """`m` of the HNSW graph; None: the engine does not tell."""
        return self.layout.get("m")

    @property
    def ef_construct(self) -> int | None:
        """`ef_construct` of the HNSW graph; None: the engine does not tell."""
        return self.layout.get("ef_construct")

    @property
    def quantization(self) -> str | None:
        """Quantization of the vectors that are searched, by its name in a layout; None: there is none."""
        return self.layout.get("quantization")

    @property
    def has_replicas(self) -> bool:
        """Whether each shard has replicas on several nodes, of which a search asks one."""
        return (self.layout.get("replication_factor") or 1) > 1


class SettingDifference(NamedTuple):
    """A setting of a collection that is not what it was created with: something else changed it.

    Attributes:
        setting: as the engine calls it, `hnsw_config.m`, or `payload index FIELD`.
        expected: what it was created with; None: nothing.
        present: what it is.
        restorable: whether the engine can change it back in a collection that exists.
    """

    setting: str
    expected: Any
    present: Any
    restorable: bool = True

    def __str__(self) -> str:
        return f"{self.setting} is {_shown(self.present)}, SQL recorded {_shown(self.expected)}"


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)


class SearchLimits(NamedTuple):
    """The largest `ef` and `oversampling` that searches of a collection may use; None: no limit is known."""

    ef: int | None = None
    oversampling: float | None = None
