"""What captions find, beside images: the baseline of an alignment where items have captions.

Held-out captions look for their own items in the collection of all. A caption never finds itself, so only captions
whose item has a further one can ask. The best of an item's captions counts. Where too few have, paraphrases of the
captions ask, which flatter captions: people ask in other words.

Before any alignment they look among captions by cosine in the space of their encoder. After a fit the same queries look
among images, among captions and among both as production serves them: aligned, under one metric.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from alignment.retrieval.bootstrap import Estimate, bootstrap_mean
from alignment.retrieval.caption_weight import CAPTION_WEIGHT, MOST_QUERIES, best_weight
from alignment.retrieval.caption_weight import FEWEST_QUERIES as FEWEST_TO_CHOOSE
from alignment.retrieval.cutoffs import ENDS
from alignment.retrieval.grouped import ModalityEmbeddings
from alignment.retrieval.paraphrases import paraphrased
from alignment.retrieval.ranks import IntArray
from alignment.retrieval.ways import CAPTION, FUSED, IMAGE, WAYS, Way, added, advised, unaligned
from alignment.vectors import FloatArray, l2_normalize

# Fewer queries say nothing; of more, so many are asked.
FEWEST_QUERIES, MOST_ASKED = 20, 1_000
# The first of these choose how much captions count, so they are as many as those of a push.
AT_ONCE = MOST_QUERIES

Floats = npt.NDArray[np.float64]
Score = Callable[[slice], npt.NDArray[np.floating]]  # some of the queries (q, d) with all items (q, n)


@dataclass(frozen=True, slots=True)
class ByWay:
    """What queries find after a fit, by each way to search.

    Attributes:
        weight: of captions in both together.
        image, caption, fused: Recall@10 of each.
        gain: Recall@10 of both together less that of captions alone.
        projected: Recall@10 of aligned captions less that of captions in the space of their encoder.
        first: Recall@1 by way.
    """

    weight: float
    image: Estimate
    caption: Estimate
    fused: Estimate
    gain: Estimate
    projected: Estimate
    first: Mapping[Way, float]

    @property
    def found(self) -> dict[Way, tuple[float, float]]:
        """Recall@10 and Recall@1 by way."""
        among = {IMAGE: self.image, CAPTION: self.caption, FUSED: self.fused}
        return {way: (estimate.value, self.first[way]) for way, estimate in among.items()}


@dataclass(frozen=True, slots=True)
class CaptionsAlone:
    """What captions find in the space of their encoder, without any alignment.

    Attributes:
        queries: held-out captions of items with a further caption, that were asked; or paraphrases of captions.
        paraphrased: whether they are paraphrases.
        first, among: Recall@1 and Recall@10; None: too few queries.
    """

    queries: int
    paraphrased: bool = False
    first: Estimate | None = None
    among: Estimate | None = None

    def in_words(self, by_way: ByWay | None) -> str:
        """Say what each way finds, whether the alignment adds to captions, for which items, and how to search."""
        if self.among is None or by_way is None:
            return (
                f"What captions alone would find is not measured: {self.queries} held-out captions can ask, "
                f"{FEWEST_QUERIES} are needed. Items without a caption are found by the alignment alone."
            )
        says = (
            f"Captions alone find a new item that has a {'' if self.paraphrased else 'further '}caption among ten in "
            f"{by_way.caption.value:.1%} of searches, images in {by_way.image.value:.1%}, both together in "
            f"{by_way.fused.value:.1%} with captions weighing {by_way.weight:g}. "
        )
        if self.paraphrased:
            says += (
                "Too few items have a further caption, so paraphrases of captions asked. They flatter captions, "
                "because people ask in other words, and advise no search by caption alone. "
            )
        way = advised(by_way.found, paraphrased=self.paraphrased)
        return says + (
            f"{'By these' if self.paraphrased else 'Where items have captions'}, {added(by_way.gain)}. "
            f"{unaligned(self.among, by_way.projected, 10)} Items without a caption are found by the alignment alone. "
            f"Search by {way} where items have captions. An audit measures all three ways."
        )


class _Part(NamedTuple):
    """Scores of some queries with the best image and the best caption of each item (q, g)."""

    images: Floats
    captions: Floats
    names: IntArray  # groups of the items (g,), ascending
    asked: IntArray  # groups of the queries (q,)

    def ranks(self, scores: Floats) -> Floats:
        """Return the ranks of the queries' items by such scores (q,)."""
        return _ranks(scores, self.names, self.asked)


