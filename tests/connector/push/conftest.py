"""Benches to ingest, prune and delete in."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.fakes import Pair, fake_pairs
from tests.support.ingesting import Bench, N, Outcome, small_steps
from tests.support.sparse_copy import copy_sparse
from tests.support.world import KINDS, opened_world


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Pair]]:
    directory = tmp_path_factory.mktemp("corpus")
    return directory, fake_pairs(directory, N, captions=2)


@pytest.fixture(scope="module")
def in_small_steps() -> Iterator[None]:
    """Batches, shards and flushes are as small as a corpus of a few pairs asks for."""
    with small_steps():
        yield


@pytest.fixture
def make(
    drawn: tuple[Path, list[Pair]], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Bench]]:
    """Make benches, each with a home of its own, which may begin as a copy of another."""
    directory, pairs = drawn
    with ExitStack() as opened:

        def one(kind: str = "edge", name: str = "home", copy_of: Path | None = None) -> Bench:
            home = tmp_path / name
            if copy_of:
                copy_sparse(copy_of, home)
            world = opened.enter_context(opened_world(kind, home, request))
            if not copy_of:
                world.alignment()
            bench = Bench(world, pairs, directory / f"{tmp_path.name}-{name}.jsonl")
            bench.write(pairs)
            return bench

        yield one


@pytest.fixture(scope="session")
def templates(
    drawn: tuple[Path, list[Pair]], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, tuple[Path, Outcome]]:
    """By metrics, a home that holds the corpus, to copy, and what is in it."""
    directory, pairs = drawn
    made = {}
    for metrics in ("cosine", "cosine euclid"):
        home = tmp_path_factory.mktemp("template") / "home"
        with small_steps(), opened_world("edge", home) as world:
            world.alignment()
            bench = Bench(world, pairs, directory / f"template-{metrics}.jsonl")
            bench.write(pairs)
            bench.ingest(metrics=metrics.split())
            made[metrics] = home, bench.outcome()
    return made


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, make: Callable[..., Bench]) -> Bench:
    return make(request.param)
