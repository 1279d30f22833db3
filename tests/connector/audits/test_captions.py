"""What captions alone would find: measured by captions that never find themselves, and said in words."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.metrics import parse, with_seen
from alignment.modality import MODALITIES, Modality
from alignment.retrieval.paraphrases import paraphrases
from alignment.retrieval.ways import WAYS
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows
from alignment.vectors import FloatArray
from connector.audits.captions import (
    CAPTIONED,
    COMPARED,
    FEWEST_QUERIES,
    PARAPHRASED,
    UNCAPTIONED,
    WORDS_OWN,
    WORDS_SHARED,
    AnsweredCaptions,
    CaptionBaseline,
    summarise,
)
from connector.audits.plan import AuditPlan
from connector.audits.requirements import Requirement
from connector.audits.result import Audit
from connector.errors import RequirementError
from connector.releases.fusion import Fusion, Standard
from connector.releases.points import point_id
from connector.search.other_captions import CaptionScores
from tests.support.errors import raises
from tests.support.world import (
    World,
    alignment,
    audit,
    embedded,
    latent,
    opened,
    opened_world,
    rows,
    scores,
    several,
    the_set,
)

N, K = 45, 10
METRICS = [str(parse(text)) for text in ("cosine", "euclid", "chi2", "dot+nnn")]
WORDS = ["red", "car", "fast", "old", "small"]


def parts() -> list[Rows]:
    """Things with one to three captions: the second has only words of the first, the third has others."""
    image, text = several(N)
    captions = [{"caption": " ".join(WORDS[: 3 - int(key.split("#")[1]) % 3])} for key in text.keys]
    return [image, rows("text", text.vectors, keys=text.keys, groups=text.groups, payloads=captions)]


OURS: dict[str, Any] = {
    "hold_out": HoldOut(0.3, 5),
    "seen": [part.take([row for row, group in enumerate(part.groups) if int(group) % 3]) for part in parts()],
    "offsets": {"image": 0.3, "text": 0.15},
}


@pytest.fixture(autouse=True, scope="module")
def small_samples() -> None:
    """As many queries are asked as in the audits of users."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with opened_world("edge", tmp_path_factory.mktemp("world")) as world:
        world.alignment(**OURS)
        world.push(world.set("s", *parts()), metrics=METRICS)
        yield world


def seen_images(items: Rows) -> FloatArray:
    """Aligned vectors of images (n, d), which say of each whether the fit saw it."""
    ours = alignment(**OURS)
    held_out = ours.card.hold_out.held_out(items.groups)
    return with_seen(ours.project("image", items.vectors), ours.seen["image"].holds(items.content_sha256) & ~held_out)


def ranks(metric: str, fusion: Fusion, number: int) -> dict[str, float]:
    """The rank of its own item, by each way, for one caption that is left out of what is searched."""
    ours, plain, text = alignment(**OURS), alignment(), parts()[1]
    query, group, content = (
        ours.project("text", text.vectors[[number]]),
        text.groups[number],
        text.content_sha256[number],
    )
    best: defaultdict[str, dict[Modality, float]] = defaultdict(dict)
    for modality, items in zip(MODALITIES, parts(), strict=True):
        vectors, bound = ours.project(modality, items.vectors), plain.metric(parse(metric), modality)
        if modality == "image":
            vectors, bound = seen_images(items), ours.metric(parse(metric), modality)
        for row, score in enumerate(scores(bound, query, vectors)[0]):
            if (modality, items.groups[row], items.content_sha256[row]) != ("text", group, content):
                name = items.groups[row]
                best[name][modality] = max(float(score), best[name].get(modality, -np.inf))
    found: dict[str, float] = {}
    for way, modalities in COMPARED.items():
        of_way = {
            name: fusion.score(present)
            for name, each in best.items()
            if (present := {m: each[m] for m in modalities if m in each})
        }
        own = of_way.get(group, -np.inf)
        better = sum(score >= own for name, score in of_way.items() if name != group)
        found[way] = 1 + better if group in of_way else np.inf
    return found


