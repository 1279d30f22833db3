"""Exported graphs, run by onnxruntime, against projections and lowerings in numpy."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from array_api_compat import array_namespace, is_torch_array
from onnxruntime import InferenceSession

from alignment import packages
from alignment.errors import ExportError, MetricError, MissingPackageError
from alignment.metrics import METRICS, Dot, Lowering, Metric, Rescored, parse
from alignment.metrics.arrays import Array
from alignment.metrics.divergences import MAPS, Divergence
from alignment.modality import MODALITIES, OTHER, Modality
from alignment.model import onnx_export as export
from alignment.model.alignment import Alignment
from alignment.model.feature_maps import FEATURE_MAPS, Anchors, FeatureMap, GaussianKernel, ResidualMlp, StarGlu
from alignment.model.onnx_export import ROLES, Graph, Role, graph
from alignment.model.onnx_graph import OPSET
from alignment.model.projections import Projection
from alignment.vectors import l2_normalize
from tests.support.errors import raises
from tests.support.slow import slow_unless
from tests.support.torch_operators import operators_read_once
from tests.support.world import DIMS, LATENT, alignment

Matrix = npt.NDArray[np.float32]
Outputs = Mapping[str, Matrix]

# Of a row, relative to its length: what the issue asks for.
PARITY = 1e-5
# Maps that are no default, in turn.
MAPPED = [
    replace(metric, map=map_)
    for metric, map_ in zip((m for m in METRICS.values() if isinstance(m, Divergence)), cycle(MAPS[1:]), strict=False)
]


@pytest.fixture(autouse=True, scope="module")
def quick_exports() -> Iterator[None]:
    with operators_read_once():
        yield


def run(made: Graph, X: npt.NDArray[np.floating]) -> dict[str, Matrix]:
    """Every output by name."""
    session = InferenceSession(made.onnx, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"embedding": X.astype(np.float32)}), strict=True))


def reference(ours: Alignment, metric: Metric, modality: Modality, role: Role, X: Matrix) -> dict[str, Any]:
    """What modalign computes; of a query against items of the other modality."""
    items = modality if role == "item" else OTHER[modality]
    lowering = ours.metric(metric, items, device="cpu").lower(ours.dim)
    aligned = ours.project(modality, X)
    outputs: dict[str, Any] = {"vector": getattr(lowering, role)(aligned)}
    if role == "query" and (offset := lowering.offset(aligned)) is not None:
        outputs["offset"] = offset
    return outputs | ({"aligned": aligned} if isinstance(lowering, Rescored) else {})


def check_equal(found: Outputs, expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, output in found.items():
        assert output.dtype == np.float32
        assert output.shape == expected[name].shape
        if output.ndim == 2:
            off = np.linalg.norm(output - expected[name], axis=1) / np.linalg.norm(expected[name], axis=1)
        else:
            off = np.abs(output - expected[name])
        assert (off <= PARITY).all(), f"{name}: {off.max()}"


def embeddings(modality: Modality, n: int = 7, seed: int = 3) -> Matrix:
    """Raw embeddings, of any length."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, DIMS[modality])) * rng.uniform(0.1, 30, (n, 1))).astype(np.float32)


def nonnegative() -> Alignment:
    """An alignment that keeps coordinates above zero: what the map `l1` takes for distributions."""
    rng = np.random.default_rng(5)
    weights = {m: np.abs(rng.standard_normal((d, LATENT))).astype(np.float32) for m, d in DIMS.items()}
    return replace(alignment(), projections={m: Projection(d, None, weights[m]) for m, d in DIMS.items()})


@pytest.mark.slow
@pytest.mark.parametrize("text", [*METRICS, "dot+nnn"])  # a correction adds one column to any graph
def test_every_metric_has_graphs_of_both_sides(text: str) -> None:
    ours, metric = alignment(mean=0.2), parse(text)
    for made in (graph(ours, metric, "text", "query"), graph(ours, metric, "image", "item")):
        assert made.difference <= PARITY
        assert {shape[0] for shape in made.outputs.values()} == {"batch"}
        for n in (7, 1, 0):
            X = embeddings(made.modality, n)
            found = run(made, X)
            assert {name: output.shape[1:] for name, output in found.items()} == {
                name: shape[1:] for name, shape in made.outputs.items()
            }
            check_equal(found, reference(ours, metric, made.modality, made.role, X))


