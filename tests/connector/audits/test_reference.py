"""The truth of an audit: brute force in float64, but page by page, and never a matrix of all pairs."""

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.metrics import Distance, Guarantee, Lowering, Metric, Rescored, parse
from alignment.retrieval.kinds import HELD_OUT
from alignment.retrieval.ranks import RelevantRanks, top_k
from alignment.vectors import FloatArray, l2_normalize
from connector.audits.galleries import NOT_IN_GALLERY, BenchmarkFolds, Everything, Gallery, HeldOut, QuerySet
from connector.audits.point_scan import Scan, in_one
from connector.audits.reference import FEW, NATIVE, Truth, own_scores, truth, vectors_of
from connector.releases.aligned_payload import ALIGNED, packed
from connector.stores.points import Record
from tests.support.world import ALL, LATENT, SOME, alignment, points_of, rows, scores

Mask = npt.NDArray[np.bool_]
GALLERIES = ["everything", "held-out", "folds"]
N, M, PARTS = 23, 61, 3
DEPTH = 7


@dataclass
class Case:
    """Queries and points of a metric: what is asked, and what a store gives back.

    Attributes:
        kinds: number of the distinct vector that each point holds (m,): equal ones are equal to the last bit.
        distinct: those vectors (t, d).
        placed: part of the gallery of each point (m,).
        without: numbers of points that score NaN.
    """

    metric: Metric
    lowering: Lowering
    asked: QuerySet
    queries: FloatArray
    distinct: FloatArray
    kinds: npt.NDArray[np.int64]
    groups: Sequence[str]
    placed: npt.NDArray[np.int64]
    records: list[Record]
    without: Sequence[int] = ()

    def without_score(self, numbers: Sequence[int]) -> "Case":
        """The case with points whose stored vectors are no numbers."""
        records = list(self.records)
        for number in numbers:
            records[number] = records[number]._replace(vector=np.full(self.lowering.dim, np.nan, np.float32))
        return replace(self, records=records, without=numbers)

    def pages(self, size: int = 1000) -> Callable[[], Iterator[list[Record]]]:
        return lambda: (self.records[start : start + size] for start in range(0, len(self.records), size))

    def relevant(self, size: int = 1000, missed: int = 0) -> Scan:
        """Pages of the points of the queries' groups, without the first `missed` of them."""
        groups = set(self.asked.rows.groups)
        relevant = [record for record in self.records if record.payload["group"] in groups][missed:]
        return in_one(replace(self, records=relevant).pages(size))

    def found(self, *, page: int = 1000, depth: int = DEPTH, **options: Any) -> Truth:
        return truth(self.lowering, self.asked, self.queries, depth, in_one(self.pages(page)), **options)

    @property
    def exact(self) -> npt.NDArray[np.float64]:
        """Scores (n, m) of the metric in float64; what shares nothing ties, but for the last digits."""
        found = scores(self.metric, self.queries, self.distinct)[:, self.kinds].round(12)
        found[:, list(self.without)] = np.nan
        return found

    @property
    def inside(self) -> Mask:
        """Which points each query searches (n, m)."""
        mask: Mask = self.asked.parts[:, None] == self.placed
        return mask

    def brute(self, inside: Mask | None = None) -> RelevantRanks:
        """Ranks one query after the other: what is no worse and not relevant stands before."""
        found: list[float] = []
        counts = []
        of_points = np.array(self.groups)
        for row, (score, group) in enumerate(zip(self.exact, self.asked.rows.groups, strict=True)):
            there = np.ones(len(score), bool) if inside is None else inside[row]
            relevant = there & (of_points == group)
            own, rivals = np.sort(np.nan_to_num(score[relevant], nan=-np.inf))[::-1], score[there & ~relevant]
            found += [place + (~(rivals < mine)).sum() for place, mine in enumerate(own, 1)]
            counts.append(len(own))
        return RelevantRanks(np.array(found, np.float64), np.array(counts))


