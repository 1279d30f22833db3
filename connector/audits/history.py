"""The history of audits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alignment.retrieval.cutoffs import K
from connector.audits.plan import AuditPlan
from connector.provenance.recorder import Provenance
from connector.provenance.tables import AuditRow, MeasureRow, ReleaseRow


@dataclass(frozen=True, slots=True)
class AuditSummary:
    """One audit of a history.

    Attributes:
        audit: its number.
        asked: how it was made; audits with the same text compare.
        measures: its numbers.
    """

    audit: int
    release: str
    metric: str
    verdict: str
    at: datetime
    asked: str
    measures: Sequence[MeasureRow]

    @property
    def k(self) -> int:
        """The length of list that stands for all: 10, or the longest where the audit has no lists of 10."""
        names = [m.name for m in self.measures if not m.part and m.name.startswith("recall@")]
        lengths = [int(name.removeprefix("recall@")) for name in names]
        return K if K in lengths or not lengths else max(lengths)


def asked_as(plan: AuditPlan, pairs: str) -> str:
    """Print how an audit is made, as `AuditSummary.asked` has it: a trend is of audits that were made alike."""
    return printed(planned_as(plan, pairs) | _selection(plan.sample, plan.seed))


def history(
    provenance: Provenance, rows: Sequence[ReleaseRow], *, limit: int, asked: str | None = None
) -> list[AuditSummary]:
    """Return the newest audits of releases, oldest first; only those that were made as `asked` says, if given."""
    of = {row.id: row for row in rows}
    audits = [audit for audit in provenance.audits.of(list(of)) if asked in (None, _asked(audit))][-limit:]
    measures = provenance.audits.measures([audit.id for audit in audits])
    return [
        AuditSummary(
            audit.id,
            of[audit.release_id].physical_name,
            of[audit.release_id].metric,
            audit.verdict,
            audit.created_at,
            _asked(audit),
            measures.get(audit.id, []),
        )
        for audit in audits
    ]


def planned_as(plan: AuditPlan, pairs: str) -> dict[str, Any]:
    """Return the settings that an audit by `plan` shares with every audit that it can be compared with."""
    return {"pairs": pairs, **plan.compared_by}


def comparable_as(audit: AuditRow) -> dict[str, Any]:
    """Return the same settings of an audit that was recorded."""
    settings = audit.settings
    if settings.get("protocol"):
        return {"pairs": settings.get("pairs"), "protocol": settings["protocol"]}
    return {name: settings.get(name) for name in ("pairs", "queries", "gallery")}


def printed(settings: Mapping[str, Any]) -> str:
    """Print such settings for people: `shop (queries all, gallery all)`."""
    rest = ", ".join(f"{name} {value}" for name, value in settings.items() if name != "pairs")
    return f"{settings['pairs']} ({rest})"


def _asked(audit: AuditRow) -> str:
    settings = audit.settings
    return printed(comparable_as(audit) | _selection(settings.get("sample"), settings.get("seed", 0)))


def _selection(sample: int | None, seed: int) -> dict[str, Any]:
    """Return what selects the queries, where it is not the default: other queries have other recalls."""
    return ({} if sample is None else {"sample": sample}) | ({} if not seed else {"seed": seed})
