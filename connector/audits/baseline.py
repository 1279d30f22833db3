"""What has become of a release's measures since an earlier audit, and their history."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from alignment.errors import MeasureError
from alignment.modality import DIRECTIONS
from alignment.retrieval.measures import Change, PerQueryValues, change
from alignment.retrieval.measures import Measure as Kind
from connector.audits.history import _asked, _planned, _printed
from connector.audits.plan import AuditPlan
from connector.errors import RequirementError
from connector.provenance.recorder import Provenance
from connector.provenance.tables import AuditRow, ReleaseRow
from connector.releases.release import LIVE

LAST = "last"
# Measures that are compared whatever is required, at every K.
COMPARED = ("recall", "exact.recall", "fidelity", "mrr", "median_rank")
LOWER_IS_BETTER = "median_rank"
# Share of the queries that has to be compared, or it is said.
ENOUGH = 0.9
# Share by which a gallery may change before that is said.
GROWTH = 0.05

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PerQuery:
    """What one direction of an audit has of each query.

    Attributes:
        keys, groups: of the queries.
        contents: SHA-256 of what was asked with, by which a query that has changed since is told.
        values: measures (n,) by part and name.
    """

    keys: Sequence[str]
    groups: Sequence[str]
    contents: Sequence[str]
    values: Mapping[tuple[str, str], Values]

    def changed_from(self, other: "PerQuery") -> npt.NDArray[np.bool_]:
        """Say of each query (n,) whether what `other` has under its key is of another group or content."""
        theirs = dict(zip(other.keys, zip(other.groups, other.contents, strict=True), strict=True))
        ours = zip(self.keys, zip(self.groups, self.contents, strict=True), strict=True)
        return np.array([theirs.get(key, its) != its for key, its in ours], bool)

    def where(self, mask: npt.NDArray[np.bool_]) -> "PerQuery":
        """Keep the queries where `mask` (n,) is true."""
        keys, groups, contents = (list(compress(column, mask)) for column in (self.keys, self.groups, self.contents))
        return PerQuery(keys, groups, contents, {place: column[mask] for place, column in self.values.items()})

    def packed(self) -> bytes:
        """Pack as Parquet, which keeps every digit."""
        columns = {f"{part}\0{name}": values for (part, name), values in self.values.items()}
        names = {"key": list(self.keys), "group": list(self.groups), "content": list(self.contents)}
        table = pa.table(names | columns)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return buffer.getvalue()

    @classmethod
    def unpacked(cls, data: bytes) -> "PerQuery":
        """Unpack what `packed` gave.

        Raises:
            KeyError: an older modalign packed it, which kept less of each query.
        """
        table = pq.read_table(io.BytesIO(data))
        keys, groups, contents = (table[name].to_pylist() for name in ("key", "group", "content"))
        values = {}
        for column in table.column_names[3:]:
            part, _, name = column.partition("\0")
            values[part, name] = table[column].to_numpy()
        return cls(keys, groups, contents, values)


@dataclass(frozen=True, slots=True)
class Drift:
    """What has become of one measure since the audit with the number `audit`."""

    direction: str
    part: str
    name: str
    audit: int
    change: Change

    @property
    def value(self) -> float:
        """How far it has dropped: how much worse it has become, where that is more than chance; else 0."""
        if not self.change.significant:
            return 0.0
        difference = self.change.difference.value
        return max(0.0, difference if self.name == LOWER_IS_BETTER else -difference)

    @property
    def in_words(self) -> str:
        """The two values and the interval of the difference."""
        c = self.change
        label = f"{self.part} {self.name}" if self.part else self.name
        return (
            f"{self.direction} {label} was {c.before:.4f} in audit {self.audit} and is {c.after:.4f}: "
            f"{c.difference.value:+.4f} [{c.difference.low:+.4f}, {c.difference.high:+.4f}] over {c.queries} queries"
        )


@dataclass(frozen=True, slots=True)
class Baseline:
    """An earlier audit, with what it has of each query by direction, and how many items it searched by modality."""

    number: int
    asked: Mapping[str, PerQuery]
    gallery: Mapping[str, int] = field(default_factory=dict)

    def grown(self, gallery: Mapping[str, int]) -> str | None:
        """Say that the gallery is of another size now, where it is: recall falls as it grows."""
        if all(abs(gallery[m] - size) <= GROWTH * size for m, size in self.gallery.items()):
            return None
        then, now = (
            " and ".join(f"{size:,} {modality}s" for modality, size in sizes.items())
            for sizes in (self.gallery, gallery)
        )
        return (
            f"The gallery has grown or shrunk since audit {self.number}, from {then} to {now}: that alone moves recall."
        )

    def check_shared(self, now: Mapping[str, PerQuery]) -> list[str]:
        """Say in words which queries have changed since and will take no part in a comparison.

        Raises:
            RequirementError: there would be none left.
        """
        says = []
        for direction, asked in now.items():
            then, changed = self.asked[direction], asked.changed_from(self.asked[direction])
            shared = len(set(asked.where(~changed).keys) & set(then.keys))
            if not shared:
                raise RequirementError(
                    f"audit {self.number} cannot be compared: {direction}, no query of it is asked again as it was; "
                    "compare with a newer one"
                )
            if shared < ENOUGH * len(asked.keys):
                says.append(
                    f"{direction}: audit {self.number} asked only {shared:,} of these {len(asked.keys):,} queries; a "
                    "drop that so few do not show may be there."
                )
            if changed.any():
                share = f"{changed.sum():,} of {len(asked.keys):,} queries"
                says.append(
                    f"{direction}: {share} have changed in their embedding set since audit {self.number} and are left "
                    "out of what is compared with it."
                )
        return says


def find_baseline(provenance: Provenance, row: ReleaseRow, against: str, plan: AuditPlan, pairs: str) -> Baseline:
    """Return the audit to compare with.

    Args:
        provenance: where audits are recorded.
        row: the release that will be audited.
        against: `last`, the newest audit of this release; `live`, the newest of the live release under its metric; or
            the number of an audit.
        plan: how it will be asked: the other one must have been asked alike.
        pairs: name of the embedding set that it will be asked with.

    Raises:
        RequirementError: there is no such audit, or it was asked otherwise.
    """
    if against in (LAST, LIVE):
        audits = provenance.audits.of([row.id] if against == LAST else _live(provenance, row))
        audits = [audit for audit in audits if audit.verdict != "broken" and not _has_dropped(audit)]
        alike = [audit for audit in audits if _asked(audit) == _planned(plan, pairs)]
        alike = [audit for audit in alike if _covers(audit, plan)] or alike
        what = f"release {row.physical_name}" if against == LAST else f"the live release of {row.collection}"
        if not alike:
            others = sorted({_printed(_asked(audit)) for audit in audits})
            but = f"; it has audits of {' and '.join(others)}, which cannot be compared" if others else ""
            raise RequirementError(
                f"{what} has no earlier audit of {_printed(_planned(plan, pairs))}{but}; audit it once without "
                "--baseline"
            )
        chosen = alike[-1]
    else:
        chosen = provenance.audits.get(_number(against))
        if chosen.verdict == "broken":
            raise RequirementError(f"audit {chosen.id} found its release broken and measured nothing; name another")
        if (theirs := _asked(chosen)) != (ours := _planned(plan, pairs)):
            raise RequirementError(
                f"audit {chosen.id} is of {_printed(theirs)}, this one would be of {_printed(ours)}; they cannot be "
                "compared"
            )
    kept = provenance.audits.per_query(chosen.id)
    try:
        asked = {direction: PerQuery.unpacked(kept[direction]) for direction in DIRECTIONS}
    except KeyError:
        raise RequirementError(
            f"audit {chosen.id} was made by a modalign that kept too little of each query; audit once without "
            "--baseline, and compare with that"
        ) from None
    return Baseline(chosen.id, asked, chosen.settings.get("gallery_size", {}))


def _has_dropped(audit: AuditRow) -> bool:
    """Whether it found a drop that it should not have: as a baseline it would pass what it failed."""
    return any(re.search(r"\sdrop\s*<", text) for text in audit.settings.get("failed_requirements", []))


def _covers(audit: AuditRow, plan: AuditPlan) -> bool:
    """Whether it asked all that `plan` asks, but for what is new."""
    sample, seed = audit.settings.get("sample"), audit.settings.get("seed")
    return sample is None or (plan.sample is not None and seed == plan.seed and sample >= plan.sample)


def _number(against: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", against):  # databases refuse longer ones
        raise RequirementError(f"against: expected last, live or the number of an audit, got {against!r}")
    return int(against)


def _live(provenance: Provenance, row: ReleaseRow) -> list[int]:
    rows = provenance.releases.find(store_url=row.store_url, collection=row.collection, metric=row.metric, state=LIVE)
    if not rows:
        raise RequirementError(f"collection {row.collection} has no live release under {row.metric} to compare with")
    return [live.id for live in rows]


def drifts(
    before: Baseline, now: Mapping[str, PerQuery], also: Iterable[tuple[str, str]] = (), *, seed: int = 0
) -> list[Drift]:
    """Compare over the queries that both audits asked: of one key, one group, and one content.

    Args:
        before: the earlier audit.
        now: this one, by direction.
        also: measures, by part and name, that are compared beside those that always are.
        seed: of the bootstrap.

    Raises:
        RequirementError: the audits share no query.
    """
    found, wanted = [], set(also)
    for direction, its in now.items():
        then = before.asked[direction]
        asked, then = its.where(~its.changed_from(then)), then.where(~then.changed_from(its))
        for (part, name), values in asked.values.items():
            always = not part and name.partition("@")[0] in COMPARED
            if (part, name) not in then.values or not (always or (part, name) in wanted):
                continue
            old = PerQueryValues(then.keys, then.groups, then.values[part, name])
            try:
                kind = Kind(LOWER_IS_BETTER if name == LOWER_IS_BETTER else "mrr")  # a median, or a mean
                became = change(kind, old, PerQueryValues(asked.keys, asked.groups, values), seed=seed)
            except MeasureError as error:
                raise RequirementError(f"audit {before.number} cannot be compared: {error}") from None
            found.append(Drift(direction, part, name, before.number, became))
    return found
