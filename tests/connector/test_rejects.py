"""Reasons: every one explains itself, and the page shows them all."""

import re
from pathlib import Path

import pytest

from alignment.vectors import NOT_FINITE, OVERFLOW, UNDERFLOW, ZERO
from connector.rejects import Reason, with_table
from connector.stores.layout import PAYLOAD_KINDS, value_kind

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_a_short_name_with_a_sentence(reason: Reason) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", reason)
    assert len(reason) <= 64  # the column in SQL
    assert re.fullmatch(r"\w.*\.", reason.sentence)


def test_every_reason_is_used() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "connector").rglob("*.py")]
    made_of_names = {f"payload-not-{kind}" for kind in PAYLOAD_KINDS} | {
        "key-not-text",
        "image-not-text",
        "group-not-text",
    }
    unused = [r for r in Reason if not any(f"Reason.{r.name}" in text for text in texts)]
    assert set(unused) == (made_of_names & set(Reason)) | {NOT_FINITE, OVERFLOW, UNDERFLOW, ZERO}


def test_a_field_that_is_indexed_as_any_kind_has_a_reason() -> None:
    for kind in PAYLOAD_KINDS:
        assert Reason(f"payload-not-{value_kind(kind)}")


def test_the_page_lists_every_reason() -> None:
    page = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
    assert with_table(page) == page, "run python -m connector.rejects"
    assert all(f"`{reason}`" in page for reason in Reason)