def stored(lowering: Lowering, X: FloatArray) -> FloatArray:
    """What a store holds of aligned vectors (n, d)."""
    lowered = lowering.item(X).astype(np.float32)
    return l2_normalize(lowered) if lowering.distance is Distance.COSINE else lowered


def case(
    text: str,
    gallery: str = "everything",
    *,
    n: int = N,
    m: int = M,
    distinct: int | None = None,
    groups: Sequence[str] | None = None,
    asking: Sequence[str] | None = None,
    seed: int = 0,
) -> Case:
    """`n` queries and `m` points, of which `distinct` are different; several to a group, and some of no group asked."""
    rng = np.random.default_rng(seed)
    metric = alignment().metric(parse(text), items="image")
    lowering = metric.lower(LATENT)
    kinds = np.arange(m) if distinct is None else rng.integers(distinct, size=m)
    X = rng.standard_normal((m if distinct is None else distinct, LATENT)).astype(np.float32)
    Q = rng.standard_normal((n, LATENT)).astype(np.float32)
    its = list(groups) if groups else [f"g{number}" for number in rng.integers(n, size=m)]
    asks = list(asking) if asking else [f"g{number}" for number in rng.integers(n + 5, size=n)]
    ids, held = points_of(m), rng.random(m) < 0.5
    placed = {
        "everything": np.zeros(m, np.int64),
        "held-out": np.where(held, 0, NOT_IN_GALLERY),
        "folds": rng.integers(-1, PARTS, size=m),  # -1 is nowhere
    }[gallery]
    galleries: dict[str, Gallery] = {
        "everything": Everything(),
        "held-out": HeldOut(),
        "folds": BenchmarkFolds([[ids[i] for i in np.flatnonzero(placed == part)] for part in range(PARTS)]),
    }
    parts = rng.integers(galleries[gallery].parts(), size=n)
    vectors = stored(lowering, X)
    records = []
    for number, kind in enumerate(kinds):
        payload = {"group": its[number], "split": HELD_OUT if held[number] else "fit"}
        carried = isinstance(lowering, Rescored)
        payload |= {ALIGNED: packed(X[kind])} if carried else {}
        records.append(Record(ids[number], None if carried else vectors[kind], payload))
    asked = QuerySet(rows("text", Q, groups=asks), parts, galleries[gallery])
    return Case(metric, lowering, asked, Q, X, kinds, its, placed, records)


def same(found: RelevantRanks, expected: RelevantRanks) -> bool:
    return np.array_equal(found.counts, expected.counts) and np.array_equal(found.ranks, expected.ranks)


