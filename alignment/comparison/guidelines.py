"""Guidelines: the conclusions that the intervals of a comparison support, each with its evidence.

One choice is called better than another only under intervals that hold simultaneously for all differences of its
question. Where no difference can be shown, the guideline says so and advises the cheapest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignment.comparison.compare import DOES_NOT_APPLY
from alignment.comparison.learning_curve import REPEATS, Curve
from alignment.comparison.paired_bootstrap import FEWEST_GROUPS, Floats, Verdict, judge
from alignment.comparison.table import Comparison, Fitted, MetricRow, best_validated
from alignment.metrics import Guarantee, LearnedMetric, parse

IDENTITY = "identity"
# Of fewer rows not even a perfect rank correlation is rarer by chance than LIKELY.
FEWEST_ROWS = 5
LIKELY = 0.05
PERMUTATIONS = 9_999
# Recall@10 that twice the data is not worth collecting for.
LITTLE = 0.01


@dataclass(frozen=True, slots=True)
class Guideline:
    """A sentence or some, and what they rest on."""

    topic: str
    says: str
    rests_on: str


@dataclass(frozen=True, slots=True)
class Advice:
    """Which encoder pair, method and metric to take, and all that can be said about it."""

    pair: str
    method: str
    metric: str
    guidelines: list[Guideline]


def advise(comparison: Comparison) -> Advice:
    """Say which pair of encoders, method and metric the comparison supports, each as a guideline with its evidence."""
    pair, encoders = _encoders(comparison)
    fitted, method = _method(comparison, pair)
    row, metric = _metric(comparison, fitted)
    guidelines = [
        _short(comparison, fitted, row),
        *encoders,
        method,
        metric,
        *_identity(comparison, fitted),
        *(_data(comparison, curve) for curve in comparison.curves),
        _gap(comparison),
        *_missing(comparison),
    ]
    return Advice(pair, fitted.method, row.metric, guidelines)


def _short(comparison: Comparison, fitted: Fitted, row: MetricRow) -> Guideline:
    chance = next(pair.chance["recall@10"] for pair in comparison.pairs if pair.name == fitted.pair)
    says = f"Take {fitted.method}{_where(comparison, fitted.pair)} under {row.metric}: Recall@10 {row.recall}"
    says += f", where chance gives {chance:.3f}."
    if row.recall.low <= chance:
        says += " That cannot be told from chance: see whether the items of a group belong together."
    rests_on = (
        f"{_asked(comparison)}. One fit on {comparison.training_groups:,} groups: how much fits on others would differ "
        "is not in the interval."
    )
    return Guideline("in short", says, rests_on)


def _encoders(comparison: Comparison) -> tuple[str, list[Guideline]]:
    """Compare what validated best for each pair, under the reference metric, over methods that no pair still lacks."""
    if len(comparison.pairs) == 1:
        return comparison.pairs[0].name, []
    fair = [fit for fit in comparison.fitted if not _lacking(comparison, fit.method)]
    found = [own for pair in comparison.pairs if (own := [fit for fit in fair if fit.pair == pair.name])]
    if len(found) < len(comparison.pairs):
        says = "Encoder pairs cannot be compared: there is no method that was run wherever it applies."
        return best_validated(comparison.fitted).pair, [Guideline("encoders", says, "What was not run, below.")]
    best = [best_validated(own) for own in found]
    verdict = _judged(comparison, [fit.rows[0] for fit in best], [fit.rows[0].stored_floats for fit in best])
    names = [f"{fit.pair} (with {fit.method})" for fit in best]
    cost = f"{best[verdict.taken].rows[0].stored_floats} numbers an item"
    rests_on = (
        f"Each pair with what validated best of {_listed(sorted({fit.method for fit in fair}))}, under "
        f"{comparison.reference}. {_asked(comparison)}, the same for all pairs."
    )
    says, pair = _said(comparison, verdict, names, cost), best[verdict.taken].pair
    overall = best_validated(comparison.fitted)
    if overall not in fair:
        says += f" {overall.method} on {overall.pair} validated better than all of these, and lacks the comparison."
        pair = overall.pair
    return pair, [Guideline("encoders", says, rests_on)]


def _lacking(comparison: Comparison, method: str) -> bool:
    """Whether a method that applies to an encoder pair was not run for it."""
    whats = {f"{method} on {pair.name}" for pair in comparison.pairs}
    return any(
        missing.what in whats and not missing.reason.startswith(DOES_NOT_APPLY) for missing in comparison.not_run
    )


def _where(comparison: Comparison, pair: str) -> str:
    """Name the encoder pair, where there are several."""
    return f" on {pair}" if len(comparison.pairs) > 1 else ""


def _method(comparison: Comparison, pair: str) -> tuple[Fitted, Guideline]:
    fitted = comparison.by_pair(pair)
    verdict = _judged(
        comparison, [fit.rows[0] for fit in fitted], [(sum(fit.multiply_adds.values()), fit.dim) for fit in fitted]
    )
    taken = fitted[verdict.taken]
    cost = f"{taken.multiply_adds['text']:,} multiplications to project a text"
    rests_on = (
        f"{_under(comparison, pair)} Cross-validation, which saw the training groups "
        f"alone, prefers {best_validated(fitted).method}."
    )
    return taken, Guideline("method", _said(comparison, verdict, [f.method for f in fitted], cost), rests_on)


def _metric(comparison: Comparison, fitted: Fitted) -> tuple[MetricRow, Guideline]:
    verdict = _judged(comparison, fitted.rows, [_cost(row) for row in fitted.rows])
    taken = fitted.rows[verdict.taken]
    cost = f"{taken.guarantee}, {taken.stored_floats} numbers an item"
    rests_on = (
        f"After {fitted.method}{_where(comparison, fitted.pair)}, whose hyperparameters were chosen under "
        f"{comparison.reference}. "
        f"{_asked(comparison)}."
    )
    says = _said(comparison, verdict, [row.metric for row in fitted.rows], cost)
    return taken, Guideline("metric", says, rests_on)


def _cost(row: MetricRow) -> tuple[bool, int, bool]:
    """Order by cost: rescored metrics after exact ones, then by stored numbers, then learned metrics after others."""
    return row.guarantee != Guarantee.EXACT, row.stored_floats, isinstance(parse(row.metric), LearnedMetric)


def _identity(comparison: Comparison, taken: Fitted) -> Iterator[Guideline]:
    """Say whether the vectors would do as they are."""
    fitted = comparison.by_pair(taken.pair)
    names = [fit.method for fit in fitted]
    rests_on = _under(comparison, taken.pair)
    for missing in comparison.not_run:
        if missing.what == f"{IDENTITY} on {taken.pair}" and missing.reason.startswith(DOES_NOT_APPLY):
            yield Guideline(
                "identity", f"Vectors as they are cannot serve: identity {missing.reason}.", "The encoders' cards."
            )
    if IDENTITY not in names or len(names) == 1:
        return
    verdict = _judged(comparison, [fit.rows[0] for fit in fitted], [0] * len(fitted))
    own, best = names.index(IDENTITY), next(number for number in verdict.order if names[number] != IDENTITY)
    difference = verdict.difference(best, own)
    if comparison.test_groups < FEWEST_GROUPS or difference.low <= 0 <= difference.high:
        says = f"Identity cannot be told from the best fit, {names[best]}: nothing here shows that a fit is needed."
    elif difference.low > 0:
        says = f"A fit is worth it: {names[best]} finds {difference} more than the vectors as they are."
    else:
        lost = verdict.difference(own, best)
        says = f"Serve the vectors as they are: identity finds {lost} more than the best fit, {names[best]}."
    yield Guideline("identity", says, rests_on)


def _data(comparison: Comparison, curve: Curve) -> Guideline:
    """Say what twice the training groups would bring."""
    have = curve.points[-1].groups
    sizes = ", ".join(f"{point.groups:,}" for point in curve.points)
    rests_on = (
        f"Fits{_where(comparison, curve.pair)} on {sizes} groups, {REPEATS} subsamples of each size but the last, "
        "hyperparameters as chosen on all of them. The interval holds what either of two laws gives: error as a power "
        "of the groups, Recall by the same with every doubling."
    )
    if curve.method == IDENTITY:
        return Guideline("more data", "Identity learns nothing: more data would change nothing.", "Its definition.")
    if curve.forecast is None:
        says = f"What more data would add to {curve.method} cannot be said: {curve.why_not}."
        if curve.last_doubling is not None:
            says += f" The last doubling, to {have:,} groups, added {curve.last_doubling} to its Recall@10."
        return Guideline("more data", says, rests_on)
    gain, groups = curve.forecast.gain, f"{curve.forecast.groups:,} groups instead of {have:,}"
    if gain.high < LITTLE:
        says = f"More data would hardly help: {groups} would add {gain} to the Recall@10 of {curve.method}."
    elif gain.low <= 0:
        says = f"Whether {groups} would help {curve.method} cannot be said: the gain of Recall@10 is {gain}."
    else:
        says = f"More data would help: {groups} would add about {gain} to the Recall@10 of {curve.method}"
        says += ", if its curve goes on as it did."
    return Guideline("more data", says, rests_on)


def _gap(comparison: Comparison) -> Guideline:
    """Say whether gap and recall follow each other over the fits of the table."""
    measured = [(fit.gap.debiased, fit.rows[0].recall.value) for fit in comparison.fitted if fit.gap is not None]
    rests_on = (
        f"Spearman over {len(measured)} fits (encoder pairs × methods) of the debiased W2 and Recall@10 under "
        f"{comparison.reference}. Fits share their queries, and their spaces differ in dimension."
    )
    if len(measured) < FEWEST_ROWS or any(len(set(side)) == 1 for side in zip(*measured, strict=True)):
        says = "Whether the modality gap and Recall@10 follow each other cannot be said of so few fits that differ."
        return Guideline("gap", says, rests_on)
    rho, chance = spearman(*np.array(measured).T, seed=comparison.settings["seed"])
    numbers = f"rho {rho:.2f}, p {chance:.3f}"
    if chance > LIKELY:
        says = f"The modality gap does not tell which fit finds more: no rank correlation can be shown ({numbers})."
    elif rho < 0:
        says = f"A smaller modality gap goes with a higher Recall@10 in this table ({numbers})."
    else:
        says = (
            f"A smaller modality gap goes with a lower Recall@10 in this table ({numbers}): do not choose by the gap."
        )
    return Guideline("gap", says, rests_on)


def spearman(x: Floats, y: Floats, *, seed: int) -> tuple[float, float]:
    """Rank correlation of x and y (n,), and how often a random order gives one as far from zero.

    >>> spearman(np.arange(6.0), -np.arange(6.0) ** 3, seed=0)[0]
    -1.0
    """
    # Here, because it takes half a second to import.
    from scipy.stats import permutation_test, rankdata, spearmanr

    a, b = (rankdata(side) - (len(side) + 1) / 2 for side in (x, y))  # centred ranks
    test = permutation_test(
        (a,),
        lambda order, axis: np.abs((order * b).sum(axis=axis)),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        alternative="greater",
        rng=np.random.default_rng(seed),
    )
    return float(spearmanr(x, y).statistic), float(test.pvalue)


def _missing(comparison: Comparison) -> Iterator[Guideline]:
    """Say what is missing from the table and what was cut short."""
    folds = comparison.settings["folds"]
    by_reason: dict[str, list[str]] = {}
    for missing in comparison.not_run:
        by_reason.setdefault(missing.reason, []).append(missing.what)
    for fit in comparison.fitted:
        if fit.chosen.folds < folds:
            reason = f"hyperparameters were chosen in {fit.chosen.folds} of {folds} folds"
            by_reason.setdefault(reason, []).append(f"{fit.method} on {fit.pair}")
    if by_reason:
        says = " ".join(f"{_listed(whats)}: {reason}." for reason, whats in by_reason.items())
        yield Guideline("not run", says, "Nothing above says what these would have found, or found with more time.")


def _under(comparison: Comparison, pair: str) -> str:
    return f"Under {comparison.reference}{_where(comparison, pair)}. {_asked(comparison)}."


def _judged(comparison: Comparison, rows: Sequence[MetricRow], costs: Sequence[Any]) -> Verdict:
    values = [row.recall.value for row in rows]
    return judge(values, [row.samples for row in rows], costs, comparison.test_groups)


def _said(comparison: Comparison, verdict: Verdict, names: Sequence[str], cost: str) -> str:
    """Put a verdict into words; `cost` is that of the one that is taken."""
    best, taken = verdict.order[0], names[verdict.taken]
    if len(names) == 1:
        return f"{taken} is the only one in the table."
    if comparison.test_groups < FEWEST_GROUPS:
        few = f"{comparison.test_groups} held-out groups tell nothing apart, it takes {FEWEST_GROUPS}"
        return f"{few}. None costs less than {taken}: {cost}."
    worse = [number for number in verdict.order if number not in verdict.tied]
    if len(verdict.tied) == 1:
        says = f"{names[best]} finds most: Recall@10 {verdict.values[best]:.3f}, which is "
        says += f"{verdict.difference(best, worse[0])} more than {names[worse[0]]}."
        return says + (f" {_finds_less([names[number] for number in worse[1:]])}" if worse[1:] else "")
    tied = [f"{names[number]} ({verdict.values[number]:.3f})" for number in verdict.tied[1:]]
    says = (
        f"{names[best]} finds most, Recall@10 {verdict.values[best]:.3f}, and {_listed(tied)} cannot be told from it."
    )
    says += f" Of these none costs less than {taken}: {cost}."
    return says + (f" {_finds_less([names[number] for number in worse])}" if worse else "")


def _finds_less(names: Sequence[str]) -> str:
    return f"{_listed(names)} {'finds' if len(names) == 1 else 'find'} less."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _asked(comparison: Comparison) -> str:
    return f"Mean of both directions on {comparison.test_groups:,} held-out groups, 95% intervals by resampling them"
