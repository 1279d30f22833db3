"""Exported graphs: ONNX from the raw embedding of an encoder to the vector that Qdrant stores or is queried with.

    image-query.onnx    embedding (n, d_in) of an image -> vector (n, D) to query with
    image-item.onnx     embedding (n, d_in) of an image -> vector (n, D) to store
    text-query.onnx, text-item.onnx

Further outputs, where the metric needs them: `offset` (n,), which is added to every score of a query, and `aligned`
(n, dim), from which a metric that rescores computes its score. A row that modalign refuses is NaN in every output.
Where the alignment has an offset for items that its fit saw, item graphs take a further input `seen` (n,): 1 of such an
item, 0 of any other. It is then the last number of `aligned`, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from alignment.errors import ExportError, VectorError
from alignment.metrics import Lowering, Metric, Rescored, with_seen
from alignment.modality import MODALITIES, Modality
from alignment.model.alignment import Alignment
from alignment.model.onnx_graph import open_graph, write_graph
from alignment.model.projections import Projection
from alignment.packages import check_extra
from alignment.vectors import LARGEST_SQUARE, SMALLEST_SQUARE

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# What a vector is in a search.
Role = Literal["query", "item"]
ROLES: tuple[Role, ...] = ("query", "item")
INPUT, SEEN, VECTOR, OFFSET, ALIGNED, BATCH = "embedding", "seen", "vector", "offset", "aligned", "batch"
# Embeddings that every graph is compared with modalign on, and how far it may be from that, relative to a vector's
# length. Square roots of coordinates that are nearly zero turn a rounding of 1e-7 into 1e-4.
PROBES = 16
# Rows that it is made with: others than it is compared on, so that their number cannot have become a constant.
TRACED = 3
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph that was compared with modalign.

    Attributes:
        onnx: the file.
        inputs, outputs: shape of each by name; the batch is the dimension `batch`.
        difference: the largest, of a row to what modalign computes, relative to the length of the row.
    """

    modality: Modality
    role: Role
    onnx: bytes
    inputs: Mapping[str, tuple[str | int, ...]]
    outputs: Mapping[str, tuple[str | int, ...]]
    difference: float

    @property
    def name(self) -> str:
        """Name of its file, such as `text-query.onnx`."""
        return f"{self.modality}-{self.role}.onnx"


def export(alignment: Alignment, metric: Metric) -> list[Graph]:
    """Return the graphs of both modalities and roles, each compared with `alignment` itself.

    Raises:
        MetricError: the alignment holds no parameters for the metric.
        MissingPackageError: packages of the extra `export` are not installed.
        ExportError: a graph computes something else than modalign.
    """
    return [graph(alignment, metric, modality, role) for modality in MODALITIES for role in ROLES]


class _Module(nn.Module):
    """A projection, and behind it what a lowering makes of a vector in one role."""

    def __init__(self, projection: Projection, lowering: Lowering, role: Role):
        super().__init__()
        self.projection, self.lowering, self.role = projection, lowering, role

    def forward(self, embedding: Tensor, seen: Tensor | None = None) -> dict[str, Tensor]:
        aligned = self.projection.unchecked_tensor(embedding)
        if seen is not None:
            aligned = with_seen(aligned, seen)
        if self.role == "item":
            outputs = {VECTOR: self.lowering.item(aligned)}
        else:
            outputs = {VECTOR: self.lowering.query(aligned)}
            offset = self.lowering.offset(aligned)
            if offset is not None:
                outputs[OFFSET] = offset[:, None].float()
        if isinstance(self.lowering, Rescored):
            outputs[ALIGNED] = aligned
        norms = embedding.double().square().sum(dim=1, keepdim=True).sqrt()  # (n, 1)
        # As in `alignment.vectors.invalid_rows`.
        unsound = ~(norms < LARGEST_SQUARE**0.5) | (norms < SMALLEST_SQUARE**0.5)
        # Sorting, ReLU and the like lose a NaN in some runtimes: it is put back where it came from.
        refused = (aligned.sum(dim=1, keepdim=True) + outputs[VECTOR].sum(dim=1, keepdim=True)).isnan() | unsound
        outputs = {name: output.masked_fill(refused, torch.nan) for name, output in outputs.items()}
        return {name: output[:, 0] if name == OFFSET else output for name, output in outputs.items()}


