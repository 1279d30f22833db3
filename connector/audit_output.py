"""Audits as documents for machines, tables for people, a line for log shippers and a text file for Prometheus."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import click

from alignment.embeddings import write_durably
from alignment.recall import Estimate
from connector.audit import BROKEN, Audit, StageFound
from connector.errors import ConnectorError
from connector.models import now
from connector.plan import DIRECTIONS
from connector.render import print_table
from connector.stages import FILTER

if TYPE_CHECKING:
    from connector.drift import Drift, Moment
    from connector.result import Result

# Measures of the whole that the table shows, in its order; {k} is each K.
SHOWN = (
    "recall@{k}", "exact.recall@{k}", "chance.recall@{k}", "found@{k}", "ndcg@{k}", "mrr", "r_precision", "median_rank",
    "fidelity@{k}", "certified", "hubness",
)  # fmt: skip
# Measures of a history that are shown unless others are named.
TREND = ("recall@{k}", "fidelity@{k}", "gap")


def document(result: "Result") -> dict[str, Any]:
    """Lay an audit out as JSON; a number that is infinite or unknown becomes null."""
    found: Audit = result.made
    info, plan = found.info, found.plan
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
        "not_met": [
            {"requirement": f.requirement.text, "direction": f.direction, "measure": f.requirement.name,
             "part": f.requirement.part, "value": f.value, "why": f.why}
            for f in found.failures
        ],
        "drifts": [_drift(drift) for drift in found.drifts],
    }  # fmt: skip
    if info is not None and found.release is not None:
        written |= {
            "guarantee": found.release.guarantee,
            "gallery_size": found.gallery,
            "points": info.points,
            "indexed": info.indexed,
            "index": {
                "m": info.m, "ef_construct": info.ef_construct, "hnsw_ef": found.release.hnsw_ef,
                "quantization": info.quantization, "payload_indexes": list(info.payload_indexes), "status": info.status,
            },
            "verified_points": found.verified,
            "without_relevant": found.without_relevant,
            "stages": [_stage(stage) for stage in found.stages],
            "blamed": [{"direction": stage.direction, "stage": stage.name} for stage in found.blamed],
            "curve": {
                direction: [
                    {"k": k, **asdict(estimate), "chance": found.chance[direction][k]}
                    for k, estimate in estimates.items()
                ]
                for direction, estimates in found.curve.items()
            },
            "geometry": found.geometry.to_json() if found.geometry else None,
            "geometry_of": found.geometry_of,
            "worst": [asdict(worst) for worst in found.worst],
        }  # fmt: skip
    return dict(_without_infinity(written))


def _stage(stage: StageFound) -> dict[str, Any]:
    return {
        "direction": stage.direction, "stage": stage.name, "against": stage.against,
        "queries": stage.queries, "without_relevant": stage.without_relevant,
        "recall": {str(k): asdict(e) for k, e in stage.recall.items()},
        "fidelity": {str(k): asdict(f) for k, f in stage.fidelity.items()},
        "lost": asdict(stage.lost) if stage.lost else None,
        "latency_ms": asdict(stage.latency) if stage.latency else None, "why_not": stage.why_not,
    }  # fmt: skip


def _drift(drift: "Drift") -> dict[str, Any]:
    c = drift.change
    return {
        "direction": drift.direction, "part": drift.part, "measure": drift.name, "against": drift.audit,
        "before": c.before, "after": c.after, "difference": asdict(c.difference), "significant": c.significant,
        "queries": c.queries, "only_before": c.only_before, "only_after": c.only_after,
    }  # fmt: skip


def _without_infinity(value: Any) -> Any:
    """JSON knows no infinity, and no number that is none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _without_infinity(each) for name, each in value.items()}
    return [_without_infinity(each) for each in value] if isinstance(value, list | tuple) else value


