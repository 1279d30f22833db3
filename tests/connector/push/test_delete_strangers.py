"""A deletion by filter takes items of modalign alone: points of other programs stay, and none passes for an item."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from connector.errors import StrangePointError
from connector.push.delete import Deletion
from connector.search.retriever import Retriever
from connector.stores.filters import parse_filter
from connector.stores.points import Payload, Points
from tests.support.errors import raises
from tests.support.world import (
    COLLECTION,
    KINDS,
    LIVE,
    World,
    cards,
    embedded,
    latent,
    opened,
    opened_world,
    pairs,
    points_of,
)

HAS_COLOR = '{"must": [{"key": "color", "match": {"value": "red"}}]}'
STRANGERS: list[tuple[str, Payload]] = [
    ("5", {}),
    ("5", {"key": "3", "modality": "image", "group": "3"}),
    (points_of(1)[0], {}),
    (points_of(1)[0], {"key": "3", "modality": "image", "group": "3"}),
    (points_of(1)[0], {"key": 3, "modality": "image"}),
    (points_of(1)[0], {"key": "3", "modality": ["image"]}),
]


@pytest.fixture(params=[*KINDS, *LIVE])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with opened_world(request.param, tmp_path, request) as world:
        world.alignment()
        world.push(world.set("s", *pairs(6)))
        yield world


def add(world: World, id_: str, payload: Payload) -> None:
    vector = np.eye(6, dtype=np.float32)[:1]
    world.store.upsert(opened(world).name, Points("image", [id_], vector, [{**payload, "color": "red"}]))


@pytest.mark.parametrize(("id_", "payload"), STRANGERS)
def test_a_point_of_another_program_is_named_and_stays(
    world: World, id_: str, payload: Payload, caplog: pytest.LogCaptureFixture
) -> None:
    add(world, id_, payload)
    with world.provenance.runs.start("delete", {}) as run:
        deletion = Deletion(COLLECTION, world.store, world.provenance, run)
        assert deletion.delete(filter=parse_filter(HAS_COLOR))
        assert run.counts["deleted"] == 0
    assert world.store.count(opened(world).name) == 13
    assert any(id_ in record.getMessage() and "modalign repair" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("payload", [{}, {"key": "k"}, {"key": 3, "group": "g"}, {"key": "k", "group": None}])
def test_a_search_that_finds_one_names_it(world: World, payload: Payload) -> None:
    add(world, "5", payload)
    retriever = Retriever(opened(world), world.store)
    with raises(StrangePointError, "point 5"):
        retriever.search_embeddings("text", embedded("text", latent(1)), 13, encoder=cards()["text"].fingerprint)
