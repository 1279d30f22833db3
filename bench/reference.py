"""The reference of an audit, from points that are read page by page: what it finds, and the memory that it takes.

`python -m bench audit` starts each side in a process of its own. Points of the larger one are made as they are read, so
that they are never in memory all at once.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import numpy as np

from alignment.metrics import Cosine
from alignment.retrieval.cutoffs import KS
from alignment.retrieval.ranks import recall_at
from alignment.sets.rows import Rows
from alignment.vectors import FloatArray
from bench.audit import IMAGES, POINTS, QUERIES, Took, data, took
from connector.audits.galleries import Everything, QuerySet
from connector.audits.point_scan import in_one
from connector.audits.reference import Truth, truth
from connector.stores.points import Record

DIM = 64  # of the larger one
PAGE = 1_000  # points that a store gives at once


def small() -> Took:
    """Recalls of the same queries as an audit's reference finds them, both ways, from pages of points."""
    X, Y, codes = data()
    images, captions = ([str(code) for code in side] for side in (range(IMAGES), codes))

    def pages(vectors: FloatArray, groups: Sequence[str]) -> Iterator[list[Record]]:
        for start in range(0, len(vectors), PAGE):
            numbers = range(start, min(start + PAGE, len(vectors)))
            yield [Record(str(number), vectors[number], {"group": groups[number]}) for number in numbers]

    started = time.perf_counter()
    found = [_reference(Y, captions, lambda: pages(X, images)), _reference(X, images, lambda: pages(Y, captions))]
    return took(started, [recall_at(side.whole.best, k) for side in found for k in KS])


def large() -> Took:
    """Recalls of every hundredth point's noisy copy among all of them, which are made page by page."""

    def made(number: int) -> FloatArray:
        return np.random.default_rng(number).standard_normal((PAGE, DIM), dtype=np.float32)

    def pages() -> Iterator[list[Record]]:
        for number in range(POINTS // PAGE):
            names = range(number * PAGE, (number + 1) * PAGE)
            yield [
                Record(str(name), vector, {"group": str(name)})
                for name, vector in zip(names, made(number), strict=True)
            ]

    every = POINTS // QUERIES
    of_points = np.concatenate([made(number)[::every].copy() for number in range(POINTS // PAGE)])
    noise = np.random.default_rng(POINTS).standard_normal(of_points.shape, dtype=np.float32)
    started = time.perf_counter()
    found = _reference(of_points + 2 * noise, [str(name) for name in range(0, POINTS, every)], pages)
    return took(started, [recall_at(found.whole.best, k) for k in KS])


def _reference(queries: FloatArray, groups: Sequence[str], pages: Callable[[], Iterator[list[Record]]]) -> Truth:
    names = list(groups)
    asked = QuerySet(Rows("text", names, names, names, names, queries), np.zeros(len(names), np.int64), Everything())
    return truth(Cosine().lower(queries.shape[1]), asked, queries, KS[-1] + 1, in_one(pages))


if __name__ == "__main__":
    print(json.dumps(asdict({"small": small, "large": large}[sys.argv[1]]())))
