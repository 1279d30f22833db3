"""A paired bootstrap: intervals of the Recall@K of several methods on the same queries, and of their differences.

Groups are drawn with replacement, the same for every method, so queries that are hard for all of them do not widen the
interval of a difference. One method is called better only under intervals that hold for all differences together; a
cheaper one stands in for the preferred one only where these bound what it loses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment.retrieval.bootstrap import Estimate, times_drawn
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.ranks import IntArray, Ranks
from alignment.retrieval.seen_unseen import harmonic_mean

Floats = npt.NDArray[np.float64]

REPLICATES = 1000
# Fewer groups tell nothing apart: a bootstrap of so few is too sure of itself.
FEWEST_GROUPS = 30
# What a cheaper method may lose at most.
MARGIN = 0.01


@dataclass(frozen=True, slots=True)
class Hits:
    """What queries found, added up by group, so that groups can be drawn.

    Attributes:
        found: queries with a relevant item among the first k, (2, 3, g): text to image and image to text, by `KS`.
        asked: queries (2, g).
    """

    found: Floats
    asked: Floats

    @classmethod
    def of(cls, both: tuple[Ranks, Ranks], queried: tuple[IntArray, IntArray], groups: IntArray) -> "Hits":
        """Add up ranks.

        Args:
            both: ranks of the queries of both directions.
            queried: their groups.
            groups: that are drawn (g,), ascending; those of all queries, and maybe some without a query.
        """
        found, asked = [], []
        for ranks, own in zip(both, queried, strict=True):
            places = np.searchsorted(groups, own)
            found.append([np.bincount(places, ranks <= k, minlength=len(groups)) for k in KS])
            asked.append(np.bincount(places, minlength=len(groups)))
        return cls(np.array(found, np.float64), np.array(asked, np.float64))

    def recalls(self) -> Floats:
        """Recall@K (3, 3): text to image, image to text and the mean of the two, by `KS`."""
        recalls: Floats = _with_mean(self.whole())[0]
        return recalls

    def resampled(self, seed: int, replicates: int = REPLICATES) -> Floats:
        """Recall@K of resampled groups, (replicates, 3, 3); one seed draws the same groups for every method."""
        return _with_mean(self.drawn(np.random.default_rng(seed), replicates))

    def whole(self) -> Floats:
        """Recall@K (1, 2, 3) of both directions, each group once."""
        return self._by_direction(np.ones((1, self.asked.shape[1])))

    def drawn(self, rng: np.random.Generator, replicates: int) -> Floats:
        """Recall@K (replicates, 2, 3) of both directions, of groups that `rng` draws."""
        drawn = times_drawn(self.asked.shape[1], rng, replicates)
        return np.concatenate([self._by_direction(times.astype(np.float64)) for times in drawn])

    def _by_direction(self, times: Floats) -> Floats:
        """Recall@K (r, 2, 3) with each group so many times (r, g); 0 of no queries."""
        found, asked = self.found @ times.T, self.asked @ times.T  # (2, 3, r), (2, r); sums of counts are exact
        recalls: Floats = np.moveaxis(found / np.maximum(asked, 1)[:, None], -1, 0)
        return recalls


@dataclass(frozen=True, slots=True)
class WholeHits:
    """What queries about seen and about unseen items found in one collection. Groups of either are drawn apart."""

    seen: Hits
    unseen: Hits

    def recalls(self) -> Floats:
        """Recall@K (3, 3, 3): of seen items, of unseen items and their harmonic mean, each as `Hits.recalls`."""
        recalls: Floats = _with_harmonic(self.seen.whole(), self.unseen.whole())[0]
        return recalls

    def resampled(self, seed: int, replicates: int = REPLICATES) -> Floats:
        """Return the recalls of resampled groups, (replicates, 3, 3, 3)."""
        rng = np.random.default_rng(seed)
        return _with_harmonic(self.seen.drawn(rng, replicates), self.unseen.drawn(rng, replicates))


def _with_harmonic(seen: Floats, unseen: Floats) -> Floats:
    """Add the harmonic mean to recalls (r, 2, 3) of both kinds; the mean of directions is that of harmonic means."""
    return np.stack([_with_mean(recalls) for recalls in (seen, unseen, harmonic_mean(seen, unseen))], axis=1)


def _with_mean(by_direction: Floats) -> Floats:
    return np.concatenate([by_direction, by_direction.mean(axis=1, keepdims=True)], axis=1)


def estimate(value: float, samples: Floats) -> Estimate:
    """A value with the 95% percentile interval of its samples (b,)."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which of several methods is preferred, and which cheaper one may stand in for it.

    Attributes:
        order: numbers of all methods, the highest value first.
        preferred: number of the one that is taken unless a cheaper one loses next to nothing.
        taken: the cheapest of those that lose less than `MARGIN` against `preferred`, by the upper bound of the loss.
        margins: half-widths (r, r) of the intervals of all differences, which hold together in 95 of 100 samples.
    """

    values: Floats
    order: list[int]
    preferred: int
    taken: int
    margins: Floats

    def difference(self, one: int, other: int) -> Estimate:
        """How much higher the value of `one` is than that of `other`."""
        between, margin = float(self.values[one] - self.values[other]), float(self.margins[one, other])
        return Estimate(between, between - margin, between + margin)


def judge(
    values: Sequence[float],
    samples: Sequence[Floats],
    costs: Sequence[Any],
    groups: int,
    preferred: int | None = None,
) -> Verdict:
    """Compare r methods that were measured on the same groups.

    Args:
        values: of each, higher is better (r,).
        samples: values on resampled groups, with the same draws for all, (b,) each.
        costs: of each, in an order.
        groups: number of groups; of fewer than `FEWEST_GROUPS` no difference is significant.
        preferred: number of the method that was chosen on other data; None: the one with the highest value.
    """
    measured, drawn = np.asarray(values, np.float64), np.asarray(samples)  # (r,), (r, b)
    count = len(measured)
    margins = _margins(measured, drawn) if groups >= FEWEST_GROUPS else np.full((count, count), np.inf)
    order = [int(number) for number in np.argsort(-measured, kind="stable")]
    best = order[0] if preferred is None else preferred
    losses = measured[best] - measured + margins[best]  # upper bounds
    stand_ins = [number for number in order if losses[number] < MARGIN and costs[number] < costs[best]]
    taken = min(stand_ins, key=lambda number: (costs[number], order.index(number)), default=best)
    return Verdict(measured, order, best, taken, margins)


def _margins(values: Floats, samples: Floats) -> Floats:
    """Half-widths by the largest studentised deviation of any difference."""
    away = (samples[:, None] - samples[None]) - (values[:, None] - values[None])[:, :, None]  # (r, r, b)
    errors = away.std(axis=2)  # (r, r)
    largest = np.max(np.abs(away) / np.where(errors > 0, errors, np.inf)[:, :, None], axis=(0, 1))  # (b,)
    margins: Floats = float(np.percentile(largest, 95)) * errors
    return margins
