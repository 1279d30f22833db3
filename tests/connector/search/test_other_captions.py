"""Ranks by captions that are left out of what they search: the first ten are what comparing everything gives."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from alignment.modality import MODALITIES, Modality
from alignment.retrieval.ways import LARGEST_K
from alignment.sets.rows import Rows
from connector.releases.fusion import Fusion, Standard
from connector.search.candidates import CandidateSearch
from connector.search.other_captions import ask
from tests.support.world import World, alignment, embedded, latent, opened, opened_world, rows

GROUPS, ASKED = 30, 12
MEMBERS = (1, 4, 40)  # images of a group, and captions: pages of 64 points hold two groups, or all
STANDARDS: dict[Modality, Standard] = {"image": Standard(0.1, 0.2), "text": Standard(0.3, 0.1)}
FUSIONS = [Fusion(STANDARDS, weight) for weight in (0.1, 0.5, 0.9)]
WAYS: list[tuple[Modality, ...]] = [("image",), ("text",), MODALITIES]


def things(members: int) -> dict[Modality, Rows]:
    """Groups of so many images and captions, which lie close together and not where those of the other modality do."""
    points, rng = latent(GROUPS), np.random.default_rng(3)
    numbers = np.repeat(np.arange(GROUPS), members + 1)
    made: dict[Modality, Rows] = {}
    for modality in MODALITIES:
        own = points + rng.normal(size=points.shape)
        made[modality] = rows(
            modality,
            embedded(modality, own[numbers] + 0.1 * rng.normal(size=(len(numbers), points.shape[1]))),
            keys=[f"{modality} {row}" for row in range(len(numbers))],
            groups=[f"thing {number}" for number in numbers],
        )
    return made


@pytest.fixture(params=MEMBERS)
def members(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def world(members: int, tmp_path: Path) -> Iterator[World]:
    with opened_world("edge", tmp_path) as opened:
        opened.alignment()
        opened.push(opened.set("s", *things(members).values()))
        yield opened


def brute_force(made: dict[Modality, Rows], row: int) -> dict[str, dict[Modality, float]]:
    """The best score of each group and modality for a caption, which is left out."""
    ours = alignment()
    best: dict[str, dict[Modality, float]] = {}
    unit = {m: ours.project(m, items.vectors).astype(np.float64) for m, items in made.items()}
    unit = {m: Z / np.linalg.norm(Z, axis=1, keepdims=True) for m, Z in unit.items()}
    for modality, items in made.items():
        scores = unit[modality] @ unit["text"][row]
        for number, (group, score) in enumerate(zip(items.groups, scores, strict=True)):
            if (modality, number) != ("text", row):
                own = best.setdefault(group, {})
                own[modality] = max(own.get(modality, -np.inf), float(score))
    return best


def test_ranks_up_to_ten_are_those_of_comparing_everything(world: World, members: int) -> None:
    made, search = things(members), CandidateSearch(opened(world), world.store)
    for row in range(0, len(made["text"]), len(made["text"]) // ASKED):
        found, best = ask(search, FUSIONS, made["text"].take([row])), brute_force(made, row)
        own = best.pop(made["text"].groups[row])
        for fusion in FUSIONS:
            for ways in WAYS:
                score = fusion.score({m: own[m] for m in ways})
                rank = 1 + sum(fusion.score({m: other[m] for m in ways}) >= score for other in best.values())
                assert min(found.rank(fusion, *ways), LARGEST_K + 1) == min(rank, LARGEST_K + 1)
