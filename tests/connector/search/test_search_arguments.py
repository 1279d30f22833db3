"""What a search is asked with is judged in our words, before an encoder is loaded or a store is asked."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from qdrant_client.models import Filter

from connector.errors import QueryError
from connector.search.retriever import Retriever
from connector.search.search_arguments import check_search
from connector.stores.deadlines import deadline
from connector.stores.edge import EdgeStore
from tests.support.errors import raises
from tests.support.world import COLLECTION, World, cards, pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("world")
    with EdgeStore(directory / "qdrant") as store:
        world = World(directory, store)
        world.alignment()
        world.push(world.set("s", *pairs(3)))
        with world.provenance:
            yield world


@pytest.fixture(scope="module")
def retriever(world: World) -> Retriever:
    return Retriever.open(world.provenance, world.store, COLLECTION)


WRONG: dict[str, list[Any]] = {
    "k": [2.5, "3", True, None, 0, -1, np.float32(2)],
    "target": ["video", "Image", 3, ["image"], np.array(["image", "text"])],
    "filter": [{"must": []}, '{"must": []}', [], 7],
    "exact": ["no", 1, None],
    "max_candidates": [2.5, "many", 0, True],
}
RIGHT: dict[str, list[Any]] = {
    "k": [1, np.int64(3)],
    "target": ["image", "text"],
    "filter": [None, Filter()],
    "exact": [True, np.bool_(True)],
    "max_candidates": [None, 5, np.int32(7)],
}
GOOD: dict[str, Any] = {"k": 3, "target": "image", "filter": None, "exact": False, "max_candidates": None}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
@pytest.mark.parametrize("search", ["search_texts", "search_images", "search_embeddings"])
def test_every_search_names_the_argument_that_is_wrong(
    retriever: Retriever, search: str, name: str, value: Any
) -> None:
    queries: dict[str, list[Any]] = {
        "search_texts": [["red"]],
        "search_images": [[Image.new("RGB", (2, 2))]],
        "search_embeddings": ["text", np.ones((1, 10), np.float32)],
    }
    options = {"encoder": cards()["text"].fingerprint} if search == "search_embeddings" else {}
    with raises(QueryError, name, code="query"):
        getattr(retriever, search)(*queries[search], **{**GOOD, name: value}, **options)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in RIGHT.items() for value in values])
def test_what_is_right_is_taken(name: str, value: Any) -> None:
    arguments = {**GOOD, name: value}
    positional = [arguments.pop(each) for each in ("k", "target", "filter")]
    check_search(*positional, **arguments)


@pytest.mark.parametrize("texts", ["red", b"red", [["red", "car"]], [3], [None], 7, {"red"}, ["red", ["car"]], [""]])
def test_texts_that_are_none(retriever: Retriever, texts: Any) -> None:
    with pytest.raises(QueryError):
        retriever.search_texts(texts)


@pytest.mark.parametrize(
    "images", [Image.new("RGB", (2, 2)), Path("a.png"), "a.png", ["a.png"], [b"\x89PNG"], [np.ones((2, 2, 3))], None]
)
def test_images_that_are_none(retriever: Retriever, images: Any) -> None:
    with raises(QueryError, "images"):
        retriever.search_images(images)


@pytest.mark.parametrize("X", [[[1.0] * 10], None, "red", np.array([["a"] * 10]), np.ones((1, 10), complex)])
def test_embeddings_that_are_no_array_of_numbers(retriever: Retriever, X: Any) -> None:
    with raises(QueryError, "X"):
        retriever.search_embeddings("text", X, encoder=cards()["text"].fingerprint)


@pytest.mark.parametrize("modality", ["video", None, 3])
def test_embeddings_of_no_modality(retriever: Retriever, modality: Any) -> None:
    with raises(QueryError, "modality"):
        retriever.search_embeddings(modality, np.ones((1, 10), np.float32), encoder="ab" * 32)


@pytest.mark.parametrize("encoder", [None, 3, b"ab", cards()["text"]])
def test_encoders_that_are_no_fingerprint(retriever: Retriever, encoder: Any) -> None:
    with raises(QueryError, "encoder", "fingerprint"):
        retriever.search_embeddings("text", np.ones((1, 10), np.float32), encoder=encoder)


@pytest.mark.parametrize("seconds", [0, -1, "2", True, float("nan"), float("inf"), [2]])
def test_deadlines_that_are_none(retriever: Retriever, seconds: Any) -> None:
    with raises(QueryError, "deadline"):
        Retriever(retriever.release, None, deadline=seconds)  # type: ignore[arg-type]  # the store is never asked


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("collection", value) for value in (3, None, ["things"])],
        *[("metric", value) for value in (3, ["cosine"], b"cosine")],
        *[("device", value) for value in (0, None)],
        *[("max_pixels", value) for value in ("x", 0, True, 2.5, None)],
    ],
)
def test_what_opens_a_retriever_is_judged_before_the_store_is_asked(world: World, name: str, value: Any) -> None:
    arguments = {"collection": COLLECTION, name: value}
    with raises(QueryError, name, code="query"):
        Retriever.open(world.provenance, None, **arguments)  # type: ignore[arg-type]


def test_a_deadline_holds_for_each_search_and_not_between_them(
    world: World, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[float | None] = []
    search = EdgeStore.search

    def watched(store: EdgeStore, *arguments: Any, **options: Any) -> Any:
        holds = deadline()
        held.append(holds.seconds if holds else None)
        return search(store, *arguments, **options)

    monkeypatch.setattr(EdgeStore, "search", watched)
    opened = Retriever.open(world.provenance, world.store, COLLECTION, deadline=30)
    for each in (retriever, opened):
        each.search_embeddings("text", np.ones((1, 10), np.float32), encoder=cards()["text"].fingerprint)
    assert held == [None, 30]
    assert deadline() is None


@given(st.one_of(st.text(), st.floats(), st.binary(), st.lists(st.integers())))
def test_whatever_k_is_it_is_a_number_or_named(value: Any) -> None:
    with raises(QueryError, "k: expected a whole number"):
        check_search(value, "image", None, exact=False, max_candidates=None)
