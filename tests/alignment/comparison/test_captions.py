"""What captions alone would find: the rank of a caption's own item among the captions of all others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.comparison.captions import FEWEST_QUERIES, captions_alone
from alignment.retrieval.grouped import ModalityEmbeddings
from alignment.retrieval.paraphrases import paraphrased
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


@given(sizes=st.lists(st.integers(1, 4), min_size=25, max_size=60), seed=st.integers(0, 99))
def test_recall_is_that_of_asking_one_by_one(sizes: list[int], seed: int) -> None:
    groups = [group for group, size in enumerate(sizes) for _ in range(size)]
    asking, known = captions(groups, seed), captions([*range(100, 160)], seed + 1)
    found, ranks = captions_alone(asking, known, seed), by_hand(asking, known)
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
        found = captions_alone(asking, captions([*range(100, 160)], 4), 0)
        assert (found.queries, found.paraphrased) == (len(asking.groups), True)


@pytest.mark.parametrize("held_out", [0, 1, FEWEST_QUERIES - 1])
def test_too_few_held_out_captions_measure_nothing(held_out: int) -> None:
    found = captions_alone(captions([*range(held_out)], 3), captions([*range(100, 160)], 4), 0)
    assert (found.first, found.among, found.paraphrased) == (None, None, False)
