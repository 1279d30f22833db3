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


@dataclass(frozen=True, slots=True)
class ModalityEmbeddings:
    """Vectors of one modality (n, d) with the codes of their groups (n,), which are common to both modalities."""

    vectors: FloatArray
    groups: IntArray

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
        return np.intersect1d(self.image.groups, self.text.groups)

    def side(self, modality: Modality) -> ModalityEmbeddings:
        """Return the embeddings of one modality."""
        return self.image if modality == "image" else self.text

    def only(self, groups: IntArray) -> "GroupedEmbeddings":
        """Keep the items of these groups."""
        return GroupedEmbeddings(*(side.where(np.isin(side.groups, groups)) for side in (self.image, self.text)))

    def pairs(self) -> tuple[FloatArray, FloatArray]:
        """Pair images and texts within each group: X (n, d_image), Y (n, d_text).

        A group of a images and b texts gives max(a, b) pairs: the shorter side is used again from its start. So
        every item takes part, and a group that is a class label does not give a x b pairs.
        """
        rows_x, rows_y = self.pair_rows()
        return self.image.vectors[rows_x], self.text.vectors[rows_y]

    def pair_rows(self) -> tuple[Rows, Rows]:
        """Return the rows of the pairs, (n,) of images and (n,) of texts; every group must have both."""
        counted = [np.unique(side.groups, return_counts=True) for side in (self.image, self.text)]
        longest = np.maximum(counted[0][1], counted[1][1])  # (g,)
        group = np.repeat(np.arange(len(longest)), longest)  # (n,)
        place = np.arange(len(group)) - np.repeat(np.cumsum(longest) - longest, longest)  # (n,), within the group
        rows = []
        for side, (_codes, counts) in zip((self.image, self.text), counted, strict=True):
            order = np.argsort(side.groups, kind="stable")
            rows.append(order[(np.cumsum(counts) - counts)[group] + place % counts[group]])
        return rows[0], rows[1]

    def project(self, projections: tuple[Projection, Projection]) -> "GroupedEmbeddings":
        """Align both sides; a row that cannot be becomes NaN."""
        image, text = (
            ModalityEmbeddings(projection.unchecked(side.vectors), side.groups)
            for projection, side in zip(projections, (self.image, self.text), strict=True)
        )
        return GroupedEmbeddings(image, text)

    def sound(self) -> "GroupedEmbeddings":
        """Leave out the rows that could not be aligned."""
        return GroupedEmbeddings(
            *(side.where(np.asarray(np.isfinite(side.vectors).all(axis=1))) for side in (self.image, self.text))
        )

    def ranks(self, metrics: Mapping[Modality, Metric]) -> tuple[Ranks, Ranks]:
        """Rank aligned sides both ways, text to image and image to text, under the metric of what is searched.

        A row that could not be aligned ranks last.
        """
        image, text = self.image, self.text
        t2i = ranks(text.vectors, image.vectors, text.groups, image.groups, metric=metrics["image"])
        i2t = ranks(image.vectors, text.vectors, image.groups, text.groups, metric=metrics["text"])
        return t2i, i2t
