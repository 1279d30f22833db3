"""The command line: each command opens the home, calls one method and prints the result.

Imports inside the commands keep `modalign --help` fast: numpy, torch, SQLAlchemy and the databases load when used.
"""

import functools
import json
import math
import re
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import click

from alignment.errors import MetricError, ModalignError, TrainingError
from connector.errors import FilterError, GateError, RequirementError, SettingsError
from connector.layout import (
    BOUNDS,
    COMPRESSIONS,
    DATATYPES,
    FIELDS,
    PAYLOAD_KINDS,
    QUANTIZATIONS,
    checked_layout,
    read_layout,
)
from connector.progress import say
from connector.redaction import redacted, without_secrets
from connector.render import (
    found_rows,
    how_sure,
    print_geometry,
    print_guidelines,
    print_json,
    print_rejects,
    print_releases,
    print_result,
    print_table,
    reconciled_examples,
    reconciled_rows,
    say_shadows,
    switched_rows,
)

if TYPE_CHECKING:
    from datetime import datetime

    from alignment.artifact import Alignment
    from alignment.export import Graph
    from alignment.geometry import Geometry
    from connector.audit import Audit
    from connector.home import Compared, Home
    from connector.reconcile import Reconciled
    from connector.result import Result
    from connector.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

FAILED, USAGE, REQUIREMENT, REJECTED, INTERRUPTED = 1, 2, 3, 4, 130
# What only the command line can be wrong about.
USAGE_ERRORS = (FilterError, MetricError, RequirementError, SettingsError, TrainingError)
COMMANDLINE = click.core.ParameterSource.COMMANDLINE
HOME_OPTIONS = ("--home", "--qdrant-url", "--database-url", "--device")
METRIC_HELP = (
    "How aligned vectors are compared: cosine, dot, euclid, manhattan, chi2, kl-query-item, kl-item-query, js, hellinger, "
    "w1, bilinear, mol or mlp, with parameters as in 'chi2(map=split)'; 'dot+nnn' corrects hubness."
)


def seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Read a time such as `90s`, `10m` or `2h`."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", value)
    if match is None or not float(match[1]):
        raise click.BadParameter(f"expected a time above zero such as 90s, 10m or 2h, got {value!r}")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


