import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.metrics import METRICS
from alignment.metrics.seen_offset import SeenOffset, is_squared, with_seen
from alignment.retrieval.ranks import TieFloors, ranks
from alignment.retrieval.seen_unseen import SeenUnseenScores, area_under, harmonic_mean, signed_squares
from alignment.vectors import l2_normalize

Matrix = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
K = 3
OFFSETS = [-math.inf, -2.5, -1.0, 0.0, 0.125, 0.5, 1.0, 3.0, math.inf]


@dataclass
class Gallery:
    """Scores (n, m) that float arithmetic with eighths keeps exact, some tied, some missing."""

    scores: Matrix
    relevant: Mask
    seen: Mask

    @classmethod
    def draw(cls, seed: int, queries: int = 6) -> "Gallery":
        rng = np.random.default_rng(seed)
        m = int(rng.integers(1, 12))
        scores = rng.integers(-8, 9, (queries, m)) / 8
        scores[rng.random((queries, m)) < 0.05] = np.nan
        return cls(scores, rng.random((queries, m)) < 0.2, rng.random(m) < rng.choice([0.0, 0.5, 1.0]))

    def summed_up(self, k: int = K, page: int = 4) -> SeenUnseenScores:
        result = SeenUnseenScores.empty(len(self.scores), k)
        for start in range(0, self.scores.shape[1], page):
            columns = slice(start, start + page)
            result.add(self.scores[:, columns], self.relevant[:, columns], self.seen[columns], floors=lambda best: best)
        return result


def walked(scores: Matrix, relevant: Mask, seen: Mask, offset: float) -> float:
    """Sort items by score less offset, irrelevant ones first among equals, and walk down to a relevant one."""

    def place(item: int) -> tuple[object, ...]:
        score, its = float(scores[item]), bool(relevant[item])
        if math.isnan(score):
            return (its, -2, 0.0, its)
        # An endless offset tells kinds apart before scores.
        kind = math.copysign(1, offset) * seen[item] if math.isinf(offset) else 0
        return (False, kind, -(score - (0 if math.isinf(offset) else offset * seen[item])), its)

    order = sorted(range(len(scores)), key=place)
    return next((float(rank) for rank, item in enumerate(order, start=1) if relevant[item]), math.inf)


@given(st.integers(0, 2**32 - 1), st.sampled_from(OFFSETS))
def test_ranks_with_an_offset_equal_a_sort(seed: int, offset: float) -> None:
    gallery = Gallery.draw(seed)
    expected = [
        walked(scores, relevant, gallery.seen, offset)
        for scores, relevant in zip(gallery.scores, gallery.relevant, strict=True)
    ]
    cut = [rank if rank <= K else math.inf for rank in expected]
    assert gallery.summed_up().ranks(offset).tolist() == cut


@given(st.integers(0, 2**32 - 1), st.sampled_from(OFFSETS))
def test_the_first_hit_is_a_seen_item_where_its_score_less_the_offset_is_best(seed: int, offset: float) -> None:
    gallery = Gallery.draw(seed)
    gallery.scores = np.nan_to_num(gallery.scores)
    expected = []
    for row in gallery.scores:
        seen, unseen = row[gallery.seen].max(initial=-np.inf), row[~gallery.seen].max(initial=-np.inf)
        if not (gallery.seen.any() and (~gallery.seen).any()):
            expected.append(bool(gallery.seen.any()))
        else:
            expected.append(bool(seen - offset >= unseen))
    assert gallery.summed_up().finds_seen_first(offset).tolist() == expected


@pytest.mark.parametrize("name", ["cosine", "dot", "euclid", "manhattan"])
def test_ranks_are_those_of_the_metric_with_the_offset(name: str, rng: np.random.Generator) -> None:
    """Whatever takes the offset off: the score itself, or minus the squared distance."""
    metric, (n, m, d) = METRICS[name], (30, 40, 4)
    queries, items = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    seen = rng.random(m) < 0.5
    query_groups, item_groups = rng.integers(0, 30, n), rng.integers(0, 30, m)
    summed = SeenUnseenScores.empty(n, m + 1)
    squared = is_squared(metric, d)
    for rows in (slice(0, 20), slice(20, n)):
        relevant = query_groups[rows, None] == item_groups
        scores = metric.score(queries[rows], items).astype(np.float64)
        floors = partial(TieFloors(metric, queries, items).of, rows=rows)
        as_offset = signed_squares(scores) if squared else scores
        summed.add(as_offset, relevant, seen, floors=floors, rows=rows, squared=squared)
    for offset in (0.0, 0.3, 1.0):
        of_metric = ranks(queries, with_seen(items, seen), query_groups, item_groups, metric=SeenOffset(metric, offset))
        assert summed.ranks(offset).tolist() == of_metric.tolist()
    assert squared == (name == "euclid")


