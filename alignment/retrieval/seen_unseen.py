"""Recall of seen and of unseen items by the offset of the seen: the seen-unseen curve, and the area under it.

Generalised zero-shot learning: Chao, Changpinyo, Gong and Sha (ECCV 2016). Exact for every offset at once: whether a
query finds a relevant item among its first `k` follows from its best relevant score and its `k` best rivals, of seen
and of unseen items apart. Items may come a page at a time; memory holds 2 (k + 1) scores of a query.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from alignment.retrieval.ranks import Ranks

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Shares = TypeVar("Shares", float, Floats)
# Is lost in any sum but that of two zeros.
TINY = 1e-300
# Offsets that a curve is computed at.
POINTS = 100


def harmonic_mean(one: Shares, other: Shares) -> Shares:
    """Return the harmonic mean of two shares, or of shares (n,) and shares (n,): 0 where either is.

    >>> harmonic_mean(0.25, 0.75), harmonic_mean(0.0, 1.0), harmonic_mean(0.0, 0.0)
    (0.375, 0.0, 0.0)
    """
    return 2 * one * other / (one + other + TINY)


def area_under(unseen: Floats, seen: Floats) -> float:
    """Return the area under the seen-unseen curve (AUSUC), in [0, 1].

    Args:
        unseen: recall of queries about unseen items by ascending offsets (o,), best from -inf to inf.
        seen: recall of queries about seen items by the same offsets (o,).

    Left of its first point the curve goes on level to the axis.
    """
    return float(np.trapezoid(np.append(seen[:1], seen), np.append(0.0, unseen)))


@dataclass(slots=True)
class SeenUnseenScores:
    """The best scores of n queries with seen and with unseen items.

    Attributes:
        relevant: best score of a relevant item, seen ones in the first row and unseen ones in the second (2, n);
            -inf where there is none.
        floors: lowest scores that count as the same as those (2, n).
        has_relevant: whether a query has a relevant item of any kind (n,).
        rivals: the k best scores of irrelevant items, best first (2, n, k); NaN where there are fewer.
    """

    relevant: Floats
    floors: Floats
    has_relevant: Mask
    rivals: Floats

    @classmethod
    def empty(cls, queries: int, k: int) -> "SeenUnseenScores":
        """Begin without items."""
        nothing = np.full((2, queries), -np.inf)
        return cls(nothing, nothing.copy(), np.zeros(queries, bool), np.full((2, queries, k), np.nan))

    def add(
        self,
        scores: npt.NDArray[np.floating],
        relevant: Mask,
        seen: Mask,
        *,
        floors: Callable[[Floats], npt.NDArray[np.floating]],
        rows: slice = slice(None),
        squared: bool = False,
    ) -> None:
        """Add a page of items.

        Args:
            scores: of c queries with m items (c, m), without any offset; higher is better. An irrelevant item without
                a score (NaN) ranks first, a relevant one last. Minus the squares of distances where `squared`.
            relevant: which items are relevant to which queries (c, m).
            seen: which items the fit saw (m,).
            floors: takes one score (c,) of each of these queries, minus the distance where `squared`, and returns the
                lowest that counts as the same.
            rows: which c of the n queries.
            squared: offsets are taken off minus the squared distance, as `metrics.seen_offset.is_squared` says.
        """
        exact = scores.astype(np.float64)
        self.has_relevant[rows] |= relevant.any(axis=1)
        for kind, columns in enumerate((seen, ~seen)):
            own, is_relevant = exact[:, columns], relevant[:, columns]
            lost = np.isnan(own)
            best = np.where(is_relevant & ~lost, own, -np.inf).max(axis=1, initial=-np.inf)
            self.relevant[kind, rows] = np.maximum(self.relevant[kind, rows], best)
            lowest = signed_squares(floors(signed_roots(best)).astype(np.float64)) if squared else floors(best)
            self.floors[kind, rows] = np.maximum(self.floors[kind, rows], lowest)
            own[lost] = np.inf
            own[is_relevant] = np.nan
            self.rivals[kind, rows] = _best(np.concatenate([self.rivals[kind, rows], own], axis=1), self._k)

    def join(self, other: "SeenUnseenScores") -> None:
        """Add the items of another one of the same queries."""
        self.has_relevant |= other.has_relevant
        np.maximum(self.relevant, other.relevant, out=self.relevant)
        np.maximum(self.floors, other.floors, out=self.floors)
        for kind in range(2):
            self.rivals[kind] = _best(np.concatenate([self.rivals[kind], other.rivals[kind]], axis=1), self._k)

    @property
    def _k(self) -> int:
        return int(self.rivals.shape[2])

    def ranks(self, offset: float) -> Ranks:
        """Rank the best relevant item of every query, with `offset` taken off the scores of seen items.

        Irrelevant items of the same score, as far as float32 can tell, rank first.

        Args:
            offset: also negative; with inf all unseen items stand before all seen ones, with -inf behind.

        Returns:
            ranks (n,), from 1 to k; infinity where no relevant item is among the first k.
        """
        seen, unseen = self.floors
        # A rival stands before the best relevant item of its own kind, or of the other kind once that is moved.
        seen_floor = np.maximum(seen, _moved(unseen, offset))
        unseen_floor = np.maximum(_moved(seen, -offset), unseen)
        before = (self.rivals[0] >= seen_floor[:, None]).sum(axis=1)
        before += (self.rivals[1] >= unseen_floor[:, None]).sum(axis=1)
        return np.where(self.has_relevant & (before < self._k), before + 1.0, np.inf)

    def finds_seen_first(self, offset: float) -> Mask:
        """Say of each query (n,) whether a seen item is its first hit; of equal scores, seen items rank first."""
        seen, unseen = (np.fmax(self.relevant[kind], self.rivals[kind, :, 0]) for kind in range(2))
        is_first: Mask = (_moved(seen, -offset) >= unseen) & (seen > -np.inf)
        return is_first

    def turning_offsets(self) -> Floats:
        """Return the offsets at which queries begin or cease to be found among the first k (t,), ascending.

        Those of queries whose relevant items are of one kind alone. Quantiles of them make an even curve.
        """
        turns = []
        for kind, sign in ((0, -1.0), (1, 1.0)):
            own, other = self.floors[kind], self.rivals[1 - kind]
            before = (self.rivals[kind] >= own[:, None]).sum(axis=1)
            may_turn = np.isfinite(own) & np.isneginf(self.relevant[1 - kind]) & (before < self._k)
            last = other[may_turn, self._k - 1 - before[may_turn]]  # the rival that pushes it out of the list
            turns.append(sign * (last - own[may_turn]))
        joined = np.concatenate(turns)
        return np.sort(joined[np.isfinite(joined)])


@dataclass(frozen=True, slots=True)
class SeenUnseenCurve:
    """Recall@K of queries about unseen and about seen items as the offset of the seen grows.

    Attributes:
        k: length of the result lists.
        offsets: ascending, from -inf to inf (o,).
        unseen, seen: Recall@K with each offset (o,); the one mostly grows, the other mostly falls.
    """

    k: int
    offsets: Floats
    unseen: Floats
    seen: Floats

    @property
    def area(self) -> float:
        """Area under it (AUSUC), in [0, 1]."""
        return area_under(self.unseen, self.seen)


def curve(seen: SeenUnseenScores, unseen: SeenUnseenScores, offsets: Sequence[float] = ()) -> SeenUnseenCurve:
    """Compute the seen-unseen curve at some `POINTS` offsets, evenly along it, at `offsets` and without one.

    Args:
        seen: of queries about seen items, at least one.
        unseen: of queries about unseen items of the same collection, at least one, with lists as long.
        offsets: further ones to compute it at.
    """
    turns = np.concatenate([seen.turning_offsets(), unseen.turning_offsets()])
    even = np.quantile(turns, np.linspace(0, 1, POINTS)) if len(turns) else turns
    at = np.unique([-np.inf, *even, *offsets, 0.0, np.inf])
    of_unseen, of_seen = ([float(np.isfinite(s.ranks(offset)).mean()) for offset in at] for s in (unseen, seen))
    return SeenUnseenCurve(seen.rivals.shape[2], at, np.array(of_unseen), np.array(of_seen))


def signed_squares(scores: Floats) -> Floats:
    """Square scores (...) and keep their signs: minus a distance becomes minus its square."""
    return scores * np.abs(scores)


def signed_roots(scores: Floats) -> Floats:
    """Return what `signed_squares` turns into `scores` (...)."""
    roots: Floats = np.sign(scores) * np.sqrt(np.abs(scores))
    return roots


def _moved(scores: Floats, by: float) -> Floats:
    """Add an offset to scores (n,); what is missing (-inf) stays so, also where the offset is inf."""
    moved = np.full_like(scores, -np.inf)
    present = scores > -np.inf
    with np.errstate(invalid="ignore"):  # inf, of an item without a score, minus inf
        moved[present] = scores[present] + by
    return moved


def _best(scores: Floats, k: int) -> Floats:
    """Return the k best of scores (n, m) best first, m at least k; NaN last."""
    worst_first = -scores  # NumPy sorts NaN to the end
    if scores.shape[1] > k:
        worst_first = np.partition(worst_first, k - 1, axis=1)[:, :k]
    return -np.sort(worst_first, axis=1)
