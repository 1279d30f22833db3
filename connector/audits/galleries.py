"""What the queries of an audit search among: the held-out points, everything, or the folds of a benchmark protocol."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alignment.modality import MODALITIES, Modality
from alignment.retrieval.protocols import PROTOCOLS, Protocol
from alignment.retrieval.ranks import IntArray, group_codes
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.rows import Rows
from alignment.vectors import invalid_rows
from connector.audits.plan import AuditPlan
from connector.errors import MismatchError
from connector.releases.points import HELD_OUT, point_id
from connector.releases.release import Release
from connector.stores.contract import Record

if TYPE_CHECKING:
    from qdrant_client.models import Filter

NOT_IN_GALLERY = -1
# How readers of corpora call the captions of an image.
CAPTION_KEY = re.compile(r"#(\d{1,9})$")
Lots = npt.NDArray[np.uint64]


class Gallery(ABC):
    """Points that are searched, in parts: each query searches one part, and each point is in one part or in none."""

    @abstractmethod
    def parts(self) -> int:
        """How many parts there are."""

    @abstractmethod
    def condition(self, part: int) -> "Filter | None":
        """What the points of a part match; None: everything does."""

    @abstractmethod
    def placed(self, records: Sequence[Record]) -> IntArray:
        """Return the part of each point (n,), `NOT_IN_GALLERY` for those that are not searched."""

    @property
    def is_whole(self) -> bool:
        """Whether everything is searched."""
        return False


class Everything(Gallery):
    """All points."""

    is_whole = True

    def parts(self) -> int:
        """One."""
        return 1

    def condition(self, part: int) -> "Filter | None":
        """None."""
        return None

    def placed(self, records: Sequence[Record]) -> IntArray:
        """Every point is in it."""
        return np.zeros(len(records), np.int64)


class HeldOut(Gallery):
    """The points that no fit saw: what the recalls of an alignment's card are about."""

    def parts(self) -> int:
        """One."""
        return 1

    def condition(self, part: int) -> "Filter | None":
        """Points say so in their payload."""
        from qdrant_client.models import FieldCondition, Filter, MatchValue  # takes a second to import

        return Filter(must=[FieldCondition(key="split", match=MatchValue(value=HELD_OUT))])

    def placed(self, records: Sequence[Record]) -> IntArray:
        """By the payload."""
        return np.array(
            [0 if record.payload.get("split") == HELD_OUT else NOT_IN_GALLERY for record in records], np.int64
        )


@dataclass(frozen=True)
class Folds(Gallery):
    """The folds of a benchmark protocol, by the ids of their points."""

    ids: Sequence[Sequence[str]]

    def parts(self) -> int:
        """As many as the protocol has folds."""
        return len(self.ids)

    def condition(self, part: int) -> "Filter | None":
        """Points are named: no payload says in which fold they are."""
        from qdrant_client.models import Filter, HasIdCondition  # takes a second to import

        return Filter(must=[HasIdCondition(has_id=list(self.ids[part]))])

    @cached_property
    def _part_of(self) -> Mapping[str, int]:
        return {id_: part for part, ids in enumerate(self.ids) for id_ in ids}

    def placed(self, records: Sequence[Record]) -> IntArray:
        """By id."""
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
    """Lay out a test split as a protocol wants it: queries by their modality, among the folds of the other one.

    Raises:
        MeasureError: the data is not of the protocol's shape.
    """
    folds = protocol.split(*group_codes(images.groups, texts.groups))
    rows = {"image": images, "text": texts}
    chosen = {"image": [fold.images for fold in folds], "text": [fold.texts for fold in folds]}
    laid_out: dict[Modality, QuerySet] = {}
    for asking, asked in (("image", "text"), ("text", "image")):
        ids = [[point_id(asked, rows[asked].keys[row]) for row in part] for part in chosen[asked]]  # type: ignore[arg-type]
        parts = np.repeat(np.arange(len(folds)), [len(part) for part in chosen[asking]])
        laid_out[asking] = QuerySet(rows[asking].take(np.concatenate(chosen[asking]).tolist()), parts, Folds(ids))  # type: ignore[index]
    return laid_out


@dataclass(frozen=True, slots=True)
class AuditQueries:
    """What an audit asks.

    Attributes:
        asked: queries by modality.
        groups: lots of the groups (g,) of all queries that there are, drawn or not, by modality.
        notes: what about the set may keep it from what a protocol wants, in words.
    """

    asked: Mapping[Modality, QuerySet]
    groups: Mapping[Modality, Lots]
    notes: Sequence[str] = ()