@pytest.mark.slow
def test_an_export_holds_both_modalities_and_sides() -> None:
    ours, metric = alignment(mean=0.2), parse("kl-item-query+nnn")
    graphs = export.export(ours, metric)
    assert [made.name for made in graphs] == [f"{m}-{role}.onnx" for m in MODALITIES for role in ROLES]
    for made in graphs:
        X = embeddings(made.modality)
        check_equal(run(made, X), reference(ours, metric, made.modality, made.role, X))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("metric", slow_unless(lambda metric: metric.map == "l1", MAPPED), ids=str)
def test_every_map_has_graphs(metric: Divergence, role: Role) -> None:
    ours, X = nonnegative(), np.abs(embeddings("text"))
    made = graph(ours, metric, "text", role)
    check_equal(run(made, X), reference(ours, metric, "text", role, X))
    if metric.map == "l1":  # which modalign refuses if a single value is negative
        mixed = np.concatenate([X[:1], -X[:1], X[1:2]])
        for name, output in run(made, mixed).items():
            assert np.isnan(output).reshape(3, -1).all(axis=1).tolist() == [False, True, False], name


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_parameters_of_a_metric_count(role: Role) -> None:
    ours, X = alignment(), embeddings("image")
    metric = parse("kl-query-item(smoothing=0.4)+nnn(k=7,alpha=0.3)")
    check_equal(run(graph(ours, metric, "image", role), X), reference(ours, metric, "image", role, X))


# Projections


def feature_maps(d: int) -> dict[str, FeatureMap]:
    """One of each kind, of vectors of dimension d, with numbers that matter everywhere."""
    rng = np.random.default_rng(8)

    def normal(*shape: int) -> Matrix:
        return (0.5 * rng.standard_normal(shape)).astype(np.float32)

    w, m = 6, 9
    mlp: dict[str, Matrix] = {"first.weight": normal(d, w), "first.bias": normal(w)}
    for b in range(2):
        mlp |= {
            f"{b}.norm.weight": normal(w),
            f"{b}.norm.bias": normal(w),
            f"{b}.wide.weight": normal(w, 4 * w),
            f"{b}.wide.bias": normal(4 * w),
            f"{b}.narrow.weight": normal(4 * w, w),
            f"{b}.narrow.bias": normal(w),
        }
    glu = {
        "norm.weight": normal(d),
        "norm.bias": normal(d),
        "gate.weight": normal(d, m),
        "value.weight": normal(d, m),
        "gate.bias": normal(m),
        "value.bias": normal(m),
    }
    kept, power, gamma = (np.array([value], np.float32) for value in (4, 3, 2))
    return {
        "gaussian-kernel": GaussianKernel({"landmarks": l2_normalize(normal(m, d)), "mean": normal(m), "gamma": gamma}),
        "anchors": Anchors({"anchors": l2_normalize(normal(m, d)), "kept": kept, "power": power}),
        "residual-mlp": ResidualMlp(mlp),
        "star-glu": StarGlu(glu),
    }


def through(projection: Projection) -> Alignment:
    """An alignment whose texts go through `projection`."""
    ours = alignment()
    return replace(ours, projections={**ours.projections, "text": projection})


@pytest.mark.parametrize("name", slow_unless({"anchors", "residual-mlp"}.__contains__, FEATURE_MAPS))
def test_every_lift_is_exported(name: str) -> None:
    d = DIMS["text"]
    rng, feature_map = np.random.default_rng(2), feature_maps(d)[name]
    mean = (0.1 * rng.standard_normal(d)).astype(np.float32)
    weight = rng.standard_normal((feature_map.dims[1], LATENT)).astype(np.float32)
    X = embeddings("text")
    ours = through(Projection(d, mean, weight, feature_map))
    made = graph(ours, parse("cosine"), "text", "query")
    for n in (7, 1, 0):
        check_equal(run(made, X[:n]), {"vector": ours.project("text", X[:n])})


