"""Recall@K audits of a live release, through its store, against the labels of held-out pairs.

Three things are measured for each direction: what production gets (the index as it serves), what exact search over
the same gallery gives (mean reciprocal rank and median rank come from it), and how much of the exact answer the index
finds over the whole collection, without a filter. Recall@K is the share of queries with a relevant item among the
first K; relevant means of the same group. Among equal scores the irrelevant item counts as the better one, so ties
never flatter.
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
from alignment.recall import (
    Estimate,
    Ranks,
    bootstrap_mean,
    bootstrap_median,
    chance_recall_at,
    group_codes,
)
from alignment.vectors import FloatArray, faults
from connector.errors import MismatchError, RequirementError
from connector.models import MeasureRow
from connector.progress import Advance
from connector.provenance import Provenance, Run
from connector.push import HELD_OUT, point_id
from connector.release import Release, require_encoder
from connector.store import CollectionInfo, Hit, Store

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
    for requirement in requirements:
        requirement.require_known([name.format(k=k) for name in MEASURES for k in ks])
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
    for direction, (asking, asked) in DIRECTIONS.items():
        size = store.count(release.name, filter=_with_vector(asked, condition))
        result.gallery[asked] = size
        probe = _Probe(release, store, asked, condition, ks, depth, size)
        rows = sides[asking]
        result.without_relevant[direction] = int((relevant[direction] == 0).sum())
        outcome = probe.ask(rows, advance)
        result.measures.extend(
            _measures(direction, outcome, rows.groups, relevant=relevant[direction], gallery=size, ks=ks, seed=seed)
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
            "indexed": result.info.indexed,
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
    """Ranks of all queries through the index and through exact search, and the index's recall by query and k."""

    live: Ranks
    exact: Ranks
    fidelity: dict[int, npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class _Probe:
    """Asks one modality of a release."""

    release: Release
    store: Store
    asked: Modality
    condition: "Filter | None"
    ks: Sequence[int]
    depth: int
    size: int

    def ask(self, rows: Rows, advance: Advance) -> _Outcome:
        live, exact = [], []
        fidelity: dict[int, list[float]] = {k: [] for k in self.ks}
        # One more than the longest list shows whether a tie goes on beyond its end. Production asks for k at a time;
        # asking for many more would make the index look better than it serves.
        shallow = self.ks[-1] + 1
        deep = max(shallow, self.depth)
        for groups, vectors in _batches(rows):
            queries = self.release.lowering.query(self.release.alignment.project(rows.modality, vectors))
            served = self._search(queries, shallow, self.condition, exact=False)
            truth = self._search(queries, deep, self.condition, exact=True)
            for query, group, got, best in zip(queries, groups, served, truth, strict=True):
                live.append(self._rank(query, group, got, shallow))
                exact.append(self._rank(query, group, best, deep))
            if self.condition is not None:
                # Qdrant searches a small filtered part exhaustively; what the index finds shows without a filter.
                served = self._search(queries, shallow, None, exact=False)
                truth = self._search(queries, shallow, None, exact=True)
            for got, best in zip(served, truth, strict=True):
                for k in self.ks:
                    fidelity[k].append(self._fidelity(got, best, k))
            advance(len(groups))
        return _Outcome(np.array(live), np.array(exact), {k: np.array(v) for k, v in fidelity.items()})

    def _search(
        self, queries: npt.NDArray[np.floating], k: int, condition: "Filter | None", *, exact: bool
    ) -> list[list[Hit]]:
        return self.store.search(
            self.release.name, self.asked, queries, k, filter=condition, exact=exact, with_payload=["group"]
        )

    def _rank(self, query: npt.NDArray[np.floating], group: str, hits: Sequence[Hit], limit: int) -> float:
        """Rank the best relevant hit; irrelevant ones of the same score stand before it."""
        best = next((hit.raw_score for hit in hits if hit.payload["group"] == group), None)
        if best is None:
            return np.inf
        if hits[-1].raw_score == best and len(hits) == limit < self.size:
            # The tie may go on beyond the list. How many of it are irrelevant, a list of nothing else says.
            (hits,) = self._search(query[None], limit, _without_group(group, self.condition), exact=True)
        score = self.release.lowering.score
        before = [hit for hit in hits if score(hit.raw_score) >= score(best) and hit.payload["group"] != group]
        return len(before) + 1.0 if len(before) < limit else np.inf

    def _fidelity(self, got: Sequence[Hit], best: Sequence[Hit], k: int) -> float:
        """Share of the exact top k that the index found; a hit as good as the k-th counts, whatever its id."""
        if not best:
            return 1.0
        score = self.release.lowering.score
        wanted = min(k, len(best))
        bar = score(best[wanted - 1].raw_score)
        return sum(1 for hit in got[:k] if score(hit.raw_score) >= bar) / wanted


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
    """Count for each query how many of its relevant items are in the gallery: (n,)."""
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


def _batches(rows: Rows) -> Iterator[tuple[list[str], FloatArray]]:
    for start in range(0, len(rows), BATCH_QUERIES):
        end = start + BATCH_QUERIES
        yield rows.groups[start:end], rows.vectors[start:end]


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
