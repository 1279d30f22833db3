"""Records audits in SQL."""

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
    plan, info = result.plan, result.info
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
    if info is not None and result.release is not None:
        settings |= {
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
    if result.worse_than_live:
        settings["worse_than_live"] = [drift.in_words for drift in result.worse_than_live]
    if result.drifts:
        settings["against"] = result.drifts[0].audit
    return provenance.audits.record(
        run_id=run.id,
        release_id=result.row.id,
        set_id=set_id,
        verdict=result.verdict,
        settings=settings,
        measures=[
            MeasureRow(
                direction=m.direction,
                stage=stage,
                stratum=stratum,
                name=m.name,
                value=m.value,
                low=m.low,
                high=m.high,
                queries=m.queries,
            )
            for m in result.measures
            for stage, stratum in [stage_and_stratum(m.part)]
        ],
        per_query={direction: queries.packed() for direction, queries in result.per_query.items()}
        | {packed_as(*of): queries.packed() for of, queries in result.per_kind.items()},
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