def fitted(group: str) -> bool:
    """Whether the fit saw the items of a group: their captions never ask."""
    (held_out,) = OURS["hold_out"].held_out([group])
    return bool(int(group) % 3) and not held_out


class TestWhatIsMeasured:
    @pytest.mark.slow
    @pytest.mark.parametrize("metric", METRICS)
    def test_each_way_as_comparing_everything_finds(self, served: World, metric: str) -> None:
        release = opened(served, metric)
        assert release.fusion is not None
        found = audit(release, served.store, the_set(served), ks=(1, K), queries="all").captions
        assert found is not None
        text = parts()[1]
        expected = [ranks(metric, release.fusion, number) for number in range(len(text))]
        further = np.array([text.groups.count(group) > 1 for group in text.groups])
        asks = np.array([not fitted(group) for group in text.groups])
        kinds = {kind.kind: kind for kind in found.kinds}
        for name, chosen in ((CAPTIONED, further & asks), (UNCAPTIONED, ~further & asks)):
            assert kinds[name].queries == chosen.sum()
            for way in COMPARED:
                of_way = np.array([each[way] for each in expected])[chosen]
                assert kinds[name].first[way].value == pytest.approx((of_way <= 1).mean())
                assert kinds[name].among[way].value == pytest.approx((of_way <= K).mean())
        assert kinds[UNCAPTIONED].among["caption"].value == 0
        assert found.share == 1.0

    @pytest.mark.slow
    def test_captions_of_the_fit_ask_by_paraphrases_alone(self, tmp_path: Path) -> None:
        with opened_world("edge", tmp_path) as world:
            world.alignment(seen=parts())
            world.push(world.set("s", *parts()), metrics=["cosine"])
            found = audit(opened(world), world.store, the_set(world), queries="all", gallery="all").captions
        assert found is not None
        assert found.paraphrased
        held_out = sum(alignment(seen=parts()).card.hold_out.held_out(parts()[1].groups))
        kinds = {kind.kind: kind.queries for kind in found.kinds}
        assert kinds.get(CAPTIONED, 0) + kinds.get(UNCAPTIONED, 0) == held_out
        assert kinds[PARAPHRASED] >= FEWEST_QUERIES

    @pytest.mark.slow
    def test_progress_counts_the_queries(self, served: World) -> None:
        done: list[int] = []
        found = audit(opened(served, "cosine"), served.store, the_set(served), advance=done.append).captions
        assert found is not None
        asked = sum(kind.queries for kind in found.kinds if kind.kind in (CAPTIONED, PARAPHRASED, UNCAPTIONED))
        assert asked > FEWEST_QUERIES
        assert done[-asked:] == [1] * asked

    @pytest.mark.slow
    def test_queries_whose_words_stand_in_a_caption_are_counted_apart(self, served: World) -> None:
        found = audit(opened(served, "cosine"), served.store, the_set(served), queries="all").captions
        assert found is not None
        captions: defaultdict[str, list[set[str]]] = defaultdict(list)
        text = parts()[1]
        for key, group in zip(text.keys, text.groups, strict=True):
            captions[group].append(set(WORDS[: 3 - int(key.split("#")[1]) % 3]))
        expected = sum(
            any(own <= other for place, other in enumerate(of_group) if place != number)
            for group, of_group in captions.items()
            if not fitted(group)
            for number, own in enumerate(of_group)
        )
        kinds = {kind.kind: kind.queries for kind in found.kinds}
        assert kinds[WORDS_SHARED] == expected > 0
        assert kinds[WORDS_SHARED] + kinds[WORDS_OWN] == kinds[CAPTIONED]

    @pytest.mark.slow
    def test_items_with_captions_are_counted_among_the_images_of_the_collection(self, tmp_path: Path) -> None:
        more = rows("image", embedded("image", latent(15, seed=8)), keys=[f"more {number}" for number in range(15)])
        with opened_world("edge", tmp_path) as world:
            world.alignment(hold_out=OURS["hold_out"])
            world.push(world.set("s", *parts()), metrics=["cosine"])
            world.push(world.set("more", more), metrics=["cosine"])
            found = audit(opened(world), world.store, the_set(world)).captions
            assert found is not None
            assert found.share == N / (N + 15)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Things of which each has one caption."""
    with opened_world("edge", tmp_path_factory.mktemp("single")) as world:
        world.alignment(**OURS)
        world.push(world.set("s", *with_one()), metrics=["cosine"])
        yield world


def with_one() -> list[Rows]:
    image, text = parts()
    return [image, text.take(text.groups.index(group) for group in image.groups)]


class TestItemsWithOneCaption:
    @pytest.mark.slow
    def test_are_asked_for_by_paraphrases_as_comparing_everything_finds(self, single: World) -> None:
        release = opened(single)
        assert release.fusion is not None
        found = audit(release, single.store, the_set(single), queries="all", seed=4).captions
        assert found is not None
        items, ours = with_one(), alignment(**OURS)
        moved = ours.project("text", paraphrases(items[1], seed=4).vectors)
        by_modality = {
            "image": scores(ours.metric(release.metric, "image"), moved, seen_images(items[0])),
            "text": scores(alignment().metric(release.metric, "text"), moved, ours.project("text", items[1].vectors)),
        }
        kinds = {kind.kind: kind for kind in found.kinds}
        assert kinds.keys() == {PARAPHRASED, UNCAPTIONED}
        assert kinds[PARAPHRASED].queries == N
        for way, modalities in COMPARED.items():
            fused = np.array(
                [
                    [release.fusion.score({m: float(by_modality[m][q, i]) for m in modalities}) for i in range(N)]
                    for q in range(N)
                ]
            )
            own = np.diag(fused)[:, None]
            of_way = (fused >= own).sum(axis=1)
            assert kinds[PARAPHRASED].first[way].value == pytest.approx((of_way <= 1).mean())
            assert kinds[PARAPHRASED].among[way].value == pytest.approx((of_way <= K).mean())
        assert found.paraphrased
        assert found.gain is not None

    @pytest.mark.slow
    def test_items_with_further_captions_are_asked_for_by_these(self, served: World) -> None:
        found = audit(opened(served, "cosine"), served.store, the_set(served), queries="all").captions
        assert found is not None
        assert not found.paraphrased
        assert PARAPHRASED not in {kind.kind for kind in found.kinds}

    @pytest.mark.slow
    def test_a_few_items_with_several_captions_ask_before_all_others(self, tmp_path: Path) -> None:
        numbers = [*range(250), *range(8), *range(8)]
        keys = [f"{number}#{place}" for place, number in enumerate(numbers)]
        texts = embedded("text", latent(250)[numbers] + 0.1 * latent(len(numbers), seed=3))
        captions = rows("text", texts, keys=keys, groups=[str(number) for number in numbers])
        with opened_world("edge", tmp_path) as world:
            world.alignment(hold_out=OURS["hold_out"], seen=[rows("text", embedded("text", latent(1, seed=9)))])
            world.push(world.set("s", rows("image", embedded("image", latent(250))), captions), metrics=["cosine"])
            found = audit(opened(world), world.store, the_set(world), queries="all").captions
        assert found is not None
        assert {kind.kind: kind.queries for kind in found.kinds}[CAPTIONED] == 24
        assert sum(kind.queries for kind in found.kinds if kind.kind in (CAPTIONED, UNCAPTIONED)) == 128
        assert not found.paraphrased


class TestRequirements:
    def test_gate_what_each_way_finds_of_the_whole_collection(self, single: World) -> None:
        plain = self.of(single)
        assert plain.captions is not None
        recall = {way: of_way[K].value for way, of_way in plain.captions.recall.items()}
        texts = [f"by {way} recall@10>={recall[way] + sign * 0.01}" for way in COMPARED for sign in (-1, 1)]
        found = self.of(single, *texts)
        assert [failure.requirement.text for failure in found.failures] == texts[1::2]
        not_met = [sentence for sentence in found.in_words if sentence.startswith("Not met")]
        assert all(sentence.endswith("in the whole collection.") for sentence in not_met)

    @pytest.mark.parametrize(
        "text", ["by caption mrr>=.1", "image-to-text:by image recall@10>=.1", "by fused recall@3>=1"]
    )
    def test_what_no_way_has_is_refused_with_the_list(self, single: World, text: str) -> None:
        with raises(RequirementError, text, "by image, by caption, by fused"):
            self.of(single, text)

    def test_a_release_without_captions_beside_images_has_none_of_them(self, tmp_path: Path) -> None:
        with opened_world("edge", tmp_path) as world:
            world.alignment(**OURS)
            world.push(world.set("s", *with_one()), metrics=["cosine"])
            world.provenance.releases.change(world.provenance.releases.find()[0], fusion=None)
            with raises(RequirementError, "by caption recall@10>=.1"):
                self.of(world, "by caption recall@10>=.1")

    def of(self, world: World, *texts: str) -> Audit:
        require = [Requirement.parse(text) for text in texts]
        return audit(opened(world), world.store, the_set(world), queries="all", requirements=require)


STANDARDS = Fusion({"image": Standard(0.0, 1.0), "text": Standard(0.0, 1.0)}, 0.75)


def answers(image: Sequence[int], caption: Sequence[int | None]) -> AnsweredCaptions:
    """Queries whose items rank so by image and by caption among 20 others; None: the item has no further caption."""
    made = []
    for by_image, by_caption in zip(image, caption, strict=True):
        own: dict[Modality, float] = {"image": 0.0}
        if by_caption is not None:
            own["text"] = 0.0
        others: dict[str, dict[Modality, float]] = {
            f"other {number}": {
                "image": 1.0 if number < by_image - 1 else -1.0,
                "text": 1.0 if number < (by_caption or 1) - 1 else -1.0,
            }
            for number in range(20)
        }
        made.append(CaptionScores(own, others, []))
    return AnsweredCaptions(rows("text", embedded("text", latent(len(made)))), made)


NONE = answers([], [])


def summed_up(own: AnsweredCaptions, moved: AnsweredCaptions = NONE, share: float = 1.0) -> CaptionBaseline:
    """What the answers say at the lists of an audit."""
    return summarise(own, moved, STANDARDS, AuditPlan(ks=(1, K)), share)


class TestWhatItSays:
    def test_captions_that_find_everything_are_advised_and_images_add_nothing(self) -> None:
        found = summed_up(answers([15] * 30, [1] * 30))
        assert found.advised == "caption"
        assert found.gain is not None
        assert found.gain.low <= 0 <= found.gain.high

    def test_images_that_find_what_captions_do_not(self) -> None:
        found = summed_up(answers([1] * 30, [15] * 30))
        assert found.advised == "image"

    def test_ways_that_find_as_many_differ_by_what_they_find_first(self) -> None:
        found = summed_up(answers([K] * 30, [1] * 30))
        assert len({found.recall[way][K].value for way in WAYS}) == 1
        assert found.advised == "caption"

    @pytest.mark.parametrize(("share", "advised"), [(1.0, "caption"), (0.2, "fused")])
    def test_the_advice_weighs_items_without_a_caption_by_their_share(self, share: float, advised: str) -> None:
        captions: list[int | None] = [*[1] * 30, *[None] * 30]
        found = summed_up(answers([15] * 30 + [1] * 30, captions), share=share)
        assert found.advised == advised
        assert {kind.kind: kind.among["caption"].value for kind in found.kinds}[UNCAPTIONED] == 0

    def test_too_few_further_captions_measure_nothing(self) -> None:
        found = summed_up(answers([1] * 30, [1] * 5 + [None] * 25), answers([1] * 6, [1] * 6))
        assert (found.advised, found.gain, found.recall, found.measures) == (None, None, {}, [])
        assert len(found.says) == 1
        assert "5 of the queries" in found.says[0]
        assert " 6 " in found.says[0]

    @pytest.mark.parametrize(("image", "caption", "advised"), [(15, 1, "fused"), (1, 15, "image"), (1, 1, "image")])
    def test_paraphrases_advise_no_captions_alone_as_they_flatter_them(
        self, image: int, caption: int, advised: str
    ) -> None:
        own = answers([image] * 30, [None] * 30)
        found = summed_up(own, answers([image] * 30, [caption] * 30))
        assert found.paraphrased
        assert found.advised == advised
        assert found.says[0].startswith("0 of the queries are about an item with a further caption")
        assert {kind.kind: kind.queries for kind in found.kinds} == {PARAPHRASED: 30, UNCAPTIONED: 30}

    def test_a_paraphrase_whose_caption_is_not_in_the_collection_does_not_count(self) -> None:
        found = summed_up(answers([1] * 30, [None] * 30), answers([1] * 30, [1] * 25 + [None] * 5))
        assert {kind.kind: kind.queries for kind in found.kinds}[PARAPHRASED] == 25

    @pytest.mark.parametrize(
        ("caption", "adds"), [(1, "cannot be told apart from captions alone"), (15, "adds to captions")]
    )
    @pytest.mark.parametrize("paraphrased", [False, True])
    def test_whether_the_alignment_adds_to_captions(self, caption: int, adds: str, paraphrased: bool) -> None:
        asked = answers([1] * 30, [caption] * 30)
        own = answers([1] * 30, [None] * 30) if paraphrased else asked
        heavy_images = Fusion(STANDARDS.standards, 0.25)
        found = summarise(own, asked if paraphrased else NONE, heavy_images, AuditPlan(ks=(1, K)), 1.0)
        assert [sentence for sentence in found.says if adds in sentence]

    @pytest.mark.parametrize(("queries", "chosen"), [(0, "default"), (45, "45 captions")])
    def test_what_chose_the_weights(self, queries: int, chosen: str) -> None:
        fusion = Fusion(STANDARDS.standards, 0.9, queries)
        found = summarise(answers([1] * 30, [1] * 30), NONE, fusion, AuditPlan(), 1.0)
        (sentence,) = [sentence for sentence in found.says if "weigh captions 0.9" in sentence]
        assert chosen in sentence


class TestTheMeasuresOfEachWay:
    @pytest.mark.parametrize("paraphrased", [False, True])
    @pytest.mark.parametrize("share", [1.0, 0.2])
    def test_weigh_items_with_captions_and_without_by_their_share(self, share: float, paraphrased: bool) -> None:
        with_captions, without = answers([15] * 30, [1] * 20 + [15] * 10), answers([1] * 30, [None] * 30)
        own = (
            without
            if paraphrased
            else AnsweredCaptions(
                rows("text", embedded("text", latent(60))), [*with_captions.answers, *without.answers]
            )
        )
        found = summed_up(own, with_captions if paraphrased else NONE, share)
        measured = {(m.part, m.name): (m.value, m.queries) for m in found.measures}
        for name in ("recall@1", "recall@10"):
            for part, expected in (("by caption", share * 2 / 3), ("by image", 1 - share)):
                value, queries = measured[part, name]
                assert value == pytest.approx(expected)
                assert queries == 60
        assert {m.direction for m in found.measures} == {"text-to-image"}

    def test_are_of_the_lists_of_the_audit_that_ranks_are_exact_for(self) -> None:
        found = summarise(answers([1] * 30, [1] * 30), NONE, STANDARDS, AuditPlan(ks=(5, 20)), 1.0)
        assert {m.name for m in found.measures} == {"recall@1", "recall@5", "recall@10"}


def test_a_release_of_images_alone_has_no_captions_to_compare_with(tmp_path: Path) -> None:
    with opened_world("edge", tmp_path) as world:
        world.alignment(hold_out=OURS["hold_out"])
        world.push(world.set("s", *parts()), metrics=["cosine"])
        row = world.provenance.releases.find()[0]
        world.provenance.releases.change(row, fusion=None)
        assert audit(opened(world), world.store, the_set(world)).captions is None


def test_a_collection_whose_images_are_gone_has_no_image_with_a_caption(tmp_path: Path) -> None:
    with opened_world("edge", tmp_path) as world:
        world.alignment(hold_out=OURS["hold_out"])
        (release,) = world.push(world.set("s", *parts()), metrics=["cosine"]).releases
        world.store.delete(release.name, [point_id("image", key) for key in parts()[0].keys])
        found = audit(opened(world), world.store, the_set(world), queries="all", gallery="all").captions
        assert found is not None
        assert found.share == 0
