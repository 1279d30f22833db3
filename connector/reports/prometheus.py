"""Audits as Prometheus metrics."""

from pathlib import Path
from typing import TYPE_CHECKING

from connector.audits.result import Audit
from connector.reports.output_files import write_file

if TYPE_CHECKING:
    from connector.provenance.runs import RunResult


def write_prometheus(path: Path, result: "RunResult[Audit]") -> None:
    """Write an audit for the textfile collector of the Prometheus node exporter, replacing the file atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    from prometheus_client import CollectorRegistry, Gauge, generate_latest  # only this option of the command needs it

    found = result.value
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
    write_file(path, generate_latest(registry).decode())
