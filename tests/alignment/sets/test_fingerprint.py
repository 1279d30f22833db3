"""The fingerprint of an embedding set."""

import hashlib
import json

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from alignment.modality import MODALITIES, Modality
from alignment.sets.fingerprint import Fingerprint
from alignment.sets.rows import IDENTITY
from tests.support.sets import CARDS

ROWS = st.lists(st.tuples(*[st.text(st.characters(codec="utf-8"), max_size=8)] * len(IDENTITY)), max_size=4)


@given(ROWS, ROWS, st.sampled_from(MODALITIES))
def test_it_is_the_sum_of_the_hashes_of_rows_as_json(
    some: list[tuple[str, ...]], more: list[tuple[str, ...]], modality: Modality
) -> None:
    """Sets of earlier versions have it in their cards, so it must never change."""
    fingerprint = Fingerprint(CARDS)
    for rows in (some, more):
        columns = list(zip(*rows, strict=True)) or [()] * len(IDENTITY)
        fingerprint.add(modality, pa.table([pa.array(column, pa.string()) for column in columns], names=IDENTITY))
    texts = [repr(sorted(CARDS.items())), *(json.dumps([modality, *row]) for row in some + more)]
    expected = sum(int.from_bytes(hashlib.sha256(text.encode()).digest()) for text in texts) % 2**256
    assert fingerprint.hexdigest() == f"{expected:064x}"
    assert fingerprint.counts[modality] == len(some + more)
