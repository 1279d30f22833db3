"""What captions alone would find, without any alignment: the baseline where items have captions.

Held-out captions look for their own items among the captions of all, by cosine in the space of their encoder. A caption
never finds itself, so only captions whose item has a further one can ask. The best of an item's captions counts. Where
too few have, paraphrases of the captions ask, which flatter captions: people ask in other words.

After a fit the same queries look for the images of the same collection, and for both together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alignment.retrieval.bootstrap import Estimate, bootstrap_mean
from alignment.retrieval.caption_weight import CAPTION_WEIGHT
from alignment.retrieval.grouped import ModalityEmbeddings
from alignment.retrieval.paraphrases import paraphrased
from alignment.retrieval.ranks import IntArray
from alignment.vectors import FloatArray, l2_normalize

# Fewer queries say nothing; of more, so many are asked.
FEWEST_QUERIES, MOST_QUERIES = 20, 1_000
AT_ONCE = 100

Floats = npt.NDArray[np.float64]
Score = Callable[[FloatArray], npt.NDArray[np.floating]]  # queries (q, d) with all items (q, n)


@dataclass(frozen=True, slots=True)
class BesideImages:
    """What the same queries find among images, and among images and captions together.

    Attributes:
        image, fused: Recall@10 of each.
        gain: Recall@10 of both together less that of captions alone.
    """

    image: Estimate
    fused: Estimate
    gain: Estimate


@dataclass(frozen=True, slots=True)
class CaptionsAlone:
    """What captions find.

    Attributes:
        queries: held-out captions of items with a further caption, that were asked; or paraphrases of captions.
        paraphrased: whether they are paraphrases.
        first, among: Recall@1 and Recall@10; None: too few queries.
    """

    queries: int
    paraphrased: bool = False
    first: Estimate | None = None
    among: Estimate | None = None

    def in_words(self, beside: "BesideImages | None") -> str:
        """Say what captions find, whether the alignment adds to it, for which items, and how to search."""
        if self.first is None or self.among is None or beside is None:
            return (
                f"What captions alone would find is not measured: {self.queries} held-out captions can ask, "
                f"{FEWEST_QUERIES} are needed. Items without a caption are found by the alignment alone."
            )
        found = {"caption": self.among.value, "image": beside.image.value, "fused": beside.fused.value}
        says = (
            f"Captions alone find a new item that has a {'' if self.paraphrased else 'further '}caption first in "
            f"{self.first.value:.1%} of searches and among ten in {found['caption']:.1%}; images among ten in "
            f"{found['image']:.1%}, both together in {found['fused']:.1%}. "
        )
        if self.paraphrased:
            says += (
                "Too few items have a further caption, so paraphrases of captions asked. They flatter captions, "
                "because people ask in other words, and advise no search by caption alone. "
            )
            del found["caption"]
        gain = beside.gain
        verdict = "adds to" if gain.low > 0 else "takes from" if gain.high < 0 else "adds nothing to"
        return says + (
            f"{'By these the' if self.paraphrased else 'The'} alignment {verdict} captions: {gain.value:+.1%} "
            f"[{gain.low:+.1%}, {gain.high:+.1%}]. Items without a caption are found by the alignment alone. Search by "
            f"{max(found, key=lambda way: found[way])} where items have captions. An audit measures all three ways."
        )


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
        first, among = (bootstrap_mean(self._found(self.ranks, k), self.asked.groups, seed=seed) for k in (1, 10))
        return CaptionsAlone(queries, self.paraphrased, first, among)

    def beside_images(
        self, aligned: FloatArray, score: Score, images: IntArray, offset: npt.NDArray[np.floating], seed: int
    ) -> BesideImages | None:
        """Return what the queries find among images; None: too few queries.

        Args:
            aligned: the queries in the shared space (q, d).
            score: of aligned queries with the m images; higher is better.
            images: groups of the images (m,).
            offset: taken off the scores of each image (m,).
            seed: of the intervals.
        """
        if len(self.ranks) < FEWEST_QUERIES:
            return None
        by_image, fused = [], []
        for part in _parts(len(aligned)):
            groups = self.asked.groups[part]
            scores = np.nan_to_num(score(aligned[part]).astype(np.float64), nan=-np.inf) - offset
            of_images, names = _best_of_groups(scores, images)
            of_captions, same_names = _best_of_groups(self._scores(part), self.texts.groups)
            if not np.array_equal(names, same_names):
                raise AssertionError("every item of the collection has an image and a caption")
            by_image.append(_ranks(of_images, names, groups))
            both = (1 - CAPTION_WEIGHT) * _standardised(of_images) + CAPTION_WEIGHT * _standardised(of_captions)
            fused.append(_ranks(np.where(np.isfinite(of_captions), both, _standardised(of_images)), names, groups))
        hits = [self._found(np.concatenate(ranks), 10) for ranks in (by_image, fused)]
        alone = self._found(self.ranks, 10)
        return BesideImages(
            *(bootstrap_mean(values, self.asked.groups, seed=seed) for values in (*hits, hits[1] - alone))
        )

    def _scores(self, part: slice) -> Floats:
        return _caption_scores(self.asked, self.texts, part, but_itself=not self.paraphrased)

    @staticmethod
    def _found(ranks: Floats, k: int) -> Floats:
        return (ranks <= k).astype(np.float64)


def caption_queries(texts: ModalityEmbeddings, held_out: IntArray, seed: int) -> CaptionQueries:
    """Draw queries about the groups `held_out` among the captions of all items: captions, or paraphrases of them."""
    asking = texts.where(np.isin(texts.groups, held_out))
    rows = np.random.default_rng(seed).permutation(len(asking.groups))
    further = rows[np.bincount(texts.groups)[asking.groups[rows]] > 1][:MOST_QUERIES]
    queries = _ranked(_rows(asking.vectors, asking.groups, further), texts, paraphrased=False)
    if len(queries.ranks) >= FEWEST_QUERIES or len(rows) < FEWEST_QUERIES:
        return queries
    moved = paraphrased(asking.vectors, seed=seed)
    return _ranked(_rows(moved, asking.groups, rows[:MOST_QUERIES]), texts, paraphrased=True)


def _rows(vectors: FloatArray, groups: IntArray, rows: IntArray) -> ModalityEmbeddings:
    return ModalityEmbeddings(vectors[rows], groups[rows])


def _ranked(asked: ModalityEmbeddings, texts: ModalityEmbeddings, *, paraphrased: bool) -> CaptionQueries:
    """Rank the items of the queries by captions, and keep those whose item has one to be found by."""
    ranks = [np.empty(0)]
    for part in _parts(len(asked.groups)):
        scores, names = _best_of_groups(_caption_scores(asked, texts, part, but_itself=not paraphrased), texts.groups)
        ranks.append(_ranks(scores, names, asked.groups[part]))
    joined = np.concatenate(ranks)
    can_be_found = np.isfinite(joined)
    return CaptionQueries(asked.where(can_be_found), paraphrased, texts, joined[can_be_found])


def _parts(queries: int) -> Sequence[slice]:
    return [slice(start, start + AT_ONCE) for start in range(0, queries, AT_ONCE)]


def _caption_scores(asked: ModalityEmbeddings, texts: ModalityEmbeddings, part: slice, *, but_itself: bool) -> Floats:
    """Score some queries with all captions (q, n); a caption, and others of its item with its content, with -inf."""
    cosines: FloatArray = l2_normalize(asked.vectors[part]) @ l2_normalize(texts.vectors).T
    scores = cosines.astype(np.float64)
    if but_itself:
        scores[(asked.groups[part, None] == texts.groups) & (scores >= 1 - 1e-6)] = -np.inf
    return scores


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


def _standardised(scores: Floats) -> Floats:
    """Standardise scores by their mean and deviation over all queries and items."""
    finite = scores[np.isfinite(scores)]
    standardised: Floats = (scores - finite.mean()) / (finite.std() or 1.0)
    return standardised
