"""Every count of a run says of what it is."""

import re
from pathlib import Path

import pytest

import connector
from connector.provenance.counts import COUNTS, in_words

ROOT = Path(connector.__file__).parent
COUNTED = re.compile(r"""(?:run|self)\.(?:counts\[|count\()["'](\w+)["']""")


def test_there_are_words_for_everything_that_is_counted_and_for_nothing_else() -> None:
    counted = {name for path in ROOT.rglob("*.py") for name in COUNTED.findall(path.read_text(encoding="utf-8"))}
    assert len(counted) > 20
    # A deletion counts under one of two names.
    assert counted | {"unknown", "unknown_groups"} == COUNTS.keys()


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({}, ""),
        ({"encoded": 0, "rejected": 1}, "1 reject recorded"),
        ({"encoded": 3402, "left_out": 1}, "3,402 items encoded, 1 item left out"),
        ({"written": 1, "unchanged": 5970}, "1 point written, 5,970 points unchanged"),
        ({"queries": 1}, "1 query asked"),
        ({"queries": 2}, "2 queries asked"),
        ({"of_an_older_version": 3}, "3 of an older version"),
    ],
)
def test_counts_in_words(counts: dict[str, int], words: str) -> None:
    assert in_words(counts) == words
