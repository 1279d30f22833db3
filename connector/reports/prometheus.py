"""Audits as Prometheus metrics."""

from collections.abc import Sequence
from pathlib import Path

from connector.audits.result import Audit
from connector.reports.output_files import write_file
from connector.states import AuditVerdict


def write_prometheus(path: Path, audits: Sequence[Audit]) -> None:
    """Write the audits of a run for the textfile collector of the Prometheus node exporter.

    The file is replaced atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    from prometheus_client import CollectorRegistry, Gauge, generate_latest  # only this option of the command needs it

    registry = CollectorRegistry()
    release = ["collection", "metric", "release"]
    verdict = Gauge(
        "modalign_audit_verdict", "1 for the verdict of the audit", [*release, "verdict"], registry=registry
    )
    ended = Gauge("modalign_audit_timestamp_seconds", "When the audit ended", release, registry=registry)
    of = ["direction", "part", "measure"]
    value = Gauge("modalign_audit_measure", "A measure of the audit", [*release, *of], registry=registry)
    low = Gauge("modalign_audit_measure_low", "Lower end of its 95% interval", [*release, *of], registry=registry)
    high = Gauge("modalign_audit_measure_high", "Upper end of its 95% interval", [*release, *of], registry=registry)
    for audit in audits:
        audited = dict(zip(release, (audit.row.collection, audit.row.metric, audit.row.physical_name), strict=True))
        for name in AuditVerdict:
            verdict.labels(**audited, verdict=name).set(audit.verdict == name)
        ended.labels(**audited).set_to_current_time()
        for m in audit.measures:
            labels = {**audited, "direction": m.direction, "part": m.part, "measure": m.name}
            value.labels(**labels).set(m.value)
            if m.low is not None and m.high is not None:
                low.labels(**labels).set(m.low)
                high.labels(**labels).set(m.high)
    write_file(path, generate_latest(registry).decode())
