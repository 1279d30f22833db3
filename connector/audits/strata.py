"""Queries apart: the values of a payload field, each measured for itself."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence

from alignment.modality import DIRECTIONS, Modality
from alignment.retrieval.measures import Measure as Kind
from alignment.retrieval.measures import by_stratum
from alignment.retrieval.ranks import IntArray, RelevantRanks
from connector.audits.galleries import QuerySet
from connector.audits.plan import AuditPlan, Measure
from connector.errors import SettingsError
from connector.safe_text import printable
from connector.stores.contract import Payload

# Values of a payload field that are measured apart, those of the most queries; the rest are measured together.
STRATA = 50
OTHERS = "(other values)"
# Characters of a part's name: databases index it, and PostgreSQL takes no longer ones than some thousand bytes.
LONGEST_PART = 200

# The value of each field for each query, by modality and field.
Strata = Mapping[Modality, Mapping[str, Sequence[str | None]]]


def strata(asked: Mapping[Modality, QuerySet], plan: AuditPlan) -> Strata:
    """Return the value of each field of `plan.by` for each query, those of too few queries to be shown apart as one.

    Raises:
        SettingsError: no query has such a field.
    """
    payloads = {m: [json.loads(text) for text in each.rows.payloads] for m, each in asked.items()}
    found: dict[Modality, dict[str, list[str | None]]] = {m: {} for m in asked}
    for name in plan.by:
        if not any(name in payload for each in payloads.values() for payload in each):
            known = sorted({key for each in payloads.values() for payload in each for key in payload})
            raise SettingsError(f"by: no query has a payload field {name!r}; they have {', '.join(known) or 'none'}")
        for modality, each in payloads.items():
            values = [_as_value(payload, name) for payload in each]
            if any(value is not None for value in values):
                most = {value for value, _ in Counter(values).most_common(STRATA)}
                found[modality][name] = [value if value in most else OTHERS for value in values]
    return found


def stratum(name: str, value: object) -> str:
    """Name the part of an audit that a value is; what is too long ends in a hash instead.

    >>> stratum("language", "de"), stratum("language", None), len(stratum("text", "long " * 100))
    ('language=de', 'language missing', 200)
    """
    part = printable(f"{name} missing" if value is None else f"{name}={value}")
    if len(part) <= LONGEST_PART:
        return part
    return f"{part[: LONGEST_PART - 9]}…{hashlib.sha256(part.encode()).hexdigest()[:8]}"


def measured(
    direction: str, served: Mapping[int, RelevantRanks], codes: IntArray, strata: Strata, *, seed: int
) -> list[Measure]:
    """Measure the queries (n,) of each value apart, by the lists of each length, those without a value beside them."""
    found = []
    for name, of_query in strata[DIRECTIONS[direction][0]].items():
        for k, ranks in served.items():
            for value, its in by_stratum(Kind("recall", k), ranks, codes, of_query, seed=seed).items():
                e = its.estimate
                found.append(
                    Measure(direction, f"recall@{k}", e.value, e.low, e.high, its.queries, stratum(name, value))
                )
    return found


def _as_value(payload: Payload, name: str) -> str | None:
    """Return the value of a payload field as a text that names a stratum; None where there is none."""
    value = payload.get(name)
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
