"""The provenance and settings of an audit and its release, for the page of the audit."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

from alignment.modality import Modality
from alignment.plurals import counted
from alignment.sets.embedding_set import EmbeddingSet
from connector.audits.history import AuditSummary, asked_as, history
from connector.audits.result import Audit
from connector.provenance.recorder import Provenance
from connector.provenance.tables import AlignmentRow, EncoderRow
from connector.reports.glossary import minute
from connector.safe_text import redacted

# Audits in the history of an audit page.
PAGE_AUDITS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditContext:
    """What an audit page shows beside the results.

    Attributes:
        store: URL of the database.
        alignment, encoders: of the release, from SQL, because those of a broken release may not load.
        pairs: the embedding set of the queries.
        requirements: their texts.
        run: id of the run that made the audit.
        at: when the audit was recorded.
        moments: comparable audits of the same collection and metric, oldest first, up to this one.
    """

    store: str
    alignment: AlignmentRow
    encoders: Mapping[Modality, EncoderRow]
    pairs: EmbeddingSet
    requirements: Sequence[str]
    run: int
    at: datetime
    moments: Sequence[AuditSummary]


def audit_context(
    audit: Audit, pairs: EmbeddingSet, requirements: Sequence[str], run: int, provenance: Provenance
) -> AuditContext:
    """Return the context of a recorded audit."""
    row = audit.row
    alignment = provenance.artifacts.alignment(row.alignment_id)
    rows = provenance.releases.find(store_id=row.store_id, collection=row.collection, metric=row.metric)
    moments = history(provenance, rows, limit=PAGE_AUDITS, asked=asked_as(audit.plan, audit.pairs))
    return AuditContext(
        store=provenance.stores.address(row.store_id),
        alignment=alignment,
        encoders=provenance.artifacts.encoders(alignment),
        pairs=pairs,
        requirements=requirements,
        run=run,
        moments=moments,
        at=next(moment.at for moment in moments if moment.audit == audit.number),
    )


def provenance_chain(found: Audit, origin: AuditContext) -> Iterator[tuple[str, str, str]]:
    """Yield the parts of the release: name, value and fingerprint."""
    row, alignment = found.row, origin.alignment
    card: Mapping[str, Any] = alignment.card
    for modality, encoder in origin.encoders.items():
        yield f"{modality} encoder", f"{encoder.spec}, {encoder.dim} dimensions", encoder.fingerprint
    fitted = f"{alignment.name}: {alignment.method}({_listed(card.get('hyperparameters', {}))})"
    on = f"{alignment.dim} dimensions, fitted on {counted(card.get('pairs', 0), 'pair')}"
    yield "alignment", f"{fitted}, {on}", alignment.fingerprint
    hold_out = card.get("hold_out", {})
    yield "held out", f"{hold_out.get('fraction', 0):.0%} of the groups, by a hash with seed {hold_out.get('seed')}", ""
    yield "metric", row.metric, ""
    guarantee = f", guarantee {found.release.guarantee}" if found.release else ""
    yield "lowering", f"{row.distance} on {row.dim} dimensions, version {row.lowering_version}{guarantee}", ""
    made = f"{row.state}, made {minute(row.created_at)}"
    yield "collection", f"{row.physical_name} ({made}) in {redacted(origin.store)}", ""
    yield "laid out with", _listed(row.settings), ""
    pairs = origin.pairs.card
    yield "pairs", f"embedding set {pairs.name}: {_listed(pairs.counts)}, of {pairs.corpus}", pairs.fingerprint
    fitted_with = _listed(card.get("versions", {}))
    yield "software", f"modalign {version('modalign')}" + (f"; fitted with {fitted_with}" if fitted_with else ""), ""


def asked_how(found: Audit, origin: AuditContext) -> Iterator[tuple[str, str]]:
    """Yield the settings of the audit and of the collection: name and value."""
    plan, info = found.plan, found.info
    yield "audit", f"{found.number}, run {origin.run}, {minute(origin.at)}"
    if plan.protocol:
        yield "protocol", plan.protocol
    else:
        yield "queries, gallery", f"{plan.queries}, {plan.gallery}"
    yield "K", ", ".join(map(str, plan.ks))
    yield "sample", "every query" if plan.sample is None else f"{plan.sample:,} queries of each modality"
    yield "seed", str(plan.seed)
    yield "rate", "not limited" if plan.max_qps is None else f"at most {plan.max_qps:g} queries a second"
    for name, text in plan.filters.items():
        yield f"filter {name}", text
    if info is None:
        return
    yield "points", f"{info.points:,}; {found.verified} were read back and compared with the embedding sets"
    none = "none: every search is exact"
    yield "indexed", f"{counted(info.indexed, 'vector')} in a graph" if info.indexed else none
    ef = found.release.hnsw_ef if found.release else None
    yield "graph", f"m {info.m}, ef_construct {info.ef_construct}, searched with ef {ef if ef else 'of Qdrant'}"
    yield "quantization", info.quantization or "none"
    yield "payload indexes", ", ".join(info.payload_indexes) or "none"
    yield "status", info.status


def _listed(values: Mapping[Any, Any]) -> str:
    """Return settings as text, without those left to the database."""

    def printed(value: Any) -> str:
        return f"({_listed(value)})" if isinstance(value, Mapping) else str(value)

    return ", ".join(f"{name} {printed(value)}" for name, value in values.items() if value not in (None, {}))