@dataclass(frozen=True, slots=True)
class _Fused:
    """Fuses scores of images and captions, standardised by means and deviations of scores at large."""

    images: tuple[float, float]
    captions: tuple[float, float]
    weight: float = CAPTION_WEIGHT

    @classmethod
    def of(cls, part: _Part, *, choose: bool) -> Self:
        """Take means and deviations, and, to `choose`, the weight of captions that finds most; as a push does."""
        fused = cls(_mean_and_deviation(part.images), _mean_and_deviation(part.captions))
        if not choose or len(part.asked) < FEWEST_TO_CHOOSE:
            return fused
        return replace(
            fused, weight=best_weight(lambda weight: part.ranks(replace(fused, weight=weight).scores(part)).tolist())
        )

    def scores(self, part: _Part) -> Floats:
        """Return the scores of items with captions and images (q, g); of those without a caption, by image."""
        image, caption = (
            (scores - mean) / deviation
            for scores, (mean, deviation) in ((part.images, self.images), (part.captions, self.captions))
        )
        return np.where(np.isfinite(caption), (1 - self.weight) * image + self.weight * caption, image)


@dataclass(frozen=True, slots=True)
class CaptionQueries:
    """Queries about new items, and the captions of all.

    Attributes:
        asked: raw embeddings (q, d) with the groups that they are about (q,).
        paraphrased: whether they are paraphrases of captions; else they are captions.
        texts: captions of all items of the collection, raw.
        ranks: of the items by captions alone (q,), finite.
    """

    asked: ModalityEmbeddings
    paraphrased: bool
    texts: ModalityEmbeddings
    ranks: Floats = field(repr=False)

    def alone(self, seed: int) -> CaptionsAlone:
        """Return what captions find."""
        queries = len(self.ranks)
        if queries < FEWEST_QUERIES:
            return CaptionsAlone(queries)
        first, among = (bootstrap_mean(self._found(self.ranks, k), self.asked.groups, seed=seed) for k in ENDS)
        return CaptionsAlone(queries, self.paraphrased, first, among)

    def by_way(self, by_image: Score, by_caption: Score, images: IntArray, seed: int) -> ByWay | None:
        """Return what the queries find by image, by caption and by both; None: too few queries.

        Args:
            by_image: scores queries with the m images, less what is taken off these; higher is better.
            by_caption: scores queries with `texts`.
            images: groups of the images (m,).
            seed: of the intervals.
        """
        if len(self.ranks) < FEWEST_QUERIES:
            return None
        ranks: dict[Way, list[Floats]] = {way: [] for way in WAYS}
        fused = None
        for rows in _parts(len(self.ranks)):
            part = self._part(rows, by_image(rows), images, by_caption(rows))
            fused = fused or _Fused.of(part, choose=not self.paraphrased)
            scores: dict[Way, Floats] = {IMAGE: part.images, CAPTION: part.captions, FUSED: fused.scores(part)}
            for way in WAYS:
                ranks[way].append(part.ranks(scores[way]))
        assert fused is not None
        of_way = {way: np.concatenate(parts) for way, parts in ranks.items()}
        image, caption, both = (self._found(of_way[way], 10) for way in (IMAGE, CAPTION, FUSED))
        bare = self._found(self.ranks, 10)

        def estimated(found: Floats) -> Estimate:
            return bootstrap_mean(found, self.asked.groups, seed=seed)

        return ByWay(
            fused.weight,
            image=estimated(image),
            caption=estimated(caption),
            fused=estimated(both),
            gain=estimated(both - caption),
            projected=estimated(caption - bare),
            first={way: float(self._found(found, 1).mean()) for way, found in of_way.items()},
        )

    def _part(
        self, rows: slice, by_image: npt.NDArray[np.floating], images: IntArray, by_caption: npt.NDArray[np.floating]
    ) -> _Part:
        of_images, names = _best_of_groups(_sound(by_image), images)
        captions = self._but_itself(_sound(by_caption), rows)
        of_captions, same_names = _best_of_groups(captions, self.texts.groups)
        if not np.array_equal(names, same_names):
            raise AssertionError("every item of the collection has an image and a caption")
        return _Part(of_images, of_captions, names, self.asked.groups[rows])

    def _but_itself(self, scores: Floats, part: slice) -> Floats:
        """Give what a caption may not find -inf: itself, and others of its item with its content."""
        if not self.paraphrased:
            scores[_same(self.asked, self.texts, part, _cosines(self.asked, self.texts, part))] = -np.inf
        return scores

    @staticmethod
    def _found(ranks: Floats, k: int) -> Floats:
        return (ranks <= k).astype(np.float64)


