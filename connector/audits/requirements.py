"""Requirements of an audit: bounds on its measures, and on how far they may drop since a baseline.

recall@10>=0.4                      in both directions
text-to-image:recall@10>=0.4        in one direction
index:fidelity@10>=0.98             of one part: a stage of the search, or a stratum such as `language=de`
unseen recall@10>=0.4               of queries about items that the fit never saw; also `seen`, or `harmonic` of both
by caption recall@10>=0.4           of texts that search by caption; also `by image` and `by fused`
seen index:fidelity@10>=0.98        of a stage of the search with queries about items that the fit saw
recall@10 drop<=0.02                at most 0.02 worse than the baseline; changes within chance pass

What bounds a fidelity bounds that of queries about seen items too: a search serves both.

Bounds are decimal numbers: a value that differs from one by no more than `TOLERANCE` is equal to it.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from alignment.modality import DIRECTIONS
from alignment.names import did_you_mean
from alignment.retrieval.kinds import SEEN
from alignment.retrieval.thresholds import holds
from alignment.retrieval.ways import LARGEST_K, Way
from connector.audits.baseline import Baseline, Drift
from connector.audits.kinds import KINDS, WAYS
from connector.audits.measure import BOTH, Measurement
from connector.audits.stages import stage_part
from connector.errors import RequirementError

# Of what follows the last colon. Nothing in it can match in two ways, so no text takes more than linear time.
GRAMMAR = re.compile(
    rf"(?:(?P<kind>{'|'.join(KINDS)}|by\s++(?:{'|'.join(get_args(Way))}))\s++)?+"
    r"(?P<name>[a-z_]+(?:\.[a-z0-9_]+|@\d++(?!\w))*+)\s*(?P<drop>\sdrop\s*)?"
    r"(?P<comparison>>=|<=|>|<)\s*(?P<bound>[-+.\deE]+)"
)
APART = ", ".join((*KINDS, *WAYS))
# How many parts an error lists: there may be many strata.
LISTED_PARTS = 12


@dataclass(frozen=True, slots=True)
class Requirement:
    """A condition on a measure.

    Attributes:
        text: as it was written.
        direction: that it bounds; None: every direction that has the measure.
        part: of the audit: a stage, a stratum, or "" for the whole.
        name: of the measure.
        is_drop: whether it bounds how much worse the measure is than in the baseline, instead of its value.
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
        """Parse a requirement.

        Raises:
            RequirementError: the text is invalid.
        """
        prefix, has_prefix, condition = text.strip().rpartition(":")
        match = GRAMMAR.fullmatch(condition.strip())
        try:
            if (
                match is None or bool(prefix) != bool(has_prefix) or not math.isfinite(bound := float(match["bound"]))
            ):  # 1e999 is no bound
                raise ValueError
        except ValueError:
            raise RequirementError(
                f"requirement {text!r}: expected MEASURE>=NUMBER such as recall@10>=0.4, "
                "text-to-image:mrr>=0.3, index:fidelity@10>=0.98, 'unseen recall@10>=0.4' or 'by caption "
                f"recall@10>=0.4', with one of >= <= > <; or MEASURE drop<=NUMBER. Queries apart are {APART}"
            ) from None
        if match["drop"] and (match["comparison"] != "<=" or bound < 0):
            raise RequirementError(f"requirement {text!r}: expected drop<=NUMBER of at least 0, such as drop<=0.02")
        first, colon, rest = prefix.partition(":")
        direction, part = (first, rest) if first in (*DIRECTIONS, BOTH) else (None, first + colon + rest)
        kind = " ".join((match["kind"] or "").split())
        if kind and part:
            raise RequirementError(f"requirement {text!r}: expected one part, got {part!r} and {kind!r}; leave one out")
        part = kind or part
        return cls(text.strip(), direction, part, match["name"], bool(match["drop"]), match["comparison"], bound)

    @property
    def parts(self) -> list[str]:
        """The parts of the audit that it bounds: of a fidelity also those of queries about seen items."""
        if not self.name.startswith("fidelity@") or self.part.split(" ")[0] in KINDS:
            return [self.part]
        return [self.part, stage_part(self.part, SEEN)]

    def bounds(self, direction: str, part: str, name: str) -> bool:
        """Whether it bounds this measure."""
        return self.name == name and part in self.parts and self.direction in (None, direction)


@dataclass(frozen=True, slots=True)
class UnmetRequirement:
    """A requirement that is not met, and why in words."""

    requirement: Requirement
    why: str
    direction: str
    value: float | None


def check_known(
    requirements: Iterable[Requirement],
    known: Sequence[tuple[str, str, str]],
    baseline: Baseline | None,
    *,
    release: str = "this release",
) -> None:
    """Check that the audit to come can decide every requirement.

    Args:
        requirements: to check.
        known: direction, part and name of the measures that the audit will have.
        baseline: the earlier audit, if there is one.
        release: its name.

    Raises:
        RequirementError: a requirement bounds no measure, or a drop that cannot be computed.
    """
    for requirement in requirements:
        bounded = [measure for measure in known if requirement.bounds(*measure)]
        if not bounded:
            raise RequirementError(_unknown(requirement, known, release))
        if not requirement.is_drop:
            continue
        if baseline is None:
            raise RequirementError(
                f"requirement {requirement.text!r} bounds a drop; say since which audit with --baseline last, live or "
                "the number of one"
            )
        kept = baseline.places
        if not set(kept) & set(bounded):
            names = dict.fromkeys(f"{part}:{name}".lstrip(":") for _, part, name in kept)
            raise RequirementError(
                f"requirement {requirement.text!r} bounds a drop since audit {baseline.number}, which did not measure "
                f"it query by query; it has {', '.join(names)}"
            )


def _unknown(requirement: Requirement, known: Sequence[tuple[str, str, str]], release: str) -> str:
    whole = dict.fromkeys(name for _, part, name in known if not part)
    parts = list(dict.fromkeys(part for _, part, _ in known if part))
    more = f" and {len(parts) - LISTED_PARTS} more" if len(parts) > LISTED_PARTS else ""
    return (
        f"requirement {requirement.text!r} names no measure of an audit of {release}"
        f"{did_you_mean(requirement.name, whole)}; that has {', '.join(whole)}; and "
        f"PART:recall@K, PART:fidelity@K and PART:latency.p50 of {', '.join(parts[:LISTED_PARTS])}{more}; values of "
        f"--slice fields, as FIELD=VALUE, and {APART} with recall alone, seen and unseen with fidelity too, by a way "
        f"for texts alone and up to recall@{LARGEST_K}"
    )


def failures(
    requirements: Iterable[Requirement], measures: Sequence[Measurement], drifts: Sequence[Drift]
) -> list[UnmetRequirement]:
    """Return each requirement that is not met, once for each direction; one of nothing measured is not met."""
    result = []
    for requirement in requirements:
        values: Sequence[Measurement | Drift] = drifts if requirement.is_drop else measures
        bounded = [value for value in values if requirement.bounds(value.direction, value.part, value.name)]
        if not bounded:
            where = "in both audits" if requirement.is_drop else "in this audit"
            result.append(
                UnmetRequirement(requirement, f"it was not measured {where}", requirement.direction or BOTH, None)
            )
        result += [
            UnmetRequirement(requirement, value.in_words, value.direction, value.value)
            for value in bounded
            if not holds(value.value, requirement.comparison, requirement.bound)
        ]
    return result
