"""What queries search among: a store finds in each part what belongs there; protocols are measured as others do."""

import tracemalloc
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from alignment.errors import MeasureError
from alignment.metrics import parse
from alignment.modality import DIRECTIONS, MODALITIES, Modality
from alignment.retrieval.kinds import HELD_OUT
from alignment.retrieval.protocols import PROTOCOLS, Protocol
from alignment.retrieval.ranks import IntArray
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows
from connector.audits.galleries import (
    NOT_IN_GALLERY,
    BenchmarkFolds,
    Everything,
    Gallery,
    HeldOut,
    QuerySet,
    by_protocol,
    lay_out,
)
from connector.audits.geometry import GAP_GROUPS, draw
from connector.audits.plan import AuditPlan
from connector.audits.result import Audit
from connector.errors import MismatchError
from connector.provenance.tables import ReleaseRow
from connector.releases.points import point_id
from connector.releases.release import Release
from tests.support.errors import raises
from tests.support.world import (
    World,
    alignment,
    audit,
    embedded,
    latent,
    opened,
    pairs,
    rows,
    scores,
    the_set,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns of what it could be installed with
    import ir_measures

KS = (1, 5, 10)
# Scores that are nearer are one score to an audit, and the irrelevant item stands first.
NEAR = 1e-6
EVALUATORS = {"recall": "Success", "found": "R", "ndcg": "nDCG"}


@pytest.fixture
def world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("connector.audits.query_run.TIMED_QUERIES", 3)
    return world


def benchmark(images: int, *, captions: int = 5, noise: float = 0.3) -> list[Rows]:
    """A test split: images, and captions that find them now and then, image by image."""
    points, of = latent(images), np.repeat(np.arange(images), captions)
    noisy = points[of] + noise * np.random.default_rng(1).standard_normal((len(of), points.shape[1]))
    keys = [f"{image}#{number}" for image in range(images) for number in range(captions)]
    return [
        rows("image", embedded("image", points)),
        rows("text", embedded("text", noisy), keys=keys, groups=[f"{image}" for image in of]),
    ]


class TestParts:
    """Where a gallery says that a point is, there the store finds it, and nowhere else."""

    @pytest.mark.parametrize("modality", MODALITIES)
    @pytest.mark.parametrize("kind", ["everything", "held-out", "folds"])
    def test_points_are_placed_where_their_condition_finds_them(
        self, world: World, kind: str, modality: Modality
    ) -> None:
        (release,) = world.push(world.set("s", *pairs(40))).releases
        ids = [point_id(modality, f"{number}") for number in range(40)]
        galleries: Mapping[str, Gallery] = {
            "everything": Everything(),
            "held-out": HeldOut(),
            "folds": BenchmarkFolds([ids[:7], ids[20:], [], [ids[10]]]),
        }
        gallery = galleries[kind]
        records = [r for page in world.store.scroll(release.name, page=9) for r in page if r.id in set(ids)]
        placed = gallery.placed(records)
        sizes = []
        for part in range(gallery.parts()):
            found = {r.id for page in world.store.scroll(release.name, filter=gallery.condition(part)) for r in page}
            assert found & set(ids) == {r.id for r, its in zip(records, placed, strict=True) if its == part}
            sizes.append(len(found & set(ids)))
        assert gallery.is_whole == (kind == "everything")
        held = [r.id for r in records if r.payload["split"] == HELD_OUT]
        assert sizes == {"everything": [40], "held-out": [len(held)], "folds": [7, 20, 0, 1]}[kind]
        assert (placed == NOT_IN_GALLERY).sum() == 40 - sum(sizes)
        assert 0 < len(held) < 40


class TestLayOut:
    def laid_out(self, world: World, release: Release, **asked: Any) -> dict[Modality, QuerySet]:
        embedding_set = the_set(world)
        return dict(lay_out(release, embedding_set, AuditPlan(**asked)).sets)

    def test_queries_are_held_out_or_all(self, world: World) -> None:
        (release,) = world.push(world.set("s", *benchmark(30))).releases
        held = release.alignment.card.hold_out.held_out
        for queries, gallery in (("held-out", "held-out"), ("all", "held-out"), ("held-out", "all"), ("all", "all")):
            for modality, asked in self.laid_out(world, release, queries=queries, gallery=gallery).items():
                whole = the_set(world).load(modality)
                kept = held(whole.groups) if queries == "held-out" else np.ones(len(whole), bool)
                assert asked.rows.keys == [key for key, its in zip(whole.keys, kept, strict=True) if its]
                assert isinstance(asked.gallery, HeldOut if gallery == "held-out" else Everything)
                assert asked.parts.tolist() == [0] * len(asked)

    def test_a_sample_is_drawn_of_each_modality_in_its_order(self, world: World) -> None:
        (release,) = world.push(world.set("s", *benchmark(30))).releases
        whole = self.laid_out(world, release, queries="all")
        drawn = [self.laid_out(world, release, queries="all", sample=11, seed=seed) for seed in (0, 0, 1)]
        for modality in MODALITIES:
            keys = [each[modality].rows.keys for each in drawn]
            assert keys[0] == keys[1] != keys[2]
            every = list(whole[modality].rows.keys)
            for chosen in keys:
                places = [every.index(key) for key in chosen]
                assert places == sorted(set(places))
                assert len(places) == 11
            vectors = whole[modality].rows.vectors[[every.index(key) for key in keys[0]]]
            assert np.array_equal(drawn[0][modality].rows.vectors, vectors)
        more = self.laid_out(world, release, queries="all", sample=10_000)
        assert {m: len(asked) for m, asked in more.items()} == {"image": 30, "text": 150}

    def test_of_a_set_that_has_grown_the_same_are_drawn(self, world: World) -> None:
        """So two audits with a sample share their queries, although the corpus grows every night."""
        parts = benchmark(60)
        (release,) = world.push(world.set("s", *parts)).releases
        asked: dict[str, Any] = {"queries": "all", "sample": 20}
        before = self.laid_out(world, release, **asked)
        more = pairs(6, seed=4, prefix="more-")
        world.set("s", more[0], *parts, more[1])  # in another order, too
        after = self.laid_out(world, release, **asked)
        for modality in MODALITIES:
            stayed = set(before[modality].rows.keys) & set(after[modality].rows.keys)
            new = [key for key in after[modality].rows.keys if key.startswith("more-")]
            assert len(stayed) + len(new) == 20 == len(after[modality])
            assert len(stayed) >= 14

    @pytest.mark.slow
    def test_the_set_is_not_in_memory(self, world: World) -> None:
        """What is asked with is, a shard or two, and a few bytes for each row, of which one takes some hundred."""
        names = [f"{shard}-" for shard in range(8)]
        shards = {name: pairs(2000, seed=number, prefix=name) for number, name in enumerate(names)}
        peaks = []
        for kept in (2, 8):
            parts = [part for name in names[:kept] for part in shards[name]]
            embedding_set = world.set("s", *parts)
            release = Release(ReleaseRow(), alignment(), parse("cosine"), {})
            tracemalloc.start()
            laid_out = lay_out(release, embedding_set, AuditPlan(queries="all", sample=50))
            drawn = draw(embedding_set, laid_out.draws, seed=0)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            for modality in MODALITIES:
                assert (len(laid_out.sets[modality]), len(drawn[modality])) == (50, GAP_GROUPS)
        assert peaks[1] - peaks[0] < 50 * 6 * 2 * 2000

    def test_groups_for_the_gap_are_those_of_both_modalities(self, world: World) -> None:
        image, text = pairs(80)
        embedding_set = world.set("s", image.take(range(60)), text.take(range(20, 80)), pairs(3, prefix="x")[1])
        release = Release(ReleaseRow(), alignment(), parse("cosine"), {})
        groups = lay_out(release, embedding_set, AuditPlan(queries="all", sample=5)).draws
        for modality, ids in draw(embedding_set, groups, seed=0).items():
            assert ids == {point_id(modality, f"{number}"): f"{number}" for number in range(20, 60)}
        for ids in draw(embedding_set, {m: its[:30] for m, its in groups.items()}, seed=0).values():
            assert 0 < len(ids) < 40

    def test_a_sample_of_a_protocol_stays_in_its_folds(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(PROTOCOLS, "coco-1k", replace(PROTOCOLS["coco-1k"], images=30))
        (release,) = world.push(world.set("s", *benchmark(30))).releases
        for modality, asked in self.laid_out(world, release, protocol="coco-1k", sample=13).items():
            gallery = asked.gallery
            assert isinstance(gallery, BenchmarkFolds)
            assert [len(ids) for ids in gallery.ids] == [6 if modality == "text" else 30] * 5  # all of it
            assert asked.parts.tolist() == [int(group) // 6 for group in asked.rows.groups]
            assert len(asked) == 13

    def test_what_cannot_be_aligned_is_not_asked_with_and_no_protocol_goes_without_it(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(PROTOCOLS, "flickr30k", replace(PROTOCOLS["flickr30k"], images=6))
        parts = benchmark(6)
        parts[1].vectors[4] = np.nan
        (release,) = world.push(world.set("s", *parts)).releases
        asked = self.laid_out(world, release, queries="all")["text"]
        assert asked.rows.keys == [key for number, key in enumerate(parts[1].keys) if number != 4]
        with pytest.raises(
            MismatchError, match=r"protocol flickr30k: 1 text embeddings of .* cannot be aligned; encode"
        ):
            self.laid_out(world, release, protocol="flickr30k")

    @pytest.mark.parametrize(
        ("fitted", "values"),
        [
            (5, ["all 5 images", "--queries all --gallery all"]),
            (3, ["3 took part", "2 came since", "--queries all --gallery all"]),
            (0, ["0 took part", "5 came since", "--queries all --gallery all"]),
        ],
    )
    def test_a_set_without_held_out_pairs_says_what_its_pairs_are(
        self, world: World, fitted: int, values: list[str]
    ) -> None:
        parts = pairs(5)
        seen = [part.take(range(fitted)) for part in parts] if fitted else pairs(5, seed=9)
        world.alignment("b", hold_out=HoldOut(1e-9), seen=seen)
        (release,) = world.push(world.set("s", *parts), "b").releases
        with raises(MismatchError, *values):
            self.laid_out(world, release)
        assert len(self.laid_out(world, release, queries="all")["image"]) == 5


def numbered(modality: Modality, groups: IntArray) -> Rows:
    """Rows of these groups, without anything else."""
    keys, n = [f"{place}" for place in range(len(groups))], len(groups)
    vectors = np.zeros((n, 1), np.float32)
    return Rows(modality, keys, [f"g{group}" for group in groups], [""] * n, ["{}"] * n, vectors)


class TestByProtocol:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", PROTOCOLS)
    def test_folds_of_the_real_size(self, name: str) -> None:
        """Rows in any order: folds are consecutive images with their first five captions, which search each other."""
        protocol = PROTOCOLS[name]
        rng, n = np.random.default_rng(0), protocol.images
        image_groups = rng.permutation(n)
        text_groups = rng.permutation(np.repeat(np.arange(n), rng.integers(5, 8, size=n)))
        images, texts = numbered("image", image_groups), numbered("text", text_groups)
        laid_out = by_protocol(protocol, images, texts)
        asked, size = laid_out["image"], n // protocol.folds
        assert asked.rows.keys == images.keys
        assert asked.parts.tolist() == [place // size for place in range(n)]
        fold_of = {group: place // size for place, group in enumerate(image_groups)}
        found_by = laid_out["text"]
        assert len(found_by) == 5 * n
        assert found_by.parts.tolist() == [fold_of[int(group[1:])] for group in found_by.rows.groups]
        first: dict[str, list[str]] = {}
        for key, group in zip(texts.keys, texts.groups, strict=True):
            first.setdefault(group, []).append(key)
        chosen = [key for group in image_groups for key in first[f"g{group}"][:5]]
        assert found_by.rows.keys == chosen
        searched: list[tuple[QuerySet, Modality, Sequence[str]]] = [
            (asked, "text", chosen),
            (found_by, "image", images.keys),
        ]
        for its, modality, keys in searched:
            gallery = its.gallery
            assert isinstance(gallery, BenchmarkFolds)
            ids = np.array([point_id(modality, key) for key in keys])
            assert [list(part) for part in gallery.ids] == [part.tolist() for part in np.split(ids, protocol.folds)]


def evaluated(world: World, release: Release, direction: str, fold_of: Sequence[int]) -> dict[str, dict[str, float]]:
    """What ir-measures says of each query, by measure: of rankings by brute force among the items of its fold.

    An item that is near another's score stands as ties stand in an audit; what comes after the last relevant item of
    a query is left out, which changes no measure.
    """
    asking, target = DIRECTIONS[direction]
    ours = release.alignment
    queries, items = (the_set(world).load(m) for m in (asking, target))
    Q, X = (ours.project(side.modality, side.vectors) for side in (queries, items))
    exact = scores(ours.metric(release.metric, items=target), Q, X)
    item_groups = np.array(items.groups)
    item_folds = np.array([fold_of[int(group)] for group in items.groups])
    qrels, run = {}, {}
    for key, group, score in zip(queries.keys, queries.groups, exact, strict=True):
        relevant = item_groups == group
        order = np.argsort(-np.where(relevant, score - NEAR, score))
        order = order[item_folds[order] == fold_of[int(group)]]
        order = order[: np.flatnonzero(relevant[order]).max() + 1]
        qrels[key] = {f"{item}": 1 for item in np.flatnonzero(relevant)}
        run[key] = {f"{item}": -float(place) for place, item in enumerate(order)}
    names = {
        **{f"{name}@{k}": f"{theirs}@{k}" for name, theirs in EVALUATORS.items() for k in KS},
        "mrr": "RR",
        "r_precision": "Rprec",
    }
    parsed = {ir_measures.parse_measure(theirs): name for name, theirs in names.items()}
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for metric in ir_measures.iter_calc(list(parsed), qrels, run):
        found[parsed[metric.measure]][metric.query_id] = metric.value
    return found


def check_equal(found: Audit, direction: str, theirs: Mapping[str, Mapping[str, float]]) -> None:
    """Every measure of every query is theirs, and so are the means, to the last digit."""
    its = found.per_query[direction]
    for name, by_query in theirs.items():
        expected = np.array([by_query[key] for key in its.keys])
        exact = [f"exact.{name}"] if "@" in name else []
        for ours in (name, *exact):
            assert its.values["", ours].tolist() == expected.tolist(), ours
            assert found.measure(direction, ours).value == expected.mean()
        assert 0 < expected.mean() < 1


class TestMended:
    """Rows that were encoded again stand at the end of their set."""

    @pytest.fixture(params=["coco-1k", "flickr30k"])
    def protocol(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        name: str = request.param
        monkeypatch.setitem(PROTOCOLS, name, replace(PROTOCOLS[name], images=20))
        return name

    def test_captions_keep_their_numbers(self, world: World, protocol: str) -> None:
        (release,) = world.push(world.set("s", *benchmark(20, captions=7))).releases
        plan = AuditPlan(protocol=protocol)
        before = lay_out(release, the_set(world), plan)
        image, text = benchmark(20, captions=7)
        again = [*(row for row in range(140) if row != 35), 35]  # of image 5, the first
        laid_out = lay_out(release, world.set("s", image, text.take(again)), plan)
        assert before.warnings == laid_out.warnings == []
        for modality in MODALITIES:
            assert sorted(laid_out.sets[modality].rows.keys) == sorted(before.sets[modality].rows.keys)
            assert {key.partition("#")[2] for key in laid_out.sets["text"].rows.keys} == set("01234")

    def test_folds_of_images_in_another_order_are_told(self, world: World, protocol: str) -> None:
        (release,) = world.push(world.set("s", *benchmark(20))).releases
        image, text = benchmark(20)
        moved = world.set("s", image.take([*range(5), *range(6, 20), 5]), text)
        notes = lay_out(release, moved, AuditPlan(protocol=protocol)).warnings
        assert len(notes) == (protocol == "coco-1k")  # of one fold the order is nothing
        assert all("come in different orders" in note and "into a new set" in note for note in notes)


class TestProtocolsInAnAudit:
    @pytest.mark.slow
    def test_flickr30k_is_what_ir_measures_says(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fifth of its size."""
        monkeypatch.setitem(PROTOCOLS, "flickr30k", replace(PROTOCOLS["flickr30k"], images=200))
        (release,) = world.push(world.set("s", *benchmark(200))).releases
        found = audit(release, world.store, the_set(world), ks=KS, protocol="flickr30k")
        assert found.gallery == {"image": 200, "text": 1000}
        assert found.without_relevant == {"text-to-image": 0, "image-to-text": 0}
        assert [found.queries_of(direction) for direction in DIRECTIONS] == [1000, 200]
        for direction in DIRECTIONS:
            check_equal(found, direction, evaluated(world, release, direction, [0] * 200))
        assert found.measure("text-to-image", "chance.recall@5").value == pytest.approx(5 / 200)
        missed = np.prod([1 - 5 / (1000 - drawn) for drawn in range(10)])
        assert found.measure("image-to-text", "chance.recall@10").value == pytest.approx(1 - missed)

    @pytest.mark.slow
    @pytest.mark.parametrize("metric", ["cosine", "chi2"])
    def test_coco_1k_is_the_mean_of_five_folds(
        self, world: World, metric: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its real size, which takes too long here, is that of `TestByProtocol`."""
        images, fold = 100, 20
        monkeypatch.setitem(PROTOCOLS, "coco-1k", replace(PROTOCOLS["coco-1k"], images=images))
        world.push(world.set("s", *benchmark(images, noise=0.8)), metrics=[metric])
        release = opened(world, metric)
        found = audit(release, world.store, the_set(world), ks=KS, protocol="coco-1k")
        assert found.gallery == {"image": images, "text": 5 * images}
        for direction in DIRECTIONS:
            theirs = evaluated(world, release, direction, [image // fold for image in range(images)])
            check_equal(found, direction, theirs)
            for name, by_query in theirs.items():
                of_folds = [
                    np.mean([value for key, value in by_query.items() if int(key.partition("#")[0]) // fold == part])
                    for part in range(5)
                ]
                assert found.measure(direction, name).value == pytest.approx(np.mean(of_folds), rel=1e-14)
                assert len(set(of_folds)) > 1 or name != "mrr"
            # Stages are of the whole collection, and find less in five times as many.
            assert found.measure(direction, "recall@1", "reference").value < found.measure(direction, "recall@1").value

    def test_captions_beyond_the_fifth_neither_ask_nor_are_found(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(PROTOCOLS, "flickr30k", Protocol("flickr30k", images=20))
        seven = benchmark(20, captions=7)
        for number in range(20):  # which alone describe their image
            seven[1].vectors[7 * number : 7 * number + 5] *= -1
        (release,) = world.push(world.set("s", *seven)).releases
        found = audit(release, world.store, the_set(world), ks=(1,), protocol="flickr30k")
        assert found.gallery == {"image": 20, "text": 100}
        assert [found.queries_of(direction) for direction in DIRECTIONS] == [100, 20]
        assert {key.partition("#")[2] for key in found.per_query["text-to-image"].keys} == set("01234")
        for direction in DIRECTIONS:
            assert found.measure(direction, "recall@1").value == found.measure(direction, "exact.recall@1").value == 0.0
        # In the whole collection images find their sixth and seventh.
        assert found.measure("image-to-text", "recall@1", "index").value > 0.5

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            (
                benchmark(20),
                "protocol flickr30k: expected 1000 images, each of a group of its own, got 20 of 20 groups",
            ),
            (
                benchmark(1000, captions=4),
                "protocol flickr30k: expected at least 5 captions an image, got 4 of image 0",
            ),
        ],
        ids=["images", "captions"],
    )
    def test_a_set_of_another_shape_is_refused_before_anything_is_asked(
        self, world: World, parts: list[Rows], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (release,) = world.push(world.set("s", *parts)).releases
        monkeypatch.setattr(world.store, "scroll", None)
        monkeypatch.setattr(world.store, "search", None)
        with pytest.raises(MeasureError, match=message):
            audit(release, world.store, the_set(world), protocol="flickr30k")
