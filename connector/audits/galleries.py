"""The queries of an audit and what they search: held-out points, all points, or the folds of a benchmark protocol."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from alignment.modality import MODALITIES, OTHER, Modality
from alignment.plurals import counted
from alignment.retrieval.kinds import HELD_OUT
from alignment.retrieval.protocols import PROTOCOLS, Protocol
from alignment.retrieval.ranks import IntArray, group_codes
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.vectors import invalid_rows
from connector.audits.plan import AuditPlan
from connector.errors import MismatchError
from connector.releases.points import FITTED, NEW, point_id, splits
from connector.releases.release import Release
from connector.stores.points import Record

if TYPE_CHECKING:
    from qdrant_client.models import Filter

NOT_IN_GALLERY = -1
# The end of a caption's key, as readers of corpora write it: the caption's number within its image.
CAPTION_KEY = re.compile(r"#(\d{1,9})$")
HashDraws = npt.NDArray[np.uint64]


class Gallery(ABC):
    """Points that are searched, in parts: each query searches one part, and each point is in one part or in none."""

    @abstractmethod
    def parts(self) -> int:
        """How many parts there are."""

    @abstractmethod
    def condition(self, part: int) -> "Filter | None":
        """Return the filter that the points of a part match; None: every point does."""

    @abstractmethod
    def placed(self, records: Sequence[Record]) -> IntArray:
        """Return the part of each point (n,), `NOT_IN_GALLERY` for those that are not searched."""

    @property
    def is_whole(self) -> bool:
        """Whether all points are searched."""
        return False


class Everything(Gallery):
    """All points."""

    is_whole = True

    @override
    def parts(self) -> int:
        return 1

    @override
    def condition(self, part: int) -> "Filter | None":
        return None

    @override
    def placed(self, records: Sequence[Record]) -> IntArray:
        return np.zeros(len(records), np.int64)


class HeldOut(Gallery):
    """The points that no fit saw: what the recalls on an alignment's card are measured on."""

    @override
    def parts(self) -> int:
        return 1

    @override
    def condition(self, part: int) -> "Filter | None":
        from qdrant_client.models import FieldCondition, Filter, MatchValue  # takes a second to import

        return Filter(must=[FieldCondition(key="split", match=MatchValue(value=HELD_OUT))])

    @override
    def placed(self, records: Sequence[Record]) -> IntArray:
        return np.array(
            [0 if record.payload.get("split") == HELD_OUT else NOT_IN_GALLERY for record in records], np.int64
        )


@dataclass(frozen=True)
class BenchmarkFolds(Gallery):
    """The folds of a benchmark protocol, by the ids of their points."""

    ids: Sequence[Sequence[str]]

    @override
    def parts(self) -> int:
        return len(self.ids)

    @override
    def condition(self, part: int) -> "Filter | None":
        from qdrant_client.models import Filter, HasIdCondition  # takes a second to import

        # No payload says which fold a point is in, so the filter names the points.
        return Filter(must=[HasIdCondition(has_id=list(self.ids[part]))])

    @cached_property
    def _part_of(self) -> Mapping[str, int]:
        return {id_: part for part, ids in enumerate(self.ids) for id_ in ids}

    @override
    def placed(self, records: Sequence[Record]) -> IntArray:
        return np.array([self._part_of.get(record.id, NOT_IN_GALLERY) for record in records], np.int64)


@dataclass(frozen=True, slots=True)
class QuerySet:
    """Queries of one modality, the part of the gallery that each of them searches (n,), and that gallery."""

    rows: Rows
    parts: IntArray
    gallery: Gallery

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: npt.NDArray[np.int64]) -> "QuerySet":
        """Keep the queries with these numbers."""
        return QuerySet(self.rows.take(chosen.tolist()), self.parts[chosen], self.gallery)


def by_protocol(protocol: Protocol, images: Rows, texts: Rows) -> dict[Modality, QuerySet]:
    """Select the queries of a test split by modality; each searches its fold of the other modality.

    Raises:
        MeasureError: the data does not have the protocol's shape.
    """
    folds = protocol.split(*group_codes(images.groups, texts.groups))
    rows: dict[Modality, Rows] = {"image": images, "text": texts}
    chosen: dict[Modality, list[IntArray]] = {
        "image": [fold.images for fold in folds],
        "text": [fold.texts for fold in folds],
    }
    sets: dict[Modality, QuerySet] = {}
    for modality in MODALITIES:
        target = OTHER[modality]
        ids = [[point_id(target, rows[target].keys[row]) for row in part] for part in chosen[target]]
        parts = np.repeat(np.arange(len(folds)), [len(part) for part in chosen[modality]])
        sets[modality] = QuerySet(
            rows[modality].take(np.concatenate(chosen[modality]).tolist()), parts, BenchmarkFolds(ids)
        )
    return sets


@dataclass(frozen=True, slots=True)
class AuditQueries:
    """The queries of an audit.

    Attributes:
        sets: queries by modality.
        draws: hash draws of the groups (g,) of all queries before sampling, by modality.
        warnings: what about the embedding set may not fit the protocol, in words.
    """

    sets: Mapping[Modality, QuerySet]
    draws: Mapping[Modality, HashDraws]
    warnings: Sequence[str] = ()


def hash_draws(names: Sequence[str], seed: int) -> HashDraws:
    """Draw a number for each of n names (n,) by hash; samples take the lowest.

    A name always has the same number. So the same seed keeps selecting the same queries as a set grows, but for
    newcomers with lower numbers, and two audits of it share their queries.
    """
    salt = f"audit {seed}\0".encode()
    return np.array([int.from_bytes(hashlib.sha256(salt + name.encode()).digest()[:8]) for name in names], np.uint64)