@given(st.integers(0, 2**32 - 1))
def test_recall_changes_at_turning_offsets_alone(seed: int) -> None:
    gallery = Gallery.draw(seed, queries=1)
    one_kind = not (gallery.relevant & gallery.seen).any() or not (gallery.relevant & ~gallery.seen).any()
    summed = gallery.summed_up()
    turns = summed.turning_offsets()
    between = np.arange(-3, 3, 1 / 8) + 1 / 16  # scores are eighths
    found = np.array([summed.ranks(offset)[0] <= K for offset in between])
    changes = between[1:][found[1:] != found[:-1]] - 1 / 16
    if one_kind:
        assert changes.tolist() == turns.tolist()


def test_the_area_is_that_of_trapezoids() -> None:
    unseen, seen = np.array([0.1, 0.3, 0.3, 0.6]), np.array([0.9, 0.8, 0.5, 0.0])
    by_hand = 0.1 * 0.9 + 0.2 * (0.9 + 0.8) / 2 + 0.0 + 0.3 * (0.5 + 0.0) / 2
    assert area_under(unseen, seen) == pytest.approx(by_hand)


@given(st.integers(0, 2**32 - 1))
def test_the_area_by_turning_offsets_equals_the_share_of_won_pairs(seed: int) -> None:
    """Of steps without height in common: how often a seen query is still found where an unseen one is."""
    rng = np.random.default_rng(seed)
    n, m = 8, 30
    seen = rng.permutation(m) < m // 2
    about = {True: np.zeros((n, m), bool), False: np.zeros((n, m), bool)}
    summed = {}
    for kind, relevant in about.items():
        for row in range(n):
            relevant[row, rng.choice(np.flatnonzero(seen == kind))] = True
        summed[kind] = Gallery(rng.standard_normal((n, m)), relevant, seen).summed_up()
    turns = np.concatenate([scores.turning_offsets() for scores in summed.values()])
    edges = np.sort(turns)
    offsets = [-math.inf, *((edges[1:] + edges[:-1]) / 2), math.inf]
    recall = {kind: np.array([np.mean(s.ranks(o) <= K) for o in offsets]) for kind, s in summed.items()}
    last_found, first_found = (
        [[s.ranks(o)[row] <= K for o in offsets] for row in range(n)] for s in (summed[True], summed[False])
    )
    won = [sum(a and b for a, b in zip(one, other, strict=True)) > 0 for one in last_found for other in first_found]
    assert area_under(recall[False], recall[True]) == pytest.approx(np.mean(won))


def test_a_harmonic_mean_is_low_where_either_share_is() -> None:
    one, other = np.array([0.5, 0.0, 0.0, 0.2]), np.array([0.5, 1.0, 0.0, 0.8])
    np.testing.assert_allclose(harmonic_mean(one, other), [0.5, 0.0, 0.0, 2 / (1 / 0.2 + 1 / 0.8)])
    assert harmonic_mean(0.2, 0.8) == pytest.approx(0.32)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclid", "manhattan", "js"])
def test_equal_items_of_other_groups_rank_first_however_their_scores_round(name: str, rng: np.random.Generator) -> None:
    """As two products with one caption: which of their scores is higher is chance."""
    metric, (n, m, d) = METRICS[name], (6, 8, 5)
    items = l2_normalize(rng.standard_normal((m, d))).astype(np.float32)
    items[m // 2 :] = items[: m // 2] * np.float32(1 + 1e-7)  # what was seen, and its double that was not
    queries, seen = items[:n] + 0.1, np.arange(m) < m // 2
    groups = np.arange(m)
    summed, floors = SeenUnseenScores.empty(n, m), TieFloors(metric, queries, items)
    scores, squared = metric.score(queries, items).astype(np.float64), is_squared(metric, d)
    summed.add(
        signed_squares(scores) if squared else scores,
        groups[:n, None] == groups,
        seen,
        floors=partial(floors.of, rows=slice(None)),
        squared=squared,
    )
    both = ranks(queries, items, groups[:n], groups, metric=metric)
    assert (both >= 2).all()
    assert summed.ranks(0.0).tolist() == both.tolist()
