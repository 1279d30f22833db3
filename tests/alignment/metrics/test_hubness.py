from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from alignment.errors import MetricError
from alignment.metrics import BANK, METRICS, Bilinear, Cosine, Dot, Nnn, bank_name, hubness, parse
from alignment.modality import OTHER, Modality
from alignment.vectors import l2_normalize
from tests.support.errors import raises

Matrix = npt.NDArray[np.floating]
BASES = [metric for metric in METRICS.values() if Nnn.applies(metric)]

every_base = pytest.mark.parametrize("base", BASES, ids=str)


def vectors(rng: np.random.Generator, n: int, dim: int = 8) -> npt.NDArray[np.float32]:
    return l2_normalize(rng.standard_normal((n, dim)))


def banks(rng: np.random.Generator, n: int = 20) -> dict[str, Matrix]:
    return {bank_name("image"): vectors(rng, n), bank_name("text"): vectors(rng, n)}


def test_a_mean_of_all_reference_queries_takes_a_constant_off_each_item(rng: np.random.Generator) -> None:
    bank, q, x = (vectors(rng, n).astype(np.float64) for n in (20, 3, 4))
    metric = Nnn(Dot(), k=20, alpha=0.5).bind({"nnn/text": bank}, items="image")
    np.testing.assert_allclose(metric.score(q, x), q @ x.T - 0.5 * bank.mean(axis=0) @ x.T, rtol=1e-12)


def test_the_nearest_count_and_no_others(rng: np.random.Generator) -> None:
    bank, q, x = (vectors(rng, n).astype(np.float64) for n in (20, 3, 4))
    for k in (1, 2, 19, 20):
        nearest = np.sort(bank @ x.T, axis=0)[::-1][:k].mean(axis=0)
        metric = Nnn(Dot(), k=k, alpha=0.75).bind({"nnn/text": bank}, items="image")
        np.testing.assert_allclose(metric.bias(x), 0.75 * nearest, rtol=1e-12)
        np.testing.assert_allclose(metric.score(q, x), q @ x.T - 0.75 * nearest, rtol=1e-12)


@pytest.mark.parametrize("items", ["image", "text"])
def test_reference_queries_are_of_the_other_modality(items: Modality, rng: np.random.Generator) -> None:
    weights = banks(rng)
    metric = Nnn(Dot(), k=3).bind(weights, items=items)
    assert metric.bank is weights[f"nnn/{OTHER[items]}"]
    assert OTHER[OTHER[items]] == items != OTHER[items]


def test_a_hub_loses_what_it_wins_by_being_near_to_everything(rng: np.random.Generator) -> None:
    """Every query has its own item, but noise; one item points where all queries do, and would be the first of all."""
    common = 6 * np.eye(1, 24)
    own = rng.standard_normal((60, 24))
    queries = l2_normalize(own + common + 0.3 * rng.standard_normal((60, 24)))
    references = l2_normalize(rng.standard_normal((200, 24)) + common)
    items = l2_normalize(np.concatenate([own, common]))
    plain = Dot().score(queries, items)
    metric = Nnn(Dot(), k=10, alpha=0.75).bind({"nnn/text": references}, items="image")
    corrected = metric.score(queries, items)
    assert (plain.argmax(axis=1) == 60).mean() > 0.5
    assert (corrected.argmax(axis=1) == np.arange(60)).mean() > 0.9


