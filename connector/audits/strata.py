"""Strata: the queries that share a value of a payload field, measured by themselves."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from alignment.modality import Modality
from alignment.retrieval.bootstrap import bootstrap_mean
from alignment.retrieval.measures import Floats
from alignment.retrieval.ranks import IntArray
from connector.audits.galleries import QuerySet
from connector.audits.measure import Measurement
from connector.audits.plan import AuditPlan
from connector.errors import SettingsError
from connector.safe_text import printable
from connector.stores.points import Payload

# How many values of a payload field are strata of their own, those of the most queries; the rest are one stratum.
STRATA = 50
OTHERS = "(other values)"
# Characters of a part's name: databases index it, and PostgreSQL takes no longer ones than some thousand bytes.
LONGEST_PART = 200

# The value of each field for each query, by modality and field.
Strata = Mapping[Modality, Mapping[str, Sequence[str | None]]]


def strata(queries: Mapping[Modality, QuerySet], plan: AuditPlan) -> Strata:
    """Return the value of each field of `plan.slices` for each query; values of few queries become `OTHERS`.

    Raises:
        SettingsError: no query has such a field.
    """
    payloads = {m: [json.loads(text) for text in query_set.rows.payloads] for m, query_set in queries.items()}
    result: dict[Modality, dict[str, list[str | None]]] = {m: {} for m in queries}
    for name in plan.slices:
        if not any(name in payload for own in payloads.values() for payload in own):
            known = sorted({key for own in payloads.values() for payload in own for key in payload})
            raise SettingsError(f"slice: no query has a payload field {name!r}; they have {', '.join(known) or 'none'}")
        for modality, own in payloads.items():
            values = [_as_value(payload, name) for payload in own]
            if any(value is not None for value in values):
                most = {value for value, _ in Counter(values).most_common(STRATA)}
                result[modality][name] = [value if value in most else OTHERS for value in values]
    return result


def stratum(name: str, value: object) -> str:
    """Name the part of an audit that a value is; what is too long ends in a hash instead.

    >>> stratum("language", "de"), stratum("language", None), len(stratum("text", "long " * 100))
    ('language=de', 'language missing', 200)
    """
    part = printable(f"{name} missing" if value is None else f"{name}={value}")
    if len(part) <= LONGEST_PART:
        return part
    return f"{part[: LONGEST_PART - 9]}…{hashlib.sha256(part.encode()).hexdigest()[:8]}"


def measure_strata(
    direction: str,
    columns: Mapping[str, Floats],
    codes: IntArray,
    fields: Mapping[str, Sequence[str | None]],
    *,
    seed: int,
) -> Iterator[Measurement]:
    """Measure the queries of each value of a field by themselves, and those without a value.

    Args:
        direction: of the queries.
        columns: values of measures for each of n queries (n,), by name.
        codes: group codes of the queries (n,).
        fields: the value of each field for each query.
        seed: of the bootstrap.
    """
    for field, values in fields.items():
        rows: dict[str | None, list[int]] = {}
        for row, value in enumerate(values):
            rows.setdefault(value, []).append(row)
        for name, column in columns.items():
            for value, members in sorted(rows.items(), key=lambda item: -len(item[1])):
                e = bootstrap_mean(column[members], codes[members], seed=seed)
                yield Measurement(direction, name, e.value, e.low, e.high, len(members), stratum(field, value))


def _as_value(payload: Payload, name: str) -> str | None:
    """Return the value of a payload field as a text that names a stratum; None where there is none."""
    value = payload.get(name)
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