def print_audit(found: Audit) -> None:
    """Print the verdict in words, the measures of the whole, the stages, and the strata."""
    title = f"{found.row.physical_name}: {found.verdict}"
    if found.verdict == BROKEN:
        click.echo(f"{title}\n  {found.broken}")
        return
    sizes = ", ".join(f"{size} {modality}s" for modality, size in found.gallery.items())
    among = f"protocol {found.plan.protocol}" if found.plan.protocol else f"{found.plan.gallery} gallery"
    print_table(_whole(found), f"{title}; {among} of {sizes}")
    for direction in DIRECTIONS:
        its = [stage for stage in found.stages if stage.direction == direction]
        print_table(map(_stage_row, its), f"stages of a search, {direction}, over the whole collection")
    strata = [m for m in found.measures if "=" in m.part or m.part.endswith(" missing")]
    if strata:
        parts = dict.fromkeys(m.part for m in strata)
        print_table((_stratum_row(found, part) for part in parts), "queries apart")
    if found.drifts:
        print_table(map(_drift_row, found.drifts), f"since audit {found.drifts[0].audit}")
    for stage in found.stages:
        if stage.why_not:
            click.echo(f"{stage.direction}: {stage.name} was not measured: {stage.why_not}.")
    click.echo(_facts(found))
    for sentence in found.in_words:
        click.echo(sentence)
    for direction, count in found.without_relevant.items():
        if count:
            click.echo(f"{direction}: {count} queries have no relevant item in the gallery and count as misses.")


def _facts(found: Audit) -> str:
    """Say what the collection is like."""
    info, release = found.info, found.release
    assert info is not None
    assert release is not None
    walk = f"ef {release.hnsw_ef}" if release.hnsw_ef else "Qdrant's own ef"
    quantized = f", {info.quantization} quantization" if info.quantization else ""
    return (
        f"{info.points:,} points, {info.indexed:,} vectors in a graph (m {info.m}, ef_construct {info.ef_construct}, "
        f"{walk}){quantized}, status {info.status}; {found.verified:,} points read back are what was pushed."
    )


def _whole(found: Audit) -> Iterator[dict[str, str]]:
    """Yield a measure a row."""
    present = {(m.direction, m.name): m for m in found.measures if not m.part}
    ks = found.plan.ks
    names = [name.format(k=k) for name in SHOWN for k in (ks if "{k}" in name else ks[:1])]
    for name in names:
        its = {direction: present[direction, name] for direction in DIRECTIONS if (direction, name) in present}
        if its:
            yield {"measure": name} | {direction: _printed(m.value, m.low, m.high) for direction, m in its.items()}
    if found.geometry:
        gap = found.geometry.gap.debiased
        yield {"measure": "gap", **dict.fromkeys(DIRECTIONS, f"{gap:.3f} (p = {found.geometry.p:.3f})")}


def _printed(value: float, low: float | None, high: float | None) -> str:
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{value:.3f}{interval}"


def _stage_row(stage: StageFound) -> dict[str, str]:
    row = {"stage": stage.name}
    if stage.why_not:
        return row  # the reason is a sentence, and stands below
    if stage.name.startswith(FILTER):
        row["stage"] += f" ({stage.queries:,} queries with something to find)"
    for k, recall in stage.recall.items():
        row[f"R@{k}"] = f"{recall.value:.3f}"
    row["lost"] = "" if stage.lost is None else _estimate(stage.lost)
    if stage.fidelity:
        k = max(stage.fidelity)
        f = stage.fidelity[k]
        row[f"fidelity@{k}"] = f"{f.mean.value:.3f}"
        row |= {"p5": f"{f.p5:.2f}", "least": f"{f.least:.2f}", "below 0.9": f"{f.below90:.1%}"}
    if stage.latency:
        row["ms p50/p95/p99"] = "/".join(
            f"{value:.1f}" for value in (stage.latency.p50, stage.latency.p95, stage.latency.p99)
        )
    return row


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _stratum_row(found: Audit, part: str) -> dict[str, str]:
    its = [m for m in found.measures if m.part == part and m.name == f"recall@{found.plan.k}"]
    queries = ", ".join(str(m.queries) for m in its)
    return {"queries of": part} | {m.direction: _printed(m.value, m.low, m.high) for m in its} | {"n": queries}


def _drift_row(drift: "Drift") -> dict[str, str]:
    c = drift.change
    return {
        "measure": f"{drift.part} {drift.name}".strip(), "direction": drift.direction, "before": f"{c.before:.4f}",
        "now": f"{c.after:.4f}", "difference": _estimate(c.difference), "significant": "yes" if c.significant else "no",
        "queries": str(c.queries),
    }  # fmt: skip


