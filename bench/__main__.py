"""`python -m bench` prints the table of every row, `python -m bench push search` of some topics.

Benchmarks that are no ratio beside what a user would write, or take many minutes, run by name only.
"""

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import click

from bench.report import document, lines, write
from bench.row import TURNS, Result, Row, measure, profile

TOPICS = ("startup", "push", "search", "verify", "encode", "fit")
SLOW_TOPICS = ("million",)  # their rows are in the table of the docs, and run by name only
OTHERS = (
    "peers",
    "ingest",
    "kills",
    "growth",
    "memory",
    "demo",
    "quality",
    "captions",
    "metrics",
    "mol_layout",
    "audit",
    "node_kills",
    "scale",
    "cluster_kills",
    "cluster_rate",
    "fit_memory",
)


def rows_of(topics: Sequence[str]) -> list[Row]:
    """The rows of some topics, in their order."""
    return [row for topic in topics for row in importlib.import_module(f"bench.{topic}").ROWS]


@click.command(help=__doc__)
@click.argument("names", nargs=-1, type=click.Choice((*TOPICS, *SLOW_TOPICS, *OTHERS)))
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
@click.option("--turns", type=click.IntRange(1), default=TURNS, show_default=True, help="How often a side is run.")
@click.option("--write", "page", type=click.Path(path_type=Path, exists=True), help="Put the results into this page.")
@click.option("--profile", "profiled", is_flag=True, help="Say where the time of modalign's side goes, and end.")
def main(names: tuple[str, ...], as_json: bool, turns: int, page: Path | None, profiled: bool) -> None:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a process that starts would compile modalign each time
    rows = rows_of([name for name in names or TOPICS if name in (*TOPICS, *SLOW_TOPICS)])
    if profiled:
        for row in rows:
            click.echo(f"{row.title}\n{profile(row)}")
        return
    results: list[Result] = []
    every = rows_of((*TOPICS, *SLOW_TOPICS)) if page else []
    for row in rows:
        results.append(result := measure(row, turns=turns))
        if page:  # after each row: an error in a later one loses nothing
            write(page, [result], every)
        click.echo(f"{row.title}: {f'{result.ratio:.3g}, ' if result.ours else ''}{result.verdict}", err=True)
    if as_json:
        click.echo(json.dumps(document(results), indent=2, ensure_ascii=False))
    elif results:
        click.echo("\n".join(lines(results)))
    for name in names:
        module = importlib.import_module(f"bench.{name}")
        if hasattr(module, "figures"):
            click.echo(f"-- {name}\n   {module.ASKED}", err=as_json)
            for figure in module.figures():
                click.echo(figure, err=as_json)


if __name__ == "__main__":
    main(prog_name="python -m bench")
