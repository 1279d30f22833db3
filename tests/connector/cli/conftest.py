"""The shared home, which must hold the same after a test that only reads."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.sets.embedding_set import EmbeddingSet
from tests.support.cli import done


def state(home: Path) -> Any:
    found = done("search", "things", "red lime", "-k", 5, "--json", "--home", home).document
    status = done("status", "-n", 1000, "--json", "--home", home).document
    assert "running" not in {run["outcome"] for run in status["runs"]}
    sets = {path.name: EmbeddingSet.open(path).card for path in (home / "sets").iterdir() if path.is_dir()}
    return found, status["releases"], sets, sorted(p.name for p in (home / "alignments").iterdir())


@pytest.fixture(scope="module")
def sound(shared: Path) -> Any:
    """What the shared home holds."""
    return state(shared)


@pytest.fixture
def unbroken(shared: Path, sound: Any) -> Iterator[Path]:
    """The shared home, which must hold the same afterwards."""
    yield shared
    for extra in (shared / "sets").iterdir():  # sets that bad corpora left incomplete
        if extra.is_dir() and extra.name != "pairs":
            shutil.rmtree(extra)
    assert state(shared) == sound
