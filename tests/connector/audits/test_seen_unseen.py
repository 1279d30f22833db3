"""New and known items in the whole collection: every number equals brute force, and what is not known is said."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import hmean
from sqlalchemy import select

from alignment.metrics import SeenOffset, parse
from alignment.modality import DIRECTIONS, Modality
from alignment.model.seen_items import SeenItems
from alignment.retrieval.kinds import HARMONIC, SEEN, TOO_FAR, UNSEEN
from alignment.retrieval.paraphrases import paraphrased
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows
from connector.audits import seen_unseen
from connector.audits.baseline import find_baseline
from connector.audits.history import history
from connector.audits.plan import AuditPlan
from connector.audits.recording import record
from connector.audits.requirements import Requirement, check_known
from connector.audits.result import Audit
from connector.audits.seen_unseen_result import SeenUnseenResult
from connector.audits.stages import INDEX, LOWERING, REFERENCE, stage_and_stratum
from connector.errors import RequirementError
from connector.provenance.tables import MeasureRow
from connector.releases.release import Release, open_release
from connector.stores.edge import EdgeStore
from connector.stores.points import Hit
from tests.support.errors import raises
from tests.support.slow import slow_unless
from tests.support.world import (
    COLLECTION,
    LATENT,
    World,
    alignment,
    audit,
    only,
    opened,
    opened_world,
    pairs,
    scores,
    several,
    the_set,
    vectors_of,
)

N = 150
KS = (1, 3, 10)
METRICS = ["cosine", "euclid", "manhattan", "chi2", "dot+nnn"]
OFFSETS: dict[str, dict[Modality, float]] = {
    "cosine": {"image": 0.25, "text": 0.1},
    "euclid": {"image": 0.5, "text": 0.2},
    "manhattan": {"image": 0.4, "text": 0.1},
    "chi2": {"image": 0.02, "text": 0.01},
    "dot+nnn": {"image": 0.1, "text": 0.05},
}
WITH_OFFSETS = "shifted"
Matrix = npt.NDArray[np.float64]


@pytest.fixture(autouse=True, scope="module")
def few_of_a_kind() -> None:
    """As many queries are asked as in the audits of users."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with opened_world("edge", tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Images with one to three captions each, of which the fit saw the first; no test changes it."""
    with opened_world("edge", tmp_path_factory.mktemp("world")) as opened:
        images, texts = several(N)
        fitted, held = texts.take(first_captions(texts)), opened.set("s", images, texts)
        fit(opened, images, fitted)
        opened.push(held, metrics=METRICS)
        fit(opened, images, fitted, name="b", seen_offsets=OFFSETS)
        opened.push(held, "b", metrics=METRICS, collection=WITH_OFFSETS)
        yield opened


@pytest.mark.parametrize(
    ("about", "known", "said"),
    [
        ("paraphrases of the texts of seen items", 0.2, True),
        ("paraphrases of the texts of seen items", 0.6, False),
        ("other texts of seen items", 0.2, False),
    ],
)
def test_paraphrases_that_find_less_than_captions_of_new_items_are_said_to_be_too_far(
    about: str, known: float, said: bool
) -> None:
    first = {UNSEEN: 0.5, SEEN: known}
    result = SeenUnseenResult("text-to-image", {SEEN: about, UNSEEN: "new"}, {}, 0.75, [], [], first, {}, None, [])
    assert any(TOO_FAR in sentence for sentence in result.in_words) == said


def first_captions(texts: Rows) -> list[int]:
    """Numbers of the first caption of each group."""
    return [row for row, group in enumerate(texts.groups) if group not in texts.groups[:row]]


def fit(
    world: World,
    *parts: Rows,
    name: str = "a",
    hold_out: HoldOut = HoldOut(),
    seen_offsets: Mapping[str, dict[Modality, float]] = MappingProxyType({}),
) -> None:
    """Save an alignment that records these rows, but for held-out ones, as those that its fit saw."""
    seen = {}
    for rows in parts:
        chosen = np.flatnonzero(~hold_out.held_out(rows.groups)).tolist()
        seen[rows.modality] = SeenItems.of(rows.take(chosen).content_sha256)
    offsets = {str(parse(metric)): dict(own) for metric, own in seen_offsets.items()}
    made = replace(only(alignment(hold_out=hold_out), seen_offsets=offsets), seen=seen)
    made.save(world.home / "alignments" / name)


