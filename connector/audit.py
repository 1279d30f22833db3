"""Recall@K audits of a release, through its store, against the labels of held-out pairs.

Three things are measured for each direction: what production gets (the index as it serves), what exact search over
the same gallery gives (mean reciprocal rank and median rank come from it), and how much of the exact answer the index
finds over the whole collection, without a filter. Recall@K is the share of queries with a relevant item among the
first K; relevant means of the same group. Among equal scores the irrelevant item counts as the better one, so ties
never flatter. Where Qdrant's order is not the metric's own, exact search is the metric itself over every vector read
back, so that what candidates and rescoring lose shows as the index's loss.
"""

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from alignment.embeddings import EmbeddingSet, Modality, Rows
from alignment.metrics import Guarantee, Lowering, Metric, Rescored
from alignment.recall import (
    Estimate,
    Ranks,
    bootstrap_mean,
    bootstrap_median,
    chance_recall_at,
    group_codes,
)
from alignment.vectors import FloatArray, faults
from connector.candidates import ALIGNED, Finder, Ranked, found_share, unpacked
from connector.errors import MismatchError, RequirementError
from connector.models import MeasureRow
from connector.points import HELD_OUT, point_id
from connector.progress import Advance
from connector.provenance import Provenance, Run
from connector.release import Release, require_encoder
from connector.store import CollectionInfo, Store

if TYPE_CHECKING:
    from qdrant_client.models import Filter

Scope = Literal["held-out", "all"]
KS = (1, 5, 10)
DEEPEST = 1000
BATCH_QUERIES = 64
DIRECTIONS: dict[str, tuple[Modality, Modality]] = {
    "text-to-image": ("text", "image"),
    "image-to-text": ("image", "text"),
}
REQUIREMENT = re.compile(
    r"\s*(?:(text-to-image|image-to-text):)?([a-z_.]+(?:@\d+)?(?:\.[a-z0-9]+)?)\s*(>=|<=|>|<)\s*([-+.\deE]+)\s*"
)
MEASURES = (
    "recall@{k}",
    "exact.recall@{k}",
    "chance.recall@{k}",
    "mrr",
    "median_rank",
    "index.recall@{k}",
    "index.recall@{k}.p5",
    "index.recall@{k}.min",
)
# Under the metrics whose search can be proved complete there is one more: the share of searches that were.
CERTIFIED = "certified"
PROVABLE = (Guarantee.CERTIFIED, Guarantee.BOUNDED)
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of an audit: `recall@10` of a direction, with its 95% interval where it has one."""

    direction: str
    name: str
    value: float
    low: float | None = None
    high: float | None = None
    queries: int = 0


@dataclass(frozen=True, slots=True)
class Requirement:
    """A condition on a measure: `recall@10>=0.4`, or of one direction `text-to-image:recall@10>=0.4`."""

    text: str
    direction: str | None
    name: str
    comparison: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Requirement":
        """Read a requirement.

        Raises:
            RequirementError: it cannot be read.
        """
        match = REQUIREMENT.fullmatch(text)
        try:
            if match is None:
                raise ValueError
            return cls(text.strip(), match[1], match[2], match[3], float(match[4]))
        except ValueError:
            raise RequirementError(
                f"requirement {text!r}: expected MEASURE>=NUMBER such as recall@10>=0.4 or "
                "text-to-image:mrr>=0.3, with one of >= <= > <"
            ) from None

    def require_known(self, names: Sequence[str]) -> None:
        """Raise a `RequirementError` if it names none of the measures `names`."""
        if self.name not in names:
            raise RequirementError(
                f"requirement {self.text!r} names no measure of this audit; it has {', '.join(dict.fromkeys(names))}"
            )

    def failures(self, measures: Sequence[Measure]) -> list[Measure]:
        """Return the measures that do not meet it."""
        named = [m for m in measures if m.name == self.name and self.direction in (None, m.direction)]
        return [m for m in named if not COMPARISONS[self.comparison](m.value, self.bound)]


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Attributes:
        info: the collection while it was audited.
        gallery: items that were searched, by modality.
        depth: how far exact ranks were followed; a rank beyond counts as none for `mrr` and as infinite for
            `median_rank`.
        without_relevant: queries whose relevant items are not in the gallery, by direction; they count as misses.
        failures: requirements with the measures that do not meet them.
    """

    release: Release
    info: CollectionInfo
    queries: Scope
    gallery_scope: Scope
    gallery: dict[str, int]
    depth: int
    measures: list[Measure]
    without_relevant: dict[str, int]
    failures: list[tuple[Requirement, Measure]] = field(default_factory=list)
    required: bool = False

    @property
    def verdict(self) -> str:
        """`passed`, `failed`, or `measured` where nothing was required."""
        if not self.required:
            return "measured"
        return "failed" if self.failures else "passed"

    def measure(self, direction: str, name: str) -> Measure:
        """Return one measure."""
        return next(m for m in self.measures if (m.direction, m.name) == (direction, name))