class WholeRange(click.IntRange):
    """Whole numbers between bounds, which are named to whoever gives something else."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read one."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"expected a whole number in the range {self._describe_range()}, got {value!r}.", param, ctx)


class NumberRange(click.FloatRange):
    """Numbers between bounds, which are named to whoever gives something else, NaN among it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read one."""
        try:
            number = super().convert(value, param, ctx)
        except click.BadParameter:
            number = math.nan
        if math.isnan(number):
            self.fail(f"expected a number in the range {self._describe_range()}, got {value!r}.", param, ctx)
        return number


def home_options(command: F) -> F:
    """Add the options that say where things are, and hand them over as `settings`."""
    options = [
        click.option("--home", type=click.Path(path_type=Path), help="Home directory.  [MODALIGN_HOME; ~/.modalign]"),
        click.option("--qdrant-url", metavar="URL", help="edge:DIR, http(s)://HOST:PORT or grpc(s)://HOST:PORT.  [MODALIGN_QDRANT_URL; edge:HOME/qdrant]"),
        click.option("--database-url", metavar="URL", help="SQLAlchemy URL.  [MODALIGN_DATABASE_URL; SQLite in the home]"),
        click.option("--device", help="auto, cpu, cuda, cuda:N or mps.  [MODALIGN_DEVICE; auto]"),
    ]  # fmt: skip
    return _with(command, options)


def json_option(command: F) -> F:
    """Add `--json`."""
    return _with(command, [click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")])


def rejects_option(command: F) -> F:
    """Add `--max-rejects`."""
    text = "Exit with 4 when more items than this were rejected."
    return _with(
        command, [click.option("--max-rejects", type=click.IntRange(0), default=0, show_default=True, help=text)]
    )


def yes_option(command: F) -> F:
    """Add `--yes`."""
    return _with(command, [click.option("--yes", is_flag=True, help="Do not ask before deleting anything.")])


def push_options(command: F) -> F:
    """Add what `push` and `ingest` share."""
    options = [
        click.option("--into", "collection", required=True, metavar="COLLECTION", help="Collection to write into."),
        click.option("--alignment", required=True, metavar="NAME", help="Alignment to project with."),
        click.option("--metric", "metrics", multiple=True, metavar="METRIC", help=METRIC_HELP + " Repeat for several releases.  [default: the alignment's]"),
    ]  # fmt: skip
    return _with(layout_options(command), options)


def layout_options(command: F) -> F:
    """Add what says how new collections are laid out, and hand it over as `layout`: only what was given."""
    options = [
        click.option("--settings", type=click.Path(path_type=Path), metavar="FILE.toml", help="Read these settings of a collection from a file: names as below, with _ for -, and a table payload_indexes. Flags go before it."),
        click.option("--payload-index", "payload_indexes", multiple=True, metavar="FIELD=KIND", help=f"Index a payload field of a new collection for filters; KIND is one of {', '.join(PAYLOAD_KINDS)}."),
        click.option("--indexing-threshold", type=WholeRange(*BOUNDS["indexing_threshold"]), metavar="KB", help="Build an HNSW graph from this many kB of vectors; below, search is exact brute force. This and all settings below are fixed when a collection is created.  [default: Qdrant's, 10000]"),
        click.option("--m", type=WholeRange(*BOUNDS["m"]), help="Links of a node of the HNSW graph.  [default: 16]"),
        click.option("--ef-construct", type=WholeRange(*BOUNDS["ef_construct"]), help="Candidates for the links of a node.  [default: 100]"),
        click.option("--quantization", type=click.Choice(QUANTIZATIONS), help="Search a compressed copy of the vectors, then rescore what was found."),
        click.option("--compression", metavar="HOW", help="; ".join(f"{kind}: {', '.join(how)}" for kind, how in COMPRESSIONS.items() if how) + ".  [default: the first]"),
        click.option("--oversampling", type=NumberRange(*BOUNDS["oversampling"]), help="How many times k a search takes from quantized vectors.  [default: 4]"),
        click.option("--rescore/--no-rescore", default=None, help="Order those by the vectors themselves.  [default: rescore]"),
        click.option("--datatype", type=click.Choice(DATATYPES), help="Of the stored vectors; values that it cannot hold are refused.  [default: float32]"),
        click.option("--vectors-on-disk/--vectors-in-memory", default=None, help="Where vectors are read from.  [default: memory]"),
        click.option("--hnsw-on-disk/--hnsw-in-memory", default=None, help="Where the graph is read from.  [default: memory]"),
        click.option("--payload-on-disk/--payload-in-memory", default=None, help="Where payload is read from.  [default: disk]"),
        click.option("--shards", type=WholeRange(*BOUNDS["shards"]), help="Into how many a collection on a server is cut.  [default: the server's]"),
        click.option("--replication-factor", type=WholeRange(*BOUNDS["replication_factor"]), help="On how many nodes of a cluster each shard stands.  [default: 1]"),
        click.option("--write-consistency-factor", type=WholeRange(*BOUNDS["write_consistency_factor"]), help="How many replicas must confirm a write.  [default: 1]"),
    ]  # fmt: skip

    @functools.wraps(command)
    def with_layout(*args: Any, settings: Path | None, payload_indexes: tuple[str, ...], **given: Any) -> Any:
        layout = read_layout(settings) if settings else {}
        layout |= {name: given.pop(name) for name in FIELDS if given.get(name) is not None}
        layout["payload_indexes"] = layout.get("payload_indexes", {}) | _payload_indexes(payload_indexes)
        others = {name: value for name, value in given.items() if name not in FIELDS}
        return command(*args, layout=checked_layout(layout, "settings"), **others)

    return _with(cast(F, with_layout), options)


def corpus_options(command: F) -> F:
    """Add what `encode` and `ingest` share: how a corpus is read, where that is not plain."""
    options = [
        click.option("--format", metavar="FORMAT", help="How to read CORPUS: jsonl, csv, parquet, folder, coco, karpathy, flickr, webdataset or img2dataset.  [default: what it looks like]"),
        click.option("--images", type=click.Path(path_type=Path), metavar="DIR", help="Folder of the images that a coco, karpathy or flickr file names.  [default: the usual ones beside it]"),
    ]  # fmt: skip
    return _with(command, options)


def holdout_options(command: F) -> F:
    """Add what `fit` and `compare` share: which groups are held out, and how the others are folded."""
    options = [
        click.option("--holdout", type=NumberRange(0, 1, min_open=True, max_open=True), default=0.25, show_default=True, help="Share of the groups that the fit never sees."),
        click.option("--folds", type=WholeRange(2), default=4, show_default=True, help="Folds of the cross-validation."),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the hold-out and the folds."),
    ]  # fmt: skip
    return _with(command, options)


def _with(command: F, options: Sequence[Callable[[F], F]]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="modalign")
def cli() -> None:
    """Align image and text embeddings, serve them from Qdrant, prove it with Recall@K.

    A corpus is encoded once into an embedding set; an alignment is fitted on embedding sets; a release is one
    alignment under one metric in one Qdrant collection; search and audit read releases; SQL remembers everything.

    Start with `modalign demo`. Exit codes: 0 done, 1 failed, 2 usage, 3 an audit's requirement was not met, what
    it audits is broken, or no audit allows a promotion, 4 done but more items were rejected than --max-rejects allows,
    130 interrupted.
    """


@cli.group()
def db() -> None:
    """The provenance database."""


@db.command()
@home_options
def upgrade(**where: Any) -> None:
    """Create or upgrade the tables; run it once for a new home and after every update of modalign."""
    from connector.provenance import upgrade as upgrade_database

    settings = _settings(where)
    upgrade_database(settings.database_url)
    say(f"{redacted(settings.database_url)} is up to date")


@cli.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option("--set", "name", required=True, metavar="NAME", help="Embedding set to write.")
@click.option("--image-encoder", metavar="SPEC", help="open_clip:MODEL/PRETRAINED, timm:MODEL or a plugin's.")
@click.option(
    "--text-encoder", metavar="SPEC", help="open_clip:MODEL/PRETRAINED, sentence-transformers:NAME or a plugin's."
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of the stored vectors.",
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Items the encoder takes at a time."
)
@click.option(
    "--shard-size",
    type=click.IntRange(1),
    default=1024,
    show_default=True,
    help="Rows of a shard; a kill loses at most one.",
)
@corpus_options
@rejects_option
@json_option
@home_options
def encode(
    corpus: Path, name: str, image_encoder: str | None, text_encoder: str | None, dtype: Any, batch_size: int,
    shard_size: int, format: str | None, images: Path | None, max_rejects: int, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Encode CORPUS, a JSONL, CSV, TSV or Parquet manifest or a folder of images, into an embedding set.

    A manifest has the columns key and image or caption, and group, if several items describe the same thing; all
    else becomes payload. A folder has captions in .txt files of the images' stems, one a line. COCO, Karpathy and
    Flickr annotations, WebDataset archives (also 'train-{0000..0099}.tar') and img2dataset's folders are read too:
    docs/corpora.md.

    Run it again after a kill or a change of the corpus: what stands in the set is not encoded again.
    """
    specs: dict[Any, str] = {"image": image_encoder or "", "text": text_encoder or ""}
    given = {modality: spec for modality, spec in specs.items() if spec}
    with _home(where) as home:
        result = home.encode(
            corpus, name, given, format=format, images=images, dtype=dtype, batch_items=batch_size,
            shard_rows=shard_size,
        )  # fmt: skip
    _print_set(name, result, max_rejects, as_json)


