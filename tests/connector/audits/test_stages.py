"""The stages of a search: exactly that which loses something is blamed, and a store may refuse to search exactly."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from alignment.metrics import Guarantee, parse
from alignment.metrics.divergences import CertifiedLowering
from alignment.metrics.learned import CosineCandidates, MixtureLowering
from alignment.modality import DIRECTIONS
from alignment.retrieval.ranks import RelevantRanks
from connector.audits.requirements import Requirement
from connector.audits.result import FAITHFUL, Audit
from connector.audits.stage_summary import StageSummary
from connector.audits.stages import (
    INDEX,
    LOWERING,
    QUANTIZATION,
    REFERENCE,
    RESCORING,
    ROUNDING,
    Latency,
    RateLimiter,
    Stage,
    StageResults,
    StageRunner,
    stage_and_stratum,
    stages,
)
from connector.errors import ExactRefusedError, StoreError, StoreUnavailableError
from connector.search.candidates import CandidateSearch
from connector.stores.edge import EdgeStore
from connector.stores.points import Hit
from tests.support.slow import slow_unless
from tests.support.world import (
    ALL,
    LATENT,
    SOME,
    Calls,
    Losing,
    World,
    alignment,
    audit,
    embedded,
    latent,
    opened,
    pairs,
    rows,
    several,
    steady,
    the_set,
)

N = 18  # too few for a gap, which takes longest
EXACT = "exact search within it"
WHOLE: dict[str, Any] = {"queries": "all", "gallery": "all"}
SOME_NUMBERS = json.dumps({"must": [{"key": "number", "range": {"lt": N // 2}}]})


class TestStages:
    @pytest.mark.parametrize("text", ALL)
    def test_they_follow_from_the_guarantee_and_the_quantization(self, text: str) -> None:
        guarantee = alignment().metric(parse(text), items="image").lower(LATENT).guarantee
        plain = [stage.name for stage in stages(guarantee, quantized=False)]
        assert plain == ([LOWERING, INDEX] if guarantee is Guarantee.EXACT else [LOWERING, RESCORING, INDEX])
        assert [stage.name for stage in stages(guarantee, quantized=True)] == [*plain, QUANTIZATION]

    @pytest.mark.parametrize("quantized", [False, True])
    @pytest.mark.parametrize("guarantee", Guarantee)
    def test_each_is_compared_with_one_before_it_and_differs_from_it_in_one_thing(
        self, guarantee: Guarantee, quantized: bool
    ) -> None:
        found = stages(guarantee, quantized=quantized)
        known = {REFERENCE: Stage(REFERENCE, "", exact=True)}
        for stage in found:
            before = known[stage.against]
            known[stage.name] = stage
            if stage.name in (INDEX, QUANTIZATION):
                changed = [
                    name for name in ("exact", "quantized", "rescored") if getattr(stage, name) != getattr(before, name)
                ]
                rescores = guarantee is Guarantee.EXACT and stage.name == INDEX  # nothing to rescore: it means nothing
                assert changed == (
                    ["exact", "rescored"] if rescores else ["exact" if stage.name == INDEX else "quantized"]
                )
        assert [stage.exact for stage in found] == [stage.name in (LOWERING, RESCORING) for stage in found]
        # The last is what production asks for: a walk, quantized where the release is, and rescored.
        assert (found[-1].exact, found[-1].quantized, found[-1].rescored) == (False, quantized, True)


class Noted(RateLimiter):
    """Waits for nobody, and notes how many were asked at once."""

    def __init__(self, asked: list[int]):
        super().__init__(None)
        self.asked = asked

    def __call__(self, queries: int) -> None:
        self.asked.append(queries)


def answers(scores: Any) -> StageResults:
    found = np.array(scores, np.float64)
    n = len(found)
    return StageResults(
        RelevantRanks(np.empty(0), np.zeros(n, np.int64)), found, np.full(n, np.nan), np.zeros(n), Counter()
    )


def fidelity(found: Sequence[float], best: Sequence[float], k: int) -> float:
    (share,) = answers([found]).fidelity(np.array([best], np.float64), k, lambda scores: scores)
    return float(share)


NAN = math.nan


class TestFidelity:
    @pytest.mark.parametrize(
        ("found", "best", "k", "share"),
        [
            ([5, 4, 3], [5, 4, 3], 3, 1.0),
            ([4, 3, 2], [5, 4, 3], 3, 2 / 3),
            ([4, 3, 2], [5, 4, 3], 1, 0.0),
            ([3, 4, 5], [5, 4, 3], 2, 0.5),  # in the order of the list, not of the scores
            ([5, 4, NAN], [5, 4, 4], 2, 1.0),  # ties: whichever of them
            ([4, 4, 4], [5, 4, 4], 3, 1.0),
            ([3, 3, 3], [5, 4, 4], 3, 0.0),
            ([6, 6, 6], [5, 4, 4], 2, 1.0),  # better than everything is no more than everything
            ([5, NAN, NAN], [5, 4, NAN], 3, 0.5),  # short lists: of two that there are, one
            ([5, 4, NAN], [5, 4, NAN], 3, 1.0),
            ([NAN, NAN, NAN], [5, 4, 3], 3, 0.0),  # nothing found
            ([NAN, NAN, NAN], [NAN, NAN, NAN], 3, 1.0),  # nothing to find
            ([1, NAN, NAN], [NAN, NAN, NAN], 1, 1.0),
            ([5, 4, 3], [5, 4, 3], 30, 1.0),  # fewer than k
            ([-1, -2, -3], [-1, -2, -2.5], 3, 2 / 3),  # distances
            ([0, 0, 0], [0, 0, 0], 3, 1.0),
        ],
    )
    def test_of_one_query(self, found: list[float], best: list[float], k: int, share: float) -> None:
        assert fidelity(found, best, k) == pytest.approx(share)

    def test_scores_that_differ_by_rounding_are_one_score(self) -> None:
        for off, share in ((ROUNDING / 2, 1.0), (ROUNDING * 2, 0.5)):
            assert fidelity([1.0, 0.5 - off], [1.0, 0.5], 2) == share
            assert fidelity([1000.0, 500 - 1000 * off], [1000.0, 500.0], 2) == share

    def test_what_the_metric_calls_tied_is_tied(self) -> None:
        best = np.array([[1.0, 0.5]])
        assert answers([[1.0, 0.4]]).fidelity(best, 2, lambda scores: scores - 0.2).tolist() == [1.0]
        assert answers([[1.0, 0.4]]).fidelity(best, 2, lambda scores: scores - 0.05).tolist() == [0.5]

    @pytest.mark.slow
    @given(
        st.integers(1, 6).flatmap(
            lambda depth: st.tuples(
                arrays.arrays(np.float64, (5, depth), elements=st.integers(0, 9).map(float)),
                arrays.arrays(np.float64, (5, depth), elements=st.integers(0, 9).map(float)),
                arrays.arrays(np.bool_, (5, depth)),
            )
        ),
        st.integers(1, 8),
    )
    def test_it_is_the_share_of_the_first_k_as_counted_by_hand(self, given: Any, k: int) -> None:
        found, best, gone = given
        best = np.where(np.sort(gone, axis=1), NAN, -np.sort(-best, axis=1))
        shares = answers(found).fidelity(best, k, lambda scores: scores)
        for mine, got, wanted in zip(shares, found, best, strict=True):
            expected = [score for score in wanted[:k] if not math.isnan(score)]
            good = sum(score >= expected[-1] for score in got[:k]) if expected else 0
            assert mine == (min(good, len(expected)) / len(expected) if expected else 1.0)

    def test_the_best_come_first_and_those_without_a_score_last(self) -> None:
        assert np.array_equal(
            answers([[1.0, NAN, 3.0], [NAN, NAN, -2.0]]).best, [[3.0, 1.0, NAN], [-2.0, NAN, NAN]], equal_nan=True
        )


class TestLatency:
    def test_percentiles_in_milliseconds(self) -> None:
        found = Latency.of([number / 1000 for number in range(101)])
        assert (found.p50, found.p95, found.p99) == pytest.approx((50, 95, 99))
        assert found.queries == 101
        assert Latency.of([0.25]) == Latency(250.0, 250.0, 250.0, 1)

    @pytest.mark.parametrize("n", [1, 2, 3, 10])
    def test_single_queries_are_timed_after_a_few_that_are_not(
        self, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with losing(tmp_path, lambda how: False) as world:
            world.push(world.set("s", *pairs(12)))
            paced: list[int] = []
            asker = StageRunner(CandidateSearch(opened(world), world.store), "image", (1, 4), 4, 100, 1.0, Noted(paced))
            searches = Calls(monkeypatch, world.store, "search")
            found = asker.latency(Stage(INDEX, REFERENCE), np.eye(LATENT, dtype=np.float32)[np.arange(n) % LATENT])
        assert found.queries == n
        assert 0 < found.p50 <= found.p95 <= found.p99
        asked = [len(queries) for _, _, queries, _ in searches.arguments]
        assert asked == paced == [1] * (n + min(n, 3))


@pytest.fixture(autouse=True)
def few_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connector.audits.query_run.TIMED_QUERIES", 3)


@contextmanager
def losing(path: Path, loses: Callable[[Mapping[str, Any]], bool], **how: Any) -> Iterator[World]:
    """A world whose store loses the best hits of some searches."""
    with Losing(path / "qdrant", loses, **how) as store:
        world = World(path, store)
        world.alignment()
        with world.provenance:
            yield world


def blamed(found: Audit) -> set[tuple[str, str]]:
    return {(stage.direction, stage.name) for stage in found.blamed}


def in_both(*names: str) -> set[tuple[str, str]]:
    return {(direction, name) for direction in DIRECTIONS for name in names}


def of(found: Audit, name: str) -> list[StageSummary]:
    """A stage, in both directions."""
    its = [stage for stage in found.stages if (stage.name, stage.kind) == (name, "")]
    assert [stage.direction for stage in its] == list(DIRECTIONS)
    return its


def is_walk(how: Mapping[str, Any]) -> bool:
    return not how["exact"]


def is_plain(how: Mapping[str, Any]) -> bool:
    return is_walk(how) and how.get("filter") is None


def is_filtered(how: Mapping[str, Any]) -> bool:
    """By somebody's own filter, not by what an audit adds to look at a gallery or behind ties."""
    return is_walk(how) and "number" in str(how.get("filter"))


