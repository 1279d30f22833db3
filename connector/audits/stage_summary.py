"""What a stage of the search keeps and loses, as values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from alignment.retrieval.bootstrap import Estimate
from connector.audits.measure import Measurement
from connector.audits.stages import Latency, stage_part


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How much of another stage's first K a stage finds: mean over queries, 5th percentile, least, share below 0.9."""

    mean: Estimate
    p5: float
    least: float
    below90: float


@dataclass(frozen=True, slots=True)
class StageSummary:
    """What a stage of the search keeps of what the stage before it finds, searching the whole collection.

    Attributes:
        against: the stage that it is compared with; None for the reference.
        queries: how many queries the recall is of: within a filter those with something to find, elsewhere all.
        without_relevant: queries with nothing to find. Elsewhere than within a filter they count as misses.
        recall, fidelity: by K.
        lost: Recall@K lost against `against`, at the plan's k, with a paired interval; negative is a gain.
        latency: of single queries; None for the reference.
        why_not: why the stage was not measured; None where it was.
        kind: of the items that the queries are about; "" of the audit's own queries.
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
    kind: str = ""

    @property
    def part(self) -> str:
        """The part of the audit that it is, as requirements name it."""
        return stage_part(self.name, self.kind)

    def measures(self) -> Iterator[Measurement]:
        """Yield its numbers, but for `lost`."""
        for k, recall in self.recall.items():
            yield self._measurement(f"recall@{k}", recall.value, recall.low, recall.high)
        for k, fidelity in self.fidelity.items():
            yield self._measurement(f"fidelity@{k}", fidelity.mean.value, fidelity.mean.low, fidelity.mean.high)
            for name in ("p5", "least", "below90"):
                yield self._measurement(f"fidelity@{k}.{name}", getattr(fidelity, name))
        if self.latency:
            for name in ("p50", "p95", "p99"):
                yield self._measurement(f"latency.{name}", getattr(self.latency, name))

    def _measurement(self, name: str, value: float, low: float | None = None, high: float | None = None) -> Measurement:
        return Measurement(self.direction, name, value, low, high, self.queries, self.part)
