"""What an audit measures: `MEASURES`, the one place where a measure is declared.

The auditor, requirements, baselines, tables, pages, documents, Prometheus and the history read it. CONTRIBUTING.md
lists the steps of adding one; docs/audits-measures.md has the formulas.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alignment.geometry.geometry import Geometry, skewness
from alignment.metrics import Guarantee
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.measures import Floats, found, ndcg, r_precision, recall, reciprocal_rank
from alignment.retrieval.ranks import IntArray, RelevantRanks, chance_recall_at
from connector.audits.kinds import KindOutcomes, first_places
from connector.audits.reference import Scores, Truth
from connector.audits.stages import StageResults, fidelity_tails

# The direction of measures that belong to neither direction alone.
BOTH = "both"
Part = Literal["whole", "stage", "stratum", "kind"]


@dataclass(frozen=True, slots=True)
class QueryOutcomes:
    """What searches give the n queries of one direction: measures are computed from this.

    Attributes:
        served: results of production's search within each query's part of the gallery, by K.
        unfiltered: results of production's search among all points, by K.
        truth: ranks and scores of exact search by the metric itself.
        parts: the part of the gallery that each query searches (n,).
        tied: returns the lowest score that counts as equal to a score.
    """

    served: Mapping[int, StageResults]
    unfiltered: Mapping[int, StageResults]
    truth: Truth
    parts: IntArray
    tied: Callable[[Scores], Scores]

    def __len__(self) -> int:
        return len(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A measure of an audit. It has exactly one function.

    A name with `{k}` stands for one value at each length of list; the functions get that K. Other measures get the
    plan's `k`, the length of list that stands for all.

    Attributes:
        name: `recall@{k}`, `mrr`; as requirements, SQL, JSON and Prometheus call it.
        sentence: what the value says, for people; `{k}` is filled in, and whether lower is better is added.
        title: what people call it; "" takes the name without dots.
        per_query: returns a value a query (n,). The audit's value is their mean, with a 95% interval; the values are
            kept, so later audits can be compared with them.
        per_direction: returns the value of a direction, without an interval.
        of_geometry: returns the value of both modalities together.
        of_kinds: returns the value of a direction over the whole collection, with an interval where it has one.
        low, high: the range of its values.
        better: which values are better; `neither` where a value is no verdict.
        is_rank: values are ranks, which may be infinite: they are summed up by their lower median instead of the mean,
            and printed without decimals.
        parts: what it is measured of: the whole audit; each stratum of the queries, if it has `per_query`; each stage
            of a search, if `connector.audits.result.StageSummary` has it; queries about seen and unseen items, if
            `connector.audits.seen_unseen` does.
        guarantees: releases under metrics of these guarantees have it.
        shown: whether it has a row in the tables of an audit.
        compared: whether it is always compared with a baseline; others are if a requirement bounds their drop.
        history: where a history shows it: in its table and first on its page, on its page, or nowhere.
    """

    name: str
    sentence: str
    title: str = ""
    per_query: Callable[[QueryOutcomes, int], Floats] | None = None
    per_direction: Callable[[QueryOutcomes, int], float] | None = None
    of_geometry: Callable[[Geometry], float] | None = None
    of_kinds: Callable[[KindOutcomes], Estimate | float] | None = None
    low: float = 0.0
    high: float = 1.0
    better: Literal["higher", "lower", "neither"] = "higher"
    is_rank: bool = False
    parts: tuple[Part, ...] = ("whole",)
    guarantees: Collection[Guarantee] = tuple(Guarantee)
    shown: bool = False
    compared: bool = False
    history: Literal["table", "page", "nowhere"] = "page"

    def explained(self, k: str) -> str:
        """Say what the value at lists of length `k` is."""
        return self.sentence.replace("{k}", k) + ("; lower is better" if self.better == "lower" else "")

    def named(self, ks: Sequence[int]) -> list[tuple[str, int | None]]:
        """Return its names at lists of each length, with that length; one name and None where it has no K."""
        return [(self.name.format(k=k), k) for k in ks] if "{k}" in self.name else [(self.name, None)]


def exact(function: Callable[[RelevantRanks, int], Floats]) -> Callable[[QueryOutcomes, int], Floats]:
    """Measure the relevant ranks of exact search in the gallery, the best that alignment and metric can do."""
    return lambda outcomes, k: function(outcomes.truth.gallery, k)


def served(function: Callable[[RelevantRanks, int], Floats]) -> Callable[[QueryOutcomes, int], Floats]:
    """Measure the relevant ranks of production's search in the gallery."""
    return lambda outcomes, k: function(outcomes.served[k].ranks, k)


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
            parts=("whole", "stage", "stratum", "kind"),
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
            parts=("whole", "stage"),
            shown=True,
            compared=True,
            history="table",
        ),
        Measure(
            name="fidelity@{k}.p5",
            sentence="the same for the twentieth of the queries where it is least",
            per_direction=lambda outcomes, k: fidelity_tails(_fidelity(outcomes, k))["p5"],
            parts=("whole", "stage"),
        ),
        Measure(
            name="fidelity@{k}.least",
            sentence="the same for the worst query",
            per_direction=lambda outcomes, k: fidelity_tails(_fidelity(outcomes, k))["least"],
            parts=("whole", "stage"),
        ),
        Measure(
            name="fidelity@{k}.below90",
            sentence="queries of which less than nine tenths are found",
            per_direction=lambda outcomes, k: fidelity_tails(_fidelity(outcomes, k))["below90"],
            better="lower",
            parts=("whole", "stage"),
        ),
        Measure(
            name="certified",
            sentence="answers that are proved to be complete",
            per_query=lambda outcomes, k: outcomes.unfiltered[k].certified,
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


def of_geometry(geometry: Geometry) -> "Iterator[Measurement]":
    """Yield what is measured of both modalities together."""
    for measure in MEASURES.values():
        if measure.of_geometry is not None:
            yield Measurement(BOTH, measure.name, measure.of_geometry(geometry), queries=geometry.groups)


def of_kinds(direction: str, outcomes: KindOutcomes) -> "Iterator[Measurement]":
    """Yield what is measured of seen and unseen items together."""
    queries = sum(len(values) for values, _ in outcomes.seen_first.values())
    for measure in MEASURES.values():
        if measure.of_kinds is not None:
            value = measure.of_kinds(outcomes)
            if isinstance(value, Estimate):
                yield Measurement(direction, measure.name, value.value, value.low, value.high, queries)
            else:
                yield Measurement(direction, measure.name, value, queries=queries)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number of an audit: a measure of a direction, with its 95% interval where it has one.

    Attributes:
        name: of the measure, with its K: `recall@10`.
        queries: how many queries it is of.
        part: what it is of: a stage of the search, a stratum such as `language=de`, one of `KINDS`, or "" for the whole
            audit.
    """

    direction: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    queries: int = 0
    part: str = ""

    @property
    def label(self) -> str:
        """Its part and name."""
        return f"{self.part} {self.name}" if self.part else self.name

    @property
    def in_words(self) -> str:
        """Its value and interval."""
        interval = f" [{self.low:.4f}, {self.high:.4f}]" if self.low is not None and self.high is not None else ""
        return f"{self.direction} {self.label} is {self.value:.4f}{interval}"
