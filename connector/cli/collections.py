"""Commands on collections: push, ingest, delete, search."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from connector.cli.group import FAILED, _confirmation, _exit_for_rejects, _home, cli
from connector.cli.options import (
    METRIC_HELP,
    corpus_options,
    home_options,
    json_option,
    push_options,
    rejects_option,
    yes_option,
)
from connector.cli.tables import (
    found_rows,
    how_sure,
    print_json,
    print_releases,
    print_result,
    print_table,
    say_shadows,
)
from connector.progress import say


@cli.command()
@click.argument("name", metavar="SET")
@push_options
@rejects_option
@json_option
@home_options
def push(
    name: str,
    collection: str,
    alignment: str,
    metrics: tuple[str, ...],
    layout: Mapping[str, Any],
    max_rejects: int,
    as_json: bool,
    **where: Any,
) -> None:
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
    corpus: Path,
    collection: str,
    alignment: str,
    metrics: tuple[str, ...],
    layout: Mapping[str, Any],
    name: str | None,
    format: str | None,
    images: Path | None,
    parts: int | None,
    prune: bool,
    yes: bool,
    max_rejects: int,
    as_json: bool,
    **where: Any,
) -> None:
    """Encode CORPUS with the alignment's encoders and push it: one command that can be killed and repeated."""
    confirm = _confirmation("--prune", yes) if prune else None
    if prune and parts and not yes:
        raise click.UsageError("--prune with --parts asks nobody: add --yes")
    with _home(where) as home:
        result = home.ingest(
            corpus,
            collection,
            alignment,
            name=name,
            format=format,
            images=images,
            metrics=metrics,
            parts=parts,
            prune=None if confirm is None else lambda gone: confirm(f"delete {gone} items that have left the corpus?"),
            **layout,
        )
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
    collection: str,
    keys: tuple[str, ...],
    filter_json: str | None,
    modality: Any,
    yes: bool,
    as_json: bool,
    **where: Any,
) -> None:
    """Delete items from every release of COLLECTION and from their embedding sets, after saying how many and asking.

    Other collections that hold items of these sets lose them too. A corpus that still has an item brings it back when
    it is ingested again; a push does not. Run it again after a kill: it finishes.
    """
    from connector.stores.filters import parse_filter

    if not keys and filter_json is None:
        raise click.UsageError("expected --key or --filter, got neither")
    confirm = _confirmation("modalign delete", yes)
    condition = parse_filter(filter_json) if filter_json is not None else None
    with _home(where) as home:
        result = home.delete(
            collection,
            keys=keys,
            filter=condition,
            modalities=[modality] if modality else ["image", "text"],
            confirm=lambda doomed: confirm(f"delete {doomed}?"),
        )
    if not result.value:
        say("nothing was deleted")
    print_result(result, {"collection": collection, "deleted": result.counts["deleted"]}, as_json)
    if not result.value:
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
    collection: str,
    query: str,
    k: int,
    metric: str | None,
    target: Any,
    filter_json: str | None,
    exact: bool,
    budget: int | None,
    page: Path | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Search COLLECTION with QUERY: a text, or the path of an image (known by its suffix)."""
    from connector.corpora.items import IMAGE_SUFFIXES
    from connector.reports.contact_sheet import Answered, write_contact_sheet
    from connector.stores.filters import parse_filter

    condition = parse_filter(filter_json) if filter_json is not None else None
    options: dict[str, Any] = {"filter": condition, "exact": exact, "max_candidates": budget}
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
            "collection": collection,
            "metric": name,
            "guarantee": guarantee,
            "certified": answer.certified,
            "candidates": answer.candidates,
            "exact": answer.exact,
            "query": query,
            "found": [item._asdict() for item in answer],
        }
        print_json(document)
    else:
        print_table(found_rows(answer), f"{collection} {title}")
