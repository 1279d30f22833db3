"""What an audit found, as values that print, compare and are recorded in SQL.

`connector.audits.auditor` makes one. docs/audits.md explains every number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from alignment.geometry.geometry import Geometry
from alignment.retrieval.bootstrap import Estimate
from connector.audits.baseline import Drift, PerQuery
from connector.audits.plan import AuditPlan, Measure
from connector.audits.requirements import Failure
from connector.audits.stages import INDEX, QUANTIZATION, Latency
from connector.provenance.tables import ReleaseRow
from connector.releases.release import Release
from connector.stores.contract import CollectionInfo, Payload

PASSED, FAILED, MEASURED, BROKEN = "passed", "failed", "measured", "broken"
# A stage is blamed where it finds less than this share of what the stage before finds; where what it loses of Recall@K
# is more than chance and more than the margin; and the last one where it finds less than when `hnsw_ef` was chosen.
FAITHFUL = 0.95
MARGIN = 0.01


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How much of another stage's first K a stage finds: mean over queries, 5th percentile, least, share below 0.9."""

    mean: Estimate
    p5: float
    least: float
    below90: float


@dataclass(frozen=True, slots=True)
class StageFound:
    """What a stage of the search keeps of what the one before it finds, searching the whole collection.

    Attributes:
        against: the stage that it is compared with; None for the reference.
        queries: that are in the recall. Within a filter those with something to find there, elsewhere all.
        without_relevant: queries with nothing to find; elsewhere than within a filter they count as misses.
        recall, fidelity: by K.
        lost: Recall@K that is lost against `against`, at the plan's k, with a paired interval; negative is a gain.
        latency: of single queries; None for the reference.
        why_not: why it was not measured, where it was not.
    """

    direction: str
    name: str
    against: str | None
    queries: int = 0
    without_relevant: int = 0
    recall: Mapping[int, Estimate] = field(default_factory=dict)
    fidelity: Mapping[int, Fidelity] = field(default_factory=dict)
    lost: Estimate | None = None
    latency: Latency | None = None
    why_not: str | None = None

    def measures(self) -> Iterator[Measure]:
        """Yield everything as measures."""
        for k, recall in self.recall.items():
            yield self._measure(f"recall@{k}", recall.value, recall.low, recall.high)
        for k, fidelity in self.fidelity.items():
            yield self._measure(f"fidelity@{k}", fidelity.mean.value, fidelity.mean.low, fidelity.mean.high)
            for name in ("p5", "least", "below90"):
                yield self._measure(f"fidelity@{k}.{name}", getattr(fidelity, name))
        if self.latency:
            for name in ("p50", "p95", "p99"):
                yield self._measure(f"latency.{name}", getattr(self.latency, name))

    def _measure(self, name: str, value: float, low: float | None = None, high: float | None = None) -> Measure:
        return Measure(self.direction, name, value, low, high, self.queries, self.name)


@dataclass(frozen=True, slots=True)
class Point:
    """An item as the store holds it: its key and payload."""

    key: str
    payload: Payload
    relevant: bool = False
    score: float | None = None


@dataclass(frozen=True, slots=True)
class WorstQuery:
    """A query that production answers badly.

    Attributes:
        rank: of the best relevant item by exact search among everything.
        found: what came back, best first.
        expected: a few of what should have.
    """

    direction: str
    query: Point
    rank: float
    found: Sequence[Point]
    expected: Sequence[Point]


@dataclass(frozen=True, slots=True)
class PcaProjection:
    """Pairs of the shared space on its two principal axes: n groups, images (n, 2), texts (n, 2).

    Attributes:
        explained: share of the variance along each axis.
    """

    groups: Sequence[str]
    images: Sequence[tuple[float, float]]
    texts: Sequence[tuple[float, float]]
    explained: tuple[float, float]


