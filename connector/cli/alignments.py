"""Commands on alignments: fit, compare, export."""

import json
from pathlib import Path
from typing import Any

import click

from connector.cli.group import _home, _shortest, cli
from connector.cli.options import METRIC_HELP, _assignments, holdout_options, home_options, json_option, seconds
from connector.cli.tables import print_guidelines, print_json, print_table
from connector.progress import say


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
    sets: tuple[str, ...],
    name: str,
    method: str,
    metrics: tuple[str, ...],
    holdout: float,
    folds: int,
    seed: int,
    budget: float | None,
    joint: bool,
    settings: tuple[str, ...],
    as_json: bool,
    **where: Any,
) -> None:
    """Fit an alignment on embedding sets that hold pairs of images and texts.

    Under torch's launcher, heads train in several processes: torchrun --nproc-per-node 4 --no-python modalign fit ...
    """
    from alignment import distributed
    from alignment.sets.hold_out import HoldOut

    with _home(where) as home:
        result = home.fit(
            sets,
            name,
            method=method,
            metrics=metrics,
            hold_out=HoldOut(holdout, seed),
            folds=folds,
            seed=seed,
            budget=budget,
            joint=joint,
            training=_assignments(settings, "--training"),
        )
    if distributed.rank():  # the first process of a launcher speaks for all
        return
    alignment = result.value
    card = alignment.card
    document = {
        "alignment": name,
        "fingerprint": alignment.fingerprint,
        "method": card.method,
        "dim": alignment.dim,
        "hyperparameters": card.hyperparameters,
        "held_out_recall": card.held_out_recall,
    }
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
    sets: tuple[str, ...],
    methods: tuple[str, ...],
    metrics: tuple[str, ...],
    holdout: float,
    folds: int,
    seed: int,
    budget: float | None,
    to: Path | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Compare encoder pairs, methods and metrics on your data, and say what to take.

    Sets of the same encoders are joined; sets of different encoders are compared on the groups that they have in
    common. The report is a page with pictures, compare.html, and a document for machines, compare.json.
    """
    from alignment.sets.hold_out import HoldOut
    from connector.reports.compare_report import DOCUMENT, PAGE, table

    with _home(where) as home:
        result = home.compare(
            sets,
            methods=methods,
            metrics=metrics,
            hold_out=HoldOut(holdout, seed),
            folds=folds,
            seed=seed,
            budget=budget,
            to=to,
        )
    made = result.value
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
def export(alignment: str, metric: str, to: Path, collection: str | None, as_json: bool, **where: Any) -> None:
    """Write ALIGNMENT under a metric as ONNX graphs, so that a service in any language queries without modalign.

    DIR then holds a graph for queries and one for items of either modality, from the raw embedding of the encoder to
    the vector that Qdrant is asked with or stores; request.json, the requests to send and what their scores mean; and
    example.py, both at work with onnxruntime and plain HTTP: python DIR/example.py TEXTS.npy QDRANT-URL.

    Every graph is compared with modalign before anything is written. Needs the extra `export`.
    """
    with _home(where) as home:
        result = home.export(alignment, metric, to, collection=collection)
    rows = [{"graph": g.name, "outputs": ", ".join(g.outputs), "difference": g.difference} for g in result.value]
    if as_json:
        print_json({"run": result.run, "directory": str(to), "graphs": rows})
        return
    shown = [{**row, "difference": f"{row['difference']:.1e}"} for row in rows]
    print_table(shown, f"{to}: {alignment} under {metric}, and how far each graph is from what modalign computes")