class TestEqualsBruteForce:
    @pytest.mark.parametrize("gallery", GALLERIES)
    @pytest.mark.parametrize("text", ALL)
    def test_every_rank_of_every_relevant_point(self, text: str, gallery: str) -> None:
        its = case(text, gallery)
        found, expected = its.found(), its.brute()
        assert same(found.whole, expected)
        assert same(found.gallery, its.brute(its.inside))
        assert found.sizes.tolist() == [(its.placed == part).sum() for part in range(its.asked.gallery.parts())]
        # Not by accident: some queries have several relevant points, some none, and what is first differs.
        assert {0, 1, 2} <= set(expected.counts.tolist())
        assert 1 < np.median(expected.ranks) < M
        if gallery != "everything":
            assert found.gallery.counts.sum() < found.whole.counts.sum()

    @pytest.mark.parametrize("text", ALL)
    def test_the_best_scores_are_those_of_top_k(self, text: str) -> None:
        its = case(text)
        found = its.found()
        _, best = top_k(its.queries.astype(np.float64), its.distinct.astype(np.float64), DEPTH, metric=its.metric)
        offset = its.lowering.offset(its.queries)
        if offset is not None and its.lowering.guarantee is Guarantee.EXACT:
            best = best - offset[:, None]
        assert found.best == pytest.approx(best, rel=1e-4, abs=1e-5)
        if its.lowering.guarantee is Guarantee.EXACT:
            queries, items = its.lowering.query(its.queries), stored(its.lowering, its.distinct)
            _, native = top_k(queries, items, DEPTH, metric=NATIVE[its.lowering.distance])
            assert found.best == pytest.approx(native, rel=1e-5, abs=1e-5)

    @pytest.mark.parametrize("text", SOME)
    def test_of_fewer_points_than_asked_for_the_rest_has_no_score(self, text: str) -> None:
        its = case(text, m=4)
        best = its.found(depth=6).best
        assert best.shape == (N, 6)
        assert np.isnan(best[:, 4:]).all()
        assert best[:, :4] == pytest.approx(-np.sort(-own_scores(its.lowering, its.queries, items_of(its)), axis=1))

    @pytest.mark.parametrize("gallery", GALLERIES)
    @pytest.mark.parametrize("text", SOME)
    def test_more_relevant_points_than_are_counted_one_by_one(self, text: str, gallery: str) -> None:
        names = [f"class {number}" for number in range(3)]
        rng = np.random.default_rng(5)
        its = case(
            text,
            gallery,
            m=200,
            groups=[names[k] for k in rng.integers(3, size=200)],
            asking=[names[k] for k in rng.integers(3, size=N)],
        )
        found = its.found(page=37)
        assert found.whole.counts.min() > 2 * FEW
        assert same(found.whole, its.brute())
        assert same(found.gallery, its.brute(its.inside))

    def test_vectors_that_are_asked_for_are_kept_as_the_store_has_them(self) -> None:
        for text in SOME:
            its = case(text)
            wanted = [record.id for record in its.records[5:50:9]]
            kept = its.found(page=8, keep={*wanted, "unknown"}).kept
            assert sorted(kept) == sorted(wanted)
            for number in range(5, 50, 9):
                assert kept[its.records[number].id].tolist() == items_of(its)[number].tolist()


def items_of(its: Case) -> FloatArray:
    return vectors_of(its.lowering, its.records, its.queries.shape[1])


class TestTies:
    @pytest.mark.parametrize("gallery", GALLERIES)
    @pytest.mark.parametrize("text", ALL)
    def test_equal_irrelevant_points_stand_first(self, text: str, gallery: str) -> None:
        its = case(text, gallery, distinct=9, seed=1)
        expected = its.brute()
        found = its.found(page=10, chunk_scores=50)
        assert same(found.whole, expected)
        assert same(found.gallery, its.brute(its.inside))
        relevant = np.array(its.asked.rows.groups)[:, None] == np.array(its.groups)
        tied = [np.isin(score[own], score[~own]).sum() for score, own in zip(its.exact, relevant, strict=True)]
        assert sum(tied) > N // 2  # of relevant points with a rival of the same score

    @pytest.mark.parametrize("text", ALL)
    @pytest.mark.parametrize("copies", [FEW, 4 * FEW])
    def test_where_all_points_are_alike_all_irrelevant_ones_come_first(self, text: str, copies: int) -> None:
        groups = ["right"] * copies + ["wrong"] * 10
        its = case(text, m=len(groups), distinct=1, groups=groups, asking=["right"] * 4, n=4)
        for page in (7, 1000):
            found = its.found(page=page)
            assert found.whole.ranks.tolist() == [11.0 + place for place in range(copies)] * 4


