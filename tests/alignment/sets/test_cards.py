"""The card of an embedding set."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import EmbeddingSetError
from alignment.sets.cards import CARD, SetCard
from alignment.sets.embedding_set import EmbeddingSet
from tests.support.errors import raises
from tests.support.fakes import fake_set
from tests.support.sets import CARDS, IMAGE, some, writer


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "3", '{"format": 1}', '{"format": 1, "name": 3, "surprise": 1}', "\x00", "\ufeff{}"],
)
def test_a_damaged_card_is_named(content: str, tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 1))
    (tmp_path / "s" / CARD).write_text(content)
    for reading in (lambda: EmbeddingSet.open(tmp_path / "s"), lambda: writer(tmp_path / "s").__enter__()):
        with raises(EmbeddingSetError, tmp_path / "s" / CARD):
            reading()


@pytest.mark.parametrize("field", ["encoders", "counts", "complete", "dtype"])
@pytest.mark.parametrize("value", [None, 7, "x", ["x"], {"image": "x"}])
def test_a_card_with_a_field_of_another_type_is_damaged(field: str, value: Any, tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 1))
    card = json.loads((tmp_path / "s" / CARD).read_text())
    (tmp_path / "s" / CARD).write_text(json.dumps({**card, field: value}))
    with raises(EmbeddingSetError, tmp_path / "s" / CARD):
        EmbeddingSet.open(tmp_path / "s")


def test_a_card_of_another_format_is_refused_with_a_remedy(tmp_path: Path) -> None:
    fake_set(tmp_path / "s", some("image", 1))
    card = json.loads((tmp_path / "s" / CARD).read_text())
    (tmp_path / "s" / CARD).write_text(json.dumps({**card, "format": 2}))
    with raises(EmbeddingSetError, "format 1", "format 2"):
        EmbeddingSet.open(tmp_path / "s")


def test_a_card_survives_a_round_trip(tmp_path: Path) -> None:
    card = SetCard("s", "corpus", dict(CARDS), "float16", {"image": 3}, complete=True, fingerprint="f" * 64)
    card.write(tmp_path)
    assert SetCard.read(tmp_path) == card


def test_an_encoder_card_prints_what_people_need() -> None:
    assert str(IMAGE) == "fake-image:1 (fingerprint aaaaaaaaaaaa, 4-d)"