def audit(
    release: Release,
    store: Store,
    embedding_set: EmbeddingSet,
    *,
    ks: Sequence[int] = KS,
    requirements: Sequence[Requirement] = (),
    queries: Scope = HELD_OUT,
    gallery: Scope = HELD_OUT,
    depth: int = DEEPEST,
    seed: int = 0,
    advance: Advance = lambda count: None,
) -> Audit:
    """Audit `release` with the labelled pairs of `embedding_set`; changes nothing in the store.

    Args:
        release: an open release.
        store: where it is.
        embedding_set: pairs, encoded with the encoders of the release.
        ks: lengths of the result lists.
        requirements: what the measures have to meet.
        queries: query with held-out items of the set, or with all of it (which flatters: the fit saw the rest).
        gallery: search among the held-out points, which is comparable with the alignment's card, or among all.
        depth: how far exact ranks are followed.
        seed: of the bootstrap.
        advance: called with the number of queries done since.

    Raises:
        MismatchError: the set was encoded with other encoders, holds nothing to query with, or none of its pairs is
            in the gallery.
        RequirementError: a requirement names no measure.
    """
    ks = sorted(set(ks))
    if not ks or ks[0] < 1:
        raise RequirementError(f"expected every k of at least 1, got {ks}")
    names = [name.format(k=k) for name in MEASURES for k in ks]
    if release.guarantee in PROVABLE:
        names.append(CERTIFIED)
    for requirement in requirements:
        requirement.require_known(names)
    for modality, card in embedding_set.card.encoders.items():
        require_encoder(release.alignment, modality, card, f"embedding set {embedding_set.path}")
    condition = _only_held_out() if gallery == HELD_OUT else None
    result = Audit(
        release, store.describe(release.name), queries, gallery, {}, depth, [], {}, required=bool(requirements)
    )
    sides = {m: _labelled(release, embedding_set, m, queries) for m in ("image", "text")}
    relevant = {
        direction: _relevant(sides[asking], sides[asked], release, store, gallery)
        for direction, (asking, asked) in DIRECTIONS.items()
    }
    if not any(counts.any() for counts in relevant.values()):
        raise MismatchError(
            f"no pair of embedding set {embedding_set.path} is in the {gallery} gallery of release {release.name}; "
            "name the set that was pushed into it, or one that shares its groups"
        )
    finder = Finder(release, store)
    for direction, (asking, asked) in DIRECTIONS.items():
        size = store.count(release.name, filter=_with_vector(asked, condition))
        result.gallery[asked] = size
        probe = _Probe(finder, asked, condition, ks, depth, size)
        rows = sides[asking]
        counts = relevant[direction]
        result.without_relevant[direction] = int((counts == 0).sum())
        outcome = probe.ask(rows, advance)
        result.measures.extend(
            _measures(direction, outcome, rows.groups, relevant=counts, gallery=size, ks=ks, seed=seed)
        )
    for requirement in requirements:
        result.failures.extend((requirement, failed) for failed in requirement.failures(result.measures))
    return result