@pytest.mark.parametrize("gallery", GALLERIES)
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("text", ["cosine", "dot", "euclid", "manhattan"])
def test_a_point_without_a_score_never_flatters(text: str, few: bool, gallery: str) -> None:
    """No store takes such a vector. If one had it: first where it is not wanted, and last where it is."""
    names = [f"g{number}" for number in range(20 if few else 2)]
    rng, n = np.random.default_rng(3), 8
    its = case(
        text,
        gallery,
        m=120,
        groups=[str(name) for name in rng.choice(names, size=120)],
        asking=[str(name) for name in rng.choice(names, size=n)],
        n=n,
    )
    clean, broken = its.brute(its.inside), its.without_score(range(0, 120, 9))
    found, expected = broken.found(page=50), broken.brute(broken.inside)
    assert same(found.whole, broken.brute())
    assert same(found.gallery, expected)
    assert (expected.counts.max() > FEW) != few
    assert (expected.ranks >= clean.ranks).all()
    assert expected.ranks.sum() > clean.ranks.sum()
    assert np.isfinite(found.best).all()


class TestPages:
    @pytest.mark.slow
    @given(st.integers(1, M + 1), st.integers(1, 2 * N * M), st.sampled_from(GALLERIES), st.sampled_from(SOME))
    def test_neither_pages_nor_chunks_change_a_rank(self, page: int, chunk: int, gallery: str, text: str) -> None:
        its = prepared(text, gallery)
        whole, found = its.found(), its.found(page=page, chunk_scores=chunk)
        assert same(found.whole, whole.whole)
        assert same(found.gallery, whole.gallery)
        assert found.sizes.tolist() == whole.sizes.tolist()
        assert found.best == pytest.approx(whole.best, rel=1e-5, abs=1e-6, nan_ok=True)

    @pytest.mark.parametrize("told", [False, True], ids=["alone", "with the points of the queries' groups"])
    def test_every_page_is_read_once_where_relevant_points_are_known_and_else_twice(self, told: bool) -> None:
        its, read = case("cosine"), []

        def pages() -> Iterator[list[Record]]:
            for page in its.pages(20)():
                read.append(len(page))
                yield page

        relevant = its.relevant() if told else None
        truth(its.lowering, its.asked, its.queries, DEPTH, in_one(pages), relevant=relevant)
        assert read == [20, 20, 20, 1] * (1 if told else 2)

    @given(st.sampled_from(GALLERIES), st.sampled_from(SOME), st.integers(1, M), st.integers(0, M))
    def test_what_is_said_to_be_relevant_changes_nothing_whether_it_is_complete_or_not(
        self, gallery: str, text: str, page: int, missed: int
    ) -> None:
        its = prepared(text, gallery)
        whole, found = its.found(), its.found(page=page, relevant=its.relevant(page, missed))
        assert same(found.whole, whole.whole)
        assert same(found.gallery, whole.gallery)
        assert found.sizes.tolist() == whole.sizes.tolist()
        assert found.largest == pytest.approx(whole.largest)
        assert (found.census.items, found.census.seen) == (whole.census.items, whole.census.seen)

    @pytest.mark.slow
    @pytest.mark.parametrize("text", ["cosine", "chi2"])
    def test_memory_is_that_of_a_page_and_a_chunk(self, text: str) -> None:
        """Of ten times as many points it takes no more, and never what all scores would."""
        n, chunk, page, peaks = 1500, 1 << 17, 500, []
        for m in (2_000, 20_000):
            its = case(text, n=n, m=page, groups=[""] * page, asking=[f"{row}" for row in range(n)])

            def pages(its: Case = its, m: int = m) -> Iterator[list[Record]]:
                for start in range(0, m, page):
                    yield [
                        r._replace(payload={**r.payload, "group": f"{start + i}"}) for i, r in enumerate(its.records)
                    ]

            tracemalloc.start()
            try:
                found = truth(its.lowering, its.asked, its.queries, 11, in_one(pages), chunk_scores=chunk)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
            assert found.sizes.tolist() == [m]
            assert found.whole.counts.sum() == n
        assert peaks[1] < 1.1 * peaks[0]
        assert peaks[1] < n * 20_000 * 4 / 8


@cache
def prepared(text: str, gallery: str) -> Case:
    """A case with ties."""
    return case(text, gallery, distinct=40)
