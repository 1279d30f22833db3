"""What an audit has to meet: bounds on its measures, and on how far they may drop since an earlier audit.

recall@10>=0.4                      in both directions
text-to-image:recall@10>=0.4        in one
index:fidelity@10>=0.98             of one part: a stage of the search, or a stratum such as `language=de`
recall@10 drop<=0.02                not more than 0.02 worse than before, unless that may be chance
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from connector.drift import Drift
from connector.errors import RequirementError
from connector.plan import Measure
from connector.stages import INDEX, LOWERING, QUANTIZATION, REFERENCE, RESCORING

GRAMMAR = re.compile(
    r"\s*(?:(?P<prefix>.+):)?(?P<name>[a-z_]+(?:\.[a-z_]+)*(?:@\d+)?(?:\.[a-z0-9_]+)*)\s*(?P<drop>\sdrop\s*)?"
    r"(?P<comparison>>=|<=|>|<)\s*(?P<bound>[-+.\deE]+)\s*",
    re.DOTALL,
)
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
DIRECTED = ("text-to-image", "image-to-text", "both")
# What audits keep of each query, of the whole and of stages: without it no drop can be told from chance.
OF_EACH_QUERY = re.compile(r"(exact\.)?(recall|found|ndcg)@\d+|fidelity@\d+|mrr|r_precision|median_rank|certified")
KEPT_PARTS = ("", REFERENCE, LOWERING, RESCORING, INDEX, QUANTIZATION)


@dataclass(frozen=True, slots=True)
class Requirement:
    """A condition on a measure.

    Attributes:
        text: as it was written.
        direction: that it speaks of; None: every one that has the measure.
        part: of the audit: a stage or a stratum; empty: the whole.
        name: of the measure.
        is_drop: whether it bounds how much worse the measure has become, instead of its value.
    """

    text: str
    direction: str | None
    part: str
    name: str
    is_drop: bool
    comparison: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Requirement":
        """Read a requirement.

        Raises:
            RequirementError: it cannot be read.
        """
        match = GRAMMAR.fullmatch(text)
        try:
            if match is None or not math.isfinite(bound := float(match["bound"])):  # 1e999 is no bound
                raise ValueError
        except ValueError:
            raise RequirementError(
                f"requirement {text!r}: expected MEASURE>=NUMBER such as recall@10>=0.4, "
                "text-to-image:mrr>=0.3 or index:fidelity@10>=0.98, with one of >= <= > <; or MEASURE drop<=NUMBER"
            ) from None
        if match["drop"] and (match["comparison"] != "<=" or bound < 0):
            raise RequirementError(f"requirement {text!r}: expected drop<=NUMBER of at least 0, such as drop<=0.02")
        first, colon, rest = (match["prefix"] or "").partition(":")
        direction, part = (first, rest) if first in DIRECTED else (None, first + colon + rest)
        return cls(text.strip(), direction, part, match["name"], bool(match["drop"]), match["comparison"], bound)

    def speaks_of(self, direction: str, part: str, name: str) -> bool:
        """Whether it is a condition on this measure."""
        return self.name == name and self.part == part and self.direction in (None, direction)


@dataclass(frozen=True, slots=True)
class Failure:
    """A requirement that is not met, and why in words."""

    requirement: Requirement
    why: str
    direction: str
    value: float | None


def require_known(requirements: Iterable[Requirement], known: Sequence[tuple[str, str, str]], *, against: bool) -> None:
    """Raise a `RequirementError` if a requirement speaks of no measure, or of a drop that cannot be told.

    Args:
        requirements: to check.
        known: direction, part and name of the measures that there will be.
        against: whether there is an earlier audit.
    """
    for requirement in requirements:
        if not any(requirement.speaks_of(*measure) for measure in known):
            whole = dict.fromkeys(name for _, part, name in known if not part)
            parts = dict.fromkeys(part for _, part, _ in known if part)
            raise RequirementError(
                f"requirement {requirement.text!r} names no measure of this audit; it has {', '.join(whole)}; and "
                f"PART:recall@K, PART:fidelity@K and PART:latency.p50 of {', '.join(parts)}, strata with recall alone"
            )
        if requirement.is_drop and not (requirement.part in KEPT_PARTS and OF_EACH_QUERY.fullmatch(requirement.name)):
            raise RequirementError(
                f"requirement {requirement.text!r} bounds a drop of what is not kept of each query; name recall@K, "
                "fidelity@K or another measure of single queries, of the whole or of a stage, or bound its value"
            )
        if requirement.is_drop and not against:
            raise RequirementError(
                f"requirement {requirement.text!r} bounds a drop; say since which audit with --against last, live or "
                "the number of one"
            )


def failures(
    requirements: Iterable[Requirement], measures: Sequence[Measure], drifts: Sequence[Drift]
) -> list[Failure]:
    """Return the requirements that are not met, for each direction that does not; one of nothing measured is not."""
    found = []
    for requirement in requirements:
        its: Sequence[Measure | Drift] = drifts if requirement.is_drop else measures
        spoken_of = [each for each in its if requirement.speaks_of(each.direction, each.part, each.name)]
        if not spoken_of:
            both = "in both audits" if requirement.is_drop else "in this audit"
            found.append(Failure(requirement, f"it was not measured {both}", requirement.direction or "both", None))
        found += [failure for each in spoken_of if (failure := _failure(requirement, each))]
    return found


def _failure(requirement: Requirement, its: Measure | Drift) -> Failure | None:
    value = its.value
    if COMPARISONS[requirement.comparison](value, requirement.bound):
        return None
    return Failure(requirement, its.in_words, its.direction, value)
