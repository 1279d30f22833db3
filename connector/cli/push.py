"""Commands that write items into collections: push, ingest, delete."""

import sys
from collections.abc import Mapping
from typing import Any

import click

from alignment.modality import MODALITIES
from alignment.plurals import counted
from connector.cli.choices import PathName
from connector.cli.group import FAILED, cli
from connector.cli.opening import confirmation, exit_for_rejects, open_home
from connector.cli.options import (
    corpus_options,
    home_options,
    json_option,
    pixels_option,
    placement_options,
    rejects_option,
    yes_option,
)
from connector.cli.push_options import push_options
from connector.cli.request_options import range_of
from connector.cli.tables import (
    print_releases,
    print_result,
    say_shadows,
)
from connector.progress import say
from connector.requests import DeleteRequest, IngestRequest, PushRequest, default_of


@cli.command()
@click.argument("set", metavar="SET")
@push_options
@rejects_option
@json_option
@home_options
def push(max_rejects: int, as_json: bool, where: Mapping[str, Any], **given: Any) -> None:
    """Push an embedding set through an alignment into Qdrant, one release per metric.

    The first release of a collection under a metric is live at once, unless filters would find something else under it.
    A release of another alignment is a shadow until it is audited and promoted. Until then, a push with either
    alignment reaches both releases.

    Run it again after a kill or a change of the set. Only changes are written.
    """
    with open_home(where) as home:
        result = home.push(PushRequest(**given))
        command = home.next_audit(given["into"])
    print_releases(result, as_json)
    say_shadows(result, command)
    exit_for_rejects(result, max_rejects)


@cli.command()
@click.argument("corpus", type=PathName())
@push_options
@click.option("--set", metavar="NAME", help="Embedding set to keep.  [default: like the collection]")
@corpus_options
@placement_options("CORPUS is encoded; workers read its files under the same paths")
@click.option("--prune", is_flag=True, help="Delete items that have left the corpus, after a count and a question.")
@click.option(
    "--prune-at-most",
    type=range_of(IngestRequest, "prune_at_most"),
    default=default_of(IngestRequest, "prune_at_most"),
    show_default=True,
    metavar="SHARE",
    help="Prune nothing if more than this share of the images, or of the texts, left the corpus: it may be cut.",
)
@yes_option
@pixels_option
@rejects_option
@json_option
@home_options
def ingest(prune: bool, yes: bool, max_rejects: int, as_json: bool, where: Mapping[str, Any], **given: Any) -> None:
    """Encode CORPUS with the alignment's encoders and push it. It can be killed and run again."""
    source = click.get_current_context().get_parameter_source("prune_at_most")
    if not prune and source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--prune-at-most is for --prune: add it, or leave both out")
    confirm = confirmation("--prune", yes) if prune else None
    request = IngestRequest(**given)
    with open_home(where) as home:
        result = home.ingest(
            request,
            prune=None
            if confirm is None
            else lambda gone: confirm(f"delete {counted(gone, 'item')} that left the corpus?"),
        )
        command = home.next_audit(given["into"])
    print_releases(result, as_json)
    say_shadows(result, command)
    exit_for_rejects(result, max_rejects)


@cli.command()
@click.argument("collection")
@click.option(
    "--key", "keys", multiple=True, metavar="KEY", help="Key of an image, or of a caption: KEY#0. May be repeated."
)
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="GROUP",
    help="Group whose images and texts are all deleted, such as a product with its pictures and captions. May be repeated.",
)
@click.option("--filter", metavar="JSON", help="Qdrant filter on the payload. Every item that matches is deleted.")
@click.option("--modality", type=click.Choice(MODALITIES), help="Only items of this modality.  [default: both]")
@yes_option
@json_option
@home_options
def delete(modality: Any, yes: bool, as_json: bool, where: Mapping[str, Any], **given: Any) -> None:
    """Delete items from every release of COLLECTION and from their embedding sets, after a count and a question.

    A key names one item: texts of an image that is deleted stay unless they are named, and are counted. A group names
    all its images and texts, as the embedding sets have them now. Keys and groups that no item has are named and
    counted. Other collections that hold items of these sets lose them too. An ingest of a corpus that still has an item
    brings it back; a push does not. Run it again after a kill: it finishes.
    """
    request = DeleteRequest(modalities=[modality] if modality else MODALITIES, **given)
    if not request.keys and not request.groups and request.filter is None:
        raise click.UsageError("expected --key, --group or --filter, got none of them")
    confirm = confirmation("modalign delete", yes)
    with open_home(where) as home:
        result = home.delete(request, confirm=lambda preview: confirm(f"delete {preview}?"))
    if not result.value:
        say("nothing was deleted")
    told = {name: result.counts[name] for name in ("deleted", "points_deleted", "unknown", "unknown_groups")}
    shown = {
        "collection": request.collection,
        "items deleted": told["deleted"],
        "points deleted": told["points_deleted"],
    }
    print_result(result, {"collection": request.collection, **told}, as_json, shown)
    if not result.value:
        sys.exit(FAILED)
