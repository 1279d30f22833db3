"""What captions alone would find: the rank of a caption's own item among the captions of all others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.comparison.captions import FEWEST_QUERIES, ByWay, CaptionsAlone, caption_queries
from alignment.retrieval.bootstrap import Estimate
from alignment.retrieval.caption_weight import CAPTION_WEIGHT
from alignment.retrieval.grouped import ModalityEmbeddings
from alignment.retrieval.paraphrases import paraphrased
from alignment.retrieval.ways import Way
from alignment.vectors import FloatArray, l2_normalize


def captions(groups: list[int], seed: int, *, noise: float = 0.8) -> ModalityEmbeddings:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((200, 8))
    vectors = centres[groups] + noise * rng.standard_normal((len(groups), 8))
    return ModalityEmbeddings(vectors.astype(np.float32), np.array(groups, np.int64))


def by_hand(asking: ModalityEmbeddings, known: ModalityEmbeddings) -> list[int]:
    """Ranks of the items of held-out captions that have a further one."""
    vectors: FloatArray = l2_normalize(np.concatenate([asking.vectors, known.vectors]))
    groups, ranks = [*asking.groups, *known.groups], []
    for number, group in enumerate(asking.groups):
        best: dict[int, float] = {}
        for other, score in enumerate((vectors @ vectors[number]).tolist()):
            if other != number:
                best[groups[other]] = max(score, best.get(groups[other], -np.inf))
        if group in best:
            ranks.append(1 + sum(score >= best[group] for of, score in best.items() if of != group))
    return ranks


def by_paraphrase(asking: ModalityEmbeddings, known: ModalityEmbeddings, seed: int) -> list[int]:
    """Ranks of the items of all held-out captions, by paraphrases."""
    vectors = l2_normalize(np.concatenate([asking.vectors, known.vectors]))
    groups, ranks = [*asking.groups, *known.groups], []
    for group, moved in zip(asking.groups, paraphrased(asking.vectors, seed=seed), strict=True):
        best: dict[int, float] = {}
        for other, score in zip(groups, (vectors @ moved).tolist(), strict=True):
            best[other] = max(score, best.get(other, -np.inf))
        ranks.append(1 + sum(score >= best[group] for of, score in best.items() if of != group))
    return ranks


def joined(one: ModalityEmbeddings, other: ModalityEmbeddings) -> ModalityEmbeddings:
    return ModalityEmbeddings(np.concatenate([one.vectors, other.vectors]), np.concatenate([one.groups, other.groups]))


def alone(asking: ModalityEmbeddings, known: ModalityEmbeddings, seed: int) -> CaptionsAlone:
    return caption_queries(joined(asking, known), np.unique(asking.groups), seed).alone(seed)


@pytest.mark.slow
@given(sizes=st.lists(st.integers(1, 4), min_size=25, max_size=60), seed=st.integers(0, 99))
def test_recall_is_that_of_asking_one_by_one(sizes: list[int], seed: int) -> None:
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    asking, known = captions(groups, seed), captions([*range(100, 160)], seed + 1)
    found, ranks = alone(asking, known, seed), by_hand(asking, known)
    assert found.paraphrased == (len(ranks) < FEWEST_QUERIES)
    if found.paraphrased:
        ranks = by_paraphrase(asking, known, seed)
    assert found.queries == len(ranks)
    assert found.first is not None
    assert found.among is not None
    assert found.first.value == pytest.approx(np.mean([rank <= 1 for rank in ranks]))
    assert found.among.value == pytest.approx(np.mean([rank <= 10 for rank in ranks]))


def test_a_caption_finds_neither_itself_nor_another_of_its_content_so_paraphrases_ask() -> None:
    once = captions([*range(40)], 3)
    twice = ModalityEmbeddings(np.repeat(once.vectors, 2, axis=0), np.repeat(once.groups, 2))
    for asking in (once, twice):
        found = alone(asking, captions([*range(100, 160)], 4), 0)
        assert (found.queries, found.paraphrased) == (len(asking.groups), True)


@pytest.mark.parametrize("held_out", [0, 1, FEWEST_QUERIES - 1])
def test_too_few_held_out_captions_measure_nothing(held_out: int) -> None:
    texts = joined(captions([*range(held_out)], 3), captions([*range(100, 160)], 4))
    queries = caption_queries(texts, np.arange(held_out), 0)
    found = queries.alone(0)
    assert (found.first, found.among, found.paraphrased) == (None, None, False)
    by_way = queries.by_way(lambda part: queries.asked.vectors[part], lambda part: texts.vectors, texts.groups, 0)
    assert by_way is None
    assert "not measured" in found.in_words(by_way)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("offset", [0.0, 0.4])
def test_images_aligned_captions_and_both_are_asked_with_the_same_queries(times: int, offset: float) -> None:
    texts = captions([*range(60)] * times, 5)
    rng = np.random.default_rng(6)
    images = ModalityEmbeddings(rng.standard_normal((90, 8)).astype(np.float32), np.array([*range(60), *range(30)]))
    queries = caption_queries(texts, np.arange(0, 60, 2), 1)
    projection = rng.standard_normal((8, 8)).astype(np.float32)
    aligned, aligned_texts = queries.asked.vectors @ projection, texts.vectors @ projection
    taken_off = offset * (images.groups % 2 == 1)
    found = queries.by_way(
        lambda part: aligned[part] @ images.vectors.T - taken_off,
        lambda part: aligned[part] @ aligned_texts.T,
        images.groups,
        0,
    )
    assert found is not None
    names = np.arange(60)
    by_image = np.array(
        [[(row - taken_off)[images.groups == name].max() for name in names] for row in aligned @ images.vectors.T]
    )
    bare = l2_normalize(queries.asked.vectors) @ l2_normalize(texts.vectors).T
    scores = aligned @ aligned_texts.T
    if times == 2:
        scores[bare > 1 - 1e-6] = -np.inf
        bare[bare > 1 - 1e-6] = -np.inf
    by_caption, by_bare = (
        np.array([[row[texts.groups == name].max() for name in names] for row in each]) for each in (scores, bare)
    )
    image, caption = ((part - part.mean()) / part.std() for part in (by_image, by_caption))
    assert found.weight == CAPTION_WEIGHT or times == 2  # paraphrases choose no weight
    fused = (1 - found.weight) * image + found.weight * caption
    hits = {
        way: [(row >= row[group]).sum() <= 10 for row, group in zip(part, queries.asked.groups, strict=True)]
        for way, part in (("image", by_image), ("caption", by_caption), ("fused", fused), ("bare", by_bare))
    }
    value = {way: np.mean(of_way) for way, of_way in hits.items()}
    assert found.image.value == pytest.approx(value["image"])
    assert found.caption.value == pytest.approx(value["caption"])
    assert found.fused.value == pytest.approx(value["fused"])
    assert found.gain.value == pytest.approx(value["fused"] - value["caption"])
    assert found.projected.value == pytest.approx(value["caption"] - value["bare"])


@pytest.mark.parametrize(("noise", "expected"), [({"image": 0.0}, {0.1, 0.25, 0.5}), ({"image": 9.0}, {0.9})])
def test_captions_count_as_they_find_most(noise: dict[str, float], expected: set[float]) -> None:
    texts = captions([*range(60)] * 2, 5, noise=2.0 if not noise["image"] else 0.8)
    images = captions([*range(60)], 6, noise=noise["image"])
    queries = caption_queries(texts, np.arange(60), 1)
    found = queries.by_way(
        lambda part: queries.asked.vectors[part] @ images.vectors.T,
        lambda part: queries.asked.vectors[part] @ texts.vectors.T,
        images.groups,
        0,
    )
    assert found is not None
    assert found.weight in expected


def estimated(value: float, spread: float = 0.0) -> Estimate:
    return Estimate(value, value - spread, value + spread)


CANNOT_TELL = "both together cannot be told apart from captions alone"


@pytest.mark.parametrize(
    ("caption", "image", "fused", "paraphrased", "expected"),
    [
        (0.8, 0.5, 0.95, False, ("adds to captions", "Search by fused")),
        (0.9, 0.5, 0.9, False, (CANNOT_TELL, "Search by caption")),
        (0.85, 0.5, 0.9, False, (CANNOT_TELL, "Search by fused")),
        (0.9, 0.5, 0.9, True, (CANNOT_TELL, "Search by fused", "people ask in other words")),
        (0.5, 0.9, 0.4, True, ("takes from captions", "Search by image")),
    ],
)
def test_whether_the_alignment_adds_to_captions_and_how_to_search(
    caption: float, image: float, fused: float, paraphrased: bool, expected: tuple[str, ...]
) -> None:
    says = in_words(caption, image, fused, paraphrased=paraphrased)
    for sentence in (*expected, "Items without a caption are found by the alignment alone"):
        assert sentence in says


@pytest.mark.parametrize(
    ("bare", "expected"), [(0.9, "spoils captions"), (0.1, "improves captions"), (0.5, "cannot be told apart")]
)
def test_what_the_projection_does_to_captions(bare: float, expected: str) -> None:
    says = in_words(0.5, 0.6, 0.9, bare=bare)
    assert f"captions find {bare:.1%}" in says
    assert expected in says


def in_words(
    caption: float, image: float, fused: float, *, bare: float | None = None, paraphrased: bool = False
) -> str:
    alone = caption if bare is None else bare
    gain, projected = estimated(fused - caption, 0.07), estimated(caption - alone, 0.07)
    first: dict[Way, float] = {"image": image / 2, "caption": caption / 2, "fused": fused / 2}
    by_way = ByWay(CAPTION_WEIGHT, estimated(image), estimated(caption), estimated(fused), gain, projected, first)
    return CaptionsAlone(40, paraphrased, estimated(alone), estimated(alone)).in_words(by_way)
