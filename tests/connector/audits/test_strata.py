"""Strata: each holds the queries of its value and no others, and together they are all queries."""

import numpy as np
import pytest

from connector.audits.strata import measure_strata

N = 90


def test_strata_add_up_to_the_whole(rng: np.random.Generator) -> None:
    languages = [str(name) or None for name in rng.choice(["de", "en", ""], N)]
    column, codes = rng.random(N), rng.integers(0, 20, N)
    strata = list(measure_strata("text-to-image", {"recall@1": column}, codes, {"language": languages}, seed=3))
    assert {m.part for m in strata} == {"language=de", "language=en", "language missing"}
    assert [m.queries for m in strata] == sorted((m.queries for m in strata), reverse=True)
    assert sum(m.queries for m in strata) == N
    assert sum(m.value * m.queries for m in strata) / N == pytest.approx(column.mean(), rel=1e-12)
    for stratum in strata:
        assert (stratum.direction, stratum.name) == ("text-to-image", "recall@1")
        value = stratum.part.partition("=")[2] or None
        own = column[[language == value for language in languages]]
        assert stratum.value == pytest.approx(own.mean(), rel=1e-12)
        assert stratum.low is not None
        assert stratum.high is not None
        assert stratum.low <= stratum.value <= stratum.high


def test_each_measure_is_measured_in_each_field() -> None:
    columns = {"recall@1": np.zeros(2), "recall@5": np.ones(2)}
    fields: dict[str, list[str | None]] = {"a": ["x", "x"], "b": ["y", None]}
    strata = measure_strata("image-to-text", columns, np.arange(2), fields, seed=0)
    assert [(m.part, m.name, m.value) for m in strata] == [
        ("a=x", "recall@1", 0.0),
        ("a=x", "recall@5", 1.0),
        ("b=y", "recall@1", 0.0),
        ("b missing", "recall@1", 0.0),
        ("b=y", "recall@5", 1.0),
        ("b missing", "recall@5", 1.0),
    ]
