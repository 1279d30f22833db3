"""A filter or an index on a field that no item has says so; a point that no filter finds is not passed over."""

import logging
from typing import Any

import numpy as np
import pytest

from alignment.sets.embedding_set import EmbeddingSet
from connector.errors import EncoderError, FilterError, StrangePointError
from connector.push.delete import Deletion
from connector.releases import payload_fields
from connector.releases.payload_fields import missing_in_words
from connector.requests import AuditRequest
from connector.search.retriever import Retriever
from connector.stores.filters import parse_filter
from connector.stores.points import Points
from tests.support.audits import audited
from tests.support.errors import raises
from tests.support.world import COLLECTION, World, cards, embedded, latent, pairs, rows
from tests.support.world import audit as measured

N = 30


def equals(field: str, value: str) -> str:
    return f'{{"must": [{{"key": {field}, "match": {{"value": {value}}}}}]}}'


@pytest.fixture
def coloured(world: World) -> EmbeddingSet:
    payloads = [{"color": "red", "meta.year": 1999, "My Size": 4, "parts": [{"n": number}]} for number in range(N)]
    return world.set("s", *(rows(m, embedded(m, latent(N)), payloads=payloads) for m in ("image", "text")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "near"),
    [
        ("colour", "color"),
        ("Color", "color"),
        ("meta.year", '"meta.year"'),
        ('"my size"', '"My Size"'),
        ("part[].n", "parts[].n"),
        ("nothing_alike", "content_sha256"),
    ],
)
def test_near_names_are_offered_as_filters_write_them(
    world: World, coloured: EmbeddingSet, field: str, near: str
) -> None:
    (release,) = world.push(coloured).releases
    (sentence,) = missing_in_words(world.store, release.name, {field, "color", "parts[].n", '"meta.year"'})
    assert field in sentence
    assert near in sentence