def record(result: Audit, provenance: Provenance, run: Run, set_id: int) -> int:
    """Write an audit to SQL; return its row."""
    return provenance.record_audit(
        run_id=run.id,
        release_id=result.release.row.id,
        set_id=set_id,
        verdict=result.verdict,
        settings={
            "queries": result.queries,
            "gallery": result.gallery_scope,
            "gallery_size": result.gallery,
            "depth": result.depth,
            "points": result.info.points,
            "served_with": result.release.row.settings,
            "indexed": result.info.indexed,
            "guarantee": result.release.guarantee.value,
            "without_relevant": result.without_relevant,
            "failed_requirements": sorted({requirement.text for requirement, _ in result.failures}),
        },
        measures=[
            MeasureRow(direction=m.direction, name=m.name, value=m.value, low=m.low, high=m.high, queries=m.queries)
            for m in result.measures
        ],
    )


@dataclass(slots=True)
class _Outcome:
    """What became of all queries of a direction.

    Attributes:
        live, exact: ranks through the index and through exact search.
        fidelity: the index's recall by k and query.
        certified: whether each result without a filter was certified; empty where the metric's guarantee needs no proof
            or allows none.
    """

    live: Ranks
    exact: Ranks
    fidelity: dict[int, npt.NDArray[np.float64]]
    certified: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Probe:
    """Asks one modality of a release."""

    finder: Finder
    asked: Modality
    condition: "Filter | None"
    ks: Sequence[int]
    depth: int
    size: int

    @property
    def shallow(self) -> int:
        """Hits to ask for: one more than the longest list shows whether a tie goes on beyond its end.

        Production asks for k at a time; asking for many more would make the index look better than it serves.
        """
        return self.ks[-1] + 1

    @property
    def lowering(self) -> Lowering:
        """How Qdrant computes the metric over the items that are asked for."""
        return self.finder.release.lowerings[self.asked]

    def ask(self, rows: Rows, advance: Advance) -> _Outcome:
        aligned = self.finder.release.alignment.project(rows.modality, rows.vectors)
        live, certified = [], []
        fidelity: dict[int, list[float]] = {k: [] for k in self.ks}
        exact: list[float] = []
        truth = None if self.finder.release.guarantee is Guarantee.EXACT else self._reference(rows, aligned)
        for start in range(0, len(aligned), BATCH_QUERIES):
            batch = slice(start, start + BATCH_QUERIES)
            groups, queries = rows.groups[batch], aligned[batch]
            served = self._find(queries, self.shallow, self.condition, exact=False)
            live += [self._rank(*asked, self.shallow) for asked in zip(queries, groups, served, strict=True)]
            if self.condition is not None:
                # Qdrant searches a small filtered part exhaustively; what the index finds shows without a filter.
                served = self._find(queries, self.shallow, None, exact=False)
            if self.finder.release.guarantee in PROVABLE:
                certified += [float(answer.certified is True) for answer in served]
            if truth is None:
                exact += self._exact_ranks(queries, groups)
                bars = self._bars(self._find(queries, self.shallow, None, exact=True))
            else:
                exact += truth.ranks[batch].tolist()
                bars = truth.bars[batch]
            for got, bar in zip(served, bars, strict=True):
                for k in self.ks:
                    fidelity[k].append(found_share(self.lowering, got.hits[:k], bar[:k][~np.isnan(bar[:k])]))
            advance(len(groups))
        return _Outcome(
            np.array(live), np.array(exact), {k: np.array(v) for k, v in fidelity.items()}, np.array(certified)
        )

    def _find(
        self, queries: npt.NDArray[np.floating], k: int, condition: "Filter | None", *, exact: bool
    ) -> list[Ranked]:
        return self.finder.find(self.asked, queries, k, filter=condition, exact=exact, with_payload=["group"])

    def _exact_ranks(self, queries: FloatArray, groups: Sequence[str]) -> list[float]:
        deep = max(self.shallow, self.depth)
        found = self._find(queries, deep, self.condition, exact=True)
        return [self._rank(*asked, deep) for asked in zip(queries, groups, found, strict=True)]

    def _rank(self, query: npt.NDArray[np.floating], group: str, answer: Ranked, limit: int) -> float:
        """Rank the best relevant hit; irrelevant ones of the same score stand before it."""
        hits = answer.hits
        best = next((hit.score for hit in hits if hit.payload["group"] == group), None)
        if best is None:
            return np.inf
        # Rescoring rounds by where a candidate stands in its batch: equal items may come out apart.
        tied = best if self.finder.release.guarantee is Guarantee.EXACT else self.lowering.tied(best)
        if hits[-1].score >= tied and len(hits) == limit < self.size:
            # The tie may go on beyond the list. How many of it are irrelevant, a list of nothing else says.
            hits = self._find(query[None], limit, _without_group(group, self.condition), exact=True)[0].hits
        before = [hit for hit in hits if hit.score >= tied and hit.payload["group"] != group]
        return len(before) + 1.0 if len(before) < limit else np.inf

    def _bars(self, answers: Sequence[Ranked]) -> npt.NDArray[np.float64]:
        """Scores of the exact lists, best first, (n, shallow); lists that end earlier are filled with NaN."""
        bars = np.full((len(answers), self.shallow), np.nan)
        for row, answer in enumerate(answers):
            bars[row, : len(answer.hits)] = [hit.score for hit in answer.hits]
        return bars

    def _reference(self, rows: Rows, aligned: FloatArray) -> "_Truth":
        """Score every query against every point with the metric itself, over the vectors that the points carry.

        What is held are the queries, one page of points and the best scores: (n, d), (page, d), (n, shallow).
        """
        assert isinstance(self.lowering, Rescored)
        metric = self.lowering.metric
        wanted = np.array(rows.groups, object)
        best = np.full(len(aligned), -np.inf)
        for scores, groups, inside in self._scored(metric, aligned):
            mine = inside & (groups[None] == wanted[:, None])  # (n, c)
            best = np.maximum(best, np.where(mine, scores, -np.inf).max(axis=1))
        floor = np.where(np.isfinite(best), self.lowering.tied(best), np.inf)  # rounding never flatters
        before = np.zeros(len(aligned))
        bars = np.full((len(aligned), self.shallow), -np.inf)
        for scores, groups, inside in self._scored(metric, aligned):
            rivals = inside & (groups[None] != wanted[:, None])  # (n, c)
            before += ((scores >= floor[:, None]) & rivals).sum(axis=1)
            joined = np.concatenate([bars, scores], axis=1)
            bars = -np.sort(-joined, axis=1)[:, : self.shallow]
        ranks = np.where(np.isfinite(best) & (before < max(self.shallow, self.depth)), before + 1, np.inf)
        bars[np.isinf(bars)] = np.nan
        return _Truth(ranks, bars)

    def _scored(
        self, metric: Metric, aligned: FloatArray
    ) -> Iterator[tuple[npt.NDArray[np.floating], npt.NDArray[np.object_], npt.NDArray[np.bool_]]]:
        """Score the queries (n, d) against every point, a page at a time.

        Yields scores (n, c), the groups of the points (c,), and whether they are in the gallery (c,).
        """
        for page in self.finder.store.scroll(self.finder.release.name, filter=_with_vector(self.asked, None)):
            scores = metric.score(aligned, unpacked([record.payload[ALIGNED] for record in page]))
            groups = np.array([record.payload["group"] for record in page], object)
            inside = [self.condition is None or record.payload.get("split") == HELD_OUT for record in page]
            yield scores, groups, np.array(inside)


