"""Images and texts that share groups: the data that alignments are fitted on and measured with."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alignment.metrics import Metric
from alignment.modality import Modality
from alignment.model.projections import Projection
from alignment.retrieval.ranks import IntArray, Ranks, ranks
from alignment.vectors import FloatArray

Rows = npt.NDArray[np.int64]
PairRows = tuple[Rows, Rows]
# Rows that are checked at a time.
CHECKED_ROWS = 1 << 14
# Of the place of an item within its group: multiples of it spread evenly over [0, 1), however many there are.
GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class ModalityEmbeddings:
    """Vectors of one modality (n, d) with the codes of their groups (n,), which are common to both modalities."""

    vectors: FloatArray
    groups: IntArray

    @property
    def dim(self) -> int:
        """Coordinates of a vector."""
        return int(self.vectors.shape[1])

    @property
    def is_stored(self) -> bool:
        """Whether vectors are read from a disk, where another order than that of the rows costs time."""
        return False

    def take(self, rows: Rows) -> FloatArray:
        """Return the vectors of rows (n,), (n, d)."""
        return self.vectors[rows]

    def reserve(self, rows: Rows) -> None:
        """Say that these rows will be asked for: who reads vectors from a disk keeps them when they come by."""

    def release(self) -> None:
        """Say that no neighbours of what was read are asked for next: who reads from a disk forgets them."""

    def joined(self, other: "ModalityEmbeddings") -> "ModalityEmbeddings":
        """Return the rows of both, of which the others are kept in the same way."""
        return ModalityEmbeddings(
            np.concatenate([self.vectors, other.vectors]), np.concatenate([self.groups, other.groups])
        )

    def project(self, projection: Projection) -> "ModalityEmbeddings":
        """Align all rows; one that cannot be becomes NaN."""
        return ModalityEmbeddings(projection.unchecked(self.vectors), self.groups)

    def where(self, mask: npt.NDArray[np.bool_]) -> "ModalityEmbeddings":
        """Keep the rows where `mask` (n,) is true."""
        return ModalityEmbeddings(self.vectors[mask], self.groups[mask])


@dataclass(frozen=True, slots=True)
class GroupedEmbeddings:
    """Images and texts with their groups."""

    image: ModalityEmbeddings
    text: ModalityEmbeddings

    @property
    def groups(self) -> IntArray:
        """Groups that hold both, ascending."""
        return common_groups(self.image.groups, self.text.groups)

    def side(self, modality: Modality) -> ModalityEmbeddings:
        """Return the embeddings of one modality."""
        return self.image if modality == "image" else self.text

    def only(self, groups: IntArray) -> "GroupedEmbeddings":
        """Keep the items of these groups."""
        return GroupedEmbeddings(*(side.where(is_among(side.groups, groups)) for side in (self.image, self.text)))

    def without(self, groups: IntArray) -> "GroupedEmbeddings":
        """Keep the items of the other groups that hold both."""
        own = self.groups
        return self.only(own[~is_among(own, groups)])

    def bounded(self, most: int) -> "GroupedEmbeddings":
        """Keep at most so many items a modality, drawn evenly from its groups; at least one of every group stays."""
        return GroupedEmbeddings(*(side.where(_evenly(side.groups, most)) for side in (self.image, self.text)))

    def pairs(self) -> tuple[FloatArray, FloatArray]:
        """Pair images and texts within each group: X (n, d_image), Y (n, d_text).

        A group of a images and b texts gives max(a, b) pairs: the shorter side is used again from its start. So
        every item takes part, and a group that is a class label does not give a x b pairs.
        """
        rows_x, rows_y = self.pair_rows()
        return self.image.vectors[rows_x], self.text.vectors[rows_y]

    def pair_rows(self) -> PairRows:
        """Return the rows of the pairs, (n,) of images and (n,) of texts; every group must have both."""
        codes = 1 + max(int(side.groups.max(initial=-1)) for side in (self.image, self.text))
        counted = [np.bincount(side.groups, minlength=codes) for side in (self.image, self.text)]
        longest = np.maximum(*counted)  # (g,)
        group = np.repeat(np.arange(len(longest)), longest)  # (n,)
        place = np.arange(len(group)) - np.repeat(np.cumsum(longest) - longest, longest)  # (n,), within the group
        rows = []
        for side, counts in zip((self.image, self.text), counted, strict=True):
            order = np.argsort(side.groups, kind="stable")
            rows.append(order[(np.cumsum(counts) - counts)[group] + place % counts[group]])
        return rows[0], rows[1]

    def project(self, projections: tuple[Projection, Projection]) -> "GroupedEmbeddings":
        """Align both sides; a row that cannot be becomes NaN."""
        return GroupedEmbeddings(self.image.project(projections[0]), self.text.project(projections[1]))

    def sound(self) -> "GroupedEmbeddings":
        """Leave out the rows that could not be aligned."""
        return GroupedEmbeddings(*(side.where(_is_sound(side)) for side in (self.image, self.text)))

    def reserve(self) -> "GroupedEmbeddings":
        """Say that all vectors will be asked for: see `ModalityEmbeddings.reserve`."""
        for side in (self.image, self.text):
            side.reserve(np.arange(len(side.groups)))
        return self

    def read(self) -> "GroupedEmbeddings":
        """Return the same in memory."""
        return GroupedEmbeddings(*(ModalityEmbeddings(side.vectors, side.groups) for side in (self.image, self.text)))

    def ranks(self, metrics: Mapping[Modality, Metric]) -> tuple[Ranks, Ranks]:
        """Rank aligned sides both ways, text to image and image to text, under the metric of what is searched.

        A row that could not be aligned ranks last.
        """
        image, text = self.image, self.text
        t2i = ranks(text.vectors, image.vectors, text.groups, image.groups, metric=metrics["image"])
        i2t = ranks(image.vectors, text.vectors, image.groups, text.groups, metric=metrics["text"])
        return t2i, i2t


def is_among(codes: IntArray, groups: IntArray) -> npt.NDArray[np.bool_]:
    """Say of n codes which are some of `groups` (n,): by a table of all codes, because these are dense."""
    table = np.zeros(1 + max(codes.max(initial=-1), groups.max(initial=-1)), np.bool_)
    table[groups] = True
    found: npt.NDArray[np.bool_] = table[codes]
    return found


def common_groups(one: IntArray, other: IntArray) -> IntArray:
    """Return the codes that occur in both, ascending."""
    every = np.arange(1 + min(one.max(initial=-1), other.max(initial=-1)))
    return every[is_among(every, one) & is_among(every, other)]


def _is_sound(side: ModalityEmbeddings) -> npt.NDArray[np.bool_]:
    rows = np.arange(len(side.groups))
    parts = [rows[start : start + CHECKED_ROWS] for start in range(0, len(rows), CHECKED_ROWS)]
    sound = [np.asarray(np.isfinite(side.take(part)).all(axis=1)) for part in parts]
    return np.concatenate(sound or [np.empty(0, np.bool_)])


def _evenly(groups: IntArray, most: int) -> npt.NDArray[np.bool_]:
    """Choose items by turns of their groups, which go on in the order that the items draw."""
    if len(groups) <= most:
        return np.ones(len(groups), np.bool_)
    numbers = draws(groups)
    order = np.lexsort((numbers, groups))
    turn = np.empty(len(groups), np.int64)
    turn[order] = _places(groups[order])
    chosen: npt.NDArray[np.bool_] = turn == 0
    chosen[np.lexsort((numbers, turn))[:most]] = True
    return chosen


def drawn(groups: IntArray, most: int) -> Rows:
    """Return the places of at most so many of n items or pairs, ascending.

    Each draws a number from the code of its group, and from its place within the group: so the choice does not depend
    on the order of the groups, and those of two overlapping parts of a whole overlap.

    Args:
        groups: codes (n,); those of one group in the same order in every part.
        most: as many are chosen where there are as many.
    """
    if len(groups) <= most:
        return np.arange(len(groups))
    rows: Rows = np.sort(np.argpartition(draws(groups), most)[:most])
    return rows


def draws(groups: IntArray) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for each of n items, from the code of its group and its place within the group (n,)."""
    order = np.argsort(groups, kind="stable")
    codes = groups[order]
    of_group = np.random.default_rng(0).random(int(codes[-1]) + 1 if len(codes) else 0)
    numbers = np.empty(len(groups))
    numbers[order] = (of_group[codes] + _places(codes) * GOLDEN_RATIO) % 1.0
    return numbers


def _places(codes: IntArray) -> Rows:
    """Return the place of every item within its group, of ascending codes (n,)."""
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    places: Rows = np.arange(len(codes)) - np.repeat(first, np.diff(first, append=len(codes)))
    return places
