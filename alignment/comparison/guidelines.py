"""Guidelines: the conclusions that the intervals of a comparison support, each with its evidence.

What counts is one collection of known and new items, as production searches it: the harmonic mean of Recall@10 about
either, with the offset in place. Advised is what cross-validation prefers, as `fit` takes it; a cheaper choice only
where the upper bound of what it loses is below `MARGIN`. One choice is called better than another only under intervals
that hold simultaneously for all differences of its question.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from alignment.comparison.compare import DOES_NOT_APPLY
from alignment.comparison.learning_curve import REPEATS, Curve
from alignment.comparison.paired_bootstrap import FEWEST_GROUPS
from alignment.comparison.rank_correlation import spearman
from alignment.comparison.table import Comparison, Fitted, MetricRow, best_on_new_items, best_validated
from alignment.comparison.verdict_words import (
    HIGHEST,
    JUDGED,
    NEW,
    PREFERRED,
    asked,
    in_words,
    judged,
    listed,
    under,
    verb,
    where,
    whole_of,
)
from alignment.comparison.whole_collection import WholeCollection
from alignment.metrics import Guarantee, LearnedMetric, parse
from alignment.plurals import counted
from alignment.retrieval.cutoffs import RECALL
from alignment.retrieval.kinds import SEEN, UNSEEN

IDENTITY = "identity"
NO_OFFSET = (
    "There is no offset: cross-validation found none that helps, the set is too small for one, or it was set to 0."
)
# Of fewer rows not even a perfect rank correlation is rarer by chance than LIKELY.
FEWEST_ROWS = 5
LIKELY = 0.05
# Recall@10 that twice the data is not worth collecting for.
LITTLE = 0.01
# What saves less than a fifth of the measured time is not cheaper: times vary as much.
CHEAPER = 0.8


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
        _new_items(row),
        *_captions(comparison, fitted),
        *_identity(comparison, fitted),
        *(_data(comparison, curve) for curve in comparison.curves),
        _gap(comparison),
        *_missing(comparison),
    ]
    return Advice(pair, fitted.method, row.metric, guidelines)


def _short(comparison: Comparison, fitted: Fitted, row: MetricRow) -> Guideline:
    chance = next(pair.chance[RECALL] for pair in comparison.pairs if pair.name == fitted.pair)
    says = f"Take {fitted.method}{where(comparison, fitted.pair)} under {row.metric}: in one collection of all items "
    says += f"the Recall@10 of new and known items has a harmonic mean of {whole_of(row).judged}. Among the held-out "
    says += f"items alone Recall@10 is {row.recall}, where chance gives {chance:.3f}."
    if row.recall.low <= chance:
        says += " That cannot be told from chance: see whether the items of a group belong together."
    rests_on = (
        f"{asked(comparison)}. One fit on {counted(comparison.training_groups, 'group')}: how much fits on others "
        "would differ is not in the interval."
    )
    return Guideline("in short", says, rests_on)


def _new_items(row: MetricRow) -> Guideline:
    """Say how new and known items are found in one collection, and what the offset changes."""
    whole = whole_of(row)
    before, after = whole.mean(0), whole.mean(1)
    rests_on = (
        f"Recall@1, mean of both directions: {_counted(whole)}. Queries about known items are paraphrases, never "
        "captions of the fit."
    )
    shares = f"{_percent(after['first_places'])} of all first places go to known items, where "
    shares += f"{_percent(after['fair'])} would be fair."
    if not whole.has_offset:
        says = f"New items are found first in {_percent(after[UNSEEN]['recall@1'])} of searches, known ones in "
        says += f"{_percent(after[SEEN]['recall@1'])}; {shares} {NO_OFFSET}"
        return Guideline("new items", says, rests_on)
    new, known = (
        f"in {_percent(after[kind]['recall@1'])} of searches instead of {_percent(before[kind]['recall@1'])}"
        for kind in (UNSEEN, SEEN)
    )
    says = f"With the offset, new items are found first {new}; known ones {known}. {shares}"
    return Guideline("new items", says, rests_on)


def _captions(comparison: Comparison, fitted: Fitted) -> Iterator[Guideline]:
    """Say what captions alone would find, where new items have them."""
    alone = next(pair.captions for pair in comparison.pairs if pair.name == fitted.pair)
    if alone is None:
        return
    queries = "Held-out captions, of which none finds itself"
    if alone.paraphrased:
        queries = "Paraphrases of held-out captions"
    rests_on = f"{queries}, in one collection of all items: images and captions under {comparison.reference} "
    rests_on += f"after {fitted.method}, with the offset of known images."
    yield Guideline("captions", alone.in_words(fitted.by_way), rests_on)


def _counted(whole: WholeCollection) -> str:
    """Count the queries of both directions."""
    seen, unseen = (sum(recall.queries[kind] for recall in whole.recalls.values()) for kind in range(2))
    return f"{unseen:,} queries about new (held-out) items and {seen:,} about known ones"


def _percent(share: float) -> str:
    """Print a share; with a decimal where whole percents would hide it.

    >>> _percent(0.142), _percent(0.021), _percent(1.0)
    ('14%', '2.1%', '100%')
    """
    return f"{share:.1%}" if 0 < share < 0.095 else f"{share:.0%}"


def _encoders(comparison: Comparison) -> tuple[str, list[Guideline]]:
    """Compare what validated best for each pair, under the reference metric, over methods that no pair still lacks."""
    if len(comparison.pairs) == 1:
        return comparison.pairs[0].name, []
    fair = [fit for fit in comparison.fitted if not _lacking(comparison, fit.method)]
    found = [own for pair in comparison.pairs if (own := [fit for fit in fair if fit.pair == pair.name])]
    if len(found) < len(comparison.pairs):
        says = "Encoder pairs cannot be compared: there is no method that was run wherever it applies."
        return best_on_new_items(comparison.fitted).pair, [Guideline("encoders", says, "What was not run, below.")]
    best = [best_validated(own) for own in found]
    costs = [fit.rows[0].stored_floats for fit in best]
    preferred = best.index(best_on_new_items(best))
    verdict = judged(comparison, [fit.rows[0] for fit in best], costs, preferred, UNSEEN)
    names = [f"{fit.pair} (with {fit.method})" for fit in best]
    cost = f"{best[verdict.taken].rows[0].stored_floats} numbers an item"
    rests_on = (
        f"Each pair with what validated best of {listed(sorted({fit.method for fit in fair}))}, under "
        f"{comparison.reference}. {NEW} in one collection with the known ones, mean of both directions, on "
        f"{counted(comparison.test_groups, 'held-out group')}, the same for all pairs; 95% intervals by resampling "
        "groups. Known items do not count: what is asked about them is made in the space of each encoder."
    )
    says, pair = in_words(comparison, verdict, names, cost, PREFERRED, NEW), best[verdict.taken].pair
    overall = best_on_new_items(comparison.fitted)
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


def _method(comparison: Comparison, pair: str) -> tuple[Fitted, Guideline]:
    fitted = comparison.by_pair(pair)
    preferred = fitted.index(best_validated(fitted))
    costs = [fit.rows[0].query_cost for fit in fitted]
    costs[preferred] *= CHEAPER
    verdict = judged(comparison, [fit.rows[0] for fit in fitted], costs, preferred)
    taken = fitted[verdict.taken]
    cost = f"{taken.rows[0].query_cost:.0f} µs to project a query"
    says = in_words(comparison, verdict, [f.method for f in fitted], cost, PREFERRED)
    if verdict.taken != preferred:
        says += f" fit --method {taken.method} makes it."
    rests_on = (
        f"{under(comparison, pair)} Cross-validation saw the training groups alone; fit --method auto takes what it "
        "prefers of all methods that enter."
    )
    return taken, Guideline("method", says, rests_on)


def _metric(comparison: Comparison, fitted: Fitted) -> tuple[MetricRow, Guideline]:
    rows = [row for row in fitted.rows if row.whole is not None]
    verdict = judged(comparison, rows, [_cost(row) for row in rows])
    taken = rows[verdict.taken]
    cost = f"{taken.guarantee}, {taken.stored_floats} numbers an item"
    rests_on = (
        f"After {fitted.method}{where(comparison, fitted.pair)}, whose hyperparameters were chosen under "
        f"{comparison.reference}. "
        f"{asked(comparison)}."
    )
    says = in_words(comparison, verdict, [row.metric for row in rows], cost, HIGHEST)
    if unjudged := [row.metric for row in fitted.rows if row.whole is None]:
        says += f" {listed(unjudged)} {verb(unjudged, 'was', 'were')} measured among held-out items alone."
    return taken, Guideline("metric", says, rests_on)


def _cost(row: MetricRow) -> tuple[bool, int, bool]:
    """Order by cost: rescored metrics after exact ones, then by stored numbers, then learned metrics after others."""
    return row.guarantee != Guarantee.EXACT, row.stored_floats, isinstance(parse(row.metric), LearnedMetric)


def _identity(comparison: Comparison, taken: Fitted) -> Iterator[Guideline]:
    """Say whether the vectors would do as they are."""
    fitted = comparison.by_pair(taken.pair)
    names = [fit.method for fit in fitted]
    rests_on = under(comparison, taken.pair)
    for missing in comparison.not_run:
        if missing.what == f"{IDENTITY} on {taken.pair}" and missing.reason.startswith(DOES_NOT_APPLY):
            yield Guideline(
                "identity", f"Vectors as they are cannot serve: identity {missing.reason}.", "The encoders' cards."
            )
    if IDENTITY not in names or len(names) == 1:
        return
    verdict = judged(comparison, [fit.rows[0] for fit in fitted], [0] * len(fitted))
    own, best = names.index(IDENTITY), next(number for number in verdict.order if names[number] != IDENTITY)
    difference = verdict.difference(best, own)
    if comparison.test_groups < FEWEST_GROUPS:
        says = (
            f"{counted(comparison.test_groups, 'held-out group')} cannot tell whether a fit is needed, it takes "
            f"{FEWEST_GROUPS}: {names[best]} finds {difference} more than the vectors as they are."
        )
    elif difference.low <= 0 <= difference.high:
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
        f"Fits{where(comparison, curve.pair)} on {sizes} groups, {REPEATS} subsamples of each size but the last, "
        "hyperparameters as chosen on all of them. The interval holds what either of two laws gives: error as a power "
        f"of the groups, recall by the same with every doubling. {NEW} counts, in the same collection "
        "for every size."
    )
    if curve.method == IDENTITY:
        return Guideline("more data", "Identity learns nothing: more data would change nothing.", "Its definition.")
    if curve.forecast is None:
        says = f"What more data would add to {curve.method} cannot be said: {curve.why_not}."
        if curve.last_doubling is not None:
            says += f" The last doubling, to {have:,} groups, added {curve.last_doubling} to its {NEW}."
        return Guideline("more data", says, rests_on)
    gain, groups = curve.forecast.gain, f"{curve.forecast.groups:,} groups instead of {have:,}"
    if gain.high < LITTLE:
        says = f"More data would hardly help: {groups} would add {gain} to the {NEW} under {curve.method}."
    elif gain.low <= 0:
        says = f"Whether {groups} would help {curve.method} cannot be said: the gain of {NEW} is {gain}."
    else:
        says = f"More data would help: {groups} would add about {gain} to the {NEW} under {curve.method}"
        says += ", if its curve goes on as it did."
    return Guideline("more data", says, rests_on)


def _gap(comparison: Comparison) -> Guideline:
    """Say whether gap and recall follow each other over the fits of the table."""
    measured = [(fit.gap.debiased, fit.whole.judged.value) for fit in comparison.fitted if fit.gap is not None]
    rests_on = (
        f"Spearman over {len(measured)} fits (encoder pairs × methods) of the debiased W2 and {JUDGED} under "
        f"{comparison.reference}. Fits share their queries, and their spaces differ in dimension."
    )
    if len(measured) < FEWEST_ROWS or any(len(set(side)) == 1 for side in zip(*measured, strict=True)):
        says = f"Whether the modality gap and {JUDGED} follow each other cannot be said of so few fits that differ."
        return Guideline("gap", says, rests_on)
    rho, chance = spearman(*np.array(measured).T, seed=comparison.settings["seed"])
    numbers = f"rho {rho:.2f}, p {chance:.3f}"
    if chance > LIKELY:
        says = f"The modality gap does not tell which fit finds more: no rank correlation can be shown ({numbers})."
    elif rho < 0:
        says = f"A smaller modality gap goes with a higher {JUDGED} in this table ({numbers})."
    else:
        says = f"A smaller modality gap goes with a lower {JUDGED} in this table ({numbers}): do not choose by the gap."
    return Guideline("gap", says, rests_on)


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
        says = " ".join(f"{listed(whats)}: {reason}." for reason, whats in by_reason.items())
        yield Guideline("not run", says, "Nothing above says what these would have found, or found with more time.")
