"""A paired bootstrap: intervals of the Recall@K of several methods on the same queries, and of their differences.

Groups are drawn with replacement, the same for every method, so queries that are hard for all of them do not widen the
interval of a difference. One method is called better only under intervals that hold for all differences together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.grouped import GroupedEmbeddings
from alignment.retrieval.ranks import Ranks

Floats = npt.NDArray[np.float64]

REPLICATES = 1000
# Fewer groups tell nothing apart: a bootstrap of so few is too sure of itself.
FEWEST_GROUPS = 30


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
    def of(cls, both: tuple[Ranks, Ranks], data: GroupedEmbeddings) -> "Hits":
        """Add up the ranks that `GroupedEmbeddings.ranks` gave."""
        groups = data.groups
        found, asked = [], []
        for ranks, side in zip(both, (data.text, data.image), strict=True):
            places = np.searchsorted(groups, side.groups)
            found.append([np.bincount(places, ranks <= k, minlength=len(groups)) for k in KS])
            asked.append(np.bincount(places, minlength=len(groups)))
        return cls(np.array(found, np.float64), np.array(asked, np.float64))

    def recalls(self) -> Floats:
        """Recall@K (3, 3): text to image, image to text and the mean of the two, by `KS`."""
        return _recalls(self.found.sum(axis=2), self.asked.sum(axis=1))

    def resampled(self, seed: int, replicates: int = REPLICATES) -> Floats:
        """Recall@K of resampled groups, (replicates, 3, 3); one seed draws the same groups for every method."""
        rng, count = np.random.default_rng(seed), self.asked.shape[1]
        results = np.empty((replicates, 3, len(KS)))
        for replicate in range(replicates):
            drawn = np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)  # (g,)
            results[replicate] = _recalls(self.found @ drawn, self.asked @ drawn)
        return results


def _recalls(found: Floats, asked: Floats) -> Floats:
    by_direction = found / asked[:, None]  # (2, 3)
    return np.concatenate([by_direction, by_direction.mean(axis=0, keepdims=True)])


def estimate(value: float, samples: Floats) -> Estimate:
    """A value with the 95% percentile interval of its samples (b,)."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which of several methods has the highest value, and which do not differ from it significantly.

    Attributes:
        order: numbers of all methods, the best first.
        tied: those that do not differ significantly from the first of `order`, itself included, in that order.
        taken: the cheapest of `tied`.
        margins: half-widths (r, r) of the intervals of all differences, which hold together in 95 of 100 samples.
    """

    values: Floats
    order: list[int]
    tied: list[int]
    taken: int
    margins: Floats

    def difference(self, one: int, other: int) -> Estimate:
        """How much higher the value of `one` is than that of `other`."""
        between, margin = float(self.values[one] - self.values[other]), float(self.margins[one, other])
        return Estimate(between, between - margin, between + margin)


def judge(values: Sequence[float], samples: Sequence[Floats], costs: Sequence[Any], groups: int) -> Verdict:
    """Compare r methods that were measured on the same groups.

    Args:
        values: of each, higher is better (r,).
        samples: values on resampled groups, with the same draws for all, (b,) each.
        costs: orders those that do not differ significantly.
        groups: number of groups; of fewer than `FEWEST_GROUPS` no difference is significant.
    """
    found, drawn = np.asarray(values, np.float64), np.asarray(samples)  # (r,), (r, b)
    margins = _margins(found, drawn) if groups >= FEWEST_GROUPS else np.full((len(found), len(found)), np.inf)
    order = [int(number) for number in np.argsort(-found, kind="stable")]
    best = order[0]
    tied = [number for number in order if found[best] - found[number] <= margins[best, number]]
    taken = min(tied, key=lambda number: (costs[number], order.index(number)))
    return Verdict(found, order, tied, taken, margins)


def _margins(values: Floats, samples: Floats) -> Floats:
    """Half-widths by the largest studentised deviation of any difference."""
    away = (samples[:, None] - samples[None]) - (values[:, None] - values[None])[:, :, None]  # (r, r, b)
    errors = away.std(axis=2)  # (r, r)
    largest = np.max(np.abs(away) / np.where(errors > 0, errors, np.inf)[:, :, None], axis=(0, 1))  # (b,)
    margins: Floats = float(np.percentile(largest, 95)) * errors
    return margins
