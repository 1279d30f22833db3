"""How an audit asks, and what one of its numbers is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alignment.retrieval.protocols import PROTOCOLS
from alignment.retrieval.ranks import KS
from connector.errors import RequirementError, SettingsError
from connector.releases.points import HELD_OUT
from connector.safe_text import printable

Scope = Literal["held-out", "all"]
# Every query's list stands in memory, once for each stage.
LONGEST = 10_000
# Fewer queries a second, and an audit would last for years.
SLOWEST = 0.001
# Names of filters and fields stand in tables, on pages, and in an index of SQL.
LONGEST_NAME = 100
# Where one length of list has to do.
K = 10
BOTH = "both"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """How an audit asks.

    Attributes:
        ks: lengths of the result lists, ascending.
        queries: ask with held-out items of the set, or with all of it (which flatters: the fit saw the rest).
        gallery: search among the held-out points, which is comparable with the alignment's card, or among all.
        protocol: one of `alignment.retrieval.protocols`, which says itself what is asked and searched.
        filters: Qdrant filters as JSON by the names of their stages.
        by: payload fields of the queries whose values are measured apart.
        sample: how many queries of each modality to draw at most; None: all.
        seed: of the sample and of everything random.
        rate: queries a second at most; None: as fast as it goes.

    Raises:
        RequirementError, SettingsError: something that cannot be meant.
    """

    ks: Sequence[int] = KS
    queries: Scope = HELD_OUT
    gallery: Scope = HELD_OUT
    protocol: str | None = None
    filters: Mapping[str, str] = field(default_factory=dict)
    by: Sequence[str] = ()
    sample: int | None = None
    seed: int = 0
    rate: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ks", tuple(sorted(set(self.ks))))
        if not self.ks or self.ks[0] < 1 or self.ks[-1] > LONGEST:
            raise RequirementError(f"expected every k in the range 1 to {LONGEST}, got {list(self.ks)}")
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise SettingsError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {self.protocol!r}")
        if self.sample is not None and self.sample < 1:
            raise SettingsError(f"sample: expected at least 1 query, got {self.sample}")
        object.__setattr__(self, "by", tuple(dict.fromkeys(self.by)))
        for what, names in (("by", self.by), ("filter", self.filters)):
            for name in names:
                if len(name) > LONGEST_NAME:
                    raise SettingsError(
                        f"{what}: expected a name of at most {LONGEST_NAME} characters, got {len(name)}"
                    )
                if name != printable(name):
                    raise SettingsError(f"{what}: expected a name of Unicode, got {printable(name)}")
        if self.rate is not None and not SLOWEST <= self.rate < float("inf"):
            raise SettingsError(f"rate: expected at least {SLOWEST} queries a second, got {self.rate}")

    @property
    def k(self) -> int:
        """The length of list where one has to do."""
        return K if K in self.ks else self.ks[-1]

    @property
    def compared_by(self) -> dict[str, Any]:
        """What must be equal of two audits that are compared, beside the set of pairs."""
        if self.protocol is not None:
            return {"protocol": self.protocol}
        return {"queries": self.queries, "gallery": self.gallery}


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of an audit: `recall@10` of a direction, with its 95% interval where it has one.

    Attributes:
        part: of the audit: a stage of the search, or a stratum such as `language=de`; empty: the whole.
    """

    direction: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    queries: int = 0
    part: str = ""

    @property
    def label(self) -> str:
        """Its part and name."""
        return f"{self.part} {self.name}" if self.part else self.name

    @property
    def in_words(self) -> str:
        """Its value and interval."""
        interval = f" [{self.low:.4f}, {self.high:.4f}]" if self.low is not None and self.high is not None else ""
        return f"{self.direction} {self.label} is {self.value:.4f}{interval}"
