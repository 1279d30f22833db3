"""What captions alone would find: measured by captions that never find themselves, and said in words."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.metrics import parse, with_seen
from alignment.modality import MODALITIES, Modality
from alignment.sets.hold_out import HoldOut
from alignment.sets.rows import Rows
from connector.audits.captions import CAPTIONED, COMPARED, UNCAPTIONED, WORDS_OWN, WORDS_SHARED, summarise
from connector.releases.fusion import Fusion, Standard
from connector.releases.points import point_id
from connector.search.other_captions import Answer
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


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with (
        pytest.MonkeyPatch.context() as patched,
        opened_world("edge", tmp_path_factory.mktemp("world"), patched) as world,
    ):
        world.alignment(**OURS)
        world.push(world.set("s", *parts()), metrics=METRICS)
        yield world


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
            held_out = ours.card.hold_out.held_out(items.groups)
            vectors = with_seen(vectors, ours.seen["image"].holds(items.content_sha256) & ~held_out)
            bound = ours.metric(parse(metric), modality)
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


class TestWhatIsMeasured:
    @pytest.mark.parametrize("metric", METRICS)
    def test_each_way_as_comparing_everything_finds(self, served: World, metric: str) -> None:
        release = opened(served, metric)
        assert release.fusion is not None
        found = audit(release, served.store, the_set(served), ks=(1, K), queries="all").captions
        assert found is not None
        text = parts()[1]
        expected = [ranks(metric, release.fusion, number) for number in range(len(text))]
        further = np.array([text.groups.count(group) > 1 for group in text.groups])
        kinds = {kind.kind: kind for kind in found.kinds}
        for name, chosen in ((CAPTIONED, further), (UNCAPTIONED, ~further)):
            assert kinds[name].queries == chosen.sum()
            for way in COMPARED:
                of_way = np.array([each[way] for each in expected])[chosen]
                assert kinds[name].first[way].value == pytest.approx((of_way <= 1).mean())
                assert kinds[name].among[way].value == pytest.approx((of_way <= K).mean())
        assert kinds[UNCAPTIONED].among["caption"].value == 0
        assert found.share == 1.0

    def test_queries_whose_words_stand_in_a_caption_are_counted_apart(self, served: World) -> None:
        found = audit(opened(served, "cosine"), served.store, the_set(served), queries="all").captions
        assert found is not None
        captions: defaultdict[str, list[set[str]]] = defaultdict(list)
        text = parts()[1]
        for key, group in zip(text.keys, text.groups, strict=True):
            captions[group].append(set(WORDS[: 3 - int(key.split("#")[1]) % 3]))
        expected = sum(
            any(own <= other for place, other in enumerate(of_group) if place != number)
            for of_group in captions.values()
            for number, own in enumerate(of_group)
        )
        kinds = {kind.kind: kind.queries for kind in found.kinds}
        assert kinds[WORDS_SHARED] == expected > 0
        assert kinds[WORDS_SHARED] + kinds[WORDS_OWN] == kinds[CAPTIONED]

    def test_items_with_captions_are_counted_among_the_images_of_the_collection(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        more = rows("image", embedded("image", latent(15, seed=8)), keys=[f"more {number}" for number in range(15)])
        with opened_world("edge", tmp_path, monkeypatch) as world:
            world.alignment(hold_out=OURS["hold_out"])
            world.push(world.set("s", *parts()), metrics=["cosine"])
            world.push(world.set("more", more), metrics=["cosine"])
            found = audit(opened(world), world.store, the_set(world)).captions
            assert found is not None
            assert found.share == N / (N + 15)


STANDARDS = Fusion({"image": Standard(0.0, 1.0), "text": Standard(0.0, 1.0)}, 0.75)


def answers(image: Sequence[int], caption: Sequence[int | None]) -> tuple[Rows, list[Answer]]:
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
        made.append(Answer(own, others, []))
    return rows("text", embedded("text", latent(len(made)))), made


class TestWhatItSays:
    def test_captions_that_find_everything_are_advised_and_images_add_nothing(self) -> None:
        found = summarise(*answers([15] * 30, [1] * 30), STANDARDS, K, 1.0, seed=0)
        assert found.advised == "caption"
        assert found.gain is not None
        assert found.gain.low <= 0 <= found.gain.high

    def test_images_that_find_what_captions_do_not(self) -> None:
        found = summarise(*answers([1] * 30, [15] * 30), STANDARDS, K, 1.0, seed=0)
        assert found.advised == "image"

    @pytest.mark.parametrize(("share", "advised"), [(1.0, "caption"), (0.2, "fused")])
    def test_the_advice_weighs_items_without_a_caption_by_their_share(self, share: float, advised: str) -> None:
        captions: list[int | None] = [*[1] * 30, *[None] * 30]
        found = summarise(*answers([15] * 30 + [1] * 30, captions), STANDARDS, K, share, seed=0)
        assert found.advised == advised
        assert {kind.kind: kind.among["caption"].value for kind in found.kinds}[UNCAPTIONED] == 0

    def test_too_few_further_captions_measure_nothing(self) -> None:
        found = summarise(*answers([1] * 30, [1] * 5 + [None] * 25), STANDARDS, K, 1.0, seed=0)
        assert (found.advised, found.gain, len(found.says)) == (None, None, 1)
        assert "5 of the queries" in found.says[0]


def test_a_release_of_images_alone_has_no_captions_to_compare_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened_world("edge", tmp_path, monkeypatch) as world:
        world.alignment(hold_out=OURS["hold_out"])
        world.push(world.set("s", *parts()), metrics=["cosine"])
        row = world.provenance.releases.find()[0]
        world.provenance.releases.change(row, fusion=None)
        assert audit(opened(world), world.store, the_set(world)).captions is None


def test_a_collection_whose_images_are_gone_has_no_image_with_a_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened_world("edge", tmp_path, monkeypatch) as world:
        world.alignment(hold_out=OURS["hold_out"])
        (release,) = world.push(world.set("s", *parts()), metrics=["cosine"]).releases
        world.store.delete(release.name, [point_id("image", key) for key in parts()[0].keys])
        found = audit(opened(world), world.store, the_set(world), queries="all", gallery="all").captions
        assert found is not None
        assert found.share == 0
