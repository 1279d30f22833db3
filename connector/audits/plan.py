"""How an audit is made: its queries, its gallery, the lengths of its lists, its filters and strata."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from alignment.bounds import out_of_bounds
from alignment.retrieval.cutoffs import K
from alignment.retrieval.protocols import PROTOCOLS
from connector.errors import SettingsError
from connector.requests import AuditRequest, MaxQps, QuerySample, Scope, Seed
from connector.safe_text import printable

# The longest list. Every query's list is held in memory, once for each stage.
LONGEST = 10_000
# Characters of the name of a filter or field: names stand in tables, on pages and in an index of SQL.
LONGEST_NAME = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """How an audit is made.

    Attributes:
        ks: lengths of the result lists, ascending, each in the range 1 to 10,000.
        queries: query with the held-out items of the set, or with all. All flatters: the fit saw the rest.
        gallery: search the held-out points, which compares with the alignment's card, or all.
        protocol: one of `alignment.retrieval.protocols`, which fixes the queries and the gallery.
        filters: Qdrant filters as JSON, by the names of their stages.
        slices: payload fields of the queries; each value is a stratum that is measured by itself.
        sample: how many queries of each modality to draw at most; None: all.
        seed: of the sample and of everything random.
        max_qps: queries a second at most; None: no limit. Below 0.001 an audit would last for years.

    Raises:
        SettingsError: a value that is invalid.
    """

    ks: Sequence[int] = AuditRequest.ks
    queries: Scope = AuditRequest.queries
    gallery: Scope = AuditRequest.gallery
    protocol: str | None = AuditRequest.protocol
    filters: Mapping[str, str] = field(default_factory=dict)
    slices: Sequence[str] = AuditRequest.slices
    sample: QuerySample | None = AuditRequest.sample
    seed: Seed = AuditRequest.seed
    max_qps: MaxQps | None = AuditRequest.max_qps

    def __post_init__(self) -> None:
        object.__setattr__(self, "ks", tuple(sorted(set(self.ks))))
        if not self.ks or self.ks[0] < 1 or self.ks[-1] > LONGEST:
            raise SettingsError(f"expected every k in the range 1 to {LONGEST}, got {list(self.ks)}")
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise SettingsError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        for wrong in out_of_bounds(self):
            raise SettingsError(wrong)
        object.__setattr__(self, "slices", tuple(dict.fromkeys(self.slices)))
        for what, names in (("slice", self.slices), ("filter", self.filters)):
            for name in names:
                if len(name) > LONGEST_NAME:
                    raise SettingsError(
                        f"{what}: expected a name of at most {LONGEST_NAME} characters, got {len(name)}"
                    )
                if name != printable(name):
                    raise SettingsError(f"{what}: expected a name of Unicode, got {printable(name)}")

    @classmethod
    def of(cls, request: AuditRequest) -> Self:
        """Return the plan of a request, which has all fields of a plan by the same names."""
        return cls(**{entry.name: getattr(request, entry.name) for entry in fields(cls)})

    @property
    def k(self) -> int:
        """The length of list that stands for all: 10, or the longest where 10 is not among `ks`."""
        return K if K in self.ks else self.ks[-1]

    @property
    def compared_by(self) -> dict[str, Any]:
        """The settings that two audits must share to be compared, beside the set of pairs."""
        if self.protocol is not None:
            return {"protocol": self.protocol}
        return {"queries": self.queries, "gallery": self.gallery}
