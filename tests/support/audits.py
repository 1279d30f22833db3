"""Audits as the command line makes them, and audits with other findings than a run would give."""

from collections.abc import Sequence
from dataclasses import replace

from alignment.sets.embedding_set import EmbeddingSet
from connector.audits.measure import BOTH, Measurement
from connector.audits.result import Audit, WorstQuery
from connector.audits.run import rows_to_audit, run_audits
from connector.audits.stage_summary import StageSummary
from connector.requests import AuditRequest
from tests.support.world import World, the_set


def audited(world: World, request: AuditRequest, pairs: EmbeddingSet | None = None) -> list[Audit]:
    """Run and record the audits of a request, with the pairs of the set `s` where no others are given."""
    rows = rows_to_audit(request, world.store, world.provenance)
    with world.provenance.runs.start("audit", {}) as run:
        return run_audits(request, rows, pairs or the_set(world), world.store, world.provenance, run)


def altered(
    audit: Audit,
    *,
    measures: Sequence[Measurement] | None = None,
    stages: Sequence[StageSummary] | None = None,
    worst: Sequence[WorstQuery] | None = None,
    without_relevant: int | None = None,
) -> Audit:
    """Return the audit with other findings, each in the direction that it names; None keeps them."""
    directions = {}
    for direction, result in audit.directions.items():
        directions[direction] = replace(
            result,
            measures=result.measures if measures is None else [m for m in measures if m.direction == direction],
            stages=result.stages if stages is None else [stage for stage in stages if stage.direction == direction],
            worst=result.worst if worst is None else [query for query in worst if query.direction == direction],
            without_relevant=result.without_relevant if without_relevant is None else without_relevant,
        )
    of_both = audit.space.measures if measures is None else [m for m in measures if m.direction == BOTH]
    return replace(audit, directions=directions, space=replace(audit.space, measures=of_both))