ONE_LOSES: list[tuple[str, str, str | None, Callable[[Mapping[str, Any]], bool], str | None]] = [
    # metric, quantization, what loses, the stage to blame
    ("nothing", "cosine", None, lambda how: False, None),
    ("nothing of a quantized one", "cosine", "scalar", lambda how: False, None),
    ("exact search", "cosine", None, lambda how: how["exact"] and how.get("filter") is None, LOWERING),
    ("the graph", "cosine", None, is_plain, INDEX),
    ("the graph of a distance", "euclid", None, is_plain, INDEX),
    ("the graph of a correction", "dot+nnn", None, is_plain, INDEX),
    ("the graph below quantized vectors", "cosine", "scalar", is_plain, INDEX),
    ("quantized vectors", "cosine", "scalar", lambda how: is_plain(how) and how["quantized"], QUANTIZATION),
    ("a filter", "cosine", None, is_filtered, "filter:some"),
    ("a filter of a quantized one", "cosine", "scalar", is_filtered, "filter:some"),
]


class TestBlame:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("metric", "quantization", "loses", "stage"), [one[1:] for one in ONE_LOSES], ids=[one[0] for one in ONE_LOSES]
    )
    def test_the_stage_that_loses_is_blamed_and_no_other(
        self, tmp_path: Path, metric: str, quantization: str | None, loses: Any, stage: str | None
    ) -> None:
        layout = {"quantization": quantization} if quantization else {}
        with losing(tmp_path, loses) as world:
            world.push(world.set("s", *pairs(N)), metrics=[metric], **layout)
            found = audit(
                opened(world, metric), world.store, the_set(world), ks=(1, 5), filters={"some": SOME_NUMBERS}, **WHOLE
            )
        assert blamed(found) == (in_both(stage) if stage else set())
        says = [sentence for sentence in found.in_words if " of the first 5 of " in sentence]
        about = ["", "of queries about known items, "]
        assert [sentence.partition(" finds ")[0] for sentence in says] == (
            [f"{direction}: {asked}{stage}" for direction in DIRECTIONS for asked in about] if stage else []
        )
        assert ("No stage of the search loses more than it may." in found.in_words) == (stage is None)
        for its in of(found, stage) if stage else ():
            assert (
                its.against
                == {LOWERING: REFERENCE, INDEX: LOWERING, QUANTIZATION: INDEX, "filter:some": EXACT}[str(stage)]
            )
            # Of each list the best is gone, and without noise that is the right one.
            assert its.fidelity[5].mean.value == pytest.approx(0.8)
            assert its.fidelity[1].mean.value == its.fidelity[1].least == 0.0
            assert its.fidelity[5].below90 == its.fidelity[1].below90 == 1.0
            assert its.lost is not None
            assert (its.lost.value, its.recall[5].value) == (1.0, 0.0)
            finds = f"{its.direction}: {stage} finds 80.0% of the first 5 of {its.against}"
            assert f"{finds}, which costs 1.000 of Recall@5." in says

    @pytest.mark.slow
    @pytest.mark.parametrize(("loses", "stage"), [(is_plain, INDEX), (is_filtered, "filter:some")])
    def test_so_it_is_where_candidates_are_rescored(self, tmp_path: Path, loses: Any, stage: str) -> None:
        with losing(tmp_path, loses, lost=3) as world:
            world.push(world.set("s", *pairs(N)), metrics=["chi2"])
            found = audit(
                opened(world, "chi2"), world.store, the_set(world), ks=(1, 5), filters={"some": SOME_NUMBERS}, **WHOLE
            )
        assert blamed(found) == in_both(stage)

    @pytest.mark.slow
    @pytest.mark.parametrize("metric", ["chi2", "mol", "mlp"])
    def test_candidates_that_are_too_few_are_the_loss_of_rescoring(
        self, tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for lowering in (CertifiedLowering, MixtureLowering, CosineCandidates):
            for name in ("page", "budget"):
                monkeypatch.setattr(lowering, name, 11)
        with losing(tmp_path, lambda how: False) as world:
            world.push(world.set("s", *several(40)), metrics=[metric])
            found = audit(opened(world, metric), world.store, the_set(world), ks=(1, 10), **WHOLE)
        for stage, own in zip(of(found, RESCORING), of(found, LOWERING), strict=True):
            few = stage.fidelity[10].mean.value < FAITHFUL
            assert ((stage.direction, RESCORING) in blamed(found)) == few
            # Eleven are fetched, and the best ten of them are at least as good as the first ten.
            assert own.fidelity[10].mean.value <= stage.fidelity[10].mean.value < 1 or metric == "mol"
        assert blamed(found) <= in_both(RESCORING)
        assert (blamed(found) != set()) == (metric != "mol")  # Qdrant's order is nearly its own
        assert [stage.fidelity[10].mean.value for stage in of(found, INDEX)] == [1.0, 1.0]

    @pytest.mark.slow
    def test_an_order_that_rescoring_mends_is_nobodys_loss(self, tmp_path: Path) -> None:
        with losing(tmp_path, lambda how: False) as world:
            world.push(world.set("s", *several(40)), metrics=["mlp"])
            found = audit(opened(world, "mlp"), world.store, the_set(world), ks=(1, 10), **WHOLE)
        assert all(stage.fidelity[10].mean.value < FAITHFUL for stage in of(found, LOWERING))
        assert all(stage.fidelity[10].least == 1.0 for stage in of(found, RESCORING))
        assert blamed(found) == set()

    @pytest.mark.slow
    def test_a_loss_of_recall_is_blamed_however_faithful_the_rest_is(self, tmp_path: Path) -> None:
        """One hit of fifty is little, but it is the one."""
        with losing(tmp_path, is_walk) as world:
            world.push(world.set("s", *pairs(60)))
            found = audit(opened(world), world.store, the_set(world), ks=(50,), **WHOLE)
        assert blamed(found) == in_both(INDEX)
        for stage in of(found, INDEX):
            assert stage.fidelity[50].mean.value == pytest.approx(0.98)
            assert stage.fidelity[50].mean.value > FAITHFUL

    def test_a_loss_that_may_be_chance_is_told_and_not_blamed(self, tmp_path: Path) -> None:
        with losing(tmp_path, is_walk, each=1000) as world:
            world.push(world.set("s", *pairs(N)))
            assert isinstance(world.store, Losing)
            world.store.asked = -1  # the audit first tries what the store answers; the query after that loses
            found = audit(opened(world), world.store, the_set(world), ks=(10,), **WHOLE)
        (stage, _) = of(found, INDEX)
        assert stage.lost is not None
        assert stage.lost.value == pytest.approx(1 / N)
        assert stage.lost.low == 0.0
        assert blamed(found) == set()


class Strict(EdgeStore):
    """A store that refuses to search exactly, as a server in strict mode does."""

    error: type[StoreError] = ExactRefusedError

    def search(self, name: str, vector_name: str, queries: Any, k: int, **options: Any) -> list[list[Hit]]:
        if options.get("exact"):
            raise self.error("Exact search is disabled by strict mode")
        return super().search(name, vector_name, queries, k, **options)


class Away(Strict):
    error = StoreUnavailableError


class Refusing(EdgeStore):
    """A store that refuses every search but an exact one."""

    def search(self, name: str, vector_name: str, queries: Any, k: int, **options: Any) -> list[list[Hit]]:
        if not options.get("exact"):
            raise StoreError("hnsw_ef is beyond the limit of strict mode")
        return super().search(name, vector_name, queries, k, **options)


class TestRefused:
    @contextmanager
    def world(
        self, path: Path, parts: Sequence[Any], kind: Callable[[Path], EdgeStore], **pushed: Any
    ) -> Iterator[tuple[World, Audit]]:
        """A world whose store is exchanged for a strict one, and what its audit found before."""
        with losing(path, lambda how: False) as world:
            world.push(world.set("s", *parts), **pushed)
            metric = pushed.get("metrics", ["cosine"])[0]
            before = audit(opened(world, metric), world.store, the_set(world), **WHOLE)
            world.store.close()
            with kind(path / "qdrant") as world.store:
                yield world, before

    @pytest.mark.parametrize(
        ("metric", "quantization"),
        slow_unless(
            lambda case: case[0] in ("cosine", "mol"), [*((metric, None) for metric in SOME), ("cosine", "scalar")]
        ),
    )
    def test_the_audit_goes_on_and_compares_with_the_reference(
        self, tmp_path: Path, metric: str, quantization: str | None
    ) -> None:
        layout = {"quantization": quantization} if quantization else {}
        with self.world(tmp_path, several(N), Strict, metrics=[metric], **layout) as (world, before):
            found = audit(opened(world, metric), world.store, the_set(world), filters={"some": SOME_NUMBERS}, **WHOLE)
        refused = [LOWERING] if found.release and found.release.guarantee is Guarantee.EXACT else [LOWERING, RESCORING]
        why = "Exact search is disabled by strict mode"
        for name in refused:
            assert [(s.why_not, s.recall, s.fidelity, s.lost, s.latency) for s in of(found, name)] == [
                (why, {}, {}, None, None)
            ] * 2
        for stage in of(found, "filter:some"):
            assert (stage.why_not, stage.against) == ("exact search is refused", EXACT)
        assert [stage.against for stage in of(found, INDEX)] == [REFERENCE] * 2
        if quantization:
            assert [stage.against for stage in of(found, QUANTIZATION)] == [INDEX] * 2
        assert f"The store refuses exact search, so no stage of it was measured: {why}" in found.findings
        assert blamed(found) == set()
        # Everything else is what an audit finds where nothing is refused.
        assert steady(found) == [m for m in steady(before) if stage_and_stratum(m.part)[0] not in refused]

    def test_what_the_index_loses_is_still_blamed(self, tmp_path: Path) -> None:
        class Both(Strict):
            def search(self, *args: Any, **options: Any) -> list[list[Hit]]:
                return [hits[1:] for hits in super().search(*args, **options)]

        with self.world(tmp_path, pairs(N), Both) as (world, _):
            found = audit(opened(world), world.store, the_set(world), ks=(10,), **WHOLE)
        assert blamed(found) == in_both(INDEX)
        assert (
            "text-to-image: index finds 90.0% of the first 10 of reference, which costs 1.000 of Recall@10."
            in found.in_words
        )

    @pytest.mark.slow
    def test_ties_beyond_a_list_are_counted_along_the_graph(self, tmp_path: Path) -> None:
        points = np.repeat(latent(3), 20, axis=0)
        groups = [f"{number}" for number in range(3) for _ in range(20)]
        parts = [
            rows("image", embedded("image", points), groups=groups),
            rows("text", embedded("text", points), groups=groups),
        ]
        with self.world(tmp_path, parts, Strict) as (world, before):
            found = audit(opened(world), world.store, the_set(world), **WHOLE)
        for direction in DIRECTIONS:
            assert found.measure(direction, "recall@1").value == before.measure(direction, "recall@1").value == 1.0

    def test_a_requirement_on_what_is_refused_is_not_met(self, tmp_path: Path) -> None:
        required = [Requirement.parse("lowering:recall@10>=0"), Requirement.parse("index:recall@10>=0")]
        with self.world(tmp_path, pairs(N), Strict) as (world, _):
            found = audit(opened(world), world.store, the_set(world), requirements=required, **WHOLE)
        assert found.verdict == "failed"
        assert [(f.requirement.text, f.why) for f in found.failures] == [
            ("lowering:recall@10>=0", "it was not measured in this audit")
        ]

    @pytest.mark.parametrize("kind", [Away, Refusing])
    def test_a_store_that_is_away_or_refuses_the_walk_ends_the_audit(
        self, tmp_path: Path, kind: type[EdgeStore]
    ) -> None:
        with self.world(tmp_path, pairs(N), kind) as (world, _):
            error = StoreUnavailableError if kind is Away else StoreError
            with pytest.raises(error, match="strict mode"):
                audit(opened(world), world.store, the_set(world), **WHOLE)
