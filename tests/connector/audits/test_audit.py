"""Audits: every number equals the reference on the vectors that the store really holds, and nothing is flattered."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import skew
from sqlalchemy import select

from alignment.metrics import Guarantee, Perceptron
from alignment.metrics.divergences import CertifiedLowering
from alignment.metrics.learned import CosineCandidates, MixtureLowering
from alignment.modality import DIRECTIONS, MODALITIES, Modality
from alignment.retrieval import measures
from alignment.retrieval.bootstrap import bootstrap_mean
from alignment.retrieval.ranks import (
    RelevantRanks,
    chance_recall_at,
    group_codes,
    recall_at,
    relevant_ranks,
)
from alignment.sets.cards import EncoderCard
from connector.audits import kind_queries, seen_unseen
from connector.audits import stages as staged
from connector.audits.captions import CAPTIONED, PARAPHRASED, UNCAPTIONED
from connector.audits.measures import MEASURES
from connector.audits.recording import record
from connector.audits.requirements import Requirement
from connector.audits.result import Audit
from connector.errors import MismatchError, RequirementError
from connector.provenance.tables import AuditRow, MeasureRow
from connector.releases.points import point_id
from connector.releases.release import Release
from connector.search.candidates import CandidateSearch, RankedHits
from connector.stores.points import Points
from tests.support.slow import slow_unless
from tests.support.world import (
    ALL,
    DIMS,
    LATENT,
    SOME,
    Calls,
    Losing,
    World,
    audit,
    cards,
    embedded,
    latent,
    opened,
    opened_world,
    pairs,
    rows,
    scores,
    several,
    steady,
    the_set,
    vectors_of,
)

N = 48
RESCORED = ["chi2", "js", "mol", "mlp"]
# Metric, queries and gallery: of every kind of metric and of every scope one.
QUICK = [
    ("cosine", "all", "held-out"),
    ("cosine", "held-out", "held-out"),
    ("w1", "all", "held-out"),
    ("mol", "all", "all"),
    ("chi2", "held-out", "all"),
]


# Over the engine alone: the client's imitation of a server has no index, and its scores differ from call to call.
@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world with releases under every metric that no test changes."""
    with opened_world("edge", tmp_path_factory.mktemp("world")) as opened:
        opened.alignment()
        opened.push(opened.set("s", *several(N)), metrics=ALL)
        yield opened


@pytest.fixture(scope="module")
def plain(served: World) -> Audit:
    """An audit that requires nothing."""
    return audit(opened(served), served.store, the_set(served), ks=(5,))


def held(release: Release, groups: Sequence[str]) -> npt.NDArray[np.bool_]:
    return release.alignment.card.hold_out.held_out(groups)


def reference(
    world: World, release: Release, direction: str, *, queries: str, gallery: str
) -> tuple[RelevantRanks, Any]:
    """Ranks by brute force over the aligned vectors of what is in the store, and the group codes of the queries."""
    asking, asked = DIRECTIONS[direction]
    ours = release.alignment
    keys, item_groups, _ = vectors_of(world.store, release.name, asked)
    pushed = the_set(world).load(asked)
    items = ours.project(asked, pushed.vectors)[[pushed.keys.index(key) for key in keys]]
    given = the_set(world).load(asking)
    query_groups, X = given.groups, given.vectors
    if queries == "held-out":
        kept = held(release, query_groups)
        query_groups, X = [g for g, k in zip(query_groups, kept, strict=True) if k], X[kept]
    if gallery == "held-out":
        kept = held(release, item_groups)
        item_groups, items = [g for g, k in zip(item_groups, kept, strict=True) if k], items[kept]
    codes = group_codes(query_groups, item_groups)
    Q = ours.project(asking, X)
    metric = ours.metric(release.metric, items=asked)
    return relevant_ranks(Q.astype(np.float64), items.astype(np.float64), *codes, metric=metric), codes


def values(found: Audit, direction: str) -> dict[str, float]:
    """Measures of the whole, but for those of new and known items."""
    its = [m for m in found.measures if m.direction == direction and not m.part]
    of_kinds = [name for name, measure in MEASURES.items() if measure.of_kinds is not None]
    return {m.name: m.value for m in its if m.name not in of_kinds}


