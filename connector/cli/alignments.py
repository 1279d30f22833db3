"""Commands on alignments: fit, compare, export."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from alignment.fitting.training import Training
from alignment.names import COMPARED_METRICS, METHODS
from alignment.plurals import counted
from connector.cli.choices import METRIC, SEEN_OFFSET, Name, PathName
from connector.cli.group import cli
from connector.cli.opening import open_home, shortest
from connector.cli.options import METHOD_HELP, METRIC_HELP, assignments, home_options, json_option, seconds
from connector.cli.request_options import holdout_options
from connector.cli.tables import print_guidelines, print_json, print_recalls, print_table, show
from connector.progress import say
from connector.requests import CompareRequest, ExportRequest, FitRequest, default_of

SEEN_OFFSET_OPTION = click.option(
    "--seen-offset",
    type=SEEN_OFFSET,
    default="auto",
    show_default=True,
    metavar="auto|SHARE",
    help="What is taken off the scores of items of the fit, so that new items are found too: a share of the gap "
    "between pairs in and outside of the fit, 0 for nothing; auto finds it by cross-validation.",
)


@cli.command()
@click.argument("sets", nargs=-1, required=True, metavar="SET...")
@click.option("--alignment", required=True, metavar="NAME", help="Alignment to make.")
@click.option(
    "--method",
    type=Name("method", ("auto", *METHODS)),
    default=default_of(FitRequest, "method"),
    show_default=True,
    metavar="METHOD",
    help=f"auto, or {METHOD_HELP}.",
)
@click.option(
    "--metric",
    "metrics",
    type=METRIC,
    multiple=True,
    default=default_of(FitRequest, "metrics"),
    show_default=True,
    metavar="METRIC",
    help=METRIC_HELP + " Candidates are chosen under the first metric that learns nothing.",
)
@holdout_options
@click.option(
    "--budget",
    callback=seconds,
    metavar="TIME",
    help="Start no further candidate after this time, such as 90s, 10m or 2h.  [default: try all]",
)
@SEEN_OFFSET_OPTION
@click.option("--joint", is_flag=True, help="Choose under all metrics, and train one projection with all of them.")
@click.option(
    "--training",
    multiple=True,
    metavar="NAME=VALUE",
    help="Setting of the training loop, such as loss=hinge, batch=4096 or structure=10. May be repeated.",
)
@json_option
@home_options
def fit(training: tuple[str, ...], as_json: bool, where: Mapping[str, Any], **given: Any) -> None:
    """Fit an alignment on embedding sets that hold pairs of images and texts.

    Heads train in several processes under torch's launcher: torchrun --nproc-per-node 4 --no-python modalign fit ...
    """
    settings = assignments(training, "--training")
    Training().with_values(settings)
    request = FitRequest(training=settings, **given)
    with open_home(where) as home:
        result = home.fit(request)
    if not result.run:  # only the first process of a launcher records and prints
        return
    alignment = result.value
    card = alignment.card
    document = {
        "alignment": request.alignment,
        "fingerprint": alignment.fingerprint,
        "method": card.method,
        "dim": alignment.dim,
        "hyperparameters": card.hyperparameters,
        "held_out_recall": card.held_out_recall,
        "seen_offsets": card.seen_offsets,
        "whole_recall": card.whole_recall,
        "recall_estimates": card.recall_estimates,
    }
    if as_json:
        print_json({"run": result.run, **document})
        return
    show(f"alignment {request.alignment}: {card.method} {card.hyperparameters}")
    print_recalls(card)


@cli.command()
@click.argument("sets", nargs=-1, required=True, metavar="SET...")
@click.option(
    "--method",
    "methods",
    type=Name("method", METHODS),
    multiple=True,
    metavar="METHOD",
    help="Method to compare, as for fit. May be repeated.  [default: the methods of --method auto]",
)
@click.option(
    "--metric",
    "metrics",
    type=METRIC,
    multiple=True,
    metavar="METRIC",
    help=METRIC_HELP
    + " May be repeated. Hyperparameters are chosen under the first metric that learns nothing.  "
    + f"[default: {', '.join(COMPARED_METRICS)}]",
)
@holdout_options
@click.option(
    "--budget",
    callback=seconds,
    metavar="TIME",
    help="Start nothing more after this time, such as 90s, 10m or 2h. Cheap methods come first; the report names what is missing.  [default: try all]",
)
@SEEN_OFFSET_OPTION
@click.option(
    "--to",
    type=PathName(),
    metavar="DIR",
    help="New directory for the report.  [default: reports/compare-RUN in the home]",
)
@json_option
@home_options
def compare(as_json: bool, where: Mapping[str, Any], **given: Any) -> None:
    """Compare encoder pairs, methods and metrics on your data, and advise which to use.

    Sets of the same encoders are joined. Sets of different encoders are compared on the groups that they share. The
    report is a page with charts, compare.html, and a document for machines, compare.json.
    """
    from connector.reports.compare_report import DOCUMENT, PAGE, table, whole_table

    with open_home(where) as home:
        result = home.compare(CompareRequest(**given))
    compared = result.value
    comparison = compared.comparison
    say(f"wrote {shortest(compared.directory / PAGE)}")
    if as_json:
        print_json({"run": result.run, **json.loads((compared.directory / DOCUMENT).read_text(encoding="utf-8"))})
        return
    title = f"{counted(comparison.test_groups, 'held-out group')} apart, mean of both directions, 95% intervals"
    print_table(table(comparison), title)
    title = "all items in one collection, as production searches them, with the offset (and without)"
    print_table(whole_table(comparison), title)
    print_guidelines(compared.advice.guidelines)


@cli.command()
@click.argument("alignment")
@click.option("--metric", required=True, metavar="METRIC", help=METRIC_HELP)
@click.option("--to", required=True, type=PathName(), metavar="DIR", help="Directory to write; new, or empty.")
@click.option(
    "--collection",
    metavar="COLLECTION",
    help="Collection whose live release is searched: the requests then hold its name and its hnsw_ef.",
)
@json_option
@home_options
def export(to: Path, as_json: bool, where: Mapping[str, Any], **given: Any) -> None:
    """Write ALIGNMENT under a metric as ONNX graphs, so that a service in any language searches without modalign.

    DIR then holds a graph for queries and one for items of each modality. A graph takes the raw embedding of the
    encoder and returns the vector that Qdrant stores or is searched with. request.json holds the requests to send and
    what their scores mean. example.py shows both with onnxruntime and plain HTTP: python DIR/example.py TEXTS.npy URL.

    Every graph is compared with modalign before anything is written. Needs the extra `export`.
    """
    request = ExportRequest(to=to, **given)
    with open_home(where) as home:
        result = home.export(request)
    rows = [{"graph": g.name, "outputs": ", ".join(g.outputs), "difference": g.difference} for g in result.value]
    if as_json:
        print_json({"run": result.run, "directory": str(to), "graphs": rows})
        return
    shown = [{**row, "difference": f"{row['difference']:.1e}"} for row in rows]
    title = f"{to}: {request.alignment} under {request.metric}, with the largest difference of each graph from modalign"
    print_table(shown, title)
