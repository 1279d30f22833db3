"""Parts of an audit by what is searched: items that the fit saw, all others, and items by image, caption or both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from alignment.retrieval.bootstrap import Estimate, bootstrap_of_two
from alignment.retrieval.kinds import HARMONIC, SEEN, UNSEEN
from alignment.retrieval.measures import Floats
from alignment.retrieval.ranks import IntArray
from alignment.retrieval.ways import Way

# Parts of an audit: queries about items that the fit never saw, about those that it saw, and both together.
KINDS = (UNSEEN, SEEN, HARMONIC)
# Text queries that search by one of the three ways, about all items of the collection.
WAYS = tuple(f"by {way}" for way in get_args(Way))
# The kinds in the words of people who never fitted anything.
NEW_OR_KNOWN = {UNSEEN: "new", SEEN: "known"}


@dataclass(frozen=True, slots=True)
class KindOutcomes:
    """What production finds first for queries about seen and about unseen items of the whole collection.

    Attributes:
        seen_first: by kind, whether the first hit is a seen item (n,), and the codes of the queries' groups (n,).
        fair: share of the collection's items that are seen.
        area: under the seen-unseen curve.
        seed: of the bootstrap.
    """

    seen_first: Mapping[str, tuple[Floats, IntArray]]
    fair: float
    area: float
    seed: int


def first_places(outcomes: KindOutcomes) -> Estimate:
    """Estimate the share of first places that go to seen items, if each item is searched for as often."""
    fair = outcomes.fair
    return bootstrap_of_two(
        lambda seen, unseen: fair * seen + (1 - fair) * unseen,
        outcomes.seen_first[SEEN],
        outcomes.seen_first[UNSEEN],
        seed=outcomes.seed,
    )
