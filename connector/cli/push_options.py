"""Options that `push` and `ingest` share: into which collection, and how its new releases are laid out."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from connector.cli.choices import METRIC, PathName
from connector.cli.options import METRIC_HELP, NumberRange, WholeRange, renamed_option, with_options
from connector.cli.request_options import range_of
from connector.requests import INDEX_RECALL, PushRequest
from connector.stores.layout import (
    BOUNDS,
    COMPRESSIONS,
    DATATYPES,
    FIELDS,
    PAYLOAD_KINDS,
    QUANTIZATIONS,
    USUAL,
    checked_layout,
    read_layout,
)

F = TypeVar("F", bound=Callable[..., Any])

COLLECTION_OPTIONS = [
    click.option("--into", required=True, metavar="COLLECTION", help="Collection to write into."),
    click.option("--alignment", required=True, metavar="NAME", help="Alignment to project with."),
    click.option(
        "--metric",
        "metrics",
        type=METRIC,
        multiple=True,
        metavar="METRIC",
        help=METRIC_HELP + " One release each; may be repeated.  [default: all that the alignment was fitted for]",
    ),
    click.option(
        "--min-index-recall",
        type=range_of(PushRequest, "min_index_recall"),
        metavar="SHARE",
        help=f"Let no release go live whose index finds less than this share of the exact first hits, or of the first ten. Without it, less than {INDEX_RECALL} is a warning.",
    ),
    click.option(
        "--max-points-per-second",
        type=range_of(PushRequest, "max_points_per_second"),
        metavar="NUMBER",
        help="Write no more points than this, over all releases, so that a server that answers searches is not kept busy.  [default: as many as it takes]",
    ),
    click.option(
        "--fresh-layout",
        is_flag=True,
        help="Lay out new releases by the defaults and the options below. Otherwise they inherit the layout of the collection's live release: payload indexes, graph, quantization, storage.",
    ),
    click.option(
        "--take-over",
        is_flag=True,
        help="Take over collections that another modalign database claims, because that database is lost. It is refused by them afterwards.",
    ),
]
GENERAL_OPTIONS = [
    click.option(
        "--layout",
        "layout_file",
        type=PathName(),
        metavar="FILE.toml",
        help="Read the layout of new releases from a file: the options below as keys, with _ for -, and a table payload_indexes. Options override the file.",
    ),
    renamed_option("--settings", "--layout", "layout_file", type=PathName(), metavar="FILE.toml"),
    click.option(
        "--payload-index",
        "payload_indexes",
        multiple=True,
        metavar="FIELD=KIND",
        help=f"Index a payload field for filters, of new releases and of those that exist; KIND is one of {', '.join(PAYLOAD_KINDS)}. An item with another kind of value is written without the field, and recorded as a reject. FIELD is Qdrant's path: year, meta.year, tags[], '\"my year\"'.",
    ),
]
PAYLOAD_OPTIONS = [
    click.option(
        "--caption-payload/--no-caption-payload",
        default=None,
        help="Whether images carry the first caption of their item as payload `caption`. May be changed later: the push that says otherwise writes the payloads again.  [default: as the collection has it; a new one: yes]",
    ),
]
GRAPH_OPTIONS = [
    click.option(
        "--indexing-threshold",
        type=WholeRange(*BOUNDS["indexing_threshold"]),
        metavar="KB",
        help=f"Build an HNSW graph from this many kB of vectors; below, search compares with every vector. This option and those below, up to --write-consistency-factor, cannot be changed after a collection is created.  [default: Qdrant's, {USUAL['indexing_threshold']}]",
    ),
    click.option(
        "--m", type=WholeRange(*BOUNDS["m"]), help=f"Links of a node of the HNSW graph.  [default: {USUAL['m']}]"
    ),
    click.option(
        "--ef-construct",
        type=WholeRange(*BOUNDS["ef_construct"]),
        help=f"Candidates for the links of a node.  [default: {USUAL['ef_construct']}]",
    ),
]
QUANTIZATION_OPTIONS = [
    click.option(
        "--quantization",
        type=click.Choice(QUANTIZATIONS),
        help="Search a compressed copy of the vectors, then rescore the hits.  [default: none]",
    ),
    click.option(
        "--compression",
        metavar="HOW",
        help="; ".join(f"{kind}: {', '.join(how)}" for kind, how in COMPRESSIONS.items() if how)
        + ".  [default: the first]",
    ),
    click.option(
        "--oversampling",
        type=NumberRange(*BOUNDS["oversampling"]),
        help=f"Hits to take from quantized vectors, in multiples of k.  [default: {USUAL['oversampling']:g}]",
    ),
    click.option(
        "--rescore/--no-rescore",
        default=None,
        help="Whether to order these hits by the original vectors.  [default: rescore]",
    ),
]
STORAGE_OPTIONS = [
    click.option(
        "--datatype",
        type=click.Choice(DATATYPES),
        help=f"Type of the stored vectors. Values that it cannot hold are rejected.  [default: {USUAL['datatype']}]",
    ),
    click.option(
        "--vectors-on-disk/--vectors-in-memory",
        default=None,
        help="Where searches read vectors.  [default: memory]",
    ),
    click.option(
        "--hnsw-on-disk/--hnsw-in-memory", default=None, help="Where searches read the graph.  [default: memory]"
    ),
    click.option(
        "--payload-on-disk/--payload-in-memory", default=None, help="Where searches read payload.  [default: disk]"
    ),
]
CLUSTER_OPTIONS = [
    click.option(
        "--shards",
        type=WholeRange(*BOUNDS["shards"]),
        help="Shards of a collection on a server.  [default: the server's]",
    ),
    click.option(
        "--replication-factor",
        type=WholeRange(*BOUNDS["replication_factor"]),
        help=f"Copies of each shard in a cluster.  [default: {USUAL['replication_factor']}]",
    ),
    click.option(
        "--write-consistency-factor",
        type=WholeRange(*BOUNDS["write_consistency_factor"]),
        help=f"Copies that must confirm a write.  [default: {USUAL['write_consistency_factor']}]",
    ),
]


def push_options(command: F) -> F:
    """Add what `push` and `ingest` share."""
    return with_options(layout_options(command), COLLECTION_OPTIONS)


def layout_options(command: F) -> F:
    """Add what says how new releases are laid out, and hand it over as `layout`: only what was given."""

    @functools.wraps(command)
    def with_layout(*args: Any, layout_file: Path | None, payload_indexes: tuple[str, ...], **given: Any) -> Any:
        layout = read_layout(layout_file) if layout_file else {}
        layout |= {name: given.pop(name) for name in FIELDS if given.get(name) is not None}
        layout["payload_indexes"] = layout.get("payload_indexes", {}) | _payload_indexes(payload_indexes)
        others = {name: value for name, value in given.items() if name not in FIELDS}
        return command(*args, layout=checked_layout(layout, "layout"), **others)

    options = [
        *GENERAL_OPTIONS,
        *PAYLOAD_OPTIONS,
        *GRAPH_OPTIONS,
        *QUANTIZATION_OPTIONS,
        *STORAGE_OPTIONS,
        *CLUSTER_OPTIONS,
    ]
    return with_options(cast(F, with_layout), options)


def _payload_indexes(indexes: Iterable[str]) -> dict[str, Any]:
    parsed = {}
    for text in indexes:
        field, _, kind = text.rpartition("=")
        if not field or kind not in PAYLOAD_KINDS:
            raise click.BadParameter(
                f"expected FIELD=KIND with a kind of {', '.join(PAYLOAD_KINDS)}, got {text!r}",
                param_hint="--payload-index",
            )
        parsed[field] = kind
    return parsed
