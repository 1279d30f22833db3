"""Changes of an audit against an earlier one, its baseline, compared query by query."""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from alignment.arrow import look_for_pandas
from alignment.errors import MeasureError
from alignment.modality import DIRECTIONS
from alignment.plurals import counted
from alignment.retrieval.kinds import HARMONIC, SEEN, UNSEEN
from alignment.retrieval.measures import Change, Floats, PerQueryValues, change, change_of_two, holm
from alignment.retrieval.seen_unseen import harmonic_mean
from alignment.retrieval.thresholds import holds
from alignment.sets.rows import Rows
from connector.audits.history import comparable_as, planned_as, printed
from connector.audits.measures import find_measure
from connector.audits.plan import AuditPlan
from connector.errors import RequirementError
from connector.provenance.recorder import Provenance
from connector.provenance.tables import AuditRow, ReleaseRow
from connector.states import AuditVerdict, ReleaseState

LAST = "last"
# Measures that have a harmonic mean of unseen and seen items.
RECALL = "recall@"
# If less than this share of the queries can be compared, a finding says so.
ENOUGH = 0.9
# If the gallery has grown or shrunk by more than this share, a finding says so.
GROWTH = 0.05


@dataclass(frozen=True, slots=True)
class PerQuery:
    """The n queries of one direction of an audit, with their values.

    Attributes:
        keys, groups: of the queries.
        contents: SHA-256 of the queries' content; shows which queries have changed since.
        values: of measures (n,), by part and name.
    """

    keys: Sequence[str]
    groups: Sequence[str]
    contents: Sequence[str]
    values: Mapping[tuple[str, str], Floats]

    @classmethod
    def of(cls, rows: Rows, values: Mapping[tuple[str, str], Floats] = MappingProxyType({})) -> "PerQuery":
        """Take queries from the rows of an embedding set."""
        return cls(rows.keys, rows.groups, rows.content_sha256, values)

    def changed_from(self, other: "PerQuery") -> npt.NDArray[np.bool_]:
        """Say of each query (n,) whether `other` has its key with another group or content."""
        theirs = dict(zip(other.keys, zip(other.groups, other.contents, strict=True), strict=True))
        ours = zip(self.keys, zip(self.groups, self.contents, strict=True), strict=True)
        return np.array([theirs.get(key, own) != own for key, own in ours], bool)

    def where(self, mask: npt.NDArray[np.bool_]) -> "PerQuery":
        """Keep the queries where `mask` (n,) is true."""
        keys, groups, contents = (list(compress(column, mask)) for column in (self.keys, self.groups, self.contents))
        return PerQuery(keys, groups, contents, {place: column[mask] for place, column in self.values.items()})

    def packed(self) -> bytes:
        """Pack as Parquet, which keeps every digit."""
        columns = {f"{part}\0{name}": values for (part, name), values in self.values.items()}
        names = {"key": list(self.keys), "group": list(self.groups), "content": list(self.contents)}
        look_for_pandas()
        table = pa.table(names | columns)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()

    @classmethod
    def unpacked(cls, data: bytes) -> "PerQuery":
        """Unpack what `packed` returned.

        Raises:
            KeyError: an older modalign packed it, which kept less of each query.
        """
        look_for_pandas()
        table = pq.read_table(io.BytesIO(data))
        keys, groups, contents = (table[name].to_pylist() for name in ("key", "group", "content"))
        values = {}
        for column in table.column_names[3:]:
            part, _, name = column.partition("\0")
            values[part, name] = table[column].to_numpy()
        return cls(keys, groups, contents, values)


# Queries about seen and about unseen items, by direction and kind.
Kinds = Mapping[tuple[str, str], PerQuery]


@dataclass(frozen=True, slots=True)
class Drift:
    """The change of one measure since the audit with the number `audit`."""

    direction: str
    part: str
    name: str
    audit: int
    change: Change

    @property
    def value(self) -> float:
        """The drop: how much worse the measure is, where that is more than chance; else 0."""
        if not self.change.significant:
            return 0.0
        measure, _ = find_measure(self.name)
        difference = self.change.difference.value
        return max(0.0, difference if measure and measure.better == "lower" else -difference)

    @property
    def in_words(self) -> str:
        """The two values and the interval of the difference."""
        c = self.change
        label = f"{self.part} {self.name}" if self.part else self.name
        return (
            f"{self.direction} {label} was {c.before:.4f} in audit {self.audit} and is {c.after:.4f}: "
            f"{c.difference.value:+.4f} [{c.difference.low:+.4f}, {c.difference.high:+.4f}] over "
            f"{counted(c.queries, 'query')}"
        )


