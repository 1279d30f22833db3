"""What an audit finds of the whole collection: how its seen and its unseen items are found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment.retrieval.kinds import SEEN, TOO_FAR
from alignment.retrieval.seen_unseen import SeenUnseenCurve
from connector.audits.baseline import PerQuery
from connector.audits.kind_queries import PARAPHRASES
from connector.audits.kinds import NEW_OR_KNOWN
from connector.audits.measure import Measurement
from connector.audits.stage_summary import StageSummary


@dataclass(frozen=True, slots=True)
class SeenUnseenPoint:
    """What exact search finds with one offset of seen items.

    Attributes:
        offset: taken off the scores of seen items.
        unseen, seen: Recall@K of queries about unseen and about seen items.
        unseen_first, seen_first: Recall@1 of them.
    """

    offset: float
    unseen: float
    seen: float
    unseen_first: float
    seen_first: float


@dataclass(frozen=True, slots=True)
class SeenUnseenResult:
    """How the whole collection is found in one direction: items that the fit saw, and all others.

    Attributes:
        about: what the queries of a kind are, by kind; without those of which there are none.
        why_not: why a kind was not measured, by kind.
        fair: share of the items that the fit saw.
        measures: every number; its parts are the kinds, and the stages with queries about seen items.
        stages: the losses of a search with queries about seen items, in its order.
        found_first: share of queries whose first hit is relevant, as production searches, by kind.
        per_query: the values that later audits are compared with, by kind.
        curve: the seen-unseen curve of exact search at the plan's k; None unless both kinds have queries.
        points: of the curve, without an offset and, where the release has one, with it.
    """

    direction: str
    about: Mapping[str, str]
    why_not: Mapping[str, str]
    fair: float
    measures: Sequence[Measurement]
    stages: Sequence[StageSummary]
    found_first: Mapping[str, float]
    per_query: Mapping[str, PerQuery]
    curve: SeenUnseenCurve | None
    points: Sequence[SeenUnseenPoint]

    @property
    def in_words(self) -> list[str]:
        """What production finds of new and of known items, and what the offset changes, a sentence each."""
        sentences = [
            f"{self.direction}: how {NEW_OR_KNOWN[kind]} items are found in the whole collection is not known: {why}."
            for kind, why in self.why_not.items()
        ]
        if len(self.found_first) == len(NEW_OR_KNOWN):
            new, known = (self.found_first[kind] for kind in NEW_OR_KNOWN)
            sentences.append(
                f"{self.direction}: in the whole collection new items are found first in {new:.0%} of searches, known "
                f"ones in {known:.0%}{self._places}."
            )
            if known < new and self.about[SEEN].startswith(PARAPHRASES):
                sentences.append(f"{self.direction}: {TOO_FAR}.")
        else:
            sentences += [
                f"{self.direction}: in the whole collection {NEW_OR_KNOWN[kind]} items are found first in {share:.0%} "
                "of searches."
                for kind, share in self.found_first.items()
            ]
        if self.points and self.points[-1].offset:
            without, with_it = self.points[0], self.points[-1]
            sentences.append(
                f"{self.direction}: by exact search the offset of known items finds new ones first in "
                f"{with_it.unseen_first:.0%} of searches instead of {without.unseen_first:.0%}, and known ones in "
                f"{with_it.seen_first:.0%} instead of {without.seen_first:.0%}."
            )
        return sentences

    @property
    def _places(self) -> str:
        places = next((m.value for m in self.measures if m.name == "first_places"), None)
        if places is None:
            return ""
        return f"; {places:.0%} of first places go to known items where {self.fair:.0%} would be fair"
