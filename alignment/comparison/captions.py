"""What captions alone would find, without any alignment: the baseline where items have captions.

Held-out captions look for their own items among the captions of all, by cosine in the space of their encoder. A caption
never finds itself, so only captions whose item has a further one can ask. The best of an item's captions counts.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alignment.retrieval.bootstrap import Estimate, bootstrap_mean
from alignment.retrieval.grouped import ModalityEmbeddings
from alignment.retrieval.ranks import IntArray
from alignment.vectors import FloatArray, l2_normalize

# Fewer queries say nothing; of more, so many are asked.
FEWEST_QUERIES, MOST_QUERIES = 20, 1_000
AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class CaptionsAlone:
    """What captions find.

    Attributes:
        queries: held-out captions of items with a further caption, that were asked.
        first, among: Recall@1 and Recall@10; None: too few queries.
    """

    queries: int
    first: Estimate | None = None
    among: Estimate | None = None


def captions_alone(asking: ModalityEmbeddings, known: ModalityEmbeddings, seed: int) -> CaptionsAlone:
    """Ask with each held-out caption of `asking` among all others of it and of `known`."""
    vectors = l2_normalize(np.concatenate([asking.vectors, known.vectors]))
    groups = np.concatenate([asking.groups, known.groups])
    rows = np.random.default_rng(seed).permutation(len(asking.groups))
    rows = rows[np.bincount(groups)[groups[rows]] > 1][:MOST_QUERIES]
    parts = [rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE)]
    ranks = np.concatenate([np.empty(0), *(_ranks(vectors, groups, part) for part in parts)])
    asked = np.isfinite(ranks)
    if asked.sum() < FEWEST_QUERIES:
        return CaptionsAlone(int(asked.sum()))
    first, among = (
        bootstrap_mean((ranks[asked] <= k).astype(np.float64), groups[rows][asked], seed=seed) for k in (1, 10)
    )
    return CaptionsAlone(int(asked.sum()), first, among)


def _ranks(vectors: FloatArray, groups: IntArray, rows: IntArray) -> npt.NDArray[np.float64]:
    """Return the rank of its own group for each of the rows (q,); infinity where it has no other content."""
    scores = vectors[rows] @ vectors.T  # (q, n)
    own = groups[rows, None] == groups[None]
    same = own & (scores >= 1 - 1e-6)  # the caption itself, and others with the same content
    scores[same] = -np.inf
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    best = np.maximum.reduceat(scores[:, order], starts, axis=1)  # (q, groups)
    of_own = np.where(own, scores, -np.inf).max(1)
    others = groups[order][starts][None] != groups[rows, None]
    ranks = 1.0 + ((best >= of_own[:, None]) & others).sum(1)
    return np.where(np.isfinite(of_own), ranks, np.inf)
