"""`verify`, and the exact reference of an audit, beside reading the points once."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from qdrant_client.models import FieldCondition, Filter, MatchAny

from alignment.metrics import Cosine
from alignment.modality import Modality
from alignment.retrieval.cutoffs import KS
from alignment.sets.rows import Rows
from bench.corpus import DIM, alignment, vectors, write_set
from bench.row import Row, Sides
from connector.audits.galleries import Everything, QuerySet
from connector.audits.point_scan import in_one
from connector.audits.reference import truth
from connector.home import Home
from connector.provenance.database import upgrade
from connector.requests import PushRequest
from connector.settings import Settings
from connector.stores.points import Record

NAME = "bench"
MODALITY: Modality = "image"
QUERIES = 200
NO_GRAPH = 10_000_000
READING = "reading every point once with vector and payload"


@cache
def written(points: int) -> "tempfile.TemporaryDirectory[str]":
    """A home with a release of so many images, until this process ends: two rows read it."""
    held = tempfile.TemporaryDirectory()
    settings = _settings(held)
    upgrade(settings.database_url)
    write_set(settings.set_path(NAME), points)
    alignment().save(settings.alignment_path(NAME))
    layout = {"indexing_threshold": NO_GRAPH}
    with Home(settings) as home:
        home.push(PushRequest(set=NAME, into=NAME, alignment=NAME, metrics=["cosine"], layout=layout))
    return held


def _settings(held: "tempfile.TemporaryDirectory[str]") -> Settings:
    directory = Path(held.name)
    return Settings.load(home=directory, database_url=f"sqlite:///{directory / 'modalign.db'}")


@contextmanager
def pushed(points: int) -> Iterator[tuple[Home, str]]:
    """A home with a release of so many images, and the name of its collection."""
    with Home(_settings(written(points))) as home:
        (release,) = home.provenance.releases.find(collection=NAME)
        yield home, release.physical_name


def pages(home: Home, name: str, condition: Filter | None = None) -> Iterator[list[Record]]:
    return home.store.scroll(name, vector_name=MODALITY, filter=condition)


@contextmanager
def verify_beside_reading(points: int) -> Iterator[Sides]:
    with pushed(points) as (home, name):

        def ours() -> None:
            (report,) = home.verify(NAME, seed=0)
            if not (report.consistent and report.points == points):
                raise RuntimeError(f"expected {points} points as they were pushed: {report}")

        def theirs() -> None:
            if sum(map(len, pages(home, name))) != points:
                raise RuntimeError(f"expected {points} points")

        ours()
        yield Sides(ours, theirs)


@contextmanager
def reference_beside_reading(points: int) -> Iterator[Sides]:
    with pushed(points) as (home, name):
        queries = alignment().project("text", vectors(QUERIES, seed=2))
        lowering = Cosine().lower(DIM)
        groups = [f"item-{row}" for row in range(QUERIES)]
        of_queries = Filter(must=[FieldCondition(key="group", match=MatchAny(any=groups))])
        query_set = QuerySet(
            Rows("text", groups, groups, groups, ["{}"] * QUERIES, queries), np.zeros(QUERIES, np.int64), Everything()
        )

        def ours() -> None:
            found = truth(
                lowering,
                query_set,
                queries,
                KS[-1] + 1,
                in_one(lambda: pages(home, name)),
                relevant=in_one(lambda: pages(home, name, of_queries)),
            )
            if found.sizes.tolist() != [points] or len(found.whole.ranks) != min(points, QUERIES):
                raise RuntimeError(f"expected a rank of every query among {points} points")

        def theirs() -> None:
            scores = np.empty((QUERIES, 0), np.float32)
            for page in pages(home, name):
                found = queries @ np.stack([record.vector for record in page if record.vector is not None]).T
                scores = np.sort(np.concatenate([scores, found], axis=1), axis=1)[:, -KS[-1] :]

        ours()
        yield Sides(ours, theirs)


ROWS = (
    Row(
        what="verify, {size} points in Edge",
        against=READING,
        asked=(
            f"One release of {DIM} dimensions. verify compares every payload, and a sample of 2,048 vectors, with the "
            "embedding set, and ids and counts with SQL. The other side reads and compares nothing."
        ),
        unit="time",
        goal=1.2,
        size=40_000,
        small=300,
        sides=verify_beside_reading,
    ),
    Row(
        what="exact reference of an audit, {size} points in Edge",
        against="reading every point once, one matrix product a page",
        asked=(
            f"{QUERIES} queries and their best {KS[-1]} of all points of {DIM} dimensions. The reference also finds "
            "the exact rank of what is right, whatever float32 rounds."
        ),
        unit="time",
        goal=1.2,
        size=40_000,
        small=300,
        sides=reference_beside_reading,
    ),
)