@dataclass(frozen=True, slots=True)
class _Truth:
    """What the metric itself says: exact ranks (n,) and the best scores of each query (n, shallow), best first."""

    ranks: Ranks
    bars: npt.NDArray[np.float64]


def _measures(
    direction: str,
    outcome: _Outcome,
    groups: Sequence[str],
    *,
    relevant: npt.NDArray[np.int64],
    gallery: int,
    ks: Sequence[int],
    seed: int,
) -> Iterator[Measure]:
    (codes,) = group_codes(groups)
    n = len(groups)

    def estimated(
        name: str, values: npt.NDArray[np.floating], bootstrap: Callable[..., Estimate] = bootstrap_mean
    ) -> Measure:
        estimate = bootstrap(values, codes, seed=seed)
        return Measure(direction, name, estimate.value, estimate.low, estimate.high, n)

    for k in ks:
        yield estimated(f"recall@{k}", (outcome.live <= k).astype(np.float64))
    for k in ks:
        yield estimated(f"exact.recall@{k}", (outcome.exact <= k).astype(np.float64))
    for k in ks:
        chance = chance_recall_at(k, relevant, gallery) if gallery else 0.0
        yield Measure(direction, f"chance.recall@{k}", chance, queries=n)
    yield estimated("mrr", 1.0 / outcome.exact)
    yield estimated("median_rank", outcome.exact, bootstrap_median)
    for k, shares in outcome.fidelity.items():
        yield estimated(f"index.recall@{k}", shares)
        yield Measure(direction, f"index.recall@{k}.p5", float(np.percentile(shares, 5)), queries=n)
        yield Measure(direction, f"index.recall@{k}.min", float(shares.min()), queries=n)
    if len(outcome.certified):
        yield estimated(CERTIFIED, outcome.certified)


