"""What an audit finds, as values that print, compare and are recorded in SQL.

`connector.audits.auditor` makes an `Audit`. docs/audits-measures.md explains every number.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from alignment.geometry.geometry import Geometry
from alignment.modality import DIRECTIONS
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.thresholds import holds
from connector.audits.baseline import Drift, PerQuery
from connector.audits.captions import CaptionBaseline
from connector.audits.kinds import KINDS, NEW_OR_KNOWN, WAYS
from connector.audits.measure import Measurement
from connector.audits.measures import find_measure
from connector.audits.plan import AuditPlan
from connector.audits.requirements import Requirement, UnmetRequirement
from connector.audits.seen_unseen_result import SeenUnseenResult
from connector.audits.stage_summary import StageSummary
from connector.audits.stages import INDEX, LOWERING, QUANTIZATION, RESCORING, stage_and_stratum
from connector.provenance.tables import ReleaseRow
from connector.releases.release import Release
from connector.states import AuditVerdict
from connector.stores.collection import CollectionInfo
from connector.stores.points import Payload

# A stage is blamed for each of these: its fidelity is below FAITHFUL; it loses more of Recall@K than chance and MARGIN;
# it is the last one, and its fidelity is below the recall that `hnsw_ef` was chosen for, by more than MARGIN.
FAITHFUL = 0.95
MARGIN = 0.01


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An item as the store holds it: its key and payload."""

    key: str
    payload: Payload
    relevant: bool = False
    score: float | None = None


@dataclass(frozen=True, slots=True)
class WorstQuery:
    """A query that production answers badly.

    Attributes:
        rank: of the best relevant item by exact search among all points.
        found: the hits, best first.
        expected: a few of the relevant items.
    """

    direction: str
    query: StoredItem
    rank: float
    found: Sequence[StoredItem]
    expected: Sequence[StoredItem]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectionResult:
    """What an audit finds in one direction.

    Attributes:
        gallery: how many items were searched.
        without_relevant: queries whose relevant items are not in the gallery; they count as misses.
        measures: every number.
        stages: the losses of a search, in its order.
        curve: Recall@K of exact search in the gallery, by K.
        chance: Recall@K of a random order, by the same K.
        per_query: the values that later audits are compared with.
        worst: the queries that are answered worst.
        seen_unseen: how the whole collection is found; None under a protocol, which fixes queries and gallery.
    """

    gallery: int
    without_relevant: int
    measures: Sequence[Measurement]
    stages: Sequence[StageSummary]
    curve: Mapping[int, Estimate]
    chance: Mapping[int, float]
    per_query: PerQuery
    worst: Sequence[WorstQuery]
    seen_unseen: SeenUnseenResult | None = None


