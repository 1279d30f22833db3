"""Exports: a directory with everything that a service in any language needs to query a release without modalign.

*.onnx          the graphs: see alignment.model.onnx_export
request.json    which request to send to Qdrant, and what its answer means
example.py      a program that uses both: connector.search.export_example
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from alignment.durable import write_durably
from alignment.durable_directory import new_directory
from alignment.errors import ExportError
from alignment.metrics import Guarantee, Lowering, Metric, Rescored, parse
from alignment.modality import MODALITIES, OTHER, Modality
from alignment.model.alignment import Alignment
from alignment.model.onnx_export import ALIGNED, OFFSET, SEEN, Graph, export
from alignment.model.onnx_graph import OPSET
from connector.errors import MismatchError
from connector.provenance.recorder import Provenance
from connector.releases.aliases import alias_fault, alias_name
from connector.releases.fusion import Fusion
from connector.releases.points import FITTED
from connector.releases.release import lower, open_release
from connector.requests import ExportRequest
from connector.search import export_ways
from connector.stores.collection import SearchLimits
from connector.stores.contract import Store
from connector.stores.layout import OVERSAMPLING

_log = logging.getLogger(__name__)

REQUEST, EXAMPLE = "request.json", "example.py"
FORMAT = 1
LIMIT = 10

REFUSED = (
    "A row that modalign refuses is NaN in every output: an embedding that is NaN, infinite, zero, of a norm that is "
    "no float32, or equal to the training mean, or that the metric takes for no distribution. JSON has no NaN: look "
    "for it before you send."
)
GUARANTEES = {
    Guarantee.EXACT: "Qdrant's order is the metric's own, as far as the index finds what it is asked for.",
    Guarantee.CERTIFIED: (
        "Qdrant's order gives candidates only. Rescored, those of an exact search are the best items as soon as a "
        "bound shows that no item behind them can score higher; that bound is modalign's, and without it nothing is "
        "proved of a page. Along a graph nothing is proved."
    ),
    Guarantee.BOUNDED: (
        "Qdrant's order gives candidates only. An item's score differs from Qdrant's by a bounded amount, so that "
        "rescored candidates are often, and not always, the best items."
    ),
    Guarantee.MEASURED: (
        "Qdrant's order gives candidates only, and nothing is proved of them: `modalign audit` measures what is lost."
    ),
}
RESCORING = (
    "Fetch `page` candidates or more, up to `budget`; score each with the metric itself, from the output `aligned` of "
    "the query graph and from the candidate's payload `aligned` (base64 of float32, little-endian); order by that."
)
SEEN_OFFSET = (
    "Items that the fit of the alignment saw rank lower. Their payload says so: `field` has the `value`. Item graphs "
    f"take a second input `{SEEN}`, 1 of such an item and 0 of any other. `offset` goes by the modality of the items. "
)


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """What to export: an alignment under a metric, and the release to query, if there is one.

    Attributes:
        name: of the alignment.
        collection: None leaves a placeholder in the requests.
        hnsw_ef: of searches; None: Qdrant's default.
        oversampling, rescore: how the release is searched if it is quantized.
        fusion: how its scores of images and captions make one; None: not measured.
    """

    name: str
    alignment: Alignment
    metric: Metric
    collection: str | None = None
    hnsw_ef: int | None = None
    oversampling: float = OVERSAMPLING
    rescore: bool = True
    fusion: Fusion | None = None


def write(path: Path, spec: ExportSpec) -> list[Graph]:
    """Write the directory `path`, whole or not at all; return its graphs.

    Raises:
        MissingPackageError: packages of the extra `export` are not installed.
        ExportError: `path` is not empty, or a graph's outputs differ from modalign's.
        MetricError: the alignment holds no parameters for the metric.
    """
    try:
        with new_directory(path.resolve(), last=REQUEST) as building:
            graphs = export(spec.alignment, spec.metric)
            document = json.dumps(describe(spec, graphs), indent=2, allow_nan=False) + "\n"
            for graph in graphs:
                write_durably(building / graph.name, graph.onnx)
            write_durably(building / REQUEST, document.encode())
            write_durably(building / EXAMPLE, Path(__file__).with_name("export_example.py").read_bytes())
    except FileExistsError:
        raise ExportError(f"{path} exists and is not an empty directory; name another one with --to") from None
    return graphs


def describe(spec: ExportSpec, graphs: Sequence[Graph]) -> dict[str, Any]:
    """Return the document `request.json`: everything that a service must know besides the graphs."""
    alignment, metric = spec.alignment, spec.metric
    lowering = lower(alignment, metric, device="cpu")["image"]
    rescoring, limit = None, LIMIT
    if isinstance(lowering, Rescored):
        rescoring = {"field": ALIGNED, "page": lowering.page, "budget": lowering.budget, "meaning": RESCORING}
        limit = lowering.page
    offset = any(OFFSET in graph.outputs for graph in graphs)
    signed = "Qdrant's score" if lowering.distance.higher_is_better else "minus Qdrant's score"
    ordered = "What orders candidates" if rescoring else "The metric's score"
    plus = " plus the output `offset` of the query" if offset else ""
    meaning = f"{ordered} is {signed}{plus}; higher is better."
    if not spec.rescore:
        meaning += " Where the collection is quantized, Qdrant's score is that of quantized vectors: compute your own."
    seen_offset = _seen_offset(alignment, metric, lowering)
    if seen_offset and not rescoring:
        meaning += " Of an item that the fit saw, `seen_offset` is in it."
    return {
        "format": FORMAT,
        "modalign": version("modalign"),
        "alignment": {"name": spec.name, "fingerprint": alignment.fingerprint},
        "metric": str(metric),
        "encoders": {
            modality: {"spec": card.spec, "fingerprint": card.fingerprint, "dim": card.dim}
            for modality, card in alignment.card.encoders.items()
        },
        "opset": OPSET,
        "graphs": {
            graph.name: {
                "encoder": graph.modality,
                "inputs": graph.inputs,
                "outputs": graph.outputs,
                "dtype": "float32",
                "difference": graph.difference,
            }
            for graph in graphs
        },
        "refused": REFUSED,
        "vectors": {m: {"size": lowering.dim, "distance": lowering.distance} for m in MODALITIES},
        "requests": {f"{m}-to-{OTHER[m]}": _request(spec, m, limit) for m in MODALITIES},
        "score": {"sign": 1 if lowering.distance.higher_is_better else -1, "offset": offset, "meaning": meaning},
        "guarantee": {"name": lowering.guarantee, "meaning": GUARANTEES[lowering.guarantee]},
        "rescoring": rescoring,
        "seen_offset": seen_offset,
        "by": export_ways.describe(spec.fusion, _request(spec, "text", limit), alignment, metric),
    }


def _seen_offset(alignment: Alignment, metric: Metric, lowering: Lowering) -> dict[str, Any] | None:
    """Say how much lower items rank that the fit saw, and how to get back the metric's own score; None: not at all."""
    if not lowering.marks_seen:
        return None
    if isinstance(lowering, Rescored):
        how = "The last number of a candidate's payload `aligned` is that 1 or 0: order by the metric's score - offset."
    elif lowering.squares_offset:
        how = "The metric's own score of such an item is -sqrt(score^2 - offset)."
    else:
        how = "The metric's own score of such an item is score + offset."
    return {
        "offset": {modality: alignment.card.seen_offsets[str(metric)].get(modality, 0.0) for modality in MODALITIES},
        "squared": lowering.squares_offset,
        "field": "split",
        "value": FITTED,
        "meaning": SEEN_OFFSET + how,
    }


