"""What a fit sees and what it is tested on: embedding sets joined and split by group.

First only the names of groups and the hashes of contents are read; then it is known which vectors are needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignment.errors import FitError
from alignment.fitting.stored import ShardParts, StoredEmbeddings, StoredVectors, in_order_of_images, refuse
from alignment.modality import MODALITIES, Modality
from alignment.model.seen_items import Prefixes, SeenItems, prefixes
from alignment.plurals import counted
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings, common_groups, is_among
from alignment.retrieval.ranks import IntArray, group_codes
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows
from alignment.vectors import ROUNDING, invalid_rows, l2_normalize

# Vectors of both modalities, as float32, up to which they are held in memory; more are read from their shards as they
# are needed.
HELD_BYTES = 1 << 29
# Names of groups that are hashed at a time, and rows that are looked at for a direction of their own.
AT_ONCE = 1 << 14


@dataclass(frozen=True, slots=True)
class Split:
    """What a fit sees, what it is tested on, how many items have no partner, and the contents of what it sees."""

    training: GroupedEmbeddings
    test: GroupedEmbeddings
    unpaired: int
    seen: Mapping[Modality, SeenItems]


@dataclass(frozen=True, slots=True)
class Identities:
    """What is read of every row before any vector: by modality, in the order of the rows.

    Attributes:
        names: of all groups, ascending: Arrow texts (g,).
        groups: numbers of names (n,).
        contents: 64 bits of the hash of each content (n,).
    """

    names: pa.LargeStringArray
    groups: Mapping[Modality, IntArray]
    contents: Mapping[Modality, Prefixes]

    @classmethod
    def read(cls, sets: Sequence[EmbeddingSet]) -> "Identities":
        """Read them from all shards of `sets`.

        Raises:
            EmbeddingSetError: one of the sets has no row of a modality.
        """
        names, contents, counts = [], {}, []
        for modality in MODALITIES:
            found = []
            for embedding_set in sets:
                for table in embedding_set.columns(modality, ["group", "content_sha256"]):
                    names.extend(table.column("group").cast(pa.large_string()).chunks)
                    found.append(prefixes(table.column("content_sha256").to_pylist()))
            contents[modality] = np.concatenate(found)
            counts.append(len(contents[modality]))
        encoded = pa.chunked_array(names, pa.large_string()).dictionary_encode()
        del names
        distinct = encoded.chunk(encoded.num_chunks - 1).dictionary  # the last one holds those of all
        indices = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
        del encoded
        order = pc.sort_indices(distinct).to_numpy()
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        codes = rank[indices]
        groups = dict(zip(MODALITIES, np.split(codes, [counts[0]]), strict=True))
        return cls(distinct.take(pa.array(order)), groups, contents)

    def held_out(self, hold_out: HoldOut) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Say of each group whether it is held out (g,)."""
        parts = [self.names[start : start + AT_ONCE].to_pylist() for start in range(0, len(self.names), AT_ONCE)]
        return np.concatenate([hold_out.held_out(part) for part in parts])


def training_and_test(sets: Sequence[EmbeddingSet], hold_out: HoldOut) -> Split:
    """Join `sets` and split them by group; what nothing can be fitted on is refused.

    Vectors are in memory where all of them take at most `HELD_BYTES`, and stay in their shards otherwise.

    Raises:
        EmbeddingSetError: a set has no row of a modality.
        FitError: too few groups with both modalities, or vectors that cannot be used.
    """
    identities = Identities.read(sets)
    groups = identities.groups
    held = np.flatnonzero(identities.held_out(hold_out))
    training, test, unpaired = _split_groups(groups, held)
    seen = {m: SeenItems(np.unique(identities.contents[m][is_among(groups[m], training)])) for m in MODALITIES}
    del identities
    parts = {m: ShardParts(sets, m) for m in MODALITIES}
    if sum(len(groups[m]) * own.dim * np.float32().itemsize for m, own in parts.items()) <= HELD_BYTES:
        image, text = (ModalityEmbeddings(_all(parts[m]), groups[m]) for m in MODALITIES)
        everything = GroupedEmbeddings(image, text)
    else:
        stored = [StoredEmbeddings(StoredVectors(parts[m]), np.arange(len(groups[m])), groups[m]) for m in MODALITIES]
        everything = in_order_of_images(GroupedEmbeddings(*stored).only(np.concatenate([training, test])))
    return Split(everything.only(training), everything.only(test), unpaired, seen)


def split_rows(rows: Mapping[Modality, Rows], hold_out: HoldOut) -> tuple[GroupedEmbeddings, GroupedEmbeddings, int]:
    """Split rows in memory into training and test by group; items without a partner of the other kind are counted.

    Raises:
        FitError: as `training_and_test`.
    """
    sides = {}
    codes = dict(zip(MODALITIES, group_codes(*(rows[m].groups for m in MODALITIES)), strict=True))
    for modality in MODALITIES:
        if invalid := invalid_rows(rows[modality].vectors):
            refuse(invalid, modality, rows[modality].keys[next(iter(invalid))])
        sides[modality] = ModalityEmbeddings(rows[modality].vectors, codes[modality])
    everything = GroupedEmbeddings(sides["image"], sides["text"])
    held = np.unique(codes["image"][hold_out.held_out(rows["image"].groups)])
    training, test, unpaired = _split_groups(codes, held)
    return everything.only(training), everything.only(test), unpaired


def check_directions(training: GroupedEmbeddings) -> None:
    """Refuse vectors that are all alike: there is nothing in them to align."""
    for modality in MODALITIES:
        side = training.side(modality)
        lowest, highest = np.full(side.dim, np.inf), np.full(side.dim, -np.inf)
        for start in range(0, len(side.groups), AT_ONCE):
            units = l2_normalize(side.take(np.arange(start, min(start + AT_ONCE, len(side.groups)))))
            lowest, highest = np.minimum(lowest, units.min(axis=0)), np.maximum(highest, units.max(axis=0))
            if (highest - lowest > ROUNDING).any():
                break
        else:
            raise FitError(
                f"the {modality} vectors to fit on all have the same direction; check the encoder and the data"
            )


def _split_groups(groups: Mapping[Modality, IntArray], held: IntArray) -> tuple[IntArray, IntArray, int]:
    """Return the groups to fit on, those held out, and how many items have no partner.

    Args:
        groups: codes of the items of each modality.
        held: those that are held out.
    """
    paired = common_groups(groups["image"], groups["text"])
    unpaired = sum(len(groups[m]) - int(is_among(groups[m], paired).sum()) for m in MODALITIES)
    is_held = is_among(paired, held)
    training, test = paired[~is_held], paired[is_held]
    if not len(test) or not len(training):
        raise FitError(
            f"of {counted(len(paired), 'group')} that hold both images and texts, {len(training)} are left to "
            f"fit on and {len(test)} are held out; both must be above zero: add data or change --holdout"
        )
    return training, test, unpaired


def _all(parts: ShardParts) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    return np.concatenate([parts.read(part) for part in range(len(parts.starts) - 1)])