def of(found: Audit, direction: str) -> SeenUnseenResult:
    return next(result for result in found.seen_unseen if result.direction == direction)


def value(found: Audit, direction: str, name: str, part: str = "") -> float:
    return found.measure(direction, name, part).value


class BruteForce:
    """The whole collection in float64, with the queries of a result."""

    def __init__(self, world: World, release: Release, direction: str, result: SeenUnseenResult):
        asking, asked = DIRECTIONS[direction]
        metric = str(release.metric)
        self.ours, self.pushed = release.alignment, the_set(world)
        records = {
            record.payload["key"]: record.payload
            for page in world.store.scroll(release.name)
            for record in page
            if record.payload["modality"] == asked
        }
        items, given = self.pushed.load(asked), self.pushed.load(asking)
        self.item_groups = np.array(items.groups)
        self.seen = np.array([records[key]["split"] == "fitted" for key in items.keys])
        places = {key: place for place, key in enumerate(given.keys)}
        bound = self.ours.metric(release.metric, items=asked)
        self.scores: dict[str, Matrix] = {}
        self.relevant: dict[str, npt.NDArray[np.bool_]] = {}
        for kind, queries in result.per_query.items():
            vectors = given.vectors[[places[key] for key in queries.keys]]
            if result.about[kind].startswith("paraphrases"):
                vectors = paraphrased(vectors)
            Q, X = self.ours.project(asking, vectors), self.ours.project(asked, items.vectors)
            own = scores(bound.base if isinstance(bound, SeenOffset) else bound, Q, X)
            self.scores[kind] = -(own**2) if metric == "euclid" else own
            self.relevant[kind] = np.array(queries.groups)[:, None] == self.item_groups
        self.fair = float(self.seen.mean())

    def ranks(self, kind: str, offset: float = 0.0) -> Matrix:
        ranked = self.scores[kind] - np.where(self.seen, offset, 0.0)
        best = np.where(self.relevant[kind], ranked, -np.inf).max(axis=1)
        before: Matrix = ((ranked >= best[:, None]) & ~self.relevant[kind]).sum(axis=1).astype(np.float64)
        return before + 1.0

    def recall(self, kind: str, k: int, offset: float = 0.0) -> float:
        return float((self.ranks(kind, offset) <= k).mean())

    def seen_first(self, kind: str, offset: float = 0.0) -> float:
        ranked = self.scores[kind] - np.where(self.seen, offset, 0.0)
        return float(self.seen[ranked.argmax(axis=1)].mean())


@pytest.mark.parametrize("collection", [COLLECTION, WITH_OFFSETS])
@pytest.mark.parametrize("metric", slow_unless({"cosine", "chi2"}.__contains__, METRICS))
def test_every_number_of_the_whole_collection_equals_brute_force(served: World, metric: str, collection: str) -> None:
    release = open_release(served.provenance, served.store, collection, metric)
    found = audit(release, served.store, the_set(served), ks=KS)
    for direction, (_, target) in DIRECTIONS.items():
        result = of(found, direction)
        brute = BruteForce(served, release, direction, result)
        offset = OFFSETS[metric][target] if collection == WITH_OFFSETS else 0.0
        assert set(result.about) == {UNSEEN, SEEN}
        for k in KS:
            name = f"recall@{k}"
            seen, unseen = brute.recall(SEEN, k, offset), brute.recall(UNSEEN, k, offset)
            assert value(found, direction, name, SEEN) == pytest.approx(seen)
            assert value(found, direction, name, UNSEEN) == pytest.approx(unseen)
            assert value(found, direction, name, HARMONIC) == pytest.approx(hmean([seen, unseen]))
        places = brute.fair * brute.seen_first(SEEN, offset) + (1 - brute.fair) * brute.seen_first(UNSEEN, offset)
        assert value(found, direction, "first_places") == pytest.approx(places)
        assert value(found, direction, "first_places.fair") == pytest.approx(brute.fair)
        assert result.found_first == pytest.approx({kind: brute.recall(kind, 1, offset) for kind in (UNSEEN, SEEN)})
        points = {point.offset: point for point in result.points}
        assert list(points) == ([0.0, offset] if offset else [0.0])
        for point in points.values():
            recalls = [brute.recall(kind, k, point.offset) for k in (10, 1) for kind in (UNSEEN, SEEN)]
            assert [point.unseen, point.seen, point.unseen_first, point.seen_first] == pytest.approx(recalls)


