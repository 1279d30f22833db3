"""Audits of a release whose alignment lowers seen items: every stage is compared in the order with the offset."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from alignment.metrics import Guarantee, parse, with_seen
from alignment.modality import DIRECTIONS, Modality
from alignment.retrieval import measures
from alignment.retrieval.ranks import RelevantRanks, group_codes, relevant_ranks
from alignment.sets.hold_out import HoldOut
from connector.audits.geometry import ALIGNED_SPACE
from connector.audits.result import Audit
from connector.releases.release import Release
from tests.support.slow import slow_unless
from tests.support.world import World, audit, opened, opened_world, several, the_set, vectors_of

N = 60
# One of each distance and guarantee, and a correction.
EACH_FORM = [str(parse(text)) for text in ("cosine", "euclid", "w1", "chi2", "mol", "mlp", "dot+nnn")]
OFFSETS: dict[Modality, float] = {"image": 0.3, "text": 0.15}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    parts = several(N)
    seen = [part.take([row for row, group in enumerate(part.groups) if int(group) % 3]) for part in parts]
    with opened_world("edge", tmp_path_factory.mktemp("world")) as world:
        world.alignment(hold_out=HoldOut(0.3, 5), seen=seen, offsets=OFFSETS)
        world.push(world.set("s", *parts), metrics=EACH_FORM)
        yield world


def reference(world: World, release: Release, direction: str) -> RelevantRanks:
    """Ranks by brute force over everything, by the metric that the alignment itself returns."""
    asking, asked = DIRECTIONS[direction]
    ours, rows = release.alignment, the_set(world).load(asked)
    held_out = ours.card.hold_out.held_out(rows.groups)
    seen = [bool(int(group) % 3) and not held for group, held in zip(rows.groups, held_out, strict=True)]
    keys, _, _ = vectors_of(world.store, release.name, asked)
    order = [rows.keys.index(key) for key in keys]
    items = with_seen(ours.project(asked, rows.vectors), seen)[order]
    given = the_set(world).load(asking)
    codes = group_codes(given.groups, [rows.groups[place] for place in order])
    Q = ours.project(asking, given.vectors).astype(np.float64)
    return relevant_ranks(Q, items.astype(np.float64), *codes, metric=ours.metric(release.metric, asked))


def values(found: Audit, direction: str) -> dict[str, float]:
    return {m.name: m.value for m in found.measures if m.direction == direction and not m.part}


@pytest.mark.slow
@pytest.mark.parametrize("metric", EACH_FORM)
def test_recall_and_fidelity_are_those_of_the_order_with_the_offset(served: World, metric: str) -> None:
    release: Any = opened(served, metric)
    found = audit(release, served.store, the_set(served), ks=(1, 10), queries="all", gallery="all")
    for direction in DIRECTIONS:
        truth, measured = reference(served, release, direction), values(found, direction)
        for k in (1, 10):
            expected = measures.recall(truth, k).mean()
            assert measured[f"recall@{k}"] == measured[f"exact.recall@{k}"] == pytest.approx(expected, abs=1e-12)
            assert measured[f"fidelity@{k}"] == 1.0
        if release.guarantee in (Guarantee.CERTIFIED, Guarantee.BOUNDED):
            assert measured["certified"] == 1.0


@pytest.mark.parametrize("metric", slow_unless("chi2".__eq__, ["cosine", "euclid", "chi2", "dot+nnn"]))
def test_the_shared_space_is_measured_without_the_columns_of_the_offset(served: World, metric: str) -> None:
    found = audit(opened(served, metric), served.store, the_set(served), queries="all")
    assert found.space.of == ALIGNED_SPACE
