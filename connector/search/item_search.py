"""Search for items by their captions, or by images and captions together: one hit an item.

Qdrant finds points; an item is all points of one group, and the best of its captions, or images, counts. So points are
fetched in pages, best first, and what is still missing of the scores of the items among them is searched for among the
points of these items alone. No item outside of the pages scores better than their last points do: when k items are at
least as good as that, they are the first k (the threshold algorithm of Fagin, Lotem and Naor, 2001).

The offset of seen items is for queries of the other modality: a text is no nearer to captions that the fit saw. So
captions count with the metric's own score, whatever offset Qdrant orders them with.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alignment.metrics import Rescored
from alignment.modality import Modality
from connector.errors import StrangePointError
from connector.releases.aligned_payload import without_aligned
from connector.releases.fusion import Fusion, Standard
from connector.releases.points import FITTED, image_keys, point_id
from connector.search.candidates import QUERIES_AT_ONCE, CandidateSearch, RankedHits, ScoredHit
from connector.stores.points import Payload, Record

if TYPE_CHECKING:
    from qdrant_client.models import Filter

# Points of the first page, for each item that is wanted and at least; each further page is GROWTH times the last one.
POINTS_PER_ITEM = 4
FIRST_PAGE = 64
GROWTH = 4
# Most points of a page, unless so many do not hold k items.
MOST_POINTS = 4096
# Items whose points are searched at once.
GROUPS_AT_ONCE = 256

Scored = dict[Modality, float]  # scores of an item

BY_CAPTION = Fusion({"text": Standard(0.0, 1.0)})  # leaves scores as they are


class FoundItem(NamedTuple):
    """An item that was found.

    Attributes:
        rank_score: what it ranks by, higher is better: with what the alignment takes off images that the fit saw.
        score: the same without that.
        points: its best point of each modality that was compared.
        own_scores: the metric's own of these.
    """

    group: str
    rank_score: float
    score: float
    points: Mapping[Modality, ScoredHit]
    own_scores: Mapping[Modality, float]


class _Page(NamedTuple):
    """The best points of one modality for a query.

    Attributes:
        beyond: the best that another point can score; None: there is none.
    """

    points: Sequence[ScoredHit]
    beyond: float | None
    certified: bool | None


@dataclass(frozen=True, slots=True)
class RankedItems:
    """The items of one query, best first.

    Attributes:
        certified: True if it is proved that no better item was left out; False if not, as along a graph; None if
            Qdrant's order is that of the items, which needs no proof, or if the metric has no bound to prove it by.
        candidates: number of items that were scored.
    """

    items: list[FoundItem]
    certified: bool | None
    candidates: int


class ShownItem(NamedTuple):
    """A found item as it is stored.

    Attributes:
        record: its image where it has one, else its caption.
        modality: of the record.
        caption: the payload of the caption that counted; None: none was compared.
    """

    item: FoundItem
    record: Record
    modality: Modality
    caption: Payload | None


class ItemSearch:
    """Searches one release for items, with aligned vectors of texts.

    Args:
        candidates: finds the points of one modality.
        consistent: find what all replicas of a cluster find alike; see `CandidateSearch.search`.
    """

    def __init__(self, candidates: CandidateSearch, *, consistent: bool = False):
        self._candidates, self._consistent = candidates, consistent

    def search(
        self,
        aligned: npt.NDArray[np.floating],
        k: int,
        fusion: Fusion = BY_CAPTION,
        *,
        filter: "Filter | None" = None,
        exact: bool = False,
        max_candidates: int | None = None,
    ) -> list[RankedItems]:
        """Find the `k` best items for each query.

        Args:
            aligned: queries (n, d) in the shared space, n of at least 1.
            k: items a query.
            fusion: which modalities are compared, and how their scores make one.
            filter: only points that match it are compared.
            exact: compare with every point instead of searching the HNSW graph.
            max_candidates: most points to fetch for a query of each modality; None: `MOST_POINTS`.
        """
        options = {"filter": filter, "exact": exact, "max_candidates": max_candidates}
        ranked: list[RankedItems] = []
        for start in range(0, len(aligned), QUERIES_AT_ONCE):
            ranked += self._search(aligned[start : start + QUERIES_AT_ONCE], k, fusion, options)
        return ranked

    def _search(
        self, aligned: npt.NDArray[np.floating], k: int, fusion: Fusion, options: Mapping[str, Any]
    ) -> list[RankedItems]:
        max_candidates = options["max_candidates"]
        searches = [_Query(self, query, k, fusion, options) for query in aligned]
        most = max(k, MOST_POINTS if max_candidates is None else max_candidates)
        unfinished, page = searches, min(max(FIRST_PAGE, POINTS_PER_ITEM * k), most)
        while unfinished:
            queries = np.stack([search.query for search in unfinished])
            pages = {m: self._points(m, queries, page, options) for m in fusion.standards}
            left = []
            for place, search in enumerate(unfinished):
                search.add({m: of_modality[place] for m, of_modality in pages.items()})
                if not search.finished and (page < most or len(search.scored) < k):
                    left.append(search)
            unfinished, page = left, GROWTH * page if GROWTH * page <= most or page >= most else most
        proves = options["exact"] or self._candidates.compares_with_all()
        return [search.ranked(proves=proves) for search in searches]

    def scored(
        self,
        query: npt.NDArray[np.floating],
        fusion: Fusion,
        enough: Callable[[Mapping[str, Scored], Scored], bool],
        *,
        also: str,
        filter: "Filter | None" = None,
    ) -> dict[str, Scored]:
        """Return the scores by modality of the best items for a query (d,), and of the group `also`, by group.

        Pages grow until `enough` says of these scores, and of the most that another item can score by modality, that
        they are enough, or up to `MOST_POINTS`.
        """
        options = {"filter": filter, "exact": False, "max_candidates": None}
        search, page = _Query(self, query, 1, fusion, options), FIRST_PAGE
        while True:
            pages = {m: self._points(m, query[None], page, options)[0] for m in fusion.standards}
            search.add(pages, also=[also])
            scored = {group: search.scores(group) for group in search.scored}
            beyond: Scored = {m: found.beyond for m, found in pages.items() if found.beyond is not None}
            if page >= MOST_POINTS or enough(scored, beyond):
                return scored
            page *= GROWTH

    def shown(
        self, query: npt.NDArray[np.floating], items: Sequence[FoundItem], *, filter: "Filter | None" = None
    ) -> list[ShownItem]:
        """Return what is stored of items, in their order.

        Where images were not compared, an item is shown by the image that its caption is of, by the caption's key, and
        else by the best of its images for a query (d,); one that matches the filter comes before one that does not.
        What was deleted meanwhile is left out.
        """
        images = {item.group: item.points["image"].id for item in items if "image" in item.points}
        captions = {item.group: item.points["text"].id for item in items if "text" in item.points}
        records = self._records([*images.values(), *captions.values()])
        own = {
            group: [point_id("image", key) for key in image_keys(str(records[caption].payload.get("key")))]
            for group, caption in captions.items()
            if group not in images and caption in records
        }
        records |= self._records([image for of_caption in own.values() for image in of_caption])
        for group, of_caption in own.items():
            there = [image for image in of_caption if image in records]
            if image := next((image for image in there if records[image].payload.get("group") == group), None):
                images[group] = image
        for condition in (filter, None) if filter else (None,):
            without = {item.group for item in items} - images.keys()
            options = {"filter": condition, "exact": False, "max_candidates": None}
            images |= {group: hit.id for group, hit in self.best_points("image", query, without, options).items()}
        records |= self._records([image for image in images.values() if image not in records])
        shown = []
        for item in items:
            picture, caption = (records.get(ids.get(item.group, "")) for ids in (images, captions))
            if record := picture or caption:
                modality: Modality = "image" if picture else "text"
                shown.append(ShownItem(item, record, modality, caption.payload if caption else None))
        return shown

    def _records(self, ids: Sequence[str]) -> dict[str, Record]:
        """Return the points with these ids by id, those that are there."""
        store, name = self._candidates.store, self._candidates.release.name
        retrieved = store.retrieve(name, ids, consistent=self._consistent) if ids else []
        return {record.id: record._replace(payload=without_aligned(record.payload)) for record in retrieved}

    def best_points(
        self, modality: Modality, query: npt.NDArray[np.floating], groups: Iterable[str], options: Mapping[str, Any]
    ) -> dict[str, ScoredHit]:
        """Return the best point of a modality, for a query (d,), of each of the groups that has one.

        Args:
            modality: of the points.
            query: in the shared space.
            groups: whose points are compared.
            options: `filter`, `exact` and `max_candidates` of `search`.
        """
        from qdrant_client.models import FieldCondition, Filter, MatchAny  # takes a second to import

        best: dict[str, ScoredHit] = {}
        every, condition = sorted(groups), options["filter"]
        for start in range(0, len(every), GROUPS_AT_ONCE):
            part = every[start : start + GROUPS_AT_ONCE]
            of_groups = FieldCondition(key="group", match=MatchAny(any=part))
            within = {**options, "filter": Filter(must=[of_groups, *([condition] if condition else [])])}
            limit = POINTS_PER_ITEM * len(part)
            while True:
                (page,) = self._points(modality, query[None], limit, within)
                if page.beyond is None:
                    break
                limit *= GROWTH
            best |= _best(page.points)
        return best

    def has_bounds(self, fusion: Fusion) -> bool:
        """Whether the last point of a page bounds what others score: not if the metric's candidates prove nothing."""
        lowerings = [self._candidates.release.lowerings[modality] for modality in fusion.standards]
        return all(not isinstance(each, Rescored) or each.bound(0.0) is not None for each in lowerings)

    def is_in_order(self, fusion: Fusion) -> bool:
        """Whether Qdrant's order of points is that of items."""
        release = self._candidates.release
        offsets = release.alignment.card.seen_offsets.get(str(release.metric), {})
        return len(fusion.standards) == 1 and not offsets.get("text")

    def taken_off(self, modality: Modality, hit: ScoredHit) -> float:
        """Return what the alignment takes off a point to rank it as Qdrant does."""
        lowering = self._candidates.release.lowerings[modality]
        return lowering.taken_off(hit.score, seen=hit.payload.get("split") == FITTED)

    def _points(
        self, modality: Modality, queries: npt.NDArray[np.floating], count: int, options: Mapping[str, Any]
    ) -> list[_Page]:
        """Find the best `count` points of one modality for each query (n, d)."""
        most = options["max_candidates"]
        enough = {
            **options,
            "max_candidates": most if most is None else max(most, count),
            "consistent": self._consistent,
        }
        lists = self._candidates.search(modality, queries, count, **enough, with_payload=["group", "split"])
        return [self._page(modality, ranked, count) for ranked in lists]

    def _page(self, modality: Modality, ranked: RankedHits, count: int) -> _Page:
        hits, beyond = ranked.hits, ranked.hits[-1].score if len(ranked.hits) == count else None
        if modality == "text":
            lowering = self._candidates.release.lowerings["text"]
            hits = [hit._replace(score=hit.score + self.taken_off(modality, hit)) for hit in hits]
            beyond = None if beyond is None else beyond + lowering.taken_off(beyond, seen=True)
        return _Page(hits, beyond, ranked.certified)