@pytest.mark.slow
@pytest.mark.parametrize("collection", [COLLECTION, WITH_OFFSETS])
@pytest.mark.parametrize("metric", ["cosine", "euclid", "chi2"])
def test_the_curve_is_that_of_every_offset_whichever_is_in_use(served: World, metric: str, collection: str) -> None:
    release = open_release(served.provenance, served.store, collection, metric)
    found = audit(release, served.store, the_set(served), ks=KS)
    for direction in DIRECTIONS:
        result = of(found, direction)
        curve, brute = result.curve, BruteForce(served, release, direction, result)
        assert curve is not None
        finite = np.flatnonzero(np.isfinite(curve.offsets))
        for kind, drawn in ((UNSEEN, curve.unseen), (SEEN, curve.seen)):
            expected = [brute.recall(kind, 10, curve.offsets[at]) for at in finite]
            one_query = 1 / len(result.per_query[kind].keys)  # where scores are tied but for rounding
            np.testing.assert_allclose(drawn[finite], expected, atol=1.01 * one_query)
            assert np.mean(np.abs(drawn[finite] - expected) < 1e-9) > 0.8
        assert value(found, direction, "ausuc") == curve.area
        assert (np.diff(curve.unseen) >= 0).all()
        if direction == "text-to-image":  # where no group has both seen and unseen items
            assert (np.diff(curve.seen) <= 0).all()


class TestQueries:
    def test_about_seen_items_are_other_captions_where_there_are_enough(self, served: World) -> None:
        release = opened(served)
        found = audit(release, served.store, the_set(served))
        result = of(found, "text-to-image")
        assert result.about[SEEN] == "other texts of seen items"
        texts = the_set(served).load("text")
        assert not {texts.keys[row] for row in first_captions(texts)} & set(result.per_query[SEEN].keys)
        assert not release.alignment.seen["text"].holds(result.per_query[SEEN].contents).any()
        held_out = release.alignment.card.hold_out.held_out
        assert held_out(result.per_query[UNSEEN].groups).all()
        assert not held_out(result.per_query[SEEN].groups).any()

    @pytest.mark.slow
    def test_are_paraphrases_where_the_fit_saw_every_caption(self, served: World) -> None:
        result = of(audit(opened(served), served.store, the_set(served), seed=3), "image-to-text")
        assert result.about[SEEN] == "paraphrases of the images of seen items"
        assert all(" paraphrased 3 among " in content for content in result.per_query[SEEN].contents)

    @pytest.mark.slow
    @pytest.mark.parametrize("sample", [1, 7])
    def test_are_no_more_than_the_sample_and_the_same_each_time(self, served: World, sample: int) -> None:
        whole, first, again = (
            audit(opened(served), served.store, the_set(served), sample=n) for n in (None, sample, sample)
        )
        for direction in DIRECTIONS:
            assert of(first, direction).about == of(whole, direction).about
            for kind, queries in of(first, direction).per_query.items():
                assert len(queries.keys) == sample
                assert of(again, direction).per_query[kind].keys == queries.keys

    @pytest.mark.slow
    def test_never_are_the_own_captions_of_the_fit_although_they_would_find_more(self, world: World) -> None:
        """Captions that the fit put on their items: every other recall is lower."""
        images, texts = pairs(N, noise=0.8)
        held = HoldOut().held_out(texts.groups)
        texts.vectors[~held] = pairs(N)[1].vectors[~held]
        fit(world, images, texts)
        world.push(world.set("s", images, texts))
        found = audit(opened(world), world.store, the_set(world), queries="all", gallery="all")
        assert value(found, "text-to-image", "recall@1", SEEN) < 0.9

    def test_a_held_out_item_is_new_although_the_fit_saw_its_content_under_another_key(self, world: World) -> None:
        """As its payload says: nothing is taken off it, and it is counted and asked about as new."""
        parts = pairs(80)
        held = HoldOut().held_out(parts[0].groups)
        twin, original = np.flatnonzero(held)[0], np.flatnonzero(~held)[0]
        fit(world, *parts, seen_offsets=OFFSETS)
        for part in parts:
            part.vectors[twin], part.content_sha256[twin] = part.vectors[original], part.content_sha256[original]
        (release,) = world.push(world.set("s", *parts)).releases
        found = audit(release, world.store, the_set(world))
        for direction, (_, asked) in DIRECTIONS.items():
            assert value(found, direction, "first_places.fair") == pytest.approx((~held).mean())
            queries = of(found, direction).per_query
            assert f"{twin}" in queries[UNSEEN].keys
            assert f"{twin}" not in queries[SEEN].keys
            keys, _, vectors = vectors_of(world.store, release.name, asked)
            stored = dict(zip(keys, vectors, strict=True))
            assert not np.array_equal(stored[f"{twin}"], stored[f"{original}"])
            own = LATENT  # the columns of the offset stand behind the vector
            assert np.array_equal(stored[f"{twin}"][:own], stored[f"{original}"][:own])