def of(found: Audit, direction: str, part: str) -> dict[str, float]:
    """Measures of a part, without how long it took."""
    its = [m for m in found.measures if (m.direction, m.part) == (direction, part)]
    return {m.name: m.value for m in its if not m.name.startswith("latency")}


class TestEqualsTheReference:
    @pytest.mark.parametrize(
        ("metric", "queries", "gallery"),
        slow_unless(
            QUICK.__contains__,
            [
                *((metric, "all", "held-out") for metric in ALL),
                *((metric, scope, scope) for metric in ("cosine", "mol") for scope in ("held-out", "all")),
                ("chi2", "held-out", "all"),
            ],
        ),
    )
    def test_every_measure_to_the_last_digit(self, served: World, metric: str, queries: Any, gallery: Any) -> None:
        release = opened(served, metric)
        found = audit(release, served.store, the_set(served), ks=(1, 3, 10), queries=queries, gallery=gallery, seed=5)
        for direction in DIRECTIONS:
            truth, (query_codes, item_codes) = reference(served, release, direction, queries=queries, gallery=gallery)
            relevant = np.array([(item_codes == code).sum() for code in query_codes])
            best = truth.best
            expected: dict[str, float] = {
                "mrr": float((1.0 / best).mean()),
                "r_precision": float(measures.r_precision(truth).mean()),
                "median_rank": float(np.sort(best)[(len(best) - 1) // 2]),
            }
            for k in (1, 3, 10):
                for per_query in (measures.recall, measures.found, measures.ndcg):
                    name, value = per_query.__name__, per_query(truth, k).mean()
                    expected[f"{name}@{k}"] = expected[f"exact.{name}@{k}"] = value
                assert expected[f"recall@{k}"] == recall_at(best, k)
                expected[f"chance.recall@{k}"] = chance_recall_at(k, relevant, len(item_codes))
                expected |= {f"fidelity@{k}{end}": 1.0 for end in ("", ".p5", ".least")}
                expected[f"fidelity@{k}.below90"] = 0.0
            if release.guarantee in (Guarantee.CERTIFIED, Guarantee.BOUNDED):  # fewer than the first page
                expected["certified"] = 1.0
            measured = values(found, direction)
            assert np.isfinite(measured.pop("hubness", 0.0))  # of too few groups there is none
            assert measured == expected
            assert expected["recall@10"] > 0
            if not isinstance(release.metric, Perceptron):  # which nothing was learned for
                assert expected["recall@3"] > 0
                assert expected["recall@1"] < expected["recall@10"]
            asked = {found.measure(direction, name).queries for name in expected}
            assert asked == {len(best)}
            estimate = bootstrap_mean((best <= 3).astype(float), query_codes, seed=5)
            measure = found.measure(direction, "recall@3")
            assert (measure.value, measure.low, measure.high) == (estimate.value, estimate.low, estimate.high)
            assert found.without_relevant[direction] == (relevant == 0).sum()

    def test_the_gallery_is_held_out_or_everything(self, served: World) -> None:
        release, embedding_set = opened(served), the_set(served)
        for scope, mask in (("held-out", held), ("all", lambda _, groups: np.ones(len(groups), bool))):
            found = audit(release, served.store, embedding_set, gallery=scope)
            assert found.gallery == {
                modality: int(mask(release, embedding_set.load(modality).groups).sum()) for modality in MODALITIES
            }
            assert found.plan.gallery == scope
        assert 0 < found.measure("text-to-image", "mrr").queries < len(embedding_set.load("text"))

    def test_ks_are_sorted_and_counted_once(self, served: World) -> None:
        found = audit(opened(served), served.store, the_set(served), ks=(5, 1, 5))
        assert [n for n in values(found, "text-to-image") if n.startswith("recall")] == ["recall@1", "recall@5"]

    def test_it_changes_nothing_in_the_store(self, served: World, monkeypatch: pytest.MonkeyPatch) -> None:
        before = served.snapshot()
        changing = ("upsert", "delete", "create", "drop", "set_aliases", "ready", "flush")
        calls = [Calls(monkeypatch, served.store, method) for method in changing]
        audit(opened(served), served.store, the_set(served))
        assert [len(made) for made in calls] == [0] * len(changing)
        assert served.snapshot() == before

    def test_progress_counts_every_query(self, served: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(seen_unseen, "STAGED", kind_queries.MOST)
        done: list[int] = []
        found = audit(opened(served), served.store, the_set(served), queries="all", advance=done.append)
        asked = sum(found.measure(direction, "mrr").queries for direction in DIRECTIONS)
        assert asked == N + 2 * N
        of_kinds = sum(len(queries.keys) for queries in found.per_kind.values())
        seen = sum(len(queries.keys) for (_, kind), queries in found.per_kind.items() if kind == "seen")
        assert found.captions is not None
        asking = (CAPTIONED, PARAPHRASED, UNCAPTIONED)
        by_caption = sum(kind.queries for kind in found.captions.kinds if kind.kind in asking)
        # All exactly, along the index, and in the gallery; those about seen items exactly and along the index, too.
        assert sum(done) == 3 * asked + of_kinds + 2 * seen + by_caption


class TestHubness:
    """Skewness of what production finds: of every metric its own."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("metric", "gallery"),
        [
            ("cosine", "held-out"),
            ("cosine", "all"),
            ("manhattan", "held-out"),
            ("chi2", "all"),
            ("mlp", "held-out"),
            ("dot+nnn", "all"),
        ],
    )
    def test_it_is_of_the_metric_and_of_the_gallery(self, served: World, metric: str, gallery: Any) -> None:
        release = opened(served, metric)
        found = audit(release, served.store, the_set(served), ks=(1, 3), queries="all", gallery=gallery)
        for direction, (asking, asked) in DIRECTIONS.items():
            given = the_set(served).load(asking)
            keys, groups, _ = vectors_of(served.store, release.name, asked)
            inside = held(release, groups) if gallery == "held-out" else np.ones(len(keys), bool)
            pushed = the_set(served).load(asked)
            order = [pushed.keys.index(key) for key, its in zip(keys, inside, strict=True) if its]
            items = release.alignment.project(asked, pushed.vectors[order])
            metric_of = release.alignment.metric(release.metric, items=asked)
            its = scores(metric_of, release.alignment.project(asking, given.vectors), items)
            times = np.bincount(np.argsort(-its, axis=1)[:, :3].ravel(), minlength=len(items))
            measure = found.measure(direction, "hubness")
            # Rescoring an unbounded metric may leave one out, and float32 may exchange two.
            assert measure.value == pytest.approx(float(skew(times)), abs=0.05 if metric != "mlp" else 0.5)
            assert measure.queries == len(given)


class TestTies:
    def push(self, world: World, image: npt.NDArray[Any], text: npt.NDArray[Any], **options: Any) -> Release:
        parts = [rows("image", image, **options), rows("text", text, **options)]
        (release,) = world.push(world.set("s", *parts)).releases
        return release

    @pytest.mark.slow
    @pytest.mark.parametrize("metric", SOME)
    def test_where_all_items_are_alike_nothing_is_found(self, world: World, metric: str) -> None:
        n = 30
        one = {m: np.repeat(embedded(m, latent(1)), n, axis=0) for m in MODALITIES}
        world.push(world.set("s", *(rows(m, one[m]) for m in MODALITIES)), metrics=[metric])
        found = audit(
            opened(world, metric), world.store, the_set(world), ks=(1, 5, n - 1, n), queries="all", gallery="all"
        )
        for direction in DIRECTIONS:
            assert [values(found, direction)[f"recall@{k}"] for k in (1, 5, n - 1, n)] == [0, 0, 0, 1]
            assert [values(found, direction)[f"exact.recall@{k}"] for k in (1, 5, n - 1, n)] == [0, 0, 0, 1]
            assert values(found, direction)["mrr"] == pytest.approx(1 / n)
            assert values(found, direction)["median_rank"] == n

    def test_a_copy_of_the_right_item_stands_before_it(self, world: World) -> None:
        points = latent(20)
        points[1] = points[0]
        self.push(world, embedded("image", points), embedded("text", points))
        found = audit(opened(world), world.store, the_set(world), ks=(1, 2), queries="all", gallery="all")
        for direction in DIRECTIONS:
            assert values(found, direction)["recall@1"] == pytest.approx(18 / 20)
            assert values(found, direction)["recall@2"] == 1.0

    @pytest.mark.slow
    def test_many_equal_items_that_are_all_right_are_found(self, world: World) -> None:
        """A class label as caption: more copies of the right answer than the list is long are no miss."""
        n, copies = 6, 15
        points = np.repeat(latent(n), copies, axis=0)
        groups = [f"class {number}" for number in range(n) for _ in range(copies)]
        noisy = points + 0.05 * np.random.default_rng(0).standard_normal(points.shape)
        self.push(world, embedded("image", noisy), embedded("text", points), groups=groups)
        found = audit(opened(world), world.store, the_set(world), ks=(1, 5), queries="all", gallery="all")
        for direction in DIRECTIONS:
            assert values(found, direction)["recall@1"] == 1.0
            assert values(found, direction)["exact.recall@1"] == 1.0
            assert values(found, direction)["median_rank"] == 1.0

    @pytest.mark.slow
    @pytest.mark.parametrize("metric", ["cosine", "euclid", "manhattan", "dot"])
    def test_copies_that_round_apart_are_copies(self, world: World, metric: str) -> None:
        """A projection rounds by where a row stands in its batch: equal captions are stored a last bit apart."""
        points = latent(6)[np.repeat(np.arange(6), 30)]
        copies = [f"{number}" for number in range(len(points))]
        (image, text) = (rows(m, embedded(m, points), keys=copies) for m in MODALITIES)
        (release,) = world.push(world.set("s", image, text), metrics=[metric]).releases
        for modality in MODALITIES:
            records = [
                record
                for page in world.store.scroll(release.name, vector_name=modality)
                for record in page
                if record.vector is not None
            ]
            stored = np.stack([record.vector for record in records if record.vector is not None])
            apart = np.random.default_rng(0).choice([-1e-7, 0.0, 1e-7], stored.shape).astype(np.float32)
            world.store.upsert(
                release.name, Points(modality, [r.id for r in records], stored + apart, [r.payload for r in records])
            )
        found = audit(release, world.store, the_set(world), ks=(1, 5, 10), queries="all", gallery="all")
        for direction in DIRECTIONS:
            for name in ("recall", "exact.recall"):
                assert [found.measure(direction, f"{name}@{k}").value for k in (1, 5, 10)] == [0.0, 0.0, 0.0]

    def test_right_and_wrong_copies_beyond_the_list(self, world: World) -> None:
        """Ten right and four wrong items of one score: the right one is fifth."""
        points = np.repeat(latent(2), [14, 6], axis=0)
        groups = ["right"] * 10 + ["wrong"] * 4 + ["other"] * 6
        self.push(world, embedded("image", points), embedded("text", points), groups=groups)
        found = audit(opened(world), world.store, the_set(world), ks=(4, 5), queries="all", gallery="all")
        for direction in DIRECTIONS:
            # right: 4 wrong before; wrong: 10 right before; other: alone
            assert values(found, direction)["recall@4"] == pytest.approx(6 / 20)
            assert values(found, direction)["recall@5"] == pytest.approx(16 / 20)
            assert values(found, direction)["exact.recall@5"] == pytest.approx(16 / 20)
            assert values(found, direction)["mrr"] == pytest.approx((6 + 10 / 5 + 4 / 11) / 20)


class TestTheIndex:
    @pytest.mark.slow
    def test_what_the_index_loses_is_measured(self, tmp_path: Path) -> None:
        store = Losing(tmp_path / "qdrant", lambda how: not how.get("exact"), lost=3, each=10)
        with store:
            world = World(tmp_path, store)
            world.alignment()
            with world.provenance:
                world.push(world.set("s", *pairs(40)))
                found = audit(opened(world), store, the_set(world), ks=(1, 5, 10), queries="all", gallery="all")
        for direction in DIRECTIONS:
            measured = values(found, direction)
            # 4 of 40 queries lose their 3 best; a list of k + 1 refills one place of the longest.
            assert measured["fidelity@1"] == pytest.approx(0.9)
            assert measured["fidelity@5"] == pytest.approx(1 - 0.1 * 3 / 5)
            assert measured["fidelity@10"] == pytest.approx(1 - 0.1 * 3 / 10)
            assert (measured["fidelity@1.least"], measured["fidelity@1.p5"]) == (0.0, 0.0)
            assert measured["fidelity@5.least"] == pytest.approx(0.4)
            assert measured["fidelity@10.least"] == pytest.approx(0.7)
            assert measured["fidelity@5.p5"] == pytest.approx(0.4)
            # Without noise the best image is the right one, so what the index loses is lost to production.
            assert (measured["recall@10"], measured["exact.recall@10"]) == (0.9, 1.0)

    @pytest.mark.slow
    @pytest.mark.parametrize("gallery", ["held-out", "all"])
    @pytest.mark.parametrize("filtered", [False, True])
    def test_it_is_measured_without_a_filter(self, tmp_path: Path, filtered: bool, gallery: Any) -> None:
        """A small gallery that is filtered is searched exhaustively, and hides what production loses."""
        store = Losing(
            tmp_path / "qdrant", lambda how: not how.get("exact") and (how.get("filter") is not None) == filtered
        )
        with store:
            world = World(tmp_path, store)
            world.alignment()
            with world.provenance:
                world.push(world.set("s", *pairs(60)))
                found = audit(opened(world), store, the_set(world), ks=(1, 5), gallery=gallery)
        for direction in DIRECTIONS:
            measured = values(found, direction)
            assert found.gallery[DIRECTIONS[direction][1]] > 6
            # Without noise the best is the right one. A list of k + 1 refills one place of the longest.
            of_the_index = (1.0, 1.0) if filtered else (0.0, 0.8)
            assert (measured["fidelity@1"], measured["fidelity@5"]) == of_the_index
            assert (measured["fidelity@5.least"], measured["fidelity@5.p5"]) == (of_the_index[1],) * 2
            lost = filtered == (gallery == "held-out")
            assert (measured["recall@1"], measured["recall@5"]) == ((0.0, 0.0) if lost else (1.0, 1.0))
            assert (measured["exact.recall@1"], measured["mrr"]) == (1.0, 1.0)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer candidates than there are items."""
    for lowering, page, budget in ((CertifiedLowering, 4, 16), (MixtureLowering, 4, 24), (CosineCandidates, 12, 12)):
        monkeypatch.setattr(lowering, "page", page)
        monkeypatch.setattr(lowering, "budget", budget)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[RankedHits]]:
    """What an audit is served through the index, by the modality that it asks for."""
    found: dict[str, list[RankedHits]] = {"image": [], "text": []}
    original = CandidateSearch.search

    def spied(self: CandidateSearch, target: Modality, *args: Any, **options: Any) -> list[RankedHits]:
        result = original(self, target, *args, **options)
        # Not the single queries that are timed, nor the worst ones that are shown.
        whole = len(args[0]) > 1 and options.get("with_payload") == ["group", "split"]
        if whole and not options.get("exact") and options.get("filter") is None:
            found[target] += result
        return result

    monkeypatch.setattr(CandidateSearch, "search", spied)
    return found


@pytest.mark.usefixtures("small_pages")
class TestCandidates:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("metric", "gallery"),
        [*zip(RESCORED, ("held-out", "held-out", "all", "all"), strict=True), ("chi2", "all"), ("mlp", "held-out")],
    )
    def test_what_candidates_lose_is_the_indexs_loss(
        self, served: World, metric: str, gallery: Any, answers: dict[Modality, list[RankedHits]]
    ) -> None:
        """Exact measures are the metric's own over all vectors; the index is measured against those."""
        release = opened(served, metric)
        found = audit(release, served.store, the_set(served), ks=(1, 3, 10), queries="all", gallery=gallery)
        ours, lost = release.alignment, 0.0
        for direction, (asking, asked) in DIRECTIONS.items():
            measured = values(found, direction)
            truth = reference(served, release, direction, queries="all", gallery=gallery)[0].best
            for k in (1, 3, 10):
                assert measured[f"exact.recall@{k}"] == recall_at(truth, k)
            assert measured["mrr"] == float((1.0 / truth).mean())
            assert measured["median_rank"] == float(np.sort(truth)[(len(truth) - 1) // 2])
            sides = [the_set(served).load(modality) for modality in (asking, asked)]
            ids = np.array([point_id(asked, key) for key in sides[1].keys])
            Q, X = (ours.project(side.modality, side.vectors) for side in sides)
            order = np.argsort(-scores(ours.metric(release.metric, items=asked), Q, X), axis=1)
            # Pages are small, so each length is asked for by itself. Behind come queries about new and known items.
            assert len(answers[asked]) > 3 * len(Q)
            by_k = {k: answers[asked][place * len(Q) : (place + 1) * len(Q)] for place, k in enumerate((1, 3, 10))}
            for k, its in by_k.items():
                assert all(len(answer.hits) == k for answer in its)
                shares = [
                    len({hit.id for hit in answer.hits} & set(ids[best[:k]])) / k
                    for answer, best in zip(its, order, strict=True)
                ]
                assert measured[f"fidelity@{k}"] == pytest.approx(np.mean(shares), abs=1e-12)
                assert measured[f"fidelity@{k}.least"] == min(shares)
                lost += float(1 - np.mean(shares))
            proved = [answer.certified for answer in by_k[10]]
            if release.guarantee is Guarantee.MEASURED:
                assert "certified" not in measured
                assert set(proved) == {None}
            else:
                assert measured["certified"] == np.mean([proof is True for proof in proved])
                measure = found.measure(direction, "certified")
                assert measure.low is not None
                assert measure.high is not None
                assert measure.low <= measure.value <= measure.high
                for answer, best in zip(by_k[10], order, strict=True):
                    if answer.certified:
                        assert [hit.id for hit in answer.hits] == list(ids[best[: len(answer.hits)]])
        assert lost > 0 or metric in ("js", "mol")

    @pytest.mark.slow
    @pytest.mark.parametrize("metric", SOME)
    def test_a_certificate_can_be_required(self, served: World, metric: str) -> None:
        release, required = opened(served, metric), [Requirement.parse("certified>=0.999")]
        options: dict[str, Any] = {"ks": (10,), "queries": "all", "gallery": "all"}
        if metric in ("chi2", "mol"):
            found = audit(release, served.store, the_set(served), requirements=required, **options)
            assert found.verdict == "failed"
            assert {f.requirement.name for f in found.failures} == {"certified"}
            met = audit(release, served.store, the_set(served), requirements=[Requirement.parse("certified>=0")])
            assert met.verdict == "passed"
        else:  # what is not measured is not met by being silent
            with pytest.raises(RequirementError, match="names no measure of an audit of ") as refused:
                audit(release, served.store, the_set(served), requirements=required, **options)
            assert ", certified" not in str(refused.value)

    @pytest.mark.slow
    @pytest.mark.parametrize("metric", RESCORED)
    def test_ties_beyond_the_candidates_never_flatter(self, world: World, metric: str) -> None:
        one = {m: np.repeat(embedded(m, latent(1)), 40, axis=0) for m in MODALITIES}
        world.push(world.set("s", *(rows(m, one[m]) for m in MODALITIES)), metrics=[metric])
        found = audit(opened(world, metric), world.store, the_set(world), ks=(1, 5), queries="all", gallery="all")
        for direction in DIRECTIONS:
            measured = values(found, direction)
            for name in ("recall@1", "recall@5", "exact.recall@5"):
                assert measured[name] == 0.0
            assert measured["mrr"] == pytest.approx(1 / 40)
            assert measured["fidelity@5"] == 1.0  # as good as the best, whatever their ids
            assert measured.get("certified", 0.0) == 0.0

    @pytest.mark.slow
    @pytest.mark.parametrize("metric", ["chi2", "mlp"])
    def test_vectors_are_read_in_pages(self, served: World, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
        release = opened(served, metric)
        whole = audit(release, served.store, the_set(served), queries="all")
        original, pages = served.store.scroll, []

        def scroll(name: str, **options: Any) -> Iterator[Any]:
            for page in original(name, **{**options, "page": 7}):
                pages.append(len(page))
                yield page

        monkeypatch.setattr(served.store, "scroll", scroll)
        found = audit(release, served.store, the_set(served), queries="all")
        assert steady(found) == steady(whole)
        assert max(pages) == 7
        # Once for the best relevant items, once for what stands before them; the same for queries about known items;
        # then new and known items, and captions.
        assert 2 * (N + 2 * N) <= sum(pages) <= 7 * (N + 2 * N)


class TestMissing:
    def test_queries_without_a_relevant_point_are_misses(self, world: World) -> None:
        image, text = several(20, noise=0.0)
        (release,) = world.push(world.set("s", image, text)).releases
        world.store.delete(release.name, [point_id("image", key) for key in ("0", "2")])
        found = audit(release, world.store, the_set(world), ks=(1,), queries="all", gallery="all")
        asked = len(text)
        lost = sum(group in ("0", "2") for group in text.groups)
        assert (asked, lost) == (39, 4)
        assert found.without_relevant == {"text-to-image": lost, "image-to-text": 0}
        assert values(found, "text-to-image")["recall@1"] == pytest.approx(1 - lost / asked)
        assert values(found, "text-to-image")["mrr"] == pytest.approx(1 - lost / asked)
        assert values(found, "image-to-text")["recall@1"] == 1.0
        assert found.gallery == {"image": 18, "text": 39}

    def test_a_median_beyond_all_ranks_is_infinite(self, world: World) -> None:
        image, text = pairs(10)
        (release,) = world.push(world.set("s", image, text)).releases
        world.store.delete(release.name, [point_id("image", str(n)) for n in range(8)])
        found = audit(
            release,
            world.store,
            the_set(world),
            ks=(1,),
            queries="all",
            gallery="all",
            requirements=[Requirement.parse("median_rank<=5")],
        )
        assert found.measure("text-to-image", "median_rank").value == np.inf
        assert [(f.direction, f.requirement.name) for f in found.failures] == [("text-to-image", "median_rank")]

    def test_rows_that_were_refused_are_not_asked_with(self, world: World) -> None:
        image, text = pairs(10)
        text.vectors[3] = np.nan
        (release,) = world.push(world.set("s", image, text)).releases
        found = audit(release, world.store, the_set(world), ks=(1,), queries="all", gallery="all")
        assert found.measure("text-to-image", "mrr").queries == 9
        assert values(found, "text-to-image")["recall@1"] == 1.0
        assert found.without_relevant == {"text-to-image": 0, "image-to-text": 1}

    def test_a_row_on_the_training_mean_is_not_asked_with(self, world: World) -> None:
        world.alignment("centred", mean=1.0)
        image, text = pairs(10)
        text.vectors[3] = 2 * embedded("text", np.eye(LATENT)[:1])[0]
        pushed = world.push(world.set("s", image, text), "centred")
        assert world.reasons(pushed.run) == [("text", "3", "vector-not-finite")]
        found = audit(pushed.releases[0], world.store, the_set(world), ks=(1,), queries="all", gallery="all")
        assert found.measure("text-to-image", "mrr").queries == 9

    @pytest.mark.parametrize("gallery", ["held-out", "all"])
    @pytest.mark.parametrize("queries", ["held-out", "all"])
    def test_a_set_that_shares_no_pair_with_the_gallery(
        self, world: World, queries: Any, gallery: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (release,) = world.push(world.set("s", *pairs(20))).releases
        other = world.set("t", *pairs(20, prefix="other-"))
        searches = Calls(monkeypatch, world.store, "search")
        message = rf"no pair of embedding set t is in the {gallery} gallery of release {release.name}; name the set"
        with pytest.raises(MismatchError, match=message):
            audit(release, world.store, other, queries=queries, gallery=gallery)
        assert len(searches) == 0

    def test_one_pair_that_is_shared_is_enough(self, world: World) -> None:
        image, text = pairs(20)
        (release,) = world.push(world.set("s", image, text)).releases
        other = [*pairs(19, seed=1, prefix="other-"), image.take([0]), text.take([0])]
        found = audit(release, world.store, world.set("t", *other), ks=(1,), queries="all", gallery="all")
        assert found.without_relevant == {"text-to-image": 19, "image-to-text": 19}
        for direction in DIRECTIONS:
            assert values(found, direction)["recall@1"] == pytest.approx(1 / 20)

    def test_pairs_that_the_fit_saw_are_not_in_the_gallery_of_the_others(self, world: World) -> None:
        image, text = pairs(20)
        (release,) = world.push(world.set("s", image, text)).releases
        seen = np.flatnonzero(~held(release, image.groups)).tolist()
        fitted = world.set("t", image.take(seen), text.take(seen))
        with pytest.raises(MismatchError, match="is in the held-out gallery"):
            audit(release, world.store, fitted, queries="all")
        found = audit(release, world.store, fitted, ks=(1,), queries="all", gallery="all")
        assert values(found, "text-to-image")["recall@1"] == 1.0

    def test_a_set_of_another_encoder(self, world: World) -> None:
        (release,) = world.push(world.set("s", *pairs(5))).releases
        other = {**cards(), "text": EncoderCard("other:model", "ab" * 32, DIMS["text"])}
        with pytest.raises(MismatchError, match="other:model"):
            audit(release, world.store, world.set("t", *pairs(5), encoders=other))


class TestRequirements:
    @pytest.mark.parametrize("name", ["recall@7", "recal@10", "fidelity@10.p7", "loss", "sideways:recall@10"])
    def test_a_measure_that_is_not_measured(self, served: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        searches = Calls(monkeypatch, served.store, "search")
        with pytest.raises(RequirementError, match="names no measure of an audit of "):
            audit(opened(served), served.store, the_set(served), requirements=[Requirement.parse(f"{name}>=0")])
        assert len(searches) == 0

    @pytest.mark.slow
    @pytest.mark.parametrize("comparison", [">=", "<=", ">", "<"])
    @pytest.mark.parametrize("offset", [-0.01, 0.0, 0.01])
    def test_the_verdict(self, served: World, plain: Audit, comparison: str, offset: float) -> None:
        value = plain.measure("text-to-image", "recall@5").value
        bound = value + offset
        text = f"text-to-image:recall@5{comparison}{bound!r}"
        found = audit(opened(served), served.store, the_set(served), ks=(5,), requirements=[Requirement.parse(text)])
        met = {">=": value >= bound, "<=": value <= bound, ">": value > bound, "<": value < bound}[comparison]
        assert plain.verdict == "measured"
        assert found.verdict == ("passed" if met else "failed")
        assert [(f.requirement.text, f.direction) for f in found.failures] == ([] if met else [(text, "text-to-image")])

    def test_a_requirement_without_a_direction_is_one_on_both(self, served: World) -> None:
        found = audit(opened(served), served.store, the_set(served), requirements=[Requirement.parse("recall@1>1")])
        assert [f.direction for f in found.failures] == ["text-to-image", "image-to-text"]


class TestRecord:
    @pytest.mark.slow
    @pytest.mark.parametrize("missing", [0, 3 * N // 4], ids=["finite", "infinite median"])
    def test_sql_holds_what_the_audit_found(self, world: World, missing: int) -> None:
        (release,) = world.push(world.set("s", *several(N))).releases
        world.store.delete(release.name, [point_id("image", str(n)) for n in range(missing)])
        required = [Requirement.parse("recall@1>=0.01"), Requirement.parse("median_rank<=2000")]
        with world.provenance.runs.start("audit", {}) as run:
            found = audit(release, world.store, the_set(world), requirements=required, queries="all", gallery="all")
            number = record(found, world.provenance, run, world.provenance.artifacts.record_set(the_set(world)))
        with world.provenance.database.session() as session:
            row = session.get_one(AuditRow, number)
            stored = session.scalars(select(MeasureRow).where(MeasureRow.audit_id == number)).all()
        assert {(m.direction, m.part, m.name): (m.value, m.low, m.high, m.queries) for m in stored} == {
            (m.direction, m.part, m.name): (m.value, m.low, m.high, m.queries) for m in found.measures
        }
        assert found.measure("text-to-image", "median_rank").value == np.inf if missing else True
        assert (row.run_id, row.release_id, row.verdict) == (run.id, release.row.id, found.verdict)
        assert row.verdict == ("failed" if missing else "passed")
        assert row.settings["gallery_size"] == {"image": N - missing, "text": 2 * N}
        assert row.settings["without_relevant"] == found.without_relevant
        assert row.settings["failed_requirements"] == (["median_rank<=2000"] if missing else [])


@pytest.mark.slow
def test_queries_are_asked_in_batches(served: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measures do not depend on how many queries are asked at a time."""
    rescored = audit(opened(served, "mlp"), served.store, the_set(served), queries="all")
    whole = audit(opened(served), served.store, the_set(served), queries="all")
    monkeypatch.setattr(staged, "BATCH_QUERIES", 7)
    searches = Calls(monkeypatch, served.store, "search")
    found = audit(opened(served), served.store, the_set(served), queries="all")
    assert steady(found) == steady(whole)
    sizes = [len(queries) for _, _, queries, _ in searches.arguments]
    assert max(sizes) == 7
    assert steady(audit(opened(served, "mlp"), served.store, the_set(served), queries="all")) == steady(rescored)


def test_modalities_are_what_directions_are_made_of() -> None:
    sides: set[tuple[Modality, Modality]] = set(DIRECTIONS.values())
    assert sides == {("text", "image"), ("image", "text")}