@dataclass(slots=True)
class _Query:
    """The items of one query, and whether they are known to be the first k.

    Attributes:
        points: the best point of each group and modality, once it is known to be the best; None: it has none.
        scored: score of each item whose points are all known.
    """

    search: ItemSearch
    query: npt.NDArray[np.floating]
    k: int
    fusion: Fusion
    options: Mapping[str, Any]
    points: dict[Modality, dict[str, ScoredHit | None]] = field(default_factory=dict)
    scored: dict[str, float] = field(default_factory=dict)
    finished: bool = False
    proofs: list[bool | None] = field(default_factory=list)

    def add(self, pages: Mapping[Modality, _Page], *, also: Iterable[str] = ()) -> None:
        """Score the items of the best points of each modality, and the groups `also`."""
        groups = set(also)
        beyond = {modality: page.beyond for modality, page in pages.items() if page.beyond is not None}
        for modality, page in pages.items():
            found = _best(page.points)
            groups |= found.keys()
            known = self.points.setdefault(modality, {})
            known |= {g: hit for g, hit in found.items() if hit.score >= beyond.get(modality, -math.inf)}
        for modality, points in self.points.items():
            missing = groups - points.keys()
            if missing and modality in beyond:
                points.update(self.search.best_points(modality, self.query, missing, self.options))
            points.update(dict.fromkeys(missing - points.keys()))
        for group in groups:
            if scores := self.scores(group):  # a point may have been deleted meanwhile
                self.scored[group] = self.fusion.score(scores)
        self.proofs = [page.certified for page in pages.values()]
        # No score of an item is above all of its standardised scores.
        bound = max((self.fusion.standards[m].of(score) for m, score in beyond.items()), default=-math.inf)
        self.finished = sum(score >= bound for score in self.scored.values()) >= self.k or not beyond

    def scores(self, group: str) -> Scored:
        """Return the scores of an item by modality."""
        return {modality: hit.score for modality, hit in self._points_of(group).items()}

    def _points_of(self, group: str) -> dict[Modality, ScoredHit]:
        return {m: hit for m, known in self.points.items() if (hit := known.get(group)) is not None}

    def ranked(self, *, proves: bool) -> RankedItems:
        """Return the first k items; `proves`: Qdrant compared the query with the vectors of all points."""
        best = sorted(self.scored.items(), key=lambda item: (-item[1], item[0]))[: self.k]
        items = [self._found(group, score) for group, score in best]
        finished = self.finished and not any(proof is False for proof in self.proofs)
        natural = finished and self.search.is_in_order(self.fusion) and all(proof is None for proof in self.proofs)
        without_proof = natural or not self.search.has_bounds(self.fusion)
        return RankedItems(items, None if without_proof else finished and proves, len(self.scored))

    def _found(self, group: str, rank_score: float) -> FoundItem:
        points = self._points_of(group)
        own = {modality: hit.score for modality, hit in points.items()}
        if "image" in points:
            own["image"] += self.search.taken_off("image", points["image"])
        return FoundItem(group, rank_score, self.fusion.score(own), points, own)


def _best(hits: Sequence[ScoredHit]) -> dict[str, ScoredHit]:
    """Return the best hit of each group."""
    best: dict[str, ScoredHit] = {}
    for hit in hits:
        group = hit.payload.get("group")
        if not isinstance(group, str):
            raise StrangePointError(hit.id, "has no group")
        if group not in best or hit.score > best[group].score:
            best[group] = hit
    return best
