"""Records audits in SQL."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from connector.audits.baseline import packed_as
from connector.audits.result import Audit
from connector.audits.stage_summary import StageSummary
from connector.audits.stages import stage_and_stratum
from connector.provenance.recorder import Provenance
from connector.provenance.runs import Run
from connector.provenance.tables import MeasureRow
from connector.releases.chain import search_settings


def record(result: Audit, provenance: Provenance, run: Run, set_id: int) -> int:
    """Write an audit to SQL; return its number."""
    return provenance.audits.record(
        run_id=run.id,
        release_id=result.row.id,
        set_id=set_id,
        verdict=result.verdict,
        settings=_settings(result),
        measures=list(_measures(result)),
        per_query={direction: queries.packed() for direction, queries in result.per_query.items()}
        | {packed_as(*of): queries.packed() for of, queries in result.per_kind.items()},
    )


def _settings(result: Audit) -> dict[str, Any]:
    """Return how an audit was made, and what its measures do not say of what it found."""
    plan = result.plan
    settings: dict[str, Any] = {
        "pairs": result.pairs,
        "queries": None if plan.protocol else plan.queries,
        "gallery": None if plan.protocol else plan.gallery,
        "protocol": plan.protocol,
        "ks": list(plan.ks),
        "filters": dict(plan.filters),
        "by": list(plan.slices),
        "sample": plan.sample,
        "seed": plan.seed,
        "served_with": search_settings(result.row),
        "revision": result.row.revision,  # as it was before anything was searched
        "failed_requirements": sorted({failure.requirement.text for failure in result.failures}),
    }
    if result.broken is not None:
        settings["broken"] = result.broken
    settings |= _found_in(result)
    if result.worse_than_live:
        settings["worse_than_live"] = [drift.in_words for drift in result.worse_than_live]
    if result.drifts:
        settings["against"] = result.drifts[0].audit
    return settings


def _found_in(result: Audit) -> dict[str, Any]:
    """Return what was found in the release; of a broken one, of which nothing was measured, nothing."""
    if (info := result.info) is None or result.release is None:
        return {}
    return {
        "gallery_size": result.gallery,
        "without_relevant": result.without_relevant,
        "points": info.points,
        "indexed": info.indexed,
        "guarantee": result.release.guarantee.value,
        "verified": result.verified,
        "collection": {
            "m": info.m,
            "ef_construct": info.ef_construct,
            "quantization": info.quantization,
            "payload_indexes": list(info.payload_indexes),
            "status": info.status,
        },
        "findings": list(result.findings),
        "stages": [_stage(stage) for stage in result.stages],
        "captions": asdict(result.captions) if result.captions else None,
        "seen_unseen": [
            {"direction": own.direction, "about": own.about, "why_not": own.why_not} for own in result.seen_unseen
        ],
    }


def _measures(result: Audit) -> Iterator[MeasureRow]:
    for measure in result.measures:
        stage, stratum = stage_and_stratum(measure.part)
        yield MeasureRow(
            direction=measure.direction,
            stage=stage,
            stratum=stratum,
            name=measure.name,
            value=measure.value,
            low=measure.low,
            high=measure.high,
            queries=measure.queries,
        )


def _stage(stage: StageSummary) -> dict[str, Any]:
    """Return what the measures do not say of a stage."""
    lost = asdict(stage.lost) if stage.lost else None
    return {
        "direction": stage.direction,
        "stage": stage.name,
        "kind": stage.kind,
        "against": stage.against,
        "lost": lost,
        "without_relevant": stage.without_relevant,
        "why_not": stage.why_not,
    }
