"""Audits as tables."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from alignment.modality import DIRECTIONS
from alignment.plurals import counted
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.kinds import HARMONIC, SEEN, UNSEEN
from connector.audits.measures import MEASURES, trended
from connector.audits.result import Audit
from connector.audits.stage_summary import StageSummary
from connector.audits.stages import FILTER
from connector.cli.tables import print_table, show
from connector.states import AuditVerdict

if TYPE_CHECKING:
    from connector.audits.baseline import Drift
    from connector.audits.captions import KindOfQuery
    from connector.audits.history import AuditSummary


def print_audit(found: Audit) -> None:
    """Print the verdict in words, the measures of the whole, the stages, and the strata."""
    title = f"{found.row.physical_name}: {found.verdict}"
    if found.verdict == AuditVerdict.BROKEN:
        show(title)
        show(found.broken or "", first="  ", rest="  ")
        return
    sizes = ", ".join(counted(size, modality) for modality, size in found.gallery.items())
    among = f"protocol {found.plan.protocol}" if found.plan.protocol else f"{found.plan.gallery} gallery"
    print_table(_whole(found), f"{title}; {among} of {sizes}")
    for result in found.seen_unseen:
        print_table(_recall_rows(found, result.direction, among), f"{result.direction}, as production searches")
        if SEEN in result.about:
            show(f"{result.direction}: queries about {SEEN} items are {result.about[SEEN]}.")
    for direction, kind in itertools.product(DIRECTIONS, ("", SEEN)):
        stages = [stage for stage in found.stages if (stage.direction, stage.kind) == (direction, kind)]
        about = f" about {kind} items" if kind else ""
        asked = f", {counted(stages[0].queries, 'query')}{about}" if stages else ""
        print_table(map(_stage_row, stages), f"stages of a search, {direction}, over the whole collection{asked}")
    strata = [m for m in found.measures if "=" in m.part or m.part.endswith(" missing")]
    if strata:
        parts = dict.fromkeys(m.part for m in strata)
        print_table((_stratum_row(found, part) for part in parts), "queries apart")
    if found.captions:
        rows = map(_captions_row, found.captions.kinds)
        print_table(rows, f"text to image, first / among the first {found.captions.k}, of queries about items")
    if found.drifts:
        _print_drifts(found)
    for stage in found.stages:
        if stage.why_not:
            show(f"{stage.direction}: {stage.part} was not measured: {stage.why_not}.")
    show(_facts(found))
    for sentence in (*found.in_words, *(found.captions.says if found.captions else ())):
        show(sentence)
    for direction, count in found.without_relevant.items():
        if count:
            show(f"{direction}: counted as misses, with no relevant item in the gallery: {counted(count, 'query')}.")


def print_verdicts(audits: Sequence[Audit]) -> None:
    """Print what counts of several audits side by side: Recall@K of text to image, then of image to text."""
    plan, rows = audits[0].plan, []
    parts = {"": plan.protocol or plan.gallery, UNSEEN: "new", SEEN: "known"}
    for audit in audits:
        recalls = {(m.part, m.direction): m.value for m in audit.measures if m.name == f"recall@{plan.k}"}
        row = {"metric": audit.row.metric, "audit": audit.number, "verdict": audit.verdict}
        for part, column in parts.items():
            both = [f"{recalls[part, d]:.3f}" for d in DIRECTIONS if (part, d) in recalls]
            row |= {column: "/".join(both)} if both else {}
        rows.append(row)
    print_table(rows, f"every metric: Recall@{plan.k} {'/'.join(DIRECTIONS)}, of items that are")


def _facts(found: Audit) -> str:
    """Say what the collection is like."""
    info, release = found.info, found.release
    assert info is not None
    assert release is not None
    ef = f"ef {release.hnsw_ef}" if release.hnsw_ef else "Qdrant's own ef"
    quantized = f", {info.quantization} quantization" if info.quantization else ""
    return (
        f"{counted(info.points, 'point')}, {counted(info.indexed, 'vector')} in a graph (m {info.m}, ef_construct {info.ef_construct}, "
        f"{ef}){quantized}, status {info.status}; {counted(found.verified, 'point')} read back {'is' if found.verified == 1 else 'are'} what was pushed."
    )


def _whole(found: Audit) -> Iterator[dict[str, str]]:
    """Yield a measure a row."""
    present = {(m.direction, m.name): m for m in found.measures if not m.part}
    names = [name for measure in MEASURES.values() if measure.shown for name, _ in measure.named(found.plan.ks)]
    for name in names:
        its = {direction: present[direction, name] for direction in DIRECTIONS if (direction, name) in present}
        if its:
            yield {"measure": name} | {direction: _printed(m.value, m.low, m.high) for direction, m in its.items()}
    if geometry := found.space.geometry:
        gap = geometry.gap.debiased
        yield {"measure": "gap", **dict.fromkeys(DIRECTIONS, f"{gap:.3f} (p = {geometry.p:.3f})")}


def _recall_rows(found: Audit, direction: str, among: str) -> Iterator[dict[str, str]]:
    """Yield what is found in the gallery, and beside it of unseen and seen items in the whole collection."""
    present = {(m.part, m.name): m for m in found.measures if m.direction == direction}
    whole = "whole collection"
    rows = [("", f"{found.plan.queries} items", among)]
    rows += [(UNSEEN, "unseen items", whole), (SEEN, "seen items", whole), (HARMONIC, "harmonic mean", whole)]
    for part, queries, where in rows:
        recalls = {k: present[part, f"recall@{k}"] for k in found.plan.ks if (part, f"recall@{k}") in present}
        if recalls:
            row = {"queries about": queries, "among": where, "n": f"{recalls[found.plan.k].queries:,}"}
            row |= {f"R@{k}": f"{m.value:.3f}" for k, m in recalls.items()}
            k = found.plan.k
            yield row | {f"R@{k}": _printed(recalls[k].value, recalls[k].low, recalls[k].high)}


def _printed(value: float, low: float | None, high: float | None) -> str:
    interval = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{value:.3f}{interval}"


def _stage_row(stage: StageSummary) -> dict[str, str]:
    row = {"stage": stage.name}
    if stage.why_not:
        return row  # the reason is a sentence, and stands below
    if stage.name.startswith(FILTER):
        row["stage"] += f" ({counted(stage.queries, 'query')} with something to find)"
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


def _captions_row(kind: "KindOfQuery") -> dict[str, str]:
    shares = {f"by {way}": f"{kind.first[way].value:.3f} / {kind.among[way].value:.3f}" for way in kind.first}
    return {"queries about items": kind.kind, "n": f"{kind.queries:,}", **shares}


def _print_drifts(found: Audit) -> None:
    """Print the changes that are more than chance, and those of the measures of a history; count the others."""
    shown = [d for d in found.drifts if d.change.significant or (not d.part and d.name in trended(found.plan.k))]
    print_table(map(_drift_row, shown), f"since audit {found.drifts[0].audit}")
    if others := len(found.drifts) - len(shown):
        show(f"{counted(others, 'further comparison')} showed no more than chance does: --json lists every one.")


def _drift_row(drift: "Drift") -> dict[str, str]:
    c = drift.change
    return {
        "measure": f"{drift.part} {drift.name}".strip(),
        "direction": drift.direction,
        "before": f"{c.before:.4f}",
        "now": f"{c.after:.4f}",
        "difference": _estimate(c.difference),
        "significant": "yes" if c.significant else "no",
        "queries": str(c.queries),
    }


def print_history(moments: Sequence["AuditSummary"]) -> None:
    """Print the trend of the measures that matter, a table for each metric and way to ask."""
    for metric, asked in dict.fromkeys((moment.metric, moment.asked) for moment in moments):
        rows = []
        for moment in moments:
            if (moment.metric, moment.asked) == (metric, asked):
                places = [("", name) for name in trended(moment.k)] + [(HARMONIC, f"recall@{moment.k}")]
                values = {
                    f"{m.part} {m.name} {m.direction}".strip().removesuffix(" both"): f"{m.value:.3f}"
                    for place in places
                    for m in moment.measures
                    if (m.part, m.name) == place
                }
                rows.append(
                    {
                        "audit": moment.audit,
                        "at": f"{moment.at:%F %H:%M}",
                        "release": moment.release,
                        "verdict": moment.verdict,
                        **values,
                    }
                )
        print_table(rows, f"audits under {metric} of {asked}")