@dataclass(slots=True)
class Audit:
    """What an audit found.

    Attributes:
        row: the release in SQL.
        plan: how it was asked, with the pairs of the embedding set `pairs`.
        broken: why the release fails integrity; nothing was measured then.
        release: checked; None where it is broken.
        info: the collection while it was audited.
        gallery: items that were searched, by modality.
        without_relevant: queries whose relevant items are not in the gallery, by direction; they count as misses.
        measures: every number.
        stages: the losses of a search, by direction and in its order.
        curve: Recall@K of exact search in the gallery, by direction and K; `chance` is that of a random order.
        findings: what is not as it should be, and what was not measured, in words.
        geometry: the modality gap and its company, of vectors read back; `geometry_of` says of what, or why not.
        worst: the queries that are answered worst.
        per_query: what later audits compare with, by direction.
        verified: points that were read back and compared with what the embedding sets say.
        drifts: against an earlier audit.
        failures: requirements that are not met.
        required: whether there were any.
        number: of the audit in SQL.
    """

    row: ReleaseRow
    plan: AuditPlan
    pairs: str
    broken: str | None = None
    release: Release | None = None
    info: CollectionInfo | None = None
    gallery: dict[str, int] = field(default_factory=dict)
    without_relevant: dict[str, int] = field(default_factory=dict)
    measures: list[Measure] = field(default_factory=list)
    stages: list[StageFound] = field(default_factory=list)
    curve: dict[str, dict[int, Estimate]] = field(default_factory=dict)
    chance: dict[str, dict[int, float]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    geometry: Geometry | None = None
    geometry_of: str = ""
    plane: PcaProjection | None = None
    worst: list[WorstQuery] = field(default_factory=list)
    per_query: dict[str, PerQuery] = field(default_factory=dict)
    verified: int = 0
    drifts: list[Drift] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    required: bool = False
    number: int = 0

    @property
    def verdict(self) -> str:
        """`broken`; `passed` or `failed` what was required; or `measured`, where nothing was."""
        if self.broken is not None:
            return BROKEN
        if not self.required:
            return MEASURED
        return FAILED if self.failures else PASSED

    def measure(self, direction: str, name: str, part: str = "") -> Measure:
        """Return one measure."""
        return next(m for m in self.measures if (m.direction, m.part, m.name) == (direction, part, name))

    def queries_of(self, direction: str) -> int:
        """How many queries were asked in a direction."""
        return len(self.per_query[direction].keys) if direction in self.per_query else 0

    @property
    def blamed(self) -> list[StageFound]:
        """The stages that lose more than they may, in the order of a search."""
        recovered = {(s.direction, s.against) for s in self.stages if s.name == "rescoring"}
        return [s for s in self.stages if self._is_lossy(s) and not (s.name == "lowering" and _rescued(s, recovered))]

    def _is_lossy(self, stage: StageFound) -> bool:
        if stage.against is None or stage.why_not:
            return False
        mean = stage.fidelity[self.plan.k].mean if stage.fidelity else None
        unfaithful = mean is not None and (mean.value < FAITHFUL or mean.high < self._promised(stage) - MARGIN)
        return unfaithful or (stage.lost is not None and stage.lost.low > 0 and stage.lost.value > MARGIN)

    def _promised(self, stage: StageFound) -> float:
        """What the last stage of a search found when `hnsw_ef` was chosen; of others nothing was measured then."""
        tuned = self.release.tuned if self.release else None
        quantized = self.info is not None and self.info.quantization is not None
        return tuned.recall if tuned and stage.name == (QUANTIZATION if quantized else INDEX) else 0.0

    @property
    def in_words(self) -> list[str]:
        """The verdict, why, and which stage loses what, a sentence each."""
        if self.broken is not None:
            return [f"Broken: {self.broken}."]
        says = []
        if self.required:
            says.append("Passed: every requirement is met." if not self.failures else "Failed.")
            says += [f"Not met: {failure.requirement.text}: {failure.why}." for failure in self.failures]
        return says + self.remarks

    @property
    def remarks(self) -> list[str]:
        """Which stage loses what, and what else is not as it should be, a sentence each."""
        k, says = self.plan.k, []
        for stage in self.blamed:
            fidelity = f"finds {stage.fidelity[k].mean.value:.1%} of the first {k} of {stage.against}"
            if promised := self._promised(stage):
                fidelity += f" ({promised:.1%} when hnsw_ef was chosen)"
            lost = ""
            if stage.lost:
                costs = stage.lost.low > 0
                lost = f", which costs {stage.lost.value:.3f} of Recall@{k}" if costs else f"; Recall@{k} bears it"
            says.append(f"{stage.direction}: {stage.name} {fidelity}{lost}.")
        if not self.blamed:
            says.append("No stage of the search loses more than it may.")
        return says + self.findings


def _rescued(stage: StageFound, recovered: set[tuple[str, str | None]]) -> bool:
    return (stage.direction, stage.against) in recovered
