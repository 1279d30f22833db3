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

from connector.audits.baseline import Baseline, Drift
from connector.audits.plan import Measure
from connector.errors import RequirementError

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
# Parts that are named where one is asked for that is not there: of strata there may be many.
SHOWN = 12
DIRECTED = ("text-to-image", "image-to-text", "both")


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


def check_known(
    requirements: Iterable[Requirement], known: Sequence[tuple[str, str, str]], before: Baseline | None
) -> None:
    """Raise a `RequirementError` if a requirement speaks of no measure, or of a drop since nothing.

    Args:
        requirements: to check.
        known: direction, part and name of the measures that there will be.
        before: the earlier audit, if there is one. It measured query by query what a drop can be bounded of.
    """
    for requirement in requirements:
        spoken_of = [measure for measure in known if requirement.speaks_of(*measure)]
        if not spoken_of:
            whole = dict.fromkeys(name for _, part, name in known if not part)
            parts = list(dict.fromkeys(part for _, part, _ in known if part))
            more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
            raise RequirementError(
                f"requirement {requirement.text!r} names no measure of this audit; it has {', '.join(whole)}; and "
                f"PART:recall@K, PART:fidelity@K and PART:latency.p50 of {', '.join(parts[:SHOWN])}{more}, strata with "
                "recall alone"
            )
        if not requirement.is_drop:
            continue
        if before is None:
            raise RequirementError(
                f"requirement {requirement.text!r} bounds a drop; say since which audit with --baseline last, live or "
                "the number of one"
            )
        kept = [(direction, *place) for direction, asked in before.asked.items() for place in asked.values]
        if not set(kept) & set(spoken_of):
            names = dict.fromkeys(f"{part}:{name}".lstrip(":") for _, part, name in kept)
            raise RequirementError(
                f"requirement {requirement.text!r} bounds a drop since audit {before.number}, which did not measure it "
                f"query by query; it has {', '.join(names)}"
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