def graph(alignment: Alignment, metric: Metric, modality: Modality, role: Role) -> Graph:
    """Return one graph; see `export`."""
    check_extra("export", "an export")
    projection = alignment.projections[modality]
    lowerings = {m: alignment.metric(metric, m, device="cpu").lower(alignment.dim) for m in MODALITIES}
    module = _Module(projection, lowerings[modality], role).eval()
    probes = {INPUT: np.random.default_rng(0).standard_normal((PROBES, projection.in_dim)).astype(np.float32)}
    if role == "item" and lowerings[modality].marks_seen:
        probes[SEEN] = (np.arange(PROBES) % 2).astype(np.float32)
    onnx = _traced(module, probes)
    session = open_graph(onnx)
    inputs, outputs = (
        {value.name: tuple(value.shape) for value in values} for values in (session.get_inputs(), session.get_outputs())
    )
    if any(shape[0] != BATCH for shape in outputs.values()):
        raise ExportError(
            f"the {role} graph of {modality} under {metric} takes {TRACED} rows and no others; its lowering must not "
            "depend on len(X), X.shape[0] is the same without becoming a constant"
        )
    # One query graph serves searches among items of either modality.
    against = MODALITIES if role == "query" else (modality,)
    difference = max(_difference(session, projection, lowerings[m], role, probes) for m in against)
    if difference > TOLERANCE:
        raise ExportError(
            f"the {role} graph of {modality} under {metric} is {difference:.1e} away from what modalign computes, "
            f"expected at most {TOLERANCE:.0e}; its lowering must compute the same from tensors as from arrays, see "
            "CONTRIBUTING.md"
        )
    return Graph(modality, role, onnx, inputs, outputs, difference)


def _traced(module: _Module, probes: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """Write a module as a graph that takes the inputs `probes`, by name, and any number of rows of them."""
    with torch.no_grad():
        names = list(module(*map(torch.from_numpy, probes.values())))
    examples = {name: torch.from_numpy(values[:TRACED]) for name, values in probes.items()}
    return write_graph(module, examples, names, {0: BATCH})


def _difference(
    session: "InferenceSession",
    projection: Projection,
    lowering: Lowering,
    role: Role,
    probes: Mapping[str, npt.NDArray[np.float32]],
) -> float:
    """The largest difference of a row, relative to its length; infinite where only one of the two has a number."""
    names = [output.name for output in session.get_outputs()]
    largest = 0.0
    rows = zip(*probes.values(), strict=True)
    for row, *outputs in zip(rows, *session.run(names, probes), strict=True):
        expected = _expected(projection, lowering, role, *row)
        if not expected and all(np.isnan(output).all() for output in outputs):
            continue
        if expected.keys() != set(names):
            return np.inf
        for name, output in zip(names, outputs, strict=True):
            length = np.linalg.norm(output) if output.ndim else 1.0  # an offset is compared as it is
            off = float(np.linalg.norm(output - expected[name]) / length)
            largest = max(largest, off if np.isfinite(off) else np.inf)
    return largest


def _expected(
    projection: Projection, lowering: Lowering, role: Role, x: npt.NDArray[np.float32], seen: float | None = None
) -> dict[str, npt.NDArray[np.floating]]:
    """What modalign computes of one embedding (d_in,), by the names of a graph's outputs; nothing if it refuses it."""
    try:
        aligned = projection(x[None])
        if seen is not None:
            aligned = with_seen(aligned, [seen])
        outputs = {VECTOR: lowering.item(aligned) if role == "item" else lowering.query(aligned)}
    except VectorError:
        return {}
    offset = lowering.offset(aligned) if role == "query" else None
    if offset is not None:
        outputs[OFFSET] = offset
    if isinstance(lowering, Rescored):
        outputs[ALIGNED] = aligned
    return {name: output[0] for name, output in outputs.items()}