@cli.command("import")
@click.argument("vectors", type=click.Path(path_type=Path))
@click.option("--set", "name", required=True, metavar="NAME", help="Embedding set to write.")
@click.option("--image-encoder", metavar="NAME", help="What made the image vectors; kept as imported:NAME.")
@click.option("--text-encoder", metavar="NAME", help="What made the text vectors; kept as imported:NAME.")
@click.option("--image-vectors", metavar="COLUMN", help="Column of a Parquet file.  [default: its only vector column]")
@click.option("--text-vectors", metavar="COLUMN", help="Column of a Parquet file.  [default: its only vector column]")
@click.option(
    "--metadata",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Parquet file with the rows of a .npy.  [default: the one of its name]",
)
@click.option("--key", metavar="COLUMN", help="Column that names the rows for ever.  [default: key or image_path]")
@click.option(
    "--group", metavar="COLUMN", help="Column of what describes the same thing.  [default: group, or the key]"
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of the stored vectors.",
)
@rejects_option
@json_option
@home_options
def import_(
    vectors: Path, name: str, image_encoder: str | None, text_encoder: str | None, image_vectors: str | None,
    text_vectors: str | None, metadata: Path | None, key: str | None, group: str | None, dtype: Any, max_rejects: int,
    as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Take VECTORS that were computed elsewhere into an embedding set, without encoding anything.

    VECTORS is a folder that clip-retrieval wrote, a .npy with a Parquet file of its rows, or a Parquet file, or a
    folder of these, with a vector column. No model comes with them: searching takes vectors too, from Python.
    """
    encoders: dict[Any, str] = {"image": image_encoder or "", "text": text_encoder or ""}
    columns: dict[Any, str] = {"image": image_vectors or "", "text": text_vectors or ""}
    with _home(where) as home:
        result = home.import_vectors(
            vectors, name, {m: encoder for m, encoder in encoders.items() if encoder}, dtype=dtype,
            columns={m: column for m, column in columns.items() if column}, metadata=metadata, key=key, group=group,
        )  # fmt: skip
    _print_set(name, result, max_rejects, as_json)


@cli.command()
@click.argument("sets", nargs=-1, required=True, metavar="SET...")
@click.option("--alignment", "name", required=True, metavar="NAME", help="Alignment to make.")
@click.option(
    "--method",
    default="auto",
    show_default=True,
    help="auto, a closed form (identity, procrustes, ridge, rcca, kcca, asif) or a trained head (linear, residual, fusemix, star-glu).",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    default=["cosine"],
    show_default=True,
    metavar="METRIC",
    help=METRIC_HELP + " Candidates are chosen under the first that has nothing to learn.",
)
@holdout_options
@click.option(
    "--budget",
    callback=seconds,
    metavar="TIME",
    help="Begin no further candidate after so long, such as 90s, 10m or 2h.  [default: try them all]",
)
@click.option("--joint", is_flag=True, help="Choose under all metrics, and train one projection with all of them.")
@click.option(
    "--training",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Setting of the training loop, for example loss=hinge, batch=4096 or structure=10. May be repeated.",
)
@json_option
@home_options
def fit(
    sets: tuple[str, ...], name: str, method: str, metrics: tuple[str, ...], holdout: float, folds: int, seed: int,
    budget: float | None, joint: bool, settings: tuple[str, ...], as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Fit an alignment on embedding sets that hold pairs of images and texts.

    Under torch's launcher, heads train in several processes: torchrun --nproc-per-node 4 --no-python modalign fit ...
    """
    from alignment import processes
    from alignment.embeddings import HoldOut

    with _home(where) as home:
        result = home.fit(
            sets, name, method=method, metrics=metrics, hold_out=HoldOut(holdout, seed), folds=folds, seed=seed,
            budget=budget, joint=joint, training=_assignments(settings, "--training"),
        )  # fmt: skip
    if processes.number():  # the first process of a launcher speaks for all
        return
    alignment: Alignment = result.made
    card = alignment.card
    document = {
        "alignment": name, "fingerprint": alignment.fingerprint, "method": card.method, "dim": alignment.dim,
        "hyperparameters": card.hyperparameters, "held_out_recall": card.held_out_recall,
    }  # fmt: skip
    if as_json:
        print_json({"run": result.run, **document})
        return
    rows = [
        {"metric": metric, "direction": direction, **values}
        for metric, directions in card.held_out_recall.items()
        for direction, values in directions.items()
    ]
    print_table(rows, f"alignment {name}: {card.method} {card.hyperparameters}, on held-out groups")


@cli.command()
@click.argument("sets", nargs=-1, required=True, metavar="SET...")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="METHOD",
    help="Method to compare, as for fit. May be repeated.  [default: those that fit tries by itself]",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="METRIC",
    help=METRIC_HELP
    + " May be repeated; hyperparameters are chosen under the first that has nothing to learn.  [default: cosine, manhattan, chi2, kl-query-item, dot+nnn, bilinear]",
)
@holdout_options
@click.option(
    "--budget",
    callback=seconds,
    metavar="TIME",
    help="Begin nothing more after so long, such as 90s, 10m or 2h; cheap methods come first, and what is missing is said.  [default: try them all]",
)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="New directory for the report.  [default: reports/compare-RUN in the home]",
)
@json_option
@home_options
def compare(
    sets: tuple[str, ...], methods: tuple[str, ...], metrics: tuple[str, ...], holdout: float, folds: int, seed: int,
    budget: float | None, to: Path | None, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Compare encoder pairs, methods and metrics on your data, and say what to take.

    Sets of the same encoders are joined; sets of different encoders are compared on the groups that they have in
    common. The report is a page with pictures, compare.html, and a document for machines, compare.json.
    """
    from alignment.embeddings import HoldOut
    from connector.comparison import DOCUMENT, PAGE, table

    with _home(where) as home:
        result = home.compare(
            sets, methods=methods, metrics=metrics, hold_out=HoldOut(holdout, seed), folds=folds, seed=seed,
            budget=budget, to=to,
        )  # fmt: skip
    made: Compared = result.made
    say(f"wrote {_shortest(made.directory / PAGE)}")
    if as_json:
        print_json({"run": result.run, **json.loads((made.directory / DOCUMENT).read_text(encoding="utf-8"))})
        return
    comparison = made.comparison
    print_table(
        table(comparison), f"{comparison.test_groups:,} held-out groups, mean of both directions, 95% intervals"
    )
    print_guidelines(made.advice.guidelines)


@cli.command()
@click.argument("name", metavar="SET")
@push_options
@rejects_option
@json_option
@home_options
def push(
    name: str, collection: str, alignment: str, metrics: tuple[str, ...], layout: Mapping[str, Any],
    max_rejects: int, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Push an embedding set through an alignment into Qdrant, one release per metric.

    The first release of a collection under a metric is live at once. Another alignment's is a shadow beside it, until
    it is audited and promoted; meanwhile what is pushed with either reaches both.

    Run it again after a kill or a change of the set: only what changed is written.
    """
    with _home(where) as home:
        result = home.push(name, collection, alignment, metrics=metrics, **layout)
    print_releases(result, as_json)
    say_shadows(result)
    _exit_for_rejects(result, max_rejects)


@cli.command()
@click.argument("corpus", type=click.Path(path_type=Path))
@push_options
@click.option("--set", "name", metavar="NAME", help="Embedding set to keep.  [default: like the collection]")
@corpus_options
@click.option(
    "--parts",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Divide the corpus into N parts and take one after the other: run the same command in several processes, on one machine or many, which share the parts out in SQL.",
)
@click.option("--prune", is_flag=True, help="Delete what has left the corpus, after saying how many and asking.")
@yes_option
@rejects_option
@json_option
@home_options
def ingest(
    corpus: Path, collection: str, alignment: str, metrics: tuple[str, ...], layout: Mapping[str, Any],
    name: str | None, format: str | None, images: Path | None, parts: int | None, prune: bool, yes: bool,
    max_rejects: int, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Encode CORPUS with the alignment's encoders and push it: one command that can be killed and repeated."""
    confirm = _confirmation("--prune", yes) if prune else None
    if prune and parts and not yes:
        raise click.UsageError("--prune with --parts asks nobody: add --yes")
    with _home(where) as home:
        result = home.ingest(
            corpus, collection, alignment, name=name, format=format, images=images, metrics=metrics, parts=parts,
            prune=None if confirm is None else lambda gone: confirm(f"delete {gone} items that have left the corpus?"),
            **layout,
        )  # fmt: skip
    print_releases(result, as_json)
    say_shadows(result)
    _exit_for_rejects(result, max_rejects)


@cli.command()
@click.argument("collection")
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="KEY",
    help="Key of an item: of an image, or of a caption, KEY#0. May be repeated.",
)
@click.option("--filter", "filter_json", metavar="JSON", help="Qdrant filter on the payload: every item that matches.")
@click.option("--modality", type=click.Choice(["image", "text"]), help="Only items of this modality.  [default: both]")
@yes_option
@json_option
@home_options
def delete(
    collection: str, keys: tuple[str, ...], filter_json: str | None, modality: Any, yes: bool, as_json: bool,
    **where: Any,
) -> None:  # fmt: skip
    """Delete items from every release of COLLECTION and from their embedding sets, after saying how many and asking.

    Other collections that hold items of these sets lose them too. A corpus that still has an item brings it back when
    it is ingested again; a push does not. Run it again after a kill: it finishes.
    """
    from connector.store import parse_filter

    if not keys and filter_json is None:
        raise click.UsageError("expected --key or --filter, got neither")
    confirm = _confirmation("modalign delete", yes)
    condition = parse_filter(filter_json) if filter_json is not None else None
    with _home(where) as home:
        result = home.delete(
            collection, keys=keys, filter=condition, modalities=[modality] if modality else ["image", "text"],
            confirm=lambda doomed: confirm(f"delete {doomed}?"),
        )  # fmt: skip
    if not result.made:
        say("nothing was deleted")
    print_result(result, {"collection": collection, "deleted": result.counts["deleted"]}, as_json)
    if not result.made:
        sys.exit(FAILED)


@cli.command()
@click.argument("collection")
@click.argument("query")
@click.option("-k", type=click.IntRange(1, 1_000_000), default=10, show_default=True, help="How many items to find.")
@click.option("--metric", metavar="METRIC", help=METRIC_HELP + "  [default: the only one there is, or cosine]")
@click.option("--target", type=click.Choice(["image", "text"]), help="Modality to find.  [default: the other one]")
@click.option("--filter", "filter_json", metavar="JSON", help="Qdrant filter on the payload.")
@click.option("--exact", is_flag=True, help="Compare with every item instead of walking the index.")
@click.option(
    "--candidates",
    "budget",
    type=click.IntRange(1),
    metavar="N",
    help="Most candidates to fetch under a metric that rescores.  [default: the metric's own budget]",
)
@click.option("--html", "page", type=click.Path(path_type=Path), help="Write a contact sheet with the pictures.")
@json_option
@home_options
def search(
    collection: str, query: str, k: int, metric: str | None, target: Any, filter_json: str | None, exact: bool,
    budget: int | None, page: Path | None, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Search COLLECTION with QUERY: a text, or the path of an image (known by its suffix)."""
    from connector.items import IMAGE_SUFFIXES
    from connector.report import Answered, write_contact_sheet
    from connector.store import parse_filter

    condition = parse_filter(filter_json) if filter_json is not None else None
    options: dict[str, Any] = {"filter": condition, "exact": exact, "budget": budget}
    is_image = Path(query).suffix.lower() in IMAGE_SUFFIXES
    with _home(where) as home:
        retriever = home.retriever(collection, metric)
        if is_image:
            (answer,) = retriever.search_images([Path(query)], k, target=target or "text", **options)
        else:
            (answer,) = retriever.search_texts([query], k, target=target or "image", **options)
        name, guarantee = str(retriever.release.metric), retriever.guarantee
    title = f"under {name}, {how_sure(guarantee, answer)}"
    if page:
        asked = Path(query) if is_image else query
        write_contact_sheet(page, f"{collection}: {query}", f"{len(answer)} best {title}", [Answered(asked, answer)])
        say(f"wrote {page}")
    if as_json:
        document = {
            "collection": collection, "metric": name, "guarantee": guarantee, "certified": answer.certified,
            "candidates": answer.candidates, "exact": answer.exact, "query": query,
            "found": [item._asdict() for item in answer],
        }  # fmt: skip
        print_json(document)
    else:
        print_table(found_rows(answer), f"{collection} {title}")


@cli.command()
@click.argument("alignment")
@click.option("--metric", required=True, metavar="METRIC", help=METRIC_HELP)
@click.option(
    "--to", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Directory to write; new, or empty."
)
@click.option(
    "--collection",
    metavar="COLLECTION",
    help="Whose live release will be asked: its name and its hnsw_ef then stand in the requests.",
)
@json_option
@home_options
def export(
    alignment: str, metric: str, to: Path, collection: str | None, as_json: bool, **where: Any
) -> None:  # fmt: skip
    """Write ALIGNMENT under a metric as ONNX graphs, so that a service in any language queries without modalign.

    DIR then holds a graph for queries and one for items of either modality, from the raw embedding of the encoder to
    the vector that Qdrant is asked with or stores; request.json, the requests to send and what their scores mean; and
    example.py, both at work with onnxruntime and plain HTTP: python DIR/example.py TEXTS.npy QDRANT-URL.

    Every graph is compared with modalign before anything is written. Needs the extra `export`.
    """
    with _home(where) as home:
        result = home.export(alignment, metric, to, collection=collection)
    graphs: list[Graph] = result.made
    rows = [{"graph": g.name, "outputs": ", ".join(g.outputs), "difference": g.difference} for g in graphs]
    if as_json:
        print_json({"run": result.run, "directory": str(to), "graphs": rows})
        return
    shown = [{**row, "difference": f"{row['difference']:.1e}"} for row in rows]
    print_table(shown, f"{to}: {alignment} under {metric}, and how far each graph is from what modalign computes")


@cli.command()
@click.argument("name", metavar="SET")
@click.option(
    "--alignment",
    metavar="NAME",
    help="Align the vectors first.  [default: as the encoders made them, where both modalities have one dimension]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the sample and of everything random.",
)
@click.option(
    "--sample",
    type=click.IntRange(20),
    default=2000,
    show_default=True,
    help="Held-out groups to draw, at most.",
)
@json_option
@home_options
def gap(name: str, alignment: str | None, seed: int, sample: int, as_json: bool, **where: Any) -> None:
    """Measure the modality gap of an embedding set on groups that the fit never saw, with Recall@K beside it.

    How far images and texts lie apart as clouds, with what chance gives, and how pairs lie to each other: docs/audits.md
    explains every number.
    """
    with _home(where) as home:
        result = home.gap(name, alignment=alignment, seed=seed, sample=sample)
    found: Geometry = result.made
    if as_json:
        print_json(
            {"run": result.run, "set": name, "alignment": alignment, **found.to_json(), "meaning": found.meaning}
        )
    else:
        space = "as encoded" if alignment is None else f"aligned by {alignment}"
        how = f"seed {seed}, {found.settings['normalisation']} vectors, solver {found.gap.solver}"
        print_geometry(found, f"{name} {space}: {found.groups} held-out groups, {found.gap.n} a half, {how}")


@cli.command()
@click.argument("collection")
@click.option("--pairs", metavar="SET", help="Embedding set with the labelled pairs.  [required, but for --history]")
@click.option("--metric", metavar="METRIC", help=METRIC_HELP + "  [default: the only one there is, or cosine]")
@click.option(
    "--release",
    "which",
    default="live",
    show_default=True,
    metavar="RELEASE",
    help="live; ready, the shadow of the newest alignment; or a release's own name, as status shows it.",
)
@click.option("--k", "ks", default="1,5,10", show_default=True, metavar="K,K,...", help="Lengths of the result lists.")
@click.option(
    "--require",
    "requirements",
    multiple=True,
    metavar="CONDITION",
    help="For example 'recall@10>=0.4', 'index:fidelity@10>=0.98' or, with --against, 'recall@10 drop<=0.02'; exit "
    "with 3 if it is not met. May be repeated.",
)
@click.option(
    "--against",
    metavar="AUDIT",
    help="Compare with an earlier audit, query by query: last, of this release; live, of the live release; or a number "
    "that --history shows.",
)
@click.option(
    "--queries",
    type=click.Choice(["held-out", "all"]),
    help="Which items to ask with.  [default: held-out]",
)
@click.option(
    "--gallery",
    type=click.Choice(["held-out", "all"]),
    help="Which points to search among.  [default: held-out]",
)
@click.option(
    "--protocol",
    metavar="NAME",
    help="coco-5k, coco-1k or flickr30k: ask and search as this benchmark does; SET is its whole test split.",
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="NAME=JSON",
    help="Also search within a Qdrant filter, as a stage of that name. May be repeated.",
)
@click.option(
    "--by",
    multiple=True,
    metavar="FIELD",
    help="Also measure the queries of each value of a payload field apart. May be repeated.",
)
@click.option(
    "--sample", type=click.IntRange(1), metavar="N", help="Ask with N queries of each modality.  [default: all]"
)
@click.option("--rate", type=float, metavar="QPS", help="Ask at most so many queries a second.  [default: no limit]")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the sample, the points that are read back, the gap and the intervals.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page for people, which needs no network.",
)
@click.option(
    "--prometheus",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the measures for Prometheus' text file collector.",
)
@click.option(
    "--jsonl",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Append the audit as one line of JSON.",
)
@click.option("--history", "past", is_flag=True, help="Show the audits that were made, instead of making one.")
@click.option(
    "-n", "limit", type=click.IntRange(1, 10_000), default=30, show_default=True, help="How many of the history."
)
@json_option
@home_options
def audit(
    collection: str, pairs: str | None, metric: str | None, which: str, ks: str, requirements: tuple[str, ...],
    against: str | None, queries: str | None, gallery: str | None, protocol: str | None, filters: tuple[str, ...],
    by: tuple[str, ...], sample: int | None, rate: float | None, seed: int, report: Path | None,
    prometheus: Path | None, jsonl: Path | None, past: bool, limit: int, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Measure a release against the labels of pairs that the fit never saw, and say which stage loses what.

    Recall@K in both directions; what the lowering, the index, quantization and filters lose of it; the modality gap. A
    release that does not hold what it should is broken: nothing of it is measured, and the exit code is 3.
    """
    _refuse_contradictions(_given_options())
    if past:
        _print_history(collection, metric, limit, as_json, report, where)
        return
    assert pairs is not None
    try:
        lengths = [int(part) for part in ks.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected numbers such as 1,5,10, got {ks!r}", param_hint="--k") from None
    named = dict(_name_and_filter(text) for text in filters)
    if len(named) < len(filters):
        raise click.BadParameter("expected a name of its own for each", param_hint="--filter")
    from connector import audit_output as output  # loads numpy

    _refuse_files(report, prometheus, jsonl)
    for path in filter(None, (prometheus, jsonl)):
        output.claim(path)
    with _home(where) as home:
        result = home.audit(
            collection, pairs, metric=metric, which=which, requirements=requirements, against=against, ks=lengths,
            queries=queries or "held-out", gallery=gallery or "held-out", protocol=protocol, filters=named, by=by,
            sample=sample, rate=rate, seed=seed, report=report,
        )  # fmt: skip
    found: Audit = result.made
    if prometheus:
        output.write_prometheus(prometheus, result)
    if jsonl:
        output.append_line(jsonl, result)
    _say_page(report)
    if as_json:
        print_json(output.document(result))
    else:
        output.print_audit(found)
    if as_json or not sys.stdout.isatty():  # who sees the table has read it there
        if found.broken:
            say(f"broken: {found.broken}")
        for failure in found.failures:
            say(f"not met: {failure.requirement.text}: {failure.why}")
    if found.broken or found.failures:
        sys.exit(REQUIREMENT)


def _refuse_contradictions(given: set[str]) -> None:
    """Refuse options of an audit that are without effect, or without sense, beside each other."""
    if "--history" in given:
        if others := sorted(given - {"--history", "--metric", "-n", "--report", "--json", *HOME_OPTIONS}):
            raise click.UsageError(f"--history makes no audit: leave {', '.join(others)} out")
    elif "-n" in given:
        raise click.UsageError("-n says how much of the --history is shown; to ask with fewer queries, give --sample")
    elif "--pairs" not in given:
        raise click.UsageError("expected --pairs SET, or --history")
    elif "--protocol" in given and {"--queries", "--gallery"} & given:
        raise click.UsageError("--protocol says what is asked and searched: leave --queries and --gallery out")


def _refuse_files(report: Path | None, prometheus: Path | None, jsonl: Path | None) -> None:
    written = [path.absolute() for path in (report, prometheus, jsonl) if path is not None]
    if len(set(written)) < len(written):
        raise click.UsageError("--report, --prometheus and --jsonl write files of their own: name one for each")
    if prometheus is not None and prometheus.suffix != ".prom":
        raise click.BadParameter(
            f"the collector reads files that end in .prom, got {prometheus.name}", param_hint="--prometheus"
        )


def _given_options() -> set[str]:
    """Return the options that were given, as people write them."""
    context = click.get_current_context()
    return {
        option.opts[0]
        for option in context.command.params
        if isinstance(option, click.Option) and context.get_parameter_source(option.name or "") is COMMANDLINE
    }


def _name_and_filter(text: str) -> tuple[str, str]:
    name, equals, condition = text.partition("=")
    if not (name.strip() and equals):
        raise click.BadParameter(f"expected NAME=JSON, got {text!r}", param_hint="--filter")
    return name.strip(), condition


def _say_page(report: Path | None) -> None:
    if report:
        say(f"wrote {report}")


def _print_history(
    collection: str, metric: str | None, limit: int, as_json: bool, report: Path | None, where: dict[str, Any]
) -> None:
    from connector import audit_output as output  # loads numpy
    from connector.history_page import write_history_page

    with _home(where) as home:
        moments = home.audits(collection, metric=metric, limit=limit)
    if report:
        write_history_page(report, collection, moments)
    _say_page(report)
    if as_json:
        print_json(output.history_document(moments))
    elif moments:
        output.print_history(moments)
    else:
        say(f"no release of {collection} was audited yet; run `modalign audit {collection} --pairs SET`")


@cli.command()
@click.argument("collection")
@click.option("--metric", "metrics", multiple=True, metavar="METRIC", help=METRIC_HELP + "  [default: all]")
@click.option(
    "--release",
    "names",
    multiple=True,
    metavar="RELEASE",
    help="This ready release. May be repeated.  [default: those of the newest alignment]",
)
@click.option("--force", is_flag=True, help="Promote whatever the audits say; who did and why is recorded.")
@click.option("--reason", metavar="TEXT", help="Why it is forced.")
@json_option
@home_options
def promote(
    collection: str, metrics: tuple[str, ...], names: tuple[str, ...], force: bool, reason: str | None, as_json: bool,
    **where: Any,
) -> None:  # fmt: skip
    """Make the ready releases of COLLECTION live, in place of those that are: one switch for all metrics.

    They are verified first: exact counts against SQL, and a sample of vectors and payloads against the embedding sets.
    The newest audit of each must have passed its requirements, and nothing may have been written since; otherwise the
    exit code is 3. Run it again after a crash: it finishes what it began. What was live is retired, and `rollback`
    brings it back.
    """
    if force != bool(reason and reason.strip()):
        raise click.UsageError("expected --force together with --reason TEXT, or neither")
    with _home(where) as home:
        result = home.promote(collection, metrics=metrics, names=names, reason=reason)
    for switched in result.made:
        if switched.refused:
            say(f"forced by {switched.promotion.forced_by}: {switched.refused}")
    _print_switched(result, as_json)


@cli.command()
@click.argument("collection")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="METRIC",
    help=METRIC_HELP + "  [default: all that the last promotion switched]",
)
@json_option
@home_options
def rollback(collection: str, metrics: tuple[str, ...], as_json: bool, **where: Any) -> None:
    """Undo the last promotion of COLLECTION: what was live before is live again.

    It is verified first. What was pushed since the promotion it has not got: push the embedding sets with its alignment
    again. Run it again after a crash: it finishes what it began.
    """
    with _home(where) as home:
        result = home.rollback(collection, metrics=metrics)
    for switched in result.made:
        for lacking in switched.lacks:
            say(lacking)
    _print_switched(result, as_json)


@cli.command()
@click.argument("collection")
@click.option(
    "--release", "names", multiple=True, metavar="RELEASE", help="This release, as status names it. May be repeated."
)
@click.option("--retired", is_flag=True, help="All retired releases.")
@yes_option
@json_option
@home_options
def drop(
    collection: str, names: tuple[str, ...], retired: bool, yes: bool, as_json: bool, **where: Any
) -> None:  # fmt: skip
    """Drop releases of COLLECTION that are not live, with their points; embedding sets and alignments stay."""
    with _home(where) as home:
        doomed = home.droppable(collection, names=names, retired=retired)
        for name, returned_to in doomed.items():
            say(f"{name}{': a rollback would return to it' if returned_to else ''}")
        if doomed and not _confirmation("modalign drop", yes)(f"drop {len(doomed)} releases of {collection}?"):
            say("nothing was dropped")
            sys.exit(FAILED)
        result = home.drop(collection, list(doomed)) if doomed else None
    if as_json:
        print_json({"run": result.run if result else None, "dropped": list(doomed)})
    else:
        print_table([{"dropped": name} for name in doomed], f"{collection}")


@cli.command()
@click.argument("collection", required=False)
@click.option(
    "-n", "limit", type=click.IntRange(1, 1_000_000), default=10, show_default=True, help="How many runs to show."
)
@click.option(
    "--verify", is_flag=True, help="Reconcile SQL, collections and embedding sets; exit with 1 if they differ."
)
@click.option("--repair", is_flag=True, help="Also mend collections and SQL from the embedding sets, and verify again.")
@yes_option
@json_option
@home_options
def status(
    collection: str | None, limit: int, verify: bool, repair: bool, yes: bool, as_json: bool, **where: Any
) -> None:  # fmt: skip
    """Show releases, of COLLECTION or all, what is to be done about them, ingests in parts, and the last runs.

    The lag is the number of rows of the embedding sets that a release does not hold, those that it refused among them.

    With --verify everything that live and ready releases should hold is computed again from the embedding sets and
    compared with what they hold: missing, differing and orphaned points, all payloads, vectors of a sample. A release
    that cannot be compared, because its alignment is gone say, is named with the reason, and the others are verified.
    """
    from connector.lifecycle import pending

    with _home(where) as home:
        reconciled = _reconciled(home, collection, repair, yes) if verify or repair else None
        lag = home.lag()
        releases = [
            {
                "collection": row.collection, "metric": row.metric, "state": row.state, "points": row.points,
                "hnsw_ef": row.settings.get("hnsw_ef"), "hnsw_recall": row.settings.get("hnsw_recall"),
                "lag": lag[row.id].rows if row.id in lag else None,
                "lag_since": _minute(lag[row.id].since) if row.id in lag else None,
                "physical_name": row.physical_name, "store": row.store_url, "pending": pending(home.provenance, row),
            }
            for row in home.provenance.releases(**({"collection": collection} if collection else {}))
            if row.dropped_at is None
        ]  # fmt: skip
        runs = [
            {
                "run": row.id, "command": row.command, "outcome": row.outcome,
                "started": row.started_at.isoformat(timespec="seconds"),
                "counts": ", ".join(f"{count} {name}" for name, count in row.counts.items() if count),
                "error": row.error or "",
            }
            for row in home.provenance.runs(limit)
        ]  # fmt: skip
        parts = home.provenance.ingests_in_parts()
    sound = reconciled is None or all(found.sound for found in reconciled)
    if as_json:
        document: dict[str, Any] = {"releases": releases, "ingests_in_parts": parts, "runs": runs}
        if reconciled is not None:
            document |= {"verified": reconciled_rows(reconciled), "examples": reconciled_examples(reconciled)}
        print_json(document)
        sys.exit(0 if sound else FAILED)
    shown = [
        {name: value for name, value in release.items() if name not in ("store", "pending")} for release in releases
    ]
    print_table(shown, "releases")
    for release in releases:
        if release["pending"]:
            click.echo(f"{release['physical_name']}: {release['pending']}")
    if reconciled is not None:
        rows = [{name: value for name, value in row.items() if name != "broken"} for row in reconciled_rows(reconciled)]
        print_table(rows, "verified against SQL and embedding sets")
        for each in reconciled:
            if each.broken is not None:
                click.echo(f"{each.name}: broken: {each.broken}")
        for name, kinds in reconciled_examples(reconciled).items():
            for kind, examples in kinds.items():
                say(f"{name}: {kind}, for example {', '.join(examples)}")
    if parts:
        print_table(parts, "ingests in parts that are not finished")
    for run in runs:
        run["started"] = str(run["started"])[:16].replace("T", " ")
        run["error"] = textwrap.shorten(str(run["error"]), 60)
    print_table(runs, "runs (times are UTC; --json has errors in full)")
    if not sound:
        sys.exit(FAILED)


@cli.command()
@click.argument("run", type=click.IntRange(1, 2**31 - 1), required=False)
@click.option("--by-reason", is_flag=True, help="Count them by stage and reason.")
@click.option(
    "--export",
    "to",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="Write them as JSONL into FILE; - is stdout.",
)
@click.option(
    "--retry",
    is_flag=True,
    help="Run the command of RUN again: what stands in the set costs a hash, what was refused is tried again.",
)
@rejects_option
@json_option
@home_options
def rejects(
    run: int | None, by_reason: bool, to: Path | None, retry: bool, max_rejects: int, as_json: bool, **where: Any
) -> None:
    """List the items that RUN refused, with the reasons; without RUN, the last run that refused any."""
    if by_reason + (to is not None) + retry > 1:
        raise click.UsageError("--by-reason, --export and --retry exclude each other")
    with _home(where) as home:
        number = run if run is not None else home.provenance.last_run_with_rejects()
        refused = home.provenance.rejects(number) if number is not None else []
        rows = [
            {
                "stage": row.stage, "reason": row.reason, "source": row.source, "position": row.position,
                "key": row.key, "modality": row.modality, "detail": row.detail,
            }
            for row in refused
        ]  # fmt: skip
        if retry and number is not None:
            result = home.retry(number)
            print_result(result, {"retried": number, "refused_then": len(rows)}, as_json)
            _exit_for_rejects(result, max_rejects)
            return
    counted = Counter((str(row["stage"]), str(row["reason"])) for row in rows)
    counts = [{"stage": stage, "reason": reason, "count": n} for (stage, reason), n in counted.most_common()]
    if to is not None:
        lines = "".join(json.dumps({"run": number, **row}, ensure_ascii=False) + "\n" for row in rows)
        if str(to) == "-":
            click.echo(lines, nl=False)
        else:
            to.write_text(lines, encoding="utf-8")
            say(f"wrote {len(rows)} rejects to {to}")
    elif as_json:
        print_json({"run": number, **({"by_reason": counts} if by_reason else {"rejects": rows})})
    elif number is None:
        click.echo("no run has refused anything")
    elif by_reason:
        print_table(counts, f"rejects of run {number} by reason")
    else:
        print_rejects(rows, number)


@cli.command()
@json_option
@home_options
def demo(as_json: bool, **where: Any) -> None:
    """Show the whole way on 1,707 emoji: encode, fit, push under every metric, search, audit. Takes some five minutes.

    Needs the extra packages of `pip install 'modalign[demo]'`, and no network, server or GPU.
    """
    from connector.demo import run_demo

    result = run_demo(_settings(where))
    rows = list(result.rows())
    if as_json:
        print_json(
            {"home": str(result.home), "page": str(result.page), "seconds": round(result.seconds, 1), "table": rows}
        )
        return
    shown = [
        {
            name.replace("recall@", "R@"): value.replace("-to-", " → ") if isinstance(value, str) else round(value, 3)
            for name, value in row.items()
            if name != "queries"
        }
        for row in rows
    ]
    queries = rows[0]["queries"]
    print_table(shown, f"Recall@K on held-out pairs ({queries} queries each way), chance and fidelity beside it")
    say("cosine, dot and euclid agree: they order unit vectors alike")
    modalign = "modalign" if shutil.which("modalign") else _shortest(Path(sys.argv[0]))
    option = "" if where["home"] is None else f" --home {where['home']}"
    example = _shortest(result.example)
    say(f"\nLook at {result.page}\nThen try, in the home {result.home}:\n")
    say(f"  {modalign} search emoji 'a red heart' -k 5{option}")
    say(f"  {modalign} search emoji {example} --html found.html{option}")
    say(f"  {modalign} audit emoji --pairs emoji --require 'recall@10>=0.4'{option}")


def main() -> NoReturn:
    """Run the command line and turn every way to end into its exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(USAGE)
    except (click.Abort, KeyboardInterrupt):
        say("interrupted; nothing is half written: run the same command again")
        sys.exit(INTERRUPTED)
    except ModalignError as error:
        say(f"modalign: {without_secrets(str(error))}")
        sys.exit(USAGE if isinstance(error, USAGE_ERRORS) else REQUIREMENT if isinstance(error, GateError) else FAILED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(FAILED)
    except OSError as error:  # a full disk, a home that may not be written
        say(f"modalign: {error}")
        sys.exit(FAILED)
    sys.exit(0)


def _confirmation(what: str, yes: bool) -> Callable[[str], bool]:
    """Return how to ask whether to delete; without a terminal there is nobody to ask."""
    if not yes and not sys.stdin.isatty():
        raise click.UsageError(f"{what} deletes only what somebody agrees to: add --yes, or run it in a terminal")

    def confirm(question: str) -> bool:
        if yes:
            say(question.removesuffix("?"))
        return yes or click.confirm(question, err=True)

    return confirm


def _settings(where: Mapping[str, Any]) -> "Settings":
    from connector.settings import Settings

    return Settings.load(**where)


def _home(where: Mapping[str, Any]) -> "Home":
    from connector.home import Home

    return Home(_settings(where))


def _assignments(texts: Iterable[str], option: str) -> dict[str, str]:
    given = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not name or not sign:
            raise click.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint=option)
        given[name] = value
    return given


def _payload_indexes(indexes: Iterable[str]) -> dict[str, Any]:
    parsed = {}
    for text in indexes:
        field, _, kind = text.partition("=")
        if not field or kind not in PAYLOAD_KINDS:
            raise click.BadParameter(
                f"expected FIELD=KIND with a kind of {', '.join(PAYLOAD_KINDS)}, got {text!r}",
                param_hint="--payload-index",
            )
        parsed[field] = kind
    return parsed


def _print_set(name: str, result: "Result", max_rejects: int, as_json: bool) -> None:
    card = result.made.card
    print_result(result, {"set": name, **card.counts, "fingerprint": card.fingerprint}, as_json)
    _exit_for_rejects(result, max_rejects)


def _print_switched(result: "Result", as_json: bool) -> None:
    rows = switched_rows(result)
    if as_json:
        print_json({"run": result.run, "switched": rows})
    elif rows:
        print_table(rows, f"run {result.run}")
    else:
        print_table([], f"run {result.run}: everything that was asked for is live already")


def _reconciled(home: "Home", collection: str | None, repair: bool, yes: bool) -> "list[Reconciled]":
    found = home.verify(collection)
    if not repair or all(each.sound for each in found):
        return found
    orphans = sum(each.orphans.count for each in found)
    agreed = orphans > 0 and _confirmation("--repair", yes)(f"delete {orphans} points that no embedding set holds?")
    if orphans and not agreed:
        say("nothing was deleted")
    made: list[Reconciled] = home.repair(collection, delete_orphans=agreed).made
    return made


def _exit_for_rejects(result: "Result", allowed: int) -> None:
    refused = result.counts.get("rejected", 0)
    if refused:
        say(f"{refused} rejected; see `modalign rejects {result.run}`")
    if refused > allowed:
        sys.exit(REJECTED)


def _minute(moment: "datetime | None") -> str | None:
    return moment.isoformat(timespec="minutes") if moment else None


def _shortest(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


if __name__ == "__main__":  # python -m connector.cli
    main()
