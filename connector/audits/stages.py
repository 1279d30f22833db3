"""The stages of a search, each asked the same queries, so that what one loses shows against the one before it.

reference       the metric itself over the vectors read back: what encoders and projections can do
lowering        Qdrant's exact search in its own order: what it makes of the metric
rescoring       the same with candidates rescored by the metric, where its order is not Qdrant's
index           the graph, walked as production walks it, over the vectors themselves
quantization    the graph over quantized vectors with oversampling and rescoring, as it was laid out
filter:NAME     all of it within a filter, against exact search within that filter
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alignment.metrics import Guarantee, Rescored
from alignment.modality import Modality
from alignment.retrieval.ranks import IntArray, RelevantRanks
from alignment.vectors import FloatArray
from connector.audits.reference import floors_of, own_scores, sizes_of, vectors_of
from connector.errors import StoreError, StoreUnavailableError
from connector.search.candidates import CandidateSearch, RankedHits, ScoredHit

if TYPE_CHECKING:
    from qdrant_client.models import Filter

REFERENCE, LOWERING, RESCORING, INDEX, QUANTIZATION = "reference", "lowering", "rescoring", "index", "quantization"
STAGES = (REFERENCE, LOWERING, RESCORING, INDEX, QUANTIZATION)
FILTER = "filter:"
BATCH_QUERIES = 64
# Ids that the filter of a protocol names, in the requests of one batch.
IDS_AT_ONCE = 100_000
# Engines add float32 in other orders than the reference: nearer scores, as a share of the best, are one score.
ROUNDING = 1e-5
TIMED_QUERIES = 100

Scores = npt.NDArray[np.floating]


def is_stage(part: str) -> bool:
    """Return whether a part of an audit is a stage of the search; the others are strata of the queries."""
    return part in STAGES or part.startswith(FILTER)


@dataclass(slots=True)
class RateLimiter:
    """Lets at most `rate` queries a second pass."""

    rate: float | None
    _next: float = 0.0

    def __call__(self, queries: int) -> None:
        """Wait until so many may pass."""
        if self.rate is None:
            return
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = max(self._next, time.monotonic()) + queries / self.rate

    @property
    def together(self) -> int:
        """How many may pass at once: those of a tenth of a second."""
        return BATCH_QUERIES if self.rate is None else max(1, int(self.rate / 10))


@dataclass(frozen=True, slots=True)
class Latency:
    """How long searches take that are asked one at a time, in milliseconds, percentiles of `queries` of them."""

    p50: float
    p95: float
    p99: float
    queries: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        """Sum up."""
        p50, p95, p99 = np.percentile(np.array(seconds) * 1000, [50, 95, 99])
        return cls(float(p50), float(p95), float(p99), len(seconds))


@dataclass(frozen=True, slots=True)
class Stage:
    """A way to search.

    Attributes:
        against: the stage whose answers it should give.
        exact: compare with every point.
        quantized: walk over quantized vectors.
        rescored: let the metric order candidates; else Qdrant's own order stands.
        condition: search within.
    """

    name: str
    against: str
    exact: bool = False
    quantized: bool = False
    rescored: bool = True
    condition: "Filter | None" = None


def stages(guarantee: Guarantee, *, quantized: bool) -> list[Stage]:
    """The stages of a release after the reference, in the order of a search; the last is what production gets."""
    exact = [Stage(LOWERING, REFERENCE, exact=True, rescored=False)]
    if guarantee is not Guarantee.EXACT:
        exact.append(Stage(RESCORING, REFERENCE, exact=True))
    walks = [Stage(INDEX, exact[-1].name)]
    if quantized:
        walks.append(Stage(QUANTIZATION, INDEX, quantized=True))
    return exact + walks


@dataclass(frozen=True, slots=True)
class StageResults:
    """What a stage gives n queries.

    Attributes:
        ranks: where relevant items stand; infinity for those beyond what was asked for.
        scores: of the metric, of what was found (n, depth), in the order of the answers; NaN where there is less. As
            in `connector.audits.reference.Truth`, without the offset of a lowering.
        certified: whether each answer is proved complete (n,); NaN where nothing can be proved.
        times: how often each point that was found is among the first k.
    """

    ranks: RelevantRanks
    scores: Scores
    certified: npt.NDArray[np.float64]
    times: Counter[str]

    def fidelity(self, best: Scores, k: int, tied: Callable[[Scores], Scores]) -> npt.NDArray[np.float64]:
        """Share of the first `k` of a list with the scores `best` (n, depth) that was found (n,).

        What scores as high as the k-th counts, whichever it is; of an empty list everything was found.
        """
        expected = (~np.isnan(best[:, :k])).sum(axis=1)  # (n,)
        last = best[np.arange(len(best)), np.maximum(expected, 1) - 1]
        size = np.abs(np.nan_to_num(best[:, :k])).max(axis=1)
        floors = np.fmin(tied(last), last - ROUNDING * size)
        found = (self.scores[:, :k] >= floors[:, None]).sum(axis=1)
        return np.where(expected > 0, np.minimum(found, expected) / np.maximum(expected, 1), 1.0)

    @property
    def best(self) -> Scores:
        """The scores, best first, NaN last."""
        ordered: Scores = -np.sort(-self.scores, axis=1)
        return ordered


def joined(parts: Sequence[tuple[IntArray, StageResults]]) -> StageResults:
    """Join what was asked with some of n queries each, by their numbers, into what all were given."""
    order = np.concatenate([chosen for chosen, _ in parts])  # (n,)
    places = np.argsort(order)
    counts = np.concatenate([its.ranks.counts for _, its in parts])
    ranks = np.concatenate([its.ranks.ranks for _, its in parts])
    lists = np.split(ranks, np.cumsum(counts)[:-1])
    return StageResults(
        RelevantRanks(np.concatenate([lists[place] for place in places]), counts[places]),
        np.concatenate([its.scores for _, its in parts])[places],
        np.concatenate([its.certified for _, its in parts])[places],
        sum((its.times for _, its in parts), Counter[str]()),
    )


class ExactRefusedError(StoreError):
    """The store refuses exact search, as a server in strict mode may; the message is its own."""


class StageRunner:
    """Asks a release for one modality.

    Args:
        finder: searches it.
        target: modality of the items.
        ks: lengths of the lists, ascending.
        k: of how many of the first of each list it is counted how often they are found.
        walk: how many candidates a search keeps along the graph.
        largest: size of the largest point, which scores round by.
        pace: called with the number of queries before they are asked.
        exact: whether the store answers exact searches; where not, ties that go on beyond a list are counted along the
            graph.
    """

    def __init__(
        self,
        finder: CandidateSearch,
        target: Modality,
        ks: Sequence[int],
        k: int,
        walk: int,
        largest: float,
        pace: RateLimiter,
        *,
        exact: bool = True,
    ):
        self.finder = finder
        self.target = target
        self.ks = ks
        self.k = k
        self.walk = walk
        self.largest = largest
        self.lowering = finder.release.lowerings[target]
        self.exact = exact
        self._pace = pace

    def ask(
        self,
        stage: Stage,
        aligned: FloatArray,
        groups: Sequence[str],
        relevant: IntArray,
        *,
        ids: int = 0,
        advance: Callable[[int], None] = lambda count: None,
    ) -> dict[int, StageResults]:
        """Ask with every query, for lists of each length.

        Production asks for k at a time. Where a search for more walks further than one for less, asking once for all
        would make the shorter lists look better than they are served, so each is asked for by itself.

        Args:
            stage: how.
            aligned: queries (n, d).
            groups: what is relevant to each of them.
            relevant: how many such points there are to find for each (n,).
            ids: how many points the stage's condition names.
            advance: called with the number of queries done since.

        Raises:
            ExactRefusedError: the stage is exact, and the store refuses that.
        """
        asked = (stage, aligned, groups, relevant, ids, advance)
        longest = self.ks[-1] + 1  # one more shows whether a tie goes on beyond the end
        if self._walks_alike(stage, longest):
            return dict.fromkeys(self.ks, self._answers(longest, *asked))
        return {k: self._answers(k, *asked) for k in self.ks}

    def _walks_alike(self, stage: Stage, longest: int) -> bool:
        """Whether a search for fewer finds what one for `longest` begins with."""
        if stage.exact:
            return True
        if isinstance(self.lowering, Rescored):  # which fetches more candidates than are asked for
            return 2 * longest <= self.lowering.page
        # A quantized search takes so many times what it is asked for.
        return not stage.quantized and longest <= self.walk

    def _answers(
        self,
        depth: int,
        stage: Stage,
        aligned: FloatArray,
        groups: Sequence[str],
        relevant: IntArray,
        ids: int,
        advance: Callable[[int], None],
    ) -> StageResults:
        found: list[float] = []
        times = Counter[str]()
        scores = np.full((len(aligned), depth), np.nan)
        certified = np.full(len(aligned), np.nan)
        step = max(1, min(BATCH_QUERIES, self._pace.together, IDS_AT_ONCE // max(1, ids)))
        for start in range(0, len(aligned), step):
            batch = aligned[start : start + step]
            answers, sizes = self._lists(stage, batch, depth), self._sizes(batch)
            for number, answer in enumerate(answers, start):
                size, its = sizes[number - start], int(relevant[number])
                found += self._ranks(stage, aligned[number], size, groups[number], answer, its, depth)
                scores[number, : len(answer.hits)] = answer.scores
                times.update(hit.id for hit in answer.hits[: self.k])
                if answer.certified is not None:
                    certified[number] = answer.certified
            advance(len(batch))
        return StageResults(RelevantRanks(np.array(found), relevant), scores, certified, times)

    def latency(self, stage: Stage, aligned: FloatArray) -> Latency:
        """Time single queries (n, d), the first few of them as a warm-up."""
        seconds = []
        for query in np.concatenate([aligned[:3], aligned]):
            self._pace(1)
            started = time.perf_counter()
            self._asked(stage, query[None], self.k)
            seconds.append(time.perf_counter() - started)
        return Latency.of(seconds[min(3, len(aligned)) :])

    def _lists(self, stage: Stage, queries: FloatArray, depth: int) -> "list[_List]":
        self._pace(len(queries))
        found = self._asked(stage, queries, depth)
        if self._is_own_order(stage) or self._is_coarse(stage):
            return self._worth(queries, found)
        if self.finder.release.guarantee is not Guarantee.EXACT:
            return [_List(each.hits, [hit.score for hit in each.hits], each.certified) for each in found]
        score = self.lowering.score
        return [_List(each.hits, [score(hit.raw_score) for hit in each.hits], None) for each in found]

    def _is_own_order(self, stage: Stage) -> bool:
        """Whether Qdrant's order is not that of the metric, and stands."""
        return not stage.rescored and self.finder.release.guarantee is not Guarantee.EXACT

    def _is_coarse(self, stage: Stage) -> bool:
        """Whether scores are those of quantized vectors."""
        release = self.finder.release
        return stage.quantized and not release.quantized_search["rescore"] and release.guarantee is Guarantee.EXACT

    def _asked(self, stage: Stage, queries: FloatArray, depth: int) -> list[RankedHits]:
        asked: dict[str, Any] = {
            "filter": stage.condition,
            "exact": stage.exact,
            "quantized": stage.quantized,
            "with_payload": ["group"],
        }
        finder, lowering = self.finder, self.lowering
        try:
            if self._is_own_order(stage):
                lowered = lowering.query(queries)
                lists = finder.store.search(finder.release.name, self.target, lowered, depth, ef=finder.ef, **asked)
                return [
                    RankedHits(
                        [ScoredHit(h.id, lowering.score(h.raw_score), h.raw_score, h.payload) for h in hits], None, 0
                    )
                    for hits in lists
                ]
            return finder.search(self.target, queries, depth, **asked)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            if stage.exact:
                raise ExactRefusedError(str(error)) from error
            raise

    def _worth(self, queries: FloatArray, found: Sequence[RankedHits]) -> "list[_List]":
        """Score what was found by the metric, from the vectors themselves: the order of the hits stays."""
        finder, exact = self.finder, self.finder.release.guarantee is Guarantee.EXACT
        ids = list({hit.id for each in found for hit in each.hits})
        records = finder.store.retrieve(finder.release.name, ids, vector_name=self.target if exact else None)
        read = vectors_of(self.lowering, records, queries.shape[1])
        vectors = dict(zip((record.id for record in records), read, strict=True))
        lists = []
        for query, each in zip(queries, found, strict=True):
            hits = [hit for hit in each.hits if hit.id in vectors]  # the others were deleted meanwhile
            items = np.stack([vectors[hit.id] for hit in hits]) if hits else np.empty((0, len(query)), np.float32)
            scores = own_scores(self.lowering, query[None], items)[0].tolist() if hits else []
            lists.append(_List(hits, scores, each.certified))
        return lists

    def _sizes(self, queries: FloatArray) -> Scores:
        """Sizes (n,) that scores of aligned queries round by; what rescores has a bound of its own."""
        if isinstance(self.lowering, Rescored):
            return np.zeros(len(queries))
        return sizes_of(self.lowering, self.lowering.query(queries))

    def _ranks(
        self, stage: Stage, query: FloatArray, size: float, group: str, answer: "_List", relevant: int, depth: int
    ) -> list[float]:
        """Rank the relevant hits, ascending; irrelevant ones of the same score stand before them."""
        hits = answer.hits
        its = np.array([hit.score for hit in hits if hit.payload["group"] == group])
        rivals = np.array([hit.score for hit in hits if hit.payload["group"] != group])
        # Equal items may come out apart: a projection rounds by where a row stands in its batch, and so does rescoring.
        floors = floors_of(self.lowering, its, np.full(1, size), np.full(1, self.largest))
        ends_tied = np.zeros(len(its), bool)  # the tie may go on beyond the list
        beyond: Scores = np.empty(0)
        if len(its) and len(hits) == depth:
            ends_tied = floors <= hits[-1].score
            if ends_tied.any() and not self._is_own_order(stage):
                beyond = self._beyond(stage, query, group, {hit.id for hit in hits}, depth)
        ranks = []
        for place, (own, floor) in enumerate(zip(its[:relevant], floors, strict=False)):
            before = int((rivals >= floor).sum())
            if ends_tied[place]:
                # What is better and was not found stands before it in another stage, not in this one.
                tied = int(((beyond >= floor) & (beyond <= own + (own - floor))).sum())
                before += depth if self._is_own_order(stage) else tied  # that order serves nobody
            ranks.append(before + place + 1.0 if before < depth else np.inf)
        return [*ranks, *[np.inf] * (relevant - len(ranks))]

    def _beyond(self, stage: Stage, query: FloatArray, group: str, known: set[str], depth: int) -> Scores:
        """Scores of irrelevant points that are not in the list, which a list of nothing else shows."""
        condition = _without_group(group, stage.condition)
        self._pace(1)
        (found,) = self.finder.search(
            self.target,
            query[None],
            depth,
            filter=condition,
            exact=self.exact and not self._is_coarse(stage),
            quantized=stage.quantized,
            with_payload=False,
        )
        return np.array([hit.score for hit in found.hits if hit.id not in known])


@dataclass(frozen=True, slots=True)
class _List:
    """What one query got: hits with the scores that they are ordered by, and the metric's own scores."""

    hits: list[ScoredHit]
    scores: list[float]
    certified: bool | None


def _without_group(group: str, condition: "Filter | None") -> "Filter":
    from qdrant_client.models import FieldCondition, Filter, MatchValue  # takes a second to import

    unwanted = FieldCondition(key="group", match=MatchValue(value=group))
    return Filter(must=[condition] if condition else None, must_not=[unwanted])