@dataclass(frozen=True, slots=True)
class Baseline:
    """An earlier audit.

    Attributes:
        number: of the audit.
        queries: by direction.
        gallery: how many items it searched, by modality.
        kinds: queries about seen and about unseen items, by direction and kind; none of an older audit.
    """

    number: int
    queries: Mapping[str, PerQuery]
    gallery: Mapping[str, int] = field(default_factory=dict)
    kinds: Kinds = field(default_factory=dict)

    @property
    def places(self) -> list[tuple[str, str, str]]:
        """Direction, part and name of each measure that a later audit can be compared by."""
        whole = [(direction, *place) for direction, queries in self.queries.items() for place in queries.values]
        of_kinds = [(direction, *place) for (direction, _), queries in self.kinds.items() for place in queries.values]
        harmonic = [
            (direction, HARMONIC, name)
            for direction, part, name in of_kinds
            if part == SEEN and name.startswith(RECALL) and (direction, UNSEEN, name) in of_kinds
        ]
        return whole + of_kinds + harmonic

    def gallery_warning(self, gallery: Mapping[str, int]) -> str | None:
        """Warn that the gallery has another size now, if it has: recall falls as it grows."""
        if all(holds(abs(gallery[m] - size), "<=", GROWTH * size) for m, size in self.gallery.items()):
            return None
        then, now = (
            " and ".join(counted(size, modality) for modality, size in sizes.items())
            for sizes in (self.gallery, gallery)
        )
        return (
            f"The gallery has grown or shrunk since audit {self.number}, from {then} to {now}: that alone moves recall."
        )

    def check_shared(self, now: Mapping[str, PerQuery]) -> list[str]:
        """Warn about queries that cannot be compared, because they are new or have changed since.

        Raises:
            RequirementError: no query can be compared.
        """
        warnings = []
        for direction, ours in now.items():
            then, changed = self.queries[direction], ours.changed_from(self.queries[direction])
            shared = len(set(ours.where(~changed).keys) & set(then.keys))
            if not shared:
                raise RequirementError(
                    f"audit {self.number} cannot be compared: {direction}, this audit repeats none of its queries "
                    "unchanged; compare with a newer audit"
                )
            if holds(shared, "<", ENOUGH * len(ours.keys)):
                warnings.append(
                    f"{direction}: audit {self.number} has only {shared:,} of these {len(ours.keys):,} queries; a "
                    "drop may be there that so few do not show."
                )
            if changed.any():
                warnings.append(
                    f"{direction}: {changed.sum():,} of {len(ours.keys):,} queries have changed in their embedding set "
                    f"since audit {self.number}; the comparison leaves them out."
                )
        return warnings


def find_baseline(provenance: Provenance, row: ReleaseRow, against: str, plan: AuditPlan, pairs: str) -> Baseline:
    """Return the audit to compare with.

    Args:
        provenance: where audits are recorded.
        row: the release that will be audited.
        against: `last`, the newest audit of this release; `live`, the newest of the live release under its metric; or
            the number of an audit.
        plan: of the audit to come; the baseline's must agree in `AuditPlan.compared_by`.
        pairs: name of the embedding set of the audit to come.

    Raises:
        RequirementError: there is no such audit, or it does not compare.
    """
    chosen = _newest(provenance, row, against, plan, pairs) if against in (LAST, ReleaseState.LIVE) else None
    if chosen is None:
        chosen = provenance.audits.get(_number(against))
        if chosen.verdict == AuditVerdict.BROKEN:
            raise RequirementError(f"audit {chosen.id} found its release broken and measured nothing; name another")
        if (theirs := comparable_as(chosen)) != (ours := planned_as(plan, pairs)):
            raise RequirementError(
                f"audit {chosen.id} is of {printed(theirs)}, this one would be of {printed(ours)}; they cannot be "
                "compared"
            )
    kept = provenance.audits.per_query(chosen.id)
    try:
        queries = {direction: PerQuery.unpacked(kept[direction]) for direction in DIRECTIONS}
    except KeyError:
        raise RequirementError(
            f"audit {chosen.id} was made by a modalign that kept too little of each query; audit once without "
            "--baseline, and compare with that"
        ) from None
    of_kinds = {
        (direction, kind): PerQuery.unpacked(kept[packed_as(direction, kind)])
        for direction in DIRECTIONS
        for kind in (SEEN, UNSEEN)
        if packed_as(direction, kind) in kept
    }
    return Baseline(chosen.id, queries, chosen.settings.get("gallery_size", {}), of_kinds)


def packed_as(direction: str, kind: str) -> str:
    """Return the name, of at most 16 characters, that SQL keeps queries of a kind by.

    >>> packed_as("text-to-image", "unseen")
    'unseen:text'
    """
    return f"{kind}:{DIRECTIONS[direction][0]}"


def _newest(provenance: Provenance, row: ReleaseRow, against: str, plan: AuditPlan, pairs: str) -> AuditRow:
    """Return the newest comparable audit of this release, or of the live one; best one that covers all of the plan."""
    audits = provenance.audits.of([row.id] if against == LAST else _live(provenance, row))
    audits = [audit for audit in audits if audit.verdict != AuditVerdict.BROKEN and not _has_dropped(audit)]
    comparable = [audit for audit in audits if comparable_as(audit) == planned_as(plan, pairs)]
    comparable = [audit for audit in comparable if _covers(audit, plan)] or comparable
    if comparable:
        return comparable[-1]
    what = f"release {row.physical_name}" if against == LAST else f"the live release of {row.collection}"
    others = sorted({printed(comparable_as(audit)) for audit in audits})
    but = f"; it has audits of {' and '.join(others)}, which cannot be compared" if others else ""
    raise RequirementError(
        f"{what} has no earlier audit of {printed(planned_as(plan, pairs))}{but}; audit it once without --baseline"
    )


