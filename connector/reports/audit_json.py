"""Audits as JSON documents, and as lines of a log."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from connector.audits.result import Audit, worst_verdict
from connector.audits.seen_unseen_result import SeenUnseenResult
from connector.audits.stage_summary import StageSummary
from connector.provenance.runs import RunResult
from connector.provenance.tables import now

if TYPE_CHECKING:
    from connector.audits.baseline import Drift
    from connector.audits.history import AuditSummary
    from connector.audits.requirements import UnmetRequirement


def documents(results: Sequence[RunResult[Audit]]) -> dict[str, Any]:
    """Return the audits of one run as JSON, each as `document` lays it out, with the worst of their verdicts."""
    verdict = worst_verdict(result.value for result in results)
    return {"run": results[0].run, "verdict": verdict, "audits": [document(result) for result in results]}


def document(result: RunResult[Audit]) -> dict[str, Any]:
    """Return an audit as JSON; infinite and unknown numbers become null."""
    found = result.value
    plan = found.plan
    written: dict[str, Any] = {
        "run": result.run,
        "audit": found.number,
        "collection": found.row.physical_name,
        "metric": found.row.metric,
        "verdict": found.verdict,
        "says": found.in_words,
        "pairs": found.pairs,
        "queries": None if plan.protocol else plan.queries,
        "gallery": None if plan.protocol else plan.gallery,
        "protocol": plan.protocol,
        "seed": plan.seed,
        "sample": plan.sample,
        "broken": found.broken,
        "measures": [asdict(measure) for measure in found.measures],
        "not_met": [_unmet(failure) for failure in found.failures],
        "drifts": [_drift(drift) for drift in found.drifts],
        "worse_than_live": [_drift(drift) for drift in found.worse_than_live],
    }
    return dict(_without_infinity(written | _found_in(found)))


def _found_in(found: Audit) -> dict[str, Any]:
    """Return what an audit found in its release, as JSON; of a broken one, of which nothing was measured, nothing."""
    if (info := found.info) is None or found.release is None:
        return {}
    return {
        "guarantee": found.release.guarantee,
        "gallery_size": found.gallery,
        "points": info.points,
        "indexed": info.indexed,
        "index": {
            "m": info.m,
            "ef_construct": info.ef_construct,
            "hnsw_ef": found.release.hnsw_ef,
            "quantization": info.quantization,
            "payload_indexes": list(info.payload_indexes),
            "status": info.status,
        },
        "verified_points": found.verified,
        "without_relevant": found.without_relevant,
        "stages": [_stage(stage) for stage in found.stages],
        "blamed": [{"direction": stage.direction, "stage": stage.name, "kind": stage.kind} for stage in found.blamed],
        "curve": {
            direction: [
                {"k": k, **asdict(estimate), "chance": result_of.chance[k]} for k, estimate in result_of.curve.items()
            ]
            for direction, result_of in found.directions.items()
        },
        "seen_unseen": {result.direction: _seen_unseen(result) for result in found.seen_unseen},
        "geometry": found.space.geometry.to_json() if found.space.geometry else None,
        "geometry_of": found.space.of,
        "worst": [asdict(worst) for worst in found.worst],
        "captions": asdict(found.captions) if found.captions else None,
    }


def _unmet(failure: "UnmetRequirement") -> dict[str, Any]:
    return {
        "requirement": failure.requirement.text,
        "direction": failure.direction,
        "measure": failure.requirement.name,
        "part": failure.requirement.part,
        "value": failure.value,
        "why": failure.why,
    }


def _stage(stage: StageSummary) -> dict[str, Any]:
    return {
        "direction": stage.direction,
        "stage": stage.name,
        "kind": stage.kind,
        "against": stage.against,
        "queries": stage.queries,
        "without_relevant": stage.without_relevant,
        "recall": {str(k): asdict(e) for k, e in stage.recall.items()},
        "fidelity": {str(k): asdict(f) for k, f in stage.fidelity.items()},
        "lost": asdict(stage.lost) if stage.lost else None,
        "latency_ms": asdict(stage.latency) if stage.latency else None,
        "why_not": stage.why_not,
    }


def _seen_unseen(result: SeenUnseenResult) -> dict[str, Any]:
    curve = result.curve and {
        "k": result.curve.k,
        "area": result.curve.area,
        "offsets": result.curve.offsets.tolist(),
        "unseen": result.curve.unseen.tolist(),
        "seen": result.curve.seen.tolist(),
    }
    return {
        "about": result.about,
        "why_not": result.why_not,
        "fair": result.fair,
        "found_first": result.found_first,
        "points": [asdict(point) for point in result.points],
        "curve": curve,
    }


def _drift(drift: "Drift") -> dict[str, Any]:
    c = drift.change
    return {
        "direction": drift.direction,
        "part": drift.part,
        "measure": drift.name,
        "against": drift.audit,
        "before": c.before,
        "after": c.after,
        "difference": asdict(c.difference),
        "significant": c.significant,
        "queries": c.queries,
        "only_before": c.only_before,
        "only_after": c.only_after,
    }


def _without_infinity(value: Any) -> Any:
    """Replace infinities and NaN, which JSON cannot express, by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _without_infinity(inner) for name, inner in value.items()}
    return [_without_infinity(inner) for inner in value] if isinstance(value, list | tuple) else value


def history_document(moments: Sequence["AuditSummary"]) -> list[dict[str, Any]]:
    """Return a history as JSON, oldest first."""
    return [
        {
            "audit": moment.audit,
            "release": moment.release,
            "metric": moment.metric,
            "verdict": moment.verdict,
            "at": moment.at.isoformat(),
            "asked": moment.asked,
            "measures": [
                _without_infinity(
                    {
                        "direction": m.direction,
                        "part": m.part,
                        "name": m.name,
                        "value": m.value,
                        "low": m.low,
                        "high": m.high,
                        "queries": m.queries,
                    }
                )
                for m in moment.measures
            ],
        }
        for moment in moments
    ]


def log_line(result: RunResult[Audit]) -> str:
    """Return an audit as one line of JSON, without worst queries, curves and geometry; measures hold their numbers."""
    written = {"at": now().isoformat(), **document(result)}
    for name in ("worst", "curve", "seen_unseen", "geometry"):
        written.pop(name, None)
    return json.dumps(written, ensure_ascii=False, default=str)
