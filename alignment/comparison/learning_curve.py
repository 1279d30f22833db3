"""Learning curves: Recall@10 of fits on parts of the training groups, and a forecast for twice the groups.

What counts is Recall@10 of new items in one collection, the same for every size, so that nothing but the fit differs.

Two laws are fitted to the points: the error falls as a power of the number of groups (Hestness et al. 2017,
arXiv 1712.00409), and recall grows by a constant with every doubling. The first flattens, the second does not. There is
no forecast unless the points before the last one would have forecast the last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.comparison.paired_bootstrap import Floats, Hits, estimate
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.grouped import GroupedEmbeddings

FRACTIONS = (1 / 8, 1 / 4, 1 / 2)
# Subsamples of each size: which groups are in one matters as much as how many.
REPEATS = 3
# Fewer groups to fit on are no point of a curve.
FEWEST = 20
# A law needs two points, and one more to be tried on.
FEWEST_POINTS = 3
# Recall@10, the last of `KS`, and the mean of both directions, the last of `Hits`.
MEAN_AT_10 = (-1, -1)

Measure = Callable[[GroupedEmbeddings], Hits]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Recall@10 of new items, mean of both directions, of fits on `groups` groups.

    Attributes:
        recall: mean over the subsamples; its interval counts both the test groups and which subsample it was.
        samples: recalls of resampled test groups and subsamples (b,).
    """

    groups: int
    recall: Estimate
    samples: Floats


@dataclass(frozen=True, slots=True)
class Forecast:
    """The expected gain from twice the groups.

    Attributes:
        groups: twice those of the training split.
        gain: of Recall@10 by the power law; the interval holds what either law gives for drawn samples.
        recall: today's plus the gain.
    """

    groups: int
    gain: Estimate
    recall: Estimate


@dataclass(frozen=True, slots=True)
class Curve:
    """A learning curve with fixed hyperparameters.

    Attributes:
        points: fewest groups first; the last is the whole training split.
        last_doubling: recall of the last point minus that of the one before; None of a single point.
        forecast: None where the points do not support one, for the reason in `why_not`.
    """

    pair: str
    method: str
    points: list[CurvePoint]
    last_doubling: Estimate | None
    forecast: Forecast | None
    why_not: str


def subsamples(known: GroupedEmbeddings, seed: int) -> list[list[GroupedEmbeddings]]:
    """Draw `REPEATS` subsamples of each size that is large enough, nested, smallest first."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(known.groups) for _ in range(REPEATS)]
    sizes = [round(fraction * len(known.groups)) for fraction in FRACTIONS]
    return [[known.only(order[:size]) for order in orders] for size in sizes if size >= FEWEST]


def learning_curve(
    pair: str,
    method: str,
    known: GroupedEmbeddings,
    measure: Measure,
    whole: Hits,
    *,
    seed: int,
    replicates: int = 1000,
) -> Curve:
    """Measure fits on subsamples of the training groups.

    Args:
        pair, method: names for the reader.
        measure: fits on some groups and counts the hits of the test groups.
        whole: hits of the test groups by the fit on all groups.
    """
    rng = np.random.default_rng(seed)
    points = []
    for drawn in subsamples(known, seed):
        found = [measure(part) for part in drawn]
        samples = np.stack([hits.resampled(seed, replicates)[:, *MEAN_AT_10] for hits in found])  # (repeats, b)
        picked = samples[rng.integers(len(found), size=replicates), np.arange(replicates)]
        value = float(np.mean([hits.recalls()[MEAN_AT_10] for hits in found]))
        points.append(CurvePoint(len(drawn[0].groups), estimate(value, picked), picked))
    samples = whole.resampled(seed, replicates)[:, *MEAN_AT_10]
    value = float(whole.recalls()[MEAN_AT_10])
    points.append(CurvePoint(len(known.groups), estimate(value, samples), samples))
    forecast, why_not = forecast_of(points, int(whole.asked.sum()))
    return Curve(pair, method, points, _last_doubling(points), forecast, why_not)


def _last_doubling(points: Sequence[CurvePoint]) -> Estimate | None:
    if len(points) < 2:
        return None
    before, last = points[-2:]
    return estimate(last.recall.value - before.recall.value, last.samples - before.samples)


def forecast_of(points: Sequence[CurvePoint], queries: int) -> tuple[Forecast | None, str]:
    """Forecast one doubling, or say why the points do not support a forecast."""
    if len(points) < FEWEST_POINTS:
        return None, f"a law takes {FEWEST_POINTS} sizes of at least {FEWEST} groups, got {len(points)}"
    floor = 0.5 / queries  # an error of 0 has no logarithm
    truth = points[-1].samples - points[-2].samples
    missed = _around(0.0, [truth - gains for gains in _gains(points[:-1], floor)])
    if not missed.low <= 0 <= missed.high:
        return None, "the earlier sizes would not have forecast the last one"
    last, by_law = points[-1], _gains(points, floor)
    sizes = np.log2([point.groups for point in points])
    gain = float(_power_law(sizes, np.array([[point.recall.value] for point in points]), floor)[0])
    recall = _around(last.recall.value + gain, [last.samples + gains for gains in by_law])
    return Forecast(2 * last.groups, _around(gain, by_law), recall), ""


def _around(value: float, by_law: Sequence[Floats]) -> Estimate:
    """A value with an interval that holds those of all laws."""
    estimates = [estimate(value, samples) for samples in by_law]
    return Estimate(value, min(each.low for each in estimates), max(each.high for each in estimates))


def _gains(points: Sequence[CurvePoint], floor: float) -> tuple[Floats, Floats]:
    """What one doubling beyond the last point brings under both laws, (b,) each."""
    sizes = np.log2([point.groups for point in points])
    recalls = np.array([point.samples for point in points])  # (p, b)
    return _power_law(sizes, recalls, floor), _straight(sizes, recalls)


def _power_law(sizes: Floats, recalls: Floats, floor: float) -> Floats:
    """`e(n) (1 - 2^slope)` with the slope of log2 e over log2 n."""
    errors = np.log2(np.maximum(1 - recalls, floor))
    gains: Floats = 2 ** errors[-1] * (1 - 2 ** _slopes(sizes, errors))
    return gains


def _straight(sizes: Floats, recalls: Floats) -> Floats:
    """The slope of Recall over log2 n, and not more than is missing."""
    gains: Floats = np.minimum(_slopes(sizes, recalls), 1 - recalls[-1])
    return gains


def _slopes(sizes: Floats, values: Floats) -> Floats:
    """Least-squares slopes of values (p, b) over sizes (p,)."""
    centred = sizes - sizes.mean()
    slopes: Floats = centred @ values / (centred @ centred)
    return slopes