def _has_dropped(audit: AuditRow) -> bool:
    """Whether the audit failed a bound on a drop: as a baseline it would let the next audit pass that drop."""
    return any(re.search(r"\sdrop\s*<", text) for text in audit.settings.get("failed_requirements", []))


def _covers(audit: AuditRow, plan: AuditPlan) -> bool:
    """Whether the audit has every query that `plan` selects, but for new ones."""
    sample, seed = audit.settings.get("sample"), audit.settings.get("seed")
    return sample is None or (plan.sample is not None and seed == plan.seed and sample >= plan.sample)


def _number(against: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", against):  # databases refuse longer ones
        raise RequirementError(f"against: expected last, live or the number of an audit, got {against!r}")
    return int(against)


def _live(provenance: Provenance, row: ReleaseRow) -> list[int]:
    rows = provenance.releases.find(
        store_id=row.store_id, collection=row.collection, metric=row.metric, state=ReleaseState.LIVE
    )
    if not rows:
        raise RequirementError(f"collection {row.collection} has no live release under {row.metric} to compare with")
    return [live.id for live in rows]


def drifts(
    baseline: Baseline,
    now: Mapping[str, PerQuery],
    also: Iterable[tuple[str, str]] = (),
    *,
    kinds: Kinds = MappingProxyType({}),
    seed: int = 0,
) -> list[Drift]:
    """Compare over the queries that both audits have with the same key, group and content.

    Args:
        baseline: the earlier audit.
        now: this audit, by direction.
        also: measures, by part and name, to compare beside those that always are.
        kinds: of this audit, the queries about seen and about unseen items, by direction and kind. They are always
            compared, where both audits have some in common.
        seed: of the bootstrap.

    Raises:
        RequirementError: the audits share no query.
    """
    result, wanted = [], set(also)
    for direction, per_query in now.items():
        then, ours = _shared(baseline.queries[direction], per_query)
        for part, name in ours.values:
            measure, _ = find_measure(name)
            always = not part and measure is not None and measure.compared
            if (part, name) not in then.values or not (always or (part, name) in wanted):
                continue
            try:
                changed = change(
                    _values(then, part, name),
                    _values(ours, part, name),
                    is_rank=measure is not None and measure.is_rank,
                    seed=seed,
                )
            except MeasureError as error:
                raise RequirementError(f"audit {baseline.number} cannot be compared: {name}: {error}") from None
            result.append(Drift(direction, part, name, baseline.number, changed))
        result += _drifts_of_kinds(baseline, direction, kinds, seed)
    return result


def worse_recalls(drifts: Iterable[Drift], k: int) -> list[Drift]:
    """Return the drifts of Recall@k that are drops, where a false one among all comes once in 20 audits at most."""
    recalls = [drift for drift in drifts if drift.name == f"{RECALL}{k}"]
    significant = holm([drift.change.p_drop for drift in recalls])
    return [drift for drift, is_significant in zip(recalls, significant, strict=True) if is_significant and drift.value]


def _drifts_of_kinds(baseline: Baseline, direction: str, kinds: Kinds, seed: int) -> Iterator[Drift]:
    """Yield the changes of recall and fidelity of unseen and of seen items, and of the harmonic mean of recall."""
    shared = {
        kind: _shared(baseline.kinds[direction, kind], kinds[direction, kind])
        for kind in (UNSEEN, SEEN)
        if (direction, kind) in baseline.kinds and (direction, kind) in kinds
    }
    pairs: dict[str, list[tuple[PerQueryValues, PerQueryValues]]] = {}
    for then, ours in shared.values():
        if not set(then.keys) & set(ours.keys):
            continue
        for part, name in ours.values:
            if (part, name) in then.values:
                both_values = _values(then, part, name), _values(ours, part, name)
                yield Drift(direction, part, name, baseline.number, change(*both_values, seed=seed))
                if name.startswith(RECALL):
                    pairs.setdefault(name, []).append(both_values)
    for name, both in pairs.items():
        if len(both) == len((UNSEEN, SEEN)):
            yield Drift(direction, HARMONIC, name, baseline.number, change_of_two(harmonic_mean, both, seed=seed))


def _shared(then: PerQuery, ours: PerQuery) -> tuple[PerQuery, PerQuery]:
    """Leave out the queries that have changed since."""
    return then.where(~then.changed_from(ours)), ours.where(~ours.changed_from(then))


def _values(queries: PerQuery, part: str, name: str) -> PerQueryValues:
    return PerQueryValues(queries.keys, queries.groups, queries.values[part, name])