@dataclass(frozen=True, slots=True)
class SpaceResult:
    """The modality gap and related figures of vectors that were read back.

    Attributes:
        of: what the vectors are; or why nothing was measured, where `geometry` is None.
        finding: the same in a sentence; None where it was measured.
    """

    of: str
    geometry: Geometry | None = None
    projection: PcaProjection | None = None
    measures: Sequence[Measurement] = ()
    finding: str | None = None


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit finds.

    Attributes:
        row: the release in SQL.
        plan: how the audit was made, with the pairs of the embedding set `pairs`.
        broken: why the release fails integrity; nothing was measured then.
        release: checked; None where it is broken.
        info: the collection while it was audited.
        directions: what was found in each direction.
        space: what was found of both modalities together.
        captions: what captions alone would find; None: the release has none beside images.
        findings: what is not as it should be, and what was not measured, in words.
        verified: points that were read back and compared with the embedding sets.
        drifts: changes against the baseline.
        worse_than_live: of a ready release, the recalls that are significantly below those of the release that it is to
            replace, in the newest audit of that one that was made alike.
        failures: requirements that are not met.
        requirements: what had to be met.
        number: of the audit in SQL; 0 before it is recorded.
    """

    row: ReleaseRow
    plan: AuditPlan
    pairs: str
    broken: str | None = None
    release: Release | None = None
    info: CollectionInfo | None = None
    directions: Mapping[str, DirectionResult] = field(default_factory=dict)
    space: SpaceResult = SpaceResult("not measured")
    captions: CaptionBaseline | None = None
    findings: Sequence[str] = ()
    verified: int = 0
    drifts: Sequence[Drift] = ()
    worse_than_live: Sequence[Drift] = ()
    failures: Sequence[UnmetRequirement] = ()
    requirements: Sequence[Requirement] = ()
    number: int = 0

    @property
    def verdict(self) -> AuditVerdict:
        """`broken`; `passed` or `failed` by the requirements; or `measured` where there were none."""
        if self.broken is not None:
            return AuditVerdict.BROKEN
        if not self.requirements:
            return AuditVerdict.MEASURED
        return AuditVerdict.FAILED if self.failures else AuditVerdict.PASSED

    @property
    def measures(self) -> list[Measurement]:
        """Every number, those of each direction before those of both."""
        of_directions = [m for result in self.directions.values() for m in result.measures]
        of_kinds = [m for result in self.seen_unseen for m in result.measures]
        of_ways = self.captions.measures if self.captions else []
        return of_directions + of_kinds + of_ways + list(self.space.measures)

    @property
    def seen_unseen(self) -> list[SeenUnseenResult]:
        """How the whole collection is found, by direction; nothing under a protocol."""
        return [result.seen_unseen for result in self.directions.values() if result.seen_unseen is not None]

    @property
    def stages(self) -> list[StageSummary]:
        """The losses of a search, by direction and in its order: those of queries about seen items after the others."""
        return [
            stage
            for result in self.directions.values()
            for stage in (*result.stages, *(result.seen_unseen.stages if result.seen_unseen else ()))
        ]

    @property
    def worst(self) -> list[WorstQuery]:
        """The queries that are answered worst, by direction."""
        return [query for result in self.directions.values() for query in result.worst]

    @property
    def gallery(self) -> dict[str, int]:
        """How many items were searched, by modality."""
        return {DIRECTIONS[direction][1]: result.gallery for direction, result in self.directions.items()}

    @property
    def without_relevant(self) -> dict[str, int]:
        """How many queries have no relevant item in the gallery, by direction."""
        return {direction: result.without_relevant for direction, result in self.directions.items()}

    @property
    def per_query(self) -> dict[str, PerQuery]:
        """The values that later audits are compared with, by direction."""
        return {direction: result.per_query for direction, result in self.directions.items()}

    @property
    def per_kind(self) -> dict[tuple[str, str], PerQuery]:
        """The same of queries about seen and about unseen items, by direction and kind."""
        return {(result.direction, kind): own for result in self.seen_unseen for kind, own in result.per_query.items()}

    def measure(self, direction: str, name: str, part: str = "") -> Measurement:
        """Return one number.

        Raises:
            StopIteration: it was not measured.
        """
        return next(m for m in self.measures if (m.direction, m.part, m.name) == (direction, part, name))

    def queries_of(self, direction: str) -> int:
        """Return how many queries a direction has; 0 where the release is broken."""
        return len(self.directions[direction].per_query.keys) if direction in self.directions else 0

    def among(self, requirement: Requirement) -> str:
        """Say which items a requirement is about: held-out ones alone are found more easily than all."""
        measure, _ = find_measure(requirement.name)
        if measure is None or not measure.in_gallery or stage_and_stratum(requirement.part)[0]:
            return ""
        if requirement.part in (*KINDS, *WAYS) or self.plan.compared_by.get("gallery") == "all":
            return ", in the whole collection"
        if self.plan.protocol:
            return f", in the gallery of protocol {self.plan.protocol}"
        return ", among held-out items alone"

    @property
    def blamed(self) -> list[StageSummary]:
        """The stages that lose more than they may, in the order of a search."""
        rescored = {(s.direction, s.kind, s.against) for s in self.stages if s.name == RESCORING}
        return [
            stage
            for stage in self.stages
            if self._is_lossy(stage)
            # What the lowering loses, rescoring recovers: it is blamed only where nothing rescores.
            and not (stage.name == LOWERING and (stage.direction, stage.kind, stage.against) in rescored)
        ]

    def _is_lossy(self, stage: StageSummary) -> bool:
        if stage.against is None or stage.why_not:
            return False
        mean = stage.fidelity[self.plan.k].mean if stage.fidelity else None
        unfaithful = mean is not None and (
            holds(mean.value, "<", FAITHFUL) or holds(mean.high, "<", self._tuned_recall(stage) - MARGIN)
        )
        return unfaithful or (stage.lost is not None and stage.lost.low > 0 and holds(stage.lost.value, ">", MARGIN))

    def _tuned_recall(self, stage: StageSummary) -> float:
        """Return the recall that `hnsw_ef` was chosen for, if this is the last stage of the search; else 0."""
        tuned = self.release.tuned if self.release else None
        quantized = self.info is not None and self.info.quantization is not None
        return tuned.recall if tuned and stage.name == (QUANTIZATION if quantized else INDEX) else 0.0

    @property
    def in_words(self) -> list[str]:
        """The verdict, the reasons for it, and which stage loses what, a sentence each."""
        if self.broken is not None:
            return [f"Broken: {self.broken}."]
        sentences = []
        if self.requirements:
            sentences.append("Passed: every requirement is met." if not self.failures else "Failed.")
            sentences += [f"Not met: {f.requirement.text}: {f.why}{self.among(f.requirement)}." for f in self.failures]
            failed = {failure.requirement for failure in self.failures}
            places = {own: self.among(own) for own in dict.fromkeys(self.requirements) if own not in failed}
            sentences += [f"Met: {own.text}{among}." for own, among in places.items() if among]
        return sentences + self.remarks

    @property
    def remarks(self) -> list[str]:
        """What is found, which stage loses what, and what else is not as it should be, a sentence each."""
        found = [sentence for result in self.seen_unseen for sentence in result.in_words]
        lost = [self._remark(stage) for stage in self.blamed]
        worse = [f"Worse than the live release: {drift.in_words}." for drift in self.worse_than_live]
        return [*worse, *found, *(lost or ["No stage of the search loses more than it may."]), *self.findings]

    def _remark(self, stage: StageSummary) -> str:
        k = self.plan.k
        fidelity = f"finds {stage.fidelity[k].mean.value:.1%} of the first {k} of {stage.against}"
        if tuned := self._tuned_recall(stage):
            fidelity += f" ({tuned:.1%} when hnsw_ef was chosen)"
        lost = ""
        if stage.lost:
            significant = stage.lost.low > 0
            lost = f", which costs {stage.lost.value:.3f} of Recall@{k}" if significant else f"; Recall@{k} bears it"
        asked = f"of queries about {NEW_OR_KNOWN[stage.kind]} items, " if stage.kind else ""
        return f"{stage.direction}: {asked}{stage.name} {fidelity}{lost}."


def worst_verdict(audits: Iterable[Audit]) -> AuditVerdict:
    """Return the verdict that counts for several audits together: the worst of theirs."""
    return min((audit.verdict for audit in audits), key=list(AuditVerdict).index)
