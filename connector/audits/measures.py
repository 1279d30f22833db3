"""What an audit measures: `MEASURES`, the one place where a measure is declared.

The auditor, requirements, baselines, tables, pages, documents, Prometheus and the history read it. CONTRIBUTING.md
lists the steps of adding one; docs/audits-measures.md has the formulas.
"""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from alignment.geometry.geometry import Geometry, skewness
from alignment.metrics import Guarantee
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.kinds import HARMONIC
from alignment.retrieval.measures import Floats, found, ndcg, r_precision, recall, reciprocal_rank
from alignment.retrieval.ranks import chance_recall_at
from connector.audits.kinds import KindOutcomes, first_places
from connector.audits.measure import BOTH, Measure, Measurement, Part, QueryOutcomes, exact, served
from connector.audits.stages import fidelity_tails


def _fidelity(outcomes: QueryOutcomes, k: int) -> Floats:
    return outcomes.unfiltered[k].fidelity(outcomes.truth.best, k, outcomes.tied)


def chance_recall(outcomes: QueryOutcomes, k: int) -> float:
    """Recall@K of a random order, each query in its own part of the gallery."""
    sizes = outcomes.truth.sizes[outcomes.parts]  # (n,)
    total = sum(
        chance_recall_at(k, outcomes.truth.gallery.counts[sizes == size], int(size)) * (sizes == size).sum()
        for size in np.unique(sizes)
        if size
    )
    return float(total / len(outcomes))


def _hubness(outcomes: QueryOutcomes, k: int) -> float:
    times = np.array(list(outcomes.served[k].times.values()), np.int64)
    never = np.zeros(max(0, int(outcomes.truth.sizes.sum()) - len(times)), np.int64)
    return float(skewness(np.concatenate([times, never])))


SAME_WITHOUT_LOSS = "the same if the search itself lost nothing"

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(
            name="recall@{k}",
            sentence="queries with a right answer among the first {k}, as production searches",
            title="Recall@{k}",
            per_query=served(recall),
            parts=("whole", "stage", "stratum", "kind", HARMONIC),
            shown=True,
            compared=True,
            history="table",
        ),
        Measure(
            name="exact.recall@{k}",
            sentence=SAME_WITHOUT_LOSS,
            title="exact Recall@{k}",
            per_query=exact(recall),
            shown=True,
            compared=True,
        ),
        Measure(
            name="chance.recall@{k}",
            sentence="the same if the order were random",
            title="chance Recall@{k}",
            per_direction=chance_recall,
            better="neither",
            shown=True,
            history="nowhere",
        ),
        Measure(
            name="found@{k}",
            sentence="of everything that would be right, what is among the first {k}",
            per_query=served(found),
            shown=True,
        ),
        Measure(name="exact.found@{k}", sentence=SAME_WITHOUT_LOSS, per_query=exact(found)),
        Measure(
            name="ndcg@{k}",
            sentence="right answers among the first {k}, counted for more the earlier they come",
            title="nDCG@{k}",
            per_query=served(ndcg),
            shown=True,
        ),
        Measure(name="exact.ndcg@{k}", sentence=SAME_WITHOUT_LOSS, title="exact nDCG@{k}", per_query=exact(ndcg)),
        Measure(
            name="mrr",
            sentence="1 divided by the rank of the first right answer, on average",
            title="MRR",
            per_query=exact(lambda ranks, _: reciprocal_rank(ranks)),
            shown=True,
            compared=True,
        ),
        Measure(
            name="r_precision",
            sentence="of so many answers as would be right, those that are",
            title="R-precision",
            per_query=exact(lambda ranks, _: r_precision(ranks)),
            shown=True,
        ),
        Measure(
            name="median_rank",
            sentence="where the first right answer stands for half of the queries",
            title="median rank",
            per_query=exact(lambda ranks, _: ranks.best),
            low=1.0,
            high=math.inf,
            better="lower",
            is_rank=True,
            shown=True,
            compared=True,
        ),
        Measure(
            name="fidelity@{k}",
            sentence="of the first {k} by the metric itself, what production finds",
            per_query=_fidelity,
            of_all=True,
            parts=("whole", "stage", "kind"),
            shown=True,
            compared=True,
            history="table",
        ),
        Measure(
            name="fidelity@{k}.p5",
            sentence="the same for the twentieth of the queries where it is least",
            per_direction=lambda outcomes, k: fidelity_tails(_fidelity(outcomes, k))["p5"],
            of_all=True,
            parts=("whole", "stage"),
        ),
        Measure(
            name="fidelity@{k}.least",
            sentence="the same for the worst query",
            per_direction=lambda outcomes, k: fidelity_tails(_fidelity(outcomes, k))["least"],
            of_all=True,
            parts=("whole", "stage"),
        ),
        Measure(
            name="fidelity@{k}.below90",
            sentence="queries of which less than nine tenths are found",
            per_direction=lambda outcomes, k: fidelity_tails(_fidelity(outcomes, k))["below90"],
            of_all=True,
            better="lower",
            parts=("whole", "stage"),
        ),
        Measure(
            name="certified",
            sentence="answers that are proved to be complete",
            per_query=lambda outcomes, k: outcomes.unfiltered[k].certified,
            of_all=True,
            guarantees=(Guarantee.CERTIFIED, Guarantee.BOUNDED),
            shown=True,
        ),
        Measure(
            name="hubness",
            sentence="how unevenly production finds items: skewness, above 1 a few crowd out others",
            per_direction=_hubness,
            low=-math.inf,
            high=math.inf,
            better="lower",
            shown=True,
        ),
        Measure(
            name="first_places",
            sentence="of all first places those that go to seen items, if each item is searched for as often",
            title="first places",
            of_kinds=first_places,
            better="neither",
            shown=True,
        ),
        Measure(
            name="first_places.fair",
            sentence="share of the seen among all items, which would be fair",
            title="fair first places",
            of_kinds=lambda outcomes: outcomes.fair,
            better="neither",
            shown=True,
            history="nowhere",
        ),
        Measure(
            name="ausuc",
            sentence="area under the curve of recall of seen over unseen items, whatever the offset",
            title="AUSUC",
            of_kinds=lambda outcomes: outcomes.area,
            shown=True,
        ),
        *(
            Measure(
                name=f"latency.p{percentile}",
                sentence=f"milliseconds that {percentile} of 100 single queries stay within",
                high=math.inf,
                better="lower",
                parts=("stage",),
            )
            for percentile in (50, 95, 99)
        ),
        Measure(
            name="gap",
            sentence="root of what the squared distance of images and texts has beyond that of samples of one modality",
            of_geometry=lambda geometry: geometry.gap.debiased,
            high=math.inf,
            better="neither",
            history="table",
        ),
        Measure(
            name="gap.raw",
            sentence="distance of images and texts, with what the size of the sample adds",
            of_geometry=lambda geometry: geometry.gap.raw,
            high=math.inf,
            better="neither",
        ),
        Measure(
            name="gap.p",
            sentence="how often chance alone makes such a gap",
            of_geometry=lambda geometry: geometry.p,
            better="neither",
        ),
        Measure(
            name="gap.centroid",
            sentence="distance of the mean image from the mean text",
            of_geometry=lambda geometry: geometry.gap.centroid,
            high=math.inf,
            better="neither",
        ),
        Measure(
            name="gap.centred",
            sentence="what is left of the gap once both means are one",
            of_geometry=lambda geometry: geometry.gap.centred.debiased,
            high=math.inf,
            better="neither",
        ),
        Measure(
            name="sliced",
            sentence="the gap, along random directions",
            of_geometry=lambda geometry: geometry.sliced.debiased,
            high=math.inf,
            better="neither",
        ),
        Measure(
            name="bures",
            sentence="the gap of Gaussians of the same mean and spread",
            of_geometry=lambda geometry: geometry.bures.debiased,
            high=math.inf,
            better="neither",
        ),
        Measure(
            name="mutual_neighbours",
            sentence="near images whose texts are near each other too",
            title="mutual neighbours",
            of_geometry=lambda geometry: geometry.mutual_neighbours,
        ),
    )
}