def print_history(moments: Sequence["Moment"]) -> None:
    """Print the trend of the measures that matter, a table for each metric and way to ask."""
    for metric, asked in dict.fromkeys((moment.metric, moment.asked) for moment in moments):
        rows = []
        for moment in moments:
            if (moment.metric, moment.asked) == (metric, asked):
                names = [name.format(k=moment.k) for name in TREND]
                values = {
                    f"{m.name} {m.direction}".removesuffix(" both"): f"{m.value:.3f}"
                    for name in names for m in moment.measures if not m.part and m.name == name
                }  # fmt: skip
                rows.append({"audit": moment.audit, "at": f"{moment.at:%F %H:%M}", "release": moment.release,
                             "verdict": moment.verdict, **values})  # fmt: skip
        print_table(rows, f"audits under {metric} of {asked}")


def history_document(moments: Sequence["Moment"]) -> list[dict[str, Any]]:
    """Lay a history out as JSON, oldest first."""
    return [
        {
            "audit": moment.audit, "release": moment.release, "metric": moment.metric, "verdict": moment.verdict,
            "at": moment.at.isoformat(), "asked": moment.asked,
            "measures": [
                _without_infinity({
                    "direction": m.direction, "part": m.part, "name": m.name, "value": m.value, "low": m.low,
                    "high": m.high, "queries": m.queries,
                })
                for m in moment.measures
            ],
        }
        for moment in moments
    ]  # fmt: skip


def claim(path: Path) -> None:
    """Make sure that a file can be written, before an audit takes its time. Its directory has to be there.

    Raises:
        ConnectorError: it cannot.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("what stands there is no file")
        if path.exists():
            with path.open("ab"):
                pass
        with TemporaryFile(dir=path.parent):  # only that tells of read-only disks and of access lists
            pass
    except OSError as error:
        raise ConnectorError(f"{path} cannot be written: {error}; name another file") from error


def append_line(path: Path, result: "Result") -> None:
    """Append an audit as one line of JSON, without the queries that it shows as examples.

    Raises:
        ConnectorError: the file cannot be written.
    """
    written = {"at": now().isoformat(), **document(result)}
    for name in ("worst", "curve", "geometry"):
        written.pop(name, None)
    line = json.dumps(written, ensure_ascii=False, default=str) + "\n"
    try:
        # One write to a file opened for appending: lines of two audits do not mix.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            file.write(line.encode())
    except OSError as error:
        raise ConnectorError(f"{path} cannot be appended to: {error}") from error


def write_prometheus(path: Path, result: "Result") -> None:
    """Write an audit for the text file collector of Prometheus' node exporter: the file is replaced at once.

    Raises:
        ConnectorError: the file cannot be written.
    """
    from prometheus_client import CollectorRegistry, Gauge, generate_latest  # nothing else of the command needs it

    found: Audit = result.made
    registry = CollectorRegistry()
    release = {"collection": found.row.collection, "metric": found.row.metric, "release": found.row.physical_name}
    verdict = Gauge(
        "modalign_audit_verdict", "1 for the verdict of the audit", [*release, "verdict"], registry=registry
    )
    for name in ("passed", "failed", "measured", "broken"):
        verdict.labels(**release, verdict=name).set(found.verdict == name)
    ended = Gauge("modalign_audit_timestamp_seconds", "When the audit ended", list(release), registry=registry)
    ended.labels(**release).set_to_current_time()
    of = ["direction", "part", "measure"]
    value = Gauge("modalign_audit_measure", "A measure of the audit", [*release, *of], registry=registry)
    low = Gauge("modalign_audit_measure_low", "Lower end of its 95% interval", [*release, *of], registry=registry)
    high = Gauge("modalign_audit_measure_high", "Upper end of its 95% interval", [*release, *of], registry=registry)
    for m in found.measures:
        labels = {**release, "direction": m.direction, "part": m.part, "measure": m.name}
        value.labels(**labels).set(m.value)
        if m.low is not None and m.high is not None:
            low.labels(**labels).set(m.low)
            high.labels(**labels).set(m.high)
    try:
        write_durably(path, generate_latest(registry))
    except OSError as error:
        raise ConnectorError(f"{path} cannot be written: {error}") from error
