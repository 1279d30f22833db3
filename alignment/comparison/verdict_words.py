"""The words that guidelines share: which choice is better than which, and what was measured."""

from collections.abc import Sequence
from typing import Any

from alignment.comparison.paired_bootstrap import FEWEST_GROUPS, MARGIN, Verdict, judge
from alignment.comparison.table import Comparison, MetricRow
from alignment.comparison.whole_collection import WholeCollection
from alignment.plurals import counted
from alignment.retrieval.cutoffs import RECALL
from alignment.retrieval.kinds import HARMONIC

# What choices are judged by, and how the preferred one was found.
JUDGED, NEW = "harmonic Recall@10", "Recall@10 of new items"
PREFERRED, HIGHEST = "is what cross-validation prefers", "finds most"


def whole_of(row: MetricRow) -> WholeCollection:
    """Return what was measured in the whole collection, which every metric that is judged has."""
    if row.whole is None:
        raise AssertionError(f"{row.metric} is not judged: its whole collection was not measured")
    return row.whole


def where(comparison: Comparison, pair: str) -> str:
    """Name the encoder pair, where there are several."""
    return f" on {pair}" if len(comparison.pairs) > 1 else ""


def under(comparison: Comparison, pair: str) -> str:
    """Say under which metric methods were compared, and with which queries."""
    return f"Under {comparison.reference}{where(comparison, pair)}. {asked(comparison)}."


def judged(
    comparison: Comparison,
    rows: Sequence[MetricRow],
    costs: Sequence[Any],
    preferred: int | None = None,
    kind: str = HARMONIC,
) -> Verdict:
    """Tell rows apart by their Recall@10 in the whole collection.

    Args:
        comparison: of the rows.
        rows: to tell apart.
        costs: of each; the cheapest that loses little is taken.
        preferred: number of the row that cross-validation prefers; None: the one that finds most.
        kind: of items, or the harmonic mean of both kinds.
    """
    wholes = [whole_of(row) for row in rows]
    values = [whole.estimates[kind][RECALL].value for whole in wholes]
    samples = [whole.samples[kind] for whole in wholes]
    return judge(values, samples, costs, comparison.test_groups, preferred)


def in_words(
    comparison: Comparison, verdict: Verdict, names: Sequence[str], cost: str, why: str, judged: str = JUDGED
) -> str:
    """Put a verdict into words.

    Args:
        comparison, verdict: of what is told apart.
        names: of each, as numbered.
        cost: of the one that is taken.
        why: how the preferred one was found.
        judged: what values are.
    """
    preferred, taken = names[verdict.preferred], names[verdict.taken]
    if len(names) == 1:
        return f"{taken} is the only one in the table."
    says = f"{preferred} {why}: {judged} {verdict.values[verdict.preferred]:.3f}."
    if comparison.test_groups < FEWEST_GROUPS:
        few = counted(comparison.test_groups, "held-out group")
        return f"{says} {few} cannot tell anything apart, it takes {FEWEST_GROUPS}."
    if verdict.taken == verdict.preferred:
        says += f" None that costs less is sure to lose less than {MARGIN}."
    else:
        bound = max(0.0, verdict.difference(verdict.preferred, verdict.taken).high)
        says += f" {taken} costs less ({cost}), and loses at most {bound:.3f}."
    others = [number for number in verdict.order if number not in (verdict.preferred, verdict.taken)]
    differences = {number: verdict.difference(number, verdict.preferred) for number in others}
    more = [f"{names[n]} ({verdict.values[n]:.3f})" for n in others if differences[n].low > 0]
    less = [f"{names[n]} ({verdict.values[n]:.3f})" for n in others if differences[n].high < 0]
    alike = [f"{names[n]} ({verdict.values[n]:.3f})" for n in others if differences[n].low <= 0 <= differences[n].high]
    says += f" {listed(more)} {verb(more, 'finds', 'find')} more." if more else ""
    says += f" {listed(alike)} cannot be told from it." if alike else ""
    return says + (f" {listed(less)} {verb(less, 'finds', 'find')} less." if less else "")


def verb(subjects: Sequence[str], singular: str, plural: str) -> str:
    """Return the form of a verb for so many subjects."""
    return singular if len(subjects) == 1 else plural


def listed(names: Sequence[str]) -> str:
    """Join names.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def asked(comparison: Comparison) -> str:
    """Say what choices are judged by, and on how many held-out groups."""
    what = f"{JUDGED[0].upper()}{JUDGED[1:]}: of new and known items in one collection, mean of both directions"
    return f"{what}, on {counted(comparison.test_groups, 'held-out group')}, 95% intervals by resampling groups"
