"""Fusing images and captions: by what scores are standardised, how much captions count, and when that is measured."""

from pathlib import Path

import numpy as np
import pytest

from alignment.modality import MODALITIES
from alignment.retrieval.caption_weight import CAPTION_WEIGHT
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows
from connector.errors import MismatchError
from connector.releases.fusion import Fusion, Standard
from connector.releases.release import Release
from connector.search.retriever import Retriever
from tests.support.errors import raises
from tests.support.world import COLLECTION, alignment, embedded, latent, opened_world, rows, scores

N = 60
HALF = HoldOut(0.5, 3)


def things(
    *, image_noise: float = 0.0, caption_noise: float = 1.0, captions: int = 3, same: bool = False
) -> list[Rows]:
    """`N` images with captions, as noisy as that; `same`: all captions of a thing have one content."""
    points, numbers = latent(N), [number for number in range(N) for _ in range(captions)]
    vectors = embedded("text", points[numbers], noise=caption_noise)
    if same:
        vectors = vectors[[captions * number for number in numbers]]
    text = rows(
        "text",
        vectors,
        keys=[f"{number}#{place}" for place, number in enumerate(numbers)],
        groups=[str(number) for number in numbers],
    )
    return [rows("image", embedded("image", points, noise=image_noise)), text]


def pushed(tmp_path: Path, *parts: Rows, hold_out: HoldOut = HALF, metric: str = "cosine") -> Release:
    with opened_world("edge", tmp_path) as world:
        world.alignment(hold_out=hold_out)
        world.push(world.set("s", *parts), metrics=[metric])
        return Retriever.open(world.provenance, world.store, COLLECTION).release


class TestHowMuchCaptionsCount:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("image_noise", "caption_noise", "expected"), [(3.0, 0.4, {0.9}), (0.0, 1.2, {0.1, 0.25, 0.5})]
    )
    def test_it_follows_from_what_finds_more(
        self,
        image_noise: float,
        caption_noise: float,
        expected: set[float],
        tmp_path: Path,
    ) -> None:
        parts = things(image_noise=image_noise, caption_noise=caption_noise)
        fusion = pushed(tmp_path, *parts).fusion
        assert fusion is not None
        assert fusion.weight in expected
        assert fusion.queries >= 30

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "parts", [things(captions=1), things(same=True), [*things()[:1], things()[1].take(range(6))]]
    )
    def test_a_caption_never_finds_itself(self, parts: list[Rows], tmp_path: Path) -> None:
        fusion = pushed(tmp_path, *parts).fusion
        assert fusion is not None
        assert (fusion.weight, fusion.queries) == (CAPTION_WEIGHT, 0)

    def test_only_captions_that_the_fit_never_saw_ask(self, tmp_path: Path) -> None:
        fusion = pushed(tmp_path, *things(), hold_out=HoldOut(0.05, 3)).fusion
        assert fusion is not None
        assert fusion.queries == 0


class TestWhatScoresAreStandardisedBy:
    @pytest.mark.slow
    @pytest.mark.parametrize("metric", ["cosine", "euclid", "chi2"])
    def test_means_and_deviations_of_scores_at_large(self, metric: str, tmp_path: Path) -> None:
        parts = things()
        release = pushed(tmp_path, *parts, metric=metric)
        assert release.fusion is not None
        ours = alignment()
        queries = ours.project("text", parts[1].vectors)
        for modality, items in zip(MODALITIES, parts, strict=True):
            of_all = scores(ours.metric(release.metric, items=modality), queries, ours.project(modality, items.vectors))
            own = release.fusion.standards[modality]
            assert own.mean == pytest.approx(np.mean(of_all), abs=0.3 * float(np.std(of_all)))
            assert own.deviation == pytest.approx(np.std(of_all), rel=0.2)

    @pytest.mark.parametrize("part", [0, 1])
    def test_a_release_of_one_modality_has_nothing_to_fuse(self, part: int, tmp_path: Path) -> None:
        assert pushed(tmp_path, things()[part]).fusion is None


class TestWhenItIsMeasured:
    @pytest.mark.slow
    def test_a_release_that_an_earlier_version_pushed_has_it_after_the_next_push(self, tmp_path: Path) -> None:
        with opened_world("edge", tmp_path) as world:
            world.alignment(hold_out=HALF)
            first = world.set("s", *things())
            world.push(first, metrics=["cosine"])
            row = world.provenance.releases.find(collection=COLLECTION)[0]
            measured = row.fusion
            world.provenance.releases.change(row, fusion=None)
            world.push(first, metrics=["cosine"])
            assert world.provenance.releases.find(collection=COLLECTION)[0].fusion == measured

    @pytest.mark.slow
    def test_captions_that_come_later_complete_it_and_images_alone_leave_it(self, tmp_path: Path) -> None:
        image, text = things()
        with opened_world("edge", tmp_path) as world:
            world.alignment(hold_out=HALF)
            for name, part in (("images", image), ("captions", text)):
                world.push(world.set(name, part), metrics=["cosine"])
            fusion = Retriever.open(world.provenance, world.store, COLLECTION).release.fusion
            assert fusion is not None
            more = rows("image", embedded("image", latent(5, seed=3)), keys=[f"more {number}" for number in range(5)])
            world.push(world.set("more", more), metrics=["cosine"])
            assert Retriever.open(world.provenance, world.store, COLLECTION).release.fusion == fusion


class TestWhatSqlHolds:
    FUSION = Fusion({"image": Standard(0.1, 0.3), "text": Standard(-2.0, 0.4)}, 0.6, 31)

    def test_it_is_read_as_it_was_recorded(self) -> None:
        assert Fusion.read(self.FUSION.recorded()) == self.FUSION

    @pytest.mark.parametrize(
        "damage",
        [
            {"image": None},
            {"text": {"mean": 0.0, "deviation": 0.0}},
            {"text": {"mean": float("nan"), "deviation": 1.0}},
            {"caption_weight": 1.0},
            {"caption_weight": "much"},
            {"queries": None},
        ],
    )
    def test_what_no_push_wrote_is_refused(self, damage: dict[str, object], tmp_path: Path) -> None:
        with opened_world("edge", tmp_path) as world:
            world.alignment()
            world.push(world.set("s", *things(captions=1)), metrics=["cosine"])
            row = world.provenance.releases.find(collection=COLLECTION)[0]
            world.provenance.releases.change(row, fusion={**self.FUSION.recorded(), **damage})
            with raises(MismatchError, row.physical_name, "fusion"):
                Retriever.open(world.provenance, world.store, COLLECTION)


def test_weights_add_up_and_one_score_stands_for_both() -> None:
    fusion = Fusion({"image": Standard(0.0, 0.5), "text": Standard(1.0, 2.0)}, 0.25)
    assert fusion.score({"image": 1.0, "text": 5.0}) == pytest.approx(0.75 * 2 + 0.25 * 2)
    assert fusion.score({"image": 1.0}) == 2.0
    assert fusion.score({"text": 5.0}) == 2.0