def _request(spec: ExportSpec, modality: Modality, limit: int) -> dict[str, Any]:
    """Return the request that finds items of the other modality.

    It needs no filter: a point carries the vector of its own modality alone.
    """
    alias = alias_name(spec.collection or "{collection}", spec.metric)
    ef = {} if spec.hnsw_ef is None else {"hnsw_ef": spec.hnsw_ef}
    return {
        "graph": f"{modality}-query.onnx",
        "method": "POST",
        "path": f"/collections/{alias}/points/query",
        "body": {
            "query": "{vector}",
            "using": OTHER[modality],
            "limit": limit,
            "params": {
                "exact": False,
                **ef,
                "quantization": {"rescore": spec.rescore, "oversampling": spec.oversampling},
            },
            "with_payload": True,
        },
    }


def export_request(
    request: ExportRequest, alignment: Alignment, provenance: Provenance, open_store: Callable[[], Store]
) -> list[Graph]:
    """Write what a service needs to query `alignment` without modalign; return the graphs.

    Args:
        request: the metric, the directory, and the collection whose live release is searched.
        alignment: the alignment that the request names.
        provenance: where releases are recorded.
        open_store: opens the store; called only where the request names a collection.

    Raises:
        MismatchError: the live release was written with another alignment, or its alias leads elsewhere.
        ExportError: see `write`.
    """
    target = ExportSpec(request.alignment, alignment, parse(request.metric))
    if request.collection is not None:
        store = open_store()
        release = open_release(provenance, store, request.collection, request.metric, device="cpu")
        if fault := alias_fault(provenance, store, release.row):  # the requests name the alias
            raise MismatchError(fault)
        if release.alignment.fingerprint != alignment.fingerprint:
            raise MismatchError(
                f"release {release.name} was written with alignment {release.alignment.fingerprint[:12]}, "
                f"{request.alignment} is {alignment.fingerprint[:12]}; export the first, or push with the second"
            )
        target = replace(target, collection=request.collection, hnsw_ef=release.hnsw_ef, **release.quantized_search)
        target = replace(target, fusion=release.fusion)
        target = _allowed(target, store.search_limits(release.name))
    return write(request.to, target)


def _allowed(target: ExportSpec, limits: SearchLimits) -> ExportSpec:
    """Lower what the requests ask for to what the store allows, and say so."""
    for setting, most in (("hnsw_ef", limits.ef), ("oversampling", limits.oversampling)):
        wanted = getattr(target, setting)
        if wanted is not None and most is not None and most < wanted:
            _log.warning("the store allows %s %s at most: the requests ask for it instead of %s", setting, most, wanted)
            allowed: dict[str, Any] = {setting: most}
            target = replace(target, **allowed)
    return target
