"""What a fit sees and what it is tested on: embedding sets joined and split by group.

First only the names of groups and the hashes of contents are read; then it is known which vectors are needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from alignment.arrow import look_for_pandas
from alignment.errors import FitError
from alignment.fitting.stored import ShardParts, StoredEmbeddings, StoredVectors, in_order_of_images, refuse
from alignment.modality import MODALITIES, Modality
from alignment.model.seen_items import Prefixes, SeenItems, prefixes
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings, common_groups, is_among
from alignment.retrieval.ranks import IntArray, group_codes
from alignment.sets.embedding_set import EmbeddingSet
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows
from alignment.vectors import ROUNDING, invalid_rows, l2_normalize

Mask = npt.NDArray[np.bool_]

# Vectors of both modalities, as float32, up to which they are held in memory; more are read from their shards as they
# are needed.
HELD_BYTES = 1 << 29
# Names of groups that are hashed at a time, and rows that are looked at for a direction of their own.
AT_ONCE = 1 << 14
# Ranges of names in which groups are numbered, one after the other, by about as many rows each.
RANGES = 16
SAMPLED = 256  # one name of so many tells where a range ends


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
        groups: numbers of their groups (n,), in the order of their names.
        is_held_out: of each group (g,).
        contents: 64 bits of the hash of each content (n,).
    """

    groups: Mapping[Modality, IntArray]
    is_held_out: Mask
    contents: Mapping[Modality, Prefixes]

    @classmethod
    def read(cls, sets: Sequence[EmbeddingSet], hold_out: HoldOut) -> "Identities":
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
        look_for_pandas()
        codes, is_held_out = number_groups(pa.chunked_array(names, pa.large_string()), hold_out)
        del names
        pa.default_memory_pool().release_unused()
        return cls(dict(zip(MODALITIES, np.split(codes, [counts[0]]), strict=True)), is_held_out, contents)


def number_groups(names: pa.ChunkedArray, hold_out: HoldOut) -> tuple[IntArray, Mask]:
    """Return each name's place among the distinct ones in ascending order (n,), and which of these are held out (g,).

    A table of all names would take several times their own memory. So there is one of each range of names.
    """
    sample = sorted(name for chunk in names.chunks for name in chunk[::SAMPLED].to_pylist())
    bounds = sorted({sample[len(sample) * number // RANGES] for number in range(1, RANGES)})
    range_of = np.zeros(len(names), np.uint8)
    for bound in bounds:
        range_of += pc.greater_equal(names, pa.scalar(bound, names.type)).to_numpy()
    codes = np.empty(len(names), np.int64)
    is_held_out: list[Mask] = []
    before = 0
    for number in range(len(bounds) + 1):
        is_own = range_of == number
        own = names.filter(pa.array(is_own)).combine_chunks().dictionary_encode()
        order = pc.sort_indices(own.dictionary)
        place = np.empty(len(order), np.int64)
        place[order.to_numpy()] = np.arange(before, before + len(order))
        codes[is_own] = place[own.indices.to_numpy()]
        some = (order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE))
        is_held_out.extend(hold_out.held_out(own.dictionary.take(places).to_pylist()) for places in some)
        before += len(order)
    return codes, np.concatenate(is_held_out)


def training_and_test(sets: Sequence[EmbeddingSet], hold_out: HoldOut) -> Split:
    """Join `sets` and split them by group; what nothing can be fitted on is refused.

    Vectors are in memory where all of them take at most `HELD_BYTES`, and stay in their shards otherwise.

    Raises:
        EmbeddingSetError: a set has no row of a modality.
        FitError: too few groups with both modalities, or vectors that cannot be used.
    """
    identities = Identities.read(sets, hold_out)
    groups, held = identities.groups, np.flatnonzero(identities.is_held_out)
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
            f"expected groups of both images and texts to fit on and to hold out, got {len(training)} and {len(test)} "
            f"of the {len(paired)} that there are: add data or change --holdout"
        )
    return training, test, unpaired


def _all(parts: ShardParts) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    return np.concatenate([parts.read(part) for part in range(len(parts.starts) - 1)])
