"""Homes that tests of several wings look at, made by the command line."""

from pathlib import Path

import pytest

from tests.support.cli import SPECS, N, done
from tests.support.fakes import fake_pairs, write_manifest
from tests.support.sparse_copy import copy_sparse
from tests.support.world import world_over

world = world_over()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpus")
    return write_manifest(directory / "things.jsonl", fake_pairs(directory, N))


@pytest.fixture(scope="session")
def pushed(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A home with a set, an alignment and a live release, to copy."""
    home = tmp_path_factory.mktemp("pushed")
    done("db", "upgrade", "--home", home)
    done("encode", corpus, "--set", "pairs", *SPECS, "--home", home)
    done("fit", "pairs", "--alignment", "a", "--method", "ridge", "--home", home)
    done("push", "pairs", "--into", "things", "--alignment", "a", "--home", home)
    return home


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, pushed: Path) -> Path:
    """A home with a set, an alignment and a live release, that no test changes but for its runs."""
    return copy_sparse(pushed, tmp_path_factory.mktemp("shared") / "home")


@pytest.fixture
def home(shared: Path, tmp_path: Path) -> Path:
    """A copy of the home that a test may change."""
    return copy_sparse(shared, tmp_path / "home")
