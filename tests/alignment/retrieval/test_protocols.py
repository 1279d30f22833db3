import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from alignment.errors import MeasureError
from alignment.metrics import Dot, Metric
from alignment.modality import Modality
from alignment.retrieval.grouped import GroupedEmbeddings, ModalityEmbeddings
from alignment.retrieval.measures import Floats, found, ndcg, recall, reciprocal_rank
from alignment.retrieval.protocols import PROTOCOLS, Protocol
from alignment.retrieval.ranks import IntArray, RelevantRanks
from alignment.vectors import FloatArray

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # both warn of what they could be installed with
    import eccv_caption
    import ir_measures

KS = (1, 5, 10)
DIM = 24
BOTH: dict[Modality, Metric] = {"image": Dot(), "text": Dot()}
DEEP = 20  # more than the longest K of any comparison
SMALL = Protocol("small", images=6, folds=3, captions=2)


def benchmark(rng: np.random.Generator, images: int) -> GroupedEmbeddings:
    """Images with five captions each that find them now and then."""
    X = rng.standard_normal((images, DIM))
    groups = np.repeat(np.arange(images), 5)
    Y = X[groups] + 1.3 * rng.standard_normal((5 * images, DIM))
    return GroupedEmbeddings(
        ModalityEmbeddings(X.astype(np.float32), np.arange(images, dtype=np.int64)),
        ModalityEmbeddings(Y.astype(np.float32), groups),
    )


def nearest(queries: FloatArray, items: FloatArray, parts: IntArray) -> Iterator[list[int]]:
    """For every query the best `DEEP` items of each part, all parts together, best first: by sorting, no modalign."""
    by_part = [np.flatnonzero(parts == part) for part in np.unique(parts)]
    for start in range(0, len(queries), 500):
        scores = queries[start : start + 500] @ items.T
        kept = np.hstack([own[np.argpartition(-scores[:, own], DEEP)[:, :DEEP]] for own in by_part])
        order = np.argsort(-np.take_along_axis(scores, kept, axis=1))
        yield from np.take_along_axis(kept, order, axis=1).tolist()


def ours(protocol: Protocol, data: GroupedEmbeddings, per_query: Callable[[RelevantRanks], Floats]) -> dict[str, float]:
    return {
        direction: float(per_query(answers.ranks).mean()) for direction, answers in protocol.ask(data, BOTH).items()
    }


