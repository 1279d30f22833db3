"""The command that searches a collection."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import click

from alignment.modality import MODALITIES
from alignment.retrieval.ways import Way
from connector.cli.choices import METRIC, PathName
from connector.cli.group import cli
from connector.cli.opening import open_home
from connector.cli.options import METRIC_HELP, WholeRange, home_options, json_option, pixels_option
from connector.cli.tables import print_json, print_table, result_quality, search_rows
from connector.progress import say
from connector.requests import SearchRequest, default_of


@cli.command()
@click.argument("collection")
@click.argument("query")
@click.option(
    "-k",
    "--k",
    type=WholeRange(1, 1_000_000),
    default=default_of(SearchRequest, "k"),
    show_default=True,
    help="Items to find.",
)
@click.option(
    "--metric", type=METRIC, metavar="METRIC", help=METRIC_HELP + "  [default: the only one there is, or cosine]"
)
@click.option("--target", type=click.Choice(MODALITIES), help="Modality to find.  [default: the other one]")
@click.option(
    "--by",
    type=click.Choice(get_args(Way)),
    default=default_of(SearchRequest, "by"),
    show_default=True,
    help="What a text is compared with to find items: their images, their captions, or both.",
)
@click.option("--filter", metavar="JSON", help="Qdrant filter on the payload.")
@click.option("--exact", is_flag=True, help="Compare with every item, not only with those that an index leads to.")
@click.option(
    "--candidates",
    "max_candidates",
    type=click.IntRange(1),
    metavar="N",
    help="Most candidates to rescore under a metric that rescores.  [default: the metric's own number]",
)
@click.option("--html", "page", type=PathName(), help="Write a contact sheet with the pictures.")
@pixels_option
@json_option
@home_options
def search(page: Path | None, as_json: bool, where: Mapping[str, Any], **given: Any) -> None:
    """Search COLLECTION with QUERY: a text, or the path of an image (recognised by its suffix)."""
    request = SearchRequest(**given)
    if page:
        from connector.reports.contact_sheet import AnsweredQuery, write_contact_sheet  # loads templates
        from connector.reports.page_files import claim_page

        claim_page(page)
    with open_home(where) as home:
        found = home.search(request)
    hits = found.hits
    way = {"image": "", "caption": " by caption", "fused": " by image and caption"}[request.by]
    title = f"under {found.metric}{way}, {result_quality(found, request.by)}"
    if page:
        subtitle = f"{len(hits)} best {title}"
        heading, answers = f"{request.collection}: {request.query}", [AnsweredQuery(found.query, hits)]
        write_contact_sheet(page, heading, subtitle, answers, max_pixels=home.settings.max_pixels)
        say(f"wrote {page}")
    if as_json:
        document = {
            "collection": request.collection,
            "metric": found.metric,
            "by": request.by,
            "guarantee": found.guarantee,
            "certified": hits.certified,
            "candidates": hits.candidates,
            "compares_with_all": found.compares_with_all,
            "query": request.query,
            "found": [hit._asdict() for hit in hits],
        }
        print_json(document)
    else:
        print_table(search_rows(hits), f"{request.collection} {title}")