def find_measure(name: str) -> tuple[Measure | None, str]:
    """Return the measure that `name` is a value of, and its K as text; None for one that an older modalign recorded.

    >>> measure, k = find_measure("fidelity@10.p5")
    >>> measure.name, k
    ('fidelity@{k}.p5', '10')
    """
    match = re.search(r"@(\d+|K)", name)
    k = match[1] if match else ""
    return MEASURES.get(name.replace(f"@{k}", "@{k}") if k else name), k


def names_of(part: Part, ks: Sequence[int], guarantee: Guarantee | None = None) -> list[str]:
    """Return the names of the measures of a part in one direction, of releases of a guarantee if one is given."""
    return [
        name
        for measure in MEASURES.values()
        if part in measure.parts
        and measure.of_geometry is None
        and measure.of_kinds is None
        and guarantee in (None, *measure.guarantees)
        for name, _ in measure.named(ks)
    ]


def trended(k: int) -> list[str]:
    """Return the names of the measures in the table of a history, at lists of length `k`."""
    return [name for m in MEASURES.values() if m.history == "table" for name, _ in m.named([k])]


def of_geometry(geometry: Geometry) -> Iterator[Measurement]:
    """Yield what is measured of both modalities together."""
    for measure in MEASURES.values():
        if measure.of_geometry is not None:
            yield Measurement(BOTH, measure.name, measure.of_geometry(geometry), queries=geometry.groups)


def of_kinds(direction: str, outcomes: KindOutcomes) -> Iterator[Measurement]:
    """Yield what is measured of seen and unseen items together."""
    queries = sum(len(values) for values, _ in outcomes.seen_first.values())
    for measure in MEASURES.values():
        if measure.of_kinds is not None:
            value = measure.of_kinds(outcomes)
            if isinstance(value, Estimate):
                yield Measurement(direction, measure.name, value.value, value.low, value.high, queries)
            else:
                yield Measurement(direction, measure.name, value, queries=queries)