def test_an_index_on_a_field_that_no_item_has(
    world: World, coloured: EmbeddingSet, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        world.push(coloured, payload_indexes={"meta.year": "integer", "color": "keyword"})
    (record,) = caplog.records
    assert "meta.year" in record.getMessage()
    assert '"meta.year"' in record.getMessage()


def test_a_search_warns_once_of_a_field_that_no_item_has(
    world: World, coloured: EmbeddingSet, caplog: pytest.LogCaptureFixture
) -> None:
    world.push(coloured)
    retriever = Retriever.open(world.provenance, world.store, COLLECTION)
    X, encoder = embedded("text", latent(2)), cards()["text"].fingerprint
    with caplog.at_level(logging.WARNING):
        for field in ('"colour"', '"colour"', '"color"'):
            retriever.search_embeddings("text", X, encoder=encoder, filter=parse_filter(equals(field, '"red"')))
    (record,) = caplog.records
    assert "colour" in record.getMessage()


def test_it_warns_before_an_encoder_is_loaded(
    world: World, coloured: EmbeddingSet, caplog: pytest.LogCaptureFixture
) -> None:
    world.push(coloured)
    retriever = Retriever.open(world.provenance, world.store, COLLECTION)
    with caplog.at_level(logging.WARNING), pytest.raises(EncoderError):  # the world has vectors and no encoder
        retriever.search_texts(["red"], filter=parse_filter(equals('"colour"', '"red"')))
    assert "colour" in caplog.text


OLD = '{"must": [{"key": "year", "range": {"lt": 2000}}]}'
# Values as rows have them, a filter that none of them can match, and the index that would read them.
UNLIKE = [
    pytest.param(["1990"], '{"range": {"lt": 2000}}', ("year", "'1990'", "--payload-index year=integer"), id="csv"),
    pytest.param(["4.5", "7"], '{"range": {"lt": 5}}', ("year", "--payload-index year=float"), id="fractions"),
    pytest.param(["1990"], '{"match": {"value": 1990}}', ("a whole number", "year=integer"), id="equal"),
    pytest.param(["true"], '{"match": {"value": true}}', ("true or false", "year=bool"), id="flag"),
    pytest.param([1990], '{"match": {"value": "1990"}}', ("1990", "a text"), id="text of a number"),
    pytest.param(["about 1990"], '{"range": {"lt": 2000}}', ("year", "'about 1990'"), id="no number"),
    pytest.param([["1990", "1991"]], '{"match": {"any": [1990]}}', ("year", "a whole number"), id="list"),
]


def of_years(world: World, years: list[Any]) -> EmbeddingSet:
    payloads = [{"year": years[number % len(years)]} for number in range(N)]
    return world.set("s", *(rows(m, embedded(m, latent(N)), payloads=payloads) for m in ("image", "text")))


@pytest.mark.parametrize(("years", "test", "values"), UNLIKE)
def test_a_search_warns_of_values_that_a_filter_never_matches(
    world: World, caplog: pytest.LogCaptureFixture, years: list[Any], test: str, values: tuple[str, ...]
) -> None:
    world.push(of_years(world, years))
    retriever = Retriever.open(world.provenance, world.store, COLLECTION)
    X, encoder = embedded("text", latent(2)), cards()["text"].fingerprint
    condition = parse_filter(f'{{"must": [{{"key": "year", {test[1:-1]}}}]}}')
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert retriever.search_embeddings("text", X, encoder=encoder, filter=condition) == [[], []]
    (record,) = caplog.records
    assert all(value in record.getMessage() for value in values)


def test_a_filter_that_some_values_match_is_no_matter(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.push(of_years(world, ["unknown"] * (N - 1) + [1990]))
    retriever = Retriever.open(world.provenance, world.store, COLLECTION)
    X, encoder = embedded("text", latent(1)), cards()["text"].fingerprint
    with caplog.at_level(logging.WARNING):
        (hits,) = retriever.search_embeddings("text", X, encoder=encoder, filter=parse_filter(OLD))
    assert len(hits) == 1
    assert not caplog.records


def test_the_index_that_is_named_lets_the_filter_find(world: World) -> None:
    world.push(of_years(world, ["1990", "2010"]), payload_indexes={"year": "integer"})
    retriever = Retriever.open(world.provenance, world.store, COLLECTION)
    X, encoder = embedded("text", latent(1)), cards()["text"].fingerprint
    (hits,) = retriever.search_embeddings("text", X, k=N, encoder=encoder, filter=parse_filter(OLD))
    assert len(hits) == N // 2


def test_a_deletion_by_a_number_that_is_no_text_deletes_nothing(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload_fields, "SAMPLE", 3)
    world.push(of_years(world, ["1990"]))
    with raises(FilterError, 2 * N, "year=integer"):
        delete(world, OLD.replace("must", "must_not"))
    assert delete(world, OLD) == 0
    assert "year=integer" in caplog.text
    world.push(of_years(world, ["unknown"] * (N - 1) + [1990]))  # the first values that are met are texts
    assert delete(world, OLD) == 2


def test_a_search_refuses_what_an_index_cannot_answer(world: World, coloured: EmbeddingSet) -> None:
    world.push(coloured, payload_indexes={"color": "keyword"})
    retriever = Retriever.open(world.provenance, world.store, COLLECTION)
    X, encoder = embedded("text", latent(2)), cards()["text"].fingerprint
    for condition in (equals('"color"', "4"), equals('"group"', "4")):
        with raises(FilterError, "keyword", "a whole number"):
            retriever.search_embeddings("text", X, encoder=encoder, filter=parse_filter(condition))


def delete(world: World, condition: str) -> int:
    with world.provenance.runs.start("delete", {}) as run:
        Deletion(COLLECTION, world.store, world.provenance, run).delete(filter=parse_filter(condition))
        return run.counts["deleted"]


def test_a_deletion_by_the_absence_of_a_misspelt_field_deletes_nothing(world: World, coloured: EmbeddingSet) -> None:
    (release,) = world.push(coloured).releases
    for condition in (
        '{"must_not": [{"key": "colour", "match": {"value": "red"}}]}',
        '{"must": [{"is_empty": {"key": "colour"}}]}',
    ):
        with raises(FilterError, 2 * N, "colour", "color"):
            delete(world, condition)
    assert world.store.count(release.name) == 2 * N
    assert delete(world, equals('"colour"', '"red"')) == 0
    assert delete(world, equals('"color"', '"red"')) == 2 * N


def test_a_deletion_by_words_names_the_release_that_has_no_index_of_words(world: World, coloured: EmbeddingSet) -> None:
    (release,) = world.push(coloured, payload_indexes={"color": "text"}).releases
    (other,) = world.push(coloured, metrics=["euclid"], fresh_layout=True).releases
    words = '{"must": [{"key": "color", "match": {"text": "RED"}}]}'
    with raises(FilterError, other.name, "color", "text"):
        delete(world, words)
    assert [world.store.count(each.name) for each in (release, other)] == [2 * N, 2 * N]


def audit(world: World, embedding_set: EmbeddingSet, **options: Any) -> Any:
    request = AuditRequest(collection=COLLECTION, pairs="s", queries="all", gallery="all", **options)
    (found,) = audited(world, request, embedding_set)
    return found


@pytest.mark.parametrize(
    ("condition", "values"),
    [
        (equals('"colour"', '"red"'), ("filter:own", "colour", "color")),
        (equals('"number"', '"4"'), ("filter:own", "number", "integer", "a text")),
    ],
)
def test_an_audit_refuses_a_filter_that_measures_nothing(world: World, condition: str, values: tuple[str, ...]) -> None:
    payloads = [{"number": number, "color": "red"} for number in range(N)]
    numbered = world.set("s", *(rows(m, embedded(m, latent(N)), payloads=payloads) for m in ("image", "text")))
    world.push(numbered, payload_indexes={"number": "integer"})
    with raises(FilterError, *values):
        audit(world, numbered, filters={"own": condition})


@pytest.mark.parametrize("value", [4.5, "4", True, [4, "5"]])
def test_a_release_with_a_point_that_no_filter_finds_is_broken(world: World, value: Any) -> None:
    """As an earlier version stored it, or somebody else: exact search within a filter does not find it either."""
    embedding_set = world.set("s", *pairs(N))
    (release,) = world.push(embedding_set, payload_indexes={"number": "integer"}).releases
    (page, *_) = world.store.scroll(release.name, vector_name="image", page=200)
    record = next(record for record in page if record.vector is not None)
    assert record.vector is not None
    spoilt = {**record.payload, "number": value}
    world.store.upsert(release.name, Points("image", [record.id], np.stack([record.vector]), [spoilt]))
    with raises(StrangePointError, record.id, "number is indexed as integer"):
        measured(release, world.store, embedding_set, queries="all", gallery="all")
    assert audit(world, embedding_set).verdict == "broken"