@pytest.mark.slow
@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_the_mean_itself_has_no_direction_through_any_lift(name: str) -> None:
    d = DIMS["text"]
    rng, feature_map = np.random.default_rng(2), feature_maps(d)[name]
    mean = l2_normalize(rng.standard_normal((1, d)).astype(np.float32))[0]
    weight = rng.standard_normal((feature_map.dims[1], LATENT)).astype(np.float32)
    X = embeddings("text")
    X[2] = 5 * mean
    found = run(graph(through(Projection(d, mean, weight, feature_map)), parse("cosine"), "text", "query"), X)
    assert np.isnan(found["vector"]).all(axis=1).tolist() == [row == 2 for row in range(7)]


@pytest.mark.slow
def test_the_identity_changes_nothing_but_the_length() -> None:
    X, d = embeddings("text"), DIMS["text"]
    ours = replace(alignment(), projections={m: Projection(d) for m in MODALITIES})
    for role in ROLES:
        check_equal(run(graph(ours, parse("cosine"), "text", role), X), {"vector": l2_normalize(X)})


@pytest.mark.parametrize("text", slow_unless("kl-item-query".__eq__, ["w1", "kl-item-query", "mol"]))
def test_what_modalign_refuses_is_nan(text: str) -> None:
    d = DIMS["text"]
    mean = l2_normalize(np.random.default_rng(4).standard_normal((1, d)))[0]
    ours = through(Projection(d, mean, alignment().projections["text"].weight))
    X = embeddings("text", 8)
    X[1], X[2], X[3, 0], X[4, -1] = 0.0, 3 * mean, np.nan, np.inf
    X[5], X[6] = 1e-25, 3e38  # what float32 holds, and whose norm it does not
    for role in ROLES:
        for name, output in run(graph(ours, parse(text), "text", role), X).items():
            nan = np.isnan(output).reshape(len(X), -1)
            assert (nan.all(axis=1) == nan.any(axis=1)).all(), name
            assert nan.all(axis=1).tolist() == [1 <= row <= 6 for row in range(len(X))], name


@pytest.mark.slow
def test_a_graph_is_what_the_checker_of_onnx_takes() -> None:
    made = graph(alignment(), parse("kl-item-query"), "text", "query")
    model = onnx.load_from_string(made.onnx)
    onnx.checker.check_model(model, full_check=True)
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [OPSET]
    assert [value.name for value in model.graph.input] == ["embedding"]
    assert made.outputs == {"vector": ("batch", 2 * LATENT + 32), "offset": ("batch",)}


# What is refused


@dataclass(frozen=True, slots=True)
class Other(Dot):
    """A metric of somebody else, whose lowering is `lowering`."""

    name: ClassVar[str] = "other"
    lowering: type[Lowering] = Lowering

    def lower(self, dim: int) -> Lowering:
        return self.lowering(Dot().lower(dim).distance, dim)


class Doubled(Lowering):
    """Stores arrays doubled and tensors as they are."""

    def item(self, X: Array) -> Array:
        return X if is_torch_array(X) else 2 * X


class Shifted(Lowering):
    """Adds an offset to arrays and none to tensors."""

    def offset(self, X: Array) -> Array | None:
        return None if is_torch_array(X) else X[:, 0]


class Counted(Lowering):
    """Its tensors know how many rows there are."""

    def item(self, X: Any) -> Any:
        return X * array_namespace(X).ones(len(X), dtype=X.dtype)[:, None]


@pytest.mark.parametrize(
    ("lowering", "role", "complaint"),
    [
        (Doubled, "item", r"is 1\.0e\+00 away from what modalign computes"),
        (Shifted, "query", r"is inf away from what modalign computes"),
        (Counted, "item", r"takes 3 rows and no others.*len\(X\)"),
    ],
)
def test_a_graph_that_would_be_wrong_is_refused(lowering: type[Lowering], role: Role, complaint: str) -> None:
    with pytest.raises(ExportError, match=complaint):
        graph(alignment(), Other(lowering=lowering), "text", role)


@pytest.mark.parametrize("text", ["mol", "dot+nnn"])
def test_a_metric_without_weights_is_refused(text: str) -> None:
    with raises(MetricError, parse(text)):
        export.export(alignment(weights={}), parse(text))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name.startswith("onnxr") else object())
    with raises(MissingPackageError, "onnxruntime", "pip install"):
        export.export(alignment(), parse("cosine"))
