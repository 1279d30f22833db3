"""The embedding sets and alignments of a home, as their cards and SQL know them, and the releases that use them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from alignment.errors import AlignmentError, EmbeddingSetError
from alignment.modality import MODALITIES, Modality
from alignment.model.card import AlignmentCard, CardOnDisk
from alignment.sets.cards import CARD, SetCard
from connector.provenance.recorder import Provenance
from connector.provenance.tables import AlignmentRow, EmbeddingSetRow, ReleaseRow
from connector.releases.lag import counts_of

if TYPE_CHECKING:
    from alignment.sets.embedding_set import EmbeddingSet


@dataclass(frozen=True, slots=True)
class HeldSet:
    """An embedding set.

    Attributes:
        card: None: it is not on this disk, or cannot be read.
        fault: why it has no card, or cannot be used as it is; empty: it can.
        counts: rows by modality; of an incomplete set, those that are there.
        updated_at: when SQL last recorded it; None: it never was.
        releases: that it was pushed into and that were not dropped, with the points of this set in each.
    """

    name: str
    path: Path
    card: SetCard | None
    fault: str
    counts: Mapping[Modality, int]
    updated_at: datetime | None
    releases: Sequence[tuple[ReleaseRow, int]]

    @property
    def collections(self) -> list[str]:
        """The collections that it is in."""
        return sorted({release.collection for release, _ in self.releases})


@dataclass(frozen=True, slots=True)
class SetGroups:
    """How the items of an embedding set make groups.

    Attributes:
        groups: how many there are.
        paired: those with an image and a text, which a fit can use.
        captions: how many images have so many captions of their own, texts with the key `KEY#n`, by the number of
            captions. Other texts of the group are none.
    """

    groups: int
    paired: int
    captions: Mapping[int, int]

    @classmethod
    def of(cls, embedding_set: "EmbeddingSet") -> "SetGroups":
        """Count them; vectors are not read.

        Raises:
            EmbeddingSetError: a shard cannot be read.
        """
        groups: dict[Modality, set[str]] = {modality: set() for modality in MODALITIES}
        keys: dict[Modality, list[str]] = {modality: [] for modality in MODALITIES}
        for modality in MODALITIES:
            for of_shard, groups_of_shard in embedding_set.labels(modality):
                groups[modality].update(groups_of_shard)
                keys[modality] += of_shard
        captions = Counter(key.rpartition("#")[0] for key in keys["text"])
        images, texts = groups["image"], groups["text"]
        return cls(len(images | texts), len(images & texts), Counter(captions[key] for key in keys["image"]))


@dataclass(frozen=True, slots=True)
class HeldAlignment:
    """An alignment.

    Attributes:
        held: its card, as it stands on disk; None: it is not on this disk, or cannot be read.
        fault: why it has no card; empty: it has one.
        fingerprint: of the one on disk, or the one that SQL recorded.
        created_at: when SQL first recorded it; None: it never was.
        releases: that were written with it and were not dropped.
    """

    name: str
    path: Path
    held: CardOnDisk | None
    fault: str
    fingerprint: str
    created_at: datetime | None
    releases: Sequence[ReleaseRow]

    @property
    def card(self) -> AlignmentCard | None:
        """Its card."""
        return self.held.card if self.held else None


def held_sets(provenance: Provenance, directory: Path) -> list[HeldSet]:
    """Return the embedding sets in `directory` and all others that SQL recorded, by name."""
    rows = {provenance.database.located(row.path): row for row in provenance.artifacts.sets()}
    paths = {path.parent for path in directory.glob(f"[!.]*/{CARD}")} | rows.keys()
    return sorted((_held_set(provenance, path, rows.get(path)) for path in paths), key=lambda held: held.name)


def _held_set(provenance: Provenance, path: Path, row: EmbeddingSetRow | None) -> HeldSet:
    counts: dict[Modality, int] = {"image": row.image_count, "text": row.text_count} if row else {}
    fault, card = "", None
    try:
        card = SetCard.read(path)
        counts = counts_of(path, card)
        if not card.complete:
            fault = "not written to the end: run the same `modalign encode`, `ingest` or `import` again"
    except EmbeddingSetError as error:
        fault = str(error)
    releases = [] if row is None else provenance.ledger.releases_of(row.id)
    of_set = [
        (release, sum(points for _, points in provenance.ledger.entries(release.id, row.id).values()))
        for release in releases
        if row is not None and release.dropped_at is None
    ]
    return HeldSet(path.name, path, card, fault, counts, row.updated_at if row else None, of_set)


def held_alignments(provenance: Provenance, directory: Path) -> list[HeldAlignment]:
    """Return the alignments in `directory` and all others that SQL recorded, by name."""
    recorded = {row.fingerprint: row for row in provenance.artifacts.alignments()}
    releases = [row for row in provenance.releases.find() if row.dropped_at is None]
    found = []
    for path in sorted(path.parent for path in directory.glob(f"[!.]*/{CARD}")):
        held, fault = None, ""
        try:
            held = AlignmentCard.read(path)
        except AlignmentError as error:
            fault = str(error)
        row = recorded.pop(held.fingerprint, None) if held else None
        fingerprint = held.fingerprint if held else ""
        used = _of_alignment(releases, row.id if row else None)
        found.append(HeldAlignment(path.name, path, held, fault, fingerprint, row.created_at if row else None, used))
    for row in recorded.values():
        path = provenance.database.located(row.path)
        fault = _not_there(path)
        used = _of_alignment(releases, row.id)
        found.append(HeldAlignment(row.name, path, None, fault, row.fingerprint, row.created_at, used))
    return sorted(found, key=lambda held: held.name)


def alignment_fault(provenance: Provenance, row: AlignmentRow) -> str:
    """Say why an alignment that SQL recorded is not on this disk, or cannot be read; empty if it is there."""
    path = provenance.database.located(row.path)
    fault = _not_there(path)
    for place in (path, *(card.parent for card in path.parent.glob(f"[!.]*/{CARD}"))):  # it may have been renamed
        try:
            if AlignmentCard.read(place).fingerprint == row.fingerprint:
                return ""
        except AlignmentError as error:
            if place == path and (path / CARD).exists():
                fault = str(error)
    return fault


def _not_there(path: Path) -> str:
    return f"not at {path}, or another one is there: restore it from a backup, or fit it again"


def _of_alignment(releases: Iterable[ReleaseRow], alignment_id: int | None) -> list[ReleaseRow]:
    return [release for release in releases if release.alignment_id == alignment_id]