def _labelled(release: Release, embedding_set: EmbeddingSet, modality: Modality, scope: Scope) -> Rows:
    """Load the rows to query with; rows that cannot be queried with were refused when they were pushed."""
    rows = embedding_set.load(modality)
    kept = np.ones(len(rows), bool)
    if scope == HELD_OUT:
        kept = release.alignment.card.hold_out.held_out(rows.groups)
    kept[list(faults(rows.vectors))] = False
    sound = np.flatnonzero(kept)
    kept[sound[list(faults(release.alignment.projections[modality].unchecked(rows.vectors[sound])))]] = False
    if not kept.any():
        raise MismatchError(
            f"embedding set {embedding_set.path} holds no {scope} {modality} rows to audit with; encode more pairs, "
            "or audit with --queries all"
        )
    return rows.take(np.flatnonzero(kept).tolist())


def _relevant(asking: Rows, asked: Rows, release: Release, store: Store, gallery: Scope) -> npt.NDArray[np.int64]:
    """Count for each query how many items of the audited set are relevant and in the gallery: (n,)."""
    wanted = set(asking.groups)
    ids = {
        point_id(asked.modality, key): group
        for key, group in zip(asked.keys, asked.groups, strict=True)
        if group in wanted
    }
    counts: Counter[str] = Counter()
    remaining = iter(ids)
    while batch := list(islice(remaining, 1000)):
        for found in store.retrieve(release.name, batch):
            if gallery == "all" or found.payload.get("split") == gallery:
                counts[ids[found.id]] += 1
    return np.array([counts[group] for group in asking.groups], np.int64)


def _only_held_out() -> "Filter":
    from qdrant_client.models import FieldCondition, Filter, MatchValue  # takes a second to import

    return Filter(must=[FieldCondition(key="split", match=MatchValue(value=HELD_OUT))])


def _without_group(group: str, condition: "Filter | None") -> "Filter":
    from qdrant_client.models import FieldCondition, Filter, MatchValue  # takes a second to import

    unwanted = FieldCondition(key="group", match=MatchValue(value=group))
    return Filter(must=[condition] if condition else None, must_not=[unwanted])


def _with_vector(modality: Modality, condition: "Filter | None") -> "Filter":
    from qdrant_client.models import Filter, HasVectorCondition  # takes a second to import

    return Filter(must=[HasVectorCondition(has_vector=modality), *([condition] if condition else [])])
