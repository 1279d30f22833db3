"""What a measure of an audit is: its function, its range, its words; and what it is computed from.

`connector.audits.measures` has the measures themselves.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from alignment.geometry.geometry import Geometry
from alignment.metrics import Guarantee
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.measures import Floats
from alignment.retrieval.ranks import IntArray, RelevantRanks
from connector.audits.kinds import KindOutcomes
from connector.audits.reference import Scores, Truth
from connector.audits.stages import StageResults

# The direction of measures that belong to neither direction alone.
BOTH = "both"
Part = Literal["whole", "stage", "stratum", "kind", "harmonic"]


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
        of_all: it compares searches among all points, whatever the gallery of the audit is.
        low, high: the range of its values.
        better: which values are better; `neither` where a value is no verdict.
        is_rank: values are ranks, which may be infinite: they are summed up by their lower median instead of the mean,
            and printed without decimals.
        parts: what it is measured of: the whole audit; each stratum of the queries, if it has `per_query`; each stage
            of a search, if `connector.audits.stage_summary` has it; queries about seen and about unseen items, and the
            harmonic mean of both, if `connector.audits.seen_unseen` does.
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
    of_all: bool = False
    low: float = 0.0
    high: float = 1.0
    better: Literal["higher", "lower", "neither"] = "higher"
    is_rank: bool = False
    parts: tuple[Part, ...] = ("whole",)
    guarantees: Collection[Guarantee] = tuple(Guarantee)
    shown: bool = False
    compared: bool = False
    history: Literal["table", "page", "nowhere"] = "page"

    @property
    def in_gallery(self) -> bool:
        """Whether its value depends on the gallery that is searched."""
        return (self.per_query is not None or self.per_direction is not None) and not self.of_all

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


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number of an audit: a measure of a direction, with its 95% interval where it has one.

    Attributes:
        name: of the measure, with its K: `recall@10`.
        queries: how many queries it is of.
        part: what it is of: a stage of the search, a stratum such as `language=de`, one of `KINDS`, a stage with
            queries about seen items such as `seen index`, or "" for the whole audit.
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