@every_base
def test_chunks_of_items_do_not_matter(base: Dot, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    base = base.start(8, 0) if isinstance(base, Bilinear) else base
    metric = Nnn(base, k=3, bank=vectors(rng, 20))
    x = vectors(rng, 11).astype(np.float64)
    whole = metric.bias(x)
    monkeypatch.setattr(hubness, "ITEMS_AT_ONCE", 4)
    np.testing.assert_allclose(metric.bias(x), whole, rtol=1e-12)


@every_base
@pytest.mark.parametrize("of_bank", [np.float32, np.float64])
@pytest.mark.parametrize("of_vectors", [np.float32, np.float64])
def test_scores_have_the_dtype_of_what_is_compared(
    base: Dot, of_bank: type[np.floating], of_vectors: type[np.floating], rng: np.random.Generator
) -> None:
    base = base.start(8, 0) if isinstance(base, Bilinear) else base
    metric = Nnn(base, k=3, bank=vectors(rng, 20).astype(of_bank))
    x = vectors(rng, 4).astype(of_vectors)
    assert metric.score(x, x).dtype == metric.bias(x).dtype == of_vectors


@every_base
def test_queries_are_only_extended(base: Dot, rng: np.random.Generator) -> None:
    """The correction is the item's alone: `<[x, -bias], [q, 1]> = <x, q> - bias`."""
    base = base.start(8, 0) if isinstance(base, Bilinear) else base
    metric, plain = Nnn(base, k=3, bank=vectors(rng, 20)).lower(8), base.lower(8)
    q, x = vectors(rng, 3), vectors(rng, 4)
    np.testing.assert_array_equal(metric.query(q)[:, : plain.dim], plain.query(q))
    np.testing.assert_array_equal(metric.item(x)[:, : plain.dim], plain.item(x))
    bias = Nnn(base, k=3, bank=vectors(np.random.default_rng(20240229), 20)).bias(x.astype(np.float64))
    added = metric.query(q)[:, plain.dim :].astype(np.float64) @ metric.item(x)[:, plain.dim :].T.astype(np.float64)
    np.testing.assert_allclose(added, np.tile(-bias, (3, 1)), rtol=1e-6)
    offsets = (metric.offset(q), plain.offset(q))
    assert (offsets[0] is None) == (offsets[1] is None)
    assert offsets[0] is None or offsets[1] is None or (offsets[0] == offsets[1]).all()


def test_the_metric_below_is_bound_as_well(rng: np.random.Generator) -> None:
    started = Bilinear(rank=2, blocks=2).start(8, 0)
    weights = banks(rng) | started.weights()
    metric = parse("bilinear(rank=2,blocks=2)+nnn(k=3)").bind(weights, items="text", device="cpu")
    assert isinstance(metric, Nnn)
    q, x = vectors(rng, 3), vectors(rng, 4)
    np.testing.assert_allclose(metric.score(q, x), started.score(q, x) - metric.bias(x), atol=1e-7)
    with raises(MetricError, "bilinear(rank=2,blocks=2)", "modalign fit"):
        parse("bilinear(rank=2,blocks=2)+nnn(k=3)").bind(banks(rng), items="text")


def test_without_reference_queries_it_says_how_to_get_them(rng: np.random.Generator) -> None:
    metric = Nnn(Dot())
    calls: list[Callable[[], object]] = [
        lambda: metric.bind({}, items="image"),
        lambda: metric.bind({"nnn/image": vectors(rng, 200)}, items="image"),  # of the items' own modality
        lambda: metric.bias(vectors(rng, 2)),
        lambda: metric.score(vectors(rng, 2), vectors(rng, 2)),
        lambda: metric.lower(8).item(vectors(rng, 2)),
    ]
    for call in calls:
        with raises(MetricError, "`modalign fit --metric 'dot+nnn(k=128,alpha=0.75)'`"):
            call()


@pytest.mark.parametrize(("rows", "sound"), [(0, False), (127, False), (128, True), (129, True)])
def test_fewer_reference_queries_than_count_are_refused(rows: int, sound: bool, rng: np.random.Generator) -> None:
    weights = {"nnn/text": vectors(rng, rows) if rows else np.empty((0, 8), np.float32)}
    if sound:
        assert np.isfinite(Nnn(Dot()).bind(weights, items="image").score(vectors(rng, 2), vectors(rng, 2))).all()
        return
    with raises(MetricError, "dot+nnn(k=128,alpha=0.75)", f"{rows} reference queries"):
        Nnn(Dot()).bind(weights, items="image")


def test_it_stands_on_metrics_that_lower_to_dot_and_not_on_itself() -> None:
    assert {base.name for base in BASES} == {"dot", "kl-query-item", "kl-item-query", "bilinear"}
    for base in (Cosine(), Nnn(Dot()), METRICS["chi2"], METRICS["mol"]):
        with pytest.raises(MetricError, match=r"^nnn needs a metric that lowers exactly to Dot, and .* does not; try"):
            Nnn(base)
    assert Nnn(Dot()).k <= BANK
