"""Captions as queries about their own items: what finds an item if one of its captions is asked instead of stored.

A caption never finds itself: it is left out of what is searched, and so are captions of its item with the same content.
A paraphrase has no content that is stored, so it may find the caption that it was made of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from alignment.modality import MODALITIES, Modality
from alignment.retrieval.ways import LARGEST_K
from alignment.sets.rows import Rows
from connector.releases.fusion import Fusion
from connector.search.candidates import CandidateSearch
from connector.search.item_search import ItemSearch, Scored
from connector.stores.points import Payload, engine_id


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """Scores of items against a caption, of its own item and of others.

    Attributes:
        own: scores of its own item by modality, against what is left of it.
        others: those of the best other items, by group.
        captions: payloads of the captions that are left of its item.
    """

    own: Scored
    others: Mapping[str, Scored]
    captions: Sequence[Payload]

    def rank(self, fusion: Fusion, *modalities: Modality) -> float:
        """Return the rank of its item, from 1, by these modalities; infinity if it has none of them.

        Of equal scores irrelevant ones rank first. Ranks up to `LARGEST_K` are exact, larger ones may be too small.
        """
        own = _scored(fusion, self.own, modalities)
        if own is None:
            return float("inf")
        scores = (_scored(fusion, other, modalities) for other in self.others.values())
        return 1 + sum(score is not None and score >= own for score in scores)

    def is_ranked(self, fusion: Fusion, modalities: Sequence[Modality], beyond: Scored) -> bool:
        """Whether the rank is exact, or beyond `LARGEST_K`: no item that is missing here can change that.

        Args:
            fusion: as of `rank`.
            modalities: as of `rank`.
            beyond: the most that an item that is missing can score, by modality; without those of which none is.
        """
        own = _scored(fusion, self.own, modalities)
        bounds = [fusion.standards[m].of(beyond[m]) for m in modalities if m in beyond]
        return own is None or all(own > bound for bound in bounds) or self.rank(fusion, *modalities) > LARGEST_K


def _scored(fusion: Fusion, scores: Scored, modalities: Sequence[Modality]) -> float | None:
    present: Scored = {modality: scores[modality] for modality in modalities if modality in scores}
    return fusion.score(present) if present else None


def ask(search: CandidateSearch, fusions: Sequence[Fusion], query: Rows, *, consistent: bool = False) -> CaptionScores:
    """Ask with one caption, the only row of `query`, all replicas of a cluster if `consistent`.

    Args:
        search: of a release.
        fusions: by which its item will be ranked, as well as by each modality alone. Their standards are the same.
        query: a caption.
        consistent: as of `CandidateSearch.search`.
    """
    from qdrant_client.models import FieldCondition, Filter, HasIdCondition, HasVectorCondition, MatchValue

    (group,), (content,) = query.groups, query.content_sha256
    of_group = FieldCondition(key="group", match=MatchValue(value=group))
    captions = Filter(must=[of_group, HasVectorCondition(has_vector="text")])
    pages = search.store.scroll(search.release.name, filter=captions, consistent=consistent)
    records = [record for page in pages for record in page]
    same: list[int | str | UUID] = [
        engine_id(record.id) for record in records if record.payload.get("content_sha256") == content
    ]
    left = [record.payload for record in records if record.payload.get("content_sha256") != content]
    others = Filter(must_not=[HasIdCondition(has_id=same)]) if same else None
    aligned = search.release.alignment.project("text", query.vectors)[0]

    def answer(scored: Mapping[str, Scored]) -> CaptionScores:
        return CaptionScores(scored.get(group, {}), {g: each for g, each in scored.items() if g != group}, left)

    def enough(scored: Mapping[str, Scored], beyond: Scored) -> bool:
        found, alone = answer(scored), [(modality,) for modality in MODALITIES]
        return all(found.is_ranked(fusion, ways, beyond) for fusion in fusions for ways in (*alone, MODALITIES))

    items = ItemSearch(search, consistent=consistent)
    return answer(items.scored(aligned, fusions[0], enough, also=group, filter=others))