def caption_queries(texts: ModalityEmbeddings, held_out: IntArray, seed: int) -> CaptionQueries:
    """Draw queries about the groups `held_out` among the captions of all items: captions, or paraphrases of them."""
    asking = texts.where(np.isin(texts.groups, held_out))
    rows = np.random.default_rng(seed).permutation(len(asking.groups))
    further = rows[np.bincount(texts.groups)[asking.groups[rows]] > 1][:MOST_ASKED]
    queries = _ranked(_rows(asking.vectors, asking.groups, further), texts, paraphrased=False)
    if len(queries.ranks) >= FEWEST_QUERIES or len(rows) < FEWEST_QUERIES:
        return queries
    moved = paraphrased(asking.vectors, seed=seed)
    return _ranked(_rows(moved, asking.groups, rows[:MOST_ASKED]), texts, paraphrased=True)


def _rows(vectors: FloatArray, groups: IntArray, rows: IntArray) -> ModalityEmbeddings:
    return ModalityEmbeddings(vectors[rows], groups[rows])


def _ranked(asked: ModalityEmbeddings, texts: ModalityEmbeddings, *, paraphrased: bool) -> CaptionQueries:
    """Rank the items of the queries by captions, and keep those whose item has one to be found by."""
    ranks = [np.empty(0)]
    for part in _parts(len(asked.groups)):
        cosines = _cosines(asked, texts, part)
        if not paraphrased:
            cosines[_same(asked, texts, part, cosines)] = -np.inf
        scores, names = _best_of_groups(cosines, texts.groups)
        ranks.append(_ranks(scores, names, asked.groups[part]))
    joined = np.concatenate(ranks)
    can_be_found = np.isfinite(joined)
    return CaptionQueries(asked.where(can_be_found), paraphrased, texts, joined[can_be_found])


def _parts(queries: int) -> Sequence[slice]:
    return [slice(start, start + AT_ONCE) for start in range(0, queries, AT_ONCE)]


def _sound(scores: npt.NDArray[np.floating]) -> Floats:
    """Return the scores, with -inf for what could not be aligned."""
    return np.nan_to_num(scores.astype(np.float64), nan=-np.inf, neginf=-np.inf)


def _cosines(asked: ModalityEmbeddings, texts: ModalityEmbeddings, part: slice) -> Floats:
    cosines: FloatArray = l2_normalize(asked.vectors[part]) @ l2_normalize(texts.vectors).T
    return cosines.astype(np.float64)


def _same(asked: ModalityEmbeddings, texts: ModalityEmbeddings, part: slice, cosines: Floats) -> npt.NDArray[np.bool_]:
    """Return which captions (q, n) are of the item of a query and have its content, as equal embeddings have."""
    same: npt.NDArray[np.bool_] = (asked.groups[part, None] == texts.groups) & (cosines >= 1 - 1e-6)
    return same


def _best_of_groups(scores: Floats, groups: IntArray) -> tuple[Floats, IntArray]:
    """Return the best score of each group (q, g), and the groups, ascending (g,)."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    return np.maximum.reduceat(scores[:, order], starts, axis=1), groups[order][starts]


def _ranks(scores: Floats, names: IntArray, asked: IntArray) -> Floats:
    """Return the rank of its own group for each query (q,); infinity where that has no score. Ties rank behind."""
    own = scores[np.arange(len(asked)), np.searchsorted(names, asked)]
    ranks: Floats = (scores >= own[:, None]).sum(axis=1).astype(np.float64)  # its own score counts for the 1
    ranks[~np.isfinite(own)] = np.inf
    return ranks


def _mean_and_deviation(scores: Floats) -> tuple[float, float]:
    """Return them, of all finite scores; a deviation of 0 counts as 1."""
    finite = scores[np.isfinite(scores)]
    return float(finite.mean()), float(finite.std()) or 1.0