@pytest.fixture(scope="module")
def coco() -> tuple[GroupedEmbeddings, Any, dict[str, dict[int, list[int]]]]:
    """Rankings of the shape of COCO's 5k test split, with the ids and the relevance files of eccv-caption."""
    evaluator = eccv_caption.Metrics()
    captions = evaluator.coco_ids.tolist()
    images = list(dict.fromkeys(evaluator.coco_gts["t2i"][caption][0] for caption in captions))
    place = {image: row for row, image in enumerate(images)}
    groups = np.array([place[evaluator.coco_gts["t2i"][caption][0]] for caption in captions])
    rng = np.random.default_rng(11)
    X = rng.standard_normal((len(images), DIM)).astype(np.float32)
    Y = (X[groups] + 1.3 * rng.standard_normal((len(captions), DIM))).astype(np.float32)
    folds = np.arange(len(images)) // 1000
    retrieved = {
        "i2t": {
            image: [captions[i] for i in found]
            for image, found in zip(images, nearest(X, Y, folds[groups]), strict=True)
        },
        "t2i": {
            caption: [images[i] for i in found] for caption, found in zip(captions, nearest(Y, X, folds), strict=True)
        },
    }
    return (
        GroupedEmbeddings(ModalityEmbeddings(X, np.arange(len(images))), ModalityEmbeddings(Y, groups)),
        evaluator,
        retrieved,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco-5k", "coco-1k"])
def test_coco_is_measured_as_eccv_caption_measures_it(
    name: str, coco: tuple[GroupedEmbeddings, Any, dict[str, dict[int, list[int]]]]
) -> None:
    data, evaluator, retrieved = coco
    theirs = evaluator.coco_5k_recalls if name == "coco-5k" else evaluator.coco_1k_recalls
    answers = PROTOCOLS[name].ask(data, BOTH)
    for k in KS:
        expected = theirs(retrieved, "all", K=k)
        for direction, short in (("text-to-image", "t2i"), ("image-to-text", "i2t")):
            values = recall(answers[direction].ranks, k)
            assert 0 < expected[short] < 1
            assert values.mean() == pytest.approx(expected[short], rel=1e-15)


@pytest.mark.slow
def test_flickr30k_is_measured_as_ir_measures_measures_it(rng: np.random.Generator) -> None:
    data = benchmark(rng, 1000)
    answers = PROTOCOLS["flickr30k"].ask(data, BOTH)
    one = np.zeros(5000, dtype=np.int64)
    for direction, queries, items in (
        ("text-to-image", data.text, data.image),
        ("image-to-text", data.image, data.text),
    ):
        lists = nearest(queries.vectors, items.vectors, one[: len(items.vectors)])
        run = {f"{q}": {f"{d}": -float(place) for place, d in enumerate(found)} for q, found in enumerate(lists)}
        qrels = {
            f"{q}": {f"{d}": 1 for d in np.flatnonzero(items.groups == group)} for q, group in enumerate(queries.groups)
        }
        for per_query, name, k in (
            (per_query, f"{theirs}@{k}", k)
            for k in KS
            for per_query, theirs in ((recall, "Success"), (found, "R"), (ndcg, "nDCG"))
        ):
            by_query = {
                metric.query_id: metric.value
                for metric in ir_measures.iter_calc([ir_measures.parse_measure(name)], qrels, run)
            }
            values = per_query(answers[direction].ranks, k)
            assert values.tolist() == [by_query[f"{row}"] for row in answers[direction].rows], name


def test_any_of_five_captions_counts_and_each_of_them_asks() -> None:
    """One image finds its fifth caption first and none of the others; four captions in five find another image."""
    eye = np.eye(2, dtype=np.float32)
    captions = np.repeat(eye[::-1], 5, axis=0)
    captions[4], captions[9] = eye[0], eye[1]
    protocol = Protocol("two", images=2)
    data = GroupedEmbeddings(
        ModalityEmbeddings(eye, np.arange(2)), ModalityEmbeddings(captions, np.repeat(np.arange(2), 5))
    )
    assert ours(protocol, data, partial(recall, k=5)) == {"text-to-image": 1.0, "image-to-text": 1.0}
    assert ours(protocol, data, partial(recall, k=1))["text-to-image"] == 0.2
    assert ours(protocol, data, partial(found, k=5))["image-to-text"] == 0.2


def test_folds_are_consecutive_and_search_only_themselves() -> None:
    images, texts = np.array([5, 4, 3, 2, 1, 0]), np.array([0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0, 0, 0])
    folds = SMALL.split(images, texts)
    assert [fold.images.tolist() for fold in folds] == [[0, 1], [2, 3], [4, 5]]
    assert [fold.texts.tolist() for fold in folds] == [[5, 6, 4, 7], [3, 8, 2, 9], [1, 10, 0, 11]]
    eye = np.eye(6, dtype=np.float32)
    answers = SMALL.ask(
        GroupedEmbeddings(ModalityEmbeddings(eye[images], images), ModalityEmbeddings(eye[texts], texts)), BOTH
    )
    assert answers["image-to-text"].ranks.counts.tolist() == [2] * 6
    assert answers["text-to-image"].rows.tolist() == [5, 6, 4, 7, 3, 8, 2, 9, 1, 10, 0, 11]
    assert answers["text-to-image"].groups.tolist() == texts[answers["text-to-image"].rows].tolist()
    nothing = SMALL.ask(
        GroupedEmbeddings(ModalityEmbeddings(0 * eye, images), ModalityEmbeddings(0 * eye[texts], texts)), BOTH
    )
    assert nothing["text-to-image"].ranks.best.tolist() == [2.0] * 12  # the one other image of the fold is tied


def test_the_mean_of_all_queries_is_the_mean_of_the_folds(rng: np.random.Generator) -> None:
    protocol = Protocol("folded", images=60, folds=5)
    data = benchmark(rng, 60)
    values = recall(protocol.ask(data, BOTH)["text-to-image"].ranks, 1)
    assert values.mean() == pytest.approx(np.mean([part.mean() for part in np.split(values, 5)]), rel=1e-15)
    assert (
        ours(protocol, data, reciprocal_rank)["text-to-image"]
        > ours(Protocol("whole", images=60), data, reciprocal_rank)["text-to-image"]
    )


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (range(5), [*range(5)] * 2, "expected 6 images, each of a group of its own, got 5 of 5"),
        ([0, 1, 2, 3, 4, 4], [*range(6)] * 2, "got 6 of 5 groups"),
        (range(6), [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 5], "at least 2 captions an image, got 1 of image 4"),
        (range(6), [0, 1, 2, 4, 5] * 2, "got 0 of image 3"),
    ],
)
def test_data_of_another_shape_is_refused(images: Any, texts: Any, message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        SMALL.split(np.array([*images]), np.array([*texts]))


def test_the_presets_are_those_of_the_papers() -> None:
    assert {name: (p.images, p.folds, p.captions) for name, p in PROTOCOLS.items()} == {
        "coco-5k": (5000, 1, 5),
        "coco-1k": (5000, 5, 5),
        "flickr30k": (1000, 1, 5),
    }
