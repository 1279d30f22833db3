"""What captions alone would find, without any alignment: the baseline where items have captions.

Held-out captions look for their own items among the captions of all, by cosine in the space of their encoder. A caption
never finds itself, so only captions whose item has a further one can ask. The best of an item's captions counts. Where
too few have, paraphrases of the captions ask, which flatter captions: people ask in other words.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from alignment.retrieval.bootstrap import Estimate, bootstrap_mean
from alignment.retrieval.grouped import ModalityEmbeddings
from alignment.retrieval.paraphrases import paraphrased
from alignment.retrieval.ranks import IntArray
from alignment.vectors import FloatArray, l2_normalize

# Fewer queries say nothing; of more, so many are asked.
FEWEST_QUERIES, MOST_QUERIES = 20, 1_000
AT_ONCE = 100


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


def captions_alone(asking: ModalityEmbeddings, known: ModalityEmbeddings, seed: int) -> CaptionsAlone:
    """Ask with each held-out caption of `asking` among all others of it and of `known`; else with paraphrases."""
    vectors = l2_normalize(np.concatenate([asking.vectors, known.vectors]))
    groups = np.concatenate([asking.groups, known.groups])
    rows = np.random.default_rng(seed).permutation(len(asking.groups))
    may_ask = rows[np.bincount(groups)[groups[rows]] > 1][:MOST_QUERIES]
    further = _alone(vectors[may_ask], groups[may_ask], vectors, groups, seed, but_itself=True)
    if further.among is not None or len(rows) < FEWEST_QUERIES:
        return further
    rows = rows[:MOST_QUERIES]
    moved = paraphrased(asking.vectors, seed=seed)[rows]
    return replace(_alone(moved, groups[rows], vectors, groups, seed, but_itself=False), paraphrased=True)


def _alone(
    queries: FloatArray, asked: IntArray, vectors: FloatArray, groups: IntArray, seed: int, *, but_itself: bool
) -> CaptionsAlone:
    """Measure unit queries (q, d) about the groups `asked` (q,) among the captions (n, d) of `groups` (n,)."""
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(asked), AT_ONCE)]
    of_parts = (_ranks(queries[part], asked[part], vectors, groups, but_itself=but_itself) for part in parts)
    ranks = np.concatenate([np.empty(0), *of_parts])
    found = np.isfinite(ranks)
    if found.sum() < FEWEST_QUERIES:
        return CaptionsAlone(int(found.sum()))
    first, among = (bootstrap_mean((ranks[found] <= k).astype(np.float64), asked[found], seed=seed) for k in (1, 10))
    return CaptionsAlone(int(found.sum()), first=first, among=among)


def _ranks(
    queries: FloatArray, asked: IntArray, vectors: FloatArray, groups: IntArray, *, but_itself: bool
) -> npt.NDArray[np.float64]:
    """Return the rank of its own group for each query (q,); infinity where that has no other content."""
    scores = queries @ vectors.T  # (q, n)
    own = asked[:, None] == groups[None]
    if but_itself:
        scores[own & (scores >= 1 - 1e-6)] = -np.inf  # the caption itself, and others with the same content
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    best = np.maximum.reduceat(scores[:, order], starts, axis=1)  # (q, groups)
    of_own = np.where(own, scores, -np.inf).max(1)
    others = groups[order][starts][None] != asked[:, None]
    ranks = 1.0 + ((best >= of_own[:, None]) & others).sum(1)
    return np.where(np.isfinite(of_own), ranks, np.inf)