def lay_out(release: Release, embedding_set: EmbeddingSet, plan: AuditPlan) -> AuditQueries:
    """Select the queries of each modality as `plan` says, with what they search.

    Memory holds the selected queries, a shard, and a draw for each group: never the whole set.

    Raises:
        EmbeddingSetError: the set lacks a modality.
        MismatchError: the set holds no such queries.
        MeasureError: the set does not have the protocol's shape.
    """
    if plan.protocol is not None:
        whole, warnings = _by_protocol(release, embedding_set, plan.protocol)
        draws = {modality: hash_draws(sorted(set(qs.rows.groups)), plan.seed) for modality, qs in whole.items()}
        sampled = {modality: qs.take(_sample(qs.rows.keys, plan)) for modality, qs in whole.items()}
        return AuditQueries(sampled, draws, warnings)
    gallery = HeldOut() if plan.gallery == HELD_OUT else Everything()
    sets, draws = {}, {}
    for modality in MODALITIES:
        rows, draws[modality] = _queries(release, embedding_set, modality, plan)
        sets[modality] = QuerySet(rows, np.zeros(len(rows), np.int64), gallery)
    return AuditQueries(sets, draws)


def _by_protocol(
    release: Release, embedding_set: EmbeddingSet, name: str
) -> tuple[dict[Modality, QuerySet], list[str]]:
    rows = {modality: embedding_set.load(modality) for modality in MODALITIES}
    for modality, loaded in rows.items():
        if bad := len(loaded) - len(alignable(release, loaded)):
            raise MismatchError(
                f"protocol {name}: {bad} {modality} embeddings of {embedding_set.path} cannot be aligned; encode them "
                "again"
            )
    images, texts, protocol, warnings = rows["image"], rows["text"], PROTOCOLS[name], []
    if protocol.folds > 1 and list(dict.fromkeys(texts.groups)) != images.groups:
        warnings.append(
            f"Images and captions of {embedding_set.path.name} come in different orders. Items that were encoded again "
            f"stand at the end, so the folds of {name}, which follow the order of the images, are not those of the "
            "split. Encode the corpus into a new set."
        )
    return by_protocol(protocol, images, _by_number(texts)), warnings


def _by_number(texts: Rows) -> Rows:
    """Sort captions by the numbers in their keys, because one that was encoded again stands at the end."""
    numbers = [CAPTION_KEY.search(key) for key in texts.keys]
    if not all(numbers):
        return texts  # keys that no reader of modalign wrote
    order = np.argsort([int(match[1]) for match in numbers if match], kind="stable")
    return texts.take(order.tolist())


def _queries(
    release: Release, embedding_set: EmbeddingSet, modality: Modality, plan: AuditPlan
) -> tuple[Rows, HashDraws]:
    """Read the rows to query with, in the order of the set, and return the draws of all groups before sampling.

    Rows that cannot be aligned are left out: a push rejects them.
    """
    draws: list[HashDraws] = []
    parts: list[Rows] = []
    counts = Counter[str]()
    for rows in embedding_set.read(modality):
        sound = rows.take(alignable(release, rows).tolist())
        split = splits(release.alignment, sound)
        counts.update(split)
        if plan.queries == HELD_OUT:
            sound = sound.take([row for row, own in enumerate(split) if own == HELD_OUT])
        draws.append(hash_draws(sorted(set(sound.groups)), plan.seed))
        parts.append(sound.take(_sample(sound.keys, plan).tolist()))
        if plan.sample is not None:
            joined = Rows.concatenate(parts)
            parts = [joined.take(_sample(joined.keys, plan).tolist())]
    queries = Rows.concatenate(parts)
    if not len(queries):
        raise MismatchError(_without_queries(embedding_set, modality, counts))
    return queries, np.unique(np.concatenate(draws))


def _without_queries(embedding_set: EmbeddingSet, modality: Modality, counts: Mapping[str, int]) -> str:
    """Say why a set has no queries of a modality, given how many of its rows that can be aligned have each split."""
    fitted, new = counts.get(FITTED, 0), counts.get(NEW, 0)
    of_set = f"of embedding set {embedding_set.path}"
    if not fitted + new:
        return f"no {modality} row {of_set} can be aligned; encode the corpus again"
    what = f"no {modality} {of_set} is held out: {fitted:,} took part in the fit and {new:,} came since"
    if not new:
        what = (
            f"all {counted(fitted, modality)} {of_set} took part in the fit, so there is no query about an item that "
            "the fit never saw, and how new items are found is not known"
        )
    return (
        f"{what}; audit with pairs that are held out, or ask with all of these by --queries all --gallery all, which "
        "measures new and known items apart"
    )


def _sample(keys: Sequence[str], plan: AuditPlan) -> IntArray:
    """Return the numbers of the sampled keys, ascending."""
    if plan.sample is None or len(keys) <= plan.sample:
        return np.arange(len(keys))
    return np.sort(np.argsort(hash_draws(keys, plan.seed))[: plan.sample])


def alignable(release: Release, rows: Rows) -> IntArray:
    """Return the numbers of the rows that can be aligned."""
    kept = np.ones(len(rows), bool)
    kept[list(invalid_rows(rows.vectors))] = False
    valid = np.flatnonzero(kept)
    projected = release.alignment.projections[rows.modality].unchecked(rows.vectors[valid])
    return np.delete(valid, list(invalid_rows(projected)))
