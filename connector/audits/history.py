"""The history of audits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from connector.audits.plan import AuditPlan, K
from connector.provenance.recorder import Provenance
from connector.provenance.tables import AuditRow, MeasureRow, ReleaseRow


def _planned(plan: AuditPlan, pairs: str) -> dict[str, Any]:
    return {"pairs": pairs, **plan.compared_by}


def _asked(audit: AuditRow) -> dict[str, Any]:
    then = audit.settings
    if then.get("protocol"):
        return {"pairs": then.get("pairs"), "protocol": then["protocol"]}
    return {"pairs": then.get("pairs"), "queries": then.get("queries"), "gallery": then.get("gallery")}


def _told(audit: AuditRow) -> str:
    return _printed(_asked(audit) | _drawn(audit.settings.get("sample"), audit.settings.get("seed", 0)))


def _drawn(sample: int | None, seed: int) -> dict[str, Any]:
    """What was drawn, where that is not everything: other queries have other recalls, and a seed other halves."""
    return ({} if sample is None else {"sample": sample}) | ({} if not seed else {"seed": seed})


def _printed(asked: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{name} {value}" for name, value in asked.items() if name != "pairs")
    return f"{asked['pairs']} ({rest})"


@dataclass(frozen=True, slots=True)
class AuditSummary:
    """One audit of a history."""

    audit: int
    release: str
    metric: str
    verdict: str
    at: datetime
    asked: str
    measures: Sequence[MeasureRow]

    @property
    def k(self) -> int:
        """The length of list that stands for all: 10, or the longest where that was not asked for."""
        names = [m.name for m in self.measures if not m.part and m.name.startswith("recall@")]
        lengths = [int(name.removeprefix("recall@")) for name in names]
        return K if K in lengths or not lengths else max(lengths)


def asked_as(plan: AuditPlan, pairs: str) -> str:
    """Print how an audit is asked, as `AuditSummary.asked` has it: trends are of audits that were asked alike."""
    return _printed(_planned(plan, pairs) | _drawn(plan.sample, plan.seed))


def history(
    provenance: Provenance, rows: Sequence[ReleaseRow], *, limit: int, asked: str | None = None
) -> list[AuditSummary]:
    """Return the newest audits of releases, of those that were asked as `asked` says, oldest first."""
    of = {row.id: row for row in rows}
    audits = [each for each in provenance.audits.of(list(of)) if asked in (None, _told(each))][-limit:]
    measures = provenance.audits.measures([audit.id for audit in audits])
    return [
        AuditSummary(
            audit.id,
            of[audit.release_id].physical_name,
            of[audit.release_id].metric,
            audit.verdict,
            audit.created_at,
            _told(audit),
            measures.get(audit.id, []),
        )
        for audit in audits
    ]