class LosesSeen(EdgeStore):
    """A store whose graph loses the first hit of a search where that is an item that the fit saw."""

    def search(self, name: str, vector_name: str, queries: Any, k: int, **options: Any) -> list[list[Hit]]:
        found = super().search(name, vector_name, queries, k + 1, **options)
        if options.get("exact"):
            return [hits[:k] for hits in found]
        return [hits[any(hit.payload.get("split") == "fitted" for hit in hits[:1]) :][:k] for hits in found]


@pytest.fixture(scope="module")
def losing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One where it was pushed; no test changes it."""
    path = tmp_path_factory.mktemp("world")
    with LosesSeen(path / "qdrant") as store:
        world = World(path, store)
        parts = pairs(N)
        fit(world, *parts)
        world.push(world.set("s", *parts))
        with world.provenance:
            yield world


class TestStages:
    """The stages of the search are measured with queries about known items too, where the audit's own are about new."""

    @pytest.mark.slow
    @pytest.mark.parametrize("metric", ["cosine", "chi2"])
    def test_equal_brute_force_where_nothing_is_lost(self, served: World, metric: str) -> None:
        release = open_release(served.provenance, served.store, WITH_OFFSETS, metric)
        found = audit(release, served.store, the_set(served), ks=KS)
        for direction, (_, target) in DIRECTIONS.items():
            brute = BruteForce(served, release, direction, of(found, direction))
            stages = [stage for stage in found.stages if (stage.direction, stage.kind) == (direction, SEEN)]
            assert [stage.name for stage in stages] == [REFERENCE, *(stage.name for stage in stages[1:])]
            for stage in stages:
                assert stage.queries == len(of(found, direction).per_query[SEEN].keys)
                for k in KS:
                    expected = brute.recall(SEEN, k, OFFSETS[metric][target])
                    assert stage.recall[k].value == pytest.approx(expected) or stage.name == LOWERING
                    assert not stage.fidelity or stage.fidelity[k].mean.value == 1.0 or stage.name == LOWERING

    @pytest.mark.slow
    def test_what_is_lost_of_known_items_alone_is_blamed_and_fails_what_is_required(self, losing: World) -> None:
        texts = ["fidelity@10>=.97", "index:fidelity@10>=.97", "seen index:fidelity@10>=.97", "unseen fidelity@10>=.97"]
        require = [Requirement.parse(text) for text in texts]
        found = audit(opened(losing), losing.store, the_set(losing), requirements=require)
        assert [(stage.kind, stage.name) for stage in found.blamed] == [(SEEN, INDEX)] * len(DIRECTIONS)
        assert {failure.requirement.text for failure in found.failures} == set(texts[:3])
        for direction in DIRECTIONS:
            assert value(found, direction, "fidelity@10") == value(found, direction, "fidelity@10", UNSEEN) == 1.0
            lost = value(found, direction, "fidelity@10", SEEN)
            assert lost == value(found, direction, "fidelity@10", "seen index") < 0.95
            assert value(found, direction, "fidelity@10", "seen lowering") == 1.0
            assert value(found, direction, "fidelity@10", "index") == 1.0

    @pytest.mark.slow
    def test_are_in_sql_by_stage_and_stratum_and_compared_with_a_baseline(self, losing: World) -> None:
        before = recorded(losing, COLLECTION)
        with losing.provenance.database.session() as session:
            rows = session.scalars(select(MeasureRow).where(MeasureRow.audit_id == before.number)).all()
        kept = {(row.direction, row.stage, row.stratum, row.name): row for row in rows}
        row = kept["text-to-image", INDEX, SEEN, "fidelity@10"]
        assert (row.part, row.value) == ("seen index", value(before, "text-to-image", "fidelity@10", "seen index"))
        baseline = find_baseline(losing.provenance, before.row, str(before.number), AuditPlan(), "s")
        drop = [Requirement.parse(text) for text in ("fidelity@10 drop<=0.01", "index:fidelity@10 drop<=0.01")]
        found = audit(opened(losing), losing.store, the_set(losing), baseline=baseline, requirements=drop)
        compared = {drift.part for drift in found.drifts if drift.name == "fidelity@10"}
        assert compared == {"", INDEX, UNSEEN, SEEN}
        assert not found.failures
        with raises(RequirementError, "seen index:fidelity@10 drop<=0.01", before.number):
            drop = [Requirement.parse("seen index:fidelity@10 drop<=0.01")]
            audit(opened(losing), losing.store, the_set(losing), baseline=baseline, requirements=drop)

    @pytest.mark.slow
    def test_with_some_of_the_queries_where_there_are_many(
        self, losing: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(seen_unseen, "STAGED", 20)
        found = audit(opened(losing), losing.store, the_set(losing))
        for direction in DIRECTIONS:
            staged = [stage for stage in found.stages if (stage.direction, stage.kind) == (direction, SEEN)]
            assert {stage.queries for stage in staged} == {20}
            assert len(of(found, direction).per_query[SEEN].keys) > 20
            values = [found.measure(direction, "recall@10", part).value for part in ("seen reference", "seen lowering")]
            assert values[0] == values[1]

    @pytest.mark.parametrize("text", ["harmonic fidelity@10>=.9", "seen found@10>=.9", "unseen index:recall@10>=.9"])
    def test_what_is_not_measured_of_a_kind_is_refused_at_once(self, served: World, text: str) -> None:
        with raises(RequirementError, text):
            audit(opened(served), served.store, the_set(served), requirements=[Requirement.parse(text)])


class TestWithoutQueries:
    """What is not known is said, never guessed, and nothing else fails of it."""

    @pytest.mark.slow
    def test_a_set_whose_every_pair_took_part_in_the_fit_has_no_unseen_items(self, world: World) -> None:
        nobody = HoldOut(0.0, 0)
        fit(world, *pairs(30), hold_out=nobody)
        world.push(world.set("s", *pairs(30)))
        require = [Requirement.parse("unseen recall@10>=0.1")]
        found = audit(opened(world), world.store, the_set(world), queries="all", gallery="all", requirements=require)
        for direction, (_, target) in DIRECTIONS.items():
            assert of(found, direction).why_not == {UNSEEN: f"the fit saw every {target} of the collection"}
            assert of(found, direction).curve is None
            assert {m.part for m in found.measures if m.direction == direction} >= {SEEN}
            assert not {m.part for m in found.measures if m.direction == direction} & {UNSEEN, HARMONIC}
        assert not any(m.name in ("first_places", "ausuc") for m in found.measures)
        assert [failure.requirement.text for failure in found.failures] == ["unseen recall@10>=0.1"]
        assert found.verdict == "failed"

    @pytest.mark.slow
    @pytest.mark.parametrize("hold_out", [HoldOut(), HoldOut(1.0, 0)])
    def test_a_gallery_without_a_seen_item(self, world: World, hold_out: HoldOut) -> None:
        """Every pair is held out, or the pairs of the fit were never pushed."""
        parts = pairs(80)
        fit(world, *pairs(30, seed=9, prefix="other"), hold_out=HoldOut(0.0, 0))
        held = hold_out.held_out(parts[0].groups)
        rows = [part.take(np.flatnonzero(held).tolist()) for part in parts]
        made = alignment(hold_out=hold_out)
        replace(made, seen={part.modality: SeenItems.of(["f" * 64]) for part in parts}).save(
            world.home / "alignments" / "b"
        )
        world.push(world.set("s", *rows), "b")
        found = audit(opened(world), world.store, the_set(world))
        for direction, (_, target) in DIRECTIONS.items():
            assert of(found, direction).why_not == {SEEN: f"the collection holds no {target} that the fit saw"}
            assert value(found, direction, "recall@1", UNSEEN) == value(found, direction, "recall@1")
        assert all("not known" in sentence for sentence in found.in_words if "known items" in sentence)

    @pytest.mark.parametrize("n", [4, 6])
    def test_a_handful_of_pairs(self, world: World, n: int) -> None:
        parts = pairs(n)
        hold_out = HoldOut(0.5, 1)
        assert 0 < hold_out.held_out(parts[0].groups).sum() < n
        fit(world, *parts, hold_out=hold_out)
        world.push(world.set("s", *parts))
        found = audit(opened(world), world.store, the_set(world), ks=(1, 2))
        for direction in DIRECTIONS:
            for kind in (SEEN, UNSEEN, HARMONIC):
                assert 0 <= value(found, direction, "recall@2", kind) <= 1

    @pytest.mark.slow
    def test_an_older_alignment_says_that_it_cannot_tell_new_items(self, world: World) -> None:
        alignment().save(world.home / "alignments" / "a")
        world.push(world.set("s", *several(N)))
        found = audit(opened(world), world.store, the_set(world))
        assert any("does not record what its fit saw" in finding for finding in found.findings)
        assert of(found, "text-to-image").about[SEEN] == "paraphrases of the texts of seen items"

    def test_pairs_that_are_about_other_items_than_a_kind(self, world: World) -> None:
        """A set of held-out pairs alone asks about no seen item, though the collection holds some."""
        parts = pairs(80)
        fit(world, *parts)
        world.push(world.set("s", *parts))
        held = np.flatnonzero(HoldOut().held_out(parts[0].groups)).tolist()
        found = audit(opened(world), world.store, world.set("few", *(part.take(held) for part in parts)))
        reasons = {direction: of(found, direction).why_not for direction in DIRECTIONS}
        assert reasons == {
            "text-to-image": {SEEN: "no text of the pairs is about one of the images that the fit saw"},
            "image-to-text": {SEEN: "no image of the pairs is about one of the texts that the fit saw"},
        }


class TestRequirements:
    """What is written bounds the whole collection, gates, and is checked before anything is searched."""

    @pytest.mark.slow
    def test_gate_the_whole_collection_and_say_so(self, served: World) -> None:
        whole = {part: value(self.of(served), "text-to-image", "recall@10", part) for part in (UNSEEN, HARMONIC)}
        texts = [
            f"text-to-image:unseen recall@10>={whole[UNSEEN] - 0.01}",
            f"text-to-image:unseen recall@10>={whole[UNSEEN] + 0.01}",
            f"text-to-image:harmonic:recall@10<{whole[HARMONIC] + 0.01}",
            "text-to-image:recall@10>=1",
            "first_places<=1",
        ]
        found = self.of(served, *texts)
        assert [failure.requirement.text for failure in found.failures] == [texts[1], texts[3]]
        not_met = [sentence for sentence in found.in_words if sentence.startswith("Not met")]
        assert not_met[0].endswith("in the whole collection.")
        assert not_met[1].endswith("among held-out items alone.")

    @pytest.mark.parametrize("text", ["unseen recall@10>=.4", "harmonic recall@1>=.1", "first_places<=.9"])
    def test_are_refused_before_the_audit_of_a_protocol(self, world: World, text: str) -> None:
        parts = pairs(30)
        fit(world, *parts)
        world.push(world.set("s", *parts))
        with raises(RequirementError, text):
            check_known([Requirement.parse(text)], [("text-to-image", "", "recall@10")], None)

    def of(self, served: World, *texts: str) -> Audit:
        require = [Requirement.parse(text) for text in texts]
        return audit(opened(served), served.store, the_set(served), requirements=require)


class TestBaseline:
    @pytest.mark.slow
    def test_an_offset_is_compared_with_none_query_by_query(self, served: World) -> None:
        """The paired bootstrap over the queries of each kind, and over both for their harmonic mean."""
        before, after = (recorded(served, collection) for collection in (COLLECTION, WITH_OFFSETS))
        baseline = find_baseline(served.provenance, after.row, str(before.number), AuditPlan(), "s")
        asked = [Requirement.parse(text) for text in ("unseen recall@10 drop<=0", "seen recall@1 drop<=0.001")]
        release = open_release(served.provenance, served.store, WITH_OFFSETS, "cosine")
        found = audit(release, served.store, the_set(served), baseline=baseline, requirements=asked)
        drifts = {(d.direction, d.part, d.name): d.change for d in found.drifts}
        for direction in DIRECTIONS:
            for part in (UNSEEN, SEEN, HARMONIC):
                change = drifts[direction, part, "recall@10"]
                assert change.before == pytest.approx(value(before, direction, "recall@10", part))
                assert change.after == pytest.approx(value(found, direction, "recall@10", part))
                assert (change.only_before, change.only_after) == (0, 0)
        assert drifts["text-to-image", UNSEEN, "recall@10"].difference.low > 0
        assert drifts["text-to-image", SEEN, "recall@1"].difference.high < 0
        assert {failure.requirement.text for failure in found.failures} == {"seen recall@1 drop<=0.001"}

    @pytest.mark.slow
    def test_paraphrases_of_another_seed_are_not_the_same_queries(self, served: World) -> None:
        before = recorded(served, COLLECTION)
        baseline = find_baseline(served.provenance, before.row, str(before.number), AuditPlan(seed=1), "s")
        found = audit(opened(served), served.store, the_set(served), baseline=baseline, seed=1)
        compared = {(d.direction, d.part) for d in found.drifts}
        assert ("image-to-text", UNSEEN) in compared
        assert not {("image-to-text", SEEN), ("image-to-text", HARMONIC)} & compared

    @pytest.mark.slow
    def test_an_audit_from_before_has_none_of_it(self, served: World) -> None:
        """The rest is compared all the same; a drop of it is refused at once."""
        before = recorded(served, COLLECTION)
        baseline = replace(find_baseline(served.provenance, before.row, str(before.number), AuditPlan(), "s"), kinds={})
        found = audit(opened(served), served.store, the_set(served), baseline=baseline)
        assert found.drifts
        assert not {d.part for d in found.drifts} & {UNSEEN, SEEN, HARMONIC}
        drop = [Requirement.parse("unseen recall@10 drop<=0.1")]
        with raises(RequirementError, baseline.number):
            audit(opened(served), served.store, the_set(served), baseline=baseline, requirements=drop)


def recorded(world: World, collection: str) -> Audit:
    release = open_release(world.provenance, world.store, collection, "cosine")
    found = audit(release, world.store, the_set(world))
    with world.provenance.runs.start("audit", {}) as run:
        number = record(found, world.provenance, run, world.provenance.artifacts.record_set(the_set(world)))
    return replace(found, number=number)


@pytest.mark.slow
def test_every_number_is_recorded_in_sql(served: World) -> None:
    found = recorded(served, WITH_OFFSETS)
    with served.provenance.database.session() as session:
        rows = session.scalars(select(MeasureRow).where(MeasureRow.audit_id == found.number)).all()
        kept = {(row.direction, row.part, row.name): (row.stage, row.value, row.low, row.high) for row in rows}
    for result in found.seen_unseen:
        for m in result.measures:
            stage, _ = stage_and_stratum(m.part)
            assert kept[m.direction, m.part, m.name] == (stage, m.value, m.low, m.high)
    (summary,) = history(served.provenance, [found.row], limit=1)
    assert {m.part for m in summary.measures} >= {UNSEEN, SEEN, HARMONIC}
