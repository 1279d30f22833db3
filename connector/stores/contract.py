"""The Store contract: what modalign needs of a store of collections, wherever it runs.

`EdgeStore` (the Qdrant engine in this process) and `QdrantStore` (a server or a cluster) implement it. One test suite
runs over every store, `tests/connector/stores/test_contract.py`. A method that reads or writes takes the name of a
collection or of an alias.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from connector.errors import PointsRefusedError
from connector.stores.collection import CollectionConfig, CollectionInfo, SearchLimits, SettingDifference, VectorConfig
from connector.stores.filter_lowering import lowered
from connector.stores.filters import check_filter, condition_names
from connector.stores.layout import OVERSAMPLING, Datatype, Layout, PayloadKind
from connector.stores.payload_checks import payload_fault
from connector.stores.payload_kinds import WORDS, check_kinds
from connector.stores.points import Hit, IdRange, Points, Record
from connector.stores.search_options import SearchOptions
from connector.stores.vector_checks import check_vectors, lost_as_float16

if TYPE_CHECKING:
    from qdrant_client.models import Filter

    from connector.stores.replicas import Replicas


class Store(ABC):
    """A store of collections. Use as a context manager.

    Attributes:
        url: the address by which it was reached, without secrets. SQL keeps it, and messages name the store by it.
    """

    url: str

    @property
    def addresses(self) -> Sequence[str]:
        """All addresses by which this store can be reached, as `url`."""
        return [self.url]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Make everything durable and release all resources."""

    @abstractmethod
    def collections(self) -> list[str]:
        """Return the names of all collections, sorted."""

    def exists(self, name: str) -> bool:
        """Say whether there is a collection or an alias of this name.

        Raises:
            AccessDeniedError: the key does not show it. `collections` and `aliases` leave out what it does not show.
        """
        return name in self.collections() or name in self.aliases()

    def check_may_write(self, name: str) -> None:  # noqa: B027  a store without keys allows everything
        """Return if the key may write points into a collection. Nothing is changed.

        Raises:
            AccessDeniedError: it may not.
        """

    def check_may_manage(self) -> None:  # noqa: B027  as above
        """Return if the key may create and drop collections, and change aliases. Nothing is changed.

        Raises:
            AccessDeniedError: it may not. A key that may sees all collections and aliases.
        """

    @abstractmethod
    def check_layout(self, layout: Layout) -> None:
        """Return if this store can create a collection with this layout.

        Raises:
            SettingsError: it cannot; the message names the setting and the reason.
        """

    @abstractmethod
    def create(self, name: str, config: CollectionConfig) -> None:
        """Create a collection with its payload indexes: whole, or not at all.

        Raises:
            StoreError: it exists.
            SettingsError: this store does not support the layout.
        """

    @abstractmethod
    def drop(self, name: str) -> None:
        """Delete a collection, its points and the aliases that point to it.

        No-op if the collection does not exist. Aliases are not resolved.
        """

    @abstractmethod
    def describe(self, name: str) -> CollectionInfo:
        """Describe a collection.

        Raises:
            CollectionNotFoundError: there is none.
        """

    def metadata(self, name: str, *, retry: bool = True) -> Mapping[str, Any]:
        """Return the metadata of a collection.

        Args:
            name: collection or alias.
            retry: try again what fails for a time, as every other method does.

        Raises:
            CollectionNotFoundError: there is no such collection.
            StoreUnavailableError: it cannot be read now, for example because a node that holds it is away.
        """
        return self.describe(name).metadata

    @abstractmethod
    def add_metadata(self, name: str, metadata: Mapping[str, Any]) -> None:
        """Add names and values to the metadata of a collection, in place of values that these names have.

        Aliases are not resolved.

        Raises:
            CollectionNotFoundError: there is no such collection.
        """

    @abstractmethod
    def add_payload_index(self, name: str, field: str, kind: PayloadKind) -> None:
        """Index a payload field that has no index, of a collection that may have points.

        Aliases are not resolved.

        Args:
            name: of the collection.
            field: path of the field.
            kind: of its values.

        Raises:
            CollectionNotFoundError: there is no such collection.
        """

    @abstractmethod
    def setting_differences(self, name: str, config: CollectionConfig) -> list[SettingDifference]:
        """Compare the settings of a collection, payload indexes included, with those that it was created with.

        What the engine chose itself, because `config` leaves it open, is not compared.

        Raises:
            CollectionNotFoundError: there is no such collection.
        """

    @abstractmethod
    def restore_settings(self, name: str, config: CollectionConfig) -> None:
        """Give a collection the settings of `config` again, as far as the engine can change them.

        Payload indexes and metadata that it has beyond `config` stay.
        """

    def upsert(self, name: str, points: Points) -> None:
        """Write points; a point of the same id is replaced. All vectors are checked before any is written.

        Raises:
            VectorError: a vector has another dimension, is not finite as float32, is zero under Cosine, or has values
                that are no integers of a collection of uint8.
            PointsRefusedError: payloads that cannot be stored, vectors that float16 would overflow or underflow, or
                points that the engine refuses; all others are written.
            CollectionNotFoundError: there is no such collection or named vector.
        """
        vectors, datatype = self.vectors(name), self.datatype(name)
        check_vectors(name, points, vectors, datatype)
        refused = lost_as_float16(name, points, vectors[points.vector_name], datatype)
        refused |= {row: fault for row, payload in enumerate(points.payloads) if (fault := payload_fault(payload))}
        valid = [row for row in range(len(points.ids)) if row not in refused]
        try:
            if valid:
                self._upsert(name, points.take(valid) if refused else points)
        except PointsRefusedError as error:
            refused |= {valid[row]: fault for row, fault in error.refused.items()}
        if refused:
            raise PointsRefusedError(f"collection {name}", refused)

    @abstractmethod
    def _upsert(self, name: str, points: Points) -> None:
        """Write checked points, at least one.

        Raises:
            PointsRefusedError: the engine refuses some; all others are written.
        """

    @abstractmethod
    def flush(self, name: str) -> None:
        """Return once everything written so far survives a power cut."""

    @abstractmethod
    def delete(self, name: str, ids: Sequence[str]) -> None:
        """Delete points; unknown ids are ignored."""

    @abstractmethod
    def retrieve(
        self, name: str, ids: Sequence[str], *, vector_name: str | None = None, consistent: bool = False
    ) -> list[Record]:
        """Return the points with these ids, in any order; unknown ids are left out.

        Args:
            name: collection or alias.
            ids: of the points.
            vector_name: return this vector with each point.
            consistent: leave out points that the replicas of a cluster do not hold alike, as far as they can be asked.
        """

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
        consistent: bool = False,
    ) -> list[list[Hit]]:
        """Return up to `k` hits for each query, best first.

        Args:
            name: collection or alias.
            vector_name: the vector of the points to compare with; points without it are never hits.
            queries: vectors (n, d), n of at least 1.
            k: most hits a query.
            filter: only points that match it.
            exact: compare with every point instead of searching the HNSW graph.
            ef: `hnsw_ef`, the candidates that HNSW search keeps; None: Qdrant's default, `ef_construct`.
            with_payload: whether hits carry their payload, or which fields of it.
            quantized: search the quantized vectors, if the collection has some.
            oversampling: of a quantized collection: fetch so many times `k` by the quantized vectors.
            rescore: of a quantized collection: order these by the full vectors.
            consistent: leave out hits that the replicas of a cluster do not find alike, as far as they can be asked.

        Raises:
            FilterError: stores would understand the filter in different ways, or this one does not support it.
            ExactRefusedError: the store answers no exact searches.
        """
        understood = self._understood(name, filter)
        options = SearchOptions(understood, exact, ef, with_payload, quantized, oversampling, rescore, consistent)
        return self._search(name, vector_name, queries, k, options)

    @abstractmethod
    def _search(
        self, name: str, vector_name: str, queries: npt.NDArray[np.floating], k: int, options: SearchOptions
    ) -> list[list[Hit]]:
        """Search with checked options."""

    def has_graph(self, name: str) -> bool:
        """Say whether an HNSW search of a collection or alias goes along a graph, which may miss points.

        Without one, such a search compares with every point. Replicas on other nodes count as a graph, because which
        of them answers is not known.
        """
        info = self.describe(name)
        return info.indexed > 0 or info.has_replicas

    def search_limits(self, name: str) -> SearchLimits:
        """Return what searches of a collection or alias are limited to, as far as known; more is lowered to it."""
        return SearchLimits()

    def scroll(
        self,
        name: str,
        *,
        vector_name: str | None = None,
        filter: "Filter | None" = None,
        page: int = 1000,
        consistent: bool = False,
        ids: IdRange | None = None,
    ) -> Iterator[list[Record]]:
        """Yield all points that match `filter` in pages of at most `page`, with the vector `vector_name`.

        They come in the order of their ids: integers, then UUIDs.

        Args:
            name: collection or alias.
            vector_name: return this vector with each point.
            filter: only points that match it.
            page: most points at once.
            consistent: leave out points that the replicas of a cluster do not hold alike, as far as they can be asked.
            ids: only points with ids in this range; None: all.

        Raises:
            FilterError: as `search`; at once, not with the first page.
        """
        within = ids or IdRange(None, None)
        pages = self._scroll(
            name,
            vector_name=vector_name,
            filter=self._understood(name, filter),
            page=page,
            consistent=consistent,
            first=within.first,
        )
        return _until_end(pages, within)

    @abstractmethod
    def _scroll(
        self,
        name: str,
        *,
        vector_name: str | None,
        filter: "Filter | None",
        page: int,
        consistent: bool,
        first: str | None,
    ) -> Iterator[list[Record]]:
        """Yield the points that match a checked and rewritten filter, in the order of their ids, from `first` on."""

    def count(self, name: str, *, filter: "Filter | None" = None, consistent: bool = False) -> int:
        """Count points exactly.

        Args:
            name: collection or alias.
            filter: only points that match it.
            consistent: where replicas of a cluster hold different numbers, count the smallest of each shard, as far as
                they can be asked.

        Raises:
            FilterError: as `search`.
        """
        return self._count(name, filter=self._understood(name, filter), consistent=consistent)

    @abstractmethod
    def _count(self, name: str, *, filter: "Filter | None", consistent: bool) -> int:
        """Count the points that match a checked and rewritten filter."""

    def replicas(self, name: str) -> "Replicas | None":
        """Return the replicas of a collection on the nodes of a cluster; None: it is in one place alone."""
        return None

    def replica_differences(self, name: str) -> list[str]:
        """Say how replicas of one shard differ in their number of points, a sentence for each shard."""
        return []

    def lost_replicas(self, name: str) -> list[str]:
        """Say which shards have fewer replicas than they should, a sentence for each shard with what to do."""
        return []

    def _understood(self, name: str, filter: "Filter | None") -> "Filter | None":
        """Check a filter and rewrite it, so that every store and every payload index takes it alike.

        Only an index of kind `text` makes words of a text: without one, stores compare texts in different ways.
        """
        if filter is None:
            return None
        names = condition_names(filter)
        self._check_conditions(names)
        check_filter(filter)
        if names & WORDS:
            check_kinds(filter, self.payload_indexes(name))
        return lowered(filter)

    @abstractmethod
    def _check_conditions(self, names: Set[str]) -> None:
        """Return if the engine has all conditions of these classes; one that it ignores, every point would match.

        Raises:
            FilterError: it has not; the message names the condition.
        """

    def payload_indexes(self, name: str) -> Mapping[str, str]:
        """Return the kind of each payload index of a collection, by the path of its field.

        An index of words that makes other words than modalign's own is left out.
        """
        return self.describe(name).payload_indexes

    @abstractmethod
    def ready(self, name: str) -> CollectionInfo:
        """Build the index and return when nothing is left to build, with the points that all replicas hold.

        Raises:
            StoreUnavailableError: the index was not built in time.
        """

    @abstractmethod
    def aliases(self) -> dict[str, str]:
        """Return `{alias: collection}`."""

    @abstractmethod
    def set_aliases(self, aliases: Mapping[str, str]) -> None:
        """Point each alias to its collection, in one request. An alias that exists is replaced, never deleted.

        A server saves them one after the other: if it is killed, some lead to their collections and some where they
        led before. The same call again finishes it.

        Raises:
            CollectionNotFoundError: a target is no collection. No alias changes.
            StoreError: an alias has the name of a collection. No alias changes.
        """

    @abstractmethod
    def vectors(self, name: str) -> Mapping[str, VectorConfig]:
        """Return the named vectors of a collection; called for every batch."""

    @abstractmethod
    def datatype(self, name: str) -> Datatype:
        """Return the type of a collection's stored vectors; called for every batch."""


def _until_end(pages: Iterator[list[Record]], ids: IdRange) -> Iterator[list[Record]]:
    for page in pages:
        if ids.holds(page[-1].id):
            yield page
            continue
        if inside := [record for record in page if ids.holds(record.id)]:
            yield inside
        return
