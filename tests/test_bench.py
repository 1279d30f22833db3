"""Benchmarks ask both sides the same, and say what."""

import importlib
from typing import Any

import pytest
import qdrant_edge as edge

from bench import search

MODULES = ("startup", "search", "push", "ingest", "memory", "demo", "captions", "metrics", "mol_layout", "node_kills")


@pytest.mark.parametrize("name", MODULES)
def test_a_benchmark_says_what_both_sides_are_asked(name: str) -> None:
    assert importlib.import_module(f"bench.{name}").ASKED.endswith(".")


@pytest.mark.parametrize("threshold", [100, 10_000], ids=["graph", "no graph"])
def test_search_asks_both_sides_the_same(threshold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same effort along the graph, limit, payloads and quantization, in single searches and in batches."""
    for name, value in {"POINTS": 400, "QUERIES": 130, "LAYOUT": {"indexing_threshold": threshold, "m": 4}}.items():
        monkeypatch.setattr(search, name, value)
    requested: list[tuple[Any, ...]] = []
    original = edge.QueryRequest

    def recorded(**options: Any) -> edge.QueryRequest:
        params = options["params"]
        effort = params and (params.exact, params.hnsw_ef, repr(params.quantization))
        requested.append((options["limit"], options["filter"], effort, options["with_payload"]))
        return original(**options)

    def compared(*arguments: Any) -> float:
        requested.clear()  # the push has tuned the index, and asked otherwise
        return measured(*arguments)

    measured = search._side_by_side
    monkeypatch.setattr(edge, "QueryRequest", recorded)
    monkeypatch.setattr(search, "_side_by_side", compared)
    single, batched = search.figures()
    assert single.value > 0
    assert batched.value > 0
    assert len(requested) > search.BATCH
    assert len(set(requested)) == 1