def hash_draws(names: Sequence[str], seed: int) -> Lots:
    """Draw a lot for each of n names (n,): those with the lowest are taken.

    A name has the same lot whatever else there is. So of a set that has grown the same are drawn, but for newcomers
    with lower lots, and two audits of it share their queries.
    """
    salt = f"audit {seed}\0".encode()
    return np.array([int.from_bytes(hashlib.sha256(salt + name.encode()).digest()[:8]) for name in names], np.uint64)


def lay_out(release: Release, embedding_set: EmbeddingSet, plan: AuditPlan) -> AuditQueries:
    """Lay out the queries of each modality as `plan` says, with what they search.

    In memory are those that are asked with, a shard, and a lot for each group: not the set.

    Raises:
        EmbeddingSetError: the set lacks a modality.
        MismatchError: it holds nothing to query with.
        MeasureError: it is not of the protocol's shape.
    """
    if plan.protocol is not None:
        asked, notes = _by_protocol(release, embedding_set, plan.protocol)
        groups = {modality: hash_draws(sorted(set(each.rows.groups)), plan.seed) for modality, each in asked.items()}
        return AuditQueries({m: each.take(_drawn(each.rows.keys, plan)) for m, each in asked.items()}, groups, notes)
    gallery, asked, groups = HeldOut() if plan.gallery == HELD_OUT else Everything(), {}, {}
    for modality in MODALITIES:
        rows, groups[modality] = _queries(release, embedding_set, modality, plan)
        asked[modality] = QuerySet(rows, np.zeros(len(rows), np.int64), gallery)
    return AuditQueries(asked, groups)


def _by_protocol(
    release: Release, embedding_set: EmbeddingSet, name: str
) -> tuple[dict[Modality, QuerySet], list[str]]:
    rows = {modality: embedding_set.load(modality) for modality in MODALITIES}
    for modality, its in rows.items():
        if bad := len(its) - len(_sound(release, its)):
            raise MismatchError(
                f"protocol {name}: {bad} {modality} embeddings of {embedding_set.path} cannot be aligned; encode them "
                "again"
            )
    images, texts, protocol, notes = rows["image"], rows["text"], PROTOCOLS[name], []
    if protocol.folds > 1 and list(dict.fromkeys(texts.groups)) != images.groups:
        notes.append(
            f"Images and captions of {embedding_set.path.name} come in different orders: where some were encoded "
            f"again, they are at the end now, and the folds of {name}, which are cut in the order of the images, are "
            "not those of the split. Encode the corpus into a new set to have them."
        )
    return by_protocol(protocol, images, _by_number(texts)), notes


def _by_number(texts: Rows) -> Rows:
    """Bring captions into the order of the numbers in their keys: one that was encoded again stands at the end."""
    numbers = [CAPTION_KEY.search(key) for key in texts.keys]
    if not all(numbers):
        return texts  # keys of somebody else's making
    order = np.argsort([int(match[1]) for match in numbers if match], kind="stable")
    return texts.take(order.tolist())


def _queries(release: Release, embedding_set: EmbeddingSet, modality: Modality, plan: AuditPlan) -> tuple[Rows, Lots]:
    """Read the rows to query with, in the order of the set, and draw lots for the groups of all that could be.

    Rows that cannot be queried with were refused when they were pushed.
    """
    groups: list[Lots] = []
    parts: list[Rows] = []
    for rows in embedding_set.read(modality):
        kept = _sound(release, rows)
        if plan.queries == HELD_OUT:
            kept = kept[release.alignment.card.hold_out.held_out([rows.groups[row] for row in kept])]
        groups.append(hash_draws(sorted({rows.groups[row] for row in kept}), plan.seed))
        parts.append(rows.take(kept[_drawn([rows.keys[row] for row in kept], plan)].tolist()))
        if plan.sample is not None:
            together = Rows.concatenate(parts)
            parts = [together.take(_drawn(together.keys, plan).tolist())]
    found = Rows.concatenate(parts)
    if not len(found):
        raise MismatchError(
            f"embedding set {embedding_set.path} holds no {plan.queries} {modality} rows to audit with; encode more "
            "pairs, or audit with --queries all"
        )
    return found, np.unique(np.concatenate(groups))


def _drawn(keys: Sequence[str], plan: AuditPlan) -> IntArray:
    """Return the numbers of those that are drawn, in their order."""
    if plan.sample is None or len(keys) <= plan.sample:
        return np.arange(len(keys))
    return np.sort(np.argsort(hash_draws(keys, plan.seed))[: plan.sample])


def _sound(release: Release, rows: Rows) -> IntArray:
    """Return the numbers of the rows that can be aligned."""
    kept = np.ones(len(rows), bool)
    kept[list(invalid_rows(rows.vectors))] = False
    sound = np.flatnonzero(kept)
    projected = release.alignment.projections[rows.modality].unchecked(rows.vectors[sound])
    return np.delete(sound, list(invalid_rows(projected)))
