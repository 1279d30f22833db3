"""Benchmark protocols: which images and captions take part, how they are searched, and how results are averaged.

Numbers in papers are comparable only under one of these. Each takes five captions an image, the first five in the order
of the rows; a caption finds its image, and an image counts as found by any of its five captions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from alignment.errors import MeasureError
from alignment.metrics import Metric
from alignment.modality import DIRECTIONS, Modality
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.ranks import IntArray, RelevantRanks, relevant_ranks


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows of images (i,) and of texts (t,) that search each other and nothing else."""

    images: IntArray
    texts: IntArray


@dataclass(frozen=True, slots=True)
class ProtocolResults:
    """What became of the queries of one direction, all folds after one another.

    Attributes:
        ranks: of the relevant items of each of n queries, among the items of its fold.
        groups: of the queries (n,).
        rows: of the queries in their modality (n,).
    """

    ranks: RelevantRanks
    groups: IntArray
    rows: IntArray


@dataclass(frozen=True, slots=True)
class Protocol:
    """A benchmark protocol.

    Attributes:
        images: of the test split, one a group.
        folds: into which the images are cut in the order of the rows; folds are of one size, so that the mean over all
            queries is the mean of the folds. No such thing is true of a median.
        captions: an image.
    """

    name: str
    images: int
    folds: int = 1
    captions: int = 5

    def split(self, images: IntArray, texts: IntArray) -> list[Fold]:
        """Choose and cut rows by their groups, of images (n,) and of texts (m,), in the order of the test split.

        Raises:
            MeasureError: another number of images, two of one group, or an image with too few captions.
        """
        if len(images) != self.images or len(np.unique(images)) != self.images:
            raise MeasureError(
                f"protocol {self.name}: expected {self.images} images, each of a group of its own, got {len(images)} "
                f"of {len(np.unique(images))} groups; name a set of the whole test split and nothing else"
            )
        order = np.argsort(texts, kind="stable")  # by group, and within it by row
        first = np.searchsorted(texts[order], images, side="left")
        counts = np.searchsorted(texts[order], images, side="right") - first
        if counts.min() < self.captions:
            row = int(counts.argmin())
            raise MeasureError(
                f"protocol {self.name}: expected at least {self.captions} captions an image, got {counts[row]} of "
                f"image {row}; name a set of the whole test split"
            )
        chosen = order[first[:, None] + np.arange(self.captions)]  # (images, captions)
        rows = np.array_split(np.arange(len(images)), self.folds)
        return [Fold(part, chosen[part].ravel()) for part in rows]

    def ask(self, aligned: GroupedEmbeddings, metrics: Mapping[Modality, Metric]) -> dict[str, ProtocolResults]:
        """Search both ways under the metric of what is searched, with rows in the order of the test split.

        Raises:
            MeasureError: the data is not of this protocol's shape.
        """
        parts: dict[str, list[ProtocolResults]] = {direction: [] for direction in DIRECTIONS}
        for fold in self.split(aligned.image.groups, aligned.text.groups):
            rows: dict[Modality, IntArray] = {"image": fold.images, "text": fold.texts}
            taken = {"image": _taken(aligned.image, fold.images), "text": _taken(aligned.text, fold.texts)}
            for direction, (query, item) in DIRECTIONS.items():
                parts[direction].append(_answers(taken[query], taken[item], rows[query], metrics[item]))
        return {direction: _joined(answers) for direction, answers in parts.items()}


def _taken(side: ModalityEmbeddings, rows: IntArray) -> ModalityEmbeddings:
    return ModalityEmbeddings(side.vectors[rows], side.groups[rows])


def _answers(queries: ModalityEmbeddings, items: ModalityEmbeddings, rows: IntArray, metric: Metric) -> ProtocolResults:
    ranks = relevant_ranks(queries.vectors, items.vectors, queries.groups, items.groups, metric=metric)
    return ProtocolResults(ranks, queries.groups, rows)


def _joined(parts: list[ProtocolResults]) -> ProtocolResults:
    ranks = RelevantRanks(
        np.concatenate([part.ranks.ranks for part in parts]), np.concatenate([part.ranks.counts for part in parts])
    )
    return ProtocolResults(
        ranks, np.concatenate([part.groups for part in parts]), np.concatenate([part.rows for part in parts])
    )


# Test splits of Karpathy and Fei-Fei (2015), by the names under which their numbers are printed.
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (Protocol("coco-5k", 5_000), Protocol("coco-1k", 5_000, folds=5), Protocol("flickr30k", 1_000))
}
